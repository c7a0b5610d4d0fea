//! The last of a layer: what it takes from the layers below, and the metadata of its directories.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use coracle_sys::archive;
use coracle_sys::file::{self, Resolve};

use super::entry::Metadata;
use super::form::{Directories, Directory, Form};
use super::limits::Limits;
use super::links::Links;
use crate::error::{Context, Result};
use crate::metadata::{self, IMPLIED, OPAQUE, SIZE, is_kept};

/// A layer with all its entries applied.
pub(crate) struct Applied<F> {
    pub form: F,
    pub links: Links,
    /// The bytes of its files.
    pub bytes: u64,
}

impl<F: Form> Applied<F> {
    /// Whether what is below has to be known to finish the layer: the target of a hard link, the owner and
    /// permissions of a directory that it has no entry for, and whether there is anything to white out.
    pub(crate) fn needs_below(&mut self) -> bool {
        let needs = |(path, directory): (&Vec<u8>, &Directory)| {
            !path.is_empty() && (directory.metadata.is_none() || directory.whiteouts)
        };
        !self.links.is_empty() || self.form.directories().iter().any(needs)
    }

    /// Finishes the layer; `below` shows the layers below it as a container would see them, none for the
    /// lowest. Returns whether the layer has become another one than it would be elsewhere.
    pub(crate) fn finish(mut self, below: Option<BorrowedFd<'_>>, limits: &Limits) -> Result<Fit> {
        let mut fit = if self.links.is_empty() { Fit::Anywhere } else { Fit::Here };
        let links = std::mem::take(&mut self.links);
        self.bytes = links.copy(&mut self.form, below, (self.bytes, limits.bytes))?;
        let directories = std::mem::take(self.form.directories());
        // Backwards, what is in a directory comes before it, since its path is longer.
        for (path, directory) in directories.iter().rev() {
            let name = || format!("directory {:?}", String::from_utf8_lossy(path));
            let below = below.filter(|_| !is_hidden(&directories, path));
            let lower = below.and_then(|below| open_lower(below, path));
            if self.directory(path, directory, lower).context(name)? == Fit::Here {
                fit = Fit::Here;
            }
        }
        self.form.close()?;
        Ok(fit)
    }

    /// Gives a directory its metadata; `lower` is the one below that it is merged with.
    fn directory(&mut self, path: &[u8], directory: &Directory, lower: Option<OwnedFd>) -> Result<Fit> {
        let is_root = path.is_empty();
        let mut fit = if directory.metadata.is_none() && !is_root { Fit::Here } else { Fit::Anywhere };
        if directory.whiteouts && lower.is_none() && !is_root {
            // Overlayfs hides what it merges; in a directory that is not merged, a whiteout would be listed.
            self.form.remove_whiteouts(path)?;
        }
        if directory.whiteouts && !is_root {
            // Over other layers the same directory might not be merged, or be.
            fit = Fit::Here;
        }
        let size = self.bytes.to_string();
        let mut marks: Vec<(&str, &[u8])> = Vec::new();
        if is_root {
            marks.push((SIZE, size.as_bytes()));
        }
        if directory.opaque {
            marks.push((OPAQUE, b"y"));
        }
        let metadata = match (&directory.metadata, lower) {
            (Some(metadata), _) => metadata.clone(),
            (None, Some(lower)) => read_metadata(lower.as_fd())?,
            // Nothing of that name is below, and maybe nothing was in it but whiteouts of nothing.
            (None, None) if !is_root && self.form.remove_empty(path)? => return Ok(fit),
            (None, None) => {
                if is_root {
                    marks.push((IMPLIED, b"y"));
                }
                // One that no layer describes: root's, for all to see, of no time.
                Metadata { mode: 0o755, ..Metadata::default() }
            }
        };
        self.form.describe(path, metadata, &marks)?;
        Ok(fit)
    }
}

/// On which layers a finished layer can be put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fit {
    /// On any: it is kept by diff ID.
    Anywhere,
    /// On those it was finished for: it is kept by chain ID.
    Here,
}

/// Whether the directory at `path`, or one that it is in, hides what is below.
fn is_hidden(directories: &Directories, path: &[u8]) -> bool {
    let slashes = path.iter().enumerate().filter(|(_, b)| **b == b'/').map(|(i, _)| i);
    // The first is the root.
    let mut prefixes = std::iter::once(0).chain(slashes).chain([path.len()]).map(|end| &path[..end]);
    prefixes.any(|prefix| directories.get(prefix).is_some_and(|d| d.opaque))
}

/// Owner, permissions and times.
pub(super) fn plain_metadata(stat: &libc::stat) -> Metadata {
    let [accessed, modified] = metadata::times(stat);
    let (mode, uid, gid) = (stat.st_mode & 0o7777, stat.st_uid, stat.st_gid);
    Metadata { mode, uid, gid, accessed, modified, xattrs: Vec::new() }
}

/// All metadata of an open file.
pub(super) fn read_metadata(fd: BorrowedFd<'_>) -> Result<Metadata> {
    let mut metadata = plain_metadata(&file::stat(fd)?);
    for name in archive::xattr_names(fd)? {
        let name = name.into_bytes();
        if is_kept(&name)
            && let Some(value) = archive::xattr(fd, OsStr::from_bytes(&name))?
        {
            metadata.xattrs.push((name, value));
        }
    }
    Ok(metadata)
}

fn open_lower(below: BorrowedFd<'_>, path: &[u8]) -> Option<OwnedFd> {
    // The root directory is left to the snapshot, which knows all layers.
    if path.is_empty() {
        return None;
    }
    // Whatever else is there is hidden by this layer's directory, and says nothing about it.
    file::open(below, OsStr::from_bytes(path), libc::O_DIRECTORY, 0, Resolve::BeneathNoLinks).ok()
}
