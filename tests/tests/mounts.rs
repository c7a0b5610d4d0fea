//! The root file system and the mounts in it.

#![expect(clippy::unwrap_used, reason = "a helper of the tests fails as a test does")]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use coracle_tests::{Host, Spec, privileged};
use rustix::fs::XattrFlags;
use serde_json::json;

/// A directory of the host with one file.
fn source(host: &Host) -> String {
    let directory = host.directory();
    fs::write(directory.join("file"), "from the host").unwrap();
    directory.to_str().unwrap().to_owned()
}

/// The options of the mount at `point` inside a container with this specification.
fn options_of(host: &Host, spec: Spec, point: &str) -> Vec<String> {
    let table = host.bundle(spec.args(["cat", "/proc/self/mountinfo"])).run().succeeds().lines();
    let line = table.iter().rev().find(|line| line.split(' ').nth(4) == Some(point));
    let line = line.unwrap_or_else(|| panic!("no mount at {point} in {table:?}"));
    let fields: Vec<&str> = line.split(' ').collect();
    [fields[5], fields[fields.len() - 1]].join(",").split(',').map(str::to_owned).collect()
}

fn has(options: &[String], wanted: &[&str]) {
    for option in wanted {
        assert!(options.iter().any(|have| have == option), "{option} is not in {options:?}");
    }
}

/// As with runc: a path below the root directory names what the container has there by then, and may stand for a
/// destination.
#[test]
fn what_an_earlier_mount_shows_can_be_bound_again() {
    privileged(|host| {
        let (first, second) = (host.directory(), host.directory());
        fs::create_dir(first.join("x")).unwrap();
        fs::write(second.join("file"), "of the second").unwrap();
        let bound = |spec: Spec, root: &str| {
            spec.bind(first.to_str().unwrap(), "/mnt", &["rbind"])
                .bind(second.to_str().unwrap(), "/mnt/x", &["rbind"])
                .bind(&format!("{root}/mnt"), "/copy", &["rbind"])
                .args(["cat", "/copy/x/file"])
        };
        let map = json!([{"containerID": 0, "hostID": 0, "size": 65536}]);
        let mapped = || {
            let spec = Spec::new().namespace("user").set("/linux/uidMappings", map.clone());
            spec.set("/linux/gidMappings", map.clone())
        };
        for spec in [bound(Spec::new(), "rootfs"), bound(mapped(), "rootfs")] {
            assert_eq!(host.bundle(spec).run().succeeds().text(), "of the second");
        }
        let bundle = host.bundle(Spec::new());
        let root = bundle.rootfs().to_str().unwrap().to_owned();
        let named = bound(Spec::new(), &root).bind(
            &format!("{root}/copy"),
            &format!("{root}/last"),
            &["rbind", "ro"],
        );
        let named = named.set("/root/path", root).args(["sh", "-c", "cat /last/x/file; touch /last/new"]);
        let run = host.bundle(named).run();
        assert_eq!(run.text(), "of the second", "{run:?}");
        assert!(run.stderr.contains("ead-only"), "{run:?}");
        let missing = Spec::new().bind(first.to_str().unwrap(), "/mnt", &["rbind"]).bind(
            "rootfs/mnt/y",
            "/copy",
            &["bind"],
        );
        host.bundle(missing)
            .run()
            .fails_with(&["/mounts/8/source", "there is no \"mnt/y\" in the container's root yet"]);
    });
}

#[test]
fn the_root_is_the_bundles_and_writable() {
    privileged(|host| {
        let bundle =
            host.bundle(Spec::new().script("cat /mark; echo written > /new")).with_file("mark", "marked");
        assert_eq!(bundle.run().succeeds().text(), "marked");
        assert_eq!(fs::read_to_string(bundle.rootfs().join("new")).unwrap(), "written\n");
    });
}

