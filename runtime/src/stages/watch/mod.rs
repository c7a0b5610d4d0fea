//! Waits for the end of a process, and passes on to it what the runtime receives: signals, and a terminal's
//! input and output.

mod limits;
mod terminal;
pub mod warden;

use std::os::fd::{AsFd, BorrowedFd};

use coracle_sys::process::{self, Exit};
use coracle_sys::signal;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::signalfd::SignalFd;

use super::release::Running;
use crate::error::{Error, Result};
use crate::notify::Notify;
pub use limits::{Limits, Note};
pub use terminal::Flow;
use terminal::Terminal;

/// What is set up before the process exists, so that no signal is lost: signals become readable.
#[derive(Debug)]
pub struct Watch {
    signals: SignalFd,
}

/// How often a terminal is looked at after its process has ended. Each time at least a byte goes on, up to 4096; the
/// kernel keeps 64 KiB for a reader (`TTYB_DEFAULT_MEM_LIMIT`, `drivers/tty/tty_buffer.c`).
const TURNS_AFTER_END: u32 = 4096;

/// How often a caller in the background looks whether it is its turn at its terminal: nothing tells of it. In milliseconds.
const TURN: u8 = 200;

/// What there is to wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Signals,
    Process,
    Terminal(terminal::Side),
    Limit(usize),
    Notify,
}

impl Watch {
    /// Begins to collect signals.
    ///
    /// # Errors
    /// `EMFILE`.
    pub fn begin() -> Result<Self> {
        Ok(Self { signals: signal::signal_fd()? })
    }

    /// Watches `running` until it ends, and what plugins watch meanwhile.
    ///
    /// # Errors
    /// Where its terminal does not come, or waiting fails.
    pub fn watch(self, running: Running, limits: Limits<'_>) -> Result<Exit> {
        let Running { child, console, notify, .. } = running;
        let terminal = console.map(|socket| Terminal::receive(&socket)).transpose()?;
        self.relay(child.pidfd.as_fd(), terminal, limits, notify)
    }

    fn relay(
        &self,
        pidfd: BorrowedFd<'_>,
        mut terminal: Option<Terminal>,
        mut limits: Limits<'_>,
        mut notify: Option<Notify>,
    ) -> Result<Exit> {
        let mut exit = None;
        let mut asked_to_end = false;
        // As much of what its process wrote as the terminal can hold: others that have it open may write for ever.
        let mut turns_left = TURNS_AFTER_END;
        loop {
            let mut sources = vec![(Source::Signals, self.signals.as_fd(), PollFlags::POLLIN)];
            if exit.is_none() {
                sources.push((Source::Process, pidfd, PollFlags::POLLIN));
                sources.extend(notify.iter().map(|n| (Source::Notify, n.fd(), PollFlags::POLLIN)));
                let fds = limits.fds();
                sources.extend(
                    fds.map(|(index, fd)| (Source::Limit(index), fd, PollFlags::POLLIN | PollFlags::POLLPRI)),
                );
            }
            let sides = terminal.iter().flat_map(|terminal| terminal.wants(exit.is_none()));
            sources.extend(sides.map(|(side, fd, flags)| (Source::Terminal(side), fd, flags)));
            // Once the process has ended, what it wrote is all that is still to be passed on; and nobody who takes it is
            // waited for by a command that was asked to end.
            let owes = !asked_to_end && terminal.as_ref().is_some_and(Terminal::owes_output);
            let is_done = exit.is_some() && !owes;
            let waits_for_turn = exit.is_none() && terminal.as_ref().is_some_and(Terminal::waits_for_turn);
            let most = if is_done {
                PollTimeout::ZERO
            } else if waits_for_turn {
                TURN.into()
            } else {
                PollTimeout::NONE
            };
            let ready = ready(&sources, most)?;
            if waits_for_turn {
                let _ = terminal.as_mut().map(Terminal::take_turn);
            }
            for source in &ready {
                match source {
                    Source::Limit(index) => limits.look(*index),
                    // A caller that can't be told is gone, or does not want to be.
                    Source::Notify => notify = notify.filter(|n| n.hear("").is_ok_and(|is_ready| !is_ready)),
                    Source::Signals => asked_to_end |= self.forward(pidfd, terminal.as_ref())?,
                    Source::Process => exit = Some(process::wait(pidfd)?),
                    Source::Terminal(side) => terminal = terminal.and_then(|terminal| terminal.pass(*side)),
                }
            }
            turns_left -= u32::from(exit.is_some());
            if let Some(exit) = exit.filter(|_| terminal.is_none() || ready.is_empty() || turns_left == 0) {
                return Ok(exit);
            }
        }
    }

    /// Passes the signals on that have come; true where one of them asks the runtime to end.
    fn forward(&self, pidfd: BorrowedFd<'_>, terminal: Option<&Terminal>) -> Result<bool> {
        let mut ends = false;
        while let Ok(Some(info)) = self.signals.read_signal() {
            let signal = info.ssi_signo.cast_signed();
            ends |= matches!(signal, libc::SIGTERM | libc::SIGINT | libc::SIGHUP | libc::SIGQUIT);
            match signal {
                libc::SIGCHLD | libc::SIGURG => {}
                libc::SIGWINCH if terminal.is_some() => {
                    let _ = terminal.map(Terminal::resize);
                }
                _ => match process::signal(pidfd, signal) {
                    Err(e) if e.errno() != coracle_sys::Errno::ESRCH => return Err(e.into()),
                    _ => {}
                },
            }
        }
        Ok(ends)
    }
}

/// Waits until some of `sources` are ready, each asked for its flags; none of them after `timeout`.
fn ready(sources: &[(Source, BorrowedFd<'_>, PollFlags)], timeout: PollTimeout) -> Result<Vec<Source>> {
    let mut fds: Vec<_> = sources.iter().map(|(_, fd, flags)| PollFd::new(*fd, *flags)).collect();
    loop {
        match nix::poll::poll(&mut fds, timeout) {
            Err(nix::errno::Errno::EINTR) => {}
            Err(e) => return Err(Error::from(coracle_sys::Error::new("poll()", e))),
            Ok(_) => break,
        }
    }
    let is_ready = |fd: &PollFd<'_>| fd.any().unwrap_or(false);
    Ok(sources.iter().zip(&fds).filter(|(_, fd)| is_ready(fd)).map(|((source, ..), _)| *source).collect())
}
