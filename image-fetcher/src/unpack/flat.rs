//! A tree of all layers of an image, one over the other, in a directory: what overlayfs would show, for who can't mount it.
//!
//! Layers are unpacked side by side as for the store. Then what each one holds is moved into the tree, the lowest first. Until
//! the end all directories are the caller's (0700), so that it takes no privilege to move, and what they are to be is kept aside.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use coracle_sys::file::{self, Resolve};
use coracle_sys::{self as sys, Errno};
use coracle_sys::{archive, descriptor};

use super::apply::link_inside;
use super::batch::{Batch, sweep};
use super::entry::Metadata;
use super::finish::Applied;
use super::form::{Directory, Form, Found, forget};
use super::limits::Limits;
use super::links::missing;
use super::owners::Owners;
use super::tree::{Opened, Tree, look, set};
use crate::error::{Context, Error, Kind, Result};
use crate::image::Image;
use crate::store::Store;

/// The name of the tree.
pub const ROOT: &str = "rootfs";

/// Unpacks the layers of `image` into a directory [`ROOT`] of `parent`, given to `owners`. The store only has to have the
/// image's blobs.
///
/// # Errors
/// As [`unpack`](super::unpack()); [`Kind::Exists`] where the directory is there already. Nothing is left then.
pub fn unpack_tree(
    store: &Store,
    image: &Image,
    parent: BorrowedFd<'_>,
    (limits, owners): (Limits, Owners),
) -> Result<()> {
    let unpacking = || format!("unpacking {:?}", image.reference);
    let _lock = store.lock_adding().context(unpacking)?;
    let attempt = || -> Result<()> {
        sweep(parent)?;
        let batch = Batch::begin(parent, (store.root(), store), limits)?;
        let result = unpack_batch(&batch, image, owners).and_then(|built| built.name(parent));
        let removed = batch.remove();
        result.and(removed)
    };
    attempt().context(unpacking)
}

fn unpack_batch(batch: &Batch<'_>, image: &Image, owners: Owners) -> Result<Built> {
    let directory = |name: &str| -> Result<OwnedFd> {
        file::mkdir(batch.directory(), name, 0o700)?;
        Ok(file::open(batch.directory(), name, libc::O_DIRECTORY, 0, Resolve::BeneathNoLinks)?)
    };
    let places: Vec<usize> = (0..image.layers.len()).collect();
    let mut layers = batch.run(image, &places, |place, layer| {
        // By its place: an image may have a layer twice.
        batch.apply(layer, Tree::new(directory(&place.to_string())?, owners)).map(Some)
    })?;
    layers.sort_by_key(|(place, _)| *place);
    let root = directory(ROOT)?;
    let temporary = descriptor::duplicate(batch.directory())?;
    batch.confined(None, || {
        let mut merged = Merged { root, described: BTreeMap::new() };
        for (place, layer) in layers {
            merged.add(layer).context(|| format!("layer {}", image.layers[place].digest))?;
        }
        merged.finish(owners, temporary)
    })
}

/// The tree, with its directories as they are to be but for the root itself.
struct Built {
    temporary: OwnedFd,
    root: OwnedFd,
    described: Metadata,
    owners: Owners,
}

impl Built {
    /// Gives it its name. A directory that its owner can't write to can't be moved, so its permissions come last.
    fn name(self, parent: BorrowedFd<'_>) -> Result<()> {
        match file::rename(self.temporary.as_fd(), ROOT, parent, ROOT) {
            Err(e) if matches!(e.errno(), Errno::ENOTEMPTY | Errno::ENOTDIR) => {
                return Err(Error::new(Kind::Exists, format!("there is a {ROOT:?} already")));
            }
            other => other?,
        }
        set(self.root.as_fd(), &self.described, self.owners, &[]).inspect_err(|_| {
            // The first failure is the one to tell.
            let _ = archive::remove_tree(parent, ROOT);
        })
    }
}

/// The layers until now, one over the other.
struct Merged {
    root: OwnedFd,
    /// What its directories are to be, as far as any layer has said, by path.
    described: BTreeMap<Vec<u8>, Metadata>,
}

impl Merged {
    /// Puts a layer over those that are there.
    fn add(&mut self, mut layer: Applied<Tree>) -> Result<()> {
        let links = std::mem::take(&mut layer.links);
        links.each(&mut layer.form, |form, to, target| self.link(form, to, target))?;
        let directories = std::mem::take(layer.form.directories());
        let mut implied = Vec::new();
        // What is in a directory comes after it, since its path is longer.
        for (path, directory) in &directories {
            let name = || format!("directory {:?}", String::from_utf8_lossy(path));
            let is_new = self.enter(path, directory).context(name)?;
            self.move_files(layer.form.root(), path).context(name)?;
            if is_new && directory.metadata.is_none() {
                implied.push(path);
            }
        }
        for path in implied.into_iter().rev() {
            self.describe_implied(path)?;
        }
        Ok(())
    }

