//! User namespaces: mapped users, what they may do, and what is out of their reach.

#![expect(clippy::unwrap_used, reason = "a helper of the tests fails as a test does")]

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use coracle_tests::terminal::ConsoleSocket;
use coracle_tests::{Bundle, Host, Spec, command, privileged};
use serde_json::json;

const USER: u32 = 100_000;
const GROUP: u32 = 200_000;

/// A container whose root is user 100000 and group 200000 of the host.
fn mapped(spec: Spec) -> Spec {
    spec.namespace("user")
        .set("/linux/uidMappings", json!([{"containerID": 0, "hostID": USER, "size": 65536}]))
        .set("/linux/gidMappings", json!([{"containerID": 0, "hostID": GROUP, "size": 65536}]))
}

/// A bundle whose root file system belongs to the mapped root.
fn bundle(host: &Host, spec: Spec) -> Bundle<'_> {
    let bundle = host.bundle(spec);
    command::tool("chown", &["-R", &format!("{USER}:{GROUP}"), bundle.rootfs().to_str().unwrap()]);
    bundle
}

fn words(text: &str) -> Vec<&str> {
    text.split_whitespace().collect()
}

#[test]
fn its_root_is_the_mapped_user_of_the_host() {
    privileged(|host| {
        let script = "id -u; id -g; cat /proc/self/uid_map /proc/self/gid_map; touch /new";
        let bundle = bundle(host, mapped(Spec::new()).script(script));
        let run = bundle.run().succeeds();
        assert_eq!(words(&run.text()), ["0", "0", "0", "100000", "65536", "0", "200000", "65536"]);
        let made = fs::metadata(bundle.rootfs().join("new")).unwrap();
        assert_eq!((made.uid(), made.gid()), (USER, GROUP));
    });
}

/// The host's multiplexer opens nothing for who is in another user namespace.
#[test]
fn a_multiplexer_among_the_devices_leaves_the_containers_own() {
    privileged(|host| {
        let device = json!([{"path": "/dev/ptmx", "type": "c", "major": 5, "minor": 2, "fileMode": 438}]);
        let spec = mapped(Spec::new()).set("/linux/devices", device);
        let run = bundle(host, spec.script("exec 3<>/dev/ptmx && readlink /dev/ptmx")).run();
        assert_eq!(run.succeeds().text(), "pts/ptmx");
    });
}

#[test]
fn several_ranges_are_mapped() {
    privileged(|host| {
        let ranges = json!([
            {"containerID": 0, "hostID": USER, "size": 10},
            {"containerID": 10, "hostID": 300_000, "size": 1},
            {"containerID": 1000, "hostID": 400_000, "size": 5}
        ]);
        let groups = json!([
            {"containerID": 0, "hostID": GROUP, "size": 6},
            {"containerID": 1000, "hostID": 500_000, "size": 20}
        ]);
        let spec = mapped(Spec::new())
            .set("/linux/uidMappings", ranges)
            .set("/linux/gidMappings", groups)
            .set("/process/user", json!({"uid": 1004, "gid": 1001, "additionalGids": [5, 1002]}))
            .script(
                "cat /proc/self/uid_map /proc/self/gid_map; id -u; id -g; grep ^Groups /proc/self/status",
            );
        let run = bundle(host, spec).run().succeeds();
        let expected =
            "0 100000 10 10 300000 1 1000 400000 5 0 200000 6 1000 500000 20 1004 1001 Groups: 5 1002";
        assert_eq!(words(&run.text()), words(expected));
    });
}

#[test]
fn an_id_that_is_not_mapped_is_refused_by_name() {
    privileged(|host| {
        let user = |user| mapped(Spec::new()).set("/process/user", user);
        let refused = |spec, words: &[&str]| bundle(host, spec).run().fails_with(words);
        refused(user(json!({"uid": 70000, "gid": 0})), &["/process/user/uid is 70000", "/linux/uidMappings"]);
        refused(user(json!({"uid": 0, "gid": 70000})), &["/process/user/gid is 70000", "/linux/gidMappings"]);
        let groups = json!({"uid": 0, "gid": 0, "additionalGids": [5, 70000]});
        refused(user(groups), &["/process/user/additionalGids/1 is 70000", "/linux/gidMappings"]);
    });
}

#[test]
fn mappings_and_a_user_namespace_need_each_other() {
    privileged(|host| {
        let without = mapped(Spec::new()).without_namespace("user");
        host.bundle(without).run().fails_with(&["/linux/uidMappings", "no \"user\""]);
        let no_groups = mapped(Spec::new()).remove("/linux", "gidMappings");
        host.bundle(no_groups).run().fails_with(&["/linux/gidMappings is empty"]);
    });
}

