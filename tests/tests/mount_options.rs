//! Options of mounts: attributes of whole trees, links, propagation, read-only file systems that are filled first.

#![expect(clippy::unwrap_used, reason = "a helper of the tests fails as a test does")]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use coracle_tests::{Host, Spec, privileged};
use serde_json::json;

/// A directory of the host with a tmpfs at `below` and a file in each of the two.
fn tree(host: &Host) -> PathBuf {
    let directory = host.directory();
    let below = directory.join("below");
    fs::create_dir(&below).unwrap();
    host.shell(&format!("mount -t tmpfs below {}", below.display())).succeeds();
    for file in [directory.join("file"), below.join("file")] {
        fs::write(file, "from the host").unwrap();
    }
    directory
}

fn unmount(host: &Host, tree: &Path) {
    host.shell(&format!("umount {}/below", tree.display())).succeeds();
}

/// The line of mountinfo for the mount at `point` in a container with this specification.
fn line_of(host: &Host, spec: Spec, point: &str) -> String {
    let lines = host.bundle(spec.args(["cat", "/proc/self/mountinfo"])).run().succeeds().lines();
    let line = lines.into_iter().rev().find(|line| line.split(' ').nth(4) == Some(point));
    line.unwrap_or_else(|| panic!("nothing is mounted at {point}"))
}

fn attributes_of(host: &Host, spec: Spec, point: &str) -> Vec<String> {
    let line = line_of(host, spec, point);
    line.split(' ').nth(5).unwrap().split(',').map(str::to_owned).collect()
}

#[test]
fn what_runc_takes_for_any_file_system_is_taken() {
    privileged(|host| {
        let words = ["iversion", "noiversion", "acl", "noacl"];
        let source = host.directory();
        let options = [&["bind"], &words[..]].concat();
        let spec = Spec::new()
            .bind(source.to_str().unwrap(), "/mnt", &options)
            .mount("/opt", "tmpfs", "tmpfs", &words);
        host.bundle(spec.args(["true"])).run().succeeds();
        if host.needs_coracle("features of its own") {
            let known = host.call(&["features"]).succeeds().json()["mountOptions"].clone();
            assert!(words.iter().all(|word| known.as_array().unwrap().contains(&json!(word))), "{known}");
        }
    });
}

/// As with runc and crun, and unlike mount(8).
#[test]
fn a_bind_mount_loses_its_sources_attributes_once_any_is_named() {
    privileged(|host| {
        let source = host.directory();
        let path = source.to_str().unwrap();
        let remount = "mount -o remount,bind,ro,noexec,nosuid";
        host.shell(&format!("mount -t tmpfs tmpfs {path} && {remount} {path}")).succeeds();
        let shown = |spec: Spec, options: &[&str]| {
            let spec = spec.bind(path, "/mnt", options).args(["grep", " /mnt ", "/proc/self/mounts"]);
            let text = host.bundle(spec).run().succeeds().text();
            text.split(' ').nth(3).unwrap().split(',').map(str::to_owned).collect::<Vec<_>>()
        };
        let map = json!([{"containerID": 0, "hostID": 0, "size": 65536}]);
        let mapped = || {
            let spec = Spec::new().namespace("user").set("/linux/uidMappings", map.clone());
            spec.set("/linux/gidMappings", map.clone())
        };
        let has = |options: &[String], name: &str| options.iter().any(|option| option == name);
        for (spec, options, keeps) in [
            (Spec::new(), &["bind"][..], true),
            (Spec::new(), &["bind", "rprivate"], true),
            (Spec::new(), &["bind", "nodev"], false),
            (mapped(), &["bind", "nodev"], true),
        ] {
            let told = shown(spec, options);
            let kept = ["ro", "noexec", "nosuid"].map(|name| has(&told, name));
            assert_eq!(kept, [keeps; 3], "{options:?}: {told:?}");
            assert_eq!(has(&told, "nodev"), options.contains(&"nodev"), "{told:?}");
        }
        host.shell(&format!("umount {path}")).succeeds();
    });
}

