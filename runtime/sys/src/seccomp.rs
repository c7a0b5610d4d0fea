//! Loading a system call filter.

use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use nix::errno::Errno;

use crate::error::{Error, Result, check};
use crate::process::exit_now;

/// `SECCOMP_FILTER_FLAG_NEW_LISTENER`: the filter asks another process, through a descriptor.
pub const NEW_LISTENER: u32 = 1 << 3;

/// Loads the classic BPF program `program` as a filter for the calling thread and its descendants
/// (seccomp(2), `SECCOMP_SET_MODE_FILTER`). Each instruction is packed into a number as
/// `code | jt << 16 | jf << 24 | k << 32`. `flags` are `SECCOMP_FILTER_FLAG_*`. Returns the descriptor of a filter
/// with [`NEW_LISTENER`], else 0.
///
/// # Errors
/// `EACCES` where the thread has neither `no_new_privs` nor `CAP_SYS_ADMIN`, `EINVAL` where the program is
/// malformed or longer than 4096 instructions, or the kernel does not know a flag.
pub fn load(program: &[u64], flags: u32) -> Result<i64> {
    let call = || format!("seccomp(SET_MODE_FILTER, {flags:#x}, {} instructions)", program.len());
    let filter: Vec<libc::sock_filter> = program
        .iter()
        .map(|i| libc::sock_filter {
            code: *i as u16,
            jt: (*i >> 16) as u8,
            jf: (*i >> 24) as u8,
            k: (*i >> 32) as u32,
        })
        .collect();
    let len = u16::try_from(filter.len()).map_err(|_| Error::new(call(), Errno::EINVAL))?;
    let prog = libc::sock_fprog { len, filter: filter.as_ptr().cast_mut() };
    // SAFETY: `prog` and the instructions it points to outlive the call; the kernel copies and checks them.
    let ret = unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, std::ptr::from_ref(&prog))
    };
    check(ret, call)
}

/// Whether the kernel knows the flags `flags` (`SECCOMP_FILTER_FLAG_*`) of a filter. None is loaded.
pub fn knows_flags(flags: u32) -> bool {
    let none = std::ptr::null::<libc::sock_fprog>();
    // SAFETY: the kernel looks at the flags first, and then refuses the null pointer.
    let ret = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, none) };
    ret < 0 && Errno::last() == Errno::EFAULT
}

/// What the thread that is being filtered and the one that is not tell each other, without a system call.
static LISTENER: AtomicI64 = AtomicI64::new(NOT_LOADED);
const NOT_LOADED: i64 = -1;
const REFUSED: i64 = -2;
const DELIVERED: i64 = -3;

/// Loads a filter as [`load`] does, with [`NEW_LISTENER`], and has `deliver` take its descriptor where it belongs,
/// which says whether it arrived; where not, the process ends. Works once in a process.
///
/// From the moment the filter is on, whatever this thread calls may be asked of a process that has not got the
/// descriptor yet, and wait for ever. So `deliver` runs in a second thread, which the filter does not hold, and this
/// one waits for it without a system call. execve(2) ends the second thread, should it be there still.
///
/// # Errors
/// As [`load`]; `EAGAIN` where a limit of one process leaves no room for the thread.
pub fn load_with_listener(
    program: &[u64],
    flags: u32,
    deliver: impl FnOnce(OwnedFd) -> bool + Send + 'static,
) -> Result<()> {
    let helper = std::thread::Builder::new().stack_size(64 << 10).spawn(move || {
        let fd = loop {
            match LISTENER.load(Ordering::Acquire) {
                NOT_LOADED => std::thread::sleep(Duration::from_micros(20)),
                REFUSED => return,
                fd => break fd as i32,
            }
        };
        // SAFETY: the kernel has just made this descriptor for us, and nobody else uses its number.
        let listener = unsafe { OwnedFd::from_raw_fd(fd) };
        if !deliver(listener) {
            exit_now(1);
        }
        LISTENER.store(DELIVERED, Ordering::Release);
    });
    let helper = helper.map_err(|e| {
        Error::new("clone() of a thread", e.raw_os_error().map_or(Errno::EAGAIN, Errno::from_raw))
    })?;
    let loaded = load(program, flags | NEW_LISTENER);
    LISTENER.store(*loaded.as_ref().unwrap_or(&REFUSED), Ordering::Release);
    // Letting go of an ended thread would free its stack, which is a system call.
    std::mem::forget(helper);
    loaded?;
    while LISTENER.load(Ordering::Acquire) != DELIVERED {
        std::hint::spin_loop();
    }
    Ok(())
}