#[test]
fn overlapping_ranges_are_refused_by_name() {
    privileged(|host| {
        let twice = json!([
            {"containerID": 0, "hostID": USER, "size": 10}, {"containerID": 5, "hostID": 300_000, "size": 10}
        ]);
        let spec = mapped(Spec::new()).set("/linux/uidMappings", twice);
        bundle(host, spec).run().fails_with(&["/linux/uidMappings", "invalid argument"]);
    });
}

#[test]
fn a_command_is_in_it_too() {
    privileged(|host| {
        let container = bundle(host, mapped(Spec::new()).args(["sleep", "1000"])).start();
        let run = container.exec(&["sh", "-c", "id -u; readlink /proc/self/ns/user"]).succeeds();
        assert_eq!(run.lines()[0], "0");
        assert_eq!(run.lines()[1], container.exec(&["readlink", "/proc/1/ns/user"]).succeeds().text());
        let run = container.exec_with(&["--user", "1000:1001"], &["sh", "-c", "id -u; id -g"]).succeeds();
        assert_eq!(run.lines(), ["1000", "1001"]);
        container.exec_with(&["--user", "70000"], &["true"]).fails_with(&["/process/user/uid is 70000"]);
        let groups = container.exec_with(&["--additional-gids", "70000"], &["true"]);
        groups.fails_with(&["/process/user/additionalGids/0 is 70000"]);
        container.remove();
    });
}

#[test]
fn the_terminal_of_a_command_is_its_users() {
    privileged(|host| {
        let container = bundle(host, mapped(Spec::new()).args(["sleep", "1000"])).start();
        for user in ["0", "1000"] {
            let socket = ConsoleSocket::new(&host.directory());
            let options = ["--tty", "--detach", "--console-socket", socket.path(), "--user", user];
            let script = "echo written >$(tty) && stat -c owner:%u: $(tty)";
            container.exec_with(&options, &["sh", "-c", script]).succeeds();
            let text = socket.receive().read_until(":\r\n");
            assert!(text.contains("written") && text.contains(&format!("owner:{user}:")), "{text}");
        }
        container.remove();
    });
}

#[test]
fn its_devices_are_the_hosts_and_what_is_masked_is_masked() {
    privileged(|host| {
        let script = "stat -c '%t:%T' /dev/null /dev/zero /dev/tty; head -c 4 /dev/zero | wc -c
            echo gone >/dev/null; cat /proc/kcore | wc -c; ls /sys/firmware | wc -l
            echo 1 >/proc/sys/kernel/core_pattern 2>/dev/null || echo refused";
        let run = bundle(host, mapped(Spec::new()).script(script)).run().succeeds();
        assert_eq!(run.lines(), ["1:3", "1:5", "5:0", "4", "0", "0", "refused"]);
    });
}

#[test]
fn its_sysctls_are_set() {
    privileged(|host| {
        let sysctls = json!({
            "net.ipv4.ip_forward": "1", "kernel.shmmax": "123456", "user.max_net_namespaces": "7",
            "kernel.domainname": "box.test"
        });
        let script =
            "cd /proc/sys; cat net/ipv4/ip_forward kernel/shmmax user/max_net_namespaces kernel/domainname";
        let run = bundle(host, mapped(Spec::new()).set("/linux/sysctl", sysctls).script(script)).run();
        assert_eq!(run.succeeds().lines(), ["1", "123456", "7", "box.test"]);
    });
}

#[test]
fn a_sysctl_of_users_needs_a_user_namespace() {
    privileged(|host| {
        let spec = Spec::new().set("/linux/sysctl", json!({"user.max_net_namespaces": "7"}));
        host.bundle(spec).run().fails_with(&["user.max_net_namespaces", "\"user\""]);
    });
}

#[test]
fn sources_and_roots_that_its_root_could_not_reach_are_mounted() {
    privileged(|host| {
        let private = host.directory();
        for name in ["one", "two"] {
            fs::create_dir_all(private.join(name).join("dir")).unwrap();
            fs::write(private.join(name).join("dir/file"), name).unwrap();
            // Not root's, which would be reached as the owner.
            command::tool("chown", &["-R", "4321:4321", private.join(name).to_str().unwrap()]);
            fs::set_permissions(private.join(name), fs::Permissions::from_mode(0o700)).unwrap();
        }
        let source = |name: &str| private.join(name).join("dir").to_str().unwrap().to_owned();
        let spec = mapped(Spec::new())
            .bind(&source("one"), "/mnt/one", &["ro"])
            .bind(&source("two"), "/mnt/two", &[])
            .args(["cat", "/mnt/one/file", "/mnt/two/file"]);
        let bundle = bundle(host, spec);
        fs::set_permissions(bundle.directory(), fs::Permissions::from_mode(0o700)).unwrap();
        assert_eq!(bundle.run().succeeds().text(), "onetwo");
        let missing = mapped(Spec::new()).bind("/nowhere", "/mnt", &[]);
        host.bundle(missing).run().fails_with(&["/mounts/7", "/nowhere", "no such file"]);
    });
}

