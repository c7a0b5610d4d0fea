//! `checkpoint` and `restore`, through CRIU.

#![expect(clippy::unwrap_used, reason = "a helper of the tests fails as a test does")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use coracle_tests::{Bundle, Host, Spec, command, privileged};
use serde_json::json;

/// Whether the machine's CRIU works with its kernel; what can't be run is counted.
fn works(host: &Host) -> bool {
    if !host.needs_program("criu") {
        return false;
    }
    let is_working = host.shell("criu check").code == 0;
    if !is_working {
        host.skip("criu works with this kernel");
    }
    is_working
}

/// CRIU keeps what it found out about the kernel.
fn forget_kernel() {
    let _ = fs::remove_file("/run/criu.kdat");
}

/// A container that counts in its /tmp, with a bind mount.
fn counter(host: &Host) -> Bundle<'_> {
    let volume = host.directory();
    fs::write(volume.join("file"), "of the host").unwrap();
    let script = "exec </dev/null >/dev/null 2>&1; i=0; while :; do i=$((i+1)); echo $i >>/tmp/count; sleep 0.05; done";
    let spec = Spec::new().bind(volume.to_str().unwrap(), "/home", &["rbind", "ro"]).script(script);
    host.bundle(spec)
}

fn count(bundle: &Bundle<'_>) -> Option<u32> {
    fs::read_to_string(bundle.rootfs().join("tmp/count")).ok()?.lines().last()?.parse().ok()
}

/// A directory for images that is outside of every bundle.
fn images(host: &Host) -> (PathBuf, String) {
    let images = host.directory().join("images");
    let text = images.to_str().unwrap().to_owned();
    (images, text)
}

#[test]
fn a_container_goes_on_where_it_was() {
    privileged(|host| {
        if !works(host) {
            return;
        }
        let bundle = counter(host);
        let directory = bundle.directory().to_str().unwrap().to_owned();
        let container = bundle.start();
        command::eventually("it counts", || count(container.bundle()) > Some(5));
        let (path, images) = images(host);
        host.call(&["checkpoint", "--image-path", &images, container.id()]).succeeds();
        container.call("state").fails_with(&["does not exist"]);
        assert!(path.join("inventory.img").is_file());
        let stopped = count(container.bundle()).unwrap();
        host.call(&["restore", "--detach", "--bundle", &directory, "--image-path", &images, container.id()])
            .succeeds();
        command::eventually("it counts on", || count(container.bundle()) > Some(stopped + 5));
        assert_eq!(container.status(), "running");
        assert_eq!(container.exec(&["cat", "/home/file"]).succeeds().text(), "of the host");
        container.exec(&["touch", "/home/new"]).fails_with(&["ead-only"]);
        container.exec(&["sh", "-c", "! head -c1 /proc/kcore | grep -q ."]).succeeds();
        container.call_with("kill", &["KILL"]).succeeds();
        container.becomes("stopped");
        container.call("delete").succeeds();
        forget_kernel();
    });
}

#[test]
fn who_was_kept_to_its_ports_is_kept_to_them_when_it_is_restored() {
    privileged(|host| {
        if !host.needs_coracle("ports that are allotted") || !works(host) {
            return;
        }
        let host = host.configured("[isolator.\"network/ports\"]\noptions = { interval = 0.05 }\n");
        let script = "exec </dev/null >/dev/null 2>&1; sleep 1000";
        let spec = Spec::new().set("/annotations", json!({"io.coracle.ports": "80"}));
        let container = host.bundle(spec.script(script)).start();
        let directory = container.bundle().directory().to_str().unwrap().to_owned();
        let (_, images) = images(&host);
        host.call(&["checkpoint", "--image-path", &images, container.id()]).succeeds();
        host.call(&["restore", "--detach", "--bundle", &directory, "--image-path", &images, container.id()])
            .succeeds();
        host.call(&["exec", "--detach", container.id(), "nc", "-l", "-p", "9000"]).succeeds();
        container.becomes("stopped");
        container.call("delete").succeeds();
        forget_kernel();
    });
}

