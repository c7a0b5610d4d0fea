//! For a container that nobody waits for: a process that ends it when an isolator finds it at a limit.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use coracle_isolator::Handles;
use coracle_isolator_host::Registry;
use coracle_sys::{event, file, process, signal};

use super::Limits;
use crate::cgroup::{Place, Tree};
use crate::error::{Context, Result};
use crate::stages::isolate::Isolated;

/// Starts it, where a plugin watches, or a built-in isolator says that this container is to be ended at a limit; else does
/// nothing. It is nobody's child, and ends with the container's first process. `tell` tells people.
///
/// # Errors
/// `EAGAIN` where there are too many processes.
pub fn start(isolated: &Isolated, isolators: &Registry, tell: &dyn Fn(String)) -> Result<()> {
    if !isolators.is_watched() {
        return Ok(());
    }
    let between = process::spawn(0, None, || {
        let spawned = process::spawn(0, None, || i32::from(watch_over(isolated, isolators, tell).is_err()));
        i32::from(spawned.is_err())
    });
    let between = between.context(|| "starting the warden of the container")?;
    process::wait(between.pidfd.as_fd())?;
    Ok(())
}

fn watch_over(isolated: &Isolated, isolators: &Registry, tell: &dyn Fn(String)) -> Result<()> {
    let first = isolated.ready.child.pidfd.as_fd();
    // Sockets and locks are those of who launches: that their copies are closed is waited for.
    process::close_all_but(&[&[first.as_raw_fd()][..], &isolators.files()].concat())?;
    isolators.after_fork();
    process::new_session()?;
    signal::unblock()?;
    let null = file::open(file::CWD, "/dev/null", libc::O_RDWR, 0, file::Resolve::Host)?;
    (0..3).try_for_each(|stream| process::set_stream(null.as_fd(), stream))?;
    drop(null);
    let container = &isolated.container;
    let cgroup =
        container.record.cgroup.as_ref().map_or_else(|| Ok(Tree::none()), Place::open)?.into_handles();
    let handles =
        Handles { id: &container.record.id, pidfd: Some(first), cgroup: &cgroup, spec: &container.spec };
    let mut limits = Limits::new(&handles, isolators.watch_to_end(&handles)?, tell)?;
    let _ = process::forget_image();
    loop {
        let (indices, fds): (Vec<usize>, Vec<BorrowedFd<'_>>) = limits.fds().unzip();
        if fds.is_empty() {
            return Ok(());
        }
        let all: Vec<BorrowedFd<'_>> = std::iter::once(first).chain(fds).collect();
        let ready = event::readable(&all, None)?;
        if ready.first() == Some(&true) {
            return Ok(());
        }
        let ready = indices.into_iter().zip(ready.into_iter().skip(1)).filter(|(_, ready)| *ready);
        for (index, _) in ready.collect::<Vec<_>>() {
            limits.look(index);
        }
    }
}
