//! What each entry of a layer does to what it becomes.

use super::entry::{Entries, Entry, Type};
use super::form::{Content, Form, Found, NewFile, Place, components};
use super::links::Links;
use crate::error::{Error, Kind, Result};

/// The prefix of a whiteout's name (image-spec, layer.md, "Whiteouts"): no file or directory has one that begins so.
pub(super) const WHITEOUT: &[u8] = b".wh.";
/// The name that makes its directory opaque.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Other names of AUFS, its own bookkeeping: no part of the image.
const AUFS: &[u8] = b".wh..wh.";

/// Applies the entry; a hard link whose target is not in this layer goes to `links`, for later.
pub(crate) fn apply<F: Form>(
    form: &mut F,
    links: &mut Links,
    entries: &mut Entries<'_>,
    entry: Entry,
) -> Result<()> {
    let path = components(&entry.path)?;
    let Some((name, parent)) = path.split_last() else {
        return apply_root(form, entry);
    };
    let name = *name;
    if path.iter().any(|component| is_bookkeeping(component)) {
        return Ok(());
    }
    if name.starts_with(WHITEOUT) {
        return white_out(form, parent, name);
    }
    let at = form.parent(parent)?;
    keep(form, &at, name, &entry);
    match entry.kind {
        Type::Directory => form.make_directory(&at, name, Some(entry.metadata))?,
        Type::File => {
            let content = Content::Archive(entries, entry.map.as_ref());
            form.add_file(&at, name, NewFile { metadata: &entry.metadata, size: entry.size, content })?;
        }
        Type::Symlink => form.add_symlink(&at, name, &entry.link, &entry.metadata)?,
        Type::Node(libc::S_IFCHR, 0) => {
            let why = "it is a character device 0:0, which overlayfs takes for a whiteout";
            return Err(Error::new(Kind::Malformed, why));
        }
        Type::Node(kind, device) => form.add_node(&at, name, (kind, device), &entry.metadata)?,
        Type::HardLink if link_inside(form, &at, name, &entry.link)? => {}
        Type::HardLink => links.add(form, (&at, name), &entry.link)?,
    }
    Ok(())
}

/// Whether it is a name of AUFS's own, or what is in such a directory: `.wh..wh.plnk` held files for hard links.
fn is_bookkeeping(name: &[u8]) -> bool {
    name.starts_with(AUFS) && name != OPAQUE
}

/// Counts what may be kept of an entry: its path without links, which can be much longer than its name, where it leads,
/// and a directory's attributes.
fn keep<F: Form>(form: &mut F, at: &F::Place, name: &[u8], entry: &Entry) {
    let of_directory = if entry.kind == Type::Directory { attributes(entry) } else { 0 };
    *form.kept() += (at.path().len() + name.len() + entry.link.len()) as u64 + of_directory;
}

fn attributes(entry: &Entry) -> u64 {
    entry.metadata.xattrs.iter().map(|(name, value)| (name.len() + value.len()) as u64).sum()
}

fn apply_root(form: &mut impl Form, entry: Entry) -> Result<()> {
    if entry.kind != Type::Directory {
        return Err(Error::new(Kind::Malformed, "the root of a layer can only be a directory"));
    }
    *form.kept() += attributes(&entry);
    form.directories().entry(Vec::new()).or_default().metadata = Some(entry.metadata);
    Ok(())
}

fn white_out(form: &mut impl Form, parent: &[&[u8]], name: &[u8]) -> Result<()> {
    if name == OPAQUE {
        let parent = form.parent(parent)?;
        form.make_opaque(&parent);
        return Ok(());
    }
    let hidden = &name[WHITEOUT.len()..];
    if matches!(hidden, b"" | b"." | b"..") {
        return Err(Error::new(Kind::Malformed, "it is a whiteout of nothing that has a name"));
    }
    let parent = form.parent(parent)?;
    *form.kept() += (parent.path().len() + hidden.len()) as u64;
    form.white_out(&parent, hidden)
}

/// Links to a file of this layer; false where it has none of that name.
pub(crate) fn link_inside<F: Form>(form: &mut F, at: &F::Place, name: &[u8], target: &[u8]) -> Result<bool> {
    let path = target_components(target)?;
    let Some((target_name, target_parent)) = path.split_last() else {
        return Err(Error::new(Kind::Malformed, "it is a hard link to a directory"));
    };
    let Some(from) = form.find(target_parent)? else { return Ok(false) };
    match form.look(&from, target_name)? {
        Found::Nothing | Found::Whiteout => return Ok(false),
        Found::Directory => return Err(Error::new(Kind::Malformed, "it is a hard link to a directory")),
        Found::Symlink | Found::Other => {}
    }
    // A link to itself would remove the only one.
    if from.path() != at.path() || *target_name != name {
        form.add_link((&from, target_name), at, name)?;
    }
    Ok(true)
}

/// The components of a hard link's target, which is a path of the layer.
pub(crate) fn target_components(target: &[u8]) -> Result<Vec<&[u8]>> {
    let shown = || format!("it is a hard link to {:?}", String::from_utf8_lossy(target));
    let path = components(target)
        .map_err(|_| Error::new(Kind::Malformed, format!("{}, which is out of the layer", shown())))?;
    if path.iter().any(|component| component.starts_with(WHITEOUT)) {
        let why = format!("{}, but no file has a name that begins with \".wh.\"", shown());
        return Err(Error::new(Kind::Unsupported, why));
    }
    Ok(path)
}
