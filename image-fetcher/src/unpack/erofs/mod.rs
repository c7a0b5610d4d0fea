//! A layer as an EROFS image, written while its archive comes.
//!
//! ```text
//! block 0            the superblock and the inode of the root directory
//! then, as they come the whole blocks of each file, and between them, 64 KiB at a time,
//!                    inodes with the ends of their files behind them
//! at last            the blocks of directories, then their inodes
//! ```
//!
//! Only names are kept in memory, with the number of each one's inode, and the metadata of directories. What a later
//! entry replaces stays in the image, without a name. The same layer makes the same bytes.

mod close;
mod format;
mod output;

use std::collections::BTreeMap;
use std::fs::File;
use std::sync::Arc;

use super::entry::Metadata;
use super::form::{Directories, Directory, Form, Found, NewFile, Place, forget};
use crate::error::{Error, Kind, Result};
use format::{BLOCK, Inode, Layout, MOST_INLINE, SLOT};
use output::Output;

/// So many bytes of inodes are written together.
const SEGMENT: u64 = 64 << 10;

/// An image that is being written.
pub(crate) struct Erofs {
    output: Output,
    uuid: [u8; 16],
    directories: Directories,
    kept: u64,
    /// Directories with all that is to be known of them.
    described: BTreeMap<Vec<u8>, Described>,
    files: BTreeMap<Vec<u8>, Leaf>,
    /// Where the inode of each file is.
    inodes: Vec<Written>,
    /// Where the segments of inodes begin that are written, and the bytes of the next one.
    segments: Vec<u64>,
    segment: Vec<u8>,
}

/// What has a name and is no directory.
#[derive(Debug, Clone)]
struct Leaf {
    /// The type, as stat(2) has it.
    kind: u32,
    inode: usize,
    /// Where a symbolic link leads; all its names share it.
    target: Arc<[u8]>,
    is_whiteout: bool,
}

#[derive(Debug, Clone, Copy)]
struct Written {
    segment: usize,
    offset: u64,
}

struct Described {
    metadata: Metadata,
    attributes: Vec<u8>,
}

/// A directory, which is no more than its path.
impl Place for Vec<u8> {
    fn path(&self) -> &[u8] {
        self
    }
}

impl Erofs {
    /// Begins an image in the empty file `file`.
    pub(crate) fn new(file: File, uuid: [u8; 16]) -> Self {
        Self {
            output: Output::new(file),
            uuid,
            directories: Directories::from([(Vec::new(), Directory::default())]),
            kept: 0,
            described: BTreeMap::new(),
            files: BTreeMap::new(),
            inodes: Vec::new(),
            segments: Vec::new(),
            segment: Vec::new(),
        }
    }

    fn found(&self, path: &[u8]) -> Found {
        if self.directories.contains_key(path) {
            return Found::Directory;
        }
        match self.files.get(path) {
            None => Found::Nothing,
            Some(leaf) if leaf.is_whiteout => Found::Whiteout,
            Some(leaf) if leaf.kind == libc::S_IFLNK => Found::Symlink,
            Some(_) => Found::Other,
        }
    }

    /// Takes away what has the path, whatever it is.
    fn remove(&mut self, path: &[u8]) {
        match self.found(path) {
            Found::Nothing => {}
            Found::Directory => {
                forget(&mut self.directories, path);
                forget(&mut self.files, path);
            }
            _ => drop(self.files.remove(path)),
        }
    }

    /// Gives an inode a name.
    fn name(&mut self, at: &Vec<u8>, name: &[u8], leaf: Leaf) -> Result<()> {
        check_name(name)?;
        let path = at.join(name);
        self.remove(&path);
        self.files.insert(path, leaf);
        Ok(())
    }

    /// Writes an inode without blocks of its own, and the data behind it; returns its index.
    fn add_inode(&mut self, inode: &[u8], data: &[u8]) -> Result<usize> {
        let place = |from: usize| place(from as u64, inode.len() as u64, data.len() as u64);
        let mut offset = place(self.segment.len());
        if offset + (inode.len() + data.len()) as u64 > SEGMENT && !self.segment.is_empty() {
            self.end_segment()?;
            offset = place(0);
        }
        self.segment.resize(offset as usize, 0);
        self.segment.extend(inode);
        self.segment.extend(data);
        self.inodes.push(Written { segment: self.segments.len(), offset });
        Ok(self.inodes.len() - 1)
    }

