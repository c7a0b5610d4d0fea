//! The life of a container: its statuses, and the steps that each of them allows.

#![expect(clippy::unwrap_used, reason = "a helper of the tests fails as a test does")]

use std::os::fd::{AsRawFd, OwnedFd};

use coracle_tests::command::tool;
use coracle_tests::terminal::ConsoleSocket;
use coracle_tests::{Spec, privileged};

fn sleeping() -> Spec {
    Spec::new().args(["sleep", "1000"])
}

#[test]
fn a_container_goes_from_created_through_running_to_stopped() {
    privileged(|host| {
        let container = host.bundle(sleeping()).create();
        assert_eq!(container.status(), "created");
        container.call("start").succeeds();
        assert_eq!(container.status(), "running");
        container.call_with("kill", &["KILL"]).succeeds();
        container.becomes("stopped");
        container.call("delete").succeeds();
        container.call("state").fails_with(&["does not exist"]);
    });
}

#[test]
fn state_holds_the_fields_of_the_specification() {
    privileged(|host| {
        let container = host.bundle(sleeping().set("/annotations/org.example.key", "value")).start();
        let state = container.state();
        assert_eq!(state["id"], container.id());
        assert_eq!(state["status"], "running");
        assert_eq!(state["bundle"], container.bundle().directory().to_str().unwrap());
        assert_eq!(state["annotations"]["org.example.key"], "value");
        assert!(state["ociVersion"].is_string());
        assert!(std::path::Path::new(&format!("/proc/{}", state["pid"])).is_dir());
        container.remove();
    });
}

#[test]
fn a_stopped_container_has_no_process() {
    privileged(|host| {
        let container = host.bundle(Spec::new()).start();
        container.becomes("stopped");
        assert!(container.state()["pid"].as_i64().unwrap_or(0) == 0);
        container.call("delete").succeeds();
    });
}

#[test]
fn the_command_waits_for_start() {
    privileged(|host| {
        let container = host.bundle(Spec::new().args(["echo", "started"])).create();
        std::thread::sleep(std::time::Duration::from_millis(100));
        assert_eq!(container.output(), "");
        container.call("start").succeeds();
        container.becomes("stopped");
        assert_eq!(container.output(), "started\n");
        container.call("delete").succeeds();
    });
}

#[test]
fn a_second_create_of_an_id_is_refused_and_leaves_the_first_alone() {
    privileged(|host| {
        let first = host.bundle(sleeping()).start();
        let second = host.bundle(Spec::new()).named(first.id());
        second.try_create().fails_with(&["exist"]);
        assert_eq!(first.status(), "running");
        first.exec(&["true"]).succeeds();
        first.remove();
    });
}

#[test]
fn a_running_container_can_not_be_started_again() {
    privileged(|host| {
        let container = host.sleeper();
        container.call("start").fails_with(&["running"]);
        assert_eq!(container.status(), "running");
        container.remove();
    });
}

#[test]
fn a_start_that_can_not_write_down_what_it_does_can_be_tried_again() {
    privileged(|host| {
        tool("mount", &["-t", "tmpfs", "-o", "size=128k", "disk", "/run/coracle"]);
        let container = host.bundle(sleeping()).create();
        host.shell("cat /dev/zero >/run/coracle/.filling").exits(1);
        container.call("start").fails_with(&["writing the record", "no space left on device"]);
        std::fs::remove_file("/run/coracle/.filling").unwrap();
        assert_eq!(container.status(), "created");
        container.call("start").succeeds();
        assert_eq!(container.status(), "running");
        container.remove();
        tool("umount", &["/run/coracle"]);
    });
}

#[test]
fn a_stopped_container_can_not_be_started() {
    privileged(|host| {
        let container = host.bundle(Spec::new()).start();
        container.becomes("stopped");
        container.call("start").fails_with(&["stopped"]);
        container.call("delete").succeeds();
    });
}

#[test]
fn a_running_container_is_not_deleted_without_force() {
    privileged(|host| {
        let container = host.sleeper();
        container.call("delete").fails_with(&[container.id()]);
        assert_eq!(container.status(), "running");
        host.call(&["delete", "--force", container.id()]).succeeds();
        container.call("state").fails_with(&["does not exist"]);
    });
}

#[test]
fn a_created_container_can_be_deleted() {
    privileged(|host| {
        let container = host.bundle(sleeping()).create();
        container.call("delete").succeeds();
        container.call("state").fails_with(&["does not exist"]);
        let container = host.bundle(sleeping()).create();
        host.call(&["delete", "--force", container.id()]).succeeds();
    });
}

#[test]
fn a_created_container_can_be_killed() {
    privileged(|host| {
        let container = host.bundle(sleeping()).create();
        container.call_with("kill", &["KILL"]).succeeds();
        container.becomes("stopped");
        container.call("delete").succeeds();
    });
}

#[test]
fn deleting_twice_tells_that_there_is_nothing_but_force_succeeds() {
    privileged(|host| {
        let container = host.sleeper();
        container.remove();
        container.call("delete").fails_with(&["does not exist"]);
        host.call(&["delete", "--force", container.id()]).succeeds();
    });
}

