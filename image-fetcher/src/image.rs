//! An image: its manifest, its config, and its layers with their names.

use oci_spec::image::{ImageConfiguration, ImageManifest, MediaType};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::digest::Digest;
use crate::error::{Context, Error, Kind, Result};
use crate::store::{Entry, Store};

/// No image may have more layers: twice what overlayfs mounts (500), and Docker stops at 127.
const LAYER_LIMIT: usize = 1000;

/// An image of the store, its documents verified.
#[derive(Debug, Clone)]
pub struct Image {
    /// Its name in the store.
    pub reference: String,
    /// The digest of its manifest.
    pub digest: Digest,
    /// The manifest.
    pub manifest: ImageManifest,
    /// The config.
    pub config: ImageConfiguration,
    /// The layers, bottom first.
    pub layers: Vec<Layer>,
}

/// A layer: a blob, and what it is called once unpacked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// The digest of the blob as it is stored, mostly compressed.
    pub digest: Digest,
    /// The size of the blob in bytes.
    pub size: u64,
    /// The digest of the uncompressed tar archive.
    pub diff_id: Digest,
    /// The digest of this layer's diff ID on top of all those below (image-spec, config.md).
    pub chain_id: Digest,
}

impl Image {
    pub(crate) fn read(store: &Store, entry: Entry) -> Result<Self> {
        let reading = || format!("reading image {:?}", entry.reference);
        let digest = Digest::try_from(entry.descriptor.digest()).context(reading)?;
        let manifest = store
            .document(&entry.descriptor)
            .and_then(|bytes| parse_manifest(&bytes, entry.descriptor.media_type()))
            .context(reading)?;
        let config = store
            .document(manifest.config())
            .and_then(|bytes| parse::<ImageConfiguration>(&bytes, "the image config"))
            .context(reading)?;
        let layers = layers(&manifest, &config).context(reading)?;
        Ok(Self { reference: entry.reference, digest, manifest, config, layers })
    }

    /// An image of documents that have been verified.
    #[cfg(feature = "unpack")]
    pub(crate) fn assemble(
        entry: &Entry,
        manifest: ImageManifest,
        config: ImageConfiguration,
    ) -> Result<Self> {
        let digest = Digest::try_from(entry.descriptor.digest())?;
        let layers = layers(&manifest, &config)?;
        Ok(Self { reference: entry.reference.clone(), digest, manifest, config, layers })
    }

    /// The digests of all blobs: manifest, config, layers.
    pub fn blobs(&self) -> impl Iterator<Item = Digest> {
        self.documents().chain(self.layers.iter().map(|l| l.digest.clone()))
    }

    /// Those of its documents: manifest and config.
    pub(crate) fn documents(&self) -> impl Iterator<Item = Digest> {
        let config = Digest::try_from(self.manifest.config().digest()).ok();
        std::iter::once(self.digest.clone()).chain(config)
    }

    /// The size of all blobs in bytes, as they are stored.
    pub fn size(&self) -> u64 {
        self.layers.iter().map(|l| l.size).fold(self.manifest.config().size(), u64::saturating_add)
    }
}

/// Whether a document of this type lists manifests.
pub(crate) fn is_index(media_type: &MediaType) -> bool {
    let text = media_type.to_string();
    text.ends_with(".image.index.v1+json") || text.ends_with(".manifest.list.v2+json")
}

/// Whether a document of this type is the manifest of one image, or of what registries keep as one.
pub(crate) fn is_manifest(media_type: &MediaType) -> bool {
    matches!(
        media_type.to_string().as_str(),
        "application/vnd.oci.image.manifest.v1+json" | "application/vnd.docker.distribution.manifest.v2+json"
    )
}

/// How deep indexes may be nested.
const DEPTH_LIMIT: u32 = 4;

/// Refuses an index that is `depth` others deep.
pub(crate) fn check_depth(depth: u32) -> Result<()> {
    let why = || format!("indexes are nested deeper than {DEPTH_LIMIT}");
    if depth < DEPTH_LIMIT { Ok(()) } else { Err(Error::new(Kind::Limit, why())) }
}