    fn end_segment(&mut self) -> Result<()> {
        self.segments.push(self.output.position());
        self.output.write(&std::mem::take(&mut self.segment))?;
        self.output.fill_block()
    }

    fn next_number(&self) -> u32 {
        self.inodes.len() as u32 + 1
    }
}

/// Where behind `from` an inode of `record` bytes can stand: at a multiple of 32, and so that the data behind it does not
/// cross the end of a block.
fn place(from: u64, record: u64, data: u64) -> u64 {
    let at = from.next_multiple_of(SLOT);
    let end = at + record;
    if end % BLOCK + data <= BLOCK {
        return at;
    }
    (end.next_multiple_of(BLOCK) - record).next_multiple_of(SLOT)
}

/// The number of the block at `position`.
fn block_number(position: u64) -> Result<u32> {
    let too_large = |_| Error::new(Kind::Limit, "its image is over the limit of 16 TiB");
    u32::try_from(position / BLOCK).map_err(too_large)
}

fn check_name(name: &[u8]) -> Result<()> {
    if name.len() <= 255 {
        return Ok(());
    }
    Err(Error::new(Kind::Limit, "a part of its name is longer than 255 bytes"))
}

fn attributes(metadata: &Metadata, marks: &[(&str, &[u8])]) -> Result<Vec<u8>> {
    let kept = metadata.xattrs.iter().map(|(name, value)| (name.as_slice(), value.as_slice()));
    format::attributes(kept.chain(marks.iter().map(|(name, value)| (name.as_bytes(), *value))))
}

impl Form for Erofs {
    type Place = Vec<u8>;

    fn enter(&mut self, path: &[u8]) -> Result<Option<Vec<u8>>> {
        Ok(self.directories.contains_key(path).then(|| path.to_vec()))
    }

    fn step(&mut self, at: &Vec<u8>, name: &[u8]) -> Result<Vec<u8>> {
        Ok(at.join(name))
    }

    fn look(&self, at: &Vec<u8>, name: &[u8]) -> Result<Found> {
        Ok(self.found(&at.join(name)))
    }

    fn read_link(&self, at: &Vec<u8>, name: &[u8]) -> Result<Vec<u8>> {
        Ok(self.files.get(&at.join(name)).map(|leaf| leaf.target.to_vec()).unwrap_or_default())
    }

    fn directories(&mut self) -> &mut Directories {
        &mut self.directories
    }

    fn kept(&mut self) -> &mut u64 {
        &mut self.kept
    }

    fn make_directory(&mut self, at: &Vec<u8>, name: &[u8], metadata: Option<Metadata>) -> Result<()> {
        check_name(name)?;
        let path = at.join(name);
        let is_replaced = !matches!(self.found(&path), Found::Nothing | Found::Directory);
        if is_replaced {
            self.remove(&path);
        }
        let directory = self.directories.entry(path).or_default();
        directory.opaque |= is_replaced;
        if metadata.is_some() {
            directory.metadata = metadata;
        }
        Ok(())
    }

    fn add_file(&mut self, at: &Vec<u8>, name: &[u8], new: NewFile<'_, '_>) -> Result<()> {
        let rest = new.size % BLOCK;
        let is_inline = (1..=MOST_INLINE).contains(&rest);
        let in_blocks = if is_inline { new.size - rest } else { new.size };
        let start = self.output.position();
        let mut end = Vec::with_capacity(if is_inline { rest as usize } else { 0 });
        let output = &mut self.output;
        new.content.pour(|offset, bytes| {
            let whole =
                bytes.len().min(usize::try_from(in_blocks.saturating_sub(offset)).unwrap_or(usize::MAX));
            if whole > 0 {
                output.skip_to(start + offset)?;
                output.write(&bytes[..whole])?;
            }
            if whole < bytes.len() {
                end.resize(((offset + whole as u64) - in_blocks) as usize, 0);
                end.extend(&bytes[whole..]);
            }
            Ok(())
        })?;
        output.skip_to(start + in_blocks)?;
        output.fill_block()?;
        end.resize(if is_inline { rest as usize } else { 0 }, 0);
        let inode = Inode {
            layout: if is_inline { Layout::Inline } else { Layout::Plain },
            kind: libc::S_IFREG,
            size: new.size,
            data: block_number(start)?,
            links: 1,
            number: self.next_number(),
        };
        let record = format::inode(&inode, new.metadata, &attributes(new.metadata, &[])?);
        let inode = self.add_inode(&record, &end)?;
        self.name(at, name, Leaf { kind: libc::S_IFREG, inode, target: Arc::default(), is_whiteout: false })
    }

