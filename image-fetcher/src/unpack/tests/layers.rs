//! What layers say of those below them.

use super::*;

#[test]
fn whiteouts_become_devices_and_opaque_directories_an_attribute() {
    both(|new| {
        let scratch = new();
        let layer =
            tar().dir("d/").file("d/.wh.gone", b"").dir("o/").file("o/.wh..wh..opq", b"").file("o/f", b"");
        scratch.unpack(&[tar().dir("d/").dir("o/").end(), layer.end()]).unwrap();
        let dir = scratch.layer_path(1);
        assert!(is_whiteout(&dir.join("d/gone")));
        assert_eq!(xattr(&dir.join("o"), "trusted.overlay.opaque").unwrap(), b"y");
        assert!(!dir.join("o/.wh..wh..opq").exists());
    });
}

#[test]
fn a_whiteout_leaves_what_its_own_layer_has() {
    both(|new| {
        let scratch = new();
        let before = tar().file("f", b"new").file(".wh.f", b"").dir("d/").file(".wh.d", b"");
        let dir =
            scratch.layer(&before.file(".wh.g", b"").file("g", b"new").file(".wh.e", b"").dir("e/")).unwrap();
        assert_eq!((text(&dir.join("f")), text(&dir.join("g"))), ("new".to_owned(), "new".to_owned()));
        for name in ["d", "e"] {
            assert_eq!(xattr(&dir.join(name), "trusted.overlay.opaque").unwrap(), b"y", "{name}");
        }
    });
}

#[test]
fn the_last_of_several_entries_wins_and_may_be_of_another_type() {
    both(|new| {
        let scratch = new();
        let layer = tar()
            .file("a", b"1")
            .file("a", b"22")
            .dir("b/")
            .dir("b/x/")
            .file("b/x/y", b"")
            .file("b", b"file");
        let layer = layer.file("c", b"").dir("c/").file("c/x", b"in").link("e", "a").file("e", b"no link");
        let dir = scratch.layer(&layer).unwrap();
        assert_eq!(text(&dir.join("a")), "22");
        assert_eq!(text(&dir.join("b")), "file");
        assert_eq!(text(&dir.join("c/x")), "in");
        assert_eq!(text(&dir.join("e")), "no link");
    });
}

#[test]
fn a_hard_link_to_a_lower_layer_is_a_copy_with_both_names() {
    both(|new| {
        let scratch = new();
        let lower = tar().dir("d/").raw(b"below", |h| {
            h.set_mode(0o4755);
            h.set_uid(7);
            h.as_old_mut().name[..3].copy_from_slice(b"d/f");
        });
        scratch.unpack(&[lower.end(), tar().hard("h", "d/f").end()]).unwrap();
        let dir = scratch.layer_path(1);
        assert!(scratch.unpacked(1).contains(".chain"));
        let meta = fs::metadata(dir.join("h")).unwrap();
        assert_eq!((meta.nlink(), meta.uid(), meta.mode() & 0o7777), (2, 7, 0o4755));
        assert_eq!(text(&dir.join("d/f")), "below");
    });
}

#[test]
fn a_directory_without_an_entry_is_like_the_one_below() {
    both(|new| {
        let scratch = new();
        let lower = tar().raw(b"", |h| {
            h.set_entry_type(EntryType::Directory);
            h.set_mode(0o1777);
            h.set_mtime(99);
            h.as_old_mut().name[..4].copy_from_slice(b"tmp/");
        });
        scratch.unpack(&[lower.end(), tar().file("tmp/f", b"").end()]).unwrap();
        let meta = fs::metadata(scratch.layer_path(1).join("tmp")).unwrap();
        assert_eq!((meta.mode() & 0o7777, meta.mtime()), (0o1777, 99));
    });
}

