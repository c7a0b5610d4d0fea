//! The directory that one layer is unpacked in, reached by descriptors only.
//!
//! Directories keep the permissions 0700 until the end: then they get their owner, permissions, attributes
//! and times, which writing into them would change or which would be inherited.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use coracle_sys::archive;
use coracle_sys::file::{self, Resolve};
use coracle_sys::{self as sys, Errno};

use super::entry::Metadata;
use super::form::{Directories, Directory, Form, Found, NewFile, Place, forget};
use super::owners::Owners;
use crate::error::Result;
use crate::metadata::{DEVICE, OWNER};
use crate::store::is_missing;

/// Files from this size on are sent to the device while the next ones are written.
const EARLY_SYNC: u64 = 1 << 20;

/// A layer's directory.
pub(crate) struct Tree {
    root: Arc<OwnedFd>,
    directories: Directories,
    kept: u64,
    owners: Owners,
    /// The last one entered: most entries are in the directory of the one before.
    last: Option<Opened>,
}

/// An open directory of the layer, and its path without links.
#[derive(Clone)]
pub(crate) struct Opened {
    fd: Arc<OwnedFd>,
    path: Vec<u8>,
}

impl AsFd for Opened {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Place for Opened {
    fn path(&self) -> &[u8] {
        &self.path
    }
}

impl Tree {
    /// A tree in the empty directory `root`, whose files are given to these owners.
    pub(crate) fn new(root: OwnedFd, owners: Owners) -> Self {
        let directories = Directories::from([(Vec::new(), Directory::default())]);
        Self { root: Arc::new(root), directories, kept: 0, owners, last: None }
    }

    /// Its directory.
    pub(super) fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Makes an empty file in the place of a device, which only the host's root can make.
    fn stand_in(
        &mut self,
        at: &Opened,
        name: &[u8],
        (kind, device): (u32, u64),
        meta: &Metadata,
    ) -> Result<()> {
        let letter = if kind == libc::S_IFCHR { 'c' } else { 'b' };
        let note = format!("{letter} {}:{}", libc::major(device), libc::minor(device));
        let file = self.replace(at, name, new_file)?;
        set(file.as_fd(), meta, self.owners, &[(DEVICE, note.as_bytes())])
    }

    /// Opens the directory at `path`, which has no links in it, for its attributes.
    fn open(&self, path: &[u8]) -> sys::Result<OwnedFd> {
        let path = if path.is_empty() { Path::new(".") } else { Path::new(OsStr::from_bytes(path)) };
        file::open(self.root.as_fd(), path, libc::O_DIRECTORY, 0, Resolve::BeneathNoLinks)
    }

    /// Does what `make` does, after what has the name already was removed.
    fn replace<T>(
        &mut self,
        at: &Opened,
        name: &[u8],
        make: impl Fn(BorrowedFd<'_>, &OsStr) -> sys::Result<T>,
    ) -> Result<T> {
        let os_name = OsStr::from_bytes(name);
        match make(at.as_fd(), os_name) {
            Err(e) if e.errno() == Errno::EEXIST => {
                self.clear(at, name)?;
                Ok(make(at.as_fd(), os_name)?)
            }
            other => Ok(other?),
        }
    }
}

impl Form for Tree {
    type Place = Opened;

