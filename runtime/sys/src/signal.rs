//! Signals of the calling process: actions, the mask, a descriptor that tells of them.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use nix::sys::signal::{SigSet, SigmaskHow};

use crate::error::{Result, named};
use crate::event;
use crate::process::die_with_parent;

/// Gives every signal its default action and blocks none: the state a new program expects.
///
/// # Errors
/// None that a kernel is known to give.
pub fn reset_signals() -> Result<()> {
    for signal in 1..=64 {
        // Not the function of the C library, which knows some signals as its own.
        // SAFETY: the kernel's structure, not longer than this, is all zeros for SIG_DFL, which installs no handler.
        unsafe {
            libc::syscall(libc::SYS_rt_sigaction, signal, [0_u64; 4].as_ptr(), std::ptr::null::<u64>(), 8)
        };
    }
    set_mask(&SigSet::empty())
}

/// Ends the calling process, with 128 and the signal's number, when one of `signals` comes: the first process of a PID
/// namespace gets only those that it has a handler for (pid_namespaces(7)). Until the next execve(2).
///
/// # Errors
/// `EINVAL` for a signal that can't be caught.
pub fn end_on(signals: &[nix::sys::signal::Signal]) -> Result<()> {
    use nix::sys::signal::{SaFlags, SigAction, SigHandler, sigaction};
    extern "C" fn end(signal: i32) {
        // SAFETY: _exit(2) may be called in a handler and needs nothing of the process.
        unsafe { libc::_exit(128 + signal) }
    }
    let action = SigAction::new(SigHandler::Handler(end), SaFlags::empty(), SigSet::empty());
    for signal in signals {
        // SAFETY: the handler makes one system call that may be made at any moment.
        let replaced = unsafe { sigaction(*signal, &action) };
        named(replaced, || format!("sigaction({signal})"))?;
    }
    Ok(())
}

/// Has the kernel reap the caller's children: nobody will ask how they ended (`SIGCHLD` ignored, wait(2)).
///
/// # Errors
/// None that a kernel is known to give.
pub fn ignore_children() -> Result<()> {
    use nix::sys::signal::{SaFlags, SigAction, SigHandler, Signal, sigaction};
    let action = SigAction::new(SigHandler::SigIgn, SaFlags::empty(), SigSet::empty());
    // SAFETY: no handler is installed.
    let replaced = unsafe { sigaction(Signal::SIGCHLD, &action) };
    named(replaced, || "sigaction(SIGCHLD)".to_owned()).map(drop)
}

/// Lets the program of `command` start with no signal blocked (it would inherit the runtime's mask, which blocks
/// all of them while it watches a container), and end when the runtime ends.
pub fn bind_to_runtime(command: &mut std::process::Command) {
    use std::os::unix::process::CommandExt;
    let prepare = || {
        die_with_parent(true)?;
        set_mask(&SigSet::empty())
    };
    // SAFETY: between fork and execve the closure makes system calls only; it allocates only to tell of a failure,
    // and prctl(2) and sigprocmask(2) with these arguments have none.
    unsafe { command.pre_exec(move || prepare().map_err(|e| std::io::Error::from(e.errno()))) };
}

/// Sets the mask of blocked signals (sigprocmask(2)).
///
/// # Errors
/// None that a kernel is known to give.
fn set_mask(mask: &SigSet) -> Result<()> {
    named(nix::sys::signal::sigprocmask(SigmaskHow::SIG_SETMASK, Some(mask), None), || {
        "sigprocmask()".to_owned()
    })
}

/// Blocks no signal.
///
/// # Errors
/// None that a kernel is known to give.
pub fn unblock() -> Result<()> {
    set_mask(&SigSet::empty())
}

/// Blocks `SIGWINCH`, which says that the caller's terminal has another size, and those signals that would end the caller; returns
/// a descriptor that tells of them (signalfd(2)). What is ignored, as `SIGHUP` below nohup(1), stays so.
///
/// # Errors
/// `EMFILE`.
pub fn resizes_and_endings() -> Result<nix::sys::signalfd::SignalFd> {
    use nix::sys::signal::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGWINCH};
    use nix::sys::signalfd::{SfdFlags, SignalFd};
    let endings = [SIGTERM, SIGINT, SIGHUP, SIGQUIT].into_iter().filter(|signal| !is_ignored(*signal));
    let mask: SigSet = endings.chain([SIGWINCH]).collect();
    set_mask(&mask)?;
    named(SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK), || {
        "signalfd()".to_owned()
    })
}

