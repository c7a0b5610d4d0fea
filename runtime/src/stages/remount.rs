//! Changes what is mounted in a container that runs.

use std::os::fd::{AsFd, BorrowedFd};

use coracle_sys::{file, process};

use crate::error::{Context, Result};
use crate::handshake;
use crate::init::remount::{self, Change};

/// Makes `change` in the container with the first process `first`, whose own namespaces are of the `kinds`
/// (`CLONE_NEW*`). `changed` gets the numbers of the mounts that were made, or are gone.
///
/// # Errors
/// What the kernel refuses. Of several mounts those before the one that failed are made.
pub fn remount(change: &Change, first: BorrowedFd<'_>, kinds: i32, changed: &mut Vec<u64>) -> Result<()> {
    let (outside, inside) = handshake::begin()?;
    let mut given = Some(inside);
    let child = process::spawn(0, None, || match given.take() {
        Some(word) => remount::run(change, first, kinds, word),
        None => 1,
    });
    drop(given);
    let child = child.context(|| "cloning a process for the mounts")?;
    let done = outside.go_with(|mount| {
        changed.push(file::mount_id(mount.as_fd())?);
        Ok(())
    });
    // The child ends with the conversation.
    let done = done.map(drop);
    process::wait(child.pidfd.as_fd())?;
    done
}
