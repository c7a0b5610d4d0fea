//! Namespaces: new, joined by path, shared with the host.

#![expect(clippy::unwrap_used, reason = "a helper of the tests fails as a test does")]

use std::fs;

use coracle_tests::{Spec, command, privileged};

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
        let first = host.sleeper();
        for (kind, file) in ALL.iter().filter(|(kind, _)| *kind != "mount") {
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
fn a_path_that_is_no_namespace_is_refused() {
    privileged(|host| {
        host.bundle(Spec::new().join("network", "/etc/passwd")).run().fails_with(&[]);
        host.bundle(Spec::new().join("network", "/nowhere")).run().fails_with(&["/nowhere"]);
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
