//! The format of EROFS on disk, as far as it is written here: Linux, fs/erofs/erofs_fs.h.
//!
//! Blocks of 4 KiB. All inodes are of the extended form (64 bytes: owners of 32 bits, times of their own), at
//! multiples of 32 bytes, behind each its attributes and then the rest of its data that fills no block. The
//! number of an inode is its place in the image divided by 32. Directories are blocks, each with its
//! entries (sorted by name, `.` and `..` among them) in front and their names behind.

use std::collections::BTreeMap;

use crate::error::{Error, Kind, Result};
use crate::unpack::entry::Metadata;

/// The size of a block.
pub(super) const BLOCK: u64 = 4096;
/// Inodes stand at multiples of this.
pub(super) const SLOT: u64 = 32;
/// Where the superblock stands.
const SUPERBLOCK: usize = 1024;
/// Where the inode of the root directory stands: behind the superblock, since its number has 16 bits.
pub(super) const ROOT: usize = SUPERBLOCK + 128;
/// No more bytes can stand behind an inode, since they may not cross the end of a block.
pub(super) const MOST_INLINE: u64 = BLOCK - SLOT;

const MAGIC: u32 = 0xe0f5_e1e2;
/// `EROFS_FEATURE_COMPAT_MTIME`: the times of inodes are those of modification.
const COMPAT_MTIME: u32 = 2;

/// How the data of an inode is laid out (`EROFS_INODE_FLAT_PLAIN`, `EROFS_INODE_FLAT_INLINE`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    /// In whole blocks.
    Plain = 0,
    /// In whole blocks and, what fills none, behind the inode.
    Inline = 2,
}

/// What differs between an inode and the metadata of its entry.
#[derive(Debug, Clone, Copy)]
pub(super) struct Inode {
    pub layout: Layout,
    /// The type, as stat(2) has it.
    pub kind: u32,
    pub size: u64,
    /// The first block of the data, or the device.
    pub data: u32,
    pub links: u32,
    /// A number of its own, for programs that know only 32 bits.
    pub number: u32,
}

/// Where the number of links stands in an inode.
pub(super) const LINKS_AT: u64 = 44;

/// An inode and the attributes behind it.
pub(super) fn inode(inode: &Inode, metadata: &Metadata, attributes: &[u8]) -> Vec<u8> {
    let count = attributes.len().checked_sub(12).map_or(0, |entries| entries / 4 + 1);
    let mut bytes = Vec::with_capacity(64 + attributes.len());
    put16(&mut bytes, 1 | (inode.layout as u16) << 1);
    put16(&mut bytes, count as u16);
    put16(&mut bytes, (inode.kind | metadata.mode) as u16);
    put16(&mut bytes, 0);
    bytes.extend(inode.size.to_le_bytes());
    for field in [inode.data, inode.number, metadata.uid, metadata.gid] {
        bytes.extend(field.to_le_bytes());
    }
    bytes.extend(metadata.modified.seconds.to_le_bytes());
    bytes.extend(metadata.modified.nanoseconds.to_le_bytes());
    bytes.extend(inode.links.to_le_bytes());
    bytes.resize(64, 0);
    bytes.extend(attributes);
    bytes
}

/// The attributes behind an inode: a header, and entries of four-byte words.
pub(super) fn attributes<'a>(all: impl Iterator<Item = (&'a [u8], &'a [u8])>) -> Result<Vec<u8>> {
    // The last of several with one name counts, as setxattr(2) has it.
    let all: BTreeMap<&[u8], &[u8]> = all.collect();
    if all.is_empty() {
        return Ok(Vec::new());
    }
    let mut bytes = vec![0; 12];
    for (name, value) in all {
        let (index, rest) = split_name(name);
        let too_long = || {
            let shown = String::from_utf8_lossy(name);
            Error::new(Kind::Limit, format!("its attribute {shown:?} is longer than the kernel takes"))
        };
        bytes.push(u8::try_from(rest.len()).map_err(|_| too_long())?);
        bytes.push(index);
        put16(&mut bytes, u16::try_from(value.len()).map_err(|_| too_long())?);
        bytes.extend(rest);
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    if bytes.len() > 12 + 4 * (usize::from(u16::MAX) - 1) {
        return Err(Error::new(Kind::Limit, "its attributes are longer than 256 KiB"));
    }
    Ok(bytes)
}

