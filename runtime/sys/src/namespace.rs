//! Namespaces: leaving for new ones, and joining those of others.

use std::os::fd::{AsRawFd, BorrowedFd};

use crate::error::{Error, Result, check, named, show};
use crate::users;

/// Leaves for new namespaces of the kinds `flags` (`CLONE_NEW*`; unshare(2)).
///
/// # Errors
/// `ENOSPC` where there are too many, `EPERM`.
pub fn unshare(flags: i32) -> Result<()> {
    // SAFETY: namespaces are properties of the calling thread, the only one of its process; no memory or
    // descriptor table is shared that unsharing could split.
    let ret = unsafe { libc::unshare(flags) };
    check(ret, || format!("unshare({flags:#x})")).map(drop)
}

/// Joins the namespace that `fd` refers to, or all those of kinds `flags` of a process given by its pidfd
/// (setns(2); Linux 5.8 for a pidfd).
///
/// # Errors
/// `EINVAL` where the descriptor is of another kind, `EPERM`.
pub fn join(fd: BorrowedFd<'_>, flags: i32) -> Result<()> {
    // SAFETY: the call takes no pointers; as for `unshare`, the process has one thread.
    let ret = unsafe { libc::setns(fd.as_raw_fd(), flags) };
    check(ret, || format!("setns({}, {flags:#x})", show(&fd))).map(drop)
}

/// The kind (`CLONE_NEW*`) of the namespace that `fd` refers to (ioctl_ns(2), `NS_GET_NSTYPE`, Linux 4.11).
///
/// # Errors
/// `ENOTTY` where it refers to no namespace.
pub fn kind(fd: BorrowedFd<'_>) -> Result<i32> {
    const NS_GET_NSTYPE: libc::c_ulong = 0xb703;
    // SAFETY: the request takes no argument.
    let ret = unsafe { libc::ioctl(fd.as_raw_fd(), NS_GET_NSTYPE as _) };
    check(ret, || format!("ioctl({}, NS_GET_NSTYPE)", show(&fd)))
}

/// Whether the caller is in the initial user namespace: its file has a number that the kernel keeps for it (Linux 3.8,
/// `PROC_USER_INIT_INO` of `include/linux/proc_ns.h`). Without a procfs, it is taken for it.
pub fn is_initial_user() -> bool {
    const INITIAL: u64 = 0xefff_fffd;
    nix::sys::stat::stat("/proc/self/ns/user").map_or(true, |file| file.st_ino == INITIAL)
}

/// The caller's user as the user namespace above its own knows it (`/proc/self/uid_map`; user_namespaces(7)).
///
/// # Errors
/// `EINVAL` where it is not mapped.
pub fn user_above() -> Result<u32> {
    let own = crate::identity::caller();
    let above = users::outside(&users::Maps::current()?.users, own);
    above.ok_or_else(|| Error::new("read(\"/proc/self/uid_map\")", nix::errno::Errno::EINVAL))
}

/// Sets the host name of the caller's UTS namespace (sethostname(2)).
///
/// # Errors
/// `EINVAL` where it is longer than 64 bytes.
pub fn set_hostname(name: &str) -> Result<()> {
    named(nix::unistd::sethostname(name), || format!("sethostname({name:?})"))
}

/// Sets the NIS domain name of the caller's UTS namespace (setdomainname(2)).
///
/// # Errors
/// `EINVAL` where it is longer than 64 bytes.
pub fn set_domainname(name: &str) -> Result<()> {
    // SAFETY: pointer and length are those of one live string.
    let ret = unsafe { libc::setdomainname(name.as_ptr().cast(), name.len()) };
    check(ret, || format!("setdomainname({name:?})")).map(drop)
}

/// Makes the working directory the root directory of the caller (chroot(2)).
///
/// # Errors
/// `EPERM`.
pub fn chroot_here() -> Result<()> {
    named(nix::unistd::chroot("."), || "chroot(\".\")".to_owned())
}

/// Makes `dir` the working directory (fchdir(2)).
///
/// # Errors
/// `ENOTDIR`, `EACCES`.
pub fn enter(dir: BorrowedFd<'_>) -> Result<()> {
    named(nix::unistd::fchdir(dir), || format!("fchdir({})", show(&dir)))
}

/// Makes `path` the working directory (chdir(2)): for the inside of a container, where the root is already
/// the container's own.
///
/// # Errors
/// `ENOENT`, `EACCES`.
pub fn change_dir(path: &std::path::Path) -> Result<()> {
    named(nix::unistd::chdir(path), || format!("chdir({path:?})"))
}

/// Whether the working directory can be reached from the root directory. After a chdir(2) through a leaked
/// descriptor of the host the kernel says "(unreachable)" (CVE-2024-21626).
///
/// # Errors
/// `ENOENT` where the directory was removed.
pub fn is_inside() -> Result<bool> {
    let mut path = [0_u8; libc::PATH_MAX as usize];
    // The system call, not the library's getcwd(3), which would go looking for the name.
    // SAFETY: the buffer and its length belong together.
    let ret = unsafe { libc::syscall(libc::SYS_getcwd, path.as_mut_ptr(), path.len()) };
    check(ret, || "getcwd()".to_owned())?;
    Ok(path[0] == b'/')
}

/// Joins a new anonymous session keyring, so that the container can't reach the host's keys
/// (keyctl(2), `KEYCTL_JOIN_SESSION_KEYRING`).
///
/// # Errors
/// `ENOSYS` where the kernel has no keys, `EDQUOT` where the user has too many.
pub fn new_session_keyring() -> Result<()> {
    const KEYCTL_JOIN_SESSION_KEYRING: i32 = 1;
    // SAFETY: without a name the call reads no memory.
    let ret = unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, std::ptr::null::<u8>()) };
    check(ret, || "keyctl(JOIN_SESSION_KEYRING)".to_owned()).map(drop)
}
