//! Hard links of a layer to files of the layers below it.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use coracle_sys::file::{self, Resolve};
use coracle_sys::{self as sys, Errno};

use super::apply::{link_inside, target_components};
use super::finish::{plain_metadata, read_metadata};
use super::form::{Content, Form, Found, NewFile, Place};
use super::limits::Limits;
use crate::error::{Context, Error, Kind, Result};

/// Those of one layer: the path of each, and of the file below that it leads to.
#[derive(Debug, Default)]
pub(crate) struct Links(BTreeMap<Vec<u8>, Vec<u8>>);

impl Links {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes down a hard link whose target the layer doesn't hold by now: what it gets later, the link is none to.
    pub(super) fn add<F: Form>(
        &mut self,
        form: &mut F,
        (at, name): (&F::Place, &[u8]),
        target: &[u8],
    ) -> Result<()> {
        let components = target_components(target)?;
        let (last, parent) = components.split_last().ok_or_else(|| missing(target))?;
        let target = form.find(parent)?.map_or_else(|| components.join(&b'/'), |place| place.join(last));
        // One to another link leads where that one does.
        let target = self.0.get(&target).cloned().unwrap_or(target);
        *form.kept() += target.len() as u64;
        form.clear(at, name)?;
        self.0.insert(at.join(name), target);
        Ok(())
    }

    /// Hands each to `make`, with its place in the layer and its name there, but for those whose name a later entry has taken.
    pub(super) fn each<F: Form>(
        &self,
        form: &mut F,
        mut make: impl FnMut(&mut F, (&F::Place, &[u8]), &[u8]) -> Result<()>,
    ) -> Result<()> {
        for (path, target) in &self.0 {
            let mut make = || {
                let mut directory: Vec<&[u8]> = path.split(|b| *b == b'/').collect();
                let name = directory.pop().unwrap_or_default();
                let at = form.parent(&directory)?;
                match form.look(&at, name)? {
                    Found::Nothing | Found::Whiteout => make(form, (&at, name), target),
                    _ => Ok(()),
                }
            };
            make().context(|| format!("entry {:?}", String::from_utf8_lossy(path)))?;
        }
        Ok(())
    }

    /// Links as overlayfs does: a copy of the file gets both names, or only the new one where the layer hides the other.
    /// `bytes` are those of the layer's files and their limit; returns them with those of the copies.
    pub(super) fn copy<F: Form>(
        &self,
        form: &mut F,
        below: Option<BorrowedFd<'_>>,
        bytes: (u64, u64),
    ) -> Result<u64> {
        let mut copies = Copies { made: BTreeMap::new(), bytes: bytes.0, limit: bytes.1 };
        self.each(form, |form, (at, name), target| {
            if let Some(made) = copies.made.get(target) {
                return link_inside(form, at, name, made).map(drop);
            }
            match below.map(|below| Source::find(below, target)).transpose()?.flatten() {
                Some(source) if !source.is_through_link && self.shows(form, target)? => {
                    let components: Vec<&[u8]> = target.split(|b| *b == b'/').collect();
                    let (last, parent) = components.split_last().ok_or_else(|| missing(target))?;
                    let origin = form.parent(parent)?;
                    copies.add(form, &source, (&origin, last))?;
                    link_inside(form, at, name, target).map(drop)
                }
                Some(source) => copies.add(form, &source, (at, name)),
                // An archive that names the link before the file.
                None if link_inside(form, at, name, target)? => Ok(()),
                None => Err(missing(target)),
            }
        })?;
        Ok(copies.bytes)
    }

    /// Whether the layer lets a path of the layers below show through, and so can have a copy there.
    fn shows<F: Form>(&self, form: &mut F, path: &[u8]) -> Result<bool> {
        let mut here = form.at(b"")?;
        for name in path.split(|b| *b == b'/') {
            let is_opaque = form.directories().get(here.path()).is_some_and(|directory| directory.opaque);
            if is_opaque || self.0.contains_key(&here.join(name)) {
                return Ok(false);
            }
            match form.look(&here, name)? {
                Found::Nothing => return Ok(true),
                Found::Directory => here = form.step(&here, name)?,
                Found::Whiteout | Found::Symlink | Found::Other => return Ok(false),
            }
        }
        Ok(false)
    }
}

/// What hard links have brought from the layers below.
struct Copies {
    /// Where the copy of each file is.
    made: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The bytes of the layer's files, with those of the copies.
    bytes: u64,
    limit: u64,
}

impl Copies {
    /// Copies a file of the layers below with all its metadata. Of what can't be opened, attributes stay behind.
    fn add<F: Form>(
        &mut self,
        form: &mut F,
        source: &Source<'_>,
        (at, name): (&F::Place, &[u8]),
    ) -> Result<()> {
        let stat = file::stat(source.looked.as_fd())?;
        let metadata = plain_metadata(&stat);
        match stat.st_mode & libc::S_IFMT {
            libc::S_IFREG => {
                let file = source.open(libc::O_RDONLY)?;
                let metadata = read_metadata(file.as_fd())?;
                let (content, size) = (Content::File(File::from(file)), stat.st_size.unsigned_abs());
                self.count(size)?;
                form.add_file(at, name, NewFile { metadata: &metadata, size, content })?;
            }
            libc::S_IFDIR => return Err(Error::new(Kind::Malformed, "it is a hard link to a directory")),
            libc::S_IFLNK => {
                let target = file::read_link(source.looked.as_fd(), "")?;
                form.add_symlink(at, name, target.as_encoded_bytes(), &metadata)?;
            }
            kind => form.add_node(at, name, (kind, stat.st_rdev), &metadata)?,
        }
        self.made.insert(source.path.to_vec(), at.join(name));
        Ok(())
    }

    fn count(&mut self, size: u64) -> Result<()> {
        self.bytes = self.bytes.saturating_add(size);
        if self.bytes > self.limit {
            return Err(Limits::error("the size of its files", self.limit, "bytes"));
        }
        Ok(())
    }
}

/// A file of the layers below.
struct Source<'a> {
    below: BorrowedFd<'a>,
    path: &'a [u8],
    /// Whether a lower layer's link leads there, whose name a directory of this layer would hide.
    is_through_link: bool,
    looked: OwnedFd,
}

impl<'a> Source<'a> {
    /// The file at `path`; none where there is nothing.
    fn find(below: BorrowedFd<'a>, path: &'a [u8]) -> Result<Option<Self>> {
        let open = |resolve| open(below, path, libc::O_PATH, resolve);
        let (looked, is_through_link) = match open(Resolve::BeneathNoLinks) {
            Err(e) if e.errno() == Errno::ELOOP => (open(Resolve::InRoot), true),
            looked => (looked, false),
        };
        match looked {
            Ok(looked) => Ok(Some(Self { below, path, is_through_link, looked })),
            Err(e) if matches!(e.errno(), Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    fn open(&self, flags: i32) -> sys::Result<OwnedFd> {
        let resolve = if self.is_through_link { Resolve::InRoot } else { Resolve::BeneathNoLinks };
        open(self.below, self.path, flags, resolve)
    }
}

fn open(below: BorrowedFd<'_>, path: &[u8], flags: i32, resolve: Resolve) -> sys::Result<OwnedFd> {
    file::open(below, OsStr::from_bytes(path), flags | libc::O_NOFOLLOW, 0, resolve)
}

/// The target of a hard link is nowhere.
pub(super) fn missing(target: &[u8]) -> Error {
    let shown = String::from_utf8_lossy(target);
    Error::new(Kind::Malformed, format!("it is a hard link to {shown:?}, which is in no layer"))
}
