//! Layers that become one tree, without overlayfs.

use std::path::PathBuf;

use super::*;
use crate::fixture::Scratch;
use crate::unpack::{Owners, ROOT, unpack_tree};

/// A store and a directory, and the tree of these layers in it.
struct Flat {
    scratch: Scratch,
    directory: tempfile::TempDir,
}

impl Flat {
    fn new() -> Self {
        Self { scratch: Scratch::new(), directory: tempfile::tempdir().unwrap() }
    }

    fn unpack(&self, layers: &[Vec<u8>], owners: Owners) -> crate::Result<PathBuf> {
        self.scratch.import(layers)?;
        let image = self.scratch.store.image("image")?;
        let parent = file::open_dir(self.directory.path())?;
        unpack_tree(&self.scratch.store, &image, parent.as_fd(), (Limits::default(), owners))?;
        Ok(self.directory.path().join(ROOT))
    }

    /// What is left of a tree that was refused, and why it was.
    fn refused(&self, layers: &[Vec<u8>]) -> String {
        let error = self.unpack(layers, Owners::All).unwrap_err().to_string();
        assert_eq!(fs::read_dir(self.directory.path()).unwrap().count(), 0, "{error}");
        self.scratch.assert_canary();
        error
    }
}

fn names(path: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(path).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn upper_layers_replace_hide_and_remove_what_lower_ones_have() {
    let flat = Flat::new();
    let lower = tar().dir("d/").file("d/gone", b"").file("d/kept", b"").dir("o/").file("o/below", b"");
    let lower = lower.file("file", b"1").dir("dir/").dir("dir/in/").file("dir/in/f", b"").link("link", "dir");
    let upper = tar().file("d/.wh.gone", b"").file("d/.wh.never", b"").dir("o/").file("o/.wh..wh..opq", b"");
    let upper = upper.file("o/above", b"").dir("file/").file("dir", b"2").dir("link/").file("link/f", b"");
    let root = flat.unpack(&[lower.end(), upper.end()], Owners::All).unwrap();
    assert_eq!(names(&root), ["d", "dir", "file", "link", "o"]);
    assert_eq!((names(&root.join("d")), names(&root.join("o"))), (vec!["kept".into()], vec!["above".into()]));
    assert_eq!(text(&root.join("dir")), "2");
    assert!(fs::symlink_metadata(root.join("link")).unwrap().is_dir());
    assert!(xattr(&root.join("o"), "trusted.overlay.opaque").is_none());
}

#[test]
fn an_opaque_root_hides_all() {
    let flat = Flat::new();
    let lower = tar().dir("d/").file("d/f", b"").file("g", b"").end();
    let root = flat.unpack(&[lower, tar().file(".wh..wh..opq", b"").file("h", b"").end()], Owners::All);
    assert_eq!(names(&root.unwrap()), ["h"]);
}

#[test]
fn a_hard_link_to_a_lower_layer_is_one_to_all_its_names() {
    let flat = Flat::new();
    let lower = tar().dir("d/").file("d/f", b"same").hard("d/g", "d/f").link("way", "d").end();
    let upper = tar().hard("h", "d/f").hard("i", "way/g").file("d/.wh.f", b"").end();
    let root = flat.unpack(&[lower, upper], Owners::All).unwrap();
    let found = |name: &str| fs::metadata(root.join(name)).unwrap();
    assert_eq!((found("h").nlink(), found("h").ino()), (3, found("d/g").ino()));
    assert_eq!(found("i").ino(), found("h").ino());
    let error = flat_error(&[tar().end(), tar().hard("h", "no/where").end()]);
    assert!(
        error.ends_with("entry \"h\": it is a hard link to \"no/where\", which is in no layer"),
        "{error}"
    );
    let error = flat_error(&[tar().dir("d/").end(), tar().hard("h", "d").end()]);
    assert!(error.ends_with("it is a hard link to a directory"), "{error}");
}

#[test]
fn a_hard_link_to_what_its_layer_replaces_is_one_to_what_was_there() {
    let flat = Flat::new();
    let lower = tar().file("f", b"below").file("g", b"below").end();
    let upper = tar().hard("h", "f").file("f", b"new").file("i", b"old").hard("i", "g").hard("j", "i").end();
    let root = flat.unpack(&[lower, upper], Owners::All).unwrap();
    assert_eq!(["f", "h", "i", "j"].map(|name| text(&root.join(name))), ["new", "below", "below", "below"]);
}

fn flat_error(layers: &[Vec<u8>]) -> String {
    Flat::new().refused(layers)
}

#[test]
fn a_link_in_a_lower_layer_leads_nowhere() {
    let flat = Flat::new();
    let outside = flat.directory.path().join("outside");
    fs::create_dir(&outside).unwrap();
    let lower = tar().link("way", outside.to_str().unwrap()).end();
    let root = flat.unpack(&[lower, tar().file("way/f", b"inside").end()], Owners::All).unwrap();
    assert_eq!((names(&outside), text(&root.join("way/f"))), (vec![], "inside".to_owned()));
    let error = flat_error(&[tar().link("way", "/etc").end(), tar().hard("h", "way/passwd").end()]);
    assert!(error.ends_with("which is in no layer"), "{error}");
}

#[test]
fn a_layer_that_an_image_has_twice_is_applied_twice() {
    let flat = Flat::new();
    let (one, two) = (tar().file("f", b"1").end(), tar().file("f", b"2").end());
    let root = flat.unpack(&[one.clone(), two, one], Owners::All).unwrap();
    assert_eq!(text(&root.join("f")), "1");
}

#[test]
fn directories_are_what_the_topmost_description_says() {
    let flat = Flat::new();
    let described = |name: &'static str, mode: u32, time: u64| {
        move |h: &mut tar::Header| {
            h.set_entry_type(EntryType::Directory);
            h.set_mode(mode);
            h.set_mtime(time);
            h.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        }
    };
    let lower = tar().raw(b"", described("d/", 0o700, 7)).raw(b"", described("e/", 0o710, 8));
    let upper = tar().file("d/f", b"").raw(b"", described("e/", 0o500, 9)).file("e/f", b"").file("n/f", b"");
    let root = flat.unpack(&[lower.end(), upper.end()], Owners::All).unwrap();
    let found = |name: &str| {
        let found = fs::metadata(root.join(name)).unwrap();
        (found.mode() & 0o7777, found.mtime())
    };
    assert_eq!(
        [found("d"), found("e"), found("n"), found(".")],
        [(0o700, 7), (0o500, 9), (0o755, 0), (0o755, 0)]
    );
}

