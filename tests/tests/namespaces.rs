//! Namespaces: new, joined by path, shared with the host.

#![expect(clippy::unwrap_used, reason = "a helper of the tests fails as a test does")]

use std::fs;

use coracle_tests::{Host, Spec, command, privileged};
use serde_json::json;

const ALL: [(&str, &str); 6] = [
    ("pid", "pid"),
    ("network", "net"),
    ("ipc", "ipc"),
    ("uts", "uts"),
    ("mount", "mnt"),
    ("cgroup", "cgroup"),
];

fn of_host(file: &str) -> String {
    fs::read_link(format!("/proc/self/ns/{file}")).unwrap().to_string_lossy().into_owned()
}

fn reading(file: &str) -> Spec {
    Spec::new().args(["readlink", &format!("/proc/self/ns/{file}")])
}

#[test]
fn each_namespace_that_is_named_is_new() {
    privileged(|host| {
        for (kind, file) in ALL {
            let inside = host.bundle(reading(file)).run().succeeds().text();
            assert!(inside.starts_with(file) && inside != of_host(file), "{kind}: {inside}");
        }
    });
}

#[test]
fn each_namespace_that_is_not_named_is_the_hosts() {
    privileged(|host| {
        for (kind, file) in ALL.iter().filter(|(kind, _)| *kind != "mount") {
            let mut spec = reading(file).without_namespace(kind);
            if *kind == "uts" {
                spec = spec.remove("", "hostname");
            }
            // A new sysfs shows the network namespace of its mounter, and needs to own it.
            let inside = host.bundle(spec).run().succeeds().text();
            assert_eq!(inside, of_host(file), "{kind}");
        }
    });
}

#[test]
fn each_namespace_can_be_joined_by_path() {
    privileged(|host| {
        let first = host.bundle(Spec::new().namespace("time").args(["sleep", "1000"])).start();
        let joined = ALL.iter().chain(&[("time", "time")]).filter(|(kind, _)| *kind != "mount");
        for (kind, file) in joined {
            let path = format!("/proc/{}/ns/{file}", first.pid());
            let expected = fs::read_link(&path).unwrap().to_string_lossy().into_owned();
            let spec = reading(file).join(kind, &path).remove("", "hostname");
            let inside = host.bundle(spec).run().succeeds().text();
            assert_eq!(inside, expected, "{kind}");
        }
        first.remove();
    });
}

#[test]
fn all_namespaces_of_a_container_can_be_joined_at_once_but_its_mounts() {
    privileged(|host| {
        let first = host.bundle(Spec::new().namespace("time").args(["sleep", "1000"])).start();
        let joined: Vec<_> =
            ALL.iter().chain(&[("time", "time")]).filter(|(kind, _)| *kind != "mount").collect();
        let script = "for file in /proc/self/ns/*; do readlink $file; done";
        let spec = joined.iter().fold(Spec::new().args(["sleep", "1000"]), |spec, (kind, file)| {
            spec.join(kind, &format!("/proc/{}/ns/{file}", first.pid()))
        });
        let second = host.bundle(spec).start();
        let of = |container: &coracle_tests::Container<'_>| {
            let mut found = container.exec(&["sh", "-c", script]).succeeds().lines();
            found.retain(|namespace| !namespace.starts_with("mnt:"));
            found
        };
        assert_eq!(of(&first), of(&second));
        host.call(&["delete", "--force", second.id()]).succeeds();
        first.remove();
    });
}

#[test]
fn a_path_that_is_no_namespace_is_refused() {
    privileged(|host| {
        let refused = |path: &str| host.bundle(Spec::new().join("network", path)).run();
        // The kinds that are new come first in the test's list.
        refused("/etc/passwd").fails_with(&["/linux/namespaces/5/path", "\"/etc/passwd\" is no namespace"]);
        refused("/nowhere").fails_with(&["/linux/namespaces/5/path", "/nowhere", "no such file"]);
        refused("net").fails_with(&["/linux/namespaces/5/path is \"net\", not an absolute path"]);
        let fifo = host.directory().join("fifo");
        command::tool("mkfifo", &[&fifo]);
        refused(fifo.to_str().unwrap()).fails_with(&["is no namespace"]);
    });
}

