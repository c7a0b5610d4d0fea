//! Blobs on their way into the store: written and verified, but without a name.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;

use coracle_sys::Errno;
use coracle_sys::archive;
use coracle_sys::file::{self, Resolve};
use oci_spec::image::Descriptor;

use crate::digest::{Digest, Hasher};
use crate::error::{Error, Kind, Result};
use crate::store::{self, DOCUMENT_LIMIT, Entry, Store};

/// Blobs that are written and verified, but have no name yet.
pub(crate) struct Stage<'a> {
    store: &'a Store,
    blobs: BTreeMap<Digest, File>,
    /// Those that the images to be named are made of.
    used: Vec<Digest>,
}

/// A blob of the stage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Blob {
    pub digest: Digest,
    pub size: u64,
}

/// A blob that is being written.
pub(crate) struct Writer {
    file: File,
    hasher: Hasher,
    size: u64,
}

impl Writer {
    /// Appends bytes to the blob.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.hasher.update(bytes);
        self.size += bytes.len() as u64;
        Ok(file::write_all(self.file.as_fd(), bytes)?)
    }
}

impl<'a> Stage<'a> {
    pub(crate) fn new(store: &'a Store) -> Self {
        Self { store, blobs: BTreeMap::new(), used: Vec::new() }
    }

    /// Begins a blob: a file without a name, which is gone when nobody has it open.
    pub(crate) fn begin(&self) -> Result<Writer> {
        let flags = libc::O_TMPFILE | libc::O_RDWR;
        let fd: OwnedFd = file::open(self.store.blobs(), ".", flags, 0o600, Resolve::Beneath)?;
        Ok(Writer { file: File::from(fd), hasher: Hasher::default(), size: 0 })
    }

    /// Keeps a blob that is wholly written.
    pub(crate) fn keep(&mut self, writer: Writer) -> Blob {
        let (digest, size) = (writer.hasher.finish(), writer.size);
        self.blobs.insert(digest.clone(), writer.file);
        Blob { digest, size }
    }

    /// Keeps all that `reader` holds.
    pub(crate) fn add(&mut self, mut reader: impl Read) -> Result<Blob> {
        let mut writer = self.begin()?;
        let mut buffer = vec![0; 256 << 10];
        loop {
            match reader.read(&mut buffer) {
                Ok(0) => return Ok(self.keep(writer)),
                Ok(n) => writer.write(&buffer[..n])?,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(coracle_sys::Error::of_io("read()", &e).into()),
            }
        }
    }

    /// Keeps a file that is known to hold the blob, and will be among those that are named.
    #[cfg(feature = "registry")]
    pub(crate) fn insert(&mut self, digest: &Digest, file: File) {
        self.blobs.insert(digest.clone(), file);
        self.used.push(digest.clone());
    }

    /// Whether the blob has been kept.
    pub(crate) fn has(&self, digest: &Digest) -> bool {
        self.blobs.contains_key(digest)
    }

    /// Makes the blob part of what [`Stage::commit`] names, and checks its size.
    pub(crate) fn take(&mut self, digest: &Digest, size: u64) -> Result<()> {
        let found = self.size(digest)?;
        if found != size {
            let why = format!("blob {digest} should hold {size} bytes, but holds {found}");
            return Err(Error::new(Kind::Corrupt, why));
        }
        self.used.push(digest.clone());
        Ok(())
    }

    fn file(&self, digest: &Digest) -> Result<&File> {
        let missing = || Error::new(Kind::NotFound, format!("blob {digest} is missing from it"));
        self.blobs.get(digest).ok_or_else(missing)
    }

    pub(crate) fn size(&self, digest: &Digest) -> Result<u64> {
        Ok(file::stat(self.file(digest)?.as_fd())?.st_size.unsigned_abs())
    }

    /// The first bytes of a blob, as many as there are.
    pub(crate) fn start(&self, digest: &Digest, most: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; most];
        let (file, mut filled) = (self.file(digest)?, 0);
        while filled < most {
            match file.read_at(&mut bytes[filled..], filled as u64) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(e) => return Err(coracle_sys::Error::of_io("pread()", &e).into()),
            }
        }
        bytes.truncate(filled);
        Ok(bytes)
    }

    /// The bytes of a document.
    pub(crate) fn document(&self, digest: &Digest) -> Result<Vec<u8>> {
        let size = self.size(digest)?;
        if size > DOCUMENT_LIMIT {
            let why = format!("document {digest} of {size} bytes is over the limit of {DOCUMENT_LIMIT}");
            return Err(Error::new(Kind::Limit, why));
        }
        self.start(digest, size as usize)
    }

    /// Syncs the blobs that are taken, gives them their names, and then the images theirs. Tells whether one
    /// of them took the name of another image than it is itself.
    pub(crate) fn commit(self, entries: &[Entry]) -> Result<bool> {
        let dir = self.store.blobs();
        archive::sync_file_system(dir)?;
        for digest in &self.used {
            // A blob that is there already may be damaged: the one at hand was verified just now.
            let temporary = format!(".new-{}-{}", std::process::id(), digest.hex());
            match archive::link_open(self.file(digest)?.as_fd(), dir, &temporary) {
                Err(e) if e.errno() == Errno::EEXIST => {}
                other => other?,
            }
            file::rename(dir, &temporary, dir, digest.hex())?;
        }
        archive::sync(dir)?;
        self.store.change_index(|manifests| {
            let is_new = |d: &Descriptor| entries.iter().all(|e| store::name_of(d) != Some(&e.reference));
            let is_another = |d: &Descriptor| entries.iter().all(|e| e.descriptor.digest() != d.digest());
            let replaced = manifests.iter().any(|d| !is_new(d) && is_another(d));
            manifests.retain(is_new);
            manifests.extend(entries.iter().map(|e| named(&e.descriptor, &e.reference)));
            replaced
        })
    }
}

/// The descriptor of a manifest with a name.
pub(crate) fn named(descriptor: &Descriptor, reference: &str) -> Descriptor {
    let mut named =
        Descriptor::new(descriptor.media_type().clone(), descriptor.size(), descriptor.digest().clone());
    named.set_annotations(Some([(store::REF_NAME.to_owned(), reference.to_owned())].into()));
    named
}
