//! Other processes: a descriptor for each, signals, and what procfs says of them.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;

use crate::error::{Error, Result, check, check_fd, show};
use crate::file::{self, CWD, Resolve};

/// A descriptor of the process `pid` (pidfd_open(2), Linux 5.3).
///
/// # Errors
/// `ESRCH` where there is none.
pub fn pidfd(pid: i32) -> Result<OwnedFd> {
    // SAFETY: the call takes no pointers.
    let ret = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    check_fd(ret, || format!("pidfd_open({pid})")).map_err(|e| match e.errno() {
        // What older kernels (6.1) say of one that was awaited this very moment.
        Errno::EINVAL if pid > 0 => Error::new(e.call(), Errno::ESRCH),
        _ => e,
    })
}

/// The PID of the process of `pidfd` in the caller's PID namespace (`/proc/self/fdinfo`, Linux 5.4). It stays its own
/// as long as nobody awaits the process.
///
/// # Errors
/// `ESRCH` where it has ended and was awaited, or is not to be seen from this namespace.
pub fn pid_of(pidfd: BorrowedFd<'_>) -> Result<i32> {
    let path = format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd());
    let text = file::read(CWD, &path, 4096, Resolve::Host)?;
    let text = String::from_utf8_lossy(&text);
    let pid = text.lines().find_map(|line| line.strip_prefix("Pid:")?.trim().parse().ok());
    pid.filter(|pid| *pid > 0).ok_or_else(|| Error::new(format!("read({path:?})"), Errno::ESRCH))
}

/// A number that no other process has until the machine starts again: the inode of its descriptors in pidfs (Linux 6.9). `None` on
/// older kernels, where all descriptors have the same.
///
/// # Errors
/// Only on a closed descriptor.
pub fn inode(pidfd: BorrowedFd<'_>) -> Result<Option<u64>> {
    const PID_FS_MAGIC: nix::sys::statfs::FsType = nix::sys::statfs::FsType(0x5049_4446);
    if file::file_system(pidfd)? != PID_FS_MAGIC {
        return Ok(None);
    }
    Ok(Some(file::stat(pidfd)?.st_ino))
}

/// Sends `signal` (0 only asks whether the process is there) to the process of `pidfd`
/// (pidfd_send_signal(2), Linux 5.1).
///
/// # Errors
/// `ESRCH` where the process has ended and was awaited.
pub fn signal(pidfd: BorrowedFd<'_>, signal: i32) -> Result<()> {
    // SAFETY: a null siginfo is allowed: the kernel fills in what kill(2) would.
    let ret = unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, std::ptr::null::<()>(), 0)
    };
    check(ret, || format!("pidfd_send_signal({}, {signal})", show(&pidfd))).map(drop)
}

/// The name of `signal`: `SIGKILL`.
pub fn signal_name(signal: i32) -> String {
    nix::sys::signal::Signal::try_from(signal)
        .map_or_else(|_| format!("signal {signal}"), |s| s.as_str().to_owned())
}

/// Sends `signal` to the process `pid`, or the group `-pid`. For children that nobody else awaits; everywhere else a
/// pidfd is right.
///
/// # Errors
/// `ESRCH` where there is none.
pub fn kill(pid: i32, signal: i32) -> Result<()> {
    // SAFETY: the call takes no pointers.
    let ret = unsafe { libc::kill(pid, signal) };
    check(ret, || format!("kill({pid}, {signal})")).map(drop)
}

/// The kernel's view of a process, from `/proc/PID/stat` (proc_pid_stat(5)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status {
    /// Its state: `R`, `S`, `D`, `Z` and so on.
    pub state: char,
    /// How many threads it has. Its first may have ended (`Z`) while others run.
    pub threads: usize,
    /// When it started, in clock ticks since boot: with the PID, this names a process for good.
    pub start_time: u64,
}

/// What `/proc/PID/stat` says of `pid`.
///
/// # Errors
/// `ENOENT` where there is no such process.
pub fn status(pid: i32) -> Result<Status> {
    let path = format!("/proc/{pid}/stat");
    let text = file::read(CWD, &path, 4096, Resolve::Host)?;
    parse_stat(&text).ok_or_else(|| Error::new(format!("read({path:?})"), Errno::EINVAL))
}

/// The name of a process may hold blanks and parentheses, so fields are counted from the last parenthesis.
fn parse_stat(text: &[u8]) -> Option<Status> {
    let text = String::from_utf8_lossy(text);
    let mut fields = text.rsplit_once(") ")?.1.split(' ');
    let state = fields.next()?.chars().next()?;
    let threads = fields.nth(16)?.parse().ok()?;
    let start_time = fields.nth(1)?.trim().parse().ok()?;
    Some(Status { state, threads, start_time })
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_process_name_with_parentheses_does_not_shift_the_fields() {
        let line = b"42 (a) b (c) S 1 42 42 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 98765 1 2 3\n";
        assert_eq!(parse_stat(line), Some(Status { state: 'S', threads: 1, start_time: 98765 }));
    }

    #[test]
    fn a_pidfd_tells_its_pid() {
        let own = std::process::id() as i32;
        assert_eq!(pid_of(pidfd(own).unwrap().as_fd()).unwrap(), own);
        assert!(pid_of(file::open_dir("/").unwrap().as_fd()).is_err());
    }

    #[test]
    fn own_status_is_running() {
        let status = status(std::process::id() as i32).unwrap();
        // That of the first thread, which waits for this one, or for the disk.
        assert!(matches!(status.state, 'R' | 'S' | 'D'));
    }
}