/// Whether the caller ignores `signal` (sigaction(2)).
fn is_ignored(signal: nix::sys::signal::Signal) -> bool {
    // SAFETY: a sigaction is numbers and addresses, all of which may be 0.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: no action is given; the kernel's goes to `action`, which outlives the call.
    let ret = unsafe { libc::sigaction(signal as i32, std::ptr::null(), &raw mut action) };
    ret == 0 && action.sa_sigaction == libc::SIG_IGN
}

/// Ends the calling process by `signal`, which it has taken from a descriptor: whoever waits for it sees that. Blocks no signal any
/// more. Returns where the signal ends nobody, as the first process of a PID namespace.
///
/// # Errors
/// None that a kernel is known to give.
pub fn end_by(signal: i32) -> Result<()> {
    crate::process::kill(std::process::id().cast_signed(), signal)?;
    unblock()
}

/// Blocks every signal that can be forwarded and returns a descriptor that tells of them (signalfd(2)).
///
/// # Errors
/// `EMFILE`.
pub fn signal_fd() -> Result<nix::sys::signalfd::SignalFd> {
    use nix::sys::signalfd::{SfdFlags, SignalFd};
    // The C library's own "all" leaves out some that it takes for its own, one of which (34) may be forwarded.
    const BITS: usize = size_of::<libc::sigset_t>();
    // SAFETY: a sigset_t is bits, and any of them may be set.
    let all = unsafe { std::mem::transmute::<[u8; BITS], libc::sigset_t>([u8::MAX; BITS]) };
    // SAFETY: as above: every bit of it is defined.
    let mut mask = unsafe { SigSet::from_sigset_t_unchecked(all) };
    for fault in [
        nix::sys::signal::SIGSEGV,
        nix::sys::signal::SIGBUS,
        nix::sys::signal::SIGFPE,
        nix::sys::signal::SIGILL,
        nix::sys::signal::SIGABRT,
    ] {
        mask.remove(fault);
    }
    set_mask(&mask)?;
    named(SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK), || {
        "signalfd()".to_owned()
    })
}

/// Waits until `fd` is readable; returns the signal where one came first that asks the caller to end, as far as [`endings`] tells
/// of them.
///
/// # Errors
/// `EMFILE`.
pub fn wait_for(fd: BorrowedFd<'_>) -> Result<Option<i32>> {
    let signals = endings()?;
    let fds: Vec<_> = [fd].into_iter().chain(signals.as_ref().map(AsFd::as_fd)).collect();
    loop {
        if event::readable(&fds, None)?.first() == Some(&true) {
            return Ok(None);
        }
        let told = signals.as_ref().and_then(|signals| signals.read_signal().ok().flatten());
        if let Some(told) = told {
            return Ok(Some(told.ssi_signo.cast_signed()));
        }
    }
}

/// Waits for `limit`; true where a signal came before that asks the caller to end, as far as [`endings`] tells of them.
///
/// # Errors
/// `EMFILE`.
pub fn comes_within(limit: Duration) -> Result<bool> {
    let signals = endings()?;
    let fds: Vec<_> = signals.iter().map(AsFd::as_fd).collect();
    Ok(event::readable(&fds, Some(limit))?.contains(&true))
}

/// A descriptor that tells of signals which ask the caller to end, where it has blocked them ([`signal_fd`]); none where
/// they would end it by themselves (signalfd(2)).
///
/// # Errors
/// `EMFILE`.
pub fn endings() -> Result<Option<nix::sys::signalfd::SignalFd>> {
    use nix::sys::signal::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
    use nix::sys::signalfd::{SfdFlags, SignalFd};
    let blocked = named(SigSet::thread_get_mask(), || "sigprocmask()".to_owned())?;
    if !blocked.contains(SIGTERM) {
        return Ok(None);
    }
    let mask: SigSet = [SIGTERM, SIGINT, SIGHUP, SIGQUIT].into_iter().collect();
    let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
    named(SignalFd::with_flags(&mask, flags), || "signalfd()".to_owned()).map(Some)
}
