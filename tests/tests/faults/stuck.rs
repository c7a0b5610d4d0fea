//! Containers that are known to get stuck, and how each is left.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use coracle_tests::{Host, Spec, cgroup, command, privileged};

/// The directories in which the cgroup at `path` can be frozen, and the file that does it.
fn freezer(path: &str) -> (PathBuf, &'static str) {
    let found = cgroup::hierarchies_of(path).into_iter().find_map(|directory| {
        ["freezer.state", "cgroup.freeze"].into_iter().find_map(|file| {
            let found = directory.join(file).is_file().then(|| directory.clone());
            found.map(|directory| (directory, file))
        })
    });
    found.expect("a cgroup that freezes")
}

/// Freezes as somebody who does not ask the runtime.
fn freeze(directory: &Path, file: &str) {
    fs::write(directory.join(file), if file == "freezer.state" { "FROZEN" } else { "1" }).unwrap();
}

/// `delete --force` of a container frozen behind the runtime's back, after `spoil` has been done to it.
fn goes_though_frozen(host: &Host, spoil: impl FnOnce(&str)) {
    let before = host.snapshot();
    let script = "sleep 1000 & sleep 1001";
    let container = host.bundle(Spec::new().without_namespace("pid").script(script)).start();
    let (directory, file) = freezer(&format!("/{}", container.id()));
    freeze(&directory, file);
    spoil(container.id());
    let begun = Instant::now();
    host.call(&["delete", "--force", container.id()]).succeeds();
    assert!(begun.elapsed() < Duration::from_secs(5) * command::patience(), "it took {:?}", begun.elapsed());
    assert_eq!(host.difference(&before), None);
}

#[test]
fn a_container_that_another_has_frozen_goes_by_force() {
    privileged(|host| {
        goes_though_frozen(host, |_| {});
    });
}

#[test]
fn one_that_is_frozen_and_has_lost_its_record_goes_by_force() {
    privileged(|host| {
        if host.needs_coracle("a record that may be broken") {
            let record = |id: &str| Path::new("/run/coracle").join(id).join("record.json");
            goes_though_frozen(host, |id| cut(&record(id)));
            goes_though_frozen(host, |id| fs::write(record(id), "").unwrap());
        }
    });
}

#[test]
fn a_cgroup_that_the_container_has_frozen_below_its_own_does_not_keep_it() {
    privileged(|host| {
        let spec = Spec::new().without_namespace("pid").script("sleep 1000 & sleep 1001");
        let container = host.bundle(spec).start();
        let (directory, file) = freezer(&format!("/{}", container.id()));
        command::eventually("all have started", || cgroup::members(&directory).len() >= 2);
        let below = directory.join("below");
        fs::create_dir(&below).unwrap();
        let other = cgroup::members(&directory).into_iter().find(|pid| *pid != container.pid()).unwrap();
        fs::write(below.join("cgroup.procs"), other.to_string()).unwrap();
        freeze(&below, file);
        host.call(&["delete", "--force", container.id()]).succeeds();
    });
}

#[test]
fn a_cgroup_below_a_frozen_one_is_refused() {
    privileged(|host| {
        if cgroup::is_made_by_systemd() {
            return host.skip("systemd says where its scopes are");
        }
        for parent in cgroup::hierarchies_of("/") {
            fs::create_dir_all(parent.join("p")).unwrap();
        }
        let (directory, file) = freezer("/p");
        freeze(&directory, file);
        host.bundle(Spec::new().cgroup("/p/x")).try_create().fails_with(&["unexpectedly frozen"]);
        for parent in cgroup::hierarchies_of("/p") {
            fs::remove_dir(parent).unwrap();
        }
    });
}

#[test]
fn who_executes_in_one_that_another_has_frozen_is_told() {
    privileged(|host| {
        let container = host.sleeper();
        let (directory, file) = freezer(&format!("/{}", container.id()));
        freeze(&directory, file);
        container.exec(&["true"]).fails_with(&["paused", "--ignore-paused"]);
        host.call(&["delete", "--force", container.id()]).succeeds();
    });
}

#[test]
fn an_exec_whose_process_stands_still_ends_when_it_is_asked_to() {
    privileged(|host| {
        if !host.needs_coracle("an exec that can be ended") {
            return;
        }
        let container = host.sleeper();
        container.call("pause").succeeds();
        let arguments = ["exec", "--ignore-paused", container.id(), "sleep", "1014"];
        let mut exec = Command::new(host.runtime()).args(arguments).spawn().unwrap();
        command::eventually("it looks after signals itself", || {
            let status = fs::read_to_string(format!("/proc/{}/status", exec.id())).unwrap();
            let blocked = status.lines().find_map(|line| line.strip_prefix("SigBlk:\t")).unwrap();
            u64::from_str_radix(blocked, 16).unwrap() & (1 << (15 - 1)) != 0
        });
        host.shell(&format!("kill {}", exec.id())).succeeds();
        let ends = (0..1000).any(|_| {
            std::thread::sleep(Duration::from_millis(10));
            exec.try_wait().unwrap().is_some()
        });
        // First of all: the kernel would wait for those who are frozen when the test ends.
        container.call("resume").succeeds();
        assert!(ends, "it was asked to end ten seconds ago");
        assert_eq!(command::code(command::wait(&mut exec, "exec")), 255);
        container.remove();
    });
}