#[test]
fn a_whiteout_of_nothing_makes_no_directory() {
    both(|new| {
        let scratch = new();
        scratch.unpack(&[tar().dir("d/").end(), tar().file("a/b/.wh.c", b"").end()]).unwrap();
        assert!(!scratch.layer_path(1).join("a").exists());
    });
}

#[test]
fn a_whiteout_of_nothing_is_not_listed_and_one_of_something_stays() {
    both(|new| {
        let scratch = new();
        let upper = tar().dir("d/").file("d/.wh.f", b"").dir("new/").file("new/.wh.x", b"");
        scratch.unpack(&[tar().dir("d/").file("d/f", b"").end(), upper.end()]).unwrap();
        let dir = scratch.layer_path(1);
        assert!(is_whiteout(&dir.join("d/f")));
        assert!(!is_whiteout(&dir.join("new/x")));
    });
}

#[test]
fn a_layer_that_hides_something_below_its_root_is_unpacked_for_each_place() {
    both(|new| {
        let scratch = new();
        let upper = tar().dir("d/").file("d/.wh.f", b"").end();
        scratch.unpack(&[tar().dir("d/").file("d/f", b"").end(), upper.clone()]).unwrap();
        // Where another image has no such directory below, it is not merged, and its whiteouts would be listed.
        assert!(!scratch.unpacked(1).starts_with(Digest::of(&upper).hex()));
        let scratch = new();
        let upper = tar().file(".wh.f", b"").end();
        scratch.unpack(&[tar().file("f", b"").end(), upper.clone()]).unwrap();
        assert!(scratch.unpacked(1).starts_with(Digest::of(&upper).hex()));
    });
}

#[test]
fn an_image_with_the_same_layer_twice_unpacks_it_for_each_place() {
    both(|new| {
        let scratch = new();
        let (a, b) = (tar().dir("d/").file("d/f", b"1").end(), tar().hard("h", "d/f").end());
        let c = tar().file("d/f", b"2").end();
        scratch.unpack(&[a, b.clone(), c, b]).unwrap();
        assert_eq!(text(&scratch.layer_path(1).join("h")), "1");
        assert_eq!(text(&scratch.layer_path(3).join("h")), "2");
    });
}

/// A file of zeros, `size` bytes long, in a few bytes of archive.
fn hollow(name: &str, size: &str) -> Vec<u8> {
    tar().pax(&[("GNU.sparse.size", size.as_bytes()), ("GNU.sparse.map", b"0,1")]).file(name, b"x").end()
}

#[test]
fn a_copy_for_a_hard_link_has_the_holes_of_the_file_below() {
    both(|new| {
        let scratch = new();
        scratch.unpack(&[hollow("f", "67108864"), tar().hard("h", "f").end()]).unwrap();
        let meta = fs::metadata(scratch.layer_path(1).join("h")).unwrap();
        assert_eq!((meta.len(), meta.nlink()), (64 << 20, 2));
        assert!(scratch.blocks() * 512 < 8 << 20, "{} blocks", scratch.blocks());
    });
}

#[test]
fn copies_for_hard_links_count_as_files_of_their_layer() {
    both(|new| {
        let scratch = new();
        let upper = tar().hard("h", "f").hard("i", "g").end();
        scratch.import(&[hollow("f", "40000000"), hollow("g", "40000000"), upper]).unwrap();
        let limits = Limits { bytes: 64 << 20, ..Limits::default() };
        let options = Options { limits, ..scratch.unpacking };
        let error = unpack(&scratch.store, &scratch.store.image("image").unwrap(), &options).unwrap_err();
        assert!(error.to_string().contains("the size of its files is over the limit"), "{error}");
        scratch.assert_clean();
    });
}

#[test]
fn hard_links_through_one_link_below_share_their_copy() {
    both(|new| {
        let scratch = new();
        let lower = tar().dir("d/").file("d/f", b"below").link("l", "d").end();
        scratch.unpack(&[lower, tar().hard("h", "l/f").hard("i", "l/f").end()]).unwrap();
        let dir = scratch.layer_path(1);
        let [h, i] = ["h", "i"].map(|name| fs::metadata(dir.join(name)).unwrap());
        assert_eq!((h.ino(), h.nlink()), (i.ino(), 2));
        assert_eq!(text(&dir.join("i")), "below");
    });
}