#[test]
fn what_only_root_can_make_is_noted() {
    let flat = Flat::new();
    let device = |h: &mut tar::Header| {
        h.set_entry_type(EntryType::Block);
        h.set_uid(5);
        h.set_device_major(7).unwrap();
        h.set_device_minor(300).unwrap();
        h.as_old_mut().name[..4].copy_from_slice(b"loop");
    };
    let forged: &[(&str, &[u8])] =
        &[("SCHILY.xattr.user.rootlesscontainers", b"x"), ("SCHILY.xattr.user.mine", b"y")];
    let layer = tar().raw(b"", device).hard("same", "loop").pax(forged).file("f", b"").end();
    let root = flat.unpack(&[layer], Owners::Few { users: 1, groups: 1 }).unwrap();
    let loop_file = fs::metadata(root.join("loop")).unwrap();
    assert!(loop_file.is_file() && loop_file.len() == 0 && loop_file.uid() == 0 && loop_file.nlink() == 2);
    assert_eq!(xattr(&root.join("same"), "user.coracle.device").unwrap(), b"b 7:300");
    let owner = b"\x08\x05\x10\xff\xff\xff\xff\x0f";
    assert_eq!(xattr(&root.join("loop"), "user.rootlesscontainers").unwrap(), owner);
    assert_eq!(xattr(&root.join("f"), "user.mine").unwrap(), b"y");
    assert!(xattr(&root.join("f"), "user.rootlesscontainers").is_none());
}

#[test]
fn one_that_is_there_is_not_touched() {
    let flat = Flat::new();
    fs::create_dir(flat.directory.path().join(ROOT)).unwrap();
    fs::write(flat.directory.path().join(ROOT).join("mine"), "").unwrap();
    let error = flat.unpack(&[tar().file("f", b"").end()], Owners::All).unwrap_err();
    assert_eq!((error.kind(), names(flat.directory.path())), (Kind::Exists, vec![ROOT.to_owned()]));
}

#[test]
fn what_somebody_else_has_beside_the_tree_stays() {
    let flat = Flat::new();
    for name in [".new-mine", ".new-1-0", ".coracle-new-", ".coracle-new-1"] {
        fs::create_dir(flat.directory.path().join(name)).unwrap();
    }
    fs::create_dir(flat.directory.path().join(".coracle-new-1-0")).unwrap();
    flat.unpack(&[tar().dir("d/").end()], Owners::All).unwrap();
    let mut left: Vec<_> =
        fs::read_dir(flat.directory.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, [".coracle-new-", ".coracle-new-1", ".new-1-0", ".new-mine", ROOT]);
}
