//! `pause` and `resume`: a container stands still, and goes on.

use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use coracle_tests::{Container, Host, Spec, cgroup, command, privileged, privileged_v1};
use serde_json::json;

/// A container that keeps writing to its standard output.
fn writer(host: &Host) -> Container<'_> {
    let container = host.bundle(Spec::new().script("while :; do echo .; sleep 0.01; done")).start();
    command::eventually("it writes", || !container.output().is_empty());
    container
}

fn is_frozen(container: &Container<'_>) -> bool {
    let path = format!("/{}", container.id());
    match cgroup::read(&path, "freezer.state") {
        Some(state) => state == "FROZEN",
        None => cgroup::read(&path, "cgroup.freeze").as_deref() == Some("1"),
    }
}

fn stands_still_until_resumed(host: &Host) {
    let container = writer(host);
    container.call("pause").succeeds();
    assert!(is_frozen(&container));
    assert_eq!(container.status(), "paused");
    let written = container.output();
    thread::sleep(Duration::from_millis(100));
    assert_eq!(container.output(), written);
    container.call("resume").succeeds();
    assert!(!is_frozen(&container));
    assert_eq!(container.status(), "running");
    command::eventually("it writes on", || container.output() != written);
    container.remove();
}

#[test]
fn a_paused_container_stands_still_until_it_is_resumed() {
    privileged(|host| {
        stands_still_until_resumed(host);
    });
}

#[test]
fn it_stands_still_on_version_1_alone() {
    privileged_v1(|host| {
        stands_still_until_resumed(host);
    });
}

#[test]
fn whoever_else_froze_it_it_is_resumed() {
    privileged(|host| {
        let container = writer(host);
        for (file, value, thawed) in [("freezer.state", "FROZEN", "THAWED"), ("cgroup.freeze", "1", "0")] {
            for directory in cgroup::hierarchies_of(&format!("/{}", container.id())) {
                let file = directory.join(file);
                // A hybrid machine has both.
                if file.exists() {
                    std::fs::write(&file, value).unwrap();
                    container.call("resume").succeeds();
                    assert_eq!(std::fs::read_to_string(&file).unwrap().trim(), thawed);
                }
            }
        }
        let written = container.output();
        command::eventually("it writes on", || container.output() != written);
        container.remove();
    });
}

#[test]
fn list_and_ps_show_it_all_the_same() {
    privileged(|host| {
        let container = writer(host);
        container.call("pause").succeeds();
        let table = host.call(&["list"]).succeeds().lines();
        assert!(
            table.iter().any(|line| line.starts_with(container.id()) && line.contains("paused")),
            "{table:?}"
        );
        let pids = host.call(&["ps", "--format", "json", container.id()]).succeeds().json();
        assert!(pids.as_array().unwrap().contains(&container.pid().into()));
        host.call(&["delete", "--force", container.id()]).succeeds();
    });
}

#[test]
fn a_created_container_can_be_paused_and_then_not_be_started() {
    privileged(|host| {
        let container = host.bundle(Spec::new().args(["sleep", "1000"])).create();
        container.call("pause").succeeds();
        assert_eq!(container.status(), "paused");
        container.call("start").fails_with(&["paused"]);
        container.call("resume").succeeds();
        assert_eq!(container.status(), "created");
        container.call("start").succeeds();
        container.remove();
    });
}

#[test]
fn what_does_not_run_is_not_paused_and_what_is_not_paused_not_resumed() {
    privileged(|host| {
        let container = host.sleeper();
        container.call("resume").fails_with(&["not paused"]);
        container.call("pause").succeeds();
        container.call("pause").fails_with(&["paus"]);
        container.call("resume").succeeds();
        container.call_with("kill", &["KILL"]).succeeds();
        container.becomes("stopped");
        container.call("pause").fails_with(&[container.id()]);
        container.call("resume").fails_with(&[container.id()]);
        container.call("delete").succeeds();
    });
}

#[test]
fn exec_is_refused_unless_told_to_wait() {
    privileged(|host| {
        let container = host.sleeper();
        container.call("pause").succeeds();
        container.exec(&["true"]).fails_with(&["paused", "--ignore-paused"]);
        let mut waiting = Command::new(host.runtime())
            .args(["exec", "--ignore-paused", container.id(), "true"])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        thread::sleep(Duration::from_millis(200));
        assert!(waiting.try_wait().unwrap().is_none(), "it ran in a paused container");
        container.call("resume").succeeds();
        assert!(command::wait(&mut waiting, "exec").success());
        container.remove();
    });
}

fn dies_of_kill(host: &Host) {
    let container = writer(host);
    container.call("pause").succeeds();
    container.call_with("kill", &["KILL"]).succeeds();
    container.becomes("stopped");
    container.call("delete").succeeds();
}

#[test]
fn a_paused_container_can_be_killed() {
    privileged(|host| {
        dies_of_kill(host);
    });
}

#[test]
fn a_paused_container_can_be_killed_on_version_1_alone() {
    privileged_v1(|host| {
        dies_of_kill(host);
    });
}

#[test]
fn other_signals_wait_for_it_to_be_resumed() {
    privileged(|host| {
        let script = "trap 'echo term; exit 0' TERM; echo ready; while :; do sleep 0.01; done";
        let container = host.bundle(Spec::new().script(script)).start();
        command::eventually("it is ready", || container.output().contains("ready"));
        container.call("pause").succeeds();
        container.call_with("kill", &["TERM"]).succeeds();
        thread::sleep(Duration::from_millis(100));
        assert!(!container.output().contains("term"));
        container.call("resume").succeeds();
        container.becomes("stopped");
        assert!(container.output().contains("term"));
        container.call("delete").succeeds();
    });
}

#[test]
fn a_paused_container_is_deleted_by_force_alone() {
    privileged_v1(|host| {
        // runc 1.1 needs ten seconds.
        let container = writer(host);
        container.call("pause").succeeds();
        container.call("delete").fails_with(&["paused"]);
        host.call(&["delete", "--force", container.id()]).succeeds();
        container.call("state").fails_with(&["does not exist"]);
    });
}

#[test]
fn a_paused_container_of_many_processes_in_the_hosts_pid_namespace_goes_whole() {
    privileged_v1(|host| {
        let script = "for i in 1 2 3; do sleep 1000 & done; wait";
        let container = host.bundle(Spec::new().without_namespace("pid").script(script)).start();
        container.call("pause").succeeds();
        host.call(&["delete", "--force", container.id()]).succeeds();
    });
}

#[test]
fn without_cgroups_it_can_not_be_paused() {
    privileged(|host| {
        if !host.needs_coracle("containers without cgroups") {
            return;
        }
        let spec = Spec::new().set("/linux/resources", json!({})).args(["sleep", "1000"]);
        let bundle = host.bundle(spec);
        let directory = bundle.directory().to_str().unwrap();
        host.call(&["--cgroup-manager", "disabled", "create", "--bundle", directory, bundle.id()]).succeeds();
        host.call(&["pause", bundle.id()])
            .fails_with(&["no cgroup that can be frozen", "created without cgroups"]);
        host.call(&["delete", "--force", bundle.id()]).succeeds();
    });
}