#[test]
fn a_stopped_container_can_not_be_killed() {
    privileged(|host| {
        let container = host.bundle(Spec::new()).start();
        container.becomes("stopped");
        container.call_with("kill", &["TERM"]).fails_with(&["not running"]);
        container.call("delete").succeeds();
    });
}

#[test]
fn an_unknown_container_is_named_in_every_refusal() {
    privileged(|host| {
        for verb in ["state", "start", "kill", "delete", "ps"] {
            host.call(&[verb, "nobody"]).fails_with(&["does not exist"]);
        }
        host.call(&["exec", "nobody", "true"]).fails_with(&["does not exist"]);
    });
}

#[test]
fn kill_takes_names_and_numbers_and_term_by_default() {
    privileged(|host| {
        let script = "trap 'echo usr1' USR1; trap 'echo hup' HUP; trap 'echo term; exit 0' TERM; echo ready; \
                      while :; do sleep 0.02; done";
        let container = host.bundle(Spec::new().script(script)).start();
        let heard =
            |word: &str| coracle_tests::command::eventually(word, || container.output().contains(word));
        heard("ready");
        container.call_with("kill", &["SIGUSR1"]).succeeds();
        heard("usr1");
        container.call_with("kill", &["1"]).succeeds();
        heard("hup");
        container.call("kill").succeeds();
        heard("term");
        container.becomes("stopped");
        container.call("delete").succeeds();
    });
}

#[test]
fn kill_all_ends_every_process_of_a_container_that_shares_the_pid_namespace() {
    privileged(|host| {
        let spec = Spec::new().without_namespace("pid").script("sleep 1001 & sleep 1002 & sleep 1003");
        let container = host.bundle(spec).start();
        host.call(&["kill", "--all", container.id(), "KILL"]).succeeds();
        container.becomes("stopped");
        container.call("delete").succeeds();
    });
}

#[test]
fn kill_ends_every_process_of_a_container_that_shares_the_pid_namespace() {
    privileged(|host| {
        let spec = Spec::new().without_namespace("pid").script("sleep 1001 & sleep 1002 & sleep 1003");
        let container = host.bundle(spec).start();
        let pids = || host.call(&["ps", "--format", "json", container.id()]).succeeds().json();
        coracle_tests::command::eventually("three processes", || pids().as_array().unwrap().len() >= 3);
        container.call_with("kill", &["KILL"]).succeeds();
        container.becomes("stopped");
        coracle_tests::command::eventually("none is left", || pids().as_array().unwrap().is_empty());
        container.call("delete").succeeds();
    });
}

#[test]
fn real_time_signals_have_names() {
    privileged(|host| {
        if !host.needs_coracle("names of real-time signals") {
            return;
        }
        let script = "trap 'echo heard' 37; echo ready; while :; do sleep 0.02; done";
        let container = host.bundle(Spec::new().script(script)).start();
        let says =
            |word: &str| coracle_tests::command::eventually(word, || container.output().contains(word));
        says("ready");
        container.call_with("kill", &["SIGRTMIN+3"]).succeeds();
        says("heard");
        container.call_with("kill", &["SIGRTMIN+31"]).fails_with(&["SIGRTMIN+31"]);
        container.remove();
    });
}

#[test]
fn an_unknown_signal_is_named() {
    privileged(|host| {
        let container = host.sleeper();
        container.call_with("kill", &["SIGNOTHING"]).fails_with(&["signothing"]);
        container.remove();
    });
}

#[test]
fn ids_that_are_paths_or_odd_are_refused() {
    privileged(|host| {
        let long = "x".repeat(10_000);
        for id in ["../escape", "a/../../b", "..", "with space", "new\nline", "", long.as_str()] {
            host.bundle(Spec::new()).named(id).try_create().fails_with(&[]);
        }
    });
}

#[test]
fn list_shows_containers_with_their_status() {
    privileged(|host| {
        let running = host.sleeper();
        let created = host.bundle(sleeping()).create();
        let table = host.call(&["list"]).succeeds().lines();
        assert!(table[0].starts_with("ID") && table[0].contains("PID") && table[0].contains("STATUS"));
        assert!(table.iter().any(|line| line.starts_with(running.id()) && line.contains("running")));
        assert_eq!(
            table[0].split_whitespace().collect::<Vec<_>>(),
            ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"]
        );
        assert!(table[1..].iter().all(|line| line.trim_end().ends_with("root")), "{table:?}");
        let mut ids = host.call(&["list", "--quiet"]).succeeds().lines();
        ids.sort();
        let mut expected = vec![running.id().to_owned(), created.id().to_owned()];
        expected.sort();
        assert_eq!(ids, expected);
        let json = host.call(&["list", "--format", "json"]).succeeds().json();
        let status = |id: &str| {
            let entry = json.as_array().unwrap().iter().find(|entry| entry["id"] == id);
            entry.map(|entry| entry["status"].clone())
        };
        assert_eq!(status(created.id()), Some("created".into()));
        host.call(&["delete", "--force", created.id()]).succeeds();
        running.remove();
    });
}