#[test]
fn a_read_only_root_can_not_be_written() {
    privileged(|host| {
        let spec = Spec::new().set("/root/readonly", true).script("echo x > /new || echo refused");
        let bundle = host.bundle(spec);
        assert_eq!(bundle.run().succeeds().text(), "refused");
        assert!(!bundle.rootfs().join("new").exists());
    });
}

#[test]
fn the_hosts_files_are_not_to_be_seen() {
    privileged(|host| {
        let run =
            host.bundle(Spec::new().script("ls /run/test /run/host-canary /work; cat /proc/mounts")).run();
        assert!(!run.text().contains("/run/test"), "{}", run.text());
        assert!(run.stderr.contains("No such file"), "{}", run.stderr);
    });
}

#[test]
fn a_container_needs_no_mount_at_all() {
    privileged(|host| {
        if host.needs_coracle("containers without /proc") {
            let spec = Spec::new().set("/mounts", json!([])).args(["echo", "bare"]);
            assert_eq!(host.bundle(spec).run().succeeds().text(), "bare");
        }
    });
}

#[test]
fn a_missing_root_is_named() {
    privileged(|host| {
        let bundle = host.bundle(Spec::new().set("/root/path", "no-such-root"));
        bundle.run().fails_with(&["no-such-root"]);
    });
}

#[test]
fn the_root_may_be_an_absolute_path() {
    privileged(|host| {
        let root = host.bundle(Spec::new()).rootfs();
        let spec = Spec::new().set("/root/path", root.to_str().unwrap()).args(["echo", "in"]);
        assert_eq!(host.bundle(spec).run().succeeds().text(), "in");
    });
}

#[test]
fn a_bind_mount_shows_the_hosts_directory() {
    privileged(|host| {
        let source = source(host);
        let spec = Spec::new()
            .bind(&source, "/mnt/volume", &[])
            .script("cat /mnt/volume/file; echo x > /mnt/volume/new");
        assert_eq!(host.bundle(spec).run().succeeds().text(), "from the host");
        assert_eq!(fs::read_to_string(Path::new(&source).join("new")).unwrap(), "x\n");
    });
}

#[test]
fn a_read_only_bind_mount_can_not_be_written() {
    privileged(|host| {
        let source = source(host);
        let script = "cat /mnt/file; echo x > /mnt/new || echo refused";
        let spec = Spec::new().bind(&source, "/mnt", &["ro"]).script(script);
        assert_eq!(host.bundle(spec).run().succeeds().text(), "from the hostrefused");
        assert!(!Path::new(&source).join("new").exists());
    });
}

#[test]
fn a_file_can_be_bound_over_a_file_that_is_made_for_it() {
    privileged(|host| {
        let source = format!("{}/file", source(host));
        let spec =
            Spec::new().mount("/etc/new-file", "bind", &source, &["bind"]).args(["cat", "/etc/new-file"]);
        assert_eq!(host.bundle(spec).run().succeeds().text(), "from the host");
    });
}

#[test]
fn bind_mount_options_are_the_mounts() {
    privileged(|host| {
        let source = source(host);
        let spec = Spec::new().bind(&source, "/mnt", &["nosuid", "nodev", "noexec", "ro"]);
        has(&options_of(host, spec, "/mnt"), &["nosuid", "nodev", "noexec", "ro"]);
    });
}

#[test]
fn a_recursive_bind_brings_the_mounts_below() {
    privileged(|host| {
        let source = source(host);
        let below = format!("{source}/below");
        fs::create_dir(&below).unwrap();
        host.shell(&format!("mount -t tmpfs inner {below} && echo deep > {below}/file")).succeeds();
        let with = Spec::new().bind(&source, "/mnt", &[]).args(["cat", "/mnt/below/file"]);
        assert_eq!(host.bundle(with).run().succeeds().text(), "deep");
        let without = Spec::new().mount("/mnt", "bind", &source, &["bind"]).args(["ls", "/mnt/below"]);
        assert_eq!(host.bundle(without).run().succeeds().text(), "");
        host.shell(&format!("umount {below}")).succeeds();
    });
}

