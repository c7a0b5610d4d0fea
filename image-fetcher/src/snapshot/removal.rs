//! Snapshots are taken away, and asked what they are made of.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use coracle_sys::file::{self, Resolve};
use coracle_sys::{Errno, archive, mount};

use super::{RECORD, Record, directory_path};
use crate::error::{Context, Error, Kind, Result};
use crate::store::{DOCUMENT_LIMIT, Store, check_id, is_missing};

/// Unmounts the snapshot `id` and keeps what was written to it. One that is not mounted is no error.
///
/// # Errors
/// Where the kernel refuses.
pub fn unmount(store: &Store, id: &str) -> Result<()> {
    check_id(id)?;
    let rootfs = directory_path(store, id).join("rootfs");
    loop {
        match mount::detach(&rootfs) {
            Ok(()) => {}
            // EINVAL: nothing is mounted there.
            Err(e) if matches!(e.errno(), Errno::EINVAL | Errno::ENOENT | Errno::ENOTDIR) => return Ok(()),
            Err(e) => return Err(e).context(|| format!("unmounting {id:?}")),
        }
    }
}

/// Unmounts and removes the snapshot `id` with what was written to it. One that is not there is no error.
///
/// # Errors
/// Where the kernel refuses.
pub fn remove(store: &Store, id: &str) -> Result<()> {
    let removing = || format!("removing snapshot {id:?}");
    unmount(store, id).context(removing)?;
    let opened = file::open(store.snapshots(), id, libc::O_DIRECTORY, 0, Resolve::BeneathNoLinks);
    if is_missing(&opened) {
        return Ok(());
    }
    let directory = opened.context(removing)?;
    // rmdir(2) says EBUSY where something is mounted in this namespace; what is mounted in another goes with it.
    let rootfs = file::rmdir(directory.as_fd(), "rootfs");
    if !is_missing(&rootfs) {
        rootfs.context(removing)?;
    }
    // The record goes last: until then, its layers are in use.
    for name in file::list(directory.as_fd()).context(removing)? {
        if name != RECORD {
            archive::remove_tree(directory.as_fd(), &name).context(removing)?;
        }
    }
    archive::remove_tree(store.snapshots(), id).context(removing)
}

/// As [`remove`], where no container is known that has it for its root: that one would lose its files while it runs.
///
/// # Errors
/// [`Kind::Exists`] where one is, and as [`remove`].
pub fn remove_unused(store: &Store, id: &str) -> Result<()> {
    check_id(id)?;
    let known_by = record(store, id.as_ref()).ok().flatten().and_then(|record| record.known_by);
    if let Some(state) = known_by.filter(|_| !matches!(is_forgotten(store, id), Ok(true))) {
        let why = format!("snapshot {id:?} is the root of a container, whose state is {state:?}");
        return Err(Error::new(Kind::Exists, why).hint("delete the container"));
    }
    remove(store, id)
}

/// Removes the snapshots of whom nobody knows any more, as after the machine has started anew. Returns their IDs, and what
/// kept others.
///
/// # Errors
/// Where the store can't be read.
pub fn remove_forgotten(store: &Store) -> Result<(Vec<String>, Vec<Error>)> {
    let (mut gone, mut failures) = (Vec::new(), Vec::new());
    for id in file::list(store.snapshots())?.into_iter().filter_map(|id| id.into_string().ok()) {
        let removed = match is_forgotten(store, &id) {
            Ok(false) => continue,
            forgotten => forgotten.and_then(|_| remove(store, &id)),
        };
        match removed {
            Ok(()) => gone.push(id),
            Err(error) => failures.push(error),
        }
    }
    Ok((gone, failures))
}

/// The names of the layers that snapshots are made of.
pub(crate) fn layers_in_use(store: &Store) -> Result<BTreeSet<String>> {
    Ok(records(store)?.into_iter().flat_map(|record| record.layers).collect())
}

/// What the snapshots are made of.
pub(crate) fn records(store: &Store) -> Result<Vec<Record>> {
    let ids = file::list(store.snapshots())?;
    ids.iter().filter_map(|id| record(store, id).transpose()).collect()
}

/// What the snapshot `id` is made of; nothing where it has no record: it was never assembled.
pub(super) fn record(store: &Store, id: &OsStr) -> Result<Option<Record>> {
    read(store, id)?.map_or(Ok(None), |text| parse(id, &text))
}

/// Whether nobody knows of the snapshot `id` any more.
fn is_forgotten(store: &Store, id: &str) -> Result<bool> {
    // One without a record is being made, or removed.
    let Some(text) = read(store, id.as_ref())? else { return Ok(false) };
    let Some(record) = parse(id.as_ref(), &text)? else { return Ok(true) };
    let is_gone = |path: &PathBuf| is_missing(&file::open(file::CWD, path, libc::O_PATH, 0, Resolve::Host));
    Ok(record.known_by.as_ref().is_some_and(is_gone))
}

/// The text of the record of the snapshot `id`, where there is one.
fn read(store: &Store, id: &OsStr) -> Result<Option<Vec<u8>>> {
    let path = Path::new(id).join(RECORD);
    let text = file::read(store.snapshots(), &path, DOCUMENT_LIMIT, Resolve::BeneathNoLinks);
    if is_missing(&text) { Ok(None) } else { Ok(Some(text?)) }
}

/// What the record of the snapshot `id` says. An empty one is what is left where the power was cut soon after it was
/// written, and so of a snapshot that is not mounted any more.
fn parse(id: &OsStr, text: &[u8]) -> Result<Option<Record>> {
    if text.is_empty() {
        return Ok(None);
    }
    let id = id.display();
    let parsed =
        crate::image::parse(text, RECORD).context(|| format!("reading the record of snapshot \"{id}\""));
    parsed.map(Some).map_err(|e| e.hint(format!("`coracle-image unmount {id}` removes it")))
}
