//! Containers of a user without privilege, and of the root of a user namespace.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use coracle_tests::command::{eventually, tool};
use coracle_tests::terminal::ConsoleSocket;
use coracle_tests::user::{RANGE, USER, as_user, mapped, single, without_groups};
use coracle_tests::{Container, Host, Spec, image, namespaced, unprivileged};
use serde_json::{Value, json};

/// A container in which the user is root, and the range that it was allotted the others.
fn ranges() -> Spec {
    let maps = json!([{"containerID": 0, "hostID": USER, "size": 1}, {"containerID": 1, "hostID": RANGE.0, "size": RANGE.1}]);
    mapped(maps.clone(), maps)
}

fn words(text: &str) -> Vec<&str> {
    text.split_whitespace().collect()
}

fn sleeper(host: &Host, spec: Spec) -> Container<'_> {
    host.bundle(spec.args(["sleep", "1000"])).start()
}

#[test]
fn the_user_is_root_inside_and_itself_outside() {
    unprivileged(|host| {
        let script = "id -u; id -g; cat /proc/self/uid_map /proc/self/setgroups; touch /new";
        let bundle = host.bundle(single().script(script));
        assert_eq!(words(&bundle.run().succeeds().text()), ["0", "0", "0", "4242", "1", "deny"]);
        let made = fs::metadata(bundle.rootfs().join("new")).unwrap();
        assert_eq!((made.uid(), made.gid()), (USER, USER));
    });
}

#[test]
fn a_container_lives_as_roots_do() {
    unprivileged(|host| {
        let container = host.bundle(single().args(["sleep", "1000"])).create();
        assert_eq!(container.status(), "created");
        container.call("start").succeeds();
        assert_eq!(container.status(), "running");
        let list = host.call(&["list"]).succeeds().text();
        assert!(list.contains(container.id()), "{list}");
        container.call_with("ps", &["-ef"]).succeeds();
        container.remove();
        container.call("state").fails_with(&["does not exist"]);
    });
}

/// The child that waits for `start` can't be dumped, so its own user may not see it there.
#[test]
fn where_procfs_hides_processes_one_that_waits_is_not_taken_for_gone() {
    unprivileged(|host| {
        let hide = |how: &str| tool("busybox", &["mount", "-o", &format!("remount,hidepid={how}"), "/proc"]);
        hide("2");
        let create = || host.bundle(single().args(["sleep", "1000"])).create();
        let container = create();
        assert_eq!(container.status(), "created");
        container.call("start").succeeds();
        assert_eq!(container.status(), "running");
        container.remove();
        let container = create();
        let process = format!("/proc/{}", container.pid());
        let delete = || container.verb_with("delete", &["--force"]);
        // Before, nothing tells it from another that has its number.
        if image::kernel() < (6, 9) {
            delete().fails_with(&["/proc does not show process", "it is mounted with hidepid"]);
            hide("0");
        }
        delete().succeeds();
        eventually("it is gone", || !Path::new(&process).exists());
        hide("0");
    });
}

#[test]
fn commands_are_executed_in_it() {
    unprivileged(|host| {
        let container = sleeper(host, single());
        let run = container
            .exec(&["sh", "-c", "id -u; readlink /proc/self/ns/user; readlink /proc/1/ns/user; exit 7"])
            .exits(7);
        let lines = run.lines();
        assert_eq!((lines[0].as_str(), &lines[1]), ("0", &lines[2]));
        container
            .exec_with(&["--user", "1000"], &["true"])
            .fails_with(&["/process/user/uid is 1000", "uidMappings"]);
        container.remove();
    });
}

#[test]
fn before_its_start_root_alone_executes_in_it() {
    unprivileged(|host| {
        let container = host.bundle(single().args(["sleep", "1000"])).create();
        let exec = host.call(&["exec", container.id(), "true"]);
        exec.fails_with(&["joining the container's namespaces", "waits for its `start`"]);
        container.call("start").succeeds();
        host.call(&["exec", container.id(), "true"]).succeeds();
        container.remove();
    });
}

