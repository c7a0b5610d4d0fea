//! The last of a layer: what it takes from the layers below, and the metadata of its directories.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use coracle_sys::archive::{self, Time};
use coracle_sys::file::{self, Resolve};
use coracle_sys::{self as sys, Errno};

use super::apply::{LinkBelow, link_inside, set, target_components};
use super::entry::Metadata;
use super::tree::{Directory, Found, Place, Tree, look};
use crate::error::{Context, Error, Kind, Result};
use crate::metadata::{self, IMPLIED};

/// A layer with all its entries applied.
pub(crate) struct Applied {
    pub tree: Tree,
    pub links: Vec<LinkBelow>,
}

impl Applied {
    /// Whether what is below has to be known to finish the layer: the target of a hard link, the owner and
    /// permissions of a directory that it has no entry for, and whether there is anything to white out.
    pub(crate) fn needs_below(&self) -> bool {
        let needs = |(path, directory): (&Vec<u8>, &Directory)| {
            !path.is_empty() && (directory.metadata.is_none() || directory.whiteouts)
        };
        !self.links.is_empty() || self.tree.directories.iter().any(needs)
    }

    /// Finishes the layer; `below` shows the layers below it as a container would see them, none for the
    /// lowest. Returns whether the layer has become another one than it would be elsewhere.
    pub(crate) fn finish(mut self, below: Option<BorrowedFd<'_>>) -> Result<Fit> {
        let mut fit = if self.links.is_empty() { Fit::Anywhere } else { Fit::Here };
        for link in std::mem::take(&mut self.links) {
            let name = || format!("entry {:?}", String::from_utf8_lossy(&link.name));
            link_below(&mut self.tree, &link, below).context(name)?;
        }
        let directories = std::mem::take(&mut self.tree.directories);
        // Backwards, what is in a directory comes before it, since its path is longer.
        for (path, directory) in directories.iter().rev() {
            let name = || format!("directory {:?}", String::from_utf8_lossy(path));
            let below = below.filter(|_| !is_hidden(&directories, path));
            let lower = below.and_then(|below| open_lower(below, path));
            if finish_directory(&self.tree, path, directory, lower).context(name)? == Fit::Here {
                fit = Fit::Here;
            }
        }
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
fn is_hidden(directories: &BTreeMap<Vec<u8>, Directory>, path: &[u8]) -> bool {
    let slashes = path.iter().enumerate().filter(|(_, b)| **b == b'/').map(|(i, _)| i);
    let mut prefixes = slashes.chain([path.len()]).map(|end| &path[..end]);
    prefixes.any(|prefix| directories.get(prefix).is_some_and(|d| d.opaque))
}

/// Links to a file of the layers below as overlayfs does: a copy of it gets both names.
fn link_below(tree: &mut Tree, link: &LinkBelow, below: Option<BorrowedFd<'_>>) -> Result<()> {
    let directory: Vec<&[u8]> = link.directory.split(|b| *b == b'/').filter(|c| !c.is_empty()).collect();
    let place = tree.parent(&directory)?;
    if !matches!(look(&place, &link.name)?, Found::Nothing | Found::Whiteout) {
        // A later entry has taken the name.
        return Ok(());
    }
    if link_inside(tree, &place, &link.name, &link.target)? {
        return Ok(());
    }
    let path = target_components(&link.target)?;
    let target = path.join(&b'/');
    let missing = || {
        let shown = String::from_utf8_lossy(&link.target);
        Error::new(Kind::Malformed, format!("it is a hard link to {shown:?}, which is in no layer"))
    };
    let below = below.ok_or_else(missing)?;
    let source = |resolve| Source { below, path: &target, resolve };
    let (Some(name), Some(parent)) = (path.last(), path.get(..path.len().saturating_sub(1))) else {
        return Err(missing());
    };
    match source(Resolve::BeneathNoLinks).open(libc::O_PATH) {
        Ok(_) => {
            let origin = tree.parent(parent)?;
            copy_up(tree, &source(Resolve::BeneathNoLinks), &origin, name)?;
            link_inside(tree, &place, &link.name, &link.target).map(drop)
        }
        // Through a link of a lower layer, whose name a directory of this layer would hide: one copy.
        Err(e) if e.errno() == Errno::ELOOP => {
            let source = source(Resolve::InRoot);
            source.open(libc::O_PATH).map_err(|_| missing())?;
            copy_up(tree, &source, &place, &link.name)
        }
        Err(e) if matches!(e.errno(), Errno::ENOENT | Errno::ENOTDIR) => Err(missing()),
        Err(e) => Err(e.into()),
    }
}

/// A file of the layers below.
struct Source<'a> {
    below: BorrowedFd<'a>,
    path: &'a [u8],
    resolve: Resolve,
}

impl Source<'_> {
    fn open(&self, flags: i32) -> sys::Result<OwnedFd> {
        file::open(self.below, OsStr::from_bytes(self.path), flags | libc::O_NOFOLLOW, 0, self.resolve)
    }
}

