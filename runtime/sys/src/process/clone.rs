//! Cloning the calling process, and executing a program in its place.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;

use crate::error::{Error, Result, check, check_fd, show};
use crate::file;
use crate::mount::EMPTY;

/// A child that this process has cloned and not yet awaited. Its PID can't be used again before that.
#[derive(Debug)]
pub struct Child {
    /// The child's PID in the caller's PID namespace.
    pub pid: i32,
    /// A descriptor of the child (pidfd_open(2)).
    pub pidfd: OwnedFd,
}

impl Child {
    /// Kills it, who must not have been awaited: where a filter of the caller's leaves no pidfd_send_signal(2), by its number,
    /// which is its own until then.
    pub fn kill(&self) {
        match super::signal(self.pidfd.as_fd(), libc::SIGKILL) {
            Err(e) if e.errno() != Errno::ESRCH => drop(super::kill(self.pid, libc::SIGKILL)),
            _ => {}
        }
    }
}

/// Clones the calling process with the namespaces of `namespaces` (`CLONE_NEW*`), straight into the cgroup
/// directory `cgroup` where one is given (v2 only), and runs `child` in it (clone3(2), Linux 5.3; 5.7 for the
/// cgroup). The child gets a copy of everything, as after fork(2); where `child` returns, it exits with that
/// code and runs no destructor of the parent's.
///
/// The caller must have one thread: what other threads hold locked would stay locked in the child. The
/// number of threads is checked in debug builds.
///
/// # Errors
/// `ENOSPC` where there are too many namespaces, `EPERM`, and `ENODEV` where the cgroup is gone.
pub fn spawn(namespaces: i32, cgroup: Option<BorrowedFd<'_>>, child: impl FnOnce() -> i32) -> Result<Child> {
    let mut pidfd: i32 = -1;
    let mut args = clone_args(namespaces);
    args.flags |= libc::CLONE_PIDFD as u64;
    args.pidfd = (&raw mut pidfd) as u64;
    args.exit_signal = libc::SIGCHLD as u64;
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = u64::from(cgroup.as_raw_fd().cast_unsigned());
    }
    let pid = clone(&mut args, child)?;
    let pidfd = check_fd(pidfd, || "clone3".to_owned())?;
    Ok(Child { pid, pidfd })
}

/// The same, but the new process is not the caller's child: it is its sibling, a child of the caller's own parent,
/// which awaits it (`CLONE_PARENT`). Returns its PID.
///
/// # Errors
/// As [`spawn`].
pub fn spawn_sibling(namespaces: i32, child: impl FnOnce() -> i32) -> Result<i32> {
    let mut args = clone_args(namespaces);
    // The signal at its end is that of the caller's own end.
    args.flags |= libc::CLONE_PARENT as u64;
    clone(&mut args, child)
}

fn clone_args(namespaces: i32) -> libc::clone_args {
    // SAFETY: clone_args is a plain structure of integers, for which zero is a valid value.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = u64::from(namespaces.cast_unsigned());
    args
}

fn clone(args: &mut libc::clone_args, child: impl FnOnce() -> i32) -> Result<i32> {
    debug_assert_eq!(threads(), 1, "a process with threads must not be cloned");
    // SAFETY: no CLONE_VM and no stack: the child is a copy, as after fork(2), of a process with one thread,
    // so no lock is held by a thread that the child lacks. `args` and the pidfd it names outlive the call.
    let ret = unsafe { libc::syscall(libc::SYS_clone3, &raw mut *args, size_of::<libc::clone_args>()) };
    if ret == 0 {
        exit_now(child());
    }
    check(ret, || format!("clone3({:#x})", args.flags)).map(|pid| pid as i32)
}

const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// The number of threads of the calling process.
fn threads() -> usize {
    file::open_dir("/proc/self/task").and_then(|d| file::list(d.as_fd())).map_or(1, |l| l.len())
}

/// Ends the calling process at once: no destructor, no flushing (_exit(2)). Where a filter of system calls refuses even that,
/// it ends by a signal: musl's `_exit` would try for ever.
pub fn exit_now(code: i32) -> ! {
    for call in [libc::SYS_exit_group, libc::SYS_exit] {
        // SAFETY: neither call has preconditions, and they return only where they are refused.
        unsafe { libc::syscall(call, code) };
    }
    // In the end it executes what no process may.
    std::process::abort()
}

/// Runs `program` with `args` and `env` in place of the calling process; returns only on failure
/// (execveat(2) with `AT_EMPTY_PATH`).
///
/// # Errors
/// `ENOEXEC`, `EACCES`, `ENOENT` where the interpreter is missing.
pub fn execute_fd(program: BorrowedFd<'_>, args: &[CString], env: &[CString]) -> Error {
    let argv = pointers(args);
    let envp = pointers(env);
    // SAFETY: both arrays end with null, and their strings outlive the call.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            program.as_raw_fd(),
            EMPTY.as_ptr(),
            argv.as_ptr(),
            envp.as_ptr(),
            libc::AT_EMPTY_PATH,
        );
    }
    Error::new(format!("execveat({})", show(&program)), Errno::last())
}

/// Runs the program at `path` with `args` and `env` in place of the calling process; returns only on failure
/// (execve(2)).
///
/// # Errors
/// `ENOENT`, `EACCES`, `ENOEXEC`.
pub fn execute(path: &CString, args: &[CString], env: &[CString]) -> Error {
    let argv = pointers(args);
    let envp = pointers(env);
    // SAFETY: the arrays end with null, and all strings outlive the call.
    unsafe { libc::execve(path.as_ptr(), argv.as_ptr(), envp.as_ptr()) };
    Error::new(format!("execve({path:?})"), Errno::last())
}

fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings.iter().map(|s| s.as_ptr()).chain(std::iter::once(std::ptr::null())).collect()
}