    /// Links to a file of the layers below, before this one hides it.
    fn link(&self, layer: &mut Tree, (at, new): (&Opened, &[u8]), target: &[u8]) -> Result<()> {
        let (above, name) = split(target);
        let found = match open(self.root.as_fd(), above, Resolve::InRoot) {
            Ok(above) => match look(above.as_fd(), name)? {
                Found::Nothing | Found::Whiteout => None,
                found => Some((above, found)),
            },
            Err(e) if matches!(e.errno(), Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => None,
            Err(e) => return Err(e.into()),
        };
        match found {
            Some((_, Found::Directory)) => {
                Err(Error::new(Kind::Malformed, "it is a hard link to a directory"))
            }
            Some((above, _)) => {
                layer.clear(at, new)?;
                let (old, new) = (OsStr::from_bytes(name), OsStr::from_bytes(new));
                Ok(file::link(above.as_fd(), old, at.as_fd(), new)?)
            }
            // An archive that names the link before the file.
            None if link_inside(layer, at, new, target)? => Ok(()),
            None => Err(missing(target)),
        }
    }

    /// Makes sure that the directory `path` is there, and tells whether it is new.
    fn enter(&mut self, path: &[u8], directory: &Directory) -> Result<bool> {
        let is_new = self.make(path, directory.opaque)?;
        if let Some(metadata) = &directory.metadata {
            self.described.insert(path.to_vec(), metadata.clone());
        }
        Ok(is_new)
    }

    /// Makes the directory `path` where there is none, or where all below is hidden.
    fn make(&mut self, path: &[u8], opaque: bool) -> Result<bool> {
        if path.is_empty() {
            let hidden = if opaque { file::list(self.root.as_fd())? } else { Vec::new() };
            hidden.iter().try_for_each(|name| self.clear(b"", name.as_bytes()))?;
            return Ok(false);
        }
        let (above, name) = split(path);
        let at = open(self.root.as_fd(), above, Resolve::BeneathNoLinks)?;
        match look(at.as_fd(), name)? {
            Found::Directory if !opaque => return Ok(false),
            Found::Nothing => {}
            _ => self.clear(above, name)?,
        }
        file::mkdir(at.as_fd(), OsStr::from_bytes(name), 0o700)?;
        Ok(true)
    }

    /// Takes away what has this name, with all that is known of it.
    fn clear(&mut self, above: &[u8], name: &[u8]) -> Result<()> {
        let path = if above.is_empty() { name.to_vec() } else { [above, b"/", name].concat() };
        forget(&mut self.described, &path);
        let at = open(self.root.as_fd(), above, Resolve::BeneathNoLinks)?;
        Ok(archive::remove_tree(at.as_fd(), OsStr::from_bytes(name))?)
    }

    /// Moves what the layer's directory `path` holds beside directories, whose turn comes; and removes what it whites out.
    fn move_files(&mut self, layer: BorrowedFd<'_>, path: &[u8]) -> Result<()> {
        let from = file::open(layer, named(path), libc::O_DIRECTORY, 0, Resolve::BeneathNoLinks)?;
        let to = open(self.root.as_fd(), path, Resolve::BeneathNoLinks)?;
        for name in file::list(from.as_fd())? {
            match look(from.as_fd(), name.as_bytes())? {
                Found::Nothing | Found::Directory => {}
                Found::Whiteout => self.clear(path, name.as_bytes())?,
                Found::Symlink | Found::Other => {
                    if look(to.as_fd(), name.as_bytes())? == Found::Directory {
                        self.clear(path, name.as_bytes())?;
                    }
                    file::rename(from.as_fd(), &name, to.as_fd(), &name)?;
                }
            }
        }
        Ok(())
    }

    /// A new directory that no layer describes is root's, for all to see, of no time; where nothing is in it, as when there
    /// were only whiteouts of nothing, it is none.
    fn describe_implied(&mut self, path: &[u8]) -> Result<()> {
        let (above, name) = split(path);
        let at = open(self.root.as_fd(), above, Resolve::BeneathNoLinks)?;
        match file::rmdir(at.as_fd(), OsStr::from_bytes(name)) {
            Err(e) if e.errno() == Errno::ENOTEMPTY => {
                self.described.insert(path.to_vec(), usual());
                Ok(())
            }
            other => Ok(other?),
        }
    }

    /// Makes the directories what they are to be, the innermost first: what comes after would change times, and may not be
    /// allowed any more.
    fn finish(mut self, owners: Owners, temporary: OwnedFd) -> Result<Built> {
        let described = self.described.remove(&b""[..]).unwrap_or_else(usual);
        let describe = |(path, metadata): (&Vec<u8>, &Metadata)| {
            let directory =
                file::open(self.root.as_fd(), named(path), libc::O_DIRECTORY, 0, Resolve::BeneathNoLinks)?;
            let name = || format!("directory {:?}", String::from_utf8_lossy(path));
            set(directory.as_fd(), metadata, owners, &[]).context(name)
        };
        self.described.iter().rev().try_for_each(describe).inspect_err(|_| {
            // So that it can be removed without privilege.
            for path in self.described.keys() {
                let _ = archive::chmod_at(self.root.as_fd(), named(path), 0o700);
            }
        })?;
        Ok(Built { temporary, root: self.root, described, owners })
    }
}

/// What a directory is that no layer describes.
fn usual() -> Metadata {
    Metadata { mode: 0o755, ..Metadata::default() }
}

/// The directory that `path` is in, and its name there.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    let slash = path.iter().rposition(|b| *b == b'/');
    slash.map_or((b"", path), |i| (&path[..i], &path[i + 1..]))
}

fn named(path: &[u8]) -> &OsStr {
    OsStr::from_bytes(if path.is_empty() { b"." } else { path })
}

/// Opens a directory of the tree, to work in it.
fn open(root: BorrowedFd<'_>, path: &[u8], resolve: Resolve) -> sys::Result<OwnedFd> {
    file::open(root, named(path), libc::O_PATH | libc::O_DIRECTORY, 0, resolve)
}
