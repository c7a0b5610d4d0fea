//! What nobody needs any more, and what is damaged, is removed.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd};

use coracle_sys::{archive, file};

use super::{Entry, Store, name_of};
#[cfg(feature = "registry")]
use crate::digest::{Digest, Verified};
#[cfg(feature = "registry")]
use crate::error::Kind;
use crate::error::Result;
use crate::image::Image;
use crate::lock::{self, Held};

impl Store {
    /// Removes the reference, and what no other image and no snapshot uses: blobs and unpacked layers.
    ///
    /// # Errors
    /// [`Kind::NoImage`] where there is no such image.
    pub fn remove(&self, reference: &str) -> Result<Entry> {
        let entry = self.entry(reference)?;
        self.change_index(|manifests| manifests.retain(|d| name_of(d) != Some(&entry.reference)))?;
        self.collect()?;
        Ok(entry)
    }

    /// As [`Store::collect`], but leaves it to somebody else where others are adding.
    #[cfg(feature = "unpack")]
    pub(crate) fn collect_if_idle(&self) -> Result<()> {
        match lock::all_now(self.root.as_fd())? {
            Some(lock) => self.collect_locked(&lock),
            None => Ok(()),
        }
    }

    /// Removes blobs and unpacked layers that no image and no snapshot uses, and what a killed process has
    /// left unfinished. Images without a name count, too. Waits for those who are adding.
    ///
    /// # Errors
    /// Where an image can't be read: then nothing is removed, since its layers are not known.
    pub fn collect(&self) -> Result<()> {
        self.collect_locked(&lock::all(self.root.as_fd())?)
    }

    pub(crate) fn collect_locked(&self, _lock: &Held) -> Result<()> {
        let (mut blobs, mut layers) = (self.unnamed_blobs()?, crate::snapshot::layers_in_use(self)?);
        for entry in self.entries()? {
            let image = Image::read(self, entry)?;
            blobs.extend(image.blobs().map(|d| d.hex().to_owned()));
            layers.extend(image.layers.iter().filter_map(|l| self.unpacked(l)));
        }
        sweep(self.blobs.as_fd(), &blobs)?;
        sweep(self.layers.as_fd(), &layers)
    }

    /// Removes those blobs of an image that are not what their names say, and its unpacked layers that no snapshot is
    /// made of. Waits for those who are adding.
    #[cfg(feature = "registry")]
    pub(crate) fn discard_damaged(&self, entry: &Entry) -> Result<()> {
        let _lock = self.lock_all()?;
        let keep_whole = |digest: Digest, size: u64| {
            let whole =
                self.blob(&digest).and_then(|blob| Verified::new(blob, digest.clone(), size).finish());
            match whole {
                Err(error) if error.kind() == Kind::Corrupt => {
                    Ok(archive::remove_tree(self.blobs.as_fd(), digest.hex())?)
                }
                Err(error) if error.kind() != Kind::NotFound => Err(error),
                _ => Ok(()),
            }
        };
        keep_whole(Digest::try_from(entry.descriptor.digest())?, entry.descriptor.size())?;
        let Ok(bytes) = self.document(&entry.descriptor) else { return Ok(()) };
        let manifest = crate::image::parse_manifest(&bytes, entry.descriptor.media_type())?;
        for blob in manifest.layers().iter().chain([manifest.config()]) {
            keep_whole(Digest::try_from(blob.digest())?, blob.size())?;
        }
        let Ok(image) = Image::read(self, entry.clone()) else { return Ok(()) };
        let in_use = crate::snapshot::layers_in_use(self)?;
        for name in image.layers.iter().filter_map(|layer| self.unpacked(layer)) {
            if !in_use.contains(&name) {
                archive::remove_tree(self.layers.as_fd(), &name)?;
            }
        }
        Ok(())
    }
}

/// Removes what is not in `keep`.
fn sweep(dir: BorrowedFd<'_>, keep: &BTreeSet<String>) -> Result<()> {
    for name in file::list(dir)? {
        if !name.to_str().is_some_and(|n| keep.contains(n)) {
            archive::remove_tree(dir, &name)?;
        }
    }
    Ok(())
}
