//! What a session sees.

use std::fs;

use coracle_tests::{Spec, cgroup, command, privileged};

use crate::{Session, can_debug, debug, from_scratch, in_user_namespace};

#[test]
fn it_sees_the_targets_processes_files_and_names() {
    privileged(|host| {
        if !can_debug(host) {
            return;
        }
        let bundle =
            host.bundle(Spec::new().set("/hostname", "target").script("echo one > /tmp/file; sleep 1000"));
        let target = bundle.start();
        command::eventually("it has written", || target.exec(&["test", "-s", "/tmp/file"]).code == 0);
        let run =
            debug(host, &[], target.id(), &["sh", "-c", "hostname; cat /tmp/file; ps -o args"]).succeeds();
        assert!(run.text().starts_with("target\none\n") && run.text().contains("sleep 1000"), "{run:?}");
        target.remove();
    });
}

#[test]
fn it_is_in_the_targets_namespaces_but_for_its_own_mounts_and_cgroups() {
    privileged(|host| {
        if !can_debug(host) {
            return;
        }
        let target = host.sleeper();
        let script = "for n in pid net ipc uts user mnt cgroup; do readlink /proc/self/ns/$n; done";
        let inside = debug(host, &[], target.id(), &["sh", "-c", script]).succeeds().lines();
        let first = target.exec(&["sh", "-c", script]).succeeds().lines();
        assert_eq!(inside[..5], first[..5]);
        assert_ne!(inside[5], first[5]);
        assert_ne!(inside[6], first[6]);
        let chosen =
            debug(host, &["--join", "pid,cgroup"], target.id(), &["sh", "-c", script]).succeeds().lines();
        assert_eq!((&chosen[0], &chosen[6]), (&first[0], &first[6]));
        assert!(chosen[1..4].iter().zip(&first[1..4]).all(|(own, its)| own != its), "{chosen:?}");
        target.remove();
    });
}

#[test]
fn a_target_in_a_user_namespace_is_looked_into_from_inside_of_it() {
    privileged(|host| {
        if !can_debug(host) {
            return;
        }
        let target = host.bundle(in_user_namespace()).start();
        let script = "readlink /proc/self/ns/user; id -u; ps -o args | grep 'sleep 100[0]'";
        let inside = debug(host, &[], target.id(), &["sh", "-c", script]).succeeds().lines();
        assert_eq!(inside, target.exec(&["sh", "-c", script]).succeeds().lines());
        assert_eq!(inside[1], "0");
        target.remove();
    });
}

#[test]
fn nothing_is_mounted_or_made_in_the_target() {
    privileged(|host| {
        if !can_debug(host) {
            return;
        }
        let target = host.sleeper();
        let look = ["sh", "-c", "cat /proc/self/mountinfo; find / -xdev; ls -R /dev"];
        let before = target.exec(&look).succeeds().text();
        let mut session = Session::start(
            host,
            &["--privileged"],
            target.id(),
            "mount -t tmpfs x /tmp && echo done && sleep 1000",
        );
        command::eventually("it has mounted", || session.text().contains("done"));
        let during = target.exec(&look).succeeds().text();
        assert_eq!(before, during);
        session.kill_client();
        target.remove();
    });
}

#[test]
fn its_environment_and_directory_are_the_targets() {
    privileged(|host| {
        if !can_debug(host) {
            return;
        }
        let spec = Spec::new().env("TARGETS=own").set("/process/cwd", "/tmp").args(["sleep", "1000"]);
        let target = host.bundle(spec).start();
        let script = "echo $TARGETS $MORE; pwd";
        let run = debug(host, &["-e", "MORE=2"], target.id(), &["sh", "-c", script]).succeeds();
        assert_eq!(run.lines(), ["own 2", "/tmp"]);
        let run = debug(host, &["-w", "/etc"], target.id(), &["pwd"]).succeeds();
        assert_eq!(run.text(), "/etc");
        let words = ["--workdir \"/none\" is no directory of the target"];
        debug(host, &["-w", "/none"], target.id(), &["pwd"]).fails_with(&words);
        target.remove();
    });
}

#[test]
fn a_target_of_one_static_program_is_looked_into_with_that_program() {
    privileged(|host| {
        if !can_debug(host) {
            return;
        }
        let target = from_scratch(host, Spec::new()).start();
        let run = debug(host, &[], target.id(), &["/busybox", "ps"]).succeeds();
        assert!(run.text().contains("/busybox sleep 1000"), "{run:?}");
        let missing = debug(host, &[], target.id(), &["ps"]).exits(127);
        missing.fails_with(&["executable file not found in $PATH; bring tools with --image"]);
        target.remove();
    });
}

#[test]
fn a_created_target_is_looked_into_before_its_program_runs() {
    privileged(|host| {
        if !can_debug(host) {
            return;
        }
        let target = host.bundle(Spec::new().args(["sleep", "1000"])).create();
        let run = debug(host, &[], target.id(), &["sh", "-c", "ps -o pid,args; cat /etc/passwd | head -1"])
            .succeeds();
        assert!(run.text().contains("    1 ") && run.text().contains("root:x:0:0"), "{run:?}");
        assert_eq!(target.status(), "created");
        target.call("start").succeeds();
        target.remove();
    });
}

#[test]
fn a_paused_target_stays_so_while_it_is_looked_into() {
    privileged(|host| {
        if !can_debug(host) {
            return;
        }
        let target = host.sleeper();
        target.call("pause").succeeds();
        let run = debug(host, &[], target.id(), &["sh", "-c", "ps -o args; cat /proc/1/status | head -1"])
            .succeeds();
        assert!(run.text().contains("Name:\tsleep"), "{run:?}");
        assert_eq!(target.status(), "paused");
        target.call("resume").succeeds();
        target.remove();
    });
}

#[test]
fn of_a_target_that_has_ended_files_and_volumes_are_left() {
    privileged(|host| {
        if !can_debug(host) {
            return;
        }
        let volume = host.directory();
        fs::write(volume.join("data"), "kept").unwrap();
        let spec = Spec::new()
            .bind(volume.to_str().unwrap(), "/volume", &["rbind"])
            .script("echo last words > /var/log; exit 3");
        let target = host.bundle(spec).start();
        target.becomes("stopped");
        let script = "cat /var/log /volume/data; echo; ps | grep -c sh; cat /proc/self/cgroup | head -1";
        let run = debug(host, &[], target.id(), &["sh", "-c", script]).succeeds();
        assert!(run.text().starts_with("last words\nkept\n"), "{run:?}");
        assert_eq!(target.status(), "stopped");
        target.call("delete").succeeds();
        assert!(cgroup::hierarchies_of(target.id()).is_empty());
    });
}

#[test]
fn who_is_not_there_is_not_found() {
    privileged(|host| {
        if !can_debug(host) {
            return;
        }
        debug(host, &[], "nobody", &["true"]).exits(1).fails_with(&["container \"nobody\" does not exist"]);
        host.call(&["debug", "--pid", "999999", "--", "true"])
            .exits(1)
            .fails_with(&["--pid 999999: there is no such process"]);
    });
}
