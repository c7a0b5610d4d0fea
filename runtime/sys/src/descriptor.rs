//! Descriptors of the calling process, whatever they are open on: copies, pipes, the standard streams, and which of them
//! live through execve(2).

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::pipe2;

use crate::error::{Error, Result, check, named, show};
use crate::file::{self, CWD, Resolve};

/// Another descriptor of what `fd` is open on (fcntl(2), `F_DUPFD_CLOEXEC`).
///
/// # Errors
/// `EMFILE`.
pub fn duplicate(fd: BorrowedFd<'_>) -> Result<OwnedFd> {
    fd.try_clone_to_owned()
        .map_err(|_| Error::new(format!("fcntl({}, F_DUPFD_CLOEXEC)", show(&fd)), Errno::last()))
}

/// Makes reads and writes of `fd`, and of every descriptor that shares its open file, fail with `EAGAIN` rather than
/// wait (fcntl(2), `O_NONBLOCK`).
///
/// # Errors
/// None that a kernel is known to give for a file that is open.
pub fn set_nonblocking(fd: BorrowedFd<'_>) -> Result<()> {
    named(fcntl(fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)), || format!("fcntl({}, F_SETFL)", show(&fd)))
        .map(drop)
}

/// Marks every descriptor from `first` on to be closed on execve(2) (close_range(2) with
/// `CLOSE_RANGE_CLOEXEC`, Linux 5.11).
///
/// # Errors
/// `EINVAL` on older kernels.
pub fn close_on_exec_from(first: u32) -> Result<()> {
    const CLOEXEC: u32 = 4;
    // SAFETY: the call takes no pointers, and closes nothing by itself.
    let ret = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, CLOEXEC) };
    check(ret, || format!("close_range({first}, ~0, CLOEXEC)")).map(drop)
}

/// Closes every descriptor from 3 on but those of `keep` (close_range(2), Linux 5.9). For a cloned child, which
/// has copies of descriptors that belong to its parent: locks, and ends of sockets whose closing somebody awaits.
///
/// # Errors
/// None that a kernel is known to give.
pub fn close_all_but(keep: &[i32]) -> Result<()> {
    let mut keep: Vec<u32> =
        keep.iter().filter_map(|fd| u32::try_from(*fd).ok()).filter(|fd| *fd > 2).collect();
    keep.sort_unstable();
    let mut first = 3;
    for last in keep.into_iter().map(|fd| fd.checked_sub(1)).chain([Some(u32::MAX)]).flatten() {
        if first <= last {
            // SAFETY: the owners of these descriptors live in the parent; in this copy of its memory nothing
            // uses or drops them, since a child never returns to its parent's frames.
            let ret = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
            check(ret, || format!("close_range({first}, {last})"))?;
        }
        first = last.saturating_add(2);
    }
    Ok(())
}

/// Lets the descriptor `fd` live through execve(2).
///
/// # Errors
/// `EBADF` where it is not open.
pub fn keep_on_exec(fd: i32) -> Result<()> {
    // SAFETY: the call takes no pointers.
    let ret = unsafe { libc::fcntl(fd, libc::F_SETFD, 0) };
    check(ret, || format!("fcntl({fd}, F_SETFD, 0)")).map(drop)
}

/// Whether the descriptor number `fd` is open.
pub fn is_open(fd: i32) -> bool {
    // SAFETY: the call takes no pointers.
    unsafe { libc::fcntl(fd, libc::F_GETFD) >= 0 }
}

/// Makes `fd` the standard stream `stream` (0, 1 or 2) of the calling process (dup2(2)).
///
/// # Errors
/// Only on a closed descriptor.
pub fn set_stream(fd: BorrowedFd<'_>, stream: i32) -> Result<()> {
    // SAFETY: the numbers 0 to 2 belong to no OwnedFd of ours: close_on_exec_from starts at 3, and whoever
    // replaces a stream does so between clone and execve.
    let ret = unsafe { libc::dup2(fd.as_raw_fd(), stream) };
    check(ret, || format!("dup2({}, {stream})", show(&fd))).map(drop)
}

/// What is read from which ends at once, and where what is written is lost (null(4)).
///
/// # Errors
/// Where `/dev/null` can't be opened.
pub fn null() -> Result<OwnedFd> {
    file::open(CWD, "/dev/null", libc::O_RDWR, 0, Resolve::Host)
}

/// Makes nothing of the standard streams of the calling process, for one that outlives whose they are.
///
/// # Errors
/// As [`null`].
pub fn silence() -> Result<()> {
    let null = null()?;
    (0..3).try_for_each(|stream| set_stream(null.as_fd(), stream))
}

/// Makes sure that the descriptors 0, 1 and 2 are open, on `/dev/null` where the caller left them closed:
/// else a file of ours could become somebody's standard output.
///
/// # Errors
/// Where `/dev/null` can't be opened.
pub fn open_streams() -> Result<()> {
    while let Some(closed) = (0..3).find(|n| !is_open(*n)) {
        let null = null()?;
        if null.as_raw_fd() == closed {
            keep_on_exec(closed)?;
            std::mem::forget(null);
        } else {
            set_stream(null.as_fd(), closed)?;
        }
    }
    Ok(())
}

/// Two ends of a pipe, to be read and to be written, neither of which ever waits (pipe2(2), `O_NONBLOCK`).
///
/// # Errors
/// `EMFILE`.
pub fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    let flags = OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
    named(pipe2(flags), || "pipe2()".to_owned())
}

/// Two ends of a pipe for the standard stream of a program: the program's own waits, the other does not, which is the
/// end to be read, or with `for_input` the one to be written (pipe2(2)). Returns ours, then the program's.
///
/// # Errors
/// `EMFILE`.
pub fn stream_pipe(for_input: bool) -> Result<(OwnedFd, OwnedFd)> {
    let (read, write) = named(pipe2(OFlag::O_CLOEXEC), || "pipe2()".to_owned())?;
    let (ours, theirs) = if for_input { (write, read) } else { (read, write) };
    set_nonblocking(ours.as_fd())?;
    Ok((ours, theirs))
}