    fn add_symlink(&mut self, at: &Vec<u8>, name: &[u8], target: &[u8], meta: &Metadata) -> Result<()> {
        let size = target.len() as u64;
        if !(1..BLOCK).contains(&size) {
            let why = format!("it is a symbolic link of {size} bytes, and the kernel takes 1 to 4095");
            return Err(Error::new(Kind::Limit, why));
        }
        let mut inode = Inode {
            layout: Layout::Inline,
            kind: libc::S_IFLNK,
            size,
            data: 0,
            links: 1,
            number: self.next_number(),
        };
        let mut behind = target;
        if size > MOST_INLINE {
            inode.layout = Layout::Plain;
            inode.data = block_number(self.output.position())?;
            self.output.write(target)?;
            self.output.fill_block()?;
            behind = b"";
        }
        // The kernel shows all permissions whatever is written, as other file systems write.
        let meta = Metadata { mode: 0o777, ..meta.clone() };
        let record = format::inode(&inode, &meta, &attributes(&meta, &[])?);
        let inode = self.add_inode(&record, behind)?;
        self.name(at, name, Leaf { kind: libc::S_IFLNK, inode, target: target.into(), is_whiteout: false })
    }

    fn add_node(
        &mut self,
        at: &Vec<u8>,
        name: &[u8],
        (kind, device): (u32, u64),
        meta: &Metadata,
    ) -> Result<()> {
        let inode = Inode {
            layout: Layout::Plain,
            kind,
            size: 0,
            data: format::device(device),
            links: 1,
            number: self.next_number(),
        };
        let record = format::inode(&inode, meta, &attributes(meta, &[])?);
        let inode = self.add_inode(&record, b"")?;
        let is_whiteout = kind == libc::S_IFCHR && device == 0;
        self.name(at, name, Leaf { kind, inode, target: Arc::default(), is_whiteout })
    }

    fn add_link(&mut self, (from, old): (&Vec<u8>, &[u8]), at: &Vec<u8>, name: &[u8]) -> Result<()> {
        self.remove(&at.join(name));
        let Some(leaf) = self.files.get(&from.join(old)).cloned() else {
            return Err(Error::new(Kind::Malformed, "it is a hard link to what it takes the place of"));
        };
        self.name(at, name, leaf)
    }

    fn clear(&mut self, at: &Vec<u8>, name: &[u8]) -> Result<()> {
        self.remove(&at.join(name));
        Ok(())
    }

    fn white_out(&mut self, at: &Vec<u8>, name: &[u8]) -> Result<()> {
        let path = at.join(name);
        match self.found(&path) {
            Found::Nothing => {
                self.directories.entry(at.clone()).or_default().whiteouts = true;
                self.add_node(at, name, (libc::S_IFCHR, 0), &Metadata::default())
            }
            Found::Directory => {
                self.directories.entry(path).or_default().opaque = true;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn remove_whiteouts(&mut self, path: &[u8]) -> Result<()> {
        let inside = [path, b"/"].concat();
        let is_child = |name: &[u8]| !name[inside.len()..].contains(&b'/');
        let all = self.files.range(inside.clone()..[path, b"0"].concat());
        let gone: Vec<Vec<u8>> = all
            .filter(|(name, leaf)| leaf.is_whiteout && is_child(name))
            .map(|(name, _)| name.clone())
            .collect();
        gone.iter().for_each(|name| drop(self.files.remove(name)));
        Ok(())
    }

    fn remove_empty(&mut self, path: &[u8]) -> Result<bool> {
        let inside = [path, b"/"].concat()..[path, b"0"].concat();
        Ok(self.files.range(inside.clone()).next().is_none() && self.described.range(inside).next().is_none())
    }

    fn describe(&mut self, path: &[u8], metadata: Metadata, marks: &[(&str, &[u8])]) -> Result<()> {
        let attributes = attributes(&metadata, marks)?;
        self.described.insert(path.to_vec(), Described { metadata, attributes });
        Ok(())
    }

    fn close(mut self) -> Result<()> {
        self.end_segment()?;
        close::close(self)
    }
}
