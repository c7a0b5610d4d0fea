//! Docker archives: what `docker save` writes. They become OCI manifests; their blobs stay as they are.

use oci_spec::image::{
    Descriptor, ImageConfiguration, ImageManifest, ImageManifestBuilder, MediaType, SCHEMA_VERSION,
};
use serde::Deserialize;

use super::archive::Files;
use super::{Found, Options, check_pin, is_wanted};
use crate::digest::Digest;
use crate::error::{Context, Error, Kind, Result};
use crate::image::parse;
use crate::stage::{Blob, Stage};
use crate::unpack::stream::Compression;

/// An image of `manifest.json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Image {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

/// Takes the images that a `manifest.json` lists, each once for each of its tags.
pub(crate) fn take_images(
    stage: &mut Stage<'_>,
    manifest: &[u8],
    files: &Files,
    options: &Options,
) -> Result<Vec<Found>> {
    let images: Vec<Image> = parse(manifest, "manifest.json")?;
    let mut found = Vec::new();
    for image in images {
        let tags: Vec<Option<String>> = match image.repo_tags.clone().unwrap_or_default() {
            tags if tags.is_empty() => vec![None],
            tags => tags.into_iter().map(Some).collect(),
        };
        let mut tags: Vec<Option<String>> =
            tags.into_iter().filter(|tag| is_wanted(options, tag.as_deref())).collect();
        if options.name.is_some() {
            tags.truncate(1);
        }
        if !tags.is_empty() {
            let descriptor =
                take_image(stage, files, &image).context(|| format!("image {:?}", image.config))?;
            if options.name.is_none() {
                tags.iter().flatten().try_for_each(|tag| check_pin(tag, &[descriptor.digest().as_ref()]))?;
            }
            found.extend(tags.into_iter().map(|tag| (tag, descriptor.clone())));
        }
    }
    Ok(found)
}

fn take_image(stage: &mut Stage<'_>, files: &Files, image: &Image) -> Result<Descriptor> {
    let config = file(files, &image.config)?;
    check_name(&image.config, config)?;
    let document: ImageConfiguration = parse(&stage.document(&config.digest)?, "the image config")?;
    let (diff_ids, names) = (document.rootfs().diff_ids(), image.layers.clone().unwrap_or_default());
    if diff_ids.len() != names.len() {
        let why = format!(
            "manifest.json has {} layers, and the config has diff IDs for {}",
            names.len(),
            diff_ids.len()
        );
        return Err(Error::new(Kind::Malformed, why));
    }
    stage.take(&config.digest, config.size)?;
    let mut layers = Vec::new();
    for (name, diff_id) in names.iter().zip(diff_ids) {
        let blob = file(files, name)?;
        let media_type = layer_type(stage, blob, &diff_id.parse()?).context(|| format!("layer {name:?}"))?;
        stage.take(&blob.digest, blob.size)?;
        layers.push(descriptor(media_type, blob)?);
    }
    let config = descriptor(MediaType::ImageConfig, config)?;
    let manifest = manifest(config, layers)?;
    // What the store could not read back would keep it from knowing what is in use.
    crate::image::layers(&manifest, &document)?;
    let text = serde_json::to_vec(&manifest)
        .map_err(|e| Error::new(Kind::Malformed, format!("writing the manifest: {e}")))?;
    let blob = stage.add(&text[..])?;
    stage.take(&blob.digest, blob.size)?;
    descriptor(MediaType::ImageManifest, &blob)
}

fn file<'a>(files: &'a Files, name: &str) -> Result<&'a Blob> {
    files.get(name).ok_or_else(|| Error::new(Kind::NotFound, format!("{name:?} is missing from it")))
}

/// The digest in the name of a file: `HEX`, `sha256:HEX` or `HEX.json`.
pub(super) fn named_digest(name: &str) -> Option<&str> {
    let last = name.rsplit('/').next().unwrap_or_default();
    let stem = last.strip_suffix(".json").unwrap_or(last);
    let hex = stem.strip_prefix("sha256:").unwrap_or(stem);
    (hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit())).then_some(hex)
}

/// Where a config's file is named after a digest, as Docker and go-containerregistry do, that has to be its own.
fn check_name(name: &str, config: &Blob) -> Result<()> {
    if named_digest(name).is_none_or(|hex| hex == config.digest.hex()) {
        return Ok(());
    }
    let why = format!("the config {name:?} should have the digest in its name, but has {}", config.digest);
    Err(Error::new(Kind::Corrupt, why))
}

/// How a layer is compressed: Docker writes plain archives, others may not. A plain one is its own diff ID.
fn layer_type(stage: &Stage<'_>, blob: &Blob, diff_id: &Digest) -> Result<MediaType> {
    match Compression::of(&stage.start(&blob.digest, Compression::START)?) {
        Compression::Gzip => Ok(MediaType::ImageLayerGzip),
        Compression::Zstd => Ok(MediaType::ImageLayerZstd),
        Compression::Other(name) => Err(Compression::unknown(name)),
        Compression::None if blob.digest == *diff_id => Ok(MediaType::ImageLayer),
        Compression::None => {
            let why = format!("its diff ID should be {diff_id}, but is {}", blob.digest);
            Err(Error::new(Kind::Corrupt, why))
        }
    }
}

fn descriptor(media_type: MediaType, blob: &Blob) -> Result<Descriptor> {
    let digest = oci_spec::image::Digest::try_from(blob.digest.to_string());
    let digest = digest.map_err(|e| Error::new(Kind::Malformed, e.to_string()))?;
    Ok(Descriptor::new(media_type, blob.size, digest))
}

fn manifest(config: Descriptor, layers: Vec<Descriptor>) -> Result<ImageManifest> {
    ImageManifestBuilder::default()
        .schema_version(SCHEMA_VERSION)
        .media_type(MediaType::ImageManifest)
        .config(config)
        .layers(layers)
        .build()
        .map_err(|e| Error::new(Kind::Malformed, format!("making the manifest: {e}")))
}
