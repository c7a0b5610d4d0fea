//! `mounts`: more in a container that runs.

#![expect(clippy::unwrap_used, reason = "a helper of the tests fails as a test does")]

use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use coracle_tests::silent::Silent;
use coracle_tests::{Container, Host, Outcome, Spec, command, privileged};
use serde_json::{Value, json};

fn mounts(host: &Host, verb: &str, container: &Container<'_>, list: &Value) -> Outcome {
    let file = host.directory().join("mounts.json");
    fs::write(&file, list.to_string()).unwrap();
    host.call(&["mounts", verb, container.id(), file.to_str().unwrap()])
}

/// A directory of the host with one file.
fn volume(host: &Host) -> String {
    let directory = host.directory().join("volume");
    fs::create_dir_all(&directory).unwrap();
    fs::write(directory.join("file"), "of the host").unwrap();
    directory.to_str().unwrap().to_owned()
}

#[test]
fn a_directory_a_file_and_a_tmpfs_come_and_go() {
    privileged(|host| {
        if !host.needs_coracle("mounts in a running container") {
            return;
        }
        let container = host.sleeper();
        let volume = volume(host);
        let list = json!({"mounts": [
            {"destination": "/tmp/a", "type": "bind", "source": volume, "options": ["rbind", "ro", "nosuid"]},
            {"destination": "/tmp/b", "type": "bind", "source": format!("{volume}/file"), "options": ["bind"]},
            {"destination": "/tmp/c", "type": "tmpfs", "source": "tmpfs", "options": ["size=64k", "ro"]},
        ]});
        mounts(host, "add", &container, &list).succeeds();
        let look = "cat /tmp/a/file /tmp/b; grep ' /tmp/' /proc/self/mounts | cut -d' ' -f2-4";
        let text = container.exec(&["sh", "-c", look]).succeeds().text();
        assert!(text.starts_with("of the hostof the host/tmp/a"), "{text}");
        assert!(text.lines().any(|line| line.contains("/tmp/a") && line.contains("ro,nosuid")), "{text}");
        assert!(text.contains("/tmp/c tmpfs ro"), "{text}");
        container.exec(&["touch", "/tmp/a/new"]).fails_with(&["ead-only"]);
        mounts(host, "remove", &container, &list).succeeds();
        container.exec(&["cat", "/tmp/a/file"]).fails_with(&[]);
        container.exec(&["sh", "-c", "! grep -q ' /tmp/' /proc/self/mounts"]).succeeds();
        container.remove();
    });
}

#[test]
fn they_are_made_in_a_user_namespace_too() {
    privileged(|host| {
        if !host.needs_coracle("mounts in a running container") {
            return;
        }
        let map = json!([{"containerID": 0, "hostID": 100_000, "size": 65_536}]);
        let spec = Spec::new().namespace("user").set("/linux/uidMappings", map.clone());
        let spec = spec.set("/linux/gidMappings", map).args(["sleep", "1000"]);
        let container = host.bundle(spec).start();
        let volume = volume(host);
        let list = json!([
            {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["mode=1777"]},
            {"destination": "/tmp/a", "type": "bind", "source": volume, "options": ["bind", "ro"]},
        ]);
        mounts(host, "add", &container, &list).succeeds();
        let look = "cat /tmp/a/file; stat -c ' %u' /tmp";
        assert_eq!(container.exec(&["sh", "-c", look]).succeeds().text(), "of the host 0");
        let last_first = json!([list[1], list[0]]);
        mounts(host, "remove", &container, &last_first).succeeds();
        container.remove();
    });
}

#[test]
fn a_link_in_the_container_leads_to_the_container() {
    privileged(|host| {
        if !host.needs_coracle("mounts in a running container") {
            return;
        }
        let outside = host.directory().join("outside");
        fs::create_dir(&outside).unwrap();
        let link = format!("ln -s {} /tmp/link; exec sleep 1000", outside.display());
        let container = host.bundle(Spec::new().script(&link)).start();
        command::eventually("the link is there", || container.exec(&["test", "-L", "/tmp/link"]).code == 0);
        let list = json!([
            {"destination": "/tmp/link", "type": "bind", "source": volume(host), "options": ["bind"]},
        ]);
        mounts(host, "add", &container, &list).succeeds();
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
        let inside = format!("{}/file", outside.display());
        assert_eq!(container.exec(&["cat", &inside]).succeeds().text(), "of the host");
        container.remove();
    });
}

#[test]
fn what_can_not_be_added_or_removed_is_named() {
    privileged(|host| {
        if !host.needs_coracle("mounts in a running container") {
            return;
        }
        let container = host.sleeper();
        let bind = |source: &str| json!([{"destination": "/tmp/a", "type": "bind", "source": source}]);
        for (verb, list, words) in [
            ("add", bind("/no/such"), vec!["/mounts/0 at \"/tmp/a\"", "/no/such", "no such file"]),
            (
                "add",
                json!([{"destination": "/p", "type": "proc"}]),
                vec!["/mounts/0 is neither a bind mount"],
            ),
            ("add", json!({"mount": []}), vec!["mounts.json", "/mounts: it is missing"]),
            ("remove", json!([{"destination": "/"}]), vec!["/mounts/0/destination is the container's root"]),
            (
                "remove",
                json!([{"destination": "/tmp"}]),
                vec!["/mounts/0 at \"/tmp\": nothing is mounted there"],
            ),
            ("remove", json!([{"destination": "/none"}]), vec!["/mounts/0 at \"/none\": nothing is mounted"]),
        ] {
            mounts(host, verb, &container, &list).fails_with(&words);
        }
        container.call_with("kill", &["KILL"]).succeeds();
        container.becomes("stopped");
        mounts(host, "add", &container, &bind("/")).fails_with(&["container not running"]);
        container.call("delete").succeeds();
    });
}

#[test]
fn a_source_that_does_not_answer_keeps_nobody_who_is_asked_to_end() {
    privileged(|host| {
        if !host.needs_coracle("mounts in a running container") {
            return;
        }
        let Some(silent) = Silent::mount(host) else { return };
        let container = host.sleeper();
        let list = json!([{"destination": "/tmp/a", "type": "bind", "source": silent.path()}]);
        let file = host.directory().join("mounts.json");
        fs::write(&file, list.to_string()).unwrap();
        let mut add = Command::new(host.runtime());
        add.args(["mounts", "add", container.id()]).arg(&file).stdin(Stdio::null());
        let mut add = add.spawn().unwrap();
        command::eventually("the source is asked", || silent.is_asked());
        // Until it looks for signals, one just ends it.
        std::thread::sleep(Duration::from_millis(500) * command::patience());
        let begun = Instant::now();
        command::tool("kill", &["-TERM", &add.id().to_string()]);
        assert!(!command::wait(&mut add, "mounts add").success());
        let took = begun.elapsed();
        assert!(took < Duration::from_secs(5) * command::patience(), "it took {took:?}");
        drop(silent);
        container.remove();
    });
}