/// As with runc, to which the kernel refuses it.
#[test]
fn a_bind_mount_in_a_user_namespace_may_not_undo_by_name_what_its_source_is() {
    privileged(|host| {
        let source = host.directory();
        let path = source.to_str().unwrap();
        let remount = "mount -o remount,bind,ro,noexec,nosuid,nodev";
        host.shell(&format!("mount -t tmpfs tmpfs {path} && {remount} {path}")).succeeds();
        let map = json!([{"containerID": 0, "hostID": 0, "size": 65536}]);
        for (option, own) in [("rw", "ro"), ("suid", "nosuid"), ("dev", "nodev"), ("exec", "noexec")] {
            let spec = Spec::new().bind(path, "/mnt", &["bind", option]);
            host.bundle(spec.clone()).run().succeeds();
            let spec = spec.namespace("user").set("/linux/uidMappings", map.clone());
            let run = host.bundle(spec.set("/linux/gidMappings", map.clone())).run();
            run.fails_with(&[
                "/mounts/7/options",
                option,
                "operation not permitted",
                own,
                "in a user namespace",
            ]);
        }
        host.shell(&format!("umount {path}")).succeeds();
    });
}

/// As with mount(8) and runc.
#[test]
fn a_bind_mount_keeps_access_times_as_its_source_does_unless_told_how() {
    privileged(|host| {
        let source = host.directory();
        let path = source.to_str().unwrap();
        host.shell(&format!("mount -t tmpfs -o noatime tmpfs {path}")).succeeds();
        for (options, is_kept) in [
            (&["bind", "ro"][..], true),
            (&["bind", "atime"], true),
            (&["bind", "norelatime"], true),
            (&["bind", "relatime"], false),
            (&["bind", "strictatime"], false),
            (&["bind", "nodiratime"], false),
        ] {
            let told = attributes_of(host, Spec::new().bind(path, "/mnt", options), "/mnt");
            assert_eq!(told.contains(&"noatime".to_owned()), is_kept, "{options:?}: {told:?}");
        }
        host.shell(&format!("mount -o remount,nodiratime,relatime {path}")).succeeds();
        for (options, is_kept) in [(&["bind", "ro"][..], true), (&["bind", "strictatime"], false)] {
            let told = attributes_of(host, Spec::new().bind(path, "/mnt", options), "/mnt");
            assert_eq!(told.contains(&"nodiratime".to_owned()), is_kept, "{options:?}: {told:?}");
        }
        host.shell(&format!("umount {path}")).succeeds();
    });
}

#[test]
fn an_attribute_is_the_mounts_own_and_after_r_the_whole_trees() {
    privileged(|host| {
        let tree = tree(host);
        let source = tree.to_str().unwrap();
        let all = ["rro", "rnosuid", "rnodev", "rnoexec", "rnoatime", "rnodiratime", "rnosymfollow"];
        for (options, top, below) in [
            (["ro", "noexec"].as_slice(), ["ro", "noexec"].as_slice(), ["rw"].as_slice()),
            (&["rro", "rnosuid"], &["ro", "nosuid"], &["ro", "nosuid"]),
            (&["rro", "rw"], &["ro"], &["ro"]),
            (&["rnoatime", "rrelatime"], &["relatime"], &["relatime"]),
            (
                &all,
                &["ro", "nosuid", "nodev", "noexec", "noatime", "nodiratime", "nosymfollow"],
                &["ro", "nosuid", "nodev", "noexec", "noatime", "nodiratime", "nosymfollow"],
            ),
        ] {
            for (point, expected) in [("/mnt", top), ("/mnt/below", below)] {
                let found = attributes_of(host, Spec::new().bind(source, "/mnt", options), point);
                for option in expected {
                    assert!(found.iter().any(|have| have == option), "{options:?}: {point} has {found:?}");
                }
            }
        }
        let write =
            Spec::new().bind(source, "/mnt", &["rro"]).script("echo x > /mnt/below/file || echo refused");
        assert_eq!(host.bundle(write).run().succeeds().text(), "refused");
        unmount(host, &tree);
    });
}

