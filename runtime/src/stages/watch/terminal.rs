//! The caller's standard streams, joined to the container's terminal. A side that does not read, or has nothing to
//! say, holds nobody up but itself.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use coracle_sys::{Errno, socket, tty};
use nix::poll::PollFlags;

use crate::error::{Code, Context, Error, Result};

/// One of the descriptors between which bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// The terminal's master.
    Master,
    /// The caller's standard input.
    Input,
    /// The caller's standard output.
    Output,
}

/// The container's terminal.
#[derive(Debug)]
pub(super) struct Terminal {
    master: OwnedFd,
    stdin: std::io::Stdin,
    stdout: std::io::Stdout,
    /// What the caller's terminal was before it was made raw; only then it is read.
    before: Option<nix::sys::termios::Termios>,
    is_typed_on: bool,
    typed: Flow,
    shown: Flow,
}

impl Terminal {
    /// Takes the container's terminal from the child and makes the caller's raw, if it has one and it is its turn.
    pub(super) fn receive(socket: &OwnedFd) -> Result<Self> {
        let missing = || Error::new(Code::System, "the container's terminal did not come");
        let received =
            socket::receive(socket.as_fd(), 64).context(|| "receiving the container's terminal")?;
        let master = received.and_then(|(_, master)| master).ok_or_else(missing)?;
        coracle_sys::descriptor::set_nonblocking(master.as_fd())?;
        let (stdin, stdout) = (std::io::stdin(), std::io::stdout());
        let is_typed_on = tty::is_terminal(stdin.as_fd());
        let (typed, shown) = (Flow::default(), Flow::default());
        let mut terminal = Self { master, stdin, stdout, before: None, is_typed_on, typed, shown };
        terminal.take_turn()?;
        terminal.resize()?;
        Ok(terminal)
    }

    /// Whether the caller's terminal is another job's, which must find it as it was, and what is typed there, too.
    pub(super) fn waits_for_turn(&self) -> bool {
        self.is_typed_on && self.before.is_none()
    }

    /// Makes the caller's terminal raw once it is its turn.
    pub(super) fn take_turn(&mut self) -> Result<()> {
        if self.waits_for_turn() && tty::is_in_foreground(self.stdin.as_fd()) {
            self.before = Some(tty::make_raw(self.stdin.as_fd())?);
        }
        Ok(())
    }

    /// What to wait for, on each side. With `input` false, only for what the container wrote.
    pub(super) fn wants(&self, input: bool) -> impl Iterator<Item = (Side, BorrowedFd<'_>, PollFlags)> {
        let flag = |is_set, flag| if is_set { flag } else { PollFlags::empty() };
        let reads = flag(self.shown.reads(), PollFlags::POLLIN);
        let writes = flag(input && self.typed.writes(), PollFlags::POLLOUT);
        let is_typed = input && self.typed.reads() && !self.waits_for_turn();
        [
            (Side::Master, self.master.as_fd(), reads | writes),
            (Side::Input, self.stdin.as_fd(), flag(is_typed, PollFlags::POLLIN)),
            (Side::Output, self.stdout.as_fd(), flag(self.shown.writes(), PollFlags::POLLOUT)),
        ]
        .into_iter()
        // Asked for nothing, a descriptor would still tell, again and again, that its other end is gone.
        .filter(|(_, _, flags)| !flags.is_empty())
    }

    /// Whether something that the container wrote has not been passed on.
    pub(super) fn owes_output(&self) -> bool {
        self.shown.writes()
    }

    /// Passes on what the ready `side` has or takes. Where nobody takes what the container shows any more, the
    /// terminal is gone: that hangs it up, and the container hears of it as of any lost terminal (SIGHUP).
    pub(super) fn pass(mut self, side: Side) -> Option<Self> {
        match side {
            Side::Master => {
                self.shown.read(self.master.as_fd());
                if self.shown.writes() {
                    self.typed.type_end_again();
                }
                let _ = self.typed.write(self.master.as_fd());
            }
            // Whoever gave it to another job has settings of their own for it.
            Side::Input if self.is_typed_on && !tty::is_in_foreground(self.stdin.as_fd()) => {
                self.before = None;
            }
            Side::Input => {
                self.typed.read_typed(self.stdin.as_fd());
            }
            Side::Output => {
                if self.shown.write(self.stdout.as_fd()).is_err() {
                    return None;
                }
            }
        }
        Some(self)
    }

