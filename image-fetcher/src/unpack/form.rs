//! What a layer becomes: a directory in overlay form (`tree`), or an EROFS image of one (`erofs`).
//!
//! A symbolic link that the layer has put in the way of a later entry is followed inside the layer's own
//! tree, as umoci and containerd do, and absolute links and `..` stay in it. Links of other layers are not
//! seen: a directory of this layer replaces them, as in containers/storage.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::Read;

use super::apply::WHITEOUT;
use super::entry::{Entries, Map, Metadata};
use crate::error::{Error, Kind, Result};

/// How many links one path may lead through, as in the kernel (path_resolution(7)).
const LINK_LIMIT: u32 = 40;

/// No path may be longer, with or without links, as in the kernel (`PATH_MAX`).
const PATH_LIMIT: usize = 4096;

/// For no path may more directories be looked up: links lead up and down in a deep tree for as long as they like.
const LOOKUP_LIMIT: usize = 8192;

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

/// What is known of each directory of a layer, by its path without links.
pub(crate) type Directories = BTreeMap<Vec<u8>, Directory>;

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

/// A directory of the layer that can be worked in.
pub(crate) trait Place: Clone {
    /// Its path without links.
    fn path(&self) -> &[u8];

    /// The path of `name` in this directory.
    fn join(&self, name: &[u8]) -> Vec<u8> {
        if self.path().is_empty() { name.to_vec() } else { [self.path(), b"/", name].concat() }
    }
}

/// A file that is to be made.
pub(crate) struct NewFile<'a, 's> {
    pub metadata: &'a Metadata,
    /// Its size with its holes.
    pub size: u64,
    pub content: Content<'a, 's>,
}

/// Where the bytes of a file come from.
pub(crate) enum Content<'a, 's> {
    /// The entry at hand of an archive, and the map of a sparse one.
    Archive(&'a mut Entries<'s>, Option<&'a Map>),
    /// A file of the layers below.
    File(File),
}

impl Content<'_, '_> {
    /// Whether zeros of the file may be left out.
    pub(crate) fn has_holes(&self) -> bool {
        !matches!(self, Self::Archive(_, None))
    }

    /// Hands all pieces to `sink`, with the offset of each, in their order.
    pub(crate) fn pour(self, mut sink: impl FnMut(u64, &[u8]) -> Result<()>) -> Result<()> {
        match self {
            Self::Archive(entries, None) => pour_piece(entries, (0, u64::MAX), &mut sink),
            Self::Archive(entries, Some(map)) => {
                map.iter().try_for_each(|piece| pour_piece(entries, *piece, &mut sink))
            }
            Self::File(mut file) => {
                let (mut buffer, mut offset) = (vec![0; 256 << 10], 0);
                loop {
                    match file.read(&mut buffer).map_err(|e| coracle_sys::Error::of_io("read()", &e))? {
                        0 => return Ok(()),
                        // A hole, or as good as one.
                        n if buffer[..n].iter().all(|byte| *byte == 0) => offset += n as u64,
                        n => {
                            sink(offset, &buffer[..n])?;
                            offset += n as u64;
                        }
                    }
                }
            }
        }
    }
}

/// Hands on the bytes of one piece, or of all that is left where that is less.
fn pour_piece(
    entries: &mut Entries<'_>,
    (mut offset, mut length): (u64, u64),
    sink: &mut impl FnMut(u64, &[u8]) -> Result<()>,
) -> Result<()> {
    while length > 0 {
        let data = entries.data()?;
        if data.is_empty() {
            return Ok(());
        }
        let n = data.len().min(usize::try_from(length).unwrap_or(usize::MAX));
        sink(offset, &data[..n])?;
        entries.consume(n);
        offset += n as u64;
        length -= n as u64;
    }
    Ok(())
}

/// What entries are applied to, and what is finished when all of them are.
pub(crate) trait Form {
    /// A directory of it.
    type Place: Place;

    /// The directory at `path`, which has no links in it; none where anything of it is no directory.
    fn enter(&mut self, path: &[u8]) -> Result<Option<Self::Place>>;
    /// The directory `name` in `at`, which is known to be one.
    fn step(&mut self, at: &Self::Place, name: &[u8]) -> Result<Self::Place>;
    /// What lies at `name`.
    fn look(&self, at: &Self::Place, name: &[u8]) -> Result<Found>;
    /// Where the symbolic link `name` leads.
    fn read_link(&self, at: &Self::Place, name: &[u8]) -> Result<Vec<u8>>;
    /// What is known of the directories.
    fn directories(&mut self) -> &mut Directories;
    /// How many bytes of names, links and attributes are kept in memory, at most.
    fn kept(&mut self) -> &mut u64;

    /// Makes the directory `name`, or where there is one already gives it the new metadata. Anything else of
    /// that name is replaced; then what is below must not show through.
    fn make_directory(&mut self, at: &Self::Place, name: &[u8], metadata: Option<Metadata>) -> Result<()>;
    /// Makes a regular file; it, and all that follow, replace what has the name.
    fn add_file(&mut self, at: &Self::Place, name: &[u8], file: NewFile<'_, '_>) -> Result<()>;
    /// Makes a symbolic link.
    fn add_symlink(&mut self, at: &Self::Place, name: &[u8], target: &[u8], meta: &Metadata) -> Result<()>;
    /// Makes a device node or FIFO: `S_IFCHR`, `S_IFBLK` or `S_IFIFO`, and the device.
    fn add_node(&mut self, at: &Self::Place, name: &[u8], node: (u32, u64), meta: &Metadata) -> Result<()>;
    /// Gives what is at `from` another name.
    fn add_link(&mut self, from: (&Self::Place, &[u8]), at: &Self::Place, name: &[u8]) -> Result<()>;
    /// Takes away what this layer has at `name`, whatever it is, since a later entry replaces it.
    fn clear(&mut self, at: &Self::Place, name: &[u8]) -> Result<()>;
    /// Hides what has the name `name` below. What this layer has there stays.
    fn white_out(&mut self, at: &Self::Place, name: &[u8]) -> Result<()>;