#[test]
fn terminals_are_the_users() {
    unprivileged(|host| {
        let container = sleeper(host, single());
        let directory = host.directory();
        let socket = ConsoleSocket::new(&directory);
        host.give(&directory);
        let options = ["--tty", "--detach", "--console-socket", socket.path()];
        container.exec_with(&options, &["sh", "-c", "stat -c owner:%u: $(tty)"]).succeeds();
        let text = socket.receive().read_until(":\r\n");
        assert!(text.contains("owner:0:"), "{text}");
        container.remove();
    });
}

#[test]
fn ranges_are_mapped_by_the_helpers() {
    unprivileged(|host| {
        if !host.needs_program("newuidmap") {
            return;
        }
        let script = "cat /proc/self/uid_map; touch /root-s; chown 1000:1000 /root-s; id -u; grep ^Groups /proc/self/status";
        let bundle = host.bundle(ranges().script(script).capabilities(&["CAP_CHOWN"]));
        let run = bundle.run().succeeds();
        assert_eq!(words(&run.text()), ["0", "4242", "1", "1", "300000", "65536", "0", "Groups:"]);
        let made = fs::metadata(bundle.rootfs().join("root-s")).unwrap();
        assert_eq!((made.uid(), made.gid()), (RANGE.0 + 999, RANGE.0 + 999));
    });
}

#[test]
fn a_container_of_another_user_of_the_range_can_be_entered_and_killed() {
    unprivileged(|host| {
        if !host.needs_program("newuidmap") {
            return;
        }
        let user = json!({"uid": 1000, "gid": 1001, "additionalGids": [5]});
        let container = sleeper(host, ranges().set("/process/user", user));
        let run = container.exec(&["sh", "-c", "id -u; id -G"]).succeeds();
        assert_eq!(words(&run.text()), ["1000", "1001", "5"]);
        assert_eq!(container.exec_with(&["--user", "0:0"], &["id", "-u"]).succeeds().text(), "0");
        container.remove();
    });
}

#[test]
fn ids_that_were_not_allotted_are_refused_with_their_file() {
    unprivileged(|host| {
        if !host.needs_program("newuidmap") {
            return;
        }
        let all = json!([{"containerID": 0, "hostID": 0, "size": 10}]);
        let own = json!([{"containerID": 0, "hostID": USER, "size": 1}]);
        let users = host.bundle(mapped(all.clone(), own.clone())).run();
        users.fails_with(&["/linux/uidMappings", "newuidmap refused", "/etc/subuid must allot"]);
        let groups = host.bundle(mapped(own, all)).run();
        groups.fails_with(&["/linux/gidMappings", "newgidmap refused", "/etc/subgid must allot"]);
    });
}

#[test]
fn without_a_user_namespace_there_is_no_container() {
    unprivileged(|host| {
        host.bundle(Spec::new())
            .run()
            .fails_with(&["/linux/namespaces has no \"user\"", "coracle spec --rootless"]);
    });
}

#[test]
fn its_devices_are_the_hosts() {
    unprivileged(|host| {
        let script = "stat -c %t:%T /dev/null /dev/zero; echo gone >/dev/null; mknod /x c 1 3 2>/dev/null || echo refused";
        let run = host.bundle(single().script(script).capabilities(&["CAP_MKNOD"])).run().succeeds();
        assert_eq!(run.lines(), ["1:3", "1:5", "refused"]);
    });
}

#[test]
fn in_the_hosts_network_it_has_the_hosts_sysfs() {
    unprivileged(|host| {
        let script = "grep ' /sys ' /proc/self/mounts; ls /sys/class/net | grep -x lo; touch /sys/x 2>/dev/null || echo refused";
        let run = host.bundle(single().without_namespace("network").script(script)).run().succeeds();
        let lines = run.lines();
        assert!(lines[0].starts_with("sysfs /sys sysfs ro,nosuid,nodev,noexec"), "{lines:?}");
        assert_eq!(lines[1..], ["lo", "refused"]);
    });
}

