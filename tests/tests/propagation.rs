//! How mount events travel between host and container: `linux.rootfsPropagation`, and the options of mounts.

#![expect(clippy::unwrap_used, reason = "a helper of the tests fails as a test does")]

use std::fs;
use std::path::{Path, PathBuf};

use coracle_tests::command::eventually;
use coracle_tests::{Container, Host, Spec, privileged};

/// What mountinfo says of the propagation of the mount at `point` in a container with this specification: its optional
/// fields.
fn propagation_of(host: &Host, spec: Spec, point: &str) -> String {
    let lines = host.bundle(spec.args(["cat", "/proc/self/mountinfo"])).run().succeeds().lines();
    let line = lines.iter().rev().find(|line| line.split(' ').nth(4) == Some(point)).unwrap();
    let fields: Vec<&str> = line.split(' ').skip(6).take_while(|field| *field != "-").collect();
    fields.join(" ")
}

/// A directory of the host that is a mount of its own, with a directory `below`, and shared with whoever binds it.
fn shared_directory(host: &Host) -> PathBuf {
    let directory = host.directory();
    fs::create_dir(directory.join("below")).unwrap();
    let path = directory.to_str().unwrap();
    host.shell(&format!("mount --bind {path} {path} && mount --make-shared {path}")).succeeds();
    directory
}

/// A container with that directory at `/mnt`, where it may mount.
fn sharer<'h>(host: &'h Host, directory: &Path, root: &str, option: &str) -> Container<'h> {
    let spec = Spec::new()
        .capabilities(&["CAP_SYS_ADMIN"])
        .set("/linux/rootfsPropagation", root)
        .bind(directory.to_str().unwrap(), "/mnt", &[option])
        .args(["sleep", "1000"]);
    host.bundle(spec).start()
}

fn is_mounted_on_host(path: &Path) -> bool {
    fs::read_to_string("/proc/self/mountinfo").unwrap().contains(path.to_str().unwrap())
}

#[test]
fn the_root_has_the_propagation_asked_for() {
    privileged(|host| {
        let root = |word: &str| propagation_of(host, Spec::new().set("/linux/rootfsPropagation", word), "/");
        // runc 1.1 leaves the root private for these.
        if host.is_coracle() {
            for word in ["shared", "rshared"] {
                assert!(root(word).starts_with("shared:"), "{word}");
            }
            for word in ["unbindable", "runbindable"] {
                assert_eq!(root(word), "unbindable", "{word}");
            }
        }
        for word in ["private", "rprivate", "slave", "rslave"] {
            assert!(!root(word).contains("shared") && !root(word).contains("unbindable"), "{word}");
        }
    });
}

#[test]
fn an_unbindable_tree_is_so_below_the_root_too() {
    privileged(|host| {
        let proc =
            |word: &str| propagation_of(host, Spec::new().set("/linux/rootfsPropagation", word), "/dev");
        assert_eq!(proc("unbindable"), "");
        if host.is_coracle() {
            assert_eq!(proc("runbindable"), "unbindable");
        }
    });
}

#[test]
fn a_mount_has_the_propagation_asked_for() {
    privileged(|host| {
        let directory = shared_directory(host);
        let mnt = |option: &str| {
            let spec = Spec::new().bind(directory.to_str().unwrap(), "/mnt", &[option]);
            propagation_of(host, spec, "/mnt")
        };
        for word in ["private", "rprivate"] {
            assert_eq!(mnt(word), "");
        }
        for word in ["slave", "rslave"] {
            assert!(mnt(word).starts_with("master:"), "{word}");
        }
        for word in ["unbindable", "runbindable"] {
            assert_eq!(mnt(word), "unbindable", "{word}");
        }
        for word in ["shared", "rshared"] {
            assert!(mnt(word).starts_with("shared:"), "{word}");
        }
        host.shell(&format!("umount {}", directory.display())).succeeds();
    });
}

#[test]
fn mounts_travel_from_a_container_to_the_host_only_where_both_are_shared() {
    privileged(|host| {
        let directory = shared_directory(host);
        let below = directory.join("below");
        for (root, option, travels) in
            [("rshared", "rshared", true), ("rslave", "rshared", false), ("rshared", "rslave", false)]
        {
            let container = sharer(host, &directory, root, option);
            container.exec(&["mount", "-t", "tmpfs", "inside", "/mnt/below"]).succeeds();
            assert_eq!(is_mounted_on_host(&below), travels, "{root} and {option}");
            container.exec(&["umount", "/mnt/below"]).succeeds();
            assert!(!is_mounted_on_host(&below), "{root} and {option}");
            container.remove();
        }
        host.shell(&format!("umount {}", directory.display())).succeeds();
    });
}

#[test]
fn mounts_travel_from_the_host_to_a_slave_and_not_to_a_private_mount() {
    privileged(|host| {
        let directory = shared_directory(host);
        let below = directory.join("below");
        for (root, option, travels) in
            [("rslave", "rslave", true), ("rslave", "rshared", true), ("rslave", "rprivate", false)]
        {
            let container = sharer(host, &directory, root, option);
            host.shell(&format!("mount -t tmpfs outside {}", below.display())).succeeds();
            let table = container.exec(&["cat", "/proc/self/mountinfo"]).succeeds().text();
            assert_eq!(table.contains(" /mnt/below "), travels, "{root} and {option}");
            host.shell(&format!("umount {}", below.display())).succeeds();
            container.remove();
        }
        host.shell(&format!("umount {}", directory.display())).succeeds();
    });
}

#[test]
fn a_shared_root_keeps_its_mounts_from_its_directory_on_the_host() {
    privileged(|host| {
        let directory = shared_directory(host);
        let spec = Spec::new()
            .set("/root/path", directory.join("rootfs").to_str().unwrap())
            .set("/linux/rootfsPropagation", "rshared")
            .args(["cat", "/proc/self/mountinfo"]);
        let bundle = host.bundle(spec);
        host.shell(&format!("cp -a {} {}", bundle.rootfs().display(), directory.display())).succeeds();
        let before = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let container = bundle.create();
        assert_eq!(fs::read_to_string("/proc/self/mountinfo").unwrap(), before);
        host.call(&["start", container.id()]).succeeds();
        eventually("the container ends", || container.status() == "stopped");
        host.call(&["delete", container.id()]).succeeds();
        host.shell(&format!("umount {}", directory.display())).succeeds();
    });
}
