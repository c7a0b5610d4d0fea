//! Mounts whose files have other owners inside than outside: `idmap`, `ridmap`, and mappings of a mount's own.

#![expect(clippy::unwrap_used, reason = "a helper of the tests fails as a test does")]

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};

use coracle_tests::{Host, Outcome, Spec, privileged};
use serde_json::{Value, json};

/// A directory with one file, both of this user and group.
fn owned(host: &Host, uid: u32, gid: u32) -> PathBuf {
    let directory = host.directory();
    fs::write(directory.join("file"), "x").unwrap();
    for path in [directory.clone(), directory.join("file")] {
        chown(path, Some(uid), Some(gid)).unwrap();
    }
    directory
}

fn mapping(inside: u32, outside: u32, size: u32) -> Value {
    json!([{"containerID": inside, "hostID": outside, "size": size}])
}

/// A container in a user namespace whose root is this user of the host.
fn in_user_namespace(root: u32) -> Spec {
    Spec::new()
        .namespace("user")
        .set("/linux/uidMappings", mapping(0, root, 65536))
        .set("/linux/gidMappings", mapping(0, root, 65536))
}

/// A bind mount of `source` at `/mnt`, with mappings of its own from the users `file` of the file system to the users
/// `host` of the host.
fn mapped(source: &Path, file: u32, host: u32) -> Value {
    json!({
        "destination": "/mnt", "type": "none", "source": source, "options": ["rbind", "idmap"],
        "uidMappings": mapping(file, host, 10), "gidMappings": mapping(file, host, 10),
    })
}

/// Whether owners can be mapped here: the tests' own files lie in a tmpfs, which does that since Linux 6.3.
fn maps_owners(host: &Host) -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(['.', '-']).map_while(|number| number.parse::<u32>().ok());
    let is_new = (numbers.next(), numbers.next()) >= (Some(6), Some(3));
    if !is_new {
        host.skip(&format!("Linux {} maps no owners in a tmpfs", release.trim()));
    }
    is_new && host.needs_coracle("mapped owners; runc since 1.2")
}

/// What a container of this specification says. Its mount points are there: root of a user namespace may make none in a
/// root file system of others.
fn run(host: &Host, spec: Spec) -> Outcome {
    let bundle = host.bundle(spec);
    for place in ["mnt", "final"] {
        fs::create_dir(bundle.rootfs().join(place)).unwrap();
    }
    bundle.run()
}

const OWNERS: &str = "stat -c %u:%g /mnt/file";

#[test]
fn a_mount_has_mappings_of_its_own() {
    privileged(|host| {
        if !maps_owners(host) {
            return;
        }
        let source = owned(host, 1000, 1001);
        let spec = Spec::new().push("/mounts", mapped(&source, 1000, 0));
        let script = format!("{OWNERS}; touch /mnt/new; stat -c %u:%g /mnt/new");
        assert_eq!(run(host, spec.script(&script)).succeeds().lines(), ["0:1", "0:0"]);
        let new = fs::metadata(source.join("new")).unwrap();
        assert_eq!((new.uid(), new.gid()), (1000, 1000), "what is made inside belongs to the user outside");
    });
}

#[test]
fn the_option_alone_takes_the_mappings_of_the_containers_user_namespace() {
    privileged(|host| {
        if !maps_owners(host) {
            return;
        }
        let source = owned(host, 0, 3);
        let source = source.to_str().unwrap();
        let with = |options: &[&str]| in_user_namespace(100_000).bind(source, "/mnt", options).script(OWNERS);
        assert_eq!(run(host, with(&["idmap"])).succeeds().text(), "0:3");
        assert_eq!(run(host, with(&[])).succeeds().text(), "65534:65534");
    });
}

#[test]
fn only_ridmap_maps_what_is_mounted_below() {
    privileged(|host| {
        if !maps_owners(host) {
            return;
        }
        let source = owned(host, 1000, 1000);
        let below = source.join("below");
        fs::create_dir(&below).unwrap();
        host.shell(&format!("mount -t tmpfs -o uid=1000,gid=1000 below {}", below.display())).succeeds();
        let script = format!("{OWNERS}; stat -c %u:%g /mnt/below");
        for (option, owner_below) in [("idmap", "1000:1000"), ("ridmap", "7:7")] {
            let mut mount = mapped(&source, 1000, 7);
            mount["options"] = json!(["rbind", option]);
            let said = run(host, Spec::new().push("/mounts", mount).script(&script)).succeeds();
            assert_eq!(said.lines(), ["7:7", owner_below], "{option}");
        }
        host.shell(&format!("umount {}", below.display())).succeeds();
    });
}