    /// Gives the container's terminal the size of the caller's, if it has one: what is typed may come from elsewhere.
    pub(super) fn resize(&self) -> Result<()> {
        let size = tty::size_of(&[self.stdin.as_fd(), self.stdout.as_fd()]);
        size.map_or(Ok(()), |(rows, columns)| Ok(tty::set_size(self.master.as_fd(), rows, columns)?))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            let _ = tty::restore(self.stdin.as_fd(), before);
        }
    }
}

/// Bytes on their way from one side to the other: read only when those before them are gone.
#[derive(Debug)]
pub struct Flow {
    waiting: Vec<u8>,
    open: bool,
    /// Whether what was typed last ends no line.
    is_in_line: bool,
    /// How often, and when last, the end of what is typed was told.
    told_end: (u32, Option<Instant>),
}

/// How many bytes are taken at once: as many as a pipe that is ready takes without blocking (`PIPE_BUF`, pipe(7)).
const CHUNK: usize = 4096;

impl Default for Flow {
    fn default() -> Self {
        Self { waiting: Vec::with_capacity(CHUNK), open: true, is_in_line: false, told_end: (0, None) }
    }
}

impl Flow {
    /// Whether more can come.
    pub fn is_open(&self) -> bool {
        self.open
    }

    /// Whether it is to be read into.
    pub fn reads(&self) -> bool {
        self.open && self.waiting.is_empty()
    }

    /// Whether something waits to be passed on.
    pub fn writes(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Takes what there is of `from`. Any failure but that nothing is there now is the end: `EIO` says that the last process has closed the
    /// terminal.
    pub fn read(&mut self, from: BorrowedFd<'_>) {
        if !self.reads() {
            return;
        }
        let mut chunk = [0; CHUNK];
        match nix::unistd::read(from, &mut chunk) {
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Ok(0) | Err(_) => self.open = false,
            Ok(n) => self.waiting.extend_from_slice(&chunk[..n]),
        }
    }

    /// The same for what is typed into a terminal. Its end becomes what Ctrl-D is, the end of input for a program that reads the
    /// terminal line by line; in a line the first one only ends that.
    pub fn read_typed(&mut self, from: BorrowedFd<'_>) {
        if !self.reads() {
            return;
        }
        self.read(from);
        if let Some(last) = self.waiting.last() {
            self.is_in_line = *last != b'\n';
        }
        if !self.open {
            self.waiting.extend(if self.is_in_line { &[4, 4][..] } else { &[4] });
            self.told_end = (1, Some(Instant::now()));
        }
    }

    /// Tells the end of what is typed again, for the program has shown something since: a shell loses what came before it took the
    /// terminal for itself, and other programs ask more than once. But not for ever what only echoes it.
    pub fn type_end_again(&mut self) {
        const AT_ONCE: u32 = 16;
        const PAUSE: Duration = Duration::from_millis(100);
        let (times, Some(last)) = self.told_end else { return };
        if self.waiting.is_empty() && (times < AT_ONCE || last.elapsed() >= PAUSE) {
            self.waiting.push(4);
            self.told_end = (times + 1, Some(Instant::now()));
        }
    }

    /// Passes on what waits.
    ///
    /// # Errors
    /// `EPIPE` where nobody takes it any more; then nothing is read any more.
    pub fn write(&mut self, to: BorrowedFd<'_>) -> std::result::Result<(), Errno> {
        if !self.writes() {
            return Ok(());
        }
        match nix::unistd::write(to, &self.waiting) {
            Ok(n) => {
                self.waiting.drain(..n);
                Ok(())
            }
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(()),
            Err(errno) => {
                self.open = false;
                self.waiting.clear();
                Err(errno)
            }
        }
    }
}
