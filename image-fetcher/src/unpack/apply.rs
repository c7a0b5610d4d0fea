//! What each entry of a layer does to its directory.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;

use coracle_sys::archive;
use coracle_sys::file::{self, Resolve};

use super::entry::{Entries, Entry, Metadata, Type};
use super::tree::{Found, Place, Tree, components, look};
use crate::error::{Error, Kind, Result};
use crate::metadata::is_kept;

/// The prefix of a whiteout's name (image-spec, layer.md, "Whiteouts").
const WHITEOUT: &[u8] = b".wh.";
/// The name that makes its directory opaque.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Other names of AUFS, its own bookkeeping: no part of the image.
const AUFS: &[u8] = b".wh..wh.";

/// A hard link to a file that this layer doesn't hold.
#[derive(Debug)]
pub(crate) struct LinkBelow {
    /// The directory of the new name, without links.
    pub directory: Vec<u8>,
    pub name: Vec<u8>,
    pub target: Vec<u8>,
}

/// Applies the entry; a hard link whose target is not in this layer is returned for later.
pub(crate) fn apply(tree: &mut Tree, entries: &mut Entries<'_>, entry: Entry) -> Result<Option<LinkBelow>> {
    let path = components(&entry.path)?;
    let Some((name, parent)) = path.split_last() else {
        return apply_root(tree, entry).map(|()| None);
    };
    let name = *name;
    if name.starts_with(WHITEOUT) {
        return white_out(tree, parent, name).map(|()| None);
    }
    let parent = tree.parent(parent)?;
    match entry.kind {
        Type::Directory => tree.make_directory(&parent, name, Some(entry.metadata))?,
        Type::File => write_file(tree, entries, &parent, name, &entry)?,
        Type::Symlink => {
            let target = OsStr::from_bytes(&entry.link);
            tree.replace(&parent, name, |dir, name| file::symlink(target, dir, name))?;
            set_at(parent.as_fd(), name, &entry.metadata)?;
        }
        Type::Node(kind, device) => make_node(tree, &parent, name, (kind, device), &entry.metadata)?,
        Type::HardLink => return link(tree, &parent, name, &entry.link),
    }
    Ok(None)
}

fn apply_root(tree: &mut Tree, entry: Entry) -> Result<()> {
    if entry.kind != Type::Directory {
        return Err(Error::new(Kind::Malformed, "the root of a layer can only be a directory"));
    }
    tree.directories.entry(Vec::new()).or_default().metadata = Some(entry.metadata);
    Ok(())
}

fn white_out(tree: &mut Tree, parent: &[&[u8]], name: &[u8]) -> Result<()> {
    if name == OPAQUE {
        let parent = tree.parent(parent)?;
        tree.make_opaque(&parent);
        return Ok(());
    }
    if name.starts_with(AUFS) {
        return Ok(());
    }
    let hidden = &name[WHITEOUT.len()..];
    if matches!(hidden, b"" | b"." | b"..") {
        return Err(Error::new(Kind::Malformed, "it is a whiteout of nothing that has a name"));
    }
    let parent = tree.parent(parent)?;
    tree.white_out(&parent, hidden)
}

fn write_file(
    tree: &mut Tree,
    entries: &mut Entries<'_>,
    parent: &Place,
    name: &[u8],
    entry: &Entry,
) -> Result<()> {
    let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL | libc::O_NOFOLLOW;
    let fd =
        tree.replace(parent, name, |dir, name| file::open(dir, name, flags, 0o600, Resolve::BeneathNoLinks))?;
    let file = File::from(fd);
    match &entry.map {
        None => write_plain(entries, file.as_fd(), entry.size)?,
        Some(map) => write_sparse(entries, &file, map, entry.size)?,
    }
    set(file.as_fd(), &entry.metadata)
}

/// Files from this size on are sent to the device while the next ones are written.
const EARLY_SYNC: u64 = 1 << 20;

fn write_plain(entries: &mut Entries<'_>, fd: BorrowedFd<'_>, size: u64) -> Result<()> {
    loop {
        let data = entries.data()?;
        if data.is_empty() {
            break;
        }
        file::write_all(fd, data)?;
        let n = data.len();
        entries.consume(n);
    }
    if size >= EARLY_SYNC {
        archive::begin_sync(fd, 0, size)?;
    }
    Ok(())
}

