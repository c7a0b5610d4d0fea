//! Quotas of projects: how much the files may take that belong to one (quotactl(2), Linux 5.14 for quotactl_fd; ext4 and
//! XFS).

use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;

use crate::error::{Result, check, show};

/// What the files of a project take, and how much they may.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Quota {
    /// Bytes in use.
    pub used: u64,
    /// Files and directories.
    pub files: u64,
    /// The most bytes; none where there is no limit.
    pub limit: Option<u64>,
}

const PROJECT: u32 = 2;
/// `Q_XGETQSTATV`, `Q_GETQUOTA`, `Q_SETQUOTA` of linux/dqblk_xfs.h and linux/quota.h.
const STATE: u32 = (b'X' as u32) << 8 | 8;
const GET: u32 = 0x80_0007;
const SET: u32 = 0x80_0008;

/// The kernel counts limits in blocks of this size.
const BLOCK: u64 = 1024;

/// `struct if_dqblk` of linux/quota.h.
#[repr(C)]
#[derive(Default)]
struct Block {
    hard: u64,
    soft: u64,
    space: u64,
    files_hard: u64,
    files_soft: u64,
    files: u64,
    time: u64,
    files_time: u64,
    valid: u32,
    padding: u32,
}

/// `struct fs_quota_statv` of linux/dqblk_xfs.h, of which only the flags are read.
#[repr(C)]
struct State {
    version: i8,
    padding: u8,
    flags: u16,
    rest: [u32; 64],
}

/// `struct fsxattr` of linux/fs.h.
#[repr(C)]
#[derive(Default)]
struct Attributes {
    flags: u32,
    extent_size: u32,
    extents: u32,
    project: u32,
    cow_extent_size: u32,
    padding: [u8; 8],
}

const GET_ATTRIBUTES: u64 = 2 << 30 | (size_of::<Attributes>() as u64) << 16 | (b'X' as u64) << 8 | 31;
const SET_ATTRIBUTES: u64 = 1 << 30 | (size_of::<Attributes>() as u64) << 16 | (b'X' as u64) << 8 | 32;
/// What is made in a directory belongs to its project (`FS_XFLAG_PROJINHERIT`).
const INHERIT: u32 = 0x200;

fn call(fd: BorrowedFd<'_>, command: u32, id: u32, block: *mut libc::c_void) -> Result<()> {
    let command = command << 8 | PROJECT;
    // SAFETY: the caller passes a structure of the kind that the command takes, which outlives the call.
    let ret = unsafe { libc::syscall(libc::SYS_quotactl_fd, fd.as_raw_fd(), command, id, block) };
    check(ret, || format!("quotactl_fd({}, {command:#x}, {id})", show(&fd))).map(drop)
}

/// Whether the file system of `fd` keeps projects to their limits.
///
/// # Errors
/// Whatever the kernel says but that it does not.
pub fn is_enforced(fd: BorrowedFd<'_>) -> Result<bool> {
    const VERSION: i8 = 1;
    const ENFORCED: u16 = 1 << 5;
    let mut state = State { version: VERSION, padding: 0, flags: 0, rest: [0; 64] };
    match call(fd, STATE, 0, (&raw mut state).cast()) {
        Ok(()) => Ok(state.flags & ENFORCED != 0),
        Err(e)
            if matches!(
                e.errno(),
                Errno::ENOSYS | Errno::EINVAL | Errno::ENOTBLK | Errno::ESRCH | Errno::ENODEV
            ) =>
        {
            Ok(false)
        }
        Err(e) => Err(e),
    }
}

/// What project `id` of the file system of `fd` takes.
///
/// # Errors
/// `ESRCH` where quotas are off.
pub fn of(fd: BorrowedFd<'_>, id: u32) -> Result<Quota> {
    let mut block = Block::default();
    match call(fd, GET, id, (&raw mut block).cast()) {
        // XFS knows nothing of a project that nobody has used.
        Err(e) if e.errno() == Errno::ENOENT => Ok(Quota::default()),
        told => told.map(|()| Quota {
            used: block.space,
            files: block.files,
            limit: (block.hard != 0).then(|| block.hard * BLOCK),
        }),
    }
}

/// Limits project `id` of the file system of `fd` to `bytes`, rounded up to 1024; or not at all.
///
/// # Errors
/// `ESRCH` where quotas are off, `EPERM`.
pub fn limit(fd: BorrowedFd<'_>, id: u32, bytes: Option<u64>) -> Result<()> {
    const LIMITS: u32 = 1;
    let blocks = bytes.map_or(0, |bytes| bytes.div_ceil(BLOCK));
    let mut block = Block { hard: blocks, soft: blocks, valid: LIMITS, ..Block::default() };
    call(fd, SET, id, (&raw mut block).cast())
}

/// The project that the file `fd` belongs to; 0 for none (ioctl_fsgetxattr).
///
/// # Errors
/// `ENOTTY` where the file system knows no projects.
pub fn project(fd: BorrowedFd<'_>) -> Result<u32> {
    attributes(fd).map(|attributes| attributes.project)
}

fn attributes(fd: BorrowedFd<'_>) -> Result<Attributes> {
    let mut attributes = Attributes::default();
    // SAFETY: the kernel writes one structure of the size that the request names, which outlives the call.
    let ret = unsafe { libc::ioctl(fd.as_raw_fd(), GET_ATTRIBUTES as _, &raw mut attributes) };
    check(ret, || format!("ioctl({}, FS_IOC_FSGETXATTR)", show(&fd)))?;
    Ok(attributes)
}

/// Makes the file `fd` one of project `id`, and where it is a directory, what is made in it.
///
/// # Errors
/// `EPERM`; `EINVAL` or `ENOTTY` where the file system knows no projects, `EDQUOT` where it would be beyond its limit.
pub fn set_project(fd: BorrowedFd<'_>, id: u32, is_directory: bool) -> Result<()> {
    let mut attributes = attributes(fd)?;
    attributes.project = id;
    if is_directory {
        attributes.flags |= INHERIT;
    }
    // SAFETY: the kernel reads one structure of the size that the request names, which outlives the call.
    let ret = unsafe { libc::ioctl(fd.as_raw_fd(), SET_ATTRIBUTES as _, &raw mut attributes) };
    check(ret, || format!("ioctl({}, FS_IOC_FSSETXATTR, {id})", show(&fd))).map(drop)
}