/// CVE-2023-25809: read-only is an attribute of each mount, and below the host's lie the user's own cgroups.
#[test]
fn nothing_below_the_hosts_sysfs_can_be_written_to() {
    unprivileged(|host| {
        let writable = "awk '$5 ~ \"^/sys\" && $6 !~ /^ro/' /proc/self/mountinfo; echo end";
        let spec = single().without_namespace("network").without_mount("/sys/fs/cgroup").script(writable);
        assert_eq!(host.bundle(spec).run().succeeds().text(), "end");
        let bundle = host.bundle(Spec::new());
        host.call_in(bundle.directory(), &["spec", "--rootless", "--file", "written.json"]).succeeds();
        let written = fs::read_to_string(bundle.directory().join("written.json")).unwrap();
        let mut spec: Value = serde_json::from_str(&written).unwrap();
        spec["process"]["args"] = json!(["sh", "-c", writable]);
        spec["process"]["terminal"] = json!(false);
        fs::write(bundle.directory().join("config.json"), spec.to_string()).unwrap();
        assert_eq!(bundle.run().succeeds().text(), "end");
    });
}

#[test]
fn groups_that_nobody_may_set_are_refused_by_name() {
    unprivileged(|host| {
        let groups = json!([{"containerID": 0, "hostID": USER, "size": 1}]);
        let spec = mapped(groups.clone(), groups).set("/process/user/additionalGids", json!([0]));
        host.bundle(spec).run().fails_with(&["/process/user/additionalGids", "setgroups", "/etc/subgid"]);
    });
}

#[test]
fn a_group_of_terminals_that_is_not_mapped_is_refused_by_name() {
    unprivileged(|host| {
        let spec = single().without_mount("/dev/pts").mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &["newinstance", "gid=5"],
        );
        host.bundle(spec).run().fails_with(&["/mounts/6", "invalid argument", "are uid and gid mapped"]);
    });
}

#[test]
fn what_needs_a_cgroup_says_so() {
    unprivileged(|host| {
        let container = sleeper(host, single());
        container.call("pause").fails_with(&["no cgroup that can be frozen"]);
        // Its first process is all that is known of it.
        host.call(&["kill", "--all", container.id(), "KILL"]).succeeds();
        eventually("it has ended", || container.status() == "stopped");
        host.call(&["kill", "--all", container.id(), "KILL"]).succeeds();
        container.call("delete").succeeds();
    });
}

#[test]
fn nobody_else_sees_or_touches_it() {
    unprivileged(|host| {
        let container = sleeper(host, single());
        let other = format!("{} /run/test/user/bin/coracle --root /run/user/{USER}/coracle", as_user(4343));
        let id = container.id();
        for verb in [
            "list",
            &format!("state {id}"),
            &format!("kill {id} KILL"),
            &format!("delete --force {id}"),
            &format!("exec {id} true"),
            &format!("start {id}"),
        ] {
            host.shell(&format!("{other} {verb}")).fails_with(&["permission denied"]);
        }
        assert_eq!(container.status(), "running");
        container.remove();
    });
}

#[test]
fn the_states_are_in_the_users_session() {
    unprivileged(|host| {
        let container = sleeper(host, single());
        let state = format!("/run/user/{USER}/coracle/{}", container.id());
        assert_eq!(fs::metadata(&state).unwrap().uid(), USER);
        container.remove();
        assert!(!Path::new(&state).exists());
        let directory = host.bundle(single());
        let without = format!(
            "{} env -i PATH=$PATH /run/test/user/bin/coracle run --bundle {} x",
            as_user(USER),
            directory.directory().display()
        );
        host.shell(&without).fails_with(&["/run/coracle", "permission denied", "XDG_RUNTIME_DIR"]);
    });
}

