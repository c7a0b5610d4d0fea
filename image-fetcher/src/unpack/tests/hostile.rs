//! What climbs out, lies or costs too much. The names of the breakouts are containerd's
//! (pkg/archive/tar_test.go, TestBreakouts).

use super::*;

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
                "entry \"h\": it is a hard link to \"etc/passwd\", which is in no layer",
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
fn directories_and_targets_with_the_name_of_a_whiteout_are_refused() {
    both(|new| {
        for (layer, expected) in [
            (tar().file("d/.wh.odd/x", b""), "its parent \"d/.wh.odd\" would have the name of a whiteout"),
            (tar().dir(".wh.odd/e/"), "its parent \".wh.odd\" would have the name of a whiteout"),
            (tar().file(".wh.odd/.wh.x", b""), "its parent \".wh.odd\" would have the name of a whiteout"),
            (
                tar().link("l", ".wh.odd").file("l/x", b""),
                "its parent \".wh.odd\" would have the name of a whiteout",
            ),
            (
                tar().file(".wh..wh.plnk/1.2", b"").hard("f", ".wh..wh.plnk/1.2"),
                "it is a hard link to \".wh..wh.plnk/1.2\", but no file has a name that begins with \".wh.\"",
            ),
        ] {
            let said = new().refused(&layer);
            assert!(said.ends_with(expected), "{said}");
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
fn links_that_lead_up_and_down_a_deep_tree_end_the_unpacking() {
    both(|new| {
        let (deep, way) = ("d/".repeat(1000), "../d/".repeat(500));
        let layer = tar().pax(&[("path", deep.as_bytes())]).dir("short/");
        let layer = layer.pax(&[("linkpath", deep.as_bytes())]).link("s", "short");
        let layer = layer.pax(&[("linkpath", way.as_bytes())]).link("s/way", "short");
        let error = new().refused(&layer.file("s/way/f", b""));
        assert!(error.ends_with("is too far by the links that lead there"), "{error}");
    });
}

/// What is kept in memory counts as it is kept, not as it is written.
#[test]
fn names_through_links_and_attributes_of_directories_count_as_names() {
    both(|new| {
        let deep = "d/".repeat(40);
        let through = (0..50).fold(tar().dir(&deep).link("s", &deep), |t, n| t.file(&format!("s/{n}"), b""));
        let attributes = |name: &str| {
            let record = |t: Tar, n| t.pax(&[(name, &[b'x'; 500])]).dir(&format!("{n}/"));
            (0..10).fold(tar(), record)
        };
        let take = |layer: &Tar| {
            let scratch = new();
            scratch.import(&[layer.end()]).unwrap();
            let limits = Limits { names: 3000, ..Limits::default() };
            let options = Options { limits, ..scratch.unpacking };
            unpack(&scratch.store, &scratch.store.image("image").unwrap(), &options)
        };
        for layer in [through, attributes("SCHILY.xattr.user.x")] {
            let error = take(&layer).unwrap_err();
            assert!(error.to_string().contains("the names of its entries is over the limit"), "{error}");
        }
        take(&attributes("SCHILY.xattr.junk.x")).unwrap();
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
                .file(&format!("l/{}f", "e/".repeat(40)), b"")
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