#[test]
fn a_file_and_a_directory_are_not_mounted_on_each_other() {
    privileged(|host| {
        let file = host.directory().join("file");
        fs::write(&file, "").unwrap();
        let run = host.bundle(Spec::new().bind(file.to_str().unwrap(), "/tmp", &[])).run();
        run.fails_with(&["/mounts/", "at \"/tmp\"", "a file can't be mounted on a directory"]);
        let run = host.bundle(Spec::new().bind("/usr", "/bin/busybox", &[])).run();
        run.fails_with(&["/mounts/", "at \"/bin/busybox\"", "not a directory"]);
    });
}

#[test]
fn a_missing_source_is_named() {
    privileged(|host| {
        host.bundle(Spec::new().bind("/no/such/source", "/mnt", &[])).run().fails_with(&["/no/such/source"]);
    });
}

#[test]
fn tmpfs_takes_size_and_mode() {
    privileged(|host| {
        let spec =
            || Spec::new().mount("/scratch", "tmpfs", "tmpfs", &["nosuid", "nodev", "size=1m", "mode=1770"]);
        has(&options_of(host, spec(), "/scratch"), &["nosuid", "nodev", "size=1024k", "mode=1770"]);
        let full =
            "dd if=/dev/zero of=/scratch/file bs=1M count=2 2>/dev/null || echo full; stat -c %a /scratch";
        assert_eq!(host.bundle(spec().script(full)).run().succeeds().lines(), ["full", "1770"]);
    });
}

#[test]
fn a_tmpfs_can_begin_with_what_it_covers() {
    privileged(|host| {
        let spec = Spec::new()
            .mount("/srv", "tmpfs", "tmpfs", &["tmpcopyup", "ro"])
            .mount("/srv/new", "tmpfs", "tmpfs", &["tmpcopyup"])
            .capabilities(&["CAP_DAC_OVERRIDE"])
            .args(["sleep", "1000"]);
        let bundle = host.bundle(spec).with_file("srv/dir/file", "content").with_file("srv/program", "#!");
        let srv = bundle.rootfs().join("srv");
        fs::create_dir(srv.join("new")).unwrap();
        symlink("/run/host-canary/file", srv.join("link")).unwrap();
        let script = "cd $1 && chmod 1751 . && chown 7:8 . && chown 1000:1001 dir dir/file && chmod 2750 dir && \
                      chown 5:6 program && chmod 4711 program && chown -h 3:4 link && mkfifo -m 640 fifo && \
                      mknod -m 604 null c 1 3 && truncate -s 8G sparse && touch -d @1000000 -h program link dir";
        host.shell(&script.replace("$1", srv.to_str().unwrap())).succeeds();
        rustix::fs::setxattr(srv.join("program"), "security.capability", &CAPABILITY, XattrFlags::empty())
            .unwrap();
        let container = bundle.start();
        let script = "cd /srv && stat -c '%n %F %a %u:%g %Y' program link dir | grep -v '^ '; readlink link; \
                      stat -c '%n %F %a %u:%g %t:%T' . fifo null dir/file; cat dir/file; stat -c ' %s %b' sparse; \
                      touch /srv/x 2>/dev/null || echo read-only; touch /srv/new/x && echo writable";
        assert_eq!(
            container.exec(&["sh", "-c", script]).succeeds().lines(),
            [
                "program regular file 4711 5:6 1000000",
                "link symbolic link 777 3:4 1000000",
                "dir directory 2750 1000:1001 1000000",
                "/run/host-canary/file",
                ". directory 1751 7:8 0:0",
                "fifo fifo 640 0:0 0:0",
                "null character special file 604 0:0 1:3",
                "dir/file regular file 644 1000:1001 0:0",
                "content 8589934592 0",
                "read-only",
                "writable",
            ]
        );
        let inside = format!("/proc/{}/root/srv/program", container.pid());
        let mut value = [0_u8; 64];
        let length = rustix::fs::getxattr(inside, "security.capability", &mut value).unwrap();
        assert_eq!(value[..length], CAPABILITY);
        container.remove();
        assert!(!srv.join("new/x").exists(), "what is written to the copy reached the root");
    });
}