#[test]
fn where_criu_ignores_cgroups_it_runs_in_the_containers() {
    privileged(|host| {
        let bundle = host.bundle(Spec::new());
        let images = host.directory();
        fs::write(images.join("descriptors.json"), "[]").unwrap();
        let criu = images.join("criu");
        fs::write(&criu, "#!/bin/sh\ncat /proc/self/cgroup >\"$3/cgroup\"\nexit 1\n").unwrap();
        fs::set_permissions(&criu, fs::Permissions::from_mode(0o755)).unwrap();
        let [criu, images, directory] =
            [&criu, &images, bundle.directory()].map(|path| path.to_str().unwrap());
        let own = fs::read_to_string("/proc/self/cgroup").unwrap();
        for (mode, is_inside) in [("soft", false), ("ignore", true)] {
            let restore = ["--criu", criu, "restore", "--bundle", directory, "--image-path", images];
            host.call(&[&restore[..], &["--manage-cgroups-mode", mode, "again"]].concat())
                .fails_with(&["criu restore"]);
            let cgroups = fs::read_to_string(format!("{images}/cgroup")).unwrap();
            let moved = cgroups.lines().zip(own.lines()).filter(|(its, ours)| its != ours).count();
            assert_eq!(moved > 0, is_inside, "{mode}: {cgroups}");
        }
    });
}

#[test]
fn a_bind_mount_with_a_blank_in_its_place_is_not_criu_s_to_bring_along() {
    privileged(|host| {
        let volume = host.directory();
        let bind = Spec::new().bind(volume.to_str().unwrap(), "/of the host", &["rbind"]);
        let container = host.bundle(bind.args(["sleep", "1000"])).start();
        let images = host.directory();
        let criu = images.join("criu");
        fs::write(&criu, "#!/bin/sh\nprintf '%s\\n' \"$@\" >\"$3/arguments\"\nexit 1\n").unwrap();
        fs::set_permissions(&criu, fs::Permissions::from_mode(0o755)).unwrap();
        let [criu, path] = [&criu, &images].map(|path| path.to_str().unwrap());
        host.call(&["--criu", criu, "checkpoint", "--leave-running", "--image-path", path, container.id()])
            .fails_with(&["criu dump"]);
        let arguments = fs::read_to_string(images.join("arguments")).unwrap();
        let is_external = |line: &str| line == "mnt[/of the host]:/of the host";
        assert!(arguments.lines().any(is_external), "{arguments}");
        container.remove();
    });
}

/// Has CRIU be the shell script `script`, for `restore` of a container called `again`, and kills the runtime meanwhile.
fn restore_is_killed(host: &Host, (mode, script): (&str, &str)) {
    let (bundle, images) = (host.bundle(Spec::new()), host.directory());
    fs::write(images.join("descriptors.json"), "[]").unwrap();
    let criu = images.join("criu");
    fs::write(&criu, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&criu, fs::Permissions::from_mode(0o755)).unwrap();
    let paths = [&criu, bundle.directory(), &images].map(|path| path.to_str().unwrap());
    let mut restore = std::process::Command::new(host.runtime())
        .args(["--criu", paths[0], "restore", "--bundle", paths[1], "--image-path", paths[2]])
        .args(["--manage-cgroups-mode", mode, "again"])
        .spawn()
        .unwrap();
    command::eventually("CRIU works", || images.join("works").exists());
    assert_eq!(host.call(&["state", "again"]).json()["status"], "creating");
    restore.kill().unwrap();
    restore.wait().unwrap();
}

#[test]
fn what_criu_has_made_of_a_restore_that_was_killed_is_removed() {
    privileged(|host| {
        if !host.needs_coracle("a restore that may be killed") {
            return;
        }
        let before = host.snapshot();
        let script = "setsid sleep 1011 & touch \"$3/works\"; sleep 1012";
        for removal in [&["delete", "--force", "again"][..], &["recover"]] {
            restore_is_killed(host, ("ignore", script));
            host.call(removal).succeeds();
            assert_eq!(host.difference(&before), None, "{removal:?}");
        }
    });
}

#[test]
fn criu_makes_no_more_of_a_restore_that_was_killed() {
    privileged(|host| {
        if !host.needs_coracle("a restore that may be killed") {
            return;
        }
        restore_is_killed(host, ("soft", "touch \"$3/works\"; exec sleep 1013"));
        command::eventually("CRIU is gone", || host.shell("pgrep -f '^sleep 1013$'").text().is_empty());
        host.call(&["delete", "--force", "again"]).succeeds();
    });
}

