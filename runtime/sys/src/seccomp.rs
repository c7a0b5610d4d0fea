//! Loading a system call filter.

use nix::errno::Errno;

use crate::error::{Error, Result, check};

/// Loads the classic BPF program `program` as a filter for the calling thread and its descendants
/// (seccomp(2), `SECCOMP_SET_MODE_FILTER`). Each instruction is packed into a number as
/// `code | jt << 16 | jf << 24 | k << 32`. `flags` are `SECCOMP_FILTER_FLAG_*`.
///
/// # Errors
/// `EACCES` where the thread has neither `no_new_privs` nor `CAP_SYS_ADMIN`, `EINVAL` where the program is
/// malformed or longer than 4096 instructions.
pub fn load(program: &[u64], flags: u32) -> Result<()> {
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
    check(ret, call).map(drop)
}
