//! Tools from an image.

use std::fs;

use coracle_fixtures::small;
use coracle_tests::image::{Store, stacks_layers};
use coracle_tests::{Host, Outcome, Spec, privileged};

use crate::{Session, can_debug, from_scratch, in_user_namespace};

/// A store with the small image, whose tools sessions use.
struct Tools<'h> {
    host: &'h Host,
    store: Store<'h>,
}

impl<'h> Tools<'h> {
    fn new(host: &'h Host) -> Option<Self> {
        if !can_debug(host) || !stacks_layers(host) {
            return None;
        }
        let tools = Self { host, store: Store::new(host) };
        tools.store.import(&small::image());
        tools.store.call(&["unpack", "coracle/small:latest"]).succeeds();
        Some(tools)
    }

    fn options<'a>(&'a self, more: &[&'a str]) -> Vec<&'a str> {
        [&["--store", self.store.directory().to_str().unwrap(), "--image", "coracle/small:latest"], more]
            .concat()
    }

    fn debug(&self, target: &str, more: &[&str], script: &str) -> Outcome {
        crate::debug(self.host, &self.options(more), target, &["sh", "-c", script])
    }
}

#[test]
fn the_tools_are_the_root_and_the_targets_files_are_below() {
    privileged(|host| {
        let Some(tools) = Tools::new(host) else { return };
        let volume = host.directory();
        fs::write(volume.join("data"), "in a volume").unwrap();
        let spec = Spec::new().bind(volume.to_str().unwrap(), "/volume", &["rbind"]);
        let target = from_scratch(host, spec).start();
        let script = "pwd; echo $BOAT; ls /target; cat /target/volume/data; echo; ps -o pid,args";
        let run = tools.debug(target.id(), &[], script).succeeds();
        assert!(run.text().starts_with("/srv\ncoracle\nbusybox\ndev\nproc\n"), "{run:?}");
        assert!(
            run.text().contains("in a volume") && run.text().contains("    1 /busybox sleep 1000"),
            "{run:?}"
        );
        let through = tools.debug(target.id(), &["--cap-add", "SYS_PTRACE"], "ls /proc/1/root").succeeds();
        assert!(through.text().contains("busybox"), "{through:?}");
        // What is written there is written in the target.
        tools.debug(target.id(), &[], "echo new > /target/made").succeeds();
        assert_eq!(fs::read_to_string(target.bundle().rootfs().join("made")).unwrap(), "new\n");
        let alone = tools.debug(target.id(), &["--fs", "image-only"], "ls /; ps").succeeds();
        assert!(!alone.text().contains("target\n") && alone.text().contains("/busybox sleep"), "{alone:?}");
        target.remove();
    });
}

#[test]
fn the_tools_are_read_only_unless_asked_for_otherwise() {
    privileged(|host| {
        let Some(tools) = Tools::new(host) else { return };
        let target = host.sleeper();
        let run = tools.debug(target.id(), &[], "echo x > /tmp/x && echo y > /srv/y");
        run.exits(1).fails_with(&["read-only file system"]);
        tools.debug(target.id(), &["--writable"], "echo y > /srv/y && cat /srv/y").succeeds();
        tools.debug(target.id(), &["--writable"], "ls /srv/y").exits(1);
        target.remove();
    });
}

#[test]
fn names_of_hosts_mean_the_same_as_in_the_target() {
    privileged(|host| {
        let Some(tools) = Tools::new(host) else { return };
        let bundle = host.bundle(Spec::new().args(["sleep", "1000"]));
        let bundle = bundle.with_file("etc/hosts", "192.0.2.7 only-here\n");
        // A link to a file of the host would be one to a file of the target.
        std::os::unix::fs::symlink("/etc/passwd", bundle.rootfs().join("etc/resolv.conf")).unwrap();
        let target = bundle.start();
        let run = tools.debug(target.id(), &[], "cat /etc/hosts; head -n 1 /etc/resolv.conf").succeeds();
        assert_eq!(run.lines()[0], "192.0.2.7 only-here");
        let own = target.exec(&["head", "-n", "1", "/etc/passwd"]).succeeds().text();
        assert_eq!(run.lines()[1], own);
        target.remove();
    });
}

#[test]
fn an_image_runs_its_own_program_unless_another_is_named() {
    privileged(|host| {
        let Some(tools) = Tools::new(host) else { return };
        let target = host.sleeper();
        let args = [&["debug"][..], &tools.options(&[]), &[target.id()]].concat();
        assert_eq!(host.call(&args).succeeds().text(), "hello from three layers");
        let words = ["image \"none\"", "debugging", "/debug-1"];
        let store = tools.store.directory().to_str().unwrap();
        let none = ["--store", store, "--image", "none", "--pull", "never"];
        crate::debug(host, &none, target.id(), &["sh"]).fails_with(&words);
        target.remove();
    });
}

#[test]
fn a_target_in_a_user_namespace_is_looked_into_with_tools() {
    privileged(|host| {
        let Some(tools) = Tools::new(host) else { return };
        let target = host.bundle(in_user_namespace()).start();
        let run = tools
            .debug(target.id(), &[], "id -u; ls /target/bin/busybox; ps -o args; touch /tmp/x")
            .succeeds();
        assert!(run.text().starts_with("0\n/target/bin/busybox\n"), "{run:?}");
        assert!(run.text().contains("sleep 1000"), "{run:?}");
        target.remove();
    });
}

#[test]
fn of_a_target_that_has_ended_files_and_volumes_are_below() {
    privileged(|host| {
        let Some(tools) = Tools::new(host) else { return };
        let volume = host.directory();
        fs::write(volume.join("data"), "kept").unwrap();
        let spec =
            Spec::new().bind(volume.to_str().unwrap(), "/volume", &["rbind"]).script("echo last > /log");
        let target = host.bundle(spec).start();
        target.becomes("stopped");
        let run = tools.debug(target.id(), &[], "cat /target/log /target/volume/data").succeeds();
        assert_eq!(run.text(), "last\nkept");
        target.call("delete").succeeds();
    });
}

#[test]
fn a_session_is_named_after_a_target_that_has_ended_as_far_as_a_host_name_goes() {
    privileged(|host| {
        let Some(tools) = Tools::new(host) else { return };
        let nameless = Spec::new().remove("", "hostname").args(["true"]);
        let target = host.bundle(nameless).named(&"long".repeat(25)).start();
        target.becomes("stopped");
        let run = tools.debug(target.id(), &[], "hostname").succeeds();
        assert_eq!(run.text(), &"long".repeat(16)[..63]);
        target.call("delete").succeeds();
    });
}

#[test]
fn a_client_that_is_killed_leaves_no_snapshot() {
    privileged(|host| {
        let Some(tools) = Tools::new(host) else { return };
        let target = host.sleeper();
        let mut session = Session::start(host, &tools.options(&["--writable"]), target.id(), "sleep 1000");
        session.kill_client();
        let snapshots = tools.store.directory().join("snapshots");
        coracle_tests::command::eventually("its files are gone", || {
            fs::read_dir(&snapshots).unwrap().count() == 0 && crate::sessions(host).is_empty()
        });
        target.remove();
    });
}
