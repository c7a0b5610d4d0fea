//! Snapshots of layers of both kinds.

#![expect(clippy::disallowed_methods, reason = "tests look at files on the host")]

use std::fs;
use std::os::unix::fs::MetadataExt;

use super::*;
use crate::fixture::{Tar, both};

fn is_mounted(path: &std::path::Path) -> bool {
    fs::read_to_string("/proc/self/mountinfo").unwrap().contains(path.to_str().unwrap())
}

fn layers() -> Vec<Vec<u8>> {
    let root = Tar::default().raw(b"", |h| {
        h.set_entry_type(tar::EntryType::Directory);
        h.set_mode(0o711);
        h.as_old_mut().name[..2].copy_from_slice(b"./");
    });
    let lower = root.dir("d/").file("d/gone", b"").file("d/stays", b"1").dir("o/").file("o/old", b"");
    let upper = Tar::default().dir("d/").file("d/.wh.gone", b"").dir("o/").file("o/.wh..wh..opq", b"");
    vec![lower.end(), upper.file("o/new", b"").end()]
}

#[test]
fn a_snapshot_shows_what_the_layers_are_together_and_leaves_nothing() {
    both(|new| {
        let scratch = new();
        scratch.unpack(&layers()).unwrap();
        let image = scratch.store.image("image").unwrap();
        let root = mount(&scratch.store, "web", &image, Access::Writable).unwrap();
        assert!(!root.join("d/gone").exists());
        assert!(root.join("d/stays").exists());
        assert!(!root.join("o/old").exists());
        assert!(root.join("o/new").exists());
        assert_eq!(fs::metadata(&root).unwrap().mode() & 0o777, 0o711);
        fs::write(root.join("d/written"), "x").unwrap();
        let again = mount(&scratch.store, "web", &image, Access::Writable).unwrap_err();
        assert_eq!(again.kind(), Kind::Exists);
        for _ in 0..2 {
            remove(&scratch.store, "web").unwrap();
            assert!(!is_mounted(&root));
            assert!(file::list(scratch.store.snapshots()).unwrap().is_empty());
        }
    });
}

#[test]
fn owners_are_mapped_in_layers_of_either_kind_and_changed_in_none() {
    /// A process in a user namespace whose root is 70000 on the host.
    struct Users(std::process::Child);
    impl Drop for Users {
        fn drop(&mut self) {
            self.0.kill().and_then(|()| self.0.wait()).unwrap();
        }
    }
    let mut users = std::process::Command::new("unshare");
    let users =
        users.args(["--user", "sh", "-c", "echo; exec sleep 1000"]).stdout(std::process::Stdio::piped());
    let mut users = Users(users.spawn().unwrap());
    let mut said = [0];
    std::io::Read::read_exact(users.0.stdout.as_mut().unwrap(), &mut said).unwrap();
    let of = |name: &str| format!("/proc/{}/{name}", users.0.id());
    fs::write(of("uid_map"), "0 70000 1000").unwrap();
    fs::write(of("gid_map"), "0 70000 1000").unwrap();
    let namespace = fs::File::open(of("ns/user")).unwrap();
    let owners = Owners { namespace: namespace.as_fd(), first: 70_000, count: 1000 };
    both(|new| {
        let scratch = new();
        let owned = Tar::default().dir("d/").raw(b"", |h| {
            h.set_uid(7);
            h.set_gid(8);
            h.as_old_mut().name[..3].copy_from_slice(b"d/f");
        });
        scratch.unpack(&[owned.end()]).unwrap();
        let image = scratch.store.image("image").unwrap();
        for access in [Access::ReadOnly, Access::Writable] {
            let purpose = Purpose { access, owners: Some(owners), known_by: None };
            let root = mount_for(&scratch.store, "web", &image, purpose).unwrap();
            let owner = |path: &str| fs::metadata(root.join(path)).map(|m| (m.uid(), m.gid())).unwrap();
            let seen = [owner("d"), owner("d/f"), owner("")];
            remove(&scratch.store, "web").unwrap();
            assert_eq!(seen, [(70_000, 70_000), (70_007, 70_008), (70_000, 70_000)]);
        }
        let unchanged = fs::metadata(scratch.layer_path(0).join("d/f")).unwrap();
        assert_eq!((unchanged.uid(), unchanged.gid()), (7, 8));
    });
}

#[test]
fn a_read_only_snapshot_of_one_layer_or_none_mounts_too() {
    both(|new| {
        for layers in [&layers()[..1], &[]] {
            let scratch = new();
            scratch.unpack(layers).unwrap();
            let image = scratch.store.image("image").unwrap();
            for access in [Access::ReadOnly, Access::Writable] {
                let root = mount(&scratch.store, "web", &image, access).unwrap();
                assert_eq!(fs::write(root.join("x"), "").is_ok(), access == Access::Writable);
                remove(&scratch.store, "web").unwrap();
            }
        }
    });
}

