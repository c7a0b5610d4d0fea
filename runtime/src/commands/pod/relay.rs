//! Passing bytes between the caller's streams and a container's, until the container's are at their end.

use std::os::fd::{AsFd, BorrowedFd};

use coracle_sys::{signal, tty};
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::signalfd::SignalFd;

use crate::error::{Error, Result};
use crate::stages::watch::Flow;

/// From where to where bytes go.
pub(super) struct Way<'f> {
    from: BorrowedFd<'f>,
    to: BorrowedFd<'f>,
    flow: Flow,
    /// Whether the relay ends with it.
    counts: bool,
    end: End,
}

/// How the other side learns of the end of a way.
#[derive(PartialEq, Eq)]
enum End {
    /// Not at all.
    Untold,
    /// Half of the socket is closed.
    Socket,
    /// By what is typed into a terminal there.
    Typed,
}

impl<'f> Way<'f> {
    /// To the caller: when all of these have ended, all is done.
    pub(super) fn out(from: BorrowedFd<'f>, to: BorrowedFd<'f>) -> Self {
        Self { from, to, flow: Flow::default(), counts: true, end: End::Untold }
    }

    /// From the caller, whose end is told by closing half of the socket `to`.
    pub(super) fn into(from: BorrowedFd<'f>, to: BorrowedFd<'f>) -> Self {
        Self { from, to, flow: Flow::default(), counts: false, end: End::Socket }
    }

    /// From the caller into the terminal whose master is `to`.
    pub(super) fn typed(from: BorrowedFd<'f>, to: BorrowedFd<'f>) -> Self {
        Self { end: End::Typed, ..Self::into(from, to) }
    }

    fn is_over(&self) -> bool {
        !self.flow.is_open() && !self.flow.writes()
    }

    fn step(&mut self) {
        match self.end {
            End::Typed => self.flow.read_typed(self.from),
            _ => self.flow.read(self.from),
        }
        let _ = self.flow.write(self.to);
        if self.end == End::Socket && self.is_over() {
            self.end = End::Untold;
            coracle_sys::socket::end_writing(self.to);
        }
    }
}

/// Passes bytes on until all ways to the caller are at their end, or `last` is readable and nothing is left. `raw` is the
/// caller's terminal where that is raw meanwhile; however this ends, it is left as it was found. `resized` is called with its size, each
/// time that it has another.
///
/// # Errors
/// Where waiting fails, or a signal came that asks the caller to end and does not.
pub(super) fn relay(
    ways: Vec<Way<'_>>,
    last: Option<BorrowedFd<'_>>,
    raw: Option<BorrowedFd<'_>>,
    mut resized: impl FnMut(u16, u16),
) -> Result<()> {
    // Before the terminal is raw: from here on no signal ends this before it is as it was.
    let signals = signal::resizes_and_endings()?;
    let before = raw.map(tty::make_raw).transpose()?;
    if let Some(Ok((rows, columns))) = raw.map(tty::size) {
        resized(rows, columns);
    }
    let done = pass_on(ways, last, &signals, resized);
    if let Some((terminal, before)) = raw.zip(before) {
        let _ = tty::restore(terminal, &before);
    }
    match done? {
        Some(signal) => {
            signal::end_by(signal)?;
            Err(Error::interrupted(signal))
        }
        None => Ok(signal::unblock()?),
    }
}

/// Passes bytes on; returns the signal that has asked the caller to end, where one has.
fn pass_on(
    mut ways: Vec<Way<'_>>,
    last: Option<BorrowedFd<'_>>,
    signals: &SignalFd,
    mut resized: impl FnMut(u16, u16),
) -> Result<Option<i32>> {
    while ways.iter().any(|way| way.counts && !way.is_over()) {
        let mut fds = vec![PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        let mut stepped = vec![None];
        if let Some(last) = last {
            fds.push(PollFd::new(last, PollFlags::POLLIN));
            stepped.push(None);
        }
        for (index, way) in ways.iter().enumerate() {
            if way.flow.writes() {
                fds.push(PollFd::new(way.to, PollFlags::POLLOUT));
                stepped.push(Some(index));
            } else if way.flow.reads() {
                fds.push(PollFd::new(way.from, PollFlags::POLLIN));
                stepped.push(Some(index));
            }
        }
        match nix::poll::poll(&mut fds, PollTimeout::NONE) {
            Err(nix::errno::Errno::EINTR) => continue,
            Err(errno) => return Err(Error::from(coracle_sys::Error::new("poll()", errno))),
            Ok(_) => {}
        }
        let ready: Vec<bool> = fds.iter().map(|fd| fd.any().unwrap_or(false)).collect();
        drop(fds);
        if ready[0] {
            let ending = hear(signals, &mut resized);
            if ending.is_some() {
                return Ok(ending);
            }
        }
        let is_last = last.is_some() && ready[1];
        let mut moved = false;
        for index in stepped.iter().zip(&ready).filter(|(_, ready)| **ready).filter_map(|(index, _)| *index) {
            ways[index].step();
            if ways[index].counts {
                moved = true;
                ways.iter_mut().filter(|way| way.end == End::Typed).for_each(|way| way.flow.type_end_again());
            }
        }
        if is_last && !moved {
            return Ok(None);
        }
    }
    Ok(None)
}

/// Takes the signals that have come; returns one that asks the caller to end.
fn hear(signals: &SignalFd, resized: &mut impl FnMut(u16, u16)) -> Option<i32> {
    while let Ok(Some(told)) = signals.read_signal() {
        let number = told.ssi_signo.cast_signed();
        if number != libc::SIGWINCH {
            return Some(number);
        }
        if let Ok((rows, columns)) = tty::size(std::io::stdin().as_fd()) {
            resized(rows, columns);
        }
    }
    None
}