/// Copies a file of the layers below with all its metadata.
fn copy_up(tree: &mut Tree, source: &Source<'_>, to: &Place, name: &[u8]) -> Result<()> {
    let looked = source.open(libc::O_PATH)?;
    let stat = file::stat(looked.as_fd())?;
    let [accessed, modified] = metadata::times(&stat);
    let at = OsStr::from_bytes(name);
    match stat.st_mode & libc::S_IFMT {
        libc::S_IFREG => return copy_file(tree, source, to, name),
        libc::S_IFDIR => return Err(Error::new(Kind::Malformed, "it is a hard link to a directory")),
        libc::S_IFLNK => {
            let target = file::read_link(looked.as_fd(), "")?;
            tree.replace(to, name, |dir, name| file::symlink(&target, dir, name))?;
            archive::chown_at(to.as_fd(), at, stat.st_uid, stat.st_gid)?;
        }
        _ => {
            tree.replace(to, name, |dir, name| file::mknod(dir, name, stat.st_mode, stat.st_rdev))?;
            archive::chown_at(to.as_fd(), at, stat.st_uid, stat.st_gid)?;
            archive::chmod_at(to.as_fd(), at, stat.st_mode & 0o7777)?;
        }
    }
    Ok(archive::set_times_at(to.as_fd(), at, accessed, modified)?)
}

fn copy_file(tree: &mut Tree, source: &Source<'_>, to: &Place, name: &[u8]) -> Result<()> {
    let mut from = File::from(source.open(libc::O_RDONLY)?);
    let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL | libc::O_NOFOLLOW;
    let made =
        tree.replace(to, name, |dir, name| file::open(dir, name, flags, 0o600, Resolve::BeneathNoLinks));
    let mut copy = File::from(made?);
    std::io::copy(&mut from, &mut copy).map_err(|e| archive::io_error("copy_file_range()", &e))?;
    let [accessed, modified] = metadata::copy(from.as_fd(), copy.as_fd())?;
    Ok(archive::set_times(copy.as_fd(), accessed, modified)?)
}

/// Gives a directory its metadata; `lower` is the one below that it is merged with.
fn finish_directory(tree: &Tree, path: &[u8], directory: &Directory, lower: Option<OwnedFd>) -> Result<Fit> {
    let fd = tree.open(path)?;
    let fd = fd.as_fd();
    let is_root = path.is_empty();
    let mut fit = if directory.metadata.is_none() && !is_root { Fit::Here } else { Fit::Anywhere };
    if directory.whiteouts && lower.is_none() && !is_root {
        // Overlayfs hides what it merges; in a directory that is not merged, a whiteout would be listed.
        remove_whiteouts(fd)?;
        fit = Fit::Here;
    }
    let [accessed, modified] = match (&directory.metadata, lower) {
        (Some(metadata), _) => {
            set(fd, metadata)?;
            [metadata.accessed, metadata.modified]
        }
        (None, Some(lower)) => metadata::copy(lower.as_fd(), fd)?,
        (None, None) if is_root => {
            archive::set_xattr(fd, OsStr::new(IMPLIED), b"y")?;
            set_default(fd)?
        }
        // Nothing of that name is below, and maybe nothing was in it but whiteouts of nothing.
        (None, None) => match remove_empty(tree, path) {
            Err(e) if e.errno() == Errno::ENOTEMPTY => set_default(fd)?,
            other => return Ok(other.map(|()| fit)?),
        },
    };
    if directory.opaque {
        archive::set_xattr(fd, OsStr::new("trusted.overlay.opaque"), b"y")?;
    }
    archive::set_times(fd, accessed, modified)?;
    Ok(fit)
}

/// A directory that no layer describes: root's, for all to see, of no time.
fn set_default(fd: BorrowedFd<'_>) -> Result<[Time; 2]> {
    set(fd, &Metadata { mode: 0o755, ..Metadata::default() })?;
    Ok([Time::default(); 2])
}

fn open_lower(below: BorrowedFd<'_>, path: &[u8]) -> Option<OwnedFd> {
    // The root directory is left to the snapshot, which knows all layers.
    if path.is_empty() {
        return None;
    }
    // Whatever else is there is hidden by this layer's directory, and says nothing about it.
    file::open(below, OsStr::from_bytes(path), libc::O_DIRECTORY, 0, Resolve::BeneathNoLinks).ok()
}

fn remove_whiteouts(fd: BorrowedFd<'_>) -> Result<()> {
    for name in file::list(fd)? {
        if look(&fd, name.as_bytes())? == Found::Whiteout {
            file::unlink(fd, &name)?;
        }
    }
    Ok(())
}

fn remove_empty(tree: &Tree, path: &[u8]) -> sys::Result<()> {
    let slash = path.iter().rposition(|b| *b == b'/');
    let (parent, name) = slash.map_or((&b""[..], path), |i| (&path[..i], &path[i + 1..]));
    let parent = tree.open(parent)?;
    file::rmdir(parent.as_fd(), OsStr::from_bytes(name))
}
