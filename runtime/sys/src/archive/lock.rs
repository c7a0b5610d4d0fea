//! Locks of parts of a file, which end with the descriptor that they were taken by.

use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;

use crate::error::{Result, check, show};

/// Whom a range lock shuts out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lock {
    /// Those who want it exclusively.
    Shared,
    /// Everybody else.
    Exclusive,
}

/// Waits for the lock of the bytes of an open file from `start` on, `length` of them or with 0 all; it is
/// held until the descriptor is closed (fcntl(2), `F_OFD_SETLKW`).
///
/// # Errors
/// `ENOLCK`.
pub fn lock_range(fd: BorrowedFd<'_>, lock: Lock, start: i64, length: i64) -> Result<()> {
    set_range(fd, (libc::F_OFD_SETLKW, "F_OFD_SETLKW"), lock, (start, length))
}

/// As [`lock_range`], but returns false where it would have to wait (fcntl(2), `F_OFD_SETLK`).
///
/// # Errors
/// `ENOLCK`.
pub fn try_lock_range(fd: BorrowedFd<'_>, lock: Lock, start: i64, length: i64) -> Result<bool> {
    match set_range(fd, (libc::F_OFD_SETLK, "F_OFD_SETLK"), lock, (start, length)) {
        Err(e) if matches!(e.errno(), Errno::EAGAIN | Errno::EACCES) => Ok(false),
        other => other.map(|()| true),
    }
}

fn set_range(
    fd: BorrowedFd<'_>,
    (command, name): (i32, &str),
    lock: Lock,
    (start, length): (i64, i64),
) -> Result<()> {
    // SAFETY: flock is a plain structure of integers, for which zero is a valid value; an open file
    // description lock asks for a zero in `l_pid`.
    let mut range: libc::flock = unsafe { std::mem::zeroed() };
    range.l_type = match lock {
        Lock::Shared => libc::F_RDLCK as i16,
        Lock::Exclusive => libc::F_WRLCK as i16,
    };
    range.l_whence = libc::SEEK_SET as i16;
    range.l_start = start;
    range.l_len = length;
    loop {
        // SAFETY: `range` is a flock that outlives the call.
        let ret = unsafe { libc::fcntl(fd.as_raw_fd(), command, &raw const range) };
        if ret < 0 && Errno::last() == Errno::EINTR {
            continue;
        }
        return check(ret, || format!("fcntl({}, {name}, {lock:?}, {start}, {length})", show(&fd))).map(drop);
    }
}
