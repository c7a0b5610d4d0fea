//! Opening a file by its path, as far as that path may lead.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;

use crate::error::{Error, Result, check_fd, show};
use crate::mount::c_string;

/// How [`open`] follows what it meets on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resolve {
    /// As the directory were the root: absolute links and `..` stay inside. No magic links.
    InRoot,
    /// Never out of the directory; an absolute link or a `..` that leaves is `EXDEV`. No magic links.
    Beneath,
    /// Never out of the directory, and no symbolic link anywhere on the way (`ELOOP`).
    BeneathNoLinks,
    /// Neither that nor into another mount (`EXDEV`).
    SameMount,
    /// As the host resolves paths: for paths that the operator named, never for one in a container.
    Host,
}

/// A descriptor of the working directory, for paths that the operator named.
pub const CWD: BorrowedFd<'static> = nix::fcntl::AT_FDCWD;

/// Opens `path` below `dir` with the flags `flags` of open(2) (`O_CLOEXEC` is added) and, where the file is
/// created, the permission bits `mode` (openat2(2), Linux 5.6).
///
/// # Errors
/// `EXDEV` or `ELOOP` where the path leads out of what `resolve` allows.
pub fn open(
    dir: BorrowedFd<'_>,
    path: impl AsRef<Path>,
    flags: i32,
    mode: u32,
    resolve: Resolve,
) -> Result<OwnedFd> {
    let path = path.as_ref();
    let name = c_string(path.as_os_str().as_bytes(), "openat2")?;
    let flags = flags | libc::O_CLOEXEC;
    // SAFETY: open_how is a plain structure of integers, for which zero is a valid value.
    let mut how: libc::open_how = unsafe { std::mem::zeroed() };
    how.flags = u64::from(flags as u32);
    how.mode = u64::from(mode);
    how.resolve = match resolve {
        Resolve::InRoot => libc::RESOLVE_IN_ROOT | libc::RESOLVE_NO_MAGICLINKS,
        Resolve::Beneath => libc::RESOLVE_BENEATH | libc::RESOLVE_NO_MAGICLINKS,
        Resolve::BeneathNoLinks => libc::RESOLVE_BENEATH | libc::RESOLVE_NO_SYMLINKS,
        Resolve::SameMount => libc::RESOLVE_BENEATH | libc::RESOLVE_NO_SYMLINKS | libc::RESOLVE_NO_XDEV,
        Resolve::Host => 0,
    };
    // The kernel answers EAGAIN when a rename anywhere on the system raced with a `..`; a bound keeps an
    // attacker who renames in a loop from holding us here.
    for _ in 0..128 {
        // SAFETY: `name` is a valid C string and `how` an open_how of the size that is passed.
        let ret = unsafe {
            libc::syscall(
                libc::SYS_openat2,
                dir.as_raw_fd(),
                name.as_ptr(),
                std::ptr::from_ref(&how),
                size_of::<libc::open_how>(),
            )
        };
        if ret < 0 && matches!(Errno::last(), Errno::EAGAIN | Errno::EINTR) {
            continue;
        }
        return check_fd(ret, || format!("openat2({}, {path:?})", show(&dir)));
    }
    Err(Error::new(format!("openat2({}, {path:?})", show(&dir)), Errno::EAGAIN))
}

/// Opens a directory that the operator named.
///
/// # Errors
/// `ENOENT`, `ENOTDIR`.
pub fn open_dir(path: impl AsRef<Path>) -> Result<OwnedFd> {
    open(CWD, path, libc::O_DIRECTORY | libc::O_RDONLY, 0, Resolve::Host)
}

/// Whether there is a file at `path` on the host, answered from what the kernel has in memory; `None` where that does not
/// tell, and whoever asks further may wait for a disk or a server (openat2(2) with `RESOLVE_CACHED`, Linux 5.12). With
/// `no_follow`, of a symbolic link itself.
///
/// # Errors
/// `ENOENT` where there is none.
pub fn is_there_at_once(path: &Path, no_follow: bool) -> Result<Option<()>> {
    let name = c_string(path.as_os_str().as_bytes(), "openat2")?;
    let flags = libc::O_PATH | libc::O_CLOEXEC | if no_follow { libc::O_NOFOLLOW } else { 0 };
    // SAFETY: open_how is a plain structure of integers, for which zero is a valid value.
    let mut how: libc::open_how = unsafe { std::mem::zeroed() };
    (how.flags, how.resolve) = (u64::from(flags as u32), libc::RESOLVE_CACHED);
    // Memory that does tell says EAGAIN, too, where something is mounted anywhere at that moment.
    for _ in 0..3 {
        // SAFETY: `name` is a valid C string and `how` an open_how of the size that is passed.
        let ret = unsafe {
            libc::syscall(
                libc::SYS_openat2,
                libc::AT_FDCWD,
                name.as_ptr(),
                std::ptr::from_ref(&how),
                size_of::<libc::open_how>(),
            )
        };
        if ret >= 0 || Errno::last() != Errno::EAGAIN {
            return check_fd(ret, || format!("openat2(AT_FDCWD, {path:?})")).map(|_| Some(()));
        }
    }
    Ok(None)
}
