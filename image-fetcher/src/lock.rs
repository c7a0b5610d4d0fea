//! Who may do what to a store at the same time, by locks of its file `lock`.
//!
//! `index.json` changes under an exclusive flock(2). A layer is unpacked under an exclusive lock of one byte,
//! whose offset comes from its diff ID. Who adds anything holds the last byte shared, and who removes holds
//! all bytes. The kernel drops the locks of a process that dies.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use coracle_sys::archive::{self, Lock};
use coracle_sys::file::{self, Resolve};

use crate::error::Result;

/// A lock of some part of the store, held until it is dropped.
#[derive(Debug)]
pub struct Held {
    _file: OwnedFd,
}

/// The last byte, which those who add hold shared.
const ADDERS: i64 = i64::MAX - 1;

fn open(store: BorrowedFd<'_>) -> Result<OwnedFd> {
    let flags = libc::O_RDWR | libc::O_CREAT | libc::O_NOFOLLOW;
    Ok(file::open(store, "lock", flags, 0o600, Resolve::BeneathNoLinks)?)
}

/// Keeps others from changing the index.
pub(crate) fn index(store: BorrowedFd<'_>) -> Result<Held> {
    let fd = open(store)?;
    file::lock(fd.as_fd(), true)?;
    Ok(Held { _file: fd })
}

/// Keeps removers out.
pub(crate) fn adding(store: BorrowedFd<'_>) -> Result<Held> {
    let fd = open(store)?;
    archive::lock_range(fd.as_fd(), Lock::Shared, ADDERS, 1)?;
    Ok(Held { _file: fd })
}

/// Keeps others from fetching or unpacking what has these digests (diff IDs and blobs), and removers out. The locks are
/// taken in one order, so that two processes with layers in common can't wait for each other.
#[cfg(feature = "unpack")]
pub(crate) fn digests<'a>(
    store: BorrowedFd<'_>,
    wanted: impl Iterator<Item = &'a crate::digest::Digest>,
) -> Result<Held> {
    // Two digests at one offset only wait for each other more often than they have to.
    let offset = |id: &crate::digest::Digest| i64::from_str_radix(&id.hex()[..15], 16).unwrap_or(0);
    let offsets: std::collections::BTreeSet<i64> = wanted.map(offset).collect();
    let fd = open(store)?;
    for offset in offsets {
        archive::lock_range(fd.as_fd(), Lock::Exclusive, offset, 1)?;
    }
    archive::lock_range(fd.as_fd(), Lock::Shared, ADDERS, 1)?;
    Ok(Held { _file: fd })
}

/// As [`all`], but none where somebody is in.
#[cfg(feature = "unpack")]
pub(crate) fn all_now(store: BorrowedFd<'_>) -> Result<Option<Held>> {
    let fd = open(store)?;
    Ok(archive::try_lock_range(fd.as_fd(), Lock::Exclusive, 0, 0)?.then_some(Held { _file: fd }))
}

/// Keeps everybody else out.
pub(crate) fn all(store: BorrowedFd<'_>) -> Result<Held> {
    let fd = open(store)?;
    archive::lock_range(fd.as_fd(), Lock::Exclusive, 0, 0)?;
    Ok(Held { _file: fd })
}
