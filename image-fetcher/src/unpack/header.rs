//! The fields of a tar header, put together with those of the extended headers before it.

use std::borrow::Cow;

use coracle_sys::archive::Time;
use coracle_sys::file;
use tar::{EntryType, Header};

use super::entry::{Metadata, Type, malformed};
use super::number;
use super::pax::Pax;
use crate::error::{Error, Kind, Result};
use crate::metadata::is_kept;

/// The one name of an entry: that of GNU's header, of PAX's, or of the header itself.
pub(super) fn pick(
    gnu: Option<Vec<u8>>,
    pax: Option<Vec<u8>>,
    header: Cow<'_, [u8]>,
    what: &str,
) -> Result<Vec<u8>> {
    match (gnu, pax) {
        (Some(gnu), Some(pax)) if gnu != pax => Err(malformed(&format!("one entry has two {what}"))),
        (Some(name), _) | (None, Some(name)) => {
            if name.contains(&0) {
                return Err(malformed("a PAX header has a name with a NUL in it"));
            }
            Ok(name)
        }
        (None, None) => Ok(header.into_owned()),
    }
}

/// What the entry is that the header describes.
pub(super) fn kind(header: &Header, path: &[u8], size: u64) -> Result<Type> {
    let kind = match header.entry_type() {
        // Archives older than POSIX mark a directory by the slash behind its name, and have no long names beside it.
        EntryType::Regular if header.as_old().linkflag == [0] => {
            let in_header = header.path_bytes().ends_with(b"/");
            if path.ends_with(b"/") != in_header {
                return Err(malformed("one of its names is that of a directory, and the other is not"));
            }
            if in_header { Type::Directory } else { Type::File }
        }
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse if path.ends_with(b"/") => {
            return Err(malformed("it is a regular file, but its name is that of a directory"));
        }
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => Type::File,
        EntryType::Link => Type::HardLink,
        EntryType::Symlink => Type::Symlink,
        EntryType::Directory => Type::Directory,
        EntryType::Char => Type::Node(libc::S_IFCHR, device(header)?),
        EntryType::Block => Type::Node(libc::S_IFBLK, device(header)?),
        EntryType::Fifo => Type::Node(libc::S_IFIFO, 0),
        other => {
            let why = format!("an entry of type {:?} is none of a layer's", char::from(other.as_byte()));
            return Err(Error::new(Kind::Unsupported, why));
        }
    };
    if kind != Type::File && size != 0 {
        return Err(malformed("it is no regular file, but its header announces bytes"));
    }
    Ok(kind)
}

fn device(header: &Header) -> Result<u64> {
    let (major, minor) = match (header.as_ustar(), header.as_gnu()) {
        (Some(ustar), _) => (&ustar.dev_major, &ustar.dev_minor),
        (None, Some(gnu)) => (&gnu.dev_major, &gnu.dev_minor),
        (None, None) => return Err(malformed("a device node has no number")),
    };
    let number = |field: &[u8]| {
        let number = number::unsigned(field, "device number")?;
        u32::try_from(number).map_err(|_| malformed("its header has a malformed device number"))
    };
    let (major, minor) = (number(major)?, number(minor)?);
    if major > 0xFFF || minor > 0xF_FFFF {
        // What the kernel keeps of them (linux/kdev_t.h).
        return Err(malformed(&format!("its device number {major}:{minor} is none that a file can have")));
    }
    Ok(file::device(major, minor))
}

/// Owner, permissions, times and attributes, PAX's before the header's.
pub(super) fn metadata(header: &Header, pax: &mut Pax) -> Result<Metadata> {
    let old = header.as_old();
    let id = |pax: Option<u64>, field: &[u8], what: &str| -> Result<u32> {
        let id = pax.map_or_else(|| number::unsigned(field, what), Ok)?;
        let valid = u32::try_from(id).ok().filter(|id| *id != u32::MAX);
        valid.ok_or_else(|| malformed(&format!("its {what} {id} is none that a file can have")))
    };
    let modified = match pax.modified {
        Some(time) => time,
        None => Time { seconds: number::header(&old.mtime, "mtime")?, nanoseconds: 0 },
    };
    Ok(Metadata {
        mode: (number::unsigned(&old.mode, "mode")? & 0o7777) as u32,
        uid: id(pax.uid, &old.uid, "uid")?,
        gid: id(pax.gid, &old.gid, "gid")?,
        accessed: pax.accessed.unwrap_or(modified),
        modified,
        xattrs: std::mem::take(&mut pax.xattrs).into_iter().filter(|(name, _)| is_kept(name)).collect(),
    })
}
