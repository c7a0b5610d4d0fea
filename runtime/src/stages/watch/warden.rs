//! For a container that nobody waits for: a process that ends it when an isolator finds it at a limit.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use coracle_isolator::Handles;
use coracle_isolator_host::Registry;
use coracle_sys::file::{self, Resolve};
use coracle_sys::process::Exit;
use coracle_sys::{Errno, descriptor, event, process, signal};

use super::Limits;
use crate::error::{Code, Context, Error, Result};
use crate::stages::prepare::Container;
use crate::state::State;

/// Starts it, where a plugin watches, or a built-in isolator says that this container is to be ended at a limit; else does
/// nothing. It is nobody's child, and ends with the container's first process `first`; at once, where another watches over
/// the container. `tell` tells people. One that should watch and can't ends the container.
///
/// # Errors
/// `EAGAIN` where there are too many processes.
pub fn start(
    container: &Container,
    first: BorrowedFd<'_>,
    isolators: &Registry,
    tell: &dyn Fn(String),
) -> Result<()> {
    if !isolators.is_watched(&container.spec) {
        return Ok(());
    }
    let watch = || watch_over(container, first, isolators, tell);
    let between = process::spawn(0, None, || {
        let spawned = process::spawn(0, None, || {
            let watched = watch().inspect_err(|error| {
                tell(format!("{error}; the container is killed"));
                let _ = process::signal(first, libc::SIGKILL);
            });
            i32::from(watched.is_err())
        });
        spawned.map_or_else(|e| e.errno() as i32, |_| 0)
    });
    let between = between.context(|| "starting the warden of the container")?;
    match process::wait(between.pidfd.as_fd())? {
        Exit::Code(0) => Ok(()),
        Exit::Code(errno) => Err(coracle_sys::Error::new("clone3()", Errno::from_raw(errno)).into()),
        Exit::Signal(_) => Err(Error::new(Code::System, "it was killed")),
    }
    .context(|| "starting the warden of the container")
}

/// Takes the place of the one process that watches over the container of `state`, for as long as what is returned stays
/// open; `None` where it is taken. What is written there is why the container was ended.
///
/// # Errors
/// `ENOSPC`.
pub fn take_place(state: &State) -> Result<Option<OwnedFd>> {
    let place = file::open(
        state.dir(),
        crate::state::WATCHED,
        libc::O_RDWR | libc::O_CREAT,
        0o600,
        Resolve::BeneathNoLinks,
    )?;
    match file::lock(place.as_fd(), false) {
        Err(e) if e.errno() == Errno::EWOULDBLOCK => Ok(None),
        taken => Ok(taken.map(|()| Some(place))?),
    }
}

fn watch_over(
    container: &Container,
    first: BorrowedFd<'_>,
    isolators: &Registry,
    tell: &dyn Fn(String),
) -> Result<()> {
    let Some(place) = take_place(&container.state)? else { return Ok(()) };
    // Sockets and locks are those of who launches: that their copies are closed is waited for.
    descriptor::close_all_but(&[&[first.as_raw_fd(), place.as_raw_fd()][..], &isolators.files()].concat())?;
    isolators.after_fork();
    process::new_session()?;
    signal::unblock()?;
    descriptor::silence()?;
    let cgroup = container.record.cgroups()?.into_handles();
    let handles =
        Handles { id: &container.record.id, pidfd: Some(first), cgroup: &cgroup, spec: &container.spec };
    let limits = Limits::new(&handles, isolators.watch_to_end(&handles)?, tell)?;
    let mut limits = limits.noting(Some(place.as_fd()));
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