#[test]
fn a_path_of_another_kind_is_refused() {
    privileged(|host| {
        for (kind, file, named) in
            [("network", "uts", "a uts"), ("pid", "net", "a network"), ("user", "mnt", "a mount")]
        {
            let path = format!("/proc/self/ns/{file}");
            let run = host.bundle(Spec::new().join(kind, &path)).run();
            run.fails_with(&[
                "/linux/namespaces/",
                "/path: ",
                &path,
                &format!("is {named} namespace, not a {kind}"),
            ]);
        }
    });
}

#[test]
fn an_unknown_namespace_is_named() {
    privileged(|host| {
        host.bundle(Spec::new().namespace("nonsense")).run().fails_with(&["nonsense"]);
    });
}

#[test]
fn the_same_namespace_twice_is_refused() {
    privileged(|host| {
        host.bundle(Spec::new().namespace("pid")).run().fails_with(&["pid"]);
    });
}

#[test]
fn the_first_process_of_a_pid_namespace_is_number_one() {
    privileged(|host| {
        assert_eq!(host.bundle(Spec::new().script("echo $$")).run().succeeds().text(), "1");
    });
}

#[test]
fn a_new_network_has_nothing_but_loopback() {
    privileged(|host| {
        let spec = Spec::new().args(["ls", "/sys/class/net"]);
        assert_eq!(host.bundle(spec).run().succeeds().text(), "lo");
    });
}

#[test]
fn loopback_is_up_in_a_new_network() {
    privileged(|host| {
        let spec =
            Spec::new().args(["ping", "-c", "1", "-W", "2", "127.0.0.1"]).capabilities(&["CAP_NET_RAW"]);
        host.bundle(spec).run().succeeds();
    });
}

#[test]
fn the_host_name_is_the_containers_alone() {
    privileged(|host| {
        let before = command::tool("hostname", &[] as &[&str]);
        let run = host.bundle(Spec::new().args(["hostname"])).run().succeeds();
        assert_eq!(run.text(), "coracle-test");
        assert_eq!(command::tool("hostname", &[] as &[&str]), before);
    });
}

#[test]
fn a_host_name_without_a_uts_namespace_is_refused() {
    privileged(|host| {
        host.bundle(Spec::new().without_namespace("uts")).run().fails_with(&["hostname", "uts"]);
    });
}

#[test]
fn a_sysctl_of_a_new_namespace_is_set_in_it_alone() {
    privileged(|host| {
        let file = "/proc/sys/net/ipv4/ip_forward";
        let before = fs::read_to_string(file).unwrap();
        let other = if before.trim() == "1" { "0" } else { "1" };
        let spec = Spec::new().set("/linux/sysctl/net.ipv4.ip_forward", other).args(["cat", file]);
        assert_eq!(host.bundle(spec).run().succeeds().text(), other);
        assert_eq!(fs::read_to_string(file).unwrap(), before);
    });
}

#[test]
fn a_sysctl_of_the_host_is_refused() {
    privileged(|host| {
        let of_all = Spec::new().set("/linux/sysctl/vm.swappiness", "1");
        host.bundle(of_all).run().fails_with(&["vm.swappiness"]);
        let of_host = Spec::new().without_namespace("network").set("/linux/sysctl/net.ipv4.ip_forward", "1");
        host.bundle(of_host).run().fails_with(&["net.ipv4.ip_forward"]);
    });
}

#[test]
fn a_container_of_a_shared_pid_namespace_ends_with_its_first_process() {
    privileged(|host| {
        let first = host.sleeper();
        let path = format!("/proc/{}/ns/pid", first.pid());
        let second = host.bundle(Spec::new().join("pid", &path).script("sleep 1001 & sleep 1002")).start();
        host.call(&["delete", "--force", second.id()]).succeeds();
        assert_eq!(first.status(), "running");
        first.remove();
    });
}

