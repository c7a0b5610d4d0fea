//! What others keep in the store: it is an image layout, and tools that know layouts put images into it without a name.

use std::collections::BTreeSet;

use oci_spec::image::{Descriptor, ImageIndex};

use super::{Entry, Store, name_of};
use crate::digest::Digest;
use crate::error::{Context, Kind, Result};
use crate::image::{Image, check_depth, check_document, is_index, is_manifest, parse, parse_any_manifest};

/// The names and types of blobs. One that is a document to some may be a mere file to others.
type Reached = BTreeSet<(String, String)>;

/// The images of a store, with their names.
type Images = Vec<(Entry, Image)>;

impl Store {
    /// The images that have a name, and the names of all blobs that anything else in the index leads to: what has no name,
    /// and what is no image.
    ///
    /// # Errors
    /// Where one of them can't be read.
    pub(crate) fn contents(&self) -> Result<(Images, BTreeSet<String>)> {
        let (mut images, mut reached) = (Vec::new(), Reached::new());
        for descriptor in self.index()?.manifests() {
            let Some(name) = name_of(descriptor) else {
                let reading = || format!("reading {}, which has no name in the index", descriptor.digest());
                self.reach(descriptor, 0, &mut reached).context(reading)?;
                continue;
            };
            let entry = Entry { reference: name.clone(), descriptor: descriptor.clone() };
            match Image::read(self, entry.clone()) {
                Err(error) if error.kind() == Kind::Unsupported => {
                    let reading = || format!("reading {name:?}, which is no image");
                    self.reach(descriptor, 0, &mut reached).context(reading)?;
                }
                image => images.push((entry, image?)),
            }
        }
        Ok((images, reached.into_iter().map(|(name, _)| name).collect()))
    }

    fn reach(&self, descriptor: &Descriptor, depth: u32, reached: &mut Reached) -> Result<()> {
        let media_type = descriptor.media_type();
        if !note(descriptor, reached)? {
            return Ok(());
        }
        if is_index(media_type) {
            let bytes = self.document(descriptor)?;
            check_document(&bytes, media_type)?;
            let index: ImageIndex = parse(&bytes, "the index")?;
            check_depth(depth)?;
            // Of what an index lists for several machines, mostly one is kept.
            let is_here = |d: &&Descriptor| Digest::try_from(d.digest()).map_or(true, |d| self.has_blob(&d));
            return index
                .manifests()
                .iter()
                .filter(is_here)
                .try_for_each(|d| self.reach(d, depth + 1, reached));
        }
        if is_manifest(media_type) {
            let manifest = parse_any_manifest(&self.document(descriptor)?, media_type)?;
            let mut blobs = manifest.layers().iter().chain([manifest.config()]);
            return blobs.try_for_each(|blob| note(blob, reached).map(drop));
        }
        Ok(())
    }
}

/// Notes what a descriptor names; false where it was noted before.
fn note(descriptor: &Descriptor, reached: &mut Reached) -> Result<bool> {
    let name = Digest::try_from(descriptor.digest())?.hex().to_owned();
    Ok(reached.insert((name, descriptor.media_type().to_string())))
}

#[cfg(test)]
#[cfg(feature = "unpack")]
#[expect(clippy::disallowed_methods, reason = "tests make files on the host")]
mod tests {
    use std::fs;

    use serde_json::{Value, json};

    use super::*;
    use crate::fixture::{Scratch, Tar};

    const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    const INDEX: &str = "application/vnd.oci.image.index.v1+json";

    /// Puts a blob into the store as another tool would, and returns its descriptor.
    fn put(scratch: &Scratch, media_type: &str, bytes: &[u8]) -> Value {
        let digest = Digest::of(bytes);
        fs::write(scratch.store.path().join("blobs/sha256").join(digest.hex()), bytes).unwrap();
        json!({ "mediaType": media_type, "digest": digest, "size": bytes.len() })
    }

