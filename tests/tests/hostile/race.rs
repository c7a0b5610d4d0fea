//! I-03: who swaps directories while layers are unpacked, and who unpacks the same ones at once.

use std::fs;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use coracle_fixtures::hostile::CANARY;
use coracle_fixtures::image::Image;
use coracle_fixtures::layer::{Compression, Entry, Layer};
use coracle_tests::image::{Store, snapshotters};
use coracle_tests::privileged;

use super::{NAME, listing, mounted};

fn many_files() -> Layer {
    let file = |n: u32| Entry::file(format!("d/{n}"), vec![b'x'; 5000]);
    let entries: Vec<Entry> = std::iter::once(Entry::directory("d")).chain((0..2000).map(file)).collect();
    Layer::new(&entries, Compression::Plain)
}

/// Puts a link to the canary in the place of the directory `d` of whatever layer is being unpacked.
fn swap(layers: &std::path::Path) -> bool {
    let entries = |path: &std::path::Path| fs::read_dir(path).into_iter().flatten().flatten();
    let batches =
        entries(layers).filter(|entry| entry.file_name().to_string_lossy().starts_with(".coracle-new-"));
    let mut swapped = false;
    for layer in batches.flat_map(|batch| entries(&batch.path()).collect::<Vec<_>>()) {
        let d = layer.path().join("d");
        if fs::rename(&d, layer.path().join("away")).is_ok() {
            swapped |= std::os::unix::fs::symlink(CANARY, &d).is_ok();
        }
    }
    swapped
}

/// Tries to, until it has or the unpacking is done.
fn swap_until(layers: &std::path::Path, done: &AtomicBool) -> bool {
    while !done.load(Ordering::Relaxed) {
        if swap(layers) {
            return true;
        }
    }
    false
}

#[test]
fn i_03_who_swaps_a_directory_for_a_link_while_it_is_unpacked_gets_nothing_written_elsewhere() {
    privileged(|host| {
        if !host.needs_coracle("an image store") {
            return;
        }
        let (before, mut swaps) = (host.snapshot(), 0);
        for _ in 0..10 {
            let (store, done) = (Store::new(host), AtomicBool::new(false));
            store.import(&Image::new(NAME, vec![many_files()]));
            let layers = store.directory().join("layers");
            let swapped = thread::scope(|scope| {
                let (layers, done) = (&layers, &done);
                let swapper = scope.spawn(move || swap_until(layers, done));
                // It may fail or not: root's own store is root's to break.
                store.call(&["unpack", NAME]);
                done.store(true, Ordering::Relaxed);
                swapper.join().unwrap()
            });
            swaps += u32::from(swapped);
            assert_eq!(host.difference(&before), None);
        }
        assert!(swaps > 0, "nothing was ever swapped in time");
    });
}

#[test]
fn i_03_two_images_that_share_layers_are_unpacked_at_once() {
    privileged(|host| {
        if !host.needs_coracle("an image store") {
            return;
        }
        for snapshotter in snapshotters(host) {
            let store = Store::of(host, snapshotter);
            let own = |n: u32| Layer::new(&[Entry::file(format!("own-{n}"), "")], Compression::Plain);
            for n in [0, 1] {
                store.import(&Image::new(&format!("image:{n}"), vec![many_files(), own(n)]));
            }
            let calls = ["image:0", "image:1", "image:0", "image:1"].map(|name| {
                let mut command = Command::new(host.image_program());
                command.arg("--store").arg(store.directory()).args([
                    "unpack",
                    "--snapshotter",
                    snapshotter,
                    name,
                ]);
                command.stdout(Stdio::null()).spawn().unwrap()
            });
            for mut child in calls {
                assert!(child.wait().unwrap().success());
            }
            let layers =
                listing(&store).iter().filter(|path| path.parent() == Some("layers".as_ref())).count();
            assert_eq!(layers, 3);
            store.call(&["tag", "image:1", NAME]).succeeds();
            mounted(&store, |root| assert_eq!(fs::read_dir(root.join("d")).unwrap().count(), 2000));
        }
    });
}
