//! A process that outlives the client of a session, to undo what the client can no longer undo.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use coracle_sys::process::{self, Child};
use coracle_sys::{descriptor, event, socket, tty};
use nix::sys::termios::Termios;

use crate::error::{Context, Result};

/// How often the processes of a session are killed that is over by its target's end.
const AGAIN: Duration = Duration::from_millis(100);

/// It waits for its client's end, however that comes about.
#[derive(Debug)]
pub struct Monitor {
    child: Child,
    word: OwnedFd,
}

/// What a session is over by, and what is left behind then.
pub struct Ends<'a> {
    /// The process that the session is about, where there is one: it ends the session when it ends.
    pub target: Option<BorrowedFd<'a>>,
    /// Ends the processes of the session.
    pub kill: &'a dyn Fn(),
    /// Removes all that is left of it.
    pub remove: &'a dyn Fn(),
}

impl Monitor {
    /// Starts it: a child of the client in a session of its own, that no signal of a terminal reaches and that keeps none
    /// of the client's streams open but, where the standard input is one, the terminal.
    ///
    /// # Errors
    /// `EAGAIN` where there are too many processes.
    pub fn start(ends: &Ends<'_>) -> Result<Self> {
        let (word, theirs) = socket::pair()?;
        let stdin = std::io::stdin();
        let terminal = tty::settings(stdin.as_fd())
            .map(|before| descriptor::duplicate(stdin.as_fd()).map(|fd| (fd, before)))
            .transpose()?;
        let child =
            process::spawn(0, None, || i32::from(watch_over(&theirs, terminal.as_ref(), ends).is_err()));
        let child = child.context(|| "starting the monitor of the session")?;
        Ok(Self { child, word })
    }

    /// Lets it go: the client has undone everything itself.
    ///
    /// # Errors
    /// None that a kernel is known to give.
    pub fn dismiss(self) -> Result<()> {
        // One that is gone already has done its work.
        let _ = socket::send(self.word.as_fd(), b".", &[]);
        process::wait(self.child.pidfd.as_fd())?;
        Ok(())
    }
}

fn watch_over(word: &OwnedFd, terminal: Option<&(OwnedFd, Termios)>, ends: &Ends<'_>) -> Result<()> {
    let descriptors = [word.as_raw_fd()].into_iter();
    let descriptors = descriptors.chain(terminal.map(|(fd, _)| fd.as_raw_fd()));
    let kept: Vec<i32> = descriptors.chain(ends.target.map(|fd| fd.as_raw_fd())).collect();
    descriptor::close_all_but(&kept)?;
    process::new_session()?;
    descriptor::silence()?;
    let both: Vec<BorrowedFd<'_>> = [word.as_fd()].into_iter().chain(ends.target).collect();
    let mut has_word = event::readable(&both, None)?.first() == Some(&true);
    while !has_word {
        // Again and again: the session may have been about to begin.
        (ends.kill)();
        has_word = event::readable(&[word.as_fd()], Some(AGAIN))? == [true];
    }
    // The end of the client is the end of its socket.
    if socket::receive(word.as_fd(), 1)?.is_none() {
        (ends.remove)();
        if let Some((fd, before)) = terminal {
            tty::restore(fd.as_fd(), before)?;
        }
    }
    Ok(())
}
