//! I-05, I-07, I-09, I-17: streams that are cut, changed, or without end.

use std::time::{Duration, Instant};

use coracle_fixtures::layer::{Compression, Entry, Layer, tar};
use coracle_tests::image::{Store, snapshotters};
use coracle_tests::privileged;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::{try_all, unpack};

/// Bytes that don't compress.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..length).map(|_| next()).collect()
}

#[test]
fn i_05_sizes_that_readers_could_take_differently_smuggle_nothing_in() {
    privileged(|host| try_all(host, "I-05"));
}

#[test]
fn i_06_headers_without_end_meet_a_limit() {
    privileged(|host| try_all(host, "I-06"));
}

#[test]
fn i_07_cut_changed_and_empty_streams_of_every_codec_are_refused_in_time_and_leave_nothing() {
    privileged(|host| {
        if !host.needs_coracle("an image store") {
            return;
        }
        let stream = tar(&[Entry::file("f", noise(40_000))]);
        for codec in [Compression::Plain, Compression::Gzip, Compression::Zstd] {
            let whole = Layer::from_tar(&stream, codec);
            let mut flipped = whole.blob.clone();
            flipped[20_000] ^= 1;
            let mut blobs: Vec<Vec<u8>> =
                (0..whole.blob.len()).step_by(4096).map(|at| whole.blob[..at].to_vec()).collect();
            blobs.extend([flipped, [&whole.blob[..], b"junk behind it"].concat()]);
            blobs.push([&whole.blob[..], &whole.blob].concat());
            let store = Store::new(host);
            for blob in blobs {
                let begin = Instant::now();
                let run = unpack(&store, vec![Layer { blob, ..whole.clone() }]);
                assert_eq!(run.code, 1, "{codec:?} {run:?}");
                assert!(begin.elapsed() < Duration::from_secs(10), "{codec:?} {run:?}");
                let left = std::fs::read_dir(store.directory().join("layers")).unwrap().count();
                assert_eq!(left, 0, "{codec:?} {run:?}");
            }
        }
    });
}

#[test]
fn i_09_opaque_marks_without_number_in_a_large_directory_take_linear_time() {
    privileged(|host| {
        if !host.needs_coracle("an image store") {
            return;
        }
        let file = |n: u32| Entry::file(format!("d/{n}"), "");
        let mark = || Entry::file("d/.wh..wh..opq", "");
        let entries: Vec<Entry> = std::iter::once(Entry::directory("d"))
            .chain((0..20_000).map(file))
            .chain(std::iter::repeat_with(mark).take(20_000))
            .collect();
        let layer = Layer::new(&entries, Compression::Gzip);
        for snapshotter in snapshotters(host) {
            let (store, begin) = (Store::of(host, snapshotter), Instant::now());
            unpack(&store, vec![layer.clone()]).succeeds();
            assert!(begin.elapsed() < Duration::from_secs(20), "{snapshotter}: {:?}", begin.elapsed());
        }
    });
}

#[test]
fn i_17_bombs_meet_a_limit() {
    privileged(|host| try_all(host, "I-17"));
}

#[test]
fn i_17_a_full_disk_is_an_error_and_gets_its_space_back_wherever_it_meets_the_unpacking() {
    privileged(|host| {
        if !host.needs_coracle("an image store") {
            return;
        }
        let files: Vec<Entry> = (0..40).map(|n| Entry::file(format!("f{n}"), noise(50_000))).collect();
        let layer = Layer::new(&files, Compression::Gzip);
        let mut full = 0;
        // The blob takes 2 MB, what it is unpacked into takes as much again.
        for kilobytes in (200..5000).step_by(400) {
            let disk = host.directory();
            let size = format!("size={kilobytes}k");
            mount(Some("tmpfs"), &disk, Some("tmpfs"), MsFlags::empty(), Some(size.as_str())).unwrap();
            let store = Store::at(host, &disk.join("store"));
            let run = unpack(&store, vec![layer.clone()]);
            if run.code != 0 {
                full += 1;
                assert!(run.stderr.contains("no space left on device"), "{run:?}");
                let layers = std::fs::read_dir(store.directory().join("layers")).unwrap().count();
                assert_eq!(layers, 0, "{run:?}");
                store.call(&["rm", super::NAME]);
                let used = rustix::fs::statvfs(&disk).map(|s| (s.f_blocks - s.f_bfree) * s.f_frsize).unwrap();
                assert!(used < 100_000, "{used} bytes are still taken with {kilobytes} kB");
            }
            umount2(&disk, MntFlags::empty()).unwrap();
        }
        assert!((5..12).contains(&full), "{full}");
    });
}
