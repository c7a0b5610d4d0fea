//! Cgroups of containers of a user without privilege: delegated ones, and none.

#![expect(clippy::unwrap_used, reason = "a helper of the tests fails as a test does")]

use std::fs;
use std::os::unix::fs::chown;

use coracle_tests::cgroup::{self, hierarchies_of};
use coracle_tests::command::tool;
use coracle_tests::oracle::cgroup_hierarchies;
use coracle_tests::user::{USER, single};
use coracle_tests::{Host, Outcome, Spec, unprivileged};

#[test]
fn limits_without_a_cgroup_are_refused_and_leave_nothing() {
    unprivileged(|host| {
        let refused = "rootless needs no limits + no cgrouppath when no permission is granted for cgroups";
        let run = host.bundle(single().pids(20)).run();
        run.fails_with(&["/linux/resources/pids/limit", "permission denied", refused]);
        let run = host.bundle(single().memory(64 << 20)).run();
        run.fails_with(&["/linux/resources/memory/limit", "permission denied", refused]);
    });
}

#[test]
fn a_cgroup_that_is_asked_for_by_name_must_be_made() {
    unprivileged(|host| {
        let run = host.bundle(single().cgroup("/mine")).run();
        run.fails_with(&["making cgroup \"mine\"", "permission denied", "no cgrouppath"]);
    });
}

#[test]
fn without_rootless_a_cgroup_must_be_made() {
    unprivileged(|host| {
        let bundle = host.bundle(single());
        let directory = bundle.directory().to_str().unwrap();
        let run = |rootless: &str| host.call(&["--rootless", rootless, "run", "--bundle", directory, "x"]);
        run("false").fails_with(&["making cgroup", "permission denied"]);
        run("auto").succeeds();
        run("true").succeeds();
    });
}

#[test]
fn one_that_has_no_pid_namespace_either_is_warned_of() {
    unprivileged(|host| {
        let shared = |spec: Spec| {
            let proc = ["rbind", "nosuid", "nodev", "noexec"];
            spec.without_namespace("pid").without_mount("/proc").mount("/proc", "none", "/proc", &proc)
        };
        let elusive = "neither a cgroup nor a PID namespace";
        let run = host.bundle(shared(single()).args(["true"])).run().succeeds();
        assert!(run.stderr.contains(elusive), "{run:?}");
        let run = host.bundle(single().args(["true"])).run().succeeds();
        assert!(!run.stderr.contains(elusive), "{run:?}");
    });
}

/// A cgroup of the user's in every hierarchy, as an administrator delegates it (cgroups(7), "Delegation"), and the
/// words of a shell that enter it.
fn delegate() -> String {
    let mut enter = String::new();
    for hierarchy in cgroup_hierarchies() {
        let given = hierarchy.join("given");
        fs::create_dir_all(given.join("caller")).unwrap();
        let controllers = fs::read_to_string(given.join("cgroup.controllers")).unwrap_or_default();
        for controller in controllers.split_whitespace() {
            fs::write(given.join("cgroup.subtree_control"), format!("+{controller}")).unwrap();
        }
        for name in ["cpuset.cpus", "cpuset.mems"] {
            if let Ok(all) = fs::read(hierarchy.join(name)) {
                fs::write(given.join(name), &all).unwrap();
                fs::write(given.join("caller").join(name), &all).unwrap();
            }
        }
        for name in
            [".", "cgroup.procs", "tasks", "cgroup.subtree_control", "cgroup.threads", "caller/cgroup.procs"]
        {
            let path = given.join(name);
            if path.exists() {
                tool("chown", &[&format!("{USER}:{USER}"), path.to_str().unwrap()]);
            }
        }
        enter.push_str(&format!("echo $$ >{}\n", given.join("caller/cgroup.procs").display()));
    }
    enter
}

fn take_back() {
    for directory in hierarchies_of("/given") {
        fs::remove_dir(directory.join("caller")).unwrap();
        fs::remove_dir(directory).unwrap();
    }
}

#[test]
fn limits_are_kept_in_a_delegated_cgroup() {
    unprivileged(|host| {
        let enter = delegate();
        let bundle =
            host.bundle(single().cgroup("/given/box").pids(20).memory(64 << 20).args(["sleep", "1000"]));
        let create =
            format!("{enter}exec $RUNTIME run --detach --bundle {} box", bundle.directory().display());
        host.shell(&create).succeeds();
        assert_eq!(cgroup::read("/given/box", "pids.max").as_deref(), Some("20"));
        let memory = if cgroup::is_unified() { "memory.max" } else { "memory.limit_in_bytes" };
        assert_eq!(cgroup::read("/given/box", memory).as_deref(), Some("67108864"));
        host.shell(&format!("{enter}exec $RUNTIME exec box true")).succeeds();
        for verb in ["pause", "resume", "update --pids-limit 30", "delete --force"] {
            host.call(&[&verb.split(' ').collect::<Vec<_>>()[..], &["box"]].concat()).succeeds();
            if verb.starts_with("update") {
                assert_eq!(cgroup::read("/given/box", "pids.max").as_deref(), Some("30"));
            }
        }
        assert!(hierarchies_of("/given/box").is_empty());
        take_back();
    });
}

#[test]
fn without_a_path_it_is_in_a_cgroup_near_the_callers_where_that_is_delegated() {
    unprivileged(|host| {
        let enter = delegate();
        let bundle = host.bundle(single().args(["cat", "/proc/self/cgroup"]).without_namespace("cgroup"));
        let run = format!("{enter}exec $RUNTIME run --bundle {} box", bundle.directory().display());
        let text = host.shell(&run).succeeds().text();
        assert!(text.contains(":/given/coracle-box"), "{text}");
        take_back();
    });
}

/// A container in the delegated cgroup, of a caller who is in another that was delegated, if `enter` says so.
fn run_in_given(host: &Host, enter: &str) -> Outcome {
    let bundle = host.bundle(single().cgroup("/given/box").pids(20).args(["cat", "/proc/self/cgroup"]));
    host.shell(&format!("{enter}exec $RUNTIME run --bundle {} box", bundle.directory().display()))
}

#[test]
fn beside_version_1_the_unified_one_need_not_be_delegated() {
    unprivileged(|host| {
        let unified = cgroup_hierarchies().into_iter().find(|h| h.join("cgroup.controllers").exists());
        let Some(unified) = unified.filter(|_| !cgroup::is_unified()) else {
            return host.skip("a unified tree beside version 1");
        };
        let enter = delegate();
        chown(unified.join("given"), Some(0), Some(0)).unwrap();
        run_in_given(host, &enter).succeeds();
        take_back();
    });
}

#[test]
fn who_calls_from_outside_what_was_delegated_is_told_of_it() {
    unprivileged(|host| {
        delegate();
        let run = run_in_given(host, "");
        run.fails_with(&["permission denied", "was delegated"]);
        take_back();
    });
}
