//! Terminals.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use nix::sys::termios::{OutputFlags, SetArg, Termios};

use crate::error::{Result, check, check_fd, named, show};
use crate::file::{self, Resolve};

/// Opens a new pseudoterminal of the devpts whose directory is `devpts`: the master, and the peer by
/// descriptor, never by a name that could mean something else (`TIOCGPTPEER`, Linux 4.13).
///
/// # Errors
/// `ENOSPC` where there are too many, `ENOENT` where `devpts` holds no `ptmx`.
pub fn open_pair(devpts: BorrowedFd<'_>) -> Result<(OwnedFd, OwnedFd)> {
    const TIOCSPTLCK: libc::Ioctl = 0x4004_5431;
    const TIOCGPTPEER: libc::Ioctl = 0x5441;
    let master = file::open(devpts, "ptmx", libc::O_RDWR | libc::O_NOCTTY, 0, Resolve::BeneathNoLinks)?;
    let unlock: i32 = 0;
    // SAFETY: TIOCSPTLCK reads an int, which outlives the call.
    let ret = unsafe { libc::ioctl(master.as_raw_fd(), TIOCSPTLCK, &raw const unlock) };
    check(ret, || format!("ioctl({}, TIOCSPTLCK)", show(&master)))?;
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: TIOCGPTPEER takes open flags by value.
    let ret = unsafe { libc::ioctl(master.as_raw_fd(), TIOCGPTPEER, flags) };
    let peer = check_fd(ret, || format!("ioctl({}, TIOCGPTPEER)", show(&master)))?;
    Ok((master, peer))
}

/// Makes the terminal `fd` the controlling one of the caller's session (`TIOCSCTTY`).
///
/// # Errors
/// `EPERM` where the caller is no session leader.
pub fn make_controlling(fd: BorrowedFd<'_>) -> Result<()> {
    // SAFETY: the call takes an integer.
    let ret = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCSCTTY, 0) };
    check(ret, || format!("ioctl({}, TIOCSCTTY)", show(&fd))).map(drop)
}

/// Sets the size of a terminal in character cells (`TIOCSWINSZ`).
///
/// # Errors
/// `ENOTTY`.
pub fn set_size(fd: BorrowedFd<'_>, rows: u16, columns: u16) -> Result<()> {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads a winsize, which outlives the call.
    let ret = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
    check(ret, || format!("ioctl({}, TIOCSWINSZ)", show(&fd))).map(drop)
}

/// The size of a terminal in character cells: rows, columns (`TIOCGWINSZ`).
///
/// # Errors
/// `ENOTTY`.
pub fn size(fd: BorrowedFd<'_>) -> Result<(u16, u16)> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCGWINSZ writes a winsize, which outlives the call.
    let ret = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) };
    check(ret, || format!("ioctl({}, TIOCGWINSZ)", show(&fd)))?;
    Ok((size.ws_row, size.ws_col))
}

/// The size of the first of `fds` that is a terminal and has one.
pub fn size_of(fds: &[BorrowedFd<'_>]) -> Option<(u16, u16)> {
    fds.iter().filter_map(|fd| size(*fd).ok()).find(|(rows, columns)| *rows > 0 && *columns > 0)
}

/// Whether `fd` is a terminal (isatty(3)).
pub fn is_terminal(fd: BorrowedFd<'_>) -> bool {
    nix::unistd::isatty(fd).unwrap_or(false)
}

/// Whether the caller may read the terminal `fd` and change its settings: another job has it else, or a shell at its prompt
/// (tcgetpgrp(3)). One that is not the terminal of the caller's session has no jobs.
pub fn is_in_foreground(fd: BorrowedFd<'_>) -> bool {
    // A process group of another PID namespace is a 0.
    nix::unistd::tcgetpgrp(fd).map_or(true, |group| group.as_raw() == 0 || group == nix::unistd::getpgrp())
}

/// The settings of `fd`, where it is a terminal (tcgetattr(3)).
pub fn settings(fd: BorrowedFd<'_>) -> Option<Termios> {
    nix::sys::termios::tcgetattr(fd).ok()
}

/// Leaves line ends as they are written to the terminal `fd`, which would else put a carriage return before each
/// (`ONLCR` in termios(3)).
///
/// # Errors
/// `ENOTTY`.
pub fn keep_line_ends(fd: BorrowedFd<'_>) -> Result<()> {
    let mut settings = named(nix::sys::termios::tcgetattr(fd), || format!("tcgetattr({})", show(&fd)))?;
    settings.output_flags.remove(OutputFlags::ONLCR);
    restore(fd, &settings)
}

/// Lets every byte that is typed at the terminal `fd` through as it is, and what is shown there (cfmakeraw(3)); returns
/// the settings it had.
///
/// # Errors
/// `ENOTTY`.
pub fn make_raw(fd: BorrowedFd<'_>) -> Result<Termios> {
    let before = named(nix::sys::termios::tcgetattr(fd), || format!("tcgetattr({})", show(&fd)))?;
    let mut raw = before.clone();
    nix::sys::termios::cfmakeraw(&mut raw);
    restore(fd, &raw)?;
    Ok(before)
}

/// Gives the terminal `fd` back the settings `settings` (tcsetattr(3)).
///
/// # Errors
/// `ENOTTY`.
pub fn restore(fd: BorrowedFd<'_>, settings: &Termios) -> Result<()> {
    named(nix::sys::termios::tcsetattr(fd, SetArg::TCSANOW, settings), || format!("tcsetattr({})", show(&fd)))
}
