//! Layers as they are and as they should not be. The names of the breakouts are containerd's
//! (pkg/archive/tar_test.go, TestBreakouts).

#![expect(clippy::disallowed_methods, reason = "tests look at files on the host")]

use std::ffi::OsStr;
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use coracle_sys::{archive, file};
use tar::EntryType;

use super::{Limits, Options, unpack};
use crate::digest::Digest;
use crate::error::Kind;
use crate::fixture::{Tar, both};

fn tar() -> Tar {
    Tar::default()
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap()
}

fn xattr(path: &Path, name: &str) -> Option<Vec<u8>> {
    let fd = file::open(file::CWD, path, libc::O_RDONLY, 0, file::Resolve::Host).unwrap();
    archive::xattr(fd.as_fd(), OsStr::new(name)).unwrap()
}

fn is_whiteout(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_char_device() && m.rdev() == 0)
}

#[test]
fn files_directories_and_links_become_what_they_are() {
    both(|new| {
        let scratch = new();
        let layer = tar().dir("d/").file("d/f", b"hello").link("d/s", "/etc/x").hard("d/h", "d/f");
        let dir = scratch.layer(&layer).unwrap();
        assert_eq!(text(&dir.join("d/f")), "hello");
        assert_eq!(fs::read_link(dir.join("d/s")).unwrap(), Path::new("/etc/x"));
        assert_eq!(fs::metadata(dir.join("d/h")).unwrap().nlink(), 2);
    });
}

#[test]
fn metadata_is_kept_to_the_nanosecond_and_the_last_owner() {
    both(|new| {
        let scratch = new();
        let records: [(&str, &[u8]); 5] = [
            ("mtime", b"-12.25"),
            ("uid", b"3000000"),
            ("gid", b"4294967294"),
            ("SCHILY.xattr.user.bin", b"\0\n\xff="),
            ("SCHILY.xattr.security.capability", b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0"),
        ];
        let layer = tar().pax(&records).raw(b"x", |h| {
            h.set_mode(0o6711);
            h.as_old_mut().name[..1].copy_from_slice(b"f");
        });
        let path = scratch.layer(&layer).unwrap().join("f");
        let meta = fs::metadata(&path).unwrap();
        assert_eq!((meta.mtime(), meta.mtime_nsec()), (-13, 750_000_000));
        assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o7777), (3_000_000, 4_294_967_294, 0o6711));
        assert_eq!(xattr(&path, "user.bin").unwrap(), b"\0\n\xff=");
        assert!(xattr(&path, "security.capability").is_some());
    });
}

#[test]
fn a_directorys_time_and_permissions_are_those_of_its_entry_whatever_is_written_into_it() {
    both(|new| {
        let scratch = new();
        let layer = tar()
            .raw(b"", |h| {
                h.set_entry_type(EntryType::Directory);
                h.set_mode(0o000);
                h.set_mtime(77);
                h.as_old_mut().name[..2].copy_from_slice(b"d/");
            })
            .file("d/f", b"");
        let meta = fs::metadata(scratch.layer(&layer).unwrap().join("d")).unwrap();
        assert_eq!((meta.mode() & 0o7777, meta.mtime()), (0, 77));
    });
}

#[test]
fn names_may_be_long_and_of_any_bytes() {
    both(|new| {
        let scratch = new();
        let name = [&b"\xff\n"[..], &[b'x'; 250]].concat();
        let path = [&name[..], b"/", &name[..], b"/", &name[..]].concat();
        let layer = tar().pax(&[("path", &path)]).file("short", b"deep");
        assert_eq!(text(&scratch.layer(&layer).unwrap().join(OsStr::from_bytes(&path))), "deep");
    });
}

#[test]
fn devices_and_fifos_are_made() {
    both(|new| {
        let scratch = new();
        let layer = tar().entry(EntryType::Fifo, "p", "", b"").raw(b"", |h| {
            h.set_entry_type(EntryType::Char);
            h.set_mode(0o620);
            h.set_device_major(5).unwrap();
            h.set_device_minor(1).unwrap();
            h.as_old_mut().name[..1].copy_from_slice(b"c");
        });
        let dir = scratch.layer(&layer).unwrap();
        assert!(fs::metadata(dir.join("p")).unwrap().file_type().is_fifo());
        let meta = fs::metadata(dir.join("c")).unwrap();
        assert_eq!((meta.rdev(), meta.mode() & 0o777), (libc::makedev(5, 1), 0o620));
    });
}