#[test]
fn the_option_may_hold_the_mappings() {
    privileged(|host| {
        if !maps_owners(host) {
            return;
        }
        let source = owned(host, 1000, 2000);
        let with =
            |spec: Spec, option: &str| spec.bind(source.to_str().unwrap(), "/mnt", &[option]).script(OWNERS);
        let absolute = with(Spec::new(), "idmap=uids=1000-1-1#0-0-1;gids=2000-2-1");
        assert_eq!(run(host, absolute).succeeds().text(), "1:2");
        let relative = with(in_user_namespace(100_000), "idmap=uids=@1000-1-1;gids=@2000-2-1");
        assert_eq!(run(host, relative).succeeds().text(), "1:2");
    });
}

#[test]
fn a_new_file_system_can_be_mapped() {
    privileged(|host| {
        if !maps_owners(host) {
            return;
        }
        let mount = json!({
            "destination": "/mnt", "type": "tmpfs", "source": "tmpfs", "options": ["uid=1000", "gid=1000", "idmap", "ro"],
            "uidMappings": mapping(1000, 3, 1), "gidMappings": mapping(1000, 4, 1),
        });
        let script = "stat -c %u:%g /mnt; touch /mnt/x 2>/dev/null || echo refused";
        let spec = Spec::new().push("/mounts", mount).script(script);
        assert_eq!(run(host, spec).succeeds().lines(), ["3:4", "refused"]);
    });
}

/// A container that sees, at `/final`, what it has mounted itself at `/mnt`: with other owners there.
fn of_its_own(source: &Path, spec: Spec, mapping: Value) -> Spec {
    let mut mount = mapping;
    mount["destination"] = json!("/final");
    mount["source"] = json!("rootfs/mnt");
    spec.bind(source.to_str().unwrap(), "/mnt", &[]).push("/mounts", mount)
}

#[test]
fn what_the_container_itself_has_mounted_can_be_mapped() {
    privileged(|host| {
        if !maps_owners(host) {
            return;
        }
        let source = owned(host, 1000, 1001);
        let script = "stat -c %u:%g /mnt/file; stat -c %u:%g /final/file";
        let spec = of_its_own(&source, Spec::new(), mapped(Path::new(""), 1000, 0)).script(script);
        assert_eq!(run(host, spec).succeeds().lines(), ["1000:1001", "0:1"]);
    });
}

#[test]
fn so_it_can_in_a_user_namespace_which_may_not_map_it_itself() {
    privileged(|host| {
        if !maps_owners(host) {
            return;
        }
        let source = owned(host, 0, 3);
        let mapping = json!({"destination": "", "type": "none", "source": "", "options": ["rbind", "idmap"]});
        let script = "stat -c %u:%g /mnt/file; stat -c %u:%g /final/file";
        let spec = of_its_own(&source, in_user_namespace(100_000), mapping).script(script);
        assert_eq!(run(host, spec).succeeds().lines(), ["65534:65534", "0:3"]);
    });
}

#[test]
fn attributes_and_mapped_owners_go_together() {
    privileged(|host| {
        if !maps_owners(host) {
            return;
        }
        let source = owned(host, 1000, 1000);
        let mut mount = mapped(&source, 1000, 0);
        mount["options"] = json!(["bind", "ro", "idmap", "noexec"]);
        let script = "touch /mnt/x 2>/dev/null || echo refused; grep -o ' /mnt ro,.*noexec.*idmapped' /proc/self/mountinfo | wc -l";
        let spec = Spec::new().push("/mounts", mount).script(script);
        assert_eq!(run(host, spec).succeeds().lines(), ["refused", "1"]);
        assert!(!source.join("x").exists());
    });
}

#[test]
fn a_file_system_that_can_not_map_owners_is_told() {
    privileged(|host| {
        if !maps_owners(host) {
            return;
        }
        let spec = Spec::new().push("/mounts", mapped(Path::new("/proc/sys"), 0, 1000));
        run(host, spec).fails_with(&[
            "/mounts/7 at \"/mnt\"",
            "mapping the owners of its files",
            "mount_setattr",
            "invalid argument",
            "does this file system map owners?",
        ]);
        let mut twice = mapped(Path::new("/"), 0, 1000);
        twice["uidMappings"] = json!([mapping(0, 1, 5)[0], mapping(2, 10, 5)[0]]);
        let spec = Spec::new().push("/mounts", twice);
        run(host, spec).fails_with(&["/mounts/7", "uid_map", "invalid argument"]);
    });
}

#[test]
fn a_user_namespace_that_is_joined_maps_too() {
    privileged(|host| {
        if !host.needs_coracle("mapped owners; runc since 1.2") {
            return;
        }
        let source = owned(host, 5, 6);
        let first = host.bundle(in_user_namespace(200_000).args(["sleep", "1000"])).start();
        let namespace = format!("/proc/{}/ns/user", first.pid());
        let spec = Spec::new().join("user", &namespace).bind(source.to_str().unwrap(), "/mnt", &["idmap"]);
        assert_eq!(run(host, spec.script(OWNERS)).succeeds().text(), "5:6");
        first.remove();
    });
}