#[test]
fn links_of_a_mount_are_not_followed_where_they_must_not_be() {
    privileged(|host| {
        let directory = host.directory();
        fs::write(directory.join("file"), "reached").unwrap();
        symlink("file", directory.join("link")).unwrap();
        let spec = |option| {
            let spec = Spec::new().bind(directory.to_str().unwrap(), "/mnt", &[option]);
            spec.script("cat /mnt/link 2>/dev/null || echo refused")
        };
        assert_eq!(host.bundle(spec("nosymfollow")).run().succeeds().text(), "refused");
        assert_eq!(host.bundle(spec("symfollow")).run().succeeds().text(), "reached");
    });
}

#[test]
fn a_source_that_is_a_link_can_be_copied() {
    privileged(|host| {
        if !host.needs_coracle("copy-symlink") {
            return;
        }
        let directory = host.directory();
        symlink("over/there", directory.join("link")).unwrap();
        fs::write(directory.join("file"), "no link").unwrap();
        let source = |name: &str| directory.join(name).to_str().unwrap().to_owned();
        let copy = || Spec::new().mount("/new/link", "bind", &source("link"), &["bind", "copy-symlink"]);
        let bundle = host.bundle(copy().script("readlink /new/link; grep -c /new /proc/self/mounts"));
        assert_eq!(bundle.run().lines(), ["over/there", "0"]);
        // The same again is no error, another thing in its place is.
        assert_eq!(bundle.run().lines(), ["over/there", "0"]);
        let bundle = host.bundle(copy()).with_file("new/link", "a file");
        bundle
            .run()
            .fails_with(&["/mounts/7 at \"/new/link\"", "something else than a link to \"over/there\""]);
        let spec = Spec::new().mount("/new", "bind", &source("file"), &["bind", "copy-symlink"]);
        assert_eq!(host.bundle(spec.args(["cat", "/new"])).run().succeeds().text(), "no link");
    });
}

#[test]
fn a_source_that_is_a_link_can_be_mounted_itself() {
    privileged(|host| {
        if !host.needs_coracle("src-nofollow") {
            return;
        }
        let directory = host.directory();
        fs::write(directory.join("target"), "of the host").unwrap();
        symlink(directory.join("target"), directory.join("link")).unwrap();
        let source = directory.join("link");
        let mount = |option: &str| {
            let options = ["bind", option];
            Spec::new()
                .mount("/new", "bind", source.to_str().unwrap(), &options)
                .script("cat /new || readlink /new")
        };
        assert_eq!(host.bundle(mount("rw")).run().succeeds().text(), "of the host");
        let run = host.bundle(mount("src-nofollow")).run();
        assert_eq!(run.text(), directory.join("target").to_str().unwrap());
    });
}

#[test]
fn a_source_behind_a_link_can_be_refused() {
    privileged(|host| {
        if !host.needs_coracle("src-nolinks") {
            return;
        }
        let directory = host.directory();
        fs::create_dir(directory.join("real")).unwrap();
        fs::write(directory.join("real/file"), "of the host").unwrap();
        symlink("real", directory.join("link")).unwrap();
        symlink("file", directory.join("real/last")).unwrap();
        let run = |source: &str| {
            let source = directory.join(source);
            let spec = Spec::new().bind(source.to_str().unwrap(), "/new", &["ro", "src-nolinks"]);
            host.bundle(spec.args(["cat", "/new"])).run()
        };
        assert_eq!(run("real/file").succeeds().text(), "of the host");
        for through_link in ["link/file", "real/last"] {
            run(through_link).fails_with(&["mounting /mounts/7", "too many symbolic links"]);
        }
    });
}

#[test]
fn a_destination_that_is_a_link_can_be_covered_itself() {
    privileged(|host| {
        if !host.needs_coracle("dest-nofollow") {
            return;
        }
        let directory = host.directory();
        fs::write(directory.join("file"), "mounted").unwrap();
        let source = directory.join("file");
        let spec = Spec::new().mount("/link", "bind", source.to_str().unwrap(), &["bind", "dest-nofollow"]);
        let bundle = host.bundle(spec.script("cat /link /target")).with_file("target", " untouched");
        symlink("target", bundle.rootfs().join("link")).unwrap();
        assert_eq!(bundle.run().succeeds().text(), "mounted untouched");
    });
}