#[test]
fn sparse_files_of_all_four_formats_have_their_holes() {
    both(|new| {
        let scratch = new();
        let (size, map): (&[u8], &[u8]) = (b"10485760", b"4096,3,8192,2");
        let v1 = [&b"2\n4096\n3\n8192\n2\n"[..], &[0; 496], b"abcde"].concat();
        let v1 = tar()
            .pax(&[
                ("GNU.sparse.major", b"1"),
                ("GNU.sparse.minor", b"0"),
                ("GNU.sparse.name", b"v10"),
                ("GNU.sparse.realsize", size),
            ])
            .file("GNUSparseFile.1/v10", &v1);
        let v01 = v1.pax(&[("GNU.sparse.size", size), ("GNU.sparse.map", map)]).file("v01", b"abcde");
        let pieces: [(&str, &[u8]); 5] = [
            ("GNU.sparse.size", size),
            ("GNU.sparse.offset", b"4096"),
            ("GNU.sparse.numbytes", b"3"),
            ("GNU.sparse.offset", b"8192"),
            ("GNU.sparse.numbytes", b"2"),
        ];
        let layer = v01.pax(&pieces).file("v00", b"abcde").raw(b"abcde", |h| {
            h.set_entry_type(EntryType::GNUSparse);
            h.as_old_mut().name[..3].copy_from_slice(b"old");
            h.as_mut_bytes()[257..265].copy_from_slice(b"ustar  \0");
            let gnu = h.as_gnu_mut().unwrap();
            gnu.set_real_size(10_485_760);
            gnu.sparse[0].set_offset(4096);
            gnu.sparse[0].set_length(3);
            gnu.sparse[1].set_offset(8192);
            gnu.sparse[1].set_length(2);
        });
        let dir = scratch.layer(&layer).unwrap();
        for name in ["v10", "v01", "v00", "old"] {
            let bytes = fs::read(dir.join(name)).unwrap();
            assert_eq!(
                (bytes.len(), &bytes[4096..4099], &bytes[8192..8194]),
                (10_485_760, &b"abc"[..], &b"de"[..])
            );
        }
        assert!(scratch.blocks() < 256, "a file has no holes");
    });
}

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
        let layer = tar().file("a", b"1").file("a", b"22").dir("b/").file("b/x", b"").file("b", b"file");
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
fn a_layer_whose_whiteouts_hide_something_is_kept_by_diff_id() {
    both(|new| {
        let scratch = new();
        let upper = tar().dir("d/").file("d/.wh.f", b"").end();
        scratch.unpack(&[tar().dir("d/").file("d/f", b"").end(), upper.clone()]).unwrap();
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

/// What is written through a link of the layer stays in the layer.
#[test]
fn breakouts_through_links_stay_inside() {
    both(|new| {
        let up = "../../../../../../../..";
        let escape = |name: &str| format!("{up}/{name}");
        let cases: Vec<(&str, Tar, &str)> = vec![
            ("SymlinkAbsolute", tar().link("l", "/etc").file("l/evil", b"x"), "etc/evil"),
            ("SymlinkUpAndOut", tar().link("l", &escape("etc")).file("l/evil", b"x"), "etc/evil"),
            (
                "SymlinkMultipleAbsolute",
                tar().link("a", "/b").link("b", "/etc").file("a/evil", b"x"),
                "etc/evil",
            ),
            (
                "SymlinkMultipleRelative",
                tar().link("a", "b").link("b", &escape("etc")).file("a/evil", b"x"),
                "etc/evil",
            ),
            ("SymlinkParentDirectory", tar().dir("d/").link("d/l", "..").file("d/l/evil", b"x"), "evil"),
            ("DirectoryOverrideSymlink", tar().link("d", "/etc").dir("d/").file("d/evil", b"x"), "d/evil"),
            ("OverrideDirectory", tar().dir("d/").link("d", "/etc").file("d/evil", b"x"), "etc/evil"),
            ("FileOverrideSymlink", tar().link("f", "/etc/evil").file("f", b"x"), "f"),
            ("WhiteoutSymlinkPath", tar().link("l", "/etc").file("l/.wh.passwd", b""), ""),
            ("HardlinkSymlink", tar().link("l", "/etc/passwd").hard("h", "l").file("evil", b"x"), "evil"),
            ("Absolute", tar().file("/evil", b"x"), "evil"),
            ("DownAndUp", tar().dir("d/").file("d/../evil", b"x"), "evil"),
        ];
        for (name, layer, expected) in cases {
            let scratch = new();
            let dir = scratch.layer(&layer).unwrap_or_else(|e| panic!("{name}: {e}"));
            if !expected.is_empty() {
                assert_eq!(text(&dir.join(expected)), "x", "{name}");
            }
            scratch.assert_canary();
            assert!(!Path::new("/etc/evil").exists(), "{name}");
        }
    });
}

#[test]
fn what_climbs_out_is_refused() {
    both(|new| {
        let cases: Vec<(&str, Tar, &str)> = vec![
            ("Relative", tar().file("../canary", b"x"), "entry \"../canary\": it climbs out of the layer"),
            (
                "DownAndOut",
                tar().file("d/../../canary", b"x"),
                "entry \"d/../../canary\": it climbs out of the layer",
            ),
            ("DirectRelative", tar().dir(".."), "entry \"..\": it climbs out of the layer"),
            (
                "HardlinkRelative",
                tar().hard("h", "../../canary"),
                "entry \"h\": it is a hard link to \"../../canary\", which is out of the layer",
            ),
            (
                "HardlinkAbsolute",
                tar().hard("h", "/etc/passwd"),
                "entry \"h\": it is a hard link to \"/etc/passwd\", which is in no layer",
            ),
            (
                "HardlinkDownAndOut",
                tar().link("l", "/../../..").hard("h", "l/etc/passwd"),
                "entry \"h\": it is a hard link to \"l/etc/passwd\", which is in no layer",
            ),
            (
                "HardlinkDirectory",
                tar().dir("d/").hard("h", "d"),
                "entry \"h\": it is a hard link to a directory",
            ),
            ("Root", tar().link(".", "/etc"), "entry \".\": the root of a layer can only be a directory"),
            (
                "EmptyFilename",
                tar().file("", b"x"),
                "entry \"\": the root of a layer can only be a directory",
            ),
            (
                "SlashEnded",
                tar().file("f/", b"x"),
                "entry \"f/\": it is a regular file, but its name is that of a directory",
            ),
            (
                "ParentIsFile",
                tar().file("f", b"").file("f/g", b""),
                "entry \"f/g\": its parent \"f\" is no directory",
            ),
            ("LinkLoop", tar().link("a", "b").link("b", "a").file("a/f", b""), "is one of too many links"),
        ];
        for (name, layer, expected) in cases {
            let said = new().refused(&layer);
            assert!(said.ends_with(expected), "{name}: {said}");
        }
    });
}

#[test]
fn whiteouts_of_what_has_no_name_are_refused() {
    both(|new| {
        for name in [".wh.", ".wh..", ".wh...", "d/.wh."] {
            let said = new().refused(&tar().file(name, b""));
            assert!(said.ends_with("it is a whiteout of nothing that has a name"), "{name}: {said}");
        }
    });
}

#[test]
fn forged_whiteouts_and_attributes_of_overlayfs_do_not_get_through() {
    both(|new| {
        let device = tar().raw(b"", |h| {
            h.set_entry_type(EntryType::Char);
            h.as_old_mut().name[..1].copy_from_slice(b"c");
        });
        let said = new().refused(&device);
        assert!(said.ends_with("character device 0:0, which overlayfs takes for a whiteout"), "{said}");

        let names = ["SCHILY.xattr.trusted.overlay.redirect", "SCHILY.xattr.user.overlay.metacopy"];
        let layer = names.iter().fold(tar(), |t, name| t.pax(&[(name, b"/x")]).file("f", b""));
        let scratch = new();
        let path = scratch.layer(&layer).unwrap().join("f");
        assert!(xattr(&path, "trusted.overlay.redirect").is_none());
        assert!(xattr(&path, "user.overlay.metacopy").is_none());
    });
}

#[test]
fn archives_that_two_parsers_could_read_differently_are_refused() {
    both(|new| {
        let smuggled = tar().file("hidden", b"").0;
        let cases: Vec<(&str, Tar, &str)> = vec![
            ("size twice", tar().pax(&[("size", b"1"), ("size", b"2")]).file("f", b"x"), "\"size\" twice"),
            ("malformed size", tar().pax(&[("size", b"0x1")]).file("f", b"x"), "malformed size \"0x1\""),
            ("size of a directory", tar().pax(&[("size", b"512")]).dir("d/"), "announces bytes"),
            (
                "global size",
                tar().entry(EntryType::XGlobalHeader, "g", "", b"10 size=1\n"),
                "global PAX header",
            ),
            (
                "two headers",
                tar().pax(&[("uid", b"1")]).pax(&[("gid", b"1")]).file("f", b""),
                "two PAX headers",
            ),
            ("header of nothing", tar().pax(&[("uid", b"1")]), "describes an entry that is missing"),
            ("lone zero block", Tar([&[0; 512][..], &smuggled].concat()), "a lone block of zeros"),
            ("other type", tar().entry(EntryType::new(b'M'), "f", "", b""), "an entry of type 'M'"),
        ];
        for (name, layer, expected) in cases {
            let said = new().refused(&layer);
            assert!(said.contains(expected), "{name}: {said}");
        }
        let mut broken = tar().file("f", b"");
        broken.0[0] ^= 1;
        assert!(new().refused(&broken).ends_with("a header of its archive has a wrong checksum"));
    });
}

#[test]
fn the_size_of_pax_goes_before_that_of_the_header() {
    both(|new| {
        let scratch = new();
        let layer = tar().pax(&[("size", b"3")]).raw(b"abc", |h| {
            h.set_size(0);
            h.as_old_mut().name[..1].copy_from_slice(b"f");
        });
        assert_eq!(text(&scratch.layer(&layer.file("g", b"g")).unwrap().join("f")), "abc");
    });
}

#[test]
fn each_limit_is_named_by_its_error() {
    both(|new| {
        let scratch = new();
        let layer = tar().dir("d/").file("d/f", &[0; 4096]).file("d/g", b"");
        scratch.import(&[layer.end()]).unwrap();
        let image = scratch.store.image("image").unwrap();
        let usual = Limits::default();
        for (limits, expected) in [
            (Limits { entries: 2, ..usual }, "its number of entries is over the limit of 2"),
            (Limits { bytes: 2048, ..usual }, "over the limit of 2048 bytes"),
            (Limits { header: 100, ..usual }, "the header of an entry is over the limit of 100 bytes"),
            (Limits { names: 4, ..usual }, "the names of its entries is over the limit of 4 bytes"),
        ] {
            let options = Options { limits, ..scratch.unpacking };
            let error = unpack(&scratch.store, &image, &options).unwrap_err();
            assert_eq!(error.kind(), Kind::Limit);
            assert!(error.to_string().trim_end().contains(expected), "{error}");
            scratch.assert_clean();
        }
    });
}

#[test]
fn a_path_ends_at_4096_bytes_with_the_links_that_it_leads_through() {
    both(|new| {
        let long = |length: usize| [&b"d/".repeat(length / 2)[..], &[b'f'; 2][..length % 2 + 1]].concat();
        let named = |path: &[u8]| tar().pax(&[("path", path)]).file("short", b"");
        new().layer(&named(&long(4094))).unwrap();
        assert!(new().refused(&named(&long(4096))).contains("its name is longer than 4096 bytes"));
        let through = |length: usize| {
            let target = b"d/".repeat(length);
            tar()
                .pax(&[("linkpath", &target)])
                .link("l", "short")
                .file(&format!("l/{}", "e/".repeat(40)), b"")
        };
        let said = new().refused(&through(2020));
        assert!(said.contains("… is longer than 4096 bytes"), "{said}");
    });
}

#[test]
fn a_sparse_bomb_meets_the_limit() {
    both(|new| {
        let records: [(&str, &[u8]); 2] =
            [("GNU.sparse.size", b"9000000000000000000"), ("GNU.sparse.map", b"0,1")];
        let said = new().refused(&tar().pax(&records).file("f", b"x"));
        assert!(said.contains("the size of its files is over the limit"), "{said}");
    });
}

#[test]
fn opaque_marks_without_number_take_linear_time() {
    both(|new| {
        let scratch = new();
        let mut layer = tar().dir("d/");
        for i in 0..2000 {
            layer = layer.file(&format!("d/{i}"), b"");
        }
        for _ in 0..20_000 {
            layer = layer.file("d/.wh..wh..opq", b"");
        }
        let start = std::time::Instant::now();
        scratch.layer(&layer).unwrap();
        assert!(start.elapsed().as_secs() < 5, "{:?}", start.elapsed());
    });
}

#[test]
fn a_truncated_gzip_stream_says_so_and_leaves_nothing() {
    both(|new| {
        use std::io::Write;
        let plain = tar().file("f", &[7; 100_000]).end();
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(&plain).unwrap();
        let mut blob = encoder.finish().unwrap();
        let whole = blob.clone();
        blob.truncate(blob.len() / 2);
        let trailing = [&whole[..], b"trailing junk"].concat();
        for (blob, expected) in
            [(blob, "its gzip stream is truncated"), (trailing, "its gzip stream is malformed")]
        {
            let scratch = new();
            scratch.import_blobs(&[(blob, Digest::of(&plain))]).unwrap();
            let error = scratch.unpack_again().unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
            scratch.assert_clean();
        }
    });
}

#[test]
fn several_gzip_members_and_zstd_frames_are_one_layer() {
    both(|new| {
        use std::io::Write;
        let plain = tar().file("f", b"hello").end();
        let halves = plain.split_at(700);
        let gzip = |bytes: &[u8]| {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(bytes).unwrap();
            encoder.finish().unwrap()
        };
        let members = [gzip(halves.0), gzip(halves.1)].concat();
        let frame = |bytes: &[u8]| zstd::encode_all(bytes, 1).unwrap();
        let frames = [frame(halves.0), frame(halves.1)].concat();
        for blob in [members, frames] {
            let scratch = new();
            scratch.import_blobs(&[(blob, Digest::of(&plain))]).unwrap();
            scratch.unpack_again().unwrap();
            assert_eq!(text(&scratch.layer_path(0).join("f")), "hello");
        }
    });
}

#[test]
fn a_blob_that_was_changed_in_the_store_is_the_reason_even_where_it_no_longer_parses() {
    both(|new| {
        let scratch = new();
        let mut layer = tar().file("f", b"hello").end();
        scratch.import(&[layer.clone()]).unwrap();
        let digest = Digest::of(&layer);
        layer[3] = 0xff;
        fs::write(scratch.store.path().join("blobs/sha256").join(digest.hex()), &layer).unwrap();
        let image = scratch.store.image("image").unwrap();
        let error = scratch.unpack_again().unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt);
        assert!(error.to_string().contains("should hold these bytes, but holds those of"), "{error}");
        scratch.assert_clean();
        assert_eq!(scratch.store.verify(&image).len(), 1);
    });
}

#[test]
fn a_wrong_diff_id_is_refused() {
    both(|new| {
        let scratch = new();
        let layer = tar().file("f", b"").end();
        scratch.import_blobs(&[(layer, Digest::of(b"other"))]).unwrap();
        let error = scratch.unpack_again().unwrap_err();
        assert!(error.to_string().contains("its diff ID should be"), "{error}");
        scratch.assert_clean();
    });
}

#[test]
fn what_a_killed_process_left_is_removed_by_the_next() {
    both(|new| {
        let scratch = new();
        fs::create_dir_all(scratch.store.path().join("layers/.new-1-0/abc/d")).unwrap();
        scratch.layer(&tar().dir("d/")).unwrap();
        assert_eq!(fs::read_dir(scratch.store.path().join("layers")).unwrap().count(), 1);
    });
}

#[test]
fn processes_that_want_the_same_layers_at_once_unpack_them_once() {
    both(|new| {
        let scratch = new();
        let layers: Vec<Vec<u8>> = (0..4).map(|i| tar().file(&format!("f{i}"), &[i; 50_000]).end()).collect();
        scratch.import(&layers).unwrap();
        let counts: Vec<usize> = std::thread::scope(|scope| {
            let work = || {
                let store = crate::store::Store::open(scratch.store.path()).unwrap();
                unpack(&store, &store.image("image").unwrap(), &scratch.unpacking).unwrap()
            };
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(work)).collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        assert_eq!(counts.iter().sum::<usize>(), 4);
    });
}
