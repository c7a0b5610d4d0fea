//! The store: an OCI image layout with unpacked layers and snapshots beside the blobs.
//!
//! ```text
//! oci-layout index.json blobs/sha256/HEX    the layout, as image-spec's image-layout.md has it
//! layers/HEX                                a layer in overlay form, by its diff ID
//! layers/HEX.chain                          one that fits only on what lies below it, by its chain ID
//! layers/HEX.erofs layers/HEX.chain.erofs   the same as an EROFS image
//! partial/HEX                               as much of a blob as has come from a registry
//! snapshots/ID/                             a root file system made of layers, see `snapshot`
//! lock                                      a file whose byte ranges are locked
//! ```
//!
//! All of it is root's alone (0700). Whatever has a name is whole: it was written without one or under a
//! temporary one, synced, and named last. Processes may share a store, see `lock`.

mod reach;
mod removal;

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use coracle_sys::archive;
use coracle_sys::file::{self, Resolve};
use coracle_sys::{self as sys, Errno};
use oci_spec::image::{Descriptor, ImageIndex};

use crate::digest::{Digest, Verified};
use crate::error::{Context, Error, Kind, Result};
use crate::image::{Image, Layer};
use crate::lock::{self, Held};
use crate::reference::Reference;

/// Where the store is unless somebody says otherwise: what `CORACLE_STORE` names, else `/var/lib/coracle`.
pub fn default_root() -> PathBuf {
    std::env::var_os("CORACLE_STORE").map_or_else(|| "/var/lib/coracle".into(), PathBuf::from)
}

/// The annotation of a descriptor in `index.json` that holds an image's reference (image-spec, annotations.md).
pub const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// The end of a layer's name that is an EROFS image.
pub(crate) const IMAGE: &str = ".erofs";

/// The directory of blobs that have not come wholly yet.
const PARTIAL: &str = "partial";

/// No document (index, manifest, config) may be longer: 4 MiB, what registries and containerd accept.
pub const DOCUMENT_LIMIT: u64 = 4 << 20;

/// An open store.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    root: OwnedFd,
    blobs: OwnedFd,
    layers: OwnedFd,
    snapshots: OwnedFd,
}

/// An image's name in the store and the descriptor of its manifest.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The reference, such as `docker.io/library/alpine:3.22`.
    pub reference: String,
    /// The descriptor of the manifest.
    pub descriptor: Descriptor,
}

