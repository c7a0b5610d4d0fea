//! Rights that a container must not have.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};

use coracle_fixtures::spec::docker_like_seccomp;
use coracle_tests::{Spec, command, privileged};
use serde_json::json;

#[test]
fn c14_devices_are_denied_unless_a_rule_allows_them() {
    privileged(|host| {
        let script = "mknod /tmp/disk b 8 0 2>/dev/null && head -c 1 /tmp/disk >/dev/null && echo read";
        for spec in [Spec::new(), Spec::new().remove("/linux/resources", "devices")] {
            let run = host.bundle(spec.capabilities(&["CAP_MKNOD"]).script(script)).run();
            assert_ne!(run.text(), "read");
        }
    });
}

#[test]
fn c10_nothing_is_inheritable_unless_asked_for() {
    privileged(|host| {
        let inheritable = "grep CapInh /proc/self/status";
        let none = "CapInh:\t0000000000000000";
        assert_eq!(host.bundle(Spec::new().script(inheritable)).run().succeeds().text(), none);
        let container = host.sleeper();
        for options in [&[][..], &["--cap", "CAP_NET_RAW"], &["--user", "1000"]] {
            let run = container.exec_with(options, &["sh", "-c", inheritable]);
            // runc 1.1 and crun know --cap; what matters is what the process gets.
            assert!(
                run.code != 0 && options.contains(&"--cap") || run.text() == none,
                "{options:?}: {run:?}"
            );
        }
        container.remove();
    });
}

/// A keyring that is joined by its name is whoever's made one of that name first: keyrings are in no namespace.
#[test]
fn no_container_gets_keys_that_another_laid_ready_for_it() {
    privileged(|host| {
        let victim = host.bundle(Spec::new().args(["/keys", "look"])).named("victim-of-keys");
        command::compile("keys.c", &victim.rootfs().join("keys"));
        let plant = |name: &str| {
            let spec = Spec::new().args(["/keys", "plant", name, "sh", "-c", "echo planted; sleep 1000"]);
            let bundle = host.bundle(spec);
            command::compile("keys.c", &bundle.rootfs().join("keys"));
            let container = bundle.start();
            command::eventually("the key is there", || container.output().contains("planted"));
            container
        };
        // The names that runc and crun would give.
        let hostile = [plant("_ses.victim-of-keys"), plant("victim-of-keys")];
        assert_eq!(victim.run().code, 1, "it has the key");
        hostile.iter().for_each(coracle_tests::Container::remove);
    });
}

#[test]
fn c11_no_release_agent_can_be_set() {
    privileged(|host| {
        let script = "unshare -Urm sh -c 'mount -t cgroup -o rdma none /tmp && echo mounted' 2>/dev/null
            for file in /sys/fs/cgroup/release_agent /sys/fs/cgroup/*/release_agent; do
                [ ! -e $file ] || { echo /evil >$file && echo written; } 2>/dev/null
            done; echo end";
        let run = host.bundle(Spec::new().set("/linux/seccomp", docker_like_seccomp()).script(script)).run();
        assert_eq!(run.text(), "end", "{run:?}");
    });
}

#[test]
fn c12_without_a_cgroup_namespace_cgroups_are_read_only() {
    privileged(|host| {
        let script =
            "for d in /sys/fs/cgroup /sys/fs/cgroup/*/; do mkdir $d/escaped && echo made $d; done 2>/dev/null
            echo end";
        let spec = Spec::new().without_namespace("cgroup").script(script);
        assert_eq!(host.bundle(spec).run().text(), "end");
        let whole =
            Spec::new().without_namespace("cgroup").without_mount("/sys/fs/cgroup").without_mount("/sys");
        let spec = whole.bind("/sys", "/sys", &["rro"]).script(script);
        let run = host.bundle(spec).run();
        assert!(run.text() == "end" || run.code != 0, "{run:?}");
    });
}

#[test]
fn c27_groups_are_exactly_those_asked_for() {
    privileged(|host| {
        // What its own group may not read, a process of that group must not get as one of the others.
        let bundle = host.bundle(Spec::new().user(1000, 2000).script("id -G; cat /secret"));
        let bundle = bundle.with_file("secret", "secret");
        let secret = bundle.rootfs().join("secret");
        chown(&secret, Some(0), Some(2000)).unwrap();
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o604)).unwrap();
        let run = bundle.run();
        assert_eq!(run.text(), "2000", "{run:?}");
        let container = host.sleeper();
        let run = container.exec_with(&["--user", "1000:2000"], &["id", "-G"]).succeeds();
        assert_eq!(run.text(), "2000");
        container.remove();
    });
}

#[test]
fn c32_a_start_hook_has_no_more_rights_than_the_users_program() {
    privileged(|host| {
        let script = "grep -E '^(Cap(Eff|Bnd)|NoNewPrivs|Uid|Seccomp):' /proc/self/status > /tmp/rights";
        let spec = Spec::new()
            .mount("/tmp", "tmpfs", "tmpfs", &["mode=1777"])
            .user(1000, 1000)
            .set("/process/noNewPrivileges", true)
            .capabilities(&["CAP_KILL"])
            .seccomp("SCMP_ACT_ALLOW", &json!([]))
            .hook("startContainer", &["/bin/sh", "-c", script])
            .script(
                "grep -E '^(Cap(Eff|Bnd)|NoNewPrivs|Uid|Seccomp):' /proc/self/status | cmp - /tmp/rights",
            );
        host.bundle(spec).run().succeeds();
    });
}

#[test]
fn c30_what_a_process_says_without_end_is_not_kept() {
    privileged(|host| {
        let container = host.sleeper();
        let told = host.directory().join("peak");
        // The runtime's own peak, while its process talks to a reader that does not listen. Before Linux 6.14 a
        // program that is executed by descriptor has the descriptor's number for a name, so it is found by its arguments.
        for options in ["", "--tty"] {
            let run = host.shell(&format!(
                "mkfifo pipe; timeout 60 $RUNTIME exec {options} {} yes >pipe 2>/dev/null </dev/null &
                 exec 3<pipe; head -c 1000000 <&3 >/dev/null; sleep 1
                 grep VmHWM /proc/$(pgrep -n -f \"^$RUNTIME exec\")/status >{}; kill $!; exec 3<&-; wait",
                container.id(),
                told.display()
            ));
            let peak = fs::read_to_string(&told).unwrap();
            let kilobytes: u64 =
                peak.split_whitespace().nth(1).unwrap_or_else(|| panic!("{run:?}")).parse().unwrap();
            assert!(kilobytes < 32 << 10, "{options}: {peak}");
        }
        container.remove();
    });
}
