//! Registries: pulled from and pushed to, those that keep to the specification and those that do not.

#![expect(clippy::unwrap_used, reason = "a helper of the tests fails as a test does")]

mod faults;
mod kills;
mod pull;
mod real;
mod refusals;
mod secrets;

use std::path::Path;

use coracle_fixtures::image::Image;
use coracle_fixtures::layer::{Compression, Entry, Layer, digest};
use coracle_tests::image::Store;
use coracle_tests::registry::Registry;
use coracle_tests::{Host, Outcome};

/// An image of three layers of some hundred kilobytes that don't compress.
fn image() -> Image {
    Image::new("coracle/three:latest", (1..=3).map(layer).collect())
}

/// A layer with one file, named and filled after a number.
fn layer(number: u64) -> Layer {
    let mut state = number;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    let content: Vec<u8> = (0..300_000).map(|_| next()).collect();
    Layer::new(&[Entry::directory("d"), Entry::file(format!("d/{number}"), content)], Compression::Gzip)
}

fn can_run(host: &Host) -> bool {
    host.needs_coracle("an image store")
}

/// Pulls an image from a registry without TLS.
fn pull(store: &Store<'_>, registry: &Registry, name: &str, options: &[&str]) -> Outcome {
    let (host, reference) = (registry.host(), registry.image(name));
    store.call(&[&["pull", &reference, "--plain-http", &host][..], options].concat())
}

/// Asserts that an image is in the store, whole and unpacked, and that its files are its own.
#[track_caller]
fn assert_whole(store: &Store<'_>, reference: &str, image: &Image) {
    store.call(&["verify", reference]).succeeds();
    let shown = store.call(&["inspect", reference]).succeeds().json();
    let layers = shown["layers"].as_array().unwrap();
    assert_eq!(layers.len(), image.layers.len());
    for (shown, layer) in layers.iter().zip(&image.layers) {
        let blob =
            std::fs::read(store.directory().join(coracle_fixtures::image::blob_path(&layer.blob))).unwrap();
        assert_eq!(digest(&blob), digest(&layer.blob));
        assert!(Path::new(shown["path"].as_str().unwrap()).is_dir());
    }
    assert_eq!(partial(store), Vec::<(String, u64)>::new());
}

/// Names and lengths of what has come partly.
fn partial(store: &Store<'_>) -> Vec<(String, u64)> {
    let Ok(entries) = std::fs::read_dir(store.directory().join("partial")) else { return Vec::new() };
    let of = |entry: std::fs::DirEntry| {
        (entry.file_name().into_string().unwrap(), entry.metadata().unwrap().len())
    };
    entries.map(|entry| of(entry.unwrap())).collect()
}
