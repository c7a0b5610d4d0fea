//! Published escapes, each on a hostile bundle, with the canary and the leak oracle around it. The numbers are
//! those of the recipes in the threat model.

#![expect(clippy::unwrap_used, reason = "a helper of the tests fails as a test does")]

use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use coracle_fixtures::hostile::CANARY;
use coracle_tests::{Bundle, Host, Spec, privileged};
use rustix::fs::{CWD, RenameFlags};

/// Puts a symbolic link into the root in place of what is there.
fn plant<'h>(bundle: Bundle<'h>, path: &str, target: &str) -> Bundle<'h> {
    let path = bundle.rootfs().join(path);
    let _ = fs::remove_dir(&path);
    let _ = fs::remove_file(&path);
    symlink(target, path).unwrap();
    bundle
}

/// runc 1.1.5 and crun 1.8.1 are known to fall to some of these recipes, which proves the tests.
fn withstands(host: &Host) -> bool {
    host.needs_coracle("the defence; older runtimes fall to this recipe")
}

#[test]
fn c01_the_running_image_can_not_be_written_through_proc() {
    privileged(|host| {
        let container = host.bundle(Spec::new().args(["sleep", "1000"])).create();
        let executable = File::open(format!("/proc/{}/exe", container.pid())).unwrap();
        host.call(&["delete", "--force", container.id()]).succeeds();
        // Nobody executes it now, so ETXTBSY protects it no more.
        let again = format!("/proc/self/fd/{}", executable.as_raw_fd());
        let result = OpenOptions::new().write(true).open(again);
        assert!(result.is_err(), "the runtime's own image could be opened for writing");
    });
}

#[test]
fn c03_a_link_in_place_of_proc_or_sys_is_not_mounted_on() {
    privileged(|host| {
        for point in ["proc", "sys"] {
            let bundle = plant(host.bundle(Spec::new()), point, CANARY);
            let run = bundle.run();
            assert!(run.code != 0, "/{point} was mounted through a link: {run:?}");
        }
    });
}

/// Swaps two entries of the file system as fast as it can while `during` runs.
fn swapping<T>(one: &Path, other: &Path, during: impl FnOnce() -> T) -> T {
    let stop = AtomicBool::new(false);
    std::thread::scope(|threads| {
        threads.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                rustix::fs::renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE).unwrap();
            }
        });
        let result = during();
        stop.store(true, Ordering::Relaxed);
        result
    })
}

#[test]
fn c03_a_race_for_proc_gets_no_procfs_without_its_masks() {
    privileged(|host| {
        if !withstands(host) {
            return;
        }
        // Which of the names is the directory in the end is chance. Where procfs is, its masks must be, too.
        let script = "for p in /proc /proc-link /tmp; do \
                          [ ! -L $p ] && [ -d $p/1 ] || continue; \
                          [ $p != /tmp ] || echo mounted through the link; \
                          [ -c $p/keys ] || echo $p/keys is not masked; \
                          grep -q \" $p/sys ro,\" $p/self/mountinfo || echo $p/sys can be written; \
                          echo looked; \
                      done";
        let mut looked = 0;
        for _ in 0..80 {
            let bundle = plant(host.bundle(Spec::new().script(script)), "proc-link", "/tmp");
            let (proc, link) = (bundle.rootfs().join("proc"), bundle.rootfs().join("proc-link"));
            let created = swapping(&proc, &link, || bundle.try_create());
            if created.code == 0 {
                host.call(&["start", bundle.id()]).succeeds();
                let stopped = || host.call(&["state", bundle.id()]).text().contains("stopped");
                coracle_tests::command::eventually("the container ends", stopped);
                let told = fs::read_to_string(bundle.directory().join("stdout")).unwrap();
                assert_eq!(told, "looked\n");
                looked += 1;
                host.call(&["delete", bundle.id()]).succeeds();
            } else {
                assert!(created.stderr.contains("a symbolic link"), "{created:?}");
            }
        }
        assert!(looked > 0, "no container started");
    });
}

