//! What is known of a file beside its content: owner, mode, type, and the mount it was reached through.

use std::ffi::OsStr;
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::error::{Result, check, named, show};
use crate::mount::{EMPTY, attr};

pub use nix::sys::statfs::FsType;

/// What fstat(2) says of an open file.
///
/// # Errors
/// Only on a closed descriptor.
pub fn stat(fd: BorrowedFd<'_>) -> Result<libc::stat> {
    named(nix::sys::stat::fstat(fd), || format!("fstat({})", show(&fd)))
}

/// What fstatat(2) says of `name` in `dir`, a link not followed.
///
/// # Errors
/// `ENOENT` where there is none.
pub fn stat_at(dir: BorrowedFd<'_>, name: impl AsRef<OsStr>) -> Result<libc::stat> {
    let name = name.as_ref();
    named(nix::sys::stat::fstatat(dir, name, nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW), || {
        format!("fstatat({}, {name:?})", show(&dir))
    })
}

/// The type of the file system that holds `fd`, one of the `*_MAGIC` numbers (fstatfs(2)).
///
/// # Errors
/// Only on a closed descriptor.
pub fn file_system(fd: BorrowedFd<'_>) -> Result<FsType> {
    named(nix::sys::statfs::fstatfs(fd), || format!("fstatfs({})", show(&fd))).map(|s| s.filesystem_type())
}

/// The number of the mount that `fd` was opened on (statx(2), `STATX_MNT_ID`, Linux 5.8).
///
/// # Errors
/// `ENOSYS` on older kernels.
pub fn mount_id(fd: BorrowedFd<'_>) -> Result<u64> {
    const STATX_MNT_ID: u32 = 0x1000;
    // SAFETY: statx is a plain structure of integers, for which zero is a valid value.
    let mut stat: libc::statx = unsafe { std::mem::zeroed() };
    let empty = EMPTY.as_ptr();
    // SAFETY: the path is an empty C string, and the kernel fills in one statx, which outlives the call.
    let ret = unsafe { libc::statx(fd.as_raw_fd(), empty, libc::AT_EMPTY_PATH, STATX_MNT_ID, &raw mut stat) };
    check(ret, || format!("statx({})", show(&fd)))?;
    Ok(stat.stx_mnt_id)
}

/// Whether `fd` was reached through a read-only mount (fstatvfs(3)).
///
/// # Errors
/// Only on a closed descriptor.
pub fn is_read_only(fd: BorrowedFd<'_>) -> Result<bool> {
    Ok(mount_flags(fd)? & attr::RDONLY != 0)
}

/// The flags of the mount that `fd` was reached through, read-only to noexec as in [`crate::mount::attr`] (fstatvfs(3)).
///
/// # Errors
/// Only on a closed descriptor.
pub fn mount_flags(fd: BorrowedFd<'_>) -> Result<u64> {
    let stat = named(nix::sys::statvfs::fstatvfs(fd), || format!("fstatvfs({})", show(&fd)))?;
    Ok(stat.flags().bits())
}

/// Sets the permission bits of an open file (fchmod(2)); not for `O_PATH` descriptors.
///
/// # Errors
/// `EPERM`, `EROFS`.
pub fn chmod(fd: BorrowedFd<'_>, mode: u32) -> Result<()> {
    let bits = nix::sys::stat::Mode::from_bits_truncate(mode);
    named(nix::sys::stat::fchmod(fd, bits), || format!("fchmod({}, {mode:#o})", show(&fd)))
}

/// Sets the owner of an open file, an `O_PATH` descriptor or a link too (fchownat(2) with `AT_EMPTY_PATH`).
///
/// # Errors
/// `EPERM`, `EROFS`, and `EINVAL` where an ID is not mapped.
pub fn chown(fd: BorrowedFd<'_>, uid: u32, gid: u32) -> Result<()> {
    // SAFETY: the path is an empty C string.
    let ret = unsafe { libc::fchownat(fd.as_raw_fd(), EMPTY.as_ptr(), uid, gid, libc::AT_EMPTY_PATH) };
    check(ret, || format!("fchownat({}, {uid}, {gid})", show(&fd))).map(drop)
}

/// The number of a device node of the type `major`, `minor`.
pub fn device(major: u32, minor: u32) -> u64 {
    libc::makedev(major, minor)
}