#[test]
fn a_container_in_anothers_pid_namespace_is_removed_with_all_its_processes() {
    privileged(|host| {
        let first = host.sleeper();
        let path = format!("/proc/{}/ns/pid", first.pid());
        let spec = Spec::new().join("pid", &path).script("sleep 1001 & sleep 1002 & exit 3");
        let second = host.bundle(spec).start();
        second.becomes("stopped");
        // Its children live on: no PID namespace took them along.
        let left = || first.exec(&["ps"]).succeeds().text();
        assert!(left().contains("sleep 1001") && left().contains("sleep 1002"));
        second.call("delete").succeeds();
        let left = left();
        assert!(!left.contains("sleep 1001") && !left.contains("sleep 1002"), "{left}");
        assert_eq!(first.status(), "running");
        first.remove();
    });
}

fn offsets() -> Spec {
    let offsets = json!({
        "monotonic": {"secs": 7881, "nanosecs": 2_718_281},
        "boottime": {"secs": 100_000, "nanosecs": 0}
    });
    Spec::new().namespace("time").set("/linux/timeOffsets", offsets)
}

/// The offsets as a process sees them, a word each.
fn seen_offsets(run: &coracle_tests::Outcome) -> Vec<String> {
    run.text().split_whitespace().map(str::to_owned).collect()
}

#[test]
fn the_clocks_of_a_time_namespace_are_as_asked() {
    privileged(|host| {
        let uptime = |text: &str| text.split('.').next().unwrap().parse::<i64>().unwrap();
        let script = "cat /proc/self/timens_offsets; cat /proc/uptime";
        let before = uptime(&fs::read_to_string("/proc/uptime").unwrap());
        let inside = host.bundle(offsets().script(script)).run().succeeds();
        let seen = seen_offsets(&inside);
        assert_eq!(seen[..6], ["monotonic", "7881", "2718281", "boottime", "100000", "0"]);
        let passed = uptime(&seen[6]) - before - 100_000;
        assert!((0..60).contains(&passed), "{passed}");
    });
}

#[test]
fn a_command_in_a_time_namespace_sees_its_clocks() {
    privileged(|host| {
        let container = host.bundle(offsets().args(["sleep", "1000"])).start();
        let seen = seen_offsets(&container.exec(&["cat", "/proc/self/timens_offsets"]).succeeds());
        assert_eq!(seen, ["monotonic", "7881", "2718281", "boottime", "100000", "0"]);
        let own = container.exec(&["readlink", "/proc/self/ns/time"]).succeeds().text();
        assert_eq!(own, container.exec(&["readlink", "/proc/1/ns/time"]).succeeds().text());
        container.remove();
    });
}

#[test]
fn time_offsets_without_a_time_namespace_of_the_containers_own_are_refused() {
    privileged(|host| {
        let without = offsets().without_namespace("time");
        host.bundle(without).run().fails_with(&["/linux/timeOffsets", "no \"time\""]);
        let joined = offsets().join("time", "/proc/self/ns/time");
        host.bundle(joined).run().fails_with(&["/linux/timeOffsets", "joined by path"]);
        let other = offsets().set("/linux/timeOffsets/realtime", json!({"secs": 1, "nanosecs": 0}));
        host.bundle(other).run().fails_with(&["/linux/timeOffsets/realtime", "no such clock"]);
    });
}

/// A container that has no mount namespace of its own.
fn sharing_mounts() -> Spec {
    Spec::new()
        .without_namespace("mount")
        .set("/linux/maskedPaths", json!([]))
        .set("/linux/readonlyPaths", json!([]))
}

#[test]
fn a_container_in_the_hosts_mount_namespace_has_its_own_root_and_leaves_no_mount() {
    privileged(|host| {
        let spec = sharing_mounts().script("readlink /proc/self/ns/mnt; ls /; ls /dev/null");
        let run = host.bundle(spec).run().succeeds();
        assert_eq!(run.lines()[0], of_host("mnt"));
        assert!(!run.text().contains("host-canary") && run.text().contains("/dev/null"), "{}", run.text());
        let container = host.bundle(sharing_mounts().args(["sleep", "1000"])).start();
        assert!(fs::read_to_string("/proc/self/mountinfo").unwrap().contains("rootfs/dev/pts"));
        container.remove();
    });
}

/// Hands `test` the path of a mount namespace that another process has.
fn with_other_mounts(host: &Host, test: impl FnOnce(&str)) {
    let script = "unshare -m sh -c 'echo $$ >pid; exec sleep 1000' & while ! [ -s pid ]; do :; done; cat pid";
    let pid = host.shell(script).succeeds().text();
    test(&format!("/proc/{pid}/ns/mnt"));
    command::tool("kill", &[pid]);
}

