//! What a name, an identifier or a number may not become.

use std::fs;

use coracle_fixtures::hostile::CANARY;
use coracle_tests::{Spec, command, privileged};
use serde_json::json;

use crate::withstands;

#[test]
fn c33_odd_ids_leave_nothing() {
    privileged(|host| {
        for id in ["../../run/host-canary/x", ".", "..", "/absolute", "a\nb", "-flag"] {
            let run = host.bundle(Spec::new()).named(id).run();
            assert!(run.code != 0, "{id:?} was taken");
        }
    });
}

#[test]
fn c34_a_container_without_a_mount_namespace_changes_no_propagation() {
    privileged(|host| {
        // Refused or run: the oracle compares the mount table.
        host.bundle(Spec::new().without_namespace("mount").set("/mounts", serde_json::json!([]))).run();
    });
}

#[test]
fn c13_a_large_configuration_changes_no_namespace() {
    privileged(|host| {
        let mut deep = host.directory();
        for _ in 0..14 {
            deep.push("d".repeat(200));
        }
        fs::create_dir_all(&deep).unwrap();
        let mut spec = Spec::new();
        for number in 0..40 {
            spec = spec.bind(deep.to_str().unwrap(), &format!("/mnt/{number}"), &["ro"]);
            spec = spec.set(&format!("/annotations/org.example.{number}"), "x".repeat(4096));
        }
        let kinds = ["pid", "net", "ipc", "uts", "mnt", "cgroup"];
        let script = kinds.map(|kind| format!("readlink /proc/self/ns/{kind}; ")).concat();
        let run = host.bundle(spec.script(&script)).run().succeeds();
        assert_eq!(run.lines().len(), kinds.len());
        for (kind, inside) in kinds.iter().zip(run.lines()) {
            let outside = fs::read_link(format!("/proc/self/ns/{kind}")).unwrap();
            assert_ne!(outside.to_str().unwrap(), inside);
        }
    });
}

#[test]
fn c19_a_user_that_is_no_number_is_never_root() {
    privileged(|host| {
        if !withstands(host) {
            return;
        }
        let container = host.sleeper();
        let users =
            ["1000abc", "-1", "4294967295", "4294967296", "0x3e8", " 1000", "1000:", ":0", "", "\u{661}"];
        for user in users.into_iter().chain(["2147483648:1", "1000:-1", "+1000", "1e3", "1000 0"]) {
            let run = container.exec_with(&["--user", user], &["id", "-u"]);
            let taken = run.text();
            let exact = user.split(':').next() == Some(taken.as_str());
            assert!(run.code != 0 || exact, "--user {user:?} was taken as {taken}");
        }
        container.remove();
        for user in [json!(-1), json!(4_294_967_295_u32), json!(4_294_967_296_u64), json!("1000"), json!(1.5)]
        {
            let run =
                host.bundle(Spec::new().set("/process/user/uid", user.clone()).args(["id", "-u"])).run();
            assert!(run.code != 0, "{user} was taken as {}", run.text());
        }
    });
}

#[test]
fn c23_nobody_else_can_look_into_the_state() {
    privileged(|host| {
        let bundle = host.bundle(Spec::new().args(["sleep", "1000"]));
        let (directory, id) = (bundle.directory().display(), bundle.id());
        host.shell(&format!("cd {directory} && umask 0 && $RUNTIME create {id} </dev/null")).succeeds();
        let name = host.runtime().file_name().unwrap().to_str().unwrap();
        let look = format!(
            "cd / && setpriv --reuid 1000 --regid 1000 --clear-groups find /run/{name}/{id} -mindepth 1 -print"
        );
        assert_eq!(host.shell(&look).text(), "");
        host.call(&["delete", "--force", bundle.id()]).succeeds();
    });
}

#[test]
fn c24_no_sysctl_of_the_host_is_set() {
    privileged(|host| {
        let read = || fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
        let before = read();
        for (name, value) in [
            ("kernel.core_pattern", "|/evil"),
            ("net/../kernel/core_pattern", "|/evil"),
            ("net.../kernel.core_pattern", "|/evil"),
            ("/proc/sys/kernel/core_pattern", "|/evil"),
            ("kernel.shm_rmid_forced", "1+kernel.core_pattern=|/evil"),
            ("kernel.shm_rmid_forced", "1\nkernel.core_pattern=|/evil"),
            ("vm.drop_caches", "3"),
        ] {
            let run = host.bundle(Spec::new().set("/linux/sysctl", json!({name: value}))).run();
            assert!(run.code != 0, "{name} = {value:?} was taken");
        }
        for (name, namespace) in [("net.ipv4.ip_forward", "network"), ("kernel.shmmni", "ipc")] {
            let spec = Spec::new().without_namespace(namespace).without_mount("/dev/mqueue");
            let run = host.bundle(spec.set("/linux/sysctl", json!({name: "1"}))).run();
            assert!(run.code != 0, "{name} was set without an own {namespace} namespace");
        }
        assert_eq!(read(), before);
    });
}

#[test]
fn c26_no_path_of_a_cgroup_climbs() {
    privileged(|host| {
        for path in ["/../../escaped", "../escaped", "/a/../../../escaped", "/a\nb", ".."] {
            // Refused, or below the root that the container's caller sees: the oracle sees whatever is left.
            host.bundle(Spec::new().cgroup(path).args(["true"])).run();
        }
        let container = host.sleeper();
        for path in ["..", "../..", "/../..", "../../escaped"] {
            let run = container.exec_with(&["--cgroup", path], &["true"]);
            assert!(run.code != 0, "exec --cgroup {path} was taken");
        }
        container.remove();
    });
}

#[test]
fn c33_no_id_is_too_long_or_hidden() {
    privileged(|host| {
        for id in
            ["x".repeat(10_000), ".hidden".to_owned(), String::new(), "a b".to_owned(), "\u{e9}".to_owned()]
        {
            let run = host.bundle(Spec::new()).named(&id).run();
            assert!(run.code != 0 || !host.is_coracle(), "{id:.20?} was taken");
        }
        assert_eq!(fs::read_dir(CANARY).unwrap().count(), 2);
    });
}

#[test]
fn c31_no_name_of_a_device_or_an_isolator_is_a_path() {
    privileged(|host| {
        if !host.needs_coracle("names of network devices that it looks at") {
            return;
        }
        command::tool("busybox", &["ip", "link", "add", "veth-a", "type", "veth"]);
        let run = |devices| host.bundle(Spec::new().set("/linux/netDevices", devices)).run();
        for name in ["../../x", "a/b", ".", "..", "a b", "sixteen-letters-", "a:b", "eth%d"] {
            run(json!({name: {}})).fails_with(&["/linux/netDevices", "name"]);
            run(json!({"veth-a": {"name": name}})).fails_with(&["/linux/netDevices/veth-a/name", "name"]);
        }
        run(json!({"": {}})).fails_with(&["/linux/netDevices", "name"]);
        // With a name that is none of these, the same interface moves, and goes with its container.
        run(json!({"veth-a": {"name": "eth0"}})).succeeds();
    });
}