#[test]
fn the_configuration_that_spec_writes_runs() {
    unprivileged(|host| {
        let bundle = host.bundle(single());
        fs::remove_file(bundle.directory().join("config.json")).unwrap();
        host.call_in(bundle.directory(), &["spec", "--rootless"]).succeeds();
        let path = bundle.directory().join("config.json");
        let mut spec: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        spec["process"]["terminal"] = false.into();
        spec["process"]["args"] = json!(["id", "-u"]);
        fs::write(&path, spec.to_string()).unwrap();
        assert_eq!(bundle.run().succeeds().text(), "0");
    });
}

#[test]
fn a_score_for_memory_can_be_raised_and_not_lowered() {
    unprivileged(|host| {
        let score = |score: i32| {
            single().set("/process/oomScoreAdj", score).args(["cat", "/proc/self/oom_score_adj"])
        };
        assert_eq!(host.bundle(score(500)).run().succeeds().text(), "500");
        host.bundle(score(-500)).run().fails_with(&[
            "/process/oomScoreAdj",
            "permission denied",
            "only be raised",
        ]);
    });
}

#[test]
fn containers_of_images_are_for_root() {
    unprivileged(|host| {
        let run = host.call(&["run", "--image", "alpine", "x"]);
        run.fails_with(&["--image", "overlayfs", "coracle image unpack --rootless"]);
    });
}

#[test]
fn the_root_of_a_user_namespace_runs_containers() {
    namespaced(|host| {
        let spec = without_groups(Spec::new())
            .script("id -u; cat /proc/self/uid_map; stat -c %t:%T /dev/null; touch /new");
        let bundle = host.bundle(spec);
        assert_eq!(words(&bundle.run().succeeds().text()), ["0", "0", "4242", "1", "1:3"]);
        assert_eq!(fs::metadata(bundle.rootfs().join("new")).unwrap().uid(), USER);
    });
}

#[test]
fn what_root_has_on_record_keeps_no_user_from_running_containers() {
    namespaced(|host| {
        if !host.needs_coracle("records of isolators") {
            return;
        }
        host.shell("mkdir -p /var/lib/coracle/disk/du && chmod 700 /var/lib/coracle").succeeds();
        host.bundle(without_groups(Spec::new()).args(["true"])).run().succeeds();
        fs::remove_dir_all("/var/lib/coracle/disk").unwrap();
    });
}

#[test]
fn containers_of_the_root_of_a_user_namespace_live_as_roots_do() {
    namespaced(|host| {
        let container = sleeper(host, without_groups(Spec::new()));
        assert_eq!(container.status(), "running");
        assert!(Path::new(&format!("/run/user/{USER}/coracle/{}", container.id())).exists());
        assert_eq!(container.exec(&["id", "-u"]).succeeds().text(), "0");
        container.remove();
    });
}

#[test]
fn user_namespaces_nest() {
    namespaced(|host| {
        let own = json!([{"containerID": 0, "hostID": 0, "size": 1}]);
        let spec = mapped(own.clone(), own);
        let container = sleeper(host, spec);
        let run = container.exec(&["cat", "/proc/self/uid_map"]).succeeds();
        assert_eq!(words(&run.text()), ["0", "0", "1"]);
        container.remove();
    });
}

#[test]
fn limits_of_the_root_of_a_user_namespace_are_refused_without_a_cgroup() {
    namespaced(|host| {
        let run = host.bundle(without_groups(Spec::new()).pids(20)).run();
        run.fails_with(&["/linux/resources/pids/limit", "permission denied", "rootless needs no limits"]);
    });
}

#[test]
fn a_root_of_a_user_namespace_in_the_hosts_network_has_the_hosts_sysfs() {
    namespaced(|host| {
        let spec = without_groups(Spec::new()).without_namespace("network").args([
            "grep",
            " /sys ",
            "/proc/self/mounts",
        ]);
        let text = host.bundle(spec).run().succeeds().text();
        assert!(text.starts_with("sysfs /sys sysfs ro,"), "{text}");
    });
}