#[test]
fn a_containers_mount_namespace_can_be_joined_by_path() {
    privileged(|host| {
        with_other_mounts(host, |path| {
            let expected = fs::read_link(path).unwrap().to_string_lossy().into_owned();
            let spec = sharing_mounts().join("mount", path).script("readlink /proc/self/ns/mnt; ls /");
            let run = host.bundle(spec).run().succeeds();
            assert_eq!(run.lines()[0], expected);
            assert!(!run.text().contains("host-canary"), "{}", run.text());
        });
    });
}

#[test]
fn paths_are_masked_and_read_only_in_a_mount_namespace_joined_by_path() {
    privileged(|host| {
        with_other_mounts(host, |path| {
            let spec = Spec::new()
                .join("mount", path)
                .set("/linux/maskedPaths", json!(["/proc/version"]))
                .set("/linux/readonlyPaths", json!(["/proc/sys"]))
                .script("wc -c </proc/version; echo name >/proc/sys/kernel/domainname || echo refused");
            let run = host.bundle(spec).run().succeeds();
            assert_eq!(run.lines(), ["0", "refused"]);
            assert!(run.stderr.contains("Read-only file system"), "{run:?}");
        });
    });
}

/// The root file system is a mount, which goes with the container's when that has ended.
#[test]
fn what_was_mounted_in_the_place_of_the_containers_root_stays() {
    privileged(|host| {
        if !host.needs_coracle("containers that tell their mounts from others") {
            return;
        }
        for is_mounted_anew in [true, false] {
            let bundle = host.bundle(sharing_mounts().args(["true"]));
            let (rootfs, other) = (bundle.rootfs(), host.directory());
            let [root, other] = [&rootfs, &other].map(|path| path.to_str().unwrap());
            command::tool("mount", &["--bind", root, root]);
            let container = bundle.start();
            container.becomes("stopped");
            command::tool("umount", &["--lazy", root]);
            command::tool("umount", &[root]);
            if is_mounted_anew {
                // The first gets the number that is free again.
                command::tool("mount", &["-t", "tmpfs", "first", other]);
                command::tool("mount", &["-t", "tmpfs", "second", root]);
            }
            container.call("delete").succeeds();
            if is_mounted_anew {
                command::tool("umount", &[root]);
                command::tool("umount", &[other]);
            }
        }
    });
}

#[test]
fn masks_in_the_runtimes_own_mount_namespace_are_refused() {
    privileged(|host| {
        for spec in [Spec::new().without_namespace("mount"), Spec::new().join("mount", "/proc/self/ns/mnt")] {
            let run = host.bundle(spec).run();
            run.fails_with(&["/linux/maskedPaths", "no \"mount\"", "unable to restrict sys entries"]);
        }
    });
}

#[test]
fn a_sysctl_of_the_hosts_network_joined_by_path_is_refused() {
    privileged(|host| {
        let spec =
            Spec::new().join("network", "/proc/self/ns/net").set("/linux/sysctl/net.ipv4.ip_forward", "1");
        host.bundle(spec).run().fails_with(&["net.ipv4.ip_forward", "\"network\"", "the host's"]);
    });
}

#[test]
fn sysctls_are_named_with_dots_or_slashes() {
    privileged(|host| {
        let read = ["cat", "/proc/sys/net/ipv4/ip_forward", "/proc/sys/kernel/shm_rmid_forced"];
        let sysctls = json!({"net/ipv4/ip_forward": "1", "kernel.shm_rmid_forced": "1"});
        let run = host.bundle(Spec::new().set("/linux/sysctl", sysctls).args(read)).run().succeeds();
        assert_eq!(run.lines(), ["1", "1"]);
        for (name, pointer) in
            [("kernel.hostname", "kernel.hostname"), ("kernel/hostname", "kernel~1hostname")]
        {
            let named = Spec::new().set("/linux/sysctl", json!({name: "box"}));
            host.bundle(named).run().fails_with(&[&format!("/linux/sysctl/{pointer}"), "set /hostname"]);
        }
    });
}