#[test]
fn a_root_that_is_opaque_hides_all_layers_below() {
    both(|new| {
        let scratch = new();
        let upper = Tar::default().file(".wh..wh..opq", b"").file("only", b"");
        scratch.unpack(&[layers().remove(0), upper.end()]).unwrap();
        let image = scratch.store.image("image").unwrap();
        let root = mount(&scratch.store, "web", &image, Access::ReadOnly).unwrap();
        let names: Vec<_> = fs::read_dir(&root).unwrap().map(|e| e.unwrap().file_name()).collect();
        remove(&scratch.store, "web").unwrap();
        assert_eq!(names, ["only"]);
    });
}

#[test]
fn a_layer_that_is_there_twice_says_again_what_it_says() {
    let empty = Tar::default().end();
    let files = Tar::default().dir("d/").file("d/f", b"").dir("o/").file("o/f", b"").end();
    let takes = Tar::default().dir("d/").file("d/.wh.f", b"").dir("o/").file("o/.wh..wh..opq", b"");
    let takes = takes.file("o/new", b"").end();
    let images: [(&[&Vec<u8>], &[&str]); 5] = [
        (&[&files, &files], &["d/f", "o/f"]),
        (&[&files, &empty, &takes, &empty], &["o/new"]),
        (&[&files, &takes, &files], &["d/f", "o/f", "o/new"]),
        (&[&takes, &files, &takes], &["o/new"]),
        (&[&empty, &empty], &[]),
    ];
    both(|new| {
        for (layers, expected) in images {
            let scratch = new();
            scratch.unpack(&layers.iter().map(|layer| layer.to_vec()).collect::<Vec<_>>()).unwrap();
            let image = scratch.store.image("image").unwrap();
            for access in [Access::ReadOnly, Access::Writable] {
                let root = mount(&scratch.store, "web", &image, access).unwrap();
                let mut seen = vec!["d/f", "o/f", "o/new"];
                seen.retain(|path| root.join(path).exists());
                remove(&scratch.store, "web").unwrap();
                assert_eq!(seen, expected, "{access:?}");
            }
        }
    });
}

#[test]
fn an_image_that_is_not_unpacked_is_an_error_of_its_own_kind() {
    both(|new| {
        let scratch = new();
        scratch.import(&layers()).unwrap();
        let image = scratch.store.image("image").unwrap();
        let error = mount(&scratch.store, "web", &image, Access::Writable).unwrap_err();
        assert_eq!(error.kind(), Kind::NotUnpacked);
        assert!(error.to_string().ends_with("`coracle-image unpack image` does that"), "{error}");
        assert!(file::list(scratch.store.snapshots()).unwrap().is_empty());
    });
}

#[test]
fn removing_an_image_keeps_the_layers_of_its_snapshots() {
    both(|new| {
        let scratch = new();
        scratch.unpack(&layers()).unwrap();
        let image = scratch.store.image("image").unwrap();
        mount(&scratch.store, "web", &image, Access::Writable).unwrap();
        scratch.store.remove("image").unwrap();
        assert_eq!(file::list(scratch.store.layers()).unwrap().len(), 2);
        remove(&scratch.store, "web").unwrap();
        scratch.store.collect().unwrap();
        assert!(file::list(scratch.store.layers()).unwrap().is_empty());
    });
}

#[test]
fn a_record_that_went_with_the_power_stands_in_nobodys_way() {
    let scratch = crate::fixture::Scratch::new();
    scratch.unpack(&layers()).unwrap();
    let image = scratch.store.image("image").unwrap();
    let record = |id: &str| directory_path(&scratch.store, id).join(RECORD);
    for id in ["cut", "torn"] {
        mount(&scratch.store, id, &image, Access::Writable).unwrap();
        unmount(&scratch.store, id).unwrap();
    }
    fs::write(record("cut"), "").unwrap();
    assert_eq!(records(&scratch.store).unwrap().len(), 1);
    fs::write(record("torn"), "{").unwrap();
    let error = records(&scratch.store).unwrap_err().to_string();
    assert!(error.contains("\"torn\""), "{error}");
    let (gone, failures) = remove_forgotten(&scratch.store).unwrap();
    assert_eq!(gone, ["cut"]);
    assert!(failures.len() == 1 && failures[0].to_string().contains("\"torn\""), "{failures:?}");
    remove(&scratch.store, "torn").unwrap();
    assert!(records(&scratch.store).unwrap().is_empty());
}