/// The layers that manifest and config describe together.
///
/// # Errors
/// Where the two disagree in number, or a media type is not a layer's.
pub(crate) fn layers(manifest: &ImageManifest, config: &ImageConfiguration) -> Result<Vec<Layer>> {
    let (blobs, diff_ids) = (manifest.layers(), config.rootfs().diff_ids());
    if blobs.len() != diff_ids.len() {
        let why = format!(
            "the manifest has {} layers, and the config has diff IDs for {}",
            blobs.len(),
            diff_ids.len()
        );
        return Err(Error::new(Kind::Malformed, why));
    }
    if blobs.len() > LAYER_LIMIT {
        let why = format!("{} layers are over the limit of {LAYER_LIMIT}", blobs.len());
        return Err(Error::new(Kind::Limit, why));
    }
    let mut layers: Vec<Layer> = Vec::with_capacity(blobs.len());
    for (blob, diff_id) in blobs.iter().zip(diff_ids) {
        check_layer_type(blob.media_type())?;
        let diff_id: Digest = diff_id.parse()?;
        let chain_id = layers.last().map_or_else(
            || diff_id.clone(),
            |below| Digest::of(format!("{} {diff_id}", below.chain_id).as_bytes()),
        );
        let digest = Digest::try_from(blob.digest())?;
        if layers.iter().any(|other| other.digest == digest && other.size != blob.size()) {
            return Err(Error::new(Kind::Malformed, format!("the manifest gives {digest} two sizes")));
        }
        layers.push(Layer { digest, size: blob.size(), diff_id, chain_id });
    }
    Ok(layers)
}

/// Refuses what is no file system layer, such as an encrypted one. How a layer is compressed is seen from its
/// first bytes: registries hold images whose media types are wrong about it.
fn check_layer_type(media_type: &MediaType) -> Result<()> {
    let text = media_type.to_string();
    let tail =
        ["application/vnd.oci.image.layer.v1.", "application/vnd.oci.image.layer.nondistributable.v1."]
            .iter()
            .chain(&[
                "application/vnd.docker.image.rootfs.diff.",
                "application/vnd.docker.image.rootfs.foreign.diff.",
            ])
            .find_map(|prefix| text.strip_prefix(prefix));
    match tail {
        Some("tar" | "tar+gzip" | "tar+zstd" | "tar.gzip" | "tar.zstd") => Ok(()),
        _ => Err(Error::new(
            Kind::Unsupported,
            format!("media type {text:?} is no layer that can be unpacked"),
        )),
    }
}

/// Parses a JSON document.
pub(crate) fn parse<T: DeserializeOwned>(bytes: &[u8], what: &str) -> Result<T> {
    serde_json::from_slice(bytes)
        .map_err(|e| Error::new(Kind::Malformed, format!("{what} is malformed: {e}")))
}

/// Refuses a manifest or index that could be read in two ways (CVE-2021-41190), or that says it is something
/// else than the `media_type` of its descriptor.
///
/// # Errors
/// [`Kind::Malformed`].
pub(crate) fn check_document(bytes: &[u8], media_type: &MediaType) -> Result<()> {
    let value: Value = parse(bytes, "the manifest")?;
    let has = |key: &str| value.get(key).is_some();
    if value.get("schemaVersion").and_then(Value::as_u64) == Some(1) {
        let why =
            "the manifest is of Docker's schema 1, in which an image's layers have no digests of their own";
        return Err(Error::new(Kind::Unsupported, why).hint("push the image again with a Docker since 1.10"));
    }
    if has("manifests") && (has("layers") || has("config")) || has("fsLayers") {
        let why = "the manifest is ambiguous: it has fields of a manifest and of an index";
        return Err(Error::new(Kind::Malformed, why));
    }
    if value.get("schemaVersion").and_then(Value::as_u64) != Some(2) {
        return Err(Error::new(Kind::Malformed, "the manifest's schemaVersion is not 2"));
    }
    let outer = media_type.to_string();
    match value.get("mediaType").and_then(Value::as_str) {
        Some(inner) if inner != outer => {
            let why = format!("the manifest says it is {inner:?}, but its descriptor says {outer:?}");
            Err(Error::new(Kind::Malformed, why))
        }
        _ => Ok(()),
    }
}

/// Parses the manifest of one image.
///
/// # Errors
/// As [`check_document`], and [`Kind::Unsupported`] where it is no image.
pub(crate) fn parse_manifest(bytes: &[u8], media_type: &MediaType) -> Result<ImageManifest> {
    let manifest = parse_any_manifest(bytes, media_type)?;
    let config = manifest.config().media_type().to_string();
    if IMAGE_CONFIGS.contains(&config.as_str()) {
        return Ok(manifest);
    }
    Err(Error::new(Kind::Unsupported, format!("with a config of media type {config:?} it is no image")))
}

/// What the config of an image says it is; the last is said by some images of old registries.
const IMAGE_CONFIGS: [&str; 3] = [
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
    "application/octet-stream",
];