#[test]
fn a_root_that_is_opaque_hides_what_is_below_it_from_its_directories() {
    both(|new| {
        let scratch = new();
        let secret = tar().raw(b"", |h| {
            h.set_entry_type(EntryType::Directory);
            h.set_mode(0o700);
            h.as_old_mut().name[..7].copy_from_slice(b"secret/");
        });
        let lower = secret.dir("etc/").file("etc/passwd", b"");
        let upper = tar().file(".wh..wh..opq", b"").dir("etc/").file("etc/.wh.passwd", b"");
        let upper = upper.file("etc/new", b"").file("secret/new", b"");
        scratch.unpack(&[lower.end(), upper.end()]).unwrap();
        let dir = scratch.layer_path(1);
        assert!(!is_whiteout(&dir.join("etc/passwd")) && dir.join("etc/new").exists());
        assert_eq!(fs::metadata(dir.join("secret")).unwrap().mode() & 0o7777, 0o755);
    });
}

#[test]
fn what_aufs_kept_for_itself_is_passed_over() {
    both(|new| {
        let layer = tar().dir(".wh..wh.plnk/").file(".wh..wh.plnk/1.2", b"").file(".wh..wh.aufs", b"");
        let scratch = new();
        let dir = scratch.layer(&layer.dir(".wh..wh.orph/").file("f", b"")).unwrap();
        let names: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["f"]);
    });
}

#[test]
fn a_hard_link_to_a_file_that_its_layer_hides_or_replaces_is_the_only_name_of_the_copy() {
    both(|new| {
        let scratch = new();
        let lower = tar().file("gone", b"1").file("new", b"2").dir("o/").file("o/f", b"3").dir("d/");
        let lower = lower.file("d/f", b"4").file("name", b"5").end();
        let upper = tar().hard("a", "gone").file(".wh.gone", b"").hard("b", "new").file("new", b"other");
        let upper = upper.hard("c", "o/f").dir("o/").file("o/.wh..wh..opq", b"").hard("e", "d/f");
        // A link to a link, whose own target another link takes the place of.
        let upper = upper.file(".wh.d", b"").hard("g", "a").hard("h", "name").hard("name", "new-below");
        let lower = [lower, tar().file("new-below", b"6").end()];
        scratch.unpack(&[lower[0].clone(), lower[1].clone(), upper.end()]).unwrap();
        let dir = scratch.layer_path(2);
        let found = ["a", "b", "c", "e", "g", "h", "name"].map(|name| text(&dir.join(name)));
        assert_eq!(found, ["1", "2", "3", "4", "1", "5", "6"]);
        assert!(is_whiteout(&dir.join("gone")) && is_whiteout(&dir.join("d")));
        assert_eq!(text(&dir.join("new")), "other");
        assert!(!dir.join("o/f").exists());
        let same = |a: &str, b: &str| {
            fs::metadata(dir.join(a)).unwrap().ino() == fs::metadata(dir.join(b)).unwrap().ino()
        };
        assert!(same("a", "g") && same("name", "new-below"));
    });
}

#[test]
fn a_hard_link_to_a_lower_layer_replaces_what_its_own_has_by_that_name() {
    both(|new| {
        let scratch = new();
        let upper = tar().file("h", b"old").hard("h", "f").dir("d/").file("d/x", b"").hard("d", "f");
        scratch
            .unpack(&[tar().file("f", b"below").end(), upper.hard("later", "f").file("later", b"2").end()])
            .unwrap();
        let dir = scratch.layer_path(1);
        assert_eq!(["h", "d", "later"].map(|name| text(&dir.join(name))), ["below", "below", "2"]);
    });
}
