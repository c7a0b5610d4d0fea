//! What each entry becomes.

use super::*;

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
fn fifos_have_their_permissions_and_attributes_on_older_kernels_too() {
    let unpack = || {
        // fchmodat2(2) and setxattrat(2) answer ENOSYS, to the threads that unpack, too.
        let [refuse, allow] = [0x5_0026, 0x7fff_0000].map(|answer: u64| 6 | answer << 32);
        let is = |call: u64, (yes, no): (u64, u64)| 0x15 | yes << 16 | no << 24 | call << 32;
        identity::no_new_privileges().unwrap();
        seccomp::load(&[0x20, is(452, (1, 0)), is(463, (0, 1)), refuse, allow], 0).unwrap();
        let scratch = Scratch::new();
        let layer = tar().pax(&[("SCHILY.xattr.trusted.of", b"it")]).raw(b"", |h| {
            h.set_entry_type(EntryType::Fifo);
            h.set_mode(0o4751);
            h.as_old_mut().name[..1].copy_from_slice(b"p");
        });
        let path = scratch.layer(&layer).unwrap().join("p");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o4751);
        let fd = file::open(file::CWD, &path, libc::O_NONBLOCK, 0, file::Resolve::Host).unwrap();
        assert_eq!(archive::xattr(fd.as_fd(), OsStr::new("trusted.of")).unwrap().unwrap(), b"it");
    };
    std::thread::scope(|scope| scope.spawn(unpack).join().unwrap());
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
