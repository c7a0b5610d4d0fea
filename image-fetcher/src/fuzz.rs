//! Doors to the parsers of what comes from outside, for `make fuzz`: whatever the bytes, they return.

use std::fs::File;
use std::time::SystemTime;

use coracle_sys::memfd;
use oci_spec::image::{Descriptor, ImageConfiguration, ImageIndex, MediaType};

use crate::digest::Digest;
use crate::image::{Image, parse, parse_manifest};
use crate::reference::Reference;
use crate::registry::parsers;
use crate::store::Entry;
use crate::unpack::Limits;

/// The archive of a layer, made into an EROFS image.
pub fn layer(bytes: &[u8]) {
    let limits =
        Limits { entries: 10_000, bytes: 16 << 20, header: 64 << 10, names: 1 << 20, ..Limits::default() };
    if let Ok(file) = memfd::with_content("layer", b"") {
        // What is wrong with it is not the question.
        let _ = crate::unpack::make_image(bytes, File::from(file), &limits);
    }
}

/// A manifest and, behind a NUL, a config; and the same bytes as an index.
pub fn manifest(bytes: &[u8]) {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    let (manifest, config) = (&bytes[..end], bytes.get(end + 1..).unwrap_or_default());
    let _ = parse::<ImageIndex>(manifest, "the index")
        .map(|index| crate::platform::Platform::here().choose(&index).is_ok());
    let Ok(manifest) = parse_manifest(manifest, &MediaType::ImageManifest) else { return };
    let Ok(config) = parse::<ImageConfiguration>(config, "the image config") else { return };
    let Ok(digest) = oci_spec::image::Digest::try_from(Digest::of(bytes).to_string()) else { return };
    let entry = Entry {
        reference: "fuzz".to_owned(),
        descriptor: Descriptor::new(MediaType::ImageManifest, bytes.len() as u64, digest),
    };
    if let Ok(image) = Image::assemble(&entry, manifest, config) {
        assert!(image.blobs().count() >= image.layers.len());
    }
}

/// What a registry says in headers, and names of images, a line each.
pub fn headers(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    for line in text.lines() {
        let _ = parsers::parse_challenge(std::iter::once(line));
        let _ = parsers::parse_retry(line, SystemTime::UNIX_EPOCH);
        if let Some((first, last, _)) = parsers::parse_range(line) {
            assert!(first <= last);
        }
        if let Ok(reference) = line.parse::<Reference>() {
            let shown = reference.to_string();
            assert_eq!(shown.parse::<Reference>().map(|again| again.to_string()).ok(), Some(shown));
        }
    }
}
