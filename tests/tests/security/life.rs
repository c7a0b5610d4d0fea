//! The structure behind the recipes: what a whole life does with paths, as strace(1) sees it.

use std::collections::BTreeMap;
use std::fs;

use coracle_fixtures::hostile::CANARY;
use coracle_tests::{Bundle, Host, Spec, privileged};
use serde_json::json;

use crate::{canary_is_untouched, plant};

/// Calls that act on the last part of a path and never follow it: beside `openat2` they alone may name something
/// below the root, and only a single name in a directory that `openat2` gave.
const MAKE_OR_LOOK: [&str; 6] = ["mkdirat", "mknodat", "symlinkat", "unlinkat", "newfstatat", "readlinkat"];

/// Every system call that takes a path, by its name in strace.
const TRACED: &str =
    "%file,openat2,open_tree,move_mount,mount_setattr,fspick,pivot_root,fchdir,setns,inotify_add_watch";

/// What a traced call did: its name, its arguments with the paths of descriptors, and its result.
struct Call<'t> {
    pid: &'t str,
    name: &'t str,
    rest: &'t str,
}

fn calls(trace: &str) -> Vec<Call<'_>> {
    let parse = |line| -> Option<Call<'_>> {
        let (before, rest): (&str, &str) = str::split_once(line, '(')?;
        let (pid, name) = before.split_once(' ')?;
        Some(Call { pid, name: name.trim(), rest })
    };
    trace.lines().filter_map(parse).collect()
}

/// Whether a process stands in the container's root yet: by its own calls, after `pivot_root`, or after it joined its mount
/// namespace; or by birth, where the go-between did.
struct Process {
    is_inside: bool,
    is_program: bool,
}

/// What is wrong with a call, if anything is.
fn fault(call: &Call<'_>, process: &Process, rootfs: &str) -> Option<&'static str> {
    let below = format!("{rootfs}/");
    let quoted: Vec<&str> = call.rest.split('"').skip(1).step_by(2).collect();
    if quoted.iter().any(|path| path.starts_with(&below)) {
        return Some("names a path below the root from outside");
    }
    if process.is_inside {
        let is_own = ["execve", "chdir", "getcwd", "openat2"].contains(&call.name);
        let by_descriptor = quoted.iter().all(|path| path.is_empty());
        let leaves = ["pivot_root", "umount2"].contains(&call.name) && quoted.iter().all(|path| *path == ".");
        return (!is_own && !by_descriptor && !leaves).then_some("takes a path inside");
    }
    let arguments = call.rest.rsplit_once(") = ").map_or(call.rest, |(arguments, _)| arguments);
    if !arguments.contains(&format!("<{below}")) && !arguments.contains(&format!("<{rootfs}>")) {
        return None;
    }
    let is_safe = match call.name {
        "openat2" => ["RESOLVE_IN_ROOT", "RESOLVE_BENEATH"].iter().any(|flag| call.rest.contains(flag)),
        name if MAKE_OR_LOOK.contains(&name) => {
            // What a link leads to is no path that is taken.
            let content = usize::from(name == "symlinkat");
            quoted.iter().skip(content).all(|path| !path.contains('/') && !["..", "."].contains(path))
        }
        _ => quoted.iter().all(|path| path.is_empty()),
    };
    (!is_safe).then_some("takes a path below the root")
}

/// A whole life under strace: `create`, `start`, `exec` and `delete`, and `run`, each with its children.
fn trace(host: &Host, bundle: &Bundle<'_>) -> String {
    let streams = host.directory();
    let script = format!(
        "cd {}
         traced() {{ verb=$1; shift
             strace -f -y -qq -s 4096 -e trace={TRACED} -o {}/$verb $RUNTIME $verb \"$@\" </dev/null; }}
         traced create {id} & until $RUNTIME state {id} 2>/dev/null | grep -q created; do sleep 0.02; done
         traced start {id} && traced exec --cwd /work --user 1000 {id} true && traced delete --force {id} && wait && rm rootfs/once &&
         traced run {id}-again",
        bundle.directory().display(),
        streams.display(),
        id = bundle.id()
    );
    host.shell(&script).succeeds();
    let read = |verb| fs::read_to_string(streams.join(verb)).unwrap();
    ["create", "start", "exec", "delete", "run"].map(read).concat()
}

/// A bundle that asks for all that is made below a root, most of it through links of the image that lead out.
fn hostile(host: &Host) -> Bundle<'_> {
    let source = host.directory();
    let spec = Spec::new()
        .user(1000, 1000)
        .args(["sh", "-c", "[ ! -e /once ] || exec sleep 1000"])
        .set("/process/cwd", "/work/new")
        .set("/root/readonly", true)
        .bind(source.to_str().unwrap(), "/a/b/c", &["ro"])
        .bind(source.to_str().unwrap(), "/out/new/directory", &["ro"])
        .bind("/etc/hostname", "/out/new/file", &[])
        .mount("/out/memory", "tmpfs", "tmpfs", &["tmpcopyup", "ro"])
        .bind("/etc/hostname", "/etc/name", &[])
        .push("/linux/devices", json!({"path": "/dev/x/y", "type": "c", "major": 1, "minor": 3}))
        .push("/linux/maskedPaths", json!("/out/file"))
        .push("/linux/readonlyPaths", json!("/out/directory"))
        .set("/linux/rootfsPropagation", "private");
    let inside = CANARY.trim_start_matches('/');
    let bundle = host.bundle(spec).with_file(&format!("{inside}/file"), "").with_file("once", "");
    fs::create_dir(bundle.rootfs().join(inside).join("directory")).unwrap();
    plant(plant(bundle, "out", &format!("../../../../../..{CANARY}")), "work", CANARY)
}

#[test]
fn no_call_of_a_whole_life_takes_a_path_below_the_root_but_openat2_inside_it() {
    privileged(|host| {
        if !host.needs_coracle("resolution inside the root throughout") || !host.needs_program("strace") {
            return;
        }
        let bundle = hostile(host);
        let rootfs = bundle.rootfs().to_str().unwrap().to_owned();
        let text = trace(host, &bundle);
        let mut processes: BTreeMap<&str, Process> = BTreeMap::new();
        let (mut faults, mut resolved, mut has_joined) = (String::new(), 0, false);
        for call in calls(&text) {
            let process = processes.entry(call.pid).or_insert_with(|| {
                // A runtime begins with that, and its first child comes later.
                has_joined &= call.name != "execve";
                Process { is_inside: has_joined, is_program: false }
            });
            if process.is_program {
                continue;
            }
            resolved += u32::from(call.name == "openat2" && call.rest.contains("RESOLVE_IN_ROOT"));
            if let Some(why) = fault(&call, process, &rootfs) {
                faults += &format!("{} {}({}\n", why, call.name, call.rest);
            }
            let joins = call.name == "setns" && call.rest.contains("CLONE_NEWNS");
            let enters = (call.name == "fchdir" || joins) && !call.rest.contains(" = -1");
            process.is_inside |= enters;
            has_joined |= joins && enters;
            process.is_program = process.is_inside && call.name == "execve";
        }
        assert!(faults.is_empty(), "{faults}");
        assert!(resolved > 20, "the trace shows only {resolved} resolutions: {text}");
        let entered = processes.values().filter(|process| process.is_program).count();
        assert_eq!(entered, 3, "create, exec and run each make a program: {text}");
        canary_is_untouched();
    });
}