#[test]
fn what_is_restored_by_another_name_is_in_cgroups_of_that_name() {
    privileged(|host| {
        if !works(host) {
            return;
        }
        let container = counter(host).start();
        let (_, images) = images(host);
        host.call(&["checkpoint", "--image-path", &images, container.id()]).succeeds();
        // In the same bundle, as it may have had its file open when it was stopped.
        let bundle = container.bundle();
        let (directory, again) = (bundle.directory().to_str().unwrap(), "again");
        host.call(&["restore", "--detach", "--bundle", directory, "--image-path", &images, again]).succeeds();
        let processes = host.call(&["ps", again]).succeeds().text();
        assert!(processes.contains("sh -c"), "{processes}");
        host.call(&["pause", again]).succeeds();
        let stopped = count(bundle);
        std::thread::sleep(std::time::Duration::from_millis(300));
        assert_eq!(count(bundle), stopped);
        host.call(&["delete", "--force", again]).succeeds();
        forget_kernel();
    });
}

#[test]
fn criu_is_told_which_cgroups_are_the_containers() {
    privileged(|host| {
        let (bundle, images) = (host.bundle(Spec::new().cgroup("/told/again")), host.directory());
        fs::write(images.join("descriptors.json"), "[]").unwrap();
        let criu = images.join("criu");
        fs::write(&criu, "#!/bin/sh\necho \"$*\" >\"$3/options\"\nexit 1\n").unwrap();
        fs::set_permissions(&criu, fs::Permissions::from_mode(0o755)).unwrap();
        let [criu, images, directory] =
            [&criu, &images, bundle.directory()].map(|path| path.to_str().unwrap());
        host.call(&["--criu", criu, "restore", "--bundle", directory, "--image-path", images, "again"])
            .fails_with(&["criu restore"]);
        let options = fs::read_to_string(format!("{images}/options")).unwrap();
        assert!(options.contains("--cgroup-root") && options.contains("/told/again"), "{options}");
    });
}

#[test]
fn a_container_that_is_left_running_runs_on() {
    privileged(|host| {
        if !works(host) {
            return;
        }
        let container = counter(host).start();
        command::eventually("it counts", || count(container.bundle()) > Some(2));
        let (_, images) = images(host);
        host.call(&["checkpoint", "--leave-running", "--image-path", &images, container.id()]).succeeds();
        let then = count(container.bundle()).unwrap();
        command::eventually("it counts on", || count(container.bundle()) > Some(then + 5));
        container.remove();
        forget_kernel();
    });
}

#[test]
fn what_can_not_be_done_is_told_and_leaves_the_container_alone() {
    privileged(|host| {
        if !host.needs_coracle("errors of checkpoint and restore") {
            return;
        }
        let container = host.sleeper();
        let (_, images) = images(host);
        let missing = ["--criu", "/no/such/criu", "checkpoint", "--image-path", &images, container.id()];
        host.call(&missing).fails_with(&["/no/such/criu is not installed", "install the package criu"]);
        let failing = ["--criu", "false", "checkpoint", "--image-path", &images, container.id()];
        host.call(&failing).fails_with(&["criu dump: it ended with 1", "dump.log"]);
        for (parent, words) in
            [("/earlier", "must be relative to --image-path"), ("../earlier", "no such file")]
        {
            let failing = ["checkpoint", "--image-path", &images, "--parent-path", parent, container.id()];
            host.call(&failing).fails_with(&["--parent-path", parent, words]);
        }
        assert_eq!(container.status(), "running");
        let other = host.bundle(Spec::new());
        let directory = other.directory().to_str().unwrap();
        let restore = ["--criu", "false", "restore", "--bundle", directory, "--image-path", &images, "again"];
        host.call(&restore).fails_with(&["restoring container \"again\"", "criu restore: it ended with 1"]);
        host.call(&["state", "again"]).fails_with(&["does not exist"]);
        let empty = host.directory();
        let restore = ["restore", "--bundle", directory, "--image-path", empty.to_str().unwrap(), "again"];
        host.call(&restore).fails_with(&["descriptors.json", "is it the directory of a checkpoint?"]);
        container.call_with("kill", &["KILL"]).succeeds();
        container.becomes("stopped");
        host.call(&["checkpoint", container.id()]).fails_with(&["container not running"]);
        container.call("delete").succeeds();
    });
}