    /// Puts something in that is no image of file systems, but has the form of one.
    fn put_manifest(scratch: &Scratch, text: &str) -> Value {
        let config = put(scratch, "application/vnd.oci.empty.v1+json", b"{}");
        let layer = put(scratch, "text/plain", text.as_bytes());
        let manifest = json!({ "schemaVersion": 2, "config": config, "layers": [layer] });
        put(scratch, MANIFEST, manifest.to_string().as_bytes())
    }

    /// Adds a descriptor to the index as it is.
    fn add(scratch: &Scratch, descriptor: &Value) {
        let path = scratch.store.path().join("index.json");
        let mut index: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        index["manifests"].as_array_mut().unwrap().push(descriptor.clone());
        fs::write(&path, index.to_string()).unwrap();
    }

    fn has(scratch: &Scratch, text: &str) -> bool {
        scratch.store.has_blob(&Digest::of(text.as_bytes()))
    }

    #[test]
    fn what_has_no_name_in_the_index_is_kept_with_all_that_it_leads_to() {
        let scratch = Scratch::new();
        scratch.import(&[Tar::default().file("f", b"").end()]).unwrap();
        add(&scratch, &put_manifest(&scratch, "in a manifest"));
        let absent = json!({ "mediaType": MANIFEST, "digest": Digest::of(b"absent"), "size": 6 });
        let inner =
            json!({ "schemaVersion": 2, "manifests": [absent, put_manifest(&scratch, "in an index")] });
        let inner = put(&scratch, INDEX, inner.to_string().as_bytes());
        let outer = json!({ "schemaVersion": 2, "manifests": [inner] });
        add(&scratch, &put(&scratch, INDEX, outer.to_string().as_bytes()));
        add(&scratch, &put(&scratch, "text/plain", b"a file"));
        put(&scratch, "text/plain", b"nobody's");
        scratch.store.remove("image").unwrap();
        for kept in ["in a manifest", "in an index", "a file", "{}"] {
            assert!(has(&scratch, kept), "{kept}");
        }
        assert!(!has(&scratch, "nobody's"));
        let usage = crate::space::usage(&scratch.store).unwrap();
        assert_eq!((usage.blobs.count, usage.blobs.unused), (8, 0));
    }

    #[test]
    fn what_has_a_name_but_is_no_image_is_kept_until_its_name_goes() {
        let scratch = Scratch::new();
        scratch.import(&[Tar::default().file("f", b"").end()]).unwrap();
        let artifact = put_manifest(&scratch, "in an artifact");
        let index = json!({ "schemaVersion": 2, "manifests": [put_manifest(&scratch, "in an index")] });
        let index = put(&scratch, INDEX, index.to_string().as_bytes());
        for (name, mut descriptor) in [("artifact", artifact), ("index", index)] {
            descriptor["annotations"] = json!({ (crate::store::REF_NAME): name });
            add(&scratch, &descriptor);
            let error = scratch.store.image(name).unwrap_err();
            assert!(error.to_string().ends_with("is no image"), "{error}");
        }
        scratch.store.remove("image").unwrap();
        let both = |scratch: &Scratch| ["in an artifact", "in an index"].map(|text| has(scratch, text));
        assert_eq!(both(&scratch), [true, true]);
        crate::space::collect(&scratch.store, &crate::space::Policy::default()).unwrap();
        assert_eq!(crate::space::usage(&scratch.store).unwrap().blobs.unused, 0);
        scratch.store.remove("artifact").unwrap();
        assert_eq!(both(&scratch), [false, true]);
    }

    #[test]
    fn nothing_is_removed_where_what_has_no_name_can_not_be_read() {
        let scratch = Scratch::new();
        scratch.import(&[Tar::default().file("f", b"").end()]).unwrap();
        let unreadable = put_manifest(&scratch, "kept");
        add(&scratch, &unreadable);
        put(&scratch, "text/plain", b"nobody's");
        let name = unreadable["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
        fs::write(scratch.store.path().join("blobs/sha256").join(name), "damaged").unwrap();
        let error = scratch.store.collect().unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt);
        assert!(error.to_string().contains("which has no name in the index"), "{error}");
        assert!(has(&scratch, "kept") && has(&scratch, "nobody's"));
    }
}