#[test]
fn a_container_whose_process_is_stopped_goes_by_force_though_it_is_being_started() {
    privileged(|host| {
        let before = host.snapshot();
        let container = host.bundle(Spec::new().args(["sleep", "1000"])).create();
        container.call_with("kill", &["STOP"]).succeeds();
        let mut start = Command::new(host.runtime()).args(["start", container.id()]).spawn().unwrap();
        command::eventually("it is being started", || container.status() == "running");
        host.call(&["delete", "--force", container.id()]).succeeds();
        command::wait(&mut start, "start");
        assert_eq!(host.difference(&before), None);
    });
}

#[test]
fn those_whom_a_killed_first_process_leaves_behind_go_with_the_container() {
    privileged(|host| {
        let before = host.snapshot();
        let spec = Spec::new().without_namespace("pid").script("sleep 1000 & sleep 1001 & sleep 1002");
        let container = host.bundle(spec).start();
        host.shell(&format!("kill -KILL {}", container.pid())).succeeds();
        container.becomes("stopped");
        container.call("kill").fails_with(&["not running"]);
        container.call("delete").succeeds();
        assert_eq!(host.difference(&before), None);
    });
}

#[test]
fn a_create_that_hangs_in_a_hook_keeps_nobody_waiting_and_goes_with_its_container() {
    privileged(|host| {
        if !host.needs_coracle("a lock that is not waited for without end") {
            return;
        }
        let before = host.snapshot();
        let bundle = host.bundle(Spec::new().hook("createRuntime", &["/bin/sleep", "1003"]));
        let mut create = bundle.command("create").spawn().unwrap();
        let hangs = || !host.shell("pgrep -f '^/bin/sleep 1003$'").text().is_empty();
        command::eventually("the hook hangs", hangs);
        let begun = Instant::now();
        let delete = host.call(&["delete", "--force", bundle.id()]);
        delete.fails_with(&[bundle.id(), "another command has had", "for 10 seconds", "a hook may keep it"]);
        assert!(
            begun.elapsed() < Duration::from_secs(20) * command::patience(),
            "it took {:?}",
            begun.elapsed()
        );
        // What there is of it is dead already.
        assert_eq!(host.call(&["state", bundle.id()]).json()["status"], "stopped");
        create.kill().unwrap();
        create.wait().unwrap();
        host.call(&["delete", "--force", bundle.id()]).succeeds();
        assert_eq!(host.difference(&before), None);
    });
}

#[test]
fn a_container_that_nobody_starts_goes_though_it_is_frozen_or_its_process_is_dead() {
    privileged(|host| {
        let before = host.snapshot();
        let created = || host.bundle(Spec::new().args(["sleep", "1000"])).create();
        let frozen = created();
        let (directory, file) = freezer(&format!("/{}", frozen.id()));
        freeze(&directory, file);
        host.call(&["delete", "--force", frozen.id()]).succeeds();
        let dead = created();
        host.shell(&format!("kill -KILL {}", dead.pid())).succeeds();
        dead.becomes("stopped");
        dead.call("start").fails_with(&["stopped"]);
        dead.call("delete").succeeds();
        assert_eq!(host.difference(&before), None);
    });
}

/// Cuts a file to half its length, as a host that crashes may.
fn cut(path: &Path) {
    let bytes = fs::read(path).unwrap();
    fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
}

#[test]
fn a_record_that_was_cut_short_does_not_keep_a_container() {
    privileged(|host| {
        if !host.needs_coracle("a record that may be broken") {
            return;
        }
        let before = host.snapshot();
        let container = host.sleeper();
        cut(&Path::new("/run/coracle").join(container.id()).join("record.json"));
        host.call(&["delete", "--force", container.id()]).succeeds();
        assert_eq!(host.difference(&before), None);
    });
}

/// A container whose record is cut, and its configuration spoiled: `delete --force` fails with `words`, and it goes on until both
/// are whole again.
fn stays(host: &Host, spoil: impl FnOnce(&Path), words: &[&str]) {
    if !host.needs_coracle("a record that may be broken") {
        return;
    }
    let container = host.sleeper();
    let pid = container.pid();
    let files =
        ["record.json", "config.json"].map(|name| Path::new("/run/coracle").join(container.id()).join(name));
    let whole = files.each_ref().map(|file| fs::read(file).unwrap());
    cut(&files[0]);
    spoil(&files[1]);
    host.call(&["delete", "--force", container.id()]).fails_with(words);
    assert!(Path::new(&format!("/proc/{pid}")).is_dir());
    for (file, text) in files.iter().zip(&whole) {
        fs::write(file, text).unwrap();
    }
    host.call(&["delete", "--force", container.id()]).succeeds();
}

#[test]
fn where_nothing_tells_what_to_remove_force_says_so() {
    privileged(|host| stays(host, cut, &["record", "configuration"]));
}

#[test]
fn a_container_whose_cgroups_nobody_finds_is_not_taken_for_gone() {
    privileged(|host| {
        // As it is where another manager made them, or who deletes is elsewhere in the tree.
        let elsewhere = |config: &Path| {
            let mut spec: serde_json::Value = serde_json::from_slice(&fs::read(config).unwrap()).unwrap();
            spec["linux"]["cgroupsPath"] = "/nowhere/at/all".into();
            fs::write(config, spec.to_string()).unwrap();
        };
        stays(host, elsewhere, &["record", "nor are its cgroups where its configuration puts them"]);
    });
}
