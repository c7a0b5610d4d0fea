//! Changes what is mounted in a container that runs.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use coracle_sys::{event, file, process};

use crate::error::{Context, Result};
use crate::handshake;
use crate::init::remount::{self, Change};

/// How long the process that changed the mounts may take to end.
const ENDING: Duration = Duration::from_secs(1);

/// Makes `change` in the container with the first process `first`, whose own namespaces are of the `kinds`
/// (`CLONE_NEW*`). `changed` gets the numbers of the mounts that were made, or are gone.
///
/// # Errors
/// What the kernel refuses, or that a signal came which asks to end. Of several mounts those before the one that failed
/// are made.
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
    if done.is_err() {
        child.kill();
    }
    // One that hangs in a source that does not answer dies when that does, and is not waited for.
    if event::readable(&[child.pidfd.as_fd()], Some(ENDING))? == [true] {
        process::wait(child.pidfd.as_fd())?;
    }
    done
}