impl Store {
    /// Opens the store at `path`, and makes it where it is missing.
    ///
    /// # Errors
    /// Where the directory can't be made, or is an image layout of another version.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = std::path::absolute(path.as_ref()).unwrap_or_else(|_| path.as_ref().to_owned());
        Self::open_absolute(path.clone()).context(|| format!("opening the store {path:?}"))
    }

    fn open_absolute(path: PathBuf) -> Result<Self> {
        let host = file::open_dir("/")?;
        let root = file::mkdir_all(host.as_fd(), &path, 0o700)?;
        let root = file::open(root.as_fd(), ".", libc::O_DIRECTORY, 0, Resolve::Beneath)?;
        let directory = |name: &str| -> Result<OwnedFd> {
            file::mkdir_all(root.as_fd(), name, 0o700)?;
            Ok(file::open(root.as_fd(), name, libc::O_DIRECTORY, 0, Resolve::BeneathNoLinks)?)
        };
        let (blobs, layers) = (directory("blobs/sha256")?, directory("layers")?);
        let snapshots = directory("snapshots")?;
        let store = Self { path, root, blobs, layers, snapshots };
        store.check_layout()?;
        Ok(store)
    }

    /// The store's absolute path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The directory of unpacked layers.
    pub fn layers(&self) -> BorrowedFd<'_> {
        self.layers.as_fd()
    }

    /// The directory of snapshots.
    pub fn snapshots(&self) -> BorrowedFd<'_> {
        self.snapshots.as_fd()
    }

    /// The directory of blobs.
    #[cfg(feature = "unpack")]
    pub(crate) fn blobs(&self) -> BorrowedFd<'_> {
        self.blobs.as_fd()
    }

    fn check_layout(&self) -> Result<()> {
        const LAYOUT: &str = r#"{"imageLayoutVersion":"1.0.0"}"#;
        let bytes = match file::read(self.root.as_fd(), "oci-layout", 4096, Resolve::BeneathNoLinks) {
            Err(e) if e.errno() == Errno::ENOENT => {
                let _lock = lock::index(self.root.as_fd())?;
                return self.replace("oci-layout", LAYOUT.as_bytes());
            }
            other => other?,
        };
        check_layout(&bytes)
    }

    /// Replaces a file of the store.
    fn replace(&self, name: &str, bytes: &[u8]) -> Result<()> {
        Ok(file::replace_synced(self.root.as_fd(), name, bytes, 0o600)?)
    }

    /// Waits until nobody is removing, and keeps removers out.
    ///
    /// # Errors
    /// Where the lock can't be taken.
    pub fn lock_adding(&self) -> Result<Held> {
        lock::adding(self.root.as_fd())
    }

    /// Waits until nobody else fetches or unpacks what has these digests, and keeps others from it.
    #[cfg(feature = "unpack")]
    pub(crate) fn lock_digests<'a>(&self, digests: impl Iterator<Item = &'a Digest>) -> Result<Held> {
        lock::digests(self.root.as_fd(), digests)
    }

    /// The directory of blobs that have not come wholly yet.
    pub(crate) fn partial(&self) -> Result<OwnedFd> {
        file::mkdir_all(self.root.as_fd(), PARTIAL, 0o700)?;
        Ok(file::open(self.root.as_fd(), PARTIAL, libc::O_DIRECTORY, 0, Resolve::BeneathNoLinks)?)
    }

    // The index.

    /// The images of the store, in the order of their references.
    ///
    /// # Errors
    /// Where `index.json` is malformed.
    pub fn entries(&self) -> Result<Vec<Entry>> {
        let mut entries: Vec<Entry> = self
            .index()?
            .manifests()
            .iter()
            .filter_map(|d| {
                let reference = d.annotations().as_ref()?.get(REF_NAME)?.clone();
                Some(Entry { reference, descriptor: d.clone() })
            })
            .collect();
        entries.sort_by(|a, b| a.reference.cmp(&b.reference));
        Ok(entries)
    }

    pub(super) fn index(&self) -> Result<ImageIndex> {
        match file::read(self.root.as_fd(), "index.json", DOCUMENT_LIMIT, Resolve::BeneathNoLinks) {
            Err(e) if e.errno() == Errno::ENOENT => {
                let mut index = ImageIndex::default();
                index.set_media_type(Some(oci_spec::image::MediaType::ImageIndex));
                Ok(index)
            }
            other => crate::image::parse(&other?, "index.json"),
        }
    }

    /// Changes the index under its lock. What `change` returns is returned.
    pub(crate) fn change_index<T>(&self, change: impl FnOnce(&mut Vec<Descriptor>) -> T) -> Result<T> {
        let _lock = lock::index(self.root.as_fd())?;
        let mut index = self.index()?;
        let mut manifests = index.manifests().clone();
        let result = change(&mut manifests);
        index.set_manifests(manifests);
        let bytes = serde_json::to_vec(&index)
            .map_err(|e| Error::new(Kind::Malformed, format!("writing index.json: {e}")))?;
        if bytes.len() as u64 > DOCUMENT_LIMIT {
            // A longer one could never be read again, and the store not be used.
            let why =
                format!("index.json would be {} bytes, over the limit of {DOCUMENT_LIMIT}", bytes.len());
            return Err(Error::new(Kind::Limit, why).hint("the store has no place for so many names"));
        }
        let written = self.replace("index.json", &bytes).context(|| "writing the store's index");
        written.map_err(|e| if is_full(&e) { e.hint("`coracle-image gc` and `rm` make room") } else { e })?;
        Ok(result)
    }

    /// The image that `reference` names: exactly, as a registry's image that was pulled by it, with `:latest` or Docker's
    /// prefixes left out, or by the digest of its manifest.
    ///
    /// # Errors
    /// [`Kind::NoImage`] where there is none.
    pub fn entry(&self, reference: &str) -> Result<Entry> {
        let entries = self.entries()?;
        let full = reference.parse::<Reference>().map(|full| full.to_string());
        let with_tag = format!("{reference}:latest");
        let completed = [reference, &with_tag].into_iter().flat_map(|wanted| {
            ["", "docker.io/library/", "docker.io/", "localhost/"].map(|prefix| format!("{prefix}{wanted}"))
        });
        for name in std::iter::once(reference.to_owned()).chain(full).chain(completed) {
            if let Some(entry) = entries.iter().find(|e| e.reference == name) {
                return Ok(entry.clone());
            }
        }
        let by_digest = entries.into_iter().find(|e| e.descriptor.digest().as_ref() == reference);
        by_digest.ok_or_else(|| {
            let why = format!("no image is named {reference:?} in the store {:?}", self.path);
            Error::new(Kind::NoImage, why)
                .hint("`coracle-image ls` lists them, `coracle-image pull` and `import` add one")
        })
    }

    /// The image that `reference` names, with its documents read and verified.
    ///
    /// # Errors
    /// As [`Store::entry`], and where a document is corrupt or malformed.
    pub fn image(&self, reference: &str) -> Result<Image> {
        Image::read(self, self.entry(reference)?)
    }

    // Blobs.

    /// Opens a blob for reading.
    ///
    /// # Errors
    /// [`Kind::NotFound`] where it is missing.
    pub fn blob(&self, digest: &Digest) -> Result<File> {
        let opened = file::open(self.blobs.as_fd(), digest.hex(), libc::O_RDONLY, 0, Resolve::BeneathNoLinks);
        match opened {
            Ok(fd) => Ok(File::from(fd)),
            Err(e) if e.errno() == Errno::ENOENT => {
                let why = format!("blob {digest} is missing from the store");
                Err(Error::new(Kind::NotFound, why).hint("import the image again"))
            }
            Err(e) => Err(e.into()),
        }
    }

    /// Reads and verifies a small blob: a manifest or a config.
    ///
    /// # Errors
    /// [`Kind::Corrupt`], [`Kind::NotFound`], and [`Kind::Limit`] where it is longer than [`DOCUMENT_LIMIT`].
    pub fn document(&self, descriptor: &Descriptor) -> Result<Vec<u8>> {
        let digest = Digest::try_from(descriptor.digest())?;
        read_document(self.blob(&digest)?, &digest, descriptor.size())
    }

    /// Whether the store has a blob of this name.
    pub(crate) fn has_blob(&self, digest: &Digest) -> bool {
        file::stat_at(self.blobs.as_fd(), digest.hex()).is_ok()
    }

    // Layers.

    /// The name below `layers` of what `layer` is unpacked into, if it is: a directory, or an EROFS image.
    pub fn unpacked(&self, layer: &Layer) -> Option<String> {
        let (diff_id, chain_id) = (layer.diff_id.hex(), layer.chain_id.hex());
        let names = [
            diff_id.to_owned(),
            format!("{chain_id}.chain"),
            format!("{diff_id}{IMAGE}"),
            format!("{chain_id}.chain{IMAGE}"),
        ];
        names.into_iter().find(|name| file::stat_at(self.layers.as_fd(), name).is_ok())
    }

    /// The fs-verity digest that protects an unpacked layer, `sha256:` and hexadecimal digits: of an EROFS image on a
    /// file system that has it.
    ///
    /// # Errors
    /// Where the layer can't be opened.
    pub fn verity(&self, unpacked: &str) -> Result<Option<String>> {
        if !unpacked.ends_with(IMAGE) {
            return Ok(None);
        }
        let image = file::open(self.layers.as_fd(), unpacked, libc::O_RDONLY, 0, Resolve::BeneathNoLinks)?;
        let digest = sys::verity::digest(image.as_fd())?;
        let hex = |bytes: [u8; 32]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        Ok(digest.map(|digest| format!("sha256:{}", hex(digest))))
    }

    /// Digests all blobs of an image again, and returns what is wrong: with them, or that only some
    /// of its layers are unpacked.
    pub fn verify(&self, image: &Image) -> Vec<Error> {
        let config =
            Digest::try_from(image.manifest.config().digest()).map(|d| (d, image.manifest.config().size()));
        let blobs = image.layers.iter().map(|l| Ok((l.digest.clone(), l.size))).chain([config]);
        let check = |(digest, size): (Digest, u64)| Verified::new(self.blob(&digest)?, digest, size).finish();
        let mut problems: Vec<Error> = blobs.filter_map(|blob| blob.and_then(check).err()).collect();
        let is_missing = |layer: &&Layer| self.unpacked(layer).is_none();
        let missing = image.layers.iter().filter(is_missing).count();
        if missing > 0 && missing < image.layers.len() {
            let why = format!("{missing} of {} layers are not unpacked", image.layers.len());
            problems.push(Error::new(Kind::NotUnpacked, why));
        }
        problems
    }

    /// Gives an image another name, beside those that it has. One that has the name loses it.
    ///
    /// # Errors
    /// [`Kind::NoImage`] where there is no such image, [`Kind::Usage`] where the name can't be shown, or says another digest.
    #[cfg(feature = "unpack")]
    pub fn tag(&self, reference: &str, name: &str) -> Result<Entry> {
        crate::import::check_reference(name)?;
        let _lock = self.lock_adding()?;
        let entry = Entry { reference: name.to_owned(), ..self.entry(reference)? };
        crate::import::check_pin(name, &[entry.descriptor.digest().as_ref()])?;
        self.change_index(|manifests| {
            manifests.retain(|d| name_of(d).is_none_or(|known| known != name));
            manifests.push(crate::stage::named(&entry.descriptor, name));
        })?;
        Ok(entry)
    }

    /// Takes a name away, and leaves the image.
    #[cfg(feature = "registry")]
    pub(crate) fn untag(&self, name: &str) -> Result<()> {
        self.change_index(|manifests| manifests.retain(|d| name_of(d).is_none_or(|known| known != name)))
    }

    /// Notes that an image is used now: what is used least recently goes first. The time is that of its manifest.
    pub(crate) fn note_use(&self, manifest: &Digest) -> Result<()> {
        let blob = self.blob(manifest)?;
        Ok(archive::set_times_now(blob.as_fd())?)
    }

    /// Waits until nobody is adding or removing, and keeps all others out.
    #[cfg(feature = "unpack")]
    pub(crate) fn lock_all(&self) -> Result<Held> {
        lock::all(self.root.as_fd())
    }

    /// The store's own directory.
    #[cfg(feature = "unpack")]
    pub(crate) fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }
}