#[test]
fn a_root_that_is_not_mapped_leaves_the_user_of_the_process() {
    privileged(|host| {
        let spec = mapped(Spec::new())
            .set("/linux/uidMappings", json!([{"containerID": 1000, "hostID": USER, "size": 1}]))
            .set("/linux/gidMappings", json!([{"containerID": 1000, "hostID": GROUP, "size": 1}]))
            .without_mount("/dev/pts")
            .user(1000, 1000);
        let container = bundle(host, spec.args(["sleep", "1000"])).start();
        let run = container.exec(&["sh", "-c", "id -u; id -g; cat /proc/self/uid_map"]).succeeds();
        assert_eq!(words(&run.text()), ["1000", "1000", "1000", "100000", "1"]);
        container.remove();
    });
}

#[test]
fn another_containers_user_namespace_can_be_joined_by_path() {
    privileged(|host| {
        let first = bundle(host, mapped(Spec::new()).args(["sleep", "1000"])).start();
        let path = format!("/proc/{}/ns/user", first.pid());
        let joining = Spec::new().join("user", &path);
        let script = "readlink /proc/self/ns/user; cat /proc/self/uid_map; touch /new; mount -t tmpfs x /tmp";
        let script = joining.clone().script(script).capabilities(&["CAP_SYS_ADMIN"]);
        let second = bundle(host, script);
        let run = second.run().succeeds();
        let expected = fs::read_link(&path).unwrap().to_string_lossy().into_owned();
        assert_eq!(words(&run.text()), [expected.as_str(), "0", "100000", "65536"]);
        assert_eq!(fs::metadata(second.rootfs().join("new")).unwrap().uid(), USER);
        let third = bundle(host, joining.args(["sleep", "1000"])).start();
        assert_eq!(third.exec(&["readlink", "/proc/self/ns/user"]).succeeds().text(), expected);
        third.remove();
        first.remove();
    });
}

#[test]
fn a_network_of_the_host_can_be_joined_beside_a_new_user_namespace() {
    privileged(|host| {
        let pid = host.shell(
            "unshare -n sh -c 'echo $$ >pid; exec sleep 1000' & while ! [ -s pid ]; do :; done; cat pid",
        );
        let pid = pid.succeeds().text();
        let path = format!("/proc/{pid}/ns/net");
        let expected = fs::read_link(&path).unwrap().to_string_lossy().into_owned();
        // A new sysfs would show the network, which does not belong to the user namespace.
        let spec =
            mapped(Spec::new()).join("network", &path).without_mount("/sys/fs/cgroup").without_mount("/sys");
        let run = bundle(host, spec.args(["readlink", "/proc/self/ns/net"])).run().succeeds();
        assert_eq!(run.text(), expected);
        command::tool("kill", &[pid]);
    });
}

#[test]
fn all_namespaces_of_its_can_be_joined_at_once_but_the_mounts() {
    privileged(|host| {
        let first = bundle(host, mapped(Spec::new()).namespace("time").args(["sleep", "1000"])).start();
        let kinds = [
            ("pid", "pid"),
            ("network", "net"),
            ("ipc", "ipc"),
            ("uts", "uts"),
            ("cgroup", "cgroup"),
            ("time", "time"),
            ("user", "user"),
        ];
        let spec = kinds.iter().fold(Spec::new().args(["sleep", "1000"]), |spec, (kind, file)| {
            spec.join(kind, &format!("/proc/{}/ns/{file}", first.pid()))
        });
        let second = bundle(host, spec).start();
        for (_, file) in kinds {
            let of = |container: &coracle_tests::Container<'_>| {
                container.exec(&["readlink", &format!("/proc/self/ns/{file}")]).succeeds().text()
            };
            assert_eq!(of(&first), of(&second), "{file}");
        }
        let both = second.exec(&["ps"]).succeeds().text();
        assert_eq!(both.matches("sleep 1000").count(), 2, "{both}");
        host.call(&["delete", "--force", second.id()]).succeeds();
        first.remove();
    });
}

#[test]
fn its_clocks_are_as_asked() {
    privileged(|host| {
        let offsets = json!({"boottime": {"secs": 1337, "nanosecs": 3_141_519}});
        let spec = mapped(Spec::new()).namespace("time").set("/linux/timeOffsets", offsets);
        let run = bundle(host, spec.args(["cat", "/proc/self/timens_offsets"])).run().succeeds();
        assert_eq!(words(&run.text()), ["monotonic", "0", "0", "boottime", "1337", "3141519"]);
    });
}