#[test]
fn ps_shows_the_processes_of_the_container() {
    privileged(|host| {
        let container = host.bundle(Spec::new().script("sleep 1001 & sleep 1002 & wait")).start();
        coracle_tests::command::eventually("three processes", || {
            let pids = host.call(&["ps", "--format", "json", container.id()]).succeeds().json();
            pids.as_array().unwrap().len() == 3
        });
        let pids = host.call(&["ps", "--format", "json", container.id()]).json();
        assert!(pids.as_array().unwrap().contains(&container.pid().into()));
        let table = container.call("ps").succeeds().text();
        assert!(table.contains("PID") && table.contains("sleep 1002"), "{table}");
        container.remove();
    });
}

#[test]
fn another_root_directory_holds_other_containers() {
    privileged(|host| {
        let root = host.directory();
        let root = root.to_str().unwrap();
        let bundle = host.bundle(sleeping());
        let directory = bundle.directory().to_str().unwrap();
        host.call(&["--root", root, "create", "--bundle", directory, bundle.id()]).succeeds();
        host.call(&["state", bundle.id()]).fails_with(&["does not exist"]);
        host.call(&["--root", root, "state", bundle.id()]).succeeds();
        host.call(&["--root", root, "delete", "--force", bundle.id()]).succeeds();
    });
}

#[test]
fn the_bundle_is_the_working_directory_unless_named() {
    privileged(|host| {
        let bundle = host.bundle(Spec::new().args(["echo", "here"]));
        let run = host.call_in(bundle.directory(), &["run", bundle.id()]).succeeds();
        assert_eq!(run.text(), "here");
    });
}

#[test]
fn a_killed_first_process_takes_all_others_with_it() {
    privileged(|host| {
        let container = host.bundle(Spec::new().script("sleep 1001 & sleep 1002 & wait")).start();
        host.call(&["delete", "--force", container.id()]).succeeds();
        container.call("state").fails_with(&["does not exist"]);
    });
}

#[test]
fn the_callers_umask_does_not_reach_what_is_made() {
    privileged(|host| {
        let bundle = host.bundle(sleeping());
        let (directory, id) = (bundle.directory().display(), bundle.id());
        host.shell(&format!(
            "umask 777; $RUNTIME create --bundle {directory} {id} </dev/null >/dev/null 2>&1"
        ))
        .succeeds();
        let mode = host.shell(&format!("stat -c %a /run/coracle/{id}")).text();
        assert!(!host.is_coracle() || mode.starts_with('7'), "{mode}");
        host.call(&["delete", "--force", id]).succeeds();
    });
}
#[test]
fn run_leaves_a_container_behind_only_where_it_is_told_to_keep_it() {
    privileged(|host| {
        // runc 1.1 has no --keep for the state.
        let bundle = host.bundle(Spec::new()).options(["--keep"]);
        bundle.run().succeeds();
        let state = host.call(&["state", bundle.id()]).succeeds().json();
        assert_eq!(state["status"], "stopped");
        host.call(&["delete", bundle.id()]).succeeds();
    });
}

#[test]
fn a_descriptor_of_the_process_goes_over_the_pidfd_socket() {
    privileged(|host| {
        if !host.needs_coracle("--pidfd-socket") {
            return;
        }
        let socket = ConsoleSocket::new(&host.directory());
        let container = host.bundle(sleeping()).options(["--pidfd-socket", socket.path()]).create();
        let (name, pidfd) = socket.receive_descriptor();
        assert_eq!((name.as_str(), pid_of(&pidfd)), ("standard", container.pid()));
        container.call("start").succeeds();
        container.exec_with(&["--detach", "--pidfd-socket", socket.path()], &["sleep", "1001"]).succeeds();
        let (name, pidfd) = socket.receive_descriptor();
        assert_eq!(name, "setns");
        let pids = host.call(&["ps", "--format", "json", container.id()]).succeeds().json();
        assert!(pids.as_array().unwrap().contains(&pid_of(&pidfd).into()));
        container.remove();
        host.bundle(sleeping())
            .options(["--pidfd-socket", "/run/test/nobody"])
            .try_create()
            .fails_with(&["--pidfd-socket", "/run/test/nobody"]);
    });
}

/// The process that a descriptor is of, as the host numbers it.
fn pid_of(pidfd: &OwnedFd) -> i32 {
    let told = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd())).unwrap();
    let line = told.lines().find_map(|line| line.strip_prefix("Pid:")).unwrap();
    line.trim().parse().unwrap()
}

#[test]
fn an_id_may_be_as_long_as_a_name_of_a_file() {
    privileged(|host| {
        if !host.needs_coracle("another name than the test's own") {
            return;
        }
        let (bundle, id) = (host.bundle(Spec::new().args(["true"])), "x".repeat(255));
        host.call(&["run", "--bundle", bundle.directory().to_str().unwrap(), &id]).succeeds();
        assert_eq!(host.call(&["state", &id]).code, 1, "nothing is left of it");
    });
}