#[test]
fn c04_a_mask_is_never_bound_from_the_containers_own_null() {
    privileged(|host| {
        let spec = Spec::new()
            .without_mount("/dev/pts")
            .without_mount("/dev/shm")
            .without_mount("/dev/mqueue")
            .without_mount("/dev")
            .set("/linux/maskedPaths", serde_json::json!(["/proc/kcore"]))
            .script("cat /proc/kcore | head -c 9; stat -c %t:%T /proc/kcore");
        let bundle = plant(host.bundle(spec), "dev/null", "/etc/passwd");
        let run = bundle.run();
        assert!(run.code != 0 || run.text() == "1:3", "{run:?}");
    });
}

#[test]
fn c09_no_descriptor_of_the_runtime_is_a_way_out() {
    privileged(|host| {
        for number in 3..24 {
            let spec = Spec::new()
                .set("/process/cwd", format!("/proc/self/fd/{number}"))
                .script("pwd; ls ../../../../../../..$0/file; ls .");
            let run = host.bundle(spec).run();
            assert!(run.code != 0 || !run.text().contains("canary"), "fd {number}: {run:?}");
        }
        let container = host.sleeper();
        for number in 3..24 {
            let run = container.exec_with(&["--cwd", &format!("/proc/self/fd/{number}")], &["ls", ".."]);
            assert!(run.code != 0 || !run.text().contains("host-canary"), "fd {number}: {run:?}");
        }
        container.remove();
    });
}

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
fn c15_a_link_in_place_of_dev_gets_no_nodes() {
    privileged(|host| {
        if !withstands(host) {
            return;
        }
        for target in [CANARY, "../../../../../../../run/host-canary"] {
            let spec = Spec::new()
                .without_mount("/dev/pts")
                .without_mount("/dev/shm")
                .without_mount("/dev/mqueue")
                .without_mount("/dev");
            // Refused or made inside the root: the oracle sees to the canary.
            plant(host.bundle(spec), "dev", target).run();
            assert_eq!(fs::read_dir(CANARY).unwrap().count(), 2);
        }
    });
}

#[test]
fn c16_no_stream_is_reopened_or_given_away_through_a_link() {
    privileged(|host| {
        if !withstands(host) {
            return;
        }
        let victim = host.directory().join("victim");
        fs::write(&victim, "untouched").unwrap();
        let spec = Spec::new()
            .user(1000, 1000)
            .without_mount("/dev/pts")
            .without_mount("/dev/shm")
            .without_mount("/dev/mqueue")
            .without_mount("/dev")
            .mount("/victim", "bind", victim.to_str().unwrap(), &["bind"])
            .args(["echo", "out"]);
        plant(host.bundle(spec), "dev/null", "/victim").run();
        assert_eq!(fs::read_to_string(&victim).unwrap(), "untouched");
        assert_eq!(std::os::unix::fs::MetadataExt::uid(&fs::metadata(&victim).unwrap()), 0);
    });
}

#[test]
fn c20_a_working_directory_is_not_made_through_a_link() {
    privileged(|host| {
        let spec = Spec::new().set("/process/cwd", "/work/new").args(["pwd"]);
        plant(host.bundle(spec), "work", CANARY).run();
        assert!(!Path::new(CANARY).join("new").exists());
    });
}

#[test]
fn c21_a_password_file_that_never_ends_holds_nobody_up() {
    privileged(|host| {
        if !withstands(host) {
            return;
        }
        for target in ["/dev/zero", "/proc/kmsg"] {
            let bundle = plant(host.bundle(Spec::new().user(1000, 1000)), "etc/passwd", target);
            let begin = Instant::now();
            bundle.run();
            assert!(begin.elapsed().as_secs() < 5, "{target}");
        }
        let bundle = host.bundle(Spec::new().user(1000, 1000));
        let passwd = bundle.rootfs().join("etc/passwd");
        fs::remove_file(&passwd).unwrap();
        coracle_tests::command::tool("mkfifo", &[passwd.to_str().unwrap()]);
        let begin = Instant::now();
        bundle.run();
        assert!(begin.elapsed().as_secs() < 5, "a FIFO");
    });
}

#[test]
fn c25_hooks_run_with_nothing_of_the_containers_environment() {
    privileged(|host| {
        let file = host.directory().join("environment");
        let script = format!("env > {}", file.display());
        let spec =
            Spec::new().env("LD_LIBRARY_PATH=/evil").hook("createRuntime", &["/bin/sh", "-c", &script]);
        host.bundle(spec).run().succeeds();
        assert!(!fs::read_to_string(file).unwrap().contains("evil"));
    });
}

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
