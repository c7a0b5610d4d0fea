//! Making, executing, signalling and awaiting processes.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;

use crate::error::{Error, Result, check, check_fd, named, show};
use crate::mount::EMPTY;

/// A child that this process has cloned and not yet awaited. Its PID can't be used again before that.
#[derive(Debug)]
pub struct Child {
    /// The child's PID in the caller's PID namespace.
    pub pid: i32,
    /// A descriptor of the child (pidfd_open(2)).
    pub pidfd: OwnedFd,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// With this status.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

impl Exit {
    /// The status as shells and Docker report it: 128 more than the signal's number for a killed process.
    pub fn code(self) -> i32 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => 128 + signal,
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
    crate::file::open_dir("/proc/self/task").and_then(|d| crate::file::list(d.as_fd())).map_or(1, |l| l.len())
}

/// Ends the calling process at once: no destructor, no flushing (_exit(2)).
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit has no preconditions.
    unsafe { libc::_exit(code) }
}

/// A copy of the file `source` in memory that nobody can change any more (memfd_create(2) with seals,
/// Linux 3.17).
///
/// # Errors
/// `ENOMEM`.
pub fn sealed_copy(source: BorrowedFd<'_>, name: &str) -> Result<OwnedFd> {
    use nix::sys::memfd::{MFdFlags, memfd_create};
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let copy = named(memfd_create(name, flags), || format!("memfd_create({name:?})"))?;
    let mut left = usize::try_from(crate::file::stat(source)?.st_size).unwrap_or(0);
    while left > 0 {
        let sent = nix::sys::sendfile::sendfile(&copy, source, None, left);
        match named(sent, || format!("sendfile({}, {})", show(&copy), show(&source)))? {
            0 => break,
            n => left -= n.min(left),
        }
    }
    let seals = libc::F_SEAL_SEAL | libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_WRITE;
    // SAFETY: the call takes no pointers.
    let ret = unsafe { libc::fcntl(copy.as_raw_fd(), libc::F_ADD_SEALS, seals) };
    check(ret, || format!("fcntl({}, F_ADD_SEALS)", show(&copy)))?;
    Ok(copy)
}

/// A file in memory that holds `content`, to be read from its start (memfd_create(2), Linux 3.17).
///
/// # Errors
/// `ENOMEM`.
pub fn memory_file(name: &str, content: &[u8]) -> Result<OwnedFd> {
    use nix::sys::memfd::{MFdFlags, memfd_create};
    use nix::unistd::{Whence, lseek};
    let file = named(memfd_create(name, MFdFlags::MFD_CLOEXEC), || format!("memfd_create({name:?})"))?;
    crate::file::write_all(file.as_fd(), content)?;
    named(lseek(&file, 0, Whence::SeekSet), || format!("lseek({})", show(&file)))?;
    Ok(file)
}

/// Whether nobody can change the memory file `fd` any more; false for a file that is none.
pub fn is_sealed(fd: BorrowedFd<'_>) -> bool {
    // SAFETY: the call takes no pointers.
    let seals = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GET_SEALS) };
    seals >= 0 && seals & libc::F_SEAL_WRITE != 0 && seals & libc::F_SEAL_SEAL != 0
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

/// A descriptor of the process `pid` (pidfd_open(2), Linux 5.3).
///
/// # Errors
/// `ESRCH` where there is none.
pub fn pidfd(pid: i32) -> Result<OwnedFd> {
    // SAFETY: the call takes no pointers.
    let ret = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    check_fd(ret, || format!("pidfd_open({pid})"))
}

/// The PID of the process of `pidfd` in the caller's PID namespace (`/proc/self/fdinfo`, Linux 5.4). It stays its own
/// as long as nobody awaits the process.
///
/// # Errors
/// `ESRCH` where it has ended and was awaited, or is not to be seen from this namespace.
pub fn pid_of(pidfd: BorrowedFd<'_>) -> Result<i32> {
    let path = format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd());
    let text = crate::file::read(crate::file::CWD, &path, 4096, crate::file::Resolve::Host)?;
    let text = String::from_utf8_lossy(&text);
    let pid = text.lines().find_map(|line| line.strip_prefix("Pid:")?.trim().parse().ok());
    pid.filter(|pid| *pid > 0).ok_or_else(|| Error::new(format!("read({path:?})"), Errno::ESRCH))
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