#[test]
fn a_read_only_tmpfs_takes_the_mount_points_in_it_first() {
    privileged(|host| {
        let spec = Spec::new().mount("/ro", "tmpfs", "tmpfs", &["ro"]).mount("/ro/in", "tmpfs", "tmpfs", &[]);
        let script = "touch /ro/x 2>/dev/null || echo refused; touch /ro/in/x && echo written";
        assert_eq!(host.bundle(spec.script(script)).run().succeeds().lines(), ["refused", "written"]);
    });
}

#[test]
fn a_read_only_dev_takes_its_devices_first() {
    privileged(|host| {
        let mounts = json!([
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "ro"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance"]},
        ]);
        let script = "touch /dev/x 2>/dev/null || echo refused; echo x > /dev/null && readlink /dev/fd";
        let spec = Spec::new().set("/mounts", mounts).script(script);
        assert_eq!(host.bundle(spec).run().succeeds().lines(), ["refused", "/proc/self/fd"]);
    });
}

#[test]
fn a_dev_of_the_host_is_left_as_it_is() {
    privileged(|host| {
        let dev = host.directory();
        host.shell(&format!("mknod {}/null c 1 3", dev.display())).succeeds();
        let spec = Spec::new()
            .without_mount("/dev/pts")
            .without_mount("/dev/shm")
            .without_mount("/dev/mqueue")
            .without_mount("/dev")
            .bind(dev.to_str().unwrap(), "/dev", &[])
            .push("/linux/devices", json!({"path": "/dev/extra", "type": "c", "major": 1, "minor": 3}))
            .args(["ls", "/dev"]);
        assert_eq!(host.bundle(spec).run().succeeds().text(), "null");
        assert_eq!(fs::read_dir(dev).unwrap().count(), 1);
    });
}

#[test]
fn a_remount_changes_what_is_there() {
    privileged(|host| {
        let spec = Spec::new().mount("/sys", "none", "", &["remount", "bind", "noexec", "noatime"]);
        let found = attributes_of(host, spec, "/sys");
        assert!(found.contains(&"noatime".to_owned()), "{found:?}");
        if host.is_coracle() {
            let spec = Spec::new().mount("/no", "none", "", &["remount", "ro"]);
            host.bundle(spec).run().fails_with(&["/mounts/7 at \"/no\"", "there is nothing to remount"]);
        }
    });
}

#[test]
fn what_the_file_system_refuses_is_told_with_its_own_words() {
    privileged(|host| {
        if host.needs_coracle("these words for it") {
            let spec = Spec::new().mount("/mnt", "tmpfs", "tmpfs", &["size=1m", "no-such-option=1"]);
            host.bundle(spec).run().fails_with(&[
                "/mounts/7",
                "options",
                "no-such-option",
                "Unknown parameter",
            ]);
            let spec = Spec::new().mount("/mnt", "tmpfs", "tmpfs", &["size=many"]);
            host.bundle(spec).run().fails_with(&["/mounts/7", "options", "\"size\", \"many\"", "Bad value"]);
        }
    });
}

#[test]
fn a_message_queue_has_a_file_system() {
    privileged(|host| {
        let line = line_of(host, Spec::new(), "/dev/mqueue");
        assert!(line.contains(" - mqueue "), "{line}");
    });
}

#[test]
fn a_cgroup2_mount_shows_the_containers_own_group_of_the_unified_hierarchy() {
    privileged(|host| {
        if !fs::read_to_string("/proc/self/mountinfo").unwrap().contains(" - cgroup2 ") {
            return host.skip("this machine has no unified hierarchy");
        }
        let script =
            "cat /own/cgroup.procs; mkdir /own/new 2>/dev/null || echo refused; ls /own/.. >/dev/null";
        let spec = || {
            // What runc shows is the hierarchy of the whole host, where there is no cgroup namespace.
            Spec::new().mount("/own", "cgroup2", "cgroup", &["ro", "nosuid", "nsdelegate"]).script(script)
        };
        for spec in
            [spec().without_namespace("cgroup").namespace("cgroup"), spec().without_namespace("cgroup")]
        {
            if host.is_coracle() {
                let lines = host.bundle(spec).run().succeeds().lines();
                assert_eq!((lines[0].as_str(), lines.last().unwrap().as_str()), ("1", "refused"));
            }
        }
    });
}