/// The reference in the annotations of a descriptor of an index.
pub(crate) fn name_of(descriptor: &Descriptor) -> Option<&String> {
    descriptor.annotations().as_ref()?.get(REF_NAME)
}

/// Reads a document whose digest and size are known.
pub(crate) fn read_document(from: impl std::io::Read, digest: &Digest, size: u64) -> Result<Vec<u8>> {
    use std::io::Read;
    if size > DOCUMENT_LIMIT {
        let why = format!("document {digest} of {size} bytes is over the limit of {DOCUMENT_LIMIT}");
        return Err(Error::new(Kind::Limit, why));
    }
    let mut bytes = Vec::new();
    let mut verified = Verified::new(from, digest.clone(), size);
    let read = verified.by_ref().take(size).read_to_end(&mut bytes);
    verified.finish()?;
    read.map_err(|e| coracle_sys::Error::of_io(format!("read({digest})"), &e))?;
    Ok(bytes)
}

/// Whether these are the contents of an `oci-layout` file of a version this program knows.
pub(crate) fn check_layout(bytes: &[u8]) -> Result<()> {
    let layout: oci_spec::image::OciLayout = crate::image::parse(bytes, "oci-layout")?;
    let version = layout.image_layout_version();
    if version.starts_with("1.") {
        return Ok(());
    }
    let why = format!("oci-layout says version {version:?}, and this program knows 1.0.0");
    Err(Error::new(Kind::Unsupported, why))
}