/// Sends `signal` to the process `pid`. For processes of a cgroup that is being killed; everywhere else a
/// pidfd is right.
///
/// # Errors
/// `ESRCH` where there is none.
pub fn kill(pid: i32, signal: i32) -> Result<()> {
    // SAFETY: the call takes no pointers.
    let ret = unsafe { libc::kill(pid, signal) };
    check(ret, || format!("kill({pid}, {signal})")).map(drop)
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
    let (signal, code) = (info.exit_code & 0x7f, info.exit_code >> 8 & 0xff);
    let exit = if signal == 0 { Exit::Code(code) } else { Exit::Signal(signal) };
    Ok((info.mask & PIDFD_INFO_EXIT != 0).then_some(exit))
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

/// The kernel's view of a process, from `/proc/PID/stat` (proc_pid_stat(5)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status {
    /// Its state: `R`, `S`, `D`, `Z` and so on.
    pub state: char,
    /// When it started, in clock ticks since boot: with the PID, this names a process for good.
    pub start_time: u64,
}

/// What `/proc/PID/stat` says of `pid`.
///
/// # Errors
/// `ENOENT` where there is no such process.
pub fn status(pid: i32) -> Result<Status> {
    let path = format!("/proc/{pid}/stat");
    let text = crate::file::read(crate::file::CWD, &path, 4096, crate::file::Resolve::Host)?;
    parse_stat(&text).ok_or_else(|| Error::new(format!("read({path:?})"), Errno::EINVAL))
}

/// The name of a process may hold blanks and parentheses, so fields are counted from the last parenthesis.
fn parse_stat(text: &[u8]) -> Option<Status> {
    let text = String::from_utf8_lossy(text);
    let mut fields = text.rsplit_once(") ")?.1.split(' ');
    let state = fields.next()?.chars().next()?;
    let start_time = fields.nth(18)?.trim().parse().ok()?;
    Some(Status { state, start_time })
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

/// Makes sure that the descriptors 0, 1 and 2 are open, on `/dev/null` where the caller left them closed:
/// else a file of ours could become somebody's standard output.
///
/// # Errors
/// Where `/dev/null` can't be opened.
pub fn open_streams() -> Result<()> {
    while let Some(closed) = (0..3).find(|n| !is_open(*n)) {
        let null =
            crate::file::open(crate::file::CWD, "/dev/null", libc::O_RDWR, 0, crate::file::Resolve::Host)?;
        if null.as_raw_fd() == closed {
            keep_on_exec(closed)?;
            std::mem::forget(null);
        } else {
            set_stream(null.as_fd(), closed)?;
        }
    }
    Ok(())
}

/// Asks for `SIGKILL` when the parent ends, or with `false` takes that back (`PR_SET_PDEATHSIG`).
///
/// # Errors
/// None that a kernel is known to give.
pub fn die_with_parent(yes: bool) -> Result<()> {
    let signal = if yes { libc::SIGKILL } else { 0 };
    prctl(libc::PR_SET_PDEATHSIG, signal as u64, 0).map(drop)
}

/// Two ends of a pipe, to be read and to be written, neither of which ever waits (pipe2(2), `O_NONBLOCK`).
///
/// # Errors
/// `EMFILE`.
pub fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    let flags = nix::fcntl::OFlag::O_CLOEXEC | nix::fcntl::OFlag::O_NONBLOCK;
    named(nix::unistd::pipe2(flags), || "pipe2()".to_owned())
}

/// Two ends of a pipe for the standard stream of a program: the program's own waits, the other does not, which is the
/// end to be read, or with `for_input` the one to be written (pipe2(2)). Returns ours, then the program's.
///
/// # Errors
/// `EMFILE`.
pub fn stream_pipe(for_input: bool) -> Result<(OwnedFd, OwnedFd)> {
    let (read, write) = named(nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC), || "pipe2()".to_owned())?;
    let (ours, theirs) = if for_input { (write, read) } else { (read, write) };
    crate::file::set_nonblocking(ours.as_fd())?;
    Ok((ours, theirs))
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