/// `cap_net_raw=ep`, as setcap(8) writes it.
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

#[test]
fn a_tmpfs_too_small_for_what_it_covers_is_told() {
    privileged(|host| {
        if host.needs_coracle("these words for it") {
            let spec = Spec::new().mount("/srv", "tmpfs", "tmpfs", &["tmpcopyup", "size=4k"]);
            let bundle = host.bundle(spec).with_file("srv/file", &"x".repeat(100_000));
            bundle.run().fails_with(&[
                "/mounts/7 at \"/srv\"",
                "copying up \".\" (tmpcopyup): \"file\"",
                "sendfile",
                "no space",
            ]);
        }
    });
}

#[test]
fn mounts_are_made_in_their_order() {
    privileged(|host| {
        let source = source(host);
        let spec = Spec::new()
            .mount("/a", "tmpfs", "tmpfs", &[])
            .bind(&source, "/a/b", &[])
            .mount("/a/b/c", "tmpfs", "tmpfs", &[])
            .script("cat /a/b/file; grep -c ' /a' /proc/self/mounts");
        fs::create_dir(Path::new(&source).join("c")).unwrap();
        assert_eq!(host.bundle(spec).run().succeeds().text(), "from the host3");
        let hidden =
            Spec::new().bind(&source, "/a/b", &[]).mount("/a", "tmpfs", "tmpfs", &[]).args(["ls", "/a"]);
        assert_eq!(host.bundle(hidden).run().succeeds().text(), "");
    });
}

#[test]
fn links_in_the_root_are_followed_inside_it() {
    privileged(|host| {
        let source = source(host);
        for (target, real) in
            [("/real", "real"), ("../../../../real", "real"), ("not-yet/there", "not-yet/there")]
        {
            let spec = Spec::new().bind(&source, "/link", &[]).script(&format!("cat /{real}/file"));
            let bundle = host.bundle(spec);
            symlink(target, bundle.rootfs().join("link")).unwrap();
            assert_eq!(bundle.run().succeeds().text(), "from the host", "link to {target}");
        }
    });
}

#[test]
fn the_usual_file_systems_are_there() {
    privileged(|host| {
        let table = host.bundle(Spec::new().args(["cat", "/proc/self/mounts"])).run().succeeds().lines();
        for (point, kind) in [
            ("/proc", "proc"),
            ("/dev", "tmpfs"),
            ("/dev/pts", "devpts"),
            ("/dev/shm", "tmpfs"),
            ("/dev/mqueue", "mqueue"),
            ("/sys", "sysfs"),
        ] {
            let found = table.iter().any(|line| {
                let fields: Vec<&str> = line.split(' ').collect();
                fields[1] == point && fields[2] == kind
            });
            assert!(found, "{kind} at {point} is not in {table:#?}");
        }
    });
}

#[test]
fn cgroups_are_shown_read_only() {
    privileged(|host| {
        let script = "cat /proc/self/cgroup; ls /sys/fs/cgroup; \
                      mkdir /sys/fs/cgroup/new 2>/dev/null || mkdir /sys/fs/cgroup/memory/new 2>/dev/null || echo refused; \
                      cat /sys/fs/cgroup/pids/cgroup.procs /sys/fs/cgroup/cgroup.procs 2>/dev/null | head -1";
        let lines = host.bundle(Spec::new().script(script)).run().lines();
        assert!(lines.contains(&"refused".to_owned()), "{lines:?}");
        assert_eq!(lines.last().unwrap(), "1", "the cgroup namespace's root holds the container's processes");
        assert!(lines.iter().filter(|line| line.contains(':')).all(|line| line.ends_with(":/")), "{lines:?}");
    });
}