fn write_sparse(entries: &mut Entries<'_>, file: &File, map: &[(u64, u64)], size: u64) -> Result<()> {
    let failed = |call: &str, e: &std::io::Error| archive::io_error(call, e);
    for (mut offset, mut length) in map.iter().copied() {
        while length > 0 {
            let data = entries.data()?;
            let n = data.len().min(usize::try_from(length).unwrap_or(usize::MAX));
            file.write_all_at(&data[..n], offset).map_err(|e| failed("pwrite()", &e))?;
            entries.consume(n);
            offset += n as u64;
            length -= n as u64;
        }
    }
    file.set_len(size).map_err(|e| failed(&format!("ftruncate({size})"), &e).into())
}

fn make_node(
    tree: &mut Tree,
    parent: &Place,
    name: &[u8],
    (kind, device): (u32, u64),
    metadata: &Metadata,
) -> Result<()> {
    if kind == libc::S_IFCHR && device == 0 {
        let why = "it is a character device 0:0, which overlayfs takes for a whiteout";
        return Err(Error::new(Kind::Malformed, why));
    }
    tree.replace(parent, name, |dir, name| file::mknod(dir, name, kind | 0o600, device))?;
    set_owner_at(parent.as_fd(), name, metadata)?;
    archive::chmod_at(parent.as_fd(), OsStr::from_bytes(name), metadata.mode)?;
    set_rest_at(parent.as_fd(), name, metadata)
}

fn link(tree: &mut Tree, parent: &Place, name: &[u8], target: &[u8]) -> Result<Option<LinkBelow>> {
    if link_inside(tree, parent, name, target)? {
        return Ok(None);
    }
    Ok(Some(LinkBelow { directory: parent.path.clone(), name: name.to_vec(), target: target.to_vec() }))
}

/// Links to a file of this layer; false where it has none of that name.
pub(crate) fn link_inside(tree: &mut Tree, parent: &Place, name: &[u8], target: &[u8]) -> Result<bool> {
    let path = target_components(target)?;
    let Some((target_name, target_parent)) = path.split_last() else {
        return Err(Error::new(Kind::Malformed, "it is a hard link to a directory"));
    };
    let Some(from) = tree.find(target_parent)? else { return Ok(false) };
    match look(&from, target_name)? {
        Found::Nothing | Found::Whiteout => return Ok(false),
        Found::Directory => return Err(Error::new(Kind::Malformed, "it is a hard link to a directory")),
        Found::Symlink | Found::Other => {}
    }
    // A link to itself would remove the only one.
    if from.path == parent.path && *target_name == name {
        return Ok(true);
    }
    let old = OsStr::from_bytes(target_name);
    tree.replace(parent, name, |dir, name| file::link(from.as_fd(), old, dir, name))?;
    Ok(true)
}

/// The components of a hard link's target, which is a path of the layer.
pub(crate) fn target_components(target: &[u8]) -> Result<Vec<&[u8]>> {
    components(target).map_err(|_| {
        let shown = String::from_utf8_lossy(target);
        Error::new(Kind::Malformed, format!("it is a hard link to {shown:?}, which is out of the layer"))
    })
}

/// Gives an open file its owner, permissions, attributes and times, in that order: a new owner takes
/// set-user-ID bits and file capabilities away.
pub(crate) fn set(fd: BorrowedFd<'_>, metadata: &Metadata) -> Result<()> {
    // What root makes in a directory without a set-group-ID bit is root's.
    if (metadata.uid, metadata.gid) != (0, 0) {
        file::chown(fd, metadata.uid, metadata.gid)?;
    }
    file::chmod(fd, metadata.mode)?;
    for (name, value) in metadata.xattrs.iter().filter(|(name, _)| is_kept(name)) {
        archive::set_xattr(fd, OsStr::from_bytes(name), value)?;
    }
    Ok(archive::set_times(fd, metadata.accessed, metadata.modified)?)
}

/// The same for what can't be opened; a link has no permissions.
fn set_at(dir: BorrowedFd<'_>, name: &[u8], metadata: &Metadata) -> Result<()> {
    set_owner_at(dir, name, metadata)?;
    set_rest_at(dir, name, metadata)
}

fn set_owner_at(dir: BorrowedFd<'_>, name: &[u8], metadata: &Metadata) -> Result<()> {
    if (metadata.uid, metadata.gid) != (0, 0) {
        archive::chown_at(dir, OsStr::from_bytes(name), metadata.uid, metadata.gid)?;
    }
    Ok(())
}

fn set_rest_at(dir: BorrowedFd<'_>, name: &[u8], metadata: &Metadata) -> Result<()> {
    let name = OsStr::from_bytes(name);
    for (attribute, value) in metadata.xattrs.iter().filter(|(name, _)| is_kept(name)) {
        archive::set_xattr_at(dir, name, OsStr::from_bytes(attribute), value)?;
    }
    Ok(archive::set_times_at(dir, name, metadata.accessed, metadata.modified)?)
}
