//! The leak oracle itself: whatever is left behind, it tells.

use std::fs;
use std::process::Command;

use coracle_fixtures::hostile::CANARY;
use coracle_tests::oracle::cgroup_hierarchies;
use coracle_tests::{Host, privileged};

/// Asserts that the oracle tells of what `leave` left, and of nothing once `clear` took it away.
fn tells(host: &Host, words: &[&str], leave: &str, clear: &str) {
    let before = host.snapshot();
    host.shell(leave).succeeds();
    let told = host.difference_soon(&before).unwrap_or_default();
    host.shell(clear).succeeds();
    let silent: Vec<_> = words.iter().filter(|words| !told.contains(**words)).collect();
    assert!(silent.is_empty(), "{silent:?} is not in {told:?}");
    assert_eq!(host.difference(&before), None);
}

#[test]
fn files_and_what_they_hold() {
    privileged(|host| {
        tells(host, &["left: file /run/coracle/new"], "touch /run/coracle/new", "rm /run/coracle/new");
        let canary = format!("{CANARY}/file");
        let swap = |from: &str, to: &str| {
            format!(
                "touch -r {canary} /run/test/times; sed -i s/{from}/{to}/ {canary}; touch -r /run/test/times {canary}"
            )
        };
        tells(
            host,
            &["content /run/host-canary/file"],
            &swap("untouched", "unwatched"),
            &swap("unwatched", "untouched"),
        );
    });
}

#[test]
fn mounts() {
    privileged(|host| {
        tells(
            host,
            &["left: mount"],
            "mkdir /run/test/m && mount -t tmpfs x /run/test/m",
            "umount /run/test/m",
        );
    });
}

#[test]
fn cgroups_of_every_hierarchy() {
    privileged(|host| {
        let paths: Vec<String> =
            cgroup_hierarchies().iter().map(|path| format!("{}/left", path.display())).collect();
        let words: Vec<String> = paths.iter().map(|path| format!("left: cgroup {path}")).collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        tells(host, &words, &format!("mkdir {}", paths.join(" ")), &format!("rmdir {}", paths.join(" ")));
    });
}

#[test]
fn processes_and_their_namespaces() {
    privileged(|host| {
        let before = host.snapshot();
        let mut child = Command::new("unshare").args(["--uts", "sleep", "1000"]).spawn().unwrap();
        coracle_tests::command::eventually("it sleeps", || {
            fs::read_to_string(format!("/proc/{}/comm", child.id())).is_ok_and(|name| name == "sleep\n")
        });
        let told = host.difference_soon(&before).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(told.contains("left: process") && told.contains("left: namespace uts:"), "{told}");
    });
}

#[test]
fn interfaces() {
    privileged(|host| {
        tells(
            host,
            &["left: interface br-left"],
            "/bin/busybox brctl addbr br-left",
            "/bin/busybox brctl delbr br-left",
        );
    });
}