#[test]
fn masked_paths_show_nothing() {
    privileged(|host| {
        let script = "cat /etc/secret; ls /etc/secrets; echo end; stat -c %F /etc/secret";
        let masked = json!(["/etc/secret", "/etc/secrets", "/not/there"]);
        let bundle = host.bundle(Spec::new().set("/linux/maskedPaths", masked).script(script));
        let bundle = bundle.with_file("etc/secret", "hidden").with_file("etc/secrets/one", "hidden");
        assert_eq!(bundle.run().succeeds().lines(), ["end", "character special file"]);
    });
}

#[test]
fn read_only_paths_can_not_be_written() {
    privileged(|host| {
        let script =
            "echo x > /etc/fixed/file || echo refused; echo x > /proc/sys/kernel/hostname || echo refused";
        let paths = json!(["/etc/fixed", "/proc/sys", "/not/there"]);
        let bundle = host.bundle(Spec::new().set("/linux/readonlyPaths", paths).script(script));
        let run = bundle.with_file("etc/fixed/file", "same").run().succeeds();
        assert_eq!(run.lines(), ["refused", "refused"]);
    });
}

#[test]
fn a_read_only_bind_stays_so_with_a_read_only_root() {
    privileged(|host| {
        let source = source(host);
        let spec = Spec::new()
            .set("/root/readonly", true)
            .bind(&source, "/mnt", &["rw"])
            .script("echo x > /mnt/new; echo x > /new || echo refused");
        let bundle = host.bundle(spec);
        fs::create_dir(bundle.rootfs().join("mnt")).unwrap();
        assert_eq!(bundle.run().succeeds().text(), "refused");
        assert!(Path::new(&source).join("new").exists());
    });
}

#[test]
fn mounts_inside_do_not_reach_the_host() {
    privileged(|host| {
        let source = source(host);
        host.shell(&format!("mount --bind {source} {source} && mount --make-shared {source}")).succeeds();
        let spec = Spec::new().capabilities(&["CAP_SYS_ADMIN"]).bind(&source, "/mnt", &[]).script(
            "mkdir /mnt/below && mount -t tmpfs tmpfs /mnt/below && grep -c /mnt/below /proc/self/mounts",
        );
        assert_eq!(host.bundle(spec).run().succeeds().text(), "1");
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!table.contains(&format!("{source}/below")), "{table}");
        host.shell(&format!("umount {source}")).succeeds();
    });
}

#[test]
fn an_unknown_file_system_is_named() {
    privileged(|host| {
        let spec = Spec::new().mount("/mnt", "no-such-fs", "none", &[]);
        host.bundle(spec).run().fails_with(&["/mnt"]);
    });
}

#[test]
fn a_read_only_path_can_be_the_root_itself() {
    privileged(|host| {
        for path in ["/", "/tmp/.."] {
            let spec = Spec::new().set("/linux/readonlyPaths", json!([path]));
            let run = host.bundle(spec.script("echo x >/new || echo refused")).run().succeeds();
            assert_eq!(run.text(), "refused", "{path}");
        }
        let masked = host.bundle(Spec::new().set("/linux/maskedPaths", json!(["/"]))).try_create();
        masked.fails_with(&["/linux/maskedPaths", "the root, which can't be masked"]);
    });
}

#[test]
fn a_mount_below_the_read_only_hierarchies_of_cgroups_has_a_new_place_there() {
    privileged(|host| {
        if coracle_tests::cgroup::is_unified() {
            return host.skip("one hierarchy has no room for other directories");
        }
        let source = source(host);
        let spec = Spec::new()
            .mount("/sys/fs/cgroup", "cgroup", "cgroup", &["ro", "nosuid", "noexec", "nodev"])
            .bind(&source, "/sys/fs/cgroup/extra", &[])
            .script("ls -d /sys/fs/cgroup/extra; mkdir /sys/fs/cgroup/new || echo refused");
        assert_eq!(host.bundle(spec).run().succeeds().lines(), ["/sys/fs/cgroup/extra", "refused"]);
    });
}
