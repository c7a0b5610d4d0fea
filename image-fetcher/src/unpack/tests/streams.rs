//! Streams, digests, and who else wants the same layers.

use super::*;
use crate::unpack::batch::{Batch, sweep};

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
        fs::create_dir_all(scratch.store.path().join("layers/.coracle-new-1-0/abc/d")).unwrap();
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

#[test]
fn a_temporary_directory_that_another_process_sweeps_away_is_made_again() {
    let scratch = Scratch::new();
    let layers = scratch.store.layers();
    let over = std::sync::atomic::AtomicBool::new(false);
    let relaxed = std::sync::atomic::Ordering::Relaxed;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(relaxed) {
                let _ = sweep(layers);
            }
        });
        for _ in 0..2000 {
            let begun = Batch::begin(layers, (scratch.store.root(), &scratch.store), Limits::default());
            let made = begun.and_then(|batch| {
                file::mkdir(batch.directory(), "d", 0o700)?;
                batch.remove()
            });
            over.store(made.is_err(), relaxed);
            made.unwrap();
        }
        over.store(true, relaxed);
    });
}