    /// Removes the whiteouts in a directory.
    fn remove_whiteouts(&mut self, path: &[u8]) -> Result<()>;
    /// Removes a directory if nothing is in it, and tells whether it did.
    fn remove_empty(&mut self, path: &[u8]) -> Result<bool>;
    /// Gives a directory its metadata, and the attributes `marks` of our own and of overlayfs.
    fn describe(&mut self, path: &[u8], metadata: Metadata, marks: &[(&str, &[u8])]) -> Result<()>;
    /// Writes what is left to write.
    fn close(self) -> Result<()>;

    /// Hides all that the directory has below.
    fn make_opaque(&mut self, at: &Self::Place) {
        self.directories().entry(at.path().to_vec()).or_default().opaque = true;
    }

    /// The directory that `path` leads to, made where it is missing.
    fn parent(&mut self, path: &[&[u8]]) -> Result<Self::Place> {
        if let Some(place) = self.enter(&path.join(&b'/'))? {
            return Ok(place);
        }
        // A link, something missing, or something that is no directory: one component at a time.
        let walked = self.walk(path, Missing::Make)?;
        walked.ok_or_else(|| parent_error(&path.join(&b'/'), "is no directory"))
    }

    /// The directory that `path` leads to, if it is in this layer.
    fn find(&mut self, path: &[&[u8]]) -> Result<Option<Self::Place>> {
        self.walk(path, Missing::Report)
    }

    /// The directory at a path that is known to be one.
    fn at(&mut self, path: &[u8]) -> Result<Self::Place> {
        self.enter(path)?.ok_or_else(|| parent_error(path, "is no directory"))
    }

    /// The directory that `path` leads to, one component at a time.
    #[expect(private_interfaces, reason = "only the methods above walk")]
    fn walk(&mut self, path: &[&[u8]], missing: Missing) -> Result<Option<Self::Place>> {
        let mut todo: VecDeque<Vec<u8>> = path.iter().map(|c| c.to_vec()).collect();
        let (mut here, mut links, mut lookups) = (self.at(b"")?, 0, 0);
        while let Some(name) = todo.pop_front() {
            if name == b".." {
                let end = here.path().iter().rposition(|b| *b == b'/').unwrap_or(0);
                lookups += here.path().split(|b| *b == b'/').count();
                here = self.at(&here.path()[..end])?;
                continue;
            }
            let path = here.join(&name);
            lookups += 1;
            if lookups > LOOKUP_LIMIT {
                return Err(parent_error(&path, "is too far by the links that lead there"));
            }
            if path.len() > PATH_LIMIT {
                return Err(parent_error(&path[..64], "… is longer than 4096 bytes"));
            }
            match self.look(&here, &name)? {
                Found::Directory => here = self.step(&here, &name)?,
                Found::Symlink => {
                    links += 1;
                    if links > LINK_LIMIT {
                        return Err(parent_error(&path, "is one of too many links"));
                    }
                    let target = self.read_link(&here, &name)?;
                    if target.starts_with(b"/") {
                        here = self.at(b"")?;
                    }
                    let parts = target.split(|b| *b == b'/').rev();
                    parts.filter(|p| !p.is_empty() && *p != b".").for_each(|p| todo.push_front(p.to_vec()));
                }
                Found::Nothing | Found::Whiteout if missing == Missing::Make => {
                    if name.starts_with(WHITEOUT) {
                        return Err(parent_error(&path, "would have the name of a whiteout"));
                    }
                    *self.kept() += path.len() as u64;
                    self.make_directory(&here, &name, None)?;
                    here = self.step(&here, &name)?;
                }
                Found::Nothing | Found::Whiteout => return Ok(None),
                Found::Other => return Err(parent_error(&path, "is no directory")),
            }
        }
        Ok(Some(here))
    }
}

/// Takes a directory and all below it out of what is known of directories.
pub(crate) fn forget<T>(map: &mut BTreeMap<Vec<u8>, T>, path: &[u8]) {
    // All paths that begin with `path/`: '0' is the byte behind '/'.
    let inside = [path, b"/"].concat()..[path, b"0"].concat();
    let gone: Vec<Vec<u8>> = map.range(inside).map(|(path, _)| path.clone()).collect();
    for path in gone.iter().map(Vec::as_slice).chain([path]) {
        map.remove(path);
    }
}

/// The components of a path of an archive, without a leading slash, "." and what ".." takes back.
///
/// # Errors
/// Where it climbs out of the layer, or is too long.
pub(crate) fn components(path: &[u8]) -> Result<Vec<&[u8]>> {
    if path.len() > PATH_LIMIT {
        return Err(Error::new(Kind::Limit, "its name is longer than 4096 bytes"));
    }
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