/// Parses a manifest of an image, or of an artifact that is kept as one.
///
/// # Errors
/// As [`parse_manifest`].
pub(crate) fn parse_any_manifest(bytes: &[u8], media_type: &MediaType) -> Result<ImageManifest> {
    check_document(bytes, media_type)?;
    if is_manifest(media_type) {
        return parse(bytes, "the manifest");
    }
    let other = media_type.to_string();
    Err(Error::new(Kind::Unsupported, format!("media type {other:?} is no image")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "sha256:ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb";

    #[test]
    fn the_chain_id_of_the_bottom_layer_is_its_diff_id_and_grows_as_the_specification_says() {
        let manifest = manifest(2, "application/vnd.oci.image.layer.v1.tar");
        let layers = layers(&manifest, &config(2)).unwrap();
        assert_eq!(layers[0].chain_id, layers[0].diff_id);
        assert_eq!(layers[1].chain_id, Digest::of(format!("{A} {A}").as_bytes()));
    }

    #[test]
    fn a_config_with_fewer_diff_ids_than_layers_is_refused() {
        let error = layers(&manifest(2, "application/vnd.oci.image.layer.v1.tar"), &config(1)).unwrap_err();
        assert_eq!(error.to_string(), "the manifest has 2 layers, and the config has diff IDs for 1");
    }

    #[test]
    fn an_encrypted_layer_is_refused_by_name() {
        let manifest = manifest(1, "application/vnd.oci.image.layer.v1.tar+gzip+encrypted");
        let error = layers(&manifest, &config(1)).unwrap_err();
        assert_eq!(error.kind(), Kind::Unsupported);
    }

    #[test]
    fn a_document_that_is_manifest_and_index_at_once_is_refused() {
        let bytes = br#"{"schemaVersion":2,"manifests":[],"layers":[],"config":{}}"#;
        let error = parse_manifest(bytes, &MediaType::ImageManifest).unwrap_err();
        assert!(error.to_string().contains("ambiguous"), "{error}");
    }

    #[test]
    fn a_document_that_contradicts_its_descriptor_is_refused() {
        let bytes =
            br#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#;
        let error = parse_manifest(bytes, &MediaType::ImageManifest).unwrap_err();
        assert!(error.to_string().contains("but its descriptor says"), "{error}");
    }

    #[test]
    fn an_artifact_is_no_image() {
        let text = manifest_json(0, "").replace("oci.image.config", "cncf.helm.config");
        let error = parse_manifest(text.as_bytes(), &MediaType::ImageManifest).unwrap_err();
        let expected =
            r#"with a config of media type "application/vnd.cncf.helm.config.v1+json" it is no image"#;
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn a_layer_of_two_sizes_is_refused() {
        let text = manifest_json(2, "application/vnd.oci.image.layer.v1.tar").replacen(
            "\"size\":1",
            "\"size\":2",
            1,
        );
        let manifest = parse_manifest(text.as_bytes(), &MediaType::ImageManifest).unwrap();
        let error = layers(&manifest, &config(2)).unwrap_err();
        assert_eq!(error.to_string(), format!("the manifest gives {A} two sizes"));
    }

    #[test]
    fn a_negative_size_is_refused() {
        let text =
            manifest_json(1, "application/vnd.oci.image.layer.v1.tar").replace("\"size\":1", "\"size\":-1");
        assert!(parse_manifest(text.as_bytes(), &MediaType::ImageManifest).is_err());
    }

    fn manifest_json(layers: usize, media_type: &str) -> String {
        let layer = format!(r#"{{"mediaType":"{media_type}","digest":"{A}","size":1}}"#);
        let layers = vec![layer; layers].join(",");
        let config = "application/vnd.oci.image.config.v1+json";
        format!(
            r#"{{"schemaVersion":2,"config":{{"mediaType":"{config}","digest":"{A}","size":2}},"layers":[{layers}]}}"#
        )
    }

    fn manifest(layers: usize, media_type: &str) -> ImageManifest {
        parse_manifest(manifest_json(layers, media_type).as_bytes(), &MediaType::ImageManifest).unwrap()
    }

    fn config(layers: usize) -> ImageConfiguration {
        let ids = vec![format!("{A:?}"); layers].join(",");
        let text = format!(
            r#"{{"architecture":"amd64","os":"linux","rootfs":{{"type":"layers","diff_ids":[{ids}]}}}}"#
        );
        parse(text.as_bytes(), "the config").unwrap()
    }
}