/// Lets go of the pages of the caller's own image (madvise(2)): those that it still needs come back one by one, and
/// not as the huge pages in which the kernel maps them at first. For a process that lives long and does little.
///
/// # Errors
/// Where procfs is not mounted.
pub fn forget_image() -> Result<()> {
    let maps = crate::file::read(crate::file::CWD, "/proc/self/maps", 1 << 20, crate::file::Resolve::Host)?;
    for line in String::from_utf8_lossy(&maps).lines() {
        // START-END PERMISSIONS OFFSET DEVICE INODE PATH (proc_pid_maps(5))
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let [range, permissions, _, _, inode, ..] = fields[..] else { continue };
        let range = range.split_once('-').and_then(|(start, end)| {
            Some((usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?))
        });
        let Some((start, end)) = range.filter(|_| !permissions.contains('w') && inode != "0") else {
            continue;
        };
        for advice in [libc::MADV_NOHUGEPAGE, libc::MADV_DONTNEED] {
            // SAFETY: nobody can write to these pages, so that what is dropped is what the file holds, from which each
            // comes back when it is touched; and the file can't be written to, by the runtime's own protection.
            unsafe { libc::madvise(start as *mut libc::c_void, end - start, advice) };
        }
    }
    Ok(())
}

/// Forbids other processes to look into the caller's memory, descriptors and `/proc/PID/exe`
/// (`PR_SET_DUMPABLE`).
///
/// # Errors
/// None that a kernel is known to give.
pub fn undumpable() -> Result<()> {
    prctl(libc::PR_SET_DUMPABLE, 0, 0).map(drop)
}

/// Takes [`undumpable`] back: for a moment in which a user without privilege must write to its own `/proc/PID`,
/// whose files are root's otherwise (proc_pid(5)).
///
/// # Errors
/// None that a kernel is known to give.
pub fn dumpable() -> Result<()> {
    prctl(libc::PR_SET_DUMPABLE, 1, 0).map(drop)
}

/// Whether the caller is [`dumpable`].
///
/// # Errors
/// None that a kernel is known to give.
pub fn is_dumpable() -> Result<bool> {
    prctl(libc::PR_GET_DUMPABLE, 0, 0).map(|state| state == 1)
}

/// Makes orphans below the calling process its children (`PR_SET_CHILD_SUBREAPER`).
///
/// # Errors
/// None that a kernel is known to give.
pub fn become_subreaper() -> Result<()> {
    prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0).map(drop)
}

/// prctl(2) with two arguments.
pub(crate) fn prctl(option: i32, a: u64, b: u64) -> Result<i32> {
    // SAFETY: none of the options that this crate uses takes a pointer.
    let ret = unsafe { libc::prctl(option, a, b, 0_u64, 0_u64) };
    check(ret, || format!("prctl({option}, {a}, {b})"))
}

/// Starts a new session, whose leader the caller is (setsid(2)).
///
/// # Errors
/// `EPERM` where the caller leads a process group already.
pub fn new_session() -> Result<()> {
    named(nix::unistd::setsid(), || "setsid()".to_owned()).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_name_with_parentheses_does_not_shift_the_fields() {
        let line = b"42 (a) b (c) S 1 42 42 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 98765 1 2 3\n";
        assert_eq!(parse_stat(line), Some(Status { state: 'S', start_time: 98765 }));
    }

    #[test]
    fn a_pidfd_tells_its_pid() {
        let own = std::process::id() as i32;
        assert_eq!(pid_of(pidfd(own).unwrap().as_fd()).unwrap(), own);
        assert!(pid_of(crate::file::open_dir("/").unwrap().as_fd()).is_err());
    }

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

    #[test]
    fn own_status_is_running() {
        let status = status(std::process::id() as i32).unwrap();
        assert!(matches!(status.state, 'R' | 'S'));
    }
}