/// A name's prefix as a number (`EROFS_XATTR_INDEX_…`), and the rest of it.
fn split_name(name: &[u8]) -> (u8, &[u8]) {
    match name {
        b"system.posix_acl_access" => (2, b""),
        b"system.posix_acl_default" => (3, b""),
        _ => [(1, "user."), (4, "trusted."), (6, "security.")]
            .iter()
            .find_map(|(index, prefix)| Some((*index, name.strip_prefix(prefix.as_bytes())?)))
            .unwrap_or((0, name)),
    }
}

/// An entry of a directory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Name<'a> {
    pub name: &'a [u8],
    /// The type, as stat(2) has it.
    pub kind: u32,
    /// Which inode.
    pub of: Of,
}

/// Whose inode an entry has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Of {
    /// The directory with this index.
    Directory(usize),
    /// The other file with this index.
    File(usize),
}

/// How many of the sorted names each block of a directory holds, and how many bytes the last one does.
pub(super) fn split(names: &[Name<'_>]) -> (Vec<usize>, u64) {
    let (mut counts, mut used) = (vec![0], 0);
    for name in names {
        let size = 12 + name.name.len() as u64;
        if used + size > BLOCK {
            counts.push(0);
            used = 0;
        }
        used += size;
        if let Some(count) = counts.last_mut() {
            *count += 1;
        }
    }
    (counts, used)
}

/// One block of a directory.
pub(super) fn directory(names: &[Name<'_>], number: impl Fn(Of) -> u64) -> Vec<u8> {
    let mut at = 12 * names.len();
    let mut bytes = Vec::with_capacity(BLOCK as usize);
    for name in names {
        bytes.extend(number(name.of).to_le_bytes());
        put16(&mut bytes, at as u16);
        bytes.extend([file_type(name.kind), 0]);
        at += name.name.len();
    }
    names.iter().for_each(|name| bytes.extend(name.name));
    bytes
}

/// The type of a file in a directory (`FT_…` of the kernel).
fn file_type(kind: u32) -> u8 {
    match kind {
        libc::S_IFREG => 1,
        libc::S_IFDIR => 2,
        libc::S_IFCHR => 3,
        libc::S_IFBLK => 4,
        libc::S_IFIFO => 5,
        _ => 7,
    }
}

/// A device's number as inodes have it: twelve bits of its major number among twenty of its minor.
pub(super) fn device(device: u64) -> u32 {
    let (major, minor) = (libc::major(device), libc::minor(device));
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

/// The first block: the superblock, and the inode of the root directory with its attributes.
pub(super) fn first_block(inodes: u64, blocks: u32, uuid: &[u8; 16], root: &[u8]) -> Result<Vec<u8>> {
    let mut bytes = vec![0; SUPERBLOCK];
    for field in [MAGIC, 0, COMPAT_MTIME] {
        bytes.extend(field.to_le_bytes());
    }
    bytes.extend([BLOCK.ilog2() as u8, 0]);
    put16(&mut bytes, (ROOT as u64 / SLOT) as u16);
    bytes.extend(inodes.to_le_bytes());
    // The time of building, which only inodes of the compact form take: none, so that one layer is always one image.
    bytes.extend([0; 12]);
    bytes.extend(blocks.to_le_bytes());
    // Inodes are counted from the beginning of the image; no attributes are shared.
    bytes.extend([0; 8]);
    bytes.extend(uuid);
    bytes.resize(ROOT, 0);
    bytes.extend(root);
    if bytes.len() as u64 > BLOCK {
        return Err(Error::new(
            Kind::Limit,
            "the attributes of its root directory are longer than 2880 bytes",
        ));
    }
    bytes.resize(BLOCK as usize, 0);
    Ok(bytes)
}

fn put16(bytes: &mut Vec<u8>, value: u16) {
    bytes.extend(value.to_le_bytes());
}