/// Whether `name` can be a snapshot's or container's ID: letters, digits and `_+-.`, as runc has it; and `~` where
/// the ID of a container that is below another has `/`.
pub(crate) fn check_id(id: &str) -> Result<&OsStr> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'+' | b'-' | b'.' | b'~');
    if id.is_empty() || id.len() > 255 || id.starts_with('.') || !id.bytes().all(plain) {
        let why = format!("{id:?} is no ID: letters, digits and the characters _+-.~ make one");
        return Err(Error::new(Kind::Usage, why));
    }
    Ok(OsStr::new(id))
}

/// Whether the disk is full, or the quota.
fn is_full(error: &Error) -> bool {
    matches!(error.errno(), Some(Errno::ENOSPC | Errno::EDQUOT))
}

/// True where `result` failed because something does not exist.
pub(crate) fn is_missing<T>(result: &sys::Result<T>) -> bool {
    matches!(result, Err(e) if e.errno() == Errno::ENOENT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_store_is_an_empty_image_layout_that_only_root_can_enter() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("a/store");
        let store = Store::open(&path).unwrap();
        assert!(store.entries().unwrap().is_empty());
        assert_eq!(file::stat(store.root.as_fd()).unwrap().st_mode & 0o777, 0o700);
        let layout = file::read(store.root.as_fd(), "oci-layout", 100, Resolve::Beneath).unwrap();
        assert_eq!(layout, br#"{"imageLayoutVersion":"1.0.0"}"#);
    }

    #[test]
    fn a_layout_of_another_version_is_refused() {
        let error = check_layout(br#"{"imageLayoutVersion":"2.0.0"}"#).unwrap_err();
        assert_eq!(error.to_string(), "oci-layout says version \"2.0.0\", and this program knows 1.0.0");
    }

    #[test]
    fn an_unknown_reference_says_where_to_look() {
        let scratch = tempfile::tempdir().unwrap();
        let error = Store::open(scratch.path()).unwrap().image("web").unwrap_err();
        assert_eq!(error.kind(), Kind::NoImage);
        assert!(error.to_string().contains("no image is named \"web\""), "{error}");
    }

    #[test]
    #[cfg(feature = "unpack")]
    fn a_name_is_read_as_docker_reads_it_and_means_what_was_pulled_by_it() {
        let scratch = tempfile::tempdir().unwrap();
        let store = Store::open(scratch.path()).unwrap();
        let digests = ["a", "b", "c"].map(|text| Digest::of(text.as_bytes()).to_string());
        let pinned = format!("docker.io/library/nginx@{}", digests[2]);
        let names = ["docker.io/library/nginx:latest", "nginx:latest", &pinned];
        let named = |(name, digest): (&str, &String)| {
            let digest = oci_spec::image::Digest::try_from(digest.clone()).unwrap();
            let manifest = Descriptor::new(oci_spec::image::MediaType::ImageManifest, 1, digest);
            crate::stage::named(&manifest, name)
        };
        store.change_index(|all| all.extend(names.into_iter().zip(&digests).map(named))).unwrap();
        for pulled in ["nginx", "docker.io/nginx", "index.docker.io/nginx", "docker.io/nginx:latest"] {
            assert_eq!(store.entry(pulled).unwrap().reference, names[0], "{pulled}");
        }
        assert_eq!(store.entry("nginx:latest").unwrap().reference, "nginx:latest");
        let both = format!("docker.io/nginx:1.27@{}", digests[2]);
        assert_eq!(store.entry(&both).unwrap().reference, pinned);
        assert_eq!(store.entry("quay.io/nginx").unwrap_err().kind(), Kind::NoImage);
    }

    #[test]
    fn ids_that_could_leave_the_directory_are_refused() {
        for bad in ["", ".", "..", "a/b", "a\n", ".hidden", "ä"] {
            assert_eq!(check_id(bad).unwrap_err().kind(), Kind::Usage, "{bad:?}");
        }
        assert!(check_id("web-1.0_x+y").is_ok() && check_id("web~debug-1").is_ok());
    }
}
