//! Waits for the end of a process, and passes on to it what the runtime receives: signals, and a terminal's
//! input and output.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use coracle_sys::process::{self, Exit};
use coracle_sys::{socket, tty};
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::signalfd::SignalFd;

use super::release::Running;
use crate::error::{Code, Context, Error, Result};

/// What is set up before the process exists, so that no signal is lost: signals become readable, and a terminal
/// that the caller sits at becomes raw.
#[derive(Debug)]
pub struct Watch {
    signals: SignalFd,
}

impl Watch {
    /// Begins to collect signals.
    ///
    /// # Errors
    /// `EMFILE`.
    pub fn begin() -> Result<Self> {
        Ok(Self { signals: process::signal_fd()? })
    }

    /// Watches `running` until it ends.
    ///
    /// # Errors
    /// Where its terminal does not come, or waiting fails.
    pub fn watch(self, running: Running) -> Result<Exit> {
        let Running { child, console } = running;
        let terminal = console.map(|socket| Terminal::receive(&socket)).transpose()?;
        let exit = self.relay(child.pidfd.as_fd(), terminal.as_ref())?;
        if let Some(terminal) = &terminal {
            terminal.drain();
        }
        Ok(exit)
    }

    fn relay(&self, pidfd: BorrowedFd<'_>, terminal: Option<&Terminal>) -> Result<Exit> {
        let mut open = terminal.is_some();
        let mut input = open;
        loop {
            let mut fds = vec![readable(pidfd), readable(self.signals.as_fd())];
            if let Some(terminal) = terminal.filter(|_| open) {
                fds.push(readable(terminal.master.as_fd()));
                if input {
                    fds.push(readable(terminal.stdin()));
                }
            }
            match nix::poll::poll(&mut fds, PollTimeout::NONE) {
                Err(nix::errno::Errno::EINTR) => continue,
                other => other.map_err(|e| Error::from(coracle_sys::Error::new("poll()", e)))?,
            };
            let ready: Vec<bool> = fds.iter().map(|fd| fd.any().unwrap_or(false)).collect();
            if let Some(terminal) = terminal {
                if ready.get(2) == Some(&true) {
                    open = terminal.output();
                }
                if ready.get(3) == Some(&true) {
                    input = terminal.input();
                }
            }
            if ready[1] {
                self.forward(pidfd, terminal)?;
            }
            if ready[0] {
                return Ok(process::wait(pidfd)?);
            }
        }
    }

    fn forward(&self, pidfd: BorrowedFd<'_>, terminal: Option<&Terminal>) -> Result<()> {
        while let Ok(Some(info)) = self.signals.read_signal() {
            let signal = info.ssi_signo.cast_signed();
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
        Ok(())
    }
}

fn readable(fd: BorrowedFd<'_>) -> PollFd<'_> {
    PollFd::new(fd, PollFlags::POLLIN)
}

/// The caller's terminal, joined to the container's.
#[derive(Debug)]
struct Terminal {
    master: OwnedFd,
    stdin: std::io::Stdin,
    before: Option<nix::sys::termios::Termios>,
}

impl Terminal {
    /// Takes the container's terminal from the child and makes the caller's raw, if it has one.
    fn receive(socket: &OwnedFd) -> Result<Self> {
        let (_, master) = socket::receive(socket.as_fd(), 64)
            .context(|| "receiving the container's terminal")?
            .ok_or_else(|| Error::new(Code::System, "the container's terminal did not come"))?;
        let master =
            master.ok_or_else(|| Error::new(Code::System, "the container's terminal did not come"))?;
        let stdin = std::io::stdin();
        let before = tty::is_terminal(stdin.as_fd()).then(|| tty::make_raw(stdin.as_fd())).transpose()?;
        let terminal = Self { master, stdin, before };
        if terminal.before.is_some() {
            terminal.resize()?;
        }
        Ok(terminal)
    }

    fn stdin(&self) -> BorrowedFd<'_> {
        self.stdin.as_fd()
    }

    fn resize(&self) -> Result<()> {
        let (rows, columns) = tty::size(self.stdin())?;
        Ok(tty::set_size(self.master.as_fd(), rows, columns)?)
    }

    /// Copies what the container wrote; false when its last process has closed the terminal.
    fn output(&self) -> bool {
        copy(self.master.as_fd(), std::io::stdout().as_fd())
    }

    /// Copies what the caller typed; at the end of it tells the container so.
    fn input(&self) -> bool {
        let more = copy(self.stdin(), self.master.as_fd());
        if !more {
            // As Ctrl-D does: the end of input, for a program that reads the terminal line by line.
            let _ = coracle_sys::file::write_all(self.master.as_fd(), &[4]);
        }
        more
    }

    /// Copies what is left when the process has ended.
    fn drain(&self) {
        loop {
            let mut fds = [readable(self.master.as_fd())];
            let ready = nix::poll::poll(&mut fds, PollTimeout::ZERO);
            if ready != Ok(1) || !self.output() {
                return;
            }
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            let _ = tty::restore(self.stdin.as_fd(), before);
        }
    }
}

fn copy(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> bool {
    let mut buffer = [0_u8; 16 * 1024];
    match nix::unistd::read(from, &mut buffer) {
        Ok(0) | Err(nix::errno::Errno::EIO) => false,
        Ok(n) => coracle_sys::file::write_all(to, &buffer[..n]).is_ok(),
        Err(_) => true,
    }
}
