//! For a container that nobody waits for: a process that ends it when an isolator finds it at a limit.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use coracle_isolator::Handles;
use coracle_isolator_host::Registry;
use coracle_sys::file::{self, Resolve};
use coracle_sys::process::Exit;
use coracle_sys::{Errno, descriptor, event, process, signal, socket};

use super::Limits;
use crate::error::{Code, Context, Error, Result};
use crate::stages::prepare::Container;
use crate::state::State;

const STARTING: &str = "starting the warden of the container";

/// What a warden that watches says to whoever started it; anything else is why it can't.
const BEGUN: &str = "watching";

/// The longest of its words, in bytes.
const LONGEST_WORD: usize = 4096;

/// Starts it, where a plugin watches, or a built-in isolator says that this container is to be ended at a limit; else does
/// nothing. It is nobody's child, and ends with the container's first process `first`; at once, where another watches over
/// the container. `tell` tells people. It is waited for until it watches. One that should and can't ends the container.
///
/// # Errors
/// `EAGAIN` where there are too many processes; why it can't watch.
pub fn start(
    container: &Container,
    first: BorrowedFd<'_>,
    isolators: &Registry,
    tell: &dyn Fn(String),
) -> Result<()> {
    if !isolators.is_watched(&container.spec) {
        return Ok(());
    }
    let (hear, say) = socket::pair()?;
    let between = process::spawn(0, None, || {
        let spawned = process::spawn(0, None, || {
            let watched = watch_over(container, first, isolators, (tell, say.as_fd()));
            let word = watched.as_ref().map_or_else(ToString::to_string, |()| BEGUN.to_owned());
            if watched.is_err() {
                let _ = process::signal(first, libc::SIGKILL);
            }
            // Nobody hears it where it had begun before.
            let _ = socket::send(say.as_fd(), &word.as_bytes()[..word.len().min(LONGEST_WORD)], &[]);
            i32::from(watched.is_err())
        });
        spawned.map_or_else(|e| e.errno() as i32, |_| 0)
    });
    drop(say);
    let between = between.context(|| STARTING)?;
    let started: Result<()> = match process::wait(between.pidfd.as_fd())? {
        Exit::Code(0) => Ok(()),
        Exit::Code(errno) => Err(coracle_sys::Error::new("clone3()", Errno::from_raw(errno)).into()),
        Exit::Signal(_) => Err(Error::new(Code::System, "it was killed")),
    };
    started.context(|| STARTING)?;
    match socket::receive(hear.as_fd(), LONGEST_WORD).context(|| STARTING)? {
        Some((word, _)) if word == BEGUN.as_bytes() => Ok(()),
        Some((why, _)) => Err(Error::new(Code::System, String::from_utf8_lossy(&why))),
        None => Err(Error::new(Code::System, "it was killed")).context(|| STARTING),
    }
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
    (tell, say): (&dyn Fn(String), BorrowedFd<'_>),
) -> Result<()> {
    let Some(place) = take_place(&container.state)? else { return Ok(()) };
    // Sockets and locks are those of who launches: that their copies are closed is waited for.
    descriptor::close_all_but(
        &[&[first.as_raw_fd(), place.as_raw_fd(), say.as_raw_fd()][..], &isolators.files()].concat(),
    )?;
    isolators.after_fork();
    process::new_session()?;
    signal::unblock()?;
    descriptor::silence()?;
    let cgroup = container.record.cgroups()?.into_handles();
    let handles =
        Handles { id: &container.record.id, pidfd: Some(first), cgroup: &cgroup, spec: &container.spec };
    let limits = Limits::new(&handles, isolators.watch_to_end(&handles)?, tell);
    let mut limits = limits.noting(Some(place.as_fd()));
    socket::send(say, BEGUN.as_bytes(), &[])?;
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