    fn enter(&mut self, path: &[u8]) -> Result<Option<Opened>> {
        if let Some(last) = self.last.as_ref().filter(|last| last.path == path) {
            return Ok(Some(last.clone()));
        }
        if path.is_empty() {
            return Ok(Some(Opened { fd: self.root.clone(), path: Vec::new() }));
        }
        let flags = libc::O_PATH | libc::O_DIRECTORY;
        match file::open(self.root.as_fd(), OsStr::from_bytes(path), flags, 0, Resolve::BeneathNoLinks) {
            Ok(fd) => {
                self.last = Some(Opened { fd: Arc::new(fd), path: path.to_vec() });
                Ok(self.last.clone())
            }
            Err(e) if matches!(e.errno(), Errno::ELOOP | Errno::ENOENT | Errno::ENOTDIR) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    fn step(&mut self, at: &Opened, name: &[u8]) -> Result<Opened> {
        let flags = libc::O_PATH | libc::O_DIRECTORY;
        let fd = file::open(at.as_fd(), OsStr::from_bytes(name), flags, 0, Resolve::BeneathNoLinks)?;
        let opened = Opened { fd: Arc::new(fd), path: at.join(name) };
        self.last = Some(opened.clone());
        Ok(opened)
    }

    fn look(&self, at: &Opened, name: &[u8]) -> Result<Found> {
        look(at.as_fd(), name)
    }

    fn read_link(&self, at: &Opened, name: &[u8]) -> Result<Vec<u8>> {
        Ok(file::read_link(at.as_fd(), OsStr::from_bytes(name))?.into_encoded_bytes())
    }

    fn directories(&mut self) -> &mut Directories {
        &mut self.directories
    }

    fn kept(&mut self) -> &mut u64 {
        &mut self.kept
    }

    fn make_directory(&mut self, at: &Opened, name: &[u8], metadata: Option<Metadata>) -> Result<()> {
        let os_name = OsStr::from_bytes(name);
        let mut opaque = false;
        match file::mkdir(at.as_fd(), os_name, 0o700) {
            Err(e) if e.errno() == Errno::EEXIST => {
                if self.look(at, name)? != Found::Directory {
                    self.clear(at, name)?;
                    file::mkdir(at.as_fd(), os_name, 0o700)?;
                    opaque = true;
                }
            }
            other => other?,
        }
        let directory = self.directories.entry(at.join(name)).or_default();
        directory.opaque |= opaque;
        if metadata.is_some() {
            directory.metadata = metadata;
        }
        Ok(())
    }

    fn add_file(&mut self, at: &Opened, name: &[u8], new: NewFile<'_, '_>) -> Result<()> {
        let file = File::from(self.replace(at, name, new_file)?);
        let has_holes = new.content.has_holes();
        new.content.pour(|offset, bytes| {
            Ok(file.write_all_at(bytes, offset).map_err(|e| coracle_sys::Error::of_io("pwrite()", &e))?)
        })?;
        if has_holes {
            let failed = |e| coracle_sys::Error::of_io(format!("ftruncate({})", new.size), &e);
            file.set_len(new.size).map_err(failed)?;
        } else if new.size >= EARLY_SYNC {
            archive::begin_sync(file.as_fd(), 0, new.size)?;
        }
        set(file.as_fd(), new.metadata, self.owners, &[])
    }

    fn add_symlink(&mut self, at: &Opened, name: &[u8], target: &[u8], meta: &Metadata) -> Result<()> {
        self.replace(at, name, |dir, name| file::symlink(OsStr::from_bytes(target), dir, name))?;
        set_owner_at(at.as_fd(), name, meta, self.owners)?;
        set_rest_at(at.as_fd(), name, meta, self.owners)
    }

    fn add_node(
        &mut self,
        at: &Opened,
        name: &[u8],
        (kind, device): (u32, u64),
        meta: &Metadata,
    ) -> Result<()> {
        if self.owners != Owners::All && kind != libc::S_IFIFO {
            return self.stand_in(at, name, (kind, device), meta);
        }
        self.replace(at, name, |dir, name| file::mknod(dir, name, kind | 0o600, device))?;
        set_owner_at(at.as_fd(), name, meta, self.owners)?;
        archive::chmod_at(at.as_fd(), OsStr::from_bytes(name), self.owners.mode(meta))?;
        set_rest_at(at.as_fd(), name, meta, self.owners)
    }

    fn add_link(&mut self, (from, old): (&Opened, &[u8]), at: &Opened, name: &[u8]) -> Result<()> {
        let old = OsStr::from_bytes(old);
        self.replace(at, name, |dir, name| file::link(from.as_fd(), old, dir, name))
    }

    fn clear(&mut self, at: &Opened, name: &[u8]) -> Result<()> {
        self.last = None;
        if self.look(at, name)? == Found::Directory {
            forget(&mut self.directories, &at.join(name));
        }
        Ok(archive::remove_tree(at.as_fd(), OsStr::from_bytes(name))?)
    }

    fn white_out(&mut self, at: &Opened, name: &[u8]) -> Result<()> {
        match file::mknod(at.as_fd(), OsStr::from_bytes(name), libc::S_IFCHR, 0) {
            Err(e) if e.errno() == Errno::EEXIST => {
                if let Some(directory) = self.directories.get_mut(&at.join(name)) {
                    directory.opaque = true;
                }
                Ok(())
            }
            other => {
                self.directories.entry(at.path.clone()).or_default().whiteouts = true;
                Ok(other?)
            }
        }
    }

    fn remove_whiteouts(&mut self, path: &[u8]) -> Result<()> {
        let directory = self.open(path)?;
        for name in file::list(directory.as_fd())? {
            if look(directory.as_fd(), name.as_bytes())? == Found::Whiteout {
                file::unlink(directory.as_fd(), &name)?;
            }
        }
        Ok(())
    }

    fn remove_empty(&mut self, path: &[u8]) -> Result<bool> {
        let slash = path.iter().rposition(|b| *b == b'/');
        let (parent, name) = slash.map_or((&b""[..], path), |i| (&path[..i], &path[i + 1..]));
        let parent = self.open(parent)?;
        match file::rmdir(parent.as_fd(), OsStr::from_bytes(name)) {
            Err(e) if e.errno() == Errno::ENOTEMPTY => Ok(false),
            other => Ok(other.map(|()| true)?),
        }
    }

    fn describe(&mut self, path: &[u8], metadata: Metadata, marks: &[(&str, &[u8])]) -> Result<()> {
        set(self.open(path)?.as_fd(), &metadata, self.owners, marks)
    }

    fn close(self) -> Result<()> {
        Ok(())
    }
}

/// Makes an empty file.
fn new_file(dir: BorrowedFd<'_>, name: &OsStr) -> sys::Result<OwnedFd> {
    let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL | libc::O_NOFOLLOW;
    file::open(dir, name, flags, 0o600, Resolve::BeneathNoLinks)
}

/// What lies at `name` in a directory.
pub(super) fn look(at: BorrowedFd<'_>, name: &[u8]) -> Result<Found> {
    let stat = file::stat_at(at, OsStr::from_bytes(name));
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

/// Gives an open file its owner, attributes, permissions and times: a new owner takes set-user-ID bits and file capabilities
/// away, and without write permission only root sets attributes of users. `marks` are attributes that no image may have.
pub(super) fn set(
    fd: BorrowedFd<'_>,
    metadata: &Metadata,
    owners: Owners,
    marks: &[(&str, &[u8])],
) -> Result<()> {
    let (uid, gid) = owners.given(metadata);
    // What root makes in a directory without a set-group-ID bit is root's.
    if (uid, gid) != (0, 0) {
        file::chown(fd, uid, gid)?;
    }
    let is_users = |name: &[u8]| name.starts_with(b"user.");
    set_attributes(fd, metadata, owners, is_users)?;
    for (name, value) in marks {
        archive::set_xattr(fd, OsStr::new(name), value)?;
    }
    if let Some(note) = owners.note(metadata) {
        archive::set_xattr(fd, OsStr::new(OWNER), &note)?;
    }
    file::chmod(fd, owners.mode(metadata))?;
    // Those of access control change permissions.
    set_attributes(fd, metadata, owners, |name| !is_users(name))?;
    Ok(archive::set_times(fd, metadata.accessed, metadata.modified)?)
}

fn set_attributes(
    fd: BorrowedFd<'_>,
    metadata: &Metadata,
    owners: Owners,
    wanted: impl Fn(&[u8]) -> bool,
) -> Result<()> {
    for (name, value) in metadata.xattrs.iter().filter(|(name, _)| wanted(name)) {
        allowed(archive::set_xattr(fd, OsStr::from_bytes(name), value), owners)?;
    }
    Ok(())
}

/// Only the host's root sets attributes of all kinds, and lists of access control with users whom nobody else may name.
fn allowed(set: sys::Result<()>, owners: Owners) -> Result<()> {
    match set {
        Err(e) if owners != Owners::All && matches!(e.errno(), Errno::EPERM | Errno::EINVAL) => Ok(()),
        other => Ok(other?),
    }
}

fn set_owner_at(dir: BorrowedFd<'_>, name: &[u8], metadata: &Metadata, owners: Owners) -> Result<()> {
    let (uid, gid) = owners.given(metadata);
    if (uid, gid) != (0, 0) {
        archive::chown_at(dir, OsStr::from_bytes(name), uid, gid)?;
    }
    Ok(())
}

fn set_rest_at(dir: BorrowedFd<'_>, name: &[u8], metadata: &Metadata, owners: Owners) -> Result<()> {
    let name = OsStr::from_bytes(name);
    for (attribute, value) in &metadata.xattrs {
        allowed(archive::set_xattr_at(dir, name, OsStr::from_bytes(attribute), value), owners)?;
    }
    Ok(archive::set_times_at(dir, name, metadata.accessed, metadata.modified)?)
}
