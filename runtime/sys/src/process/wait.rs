//! How processes end.

use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;

use super::pidfd;
use crate::error::{Error, Result, check, show};
use crate::file::{self, CWD, Resolve};

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// With this status.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

impl Exit {
    /// Of the status that wait(2) tells.
    fn of_status(status: i32) -> Self {
        let (signal, code) = (status & 0x7f, status >> 8 & 0xff);
        if signal == 0 { Self::Code(code) } else { Self::Signal(signal) }
    }

    /// The status as shells and Docker report it: 128 more than the signal's number for a killed process.
    pub fn code(self) -> u8 {
        let code = match self {
            Self::Code(code) => code,
            Self::Signal(signal) => 128 + signal,
        };
        u8::try_from(code).unwrap_or(u8::MAX)
    }
}

/// Waits for the child of `pidfd` to end, and reaps it (waitid(2) with `P_PIDFD`, Linux 5.4).
///
/// # Errors
/// `ECHILD` where it is no child of the caller.
pub fn wait(pidfd: BorrowedFd<'_>) -> Result<Exit> {
    use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
    loop {
        match waitid(Id::PIDFd(pidfd), WaitPidFlag::WEXITED) {
            Ok(WaitStatus::Exited(_, code)) => return Ok(Exit::Code(code)),
            Ok(WaitStatus::Signaled(_, signal, _)) => return Ok(Exit::Signal(signal as i32)),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(Error::new(format!("waitid({})", show(&pidfd)), errno)),
        }
    }
}

/// How the process of `pidfd` ended, whoever awaited it; `None` while it lives, or is not awaited yet (`PIDFD_GET_INFO`
/// with `PIDFD_INFO_EXIT`, Linux 6.15). The descriptor must have been open before it was awaited.
///
/// # Errors
/// `EINVAL` or `ENOTTY` on older kernels, `ESRCH` where the kernel has forgotten it.
pub fn exit_of(pidfd: BorrowedFd<'_>) -> Result<Option<Exit>> {
    const PIDFD_INFO_EXIT: u64 = 1 << 3;
    /// The first version of the kernel's `struct pidfd_info` (`include/uapi/linux/pidfd.h`).
    #[repr(C)]
    #[derive(Default)]
    struct Info {
        mask: u64,
        cgroup: u64,
        ids: [u32; 11],
        exit_code: i32,
    }
    // _IOWR(0xFF, 11, struct pidfd_info)
    const PIDFD_GET_INFO: u64 = 3 << 30 | (size_of::<Info>() as u64) << 16 | 0xFF << 8 | 11;
    let mut info = Info { mask: PIDFD_INFO_EXIT, ..Info::default() };
    let mut ask = || {
        // SAFETY: the kernel reads and writes one structure of the size that the request names, which outlives the
        // call.
        let ret = unsafe { libc::ioctl(pidfd.as_raw_fd(), PIDFD_GET_INFO as _, &raw mut info) };
        check(ret, || format!("ioctl({}, PIDFD_GET_INFO)", show(&pidfd)))
    };
    // One that is reaped in the midst of the answer is not found. How it ended was noted before: the next one tells.
    ask().or_else(|error| if error.errno() == Errno::ESRCH { ask() } else { Err(error) })?;
    Ok((info.mask & PIDFD_INFO_EXIT != 0).then_some(Exit::of_status(info.exit_code)))
}

/// How the process `pid` of `pidfd` ended that nobody has awaited yet, for those who may trace it (the last field of
/// `/proc/PID/stat`, proc_pid_stat(5)); `None` where it lives or is gone.
pub fn exit_of_zombie(pid: i32, pidfd: BorrowedFd<'_>) -> Option<Exit> {
    let stat = file::read(CWD, format!("/proc/{pid}/stat"), 4096, Resolve::Host).ok()?;
    let text = String::from_utf8_lossy(&stat);
    let fields = text.rsplit_once(") ")?.1;
    let status = fields.split_ascii_whitespace().nth(49)?.parse().ok()?;
    // The number was its own then, if it is so still.
    let is_its_own = || pidfd::signal(pidfd, 0).is_ok();
    (fields.starts_with('Z') && is_its_own()).then(|| Exit::of_status(status))
}

/// Reaps every child that has ended, without waiting (waitpid(2)).
pub fn reap_all() {
    use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
    while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
        if status == WaitStatus::StillAlive {
            return;
        }
    }
}

/// Reaps every child that has ended but those that `is_known` names, without waiting (waitid(2) with `WNOWAIT`). One
/// that is known stops it: whoever knows it asks how it ended first. True where one did.
pub fn reap_unknown(is_known: impl Fn(i32) -> bool) -> bool {
    use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
    let peek = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    loop {
        let pid = match waitid(Id::All, peek) {
            Ok(WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, ..)) => pid,
            Err(Errno::EINTR) => continue,
            _ => return false,
        };
        if is_known(pid.as_raw()) {
            return true;
        }
        let _ = waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG);
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;
    use crate::process::pidfd;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "the test makes no container")]
    fn how_a_process_ended_is_known_though_it_is_reaped_while_asked() {
        for _ in 0..1000 {
            let mut child = std::process::Command::new("/bin/sh").args(["-c", "exit 9"]).spawn().unwrap();
            let known = pidfd(child.id() as i32).unwrap();
            let reaper = std::thread::spawn(move || child.wait());
            let exit = std::iter::repeat_with(|| exit_of(known.as_fd())).find_map(Result::transpose);
            reaper.join().unwrap().unwrap();
            match exit.unwrap() {
                Err(error) if matches!(error.errno(), Errno::EINVAL | Errno::ENOTTY) => return,
                exit => assert_eq!(exit.unwrap(), Exit::Code(9)),
            }
        }
    }
}
