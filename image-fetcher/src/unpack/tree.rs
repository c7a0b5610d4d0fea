//! The directory that one layer is unpacked in, reached by descriptors only.
//!
//! A symbolic link that the layer has put in the way of a later entry is followed inside the layer's own
//! directory, as umoci and containerd do, and absolute links and `..` stay in it. Links of other layers
//! are not seen: a directory of this layer replaces them, as in containers/storage.
//!
//! Directories keep the permissions 0700 until the end: then they get their owner, permissions, attributes
//! and times, which writing into them would change or which would be inherited.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use coracle_sys::archive;
use coracle_sys::file::{self, Resolve};
use coracle_sys::{self as sys, Errno};

use super::entry::Metadata;
use crate::error::{Error, Kind, Result};
use crate::store::is_missing;

/// How many links one path may lead through, as in the kernel (path_resolution(7)).
const LINK_LIMIT: u32 = 40;

/// A layer's directory.
pub(crate) struct Tree {
    root: Arc<OwnedFd>,
    /// What is known of each directory, by its path without links.
    pub(super) directories: BTreeMap<Vec<u8>, Directory>,
    /// The last parent: most entries are in the directory of the one before.
    last: Option<(Vec<u8>, Place)>,
}

/// A directory of the layer.
#[derive(Debug, Default)]
pub(crate) struct Directory {
    /// What its entry says; none where it is only implied by what is in it.
    pub metadata: Option<Metadata>,
    /// Whether it hides the directory of the same name below.
    pub opaque: bool,
    /// Whether whiteouts are in it.
    pub whiteouts: bool,
}

/// An open directory of the layer, and its path without links.
#[derive(Clone)]
pub(crate) struct Place {
    fd: Arc<OwnedFd>,
    pub path: Vec<u8>,
}

impl AsFd for Place {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Place {
    /// The path of `name` in this directory.
    pub(crate) fn join(&self, name: &[u8]) -> Vec<u8> {
        if self.path.is_empty() { name.to_vec() } else { [&self.path[..], b"/", name].concat() }
    }
}

/// What lies at a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    /// Nothing.
    Nothing,
    /// The mark that hides what is below: a character device 0:0.
    Whiteout,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// Anything else.
    Other,
}

/// What may happen where a path leads to nothing.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Missing {
    Make,
    Report,
}

impl Tree {
    /// A tree in the empty directory `root`.
    pub(crate) fn new(root: OwnedFd) -> Self {
        let directories = BTreeMap::from([(Vec::new(), Directory::default())]);
        Self { root: Arc::new(root), directories, last: None }
    }

    /// The layer's own directory.
    pub(crate) fn root(&self) -> Place {
        Place { fd: self.root.clone(), path: Vec::new() }
    }

    /// Opens the directory at `path`, which has no links in it, for its attributes.
    pub(crate) fn open(&self, path: &[u8]) -> sys::Result<OwnedFd> {
        let path = if path.is_empty() { Path::new(".") } else { Path::new(OsStr::from_bytes(path)) };
        file::open(self.root.as_fd(), path, libc::O_DIRECTORY, 0, Resolve::BeneathNoLinks)
    }

    /// The directory that `path` leads to, made where it is missing.
    pub(crate) fn parent(&mut self, path: &[&[u8]]) -> Result<Place> {
        let joined = path.join(&b'/');
        if let Some((last, place)) = &self.last
            && *last == joined
        {
            return Ok(place.clone());
        }
        let place = match self.open_path(&joined) {
            Ok(place) => place,
            // A link, something missing, or something that is no directory: one component at a time.
            Err(e) if matches!(e.errno(), Errno::ELOOP | Errno::ENOENT | Errno::ENOTDIR) => {
                self.walk(path, Missing::Make)?.ok_or_else(|| Error::from(e))?
            }
            Err(e) => return Err(e.into()),
        };
        self.last = Some((joined, place.clone()));
        Ok(place)
    }

    /// The directory that `path` leads to, if it is in this layer.
    pub(crate) fn find(&mut self, path: &[&[u8]]) -> Result<Option<Place>> {
        self.walk(path, Missing::Report)
    }

    fn open_path(&self, path: &[u8]) -> sys::Result<Place> {
        if path.is_empty() {
            return Ok(self.root());
        }
        let flags = libc::O_PATH | libc::O_DIRECTORY;
        let name = OsStr::from_bytes(path);
        let fd = file::open(self.root.as_fd(), name, flags, 0, Resolve::BeneathNoLinks)?;
        Ok(Place { fd: Arc::new(fd), path: path.to_vec() })
    }

    fn walk(&mut self, path: &[&[u8]], missing: Missing) -> Result<Option<Place>> {
        let mut todo: VecDeque<Vec<u8>> = path.iter().map(|c| c.to_vec()).collect();
        let (mut here, mut links) = (self.root(), 0);
        while let Some(name) = todo.pop_front() {
            if name == b".." {
                let end = here.path.iter().rposition(|b| *b == b'/').unwrap_or(0);
                here = self.open_path(&here.path[..end])?;
                continue;
            }
            match look(&here, &name)? {
                Found::Directory => here = self.open_path(&here.join(&name))?,
                Found::Symlink => {
                    links += 1;
                    let target = file::read_link(here.as_fd(), OsStr::from_bytes(&name))?;
                    if links > LINK_LIMIT {
                        return Err(parent_error(&here.join(&name), "is one of too many links"));
                    }
                    if target.as_bytes().starts_with(b"/") {
                        here = self.root();
                    }
                    let parts = target.as_bytes().split(|b| *b == b'/');
                    for part in parts.rev().filter(|p| !p.is_empty() && *p != b".") {
                        todo.push_front(part.to_vec());
                    }
                }
                Found::Nothing | Found::Whiteout if missing == Missing::Make => {
                    self.make_directory(&here, &name, None)?;
                    here = self.open_path(&here.join(&name))?;
                }
                Found::Nothing | Found::Whiteout => return Ok(None),
                Found::Other => return Err(parent_error(&here.join(&name), "is no directory")),
            }
        }
        Ok(Some(here))
    }

    /// Makes the directory `name`, or where there is one already gives it the new metadata. Anything else of
    /// that name is replaced; then what is below must not show through.
    pub(crate) fn make_directory(
        &mut self,
        parent: &Place,
        name: &[u8],
        metadata: Option<Metadata>,
    ) -> Result<()> {
        let os_name = OsStr::from_bytes(name);
        let mut opaque = false;
        let is_taken = |e: &sys::Error| e.errno() == Errno::EEXIST;
        match file::mkdir(parent.as_fd(), os_name, 0o700) {
            Err(e) if is_taken(&e) => {
                if look(parent, name)? != Found::Directory {
                    self.clear(parent, name)?;
                    file::mkdir(parent.as_fd(), os_name, 0o700)?;
                    opaque = true;
                }
            }
            other => other?,
        }
        let directory = self.directories.entry(parent.join(name)).or_default();
        directory.opaque |= opaque;
        if metadata.is_some() {
            directory.metadata = metadata;
        }
        Ok(())
    }

    /// Removes what has the name `name`, whatever it is, since a later entry replaces it.
    pub(crate) fn clear(&mut self, parent: &Place, name: &[u8]) -> Result<()> {
        self.last = None;
        if look(parent, name)? == Found::Directory {
            let path = parent.join(name);
            // All paths that begin with `path/`: '0' is the byte behind '/'.
            let inside = [&path[..], b"/"].concat()..[&path[..], b"0"].concat();
            let gone: Vec<Vec<u8>> = self.directories.range(inside).map(|(path, _)| path.clone()).collect();
            for path in gone.iter().chain([&path]) {
                self.directories.remove(path);
            }
        }
        Ok(archive::remove_tree(parent.as_fd(), OsStr::from_bytes(name))?)
    }

    /// Does what `make` does, after what has the name already was removed.
    pub(crate) fn replace<T>(
        &mut self,
        parent: &Place,
        name: &[u8],
        make: impl Fn(BorrowedFd<'_>, &OsStr) -> sys::Result<T>,
    ) -> Result<T> {
        let os_name = OsStr::from_bytes(name);
        match make(parent.as_fd(), os_name) {
            Err(e) if e.errno() == Errno::EEXIST => {
                self.clear(parent, name)?;
                Ok(make(parent.as_fd(), os_name)?)
            }
            other => Ok(other?),
        }
    }

    /// Hides all that the directory has below.
    pub(crate) fn make_opaque(&mut self, place: &Place) {
        self.directories.entry(place.path.clone()).or_default().opaque = true;
    }

    /// Hides what has the name `name` below. What this layer has there stays.
    pub(crate) fn white_out(&mut self, parent: &Place, name: &[u8]) -> Result<()> {
        match file::mknod(parent.as_fd(), OsStr::from_bytes(name), libc::S_IFCHR, 0) {
            Err(e) if e.errno() == Errno::EEXIST => {
                if let Some(directory) = self.directories.get_mut(&parent.join(name)) {
                    directory.opaque = true;
                }
                Ok(())
            }
            other => {
                self.directories.entry(parent.path.clone()).or_default().whiteouts = true;
                Ok(other?)
            }
        }
    }
}

/// What lies at `name` in a directory.
pub(crate) fn look(parent: &impl AsFd, name: &[u8]) -> Result<Found> {
    let stat = file::stat_at(parent.as_fd(), OsStr::from_bytes(name));
    if is_missing(&stat) {
        return Ok(Found::Nothing);
    }
    let stat = stat?;
    Ok(match stat.st_mode & libc::S_IFMT {
        libc::S_IFDIR => Found::Directory,
        libc::S_IFLNK => Found::Symlink,
        libc::S_IFCHR if stat.st_rdev == 0 => Found::Whiteout,
        _ => Found::Other,
    })
}

/// The components of a path of an archive, without a leading slash, "." and what ".." takes back.
///
/// # Errors
/// Where it climbs out of the layer.
pub(crate) fn components(path: &[u8]) -> Result<Vec<&[u8]>> {
    let mut components = Vec::new();
    for part in path.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." if components.pop().is_none() => {
                return Err(Error::new(Kind::Malformed, "it climbs out of the layer"));
            }
            b".." => {}
            _ => components.push(part),
        }
    }
    Ok(components)
}

fn parent_error(path: &[u8], why: &str) -> Error {
    Error::new(Kind::Malformed, format!("its parent {:?} {why}", String::from_utf8_lossy(path)))
}
