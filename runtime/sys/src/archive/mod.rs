//! What unpacking a layer, or copying a tree, asks of the kernel: times, extended attributes, range locks, data with
//! its holes, and making a tree durable or gone.

mod lock;

use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

use crate::error::{Error, Result, check, show};
use crate::file::{self, Resolve};
use crate::mount::{EMPTY, c_string};

pub use lock::{Lock, lock_range, try_lock_range};

/// A time stamp: seconds since 1970, negative before it, and nanoseconds after that second.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Time {
    /// Seconds since 1970-01-01 00:00 UTC.
    pub seconds: i64,
    /// Nanoseconds after `seconds`, below 1,000,000,000.
    pub nanoseconds: u32,
}

impl Time {
    fn raw(self) -> libc::timespec {
        libc::timespec { tv_sec: self.seconds, tv_nsec: i64::from(self.nanoseconds) }
    }
}

/// Sets the times of last access and modification of an open file (futimens(3)).
///
/// # Errors
/// `EPERM`, `EROFS`.
pub fn set_times(fd: BorrowedFd<'_>, access: Time, modification: Time) -> Result<()> {
    let times = [access.raw(), modification.raw()];
    // SAFETY: `times` holds the two timespecs that the call reads.
    let ret = unsafe { libc::futimens(fd.as_raw_fd(), times.as_ptr()) };
    check(ret, || format!("futimens({})", show(&fd))).map(drop)
}

/// Sets the times of `name` in `dir`, a link not followed (utimensat(2)).
///
/// # Errors
/// `ENOENT`, `EPERM`, `EROFS`.
pub fn set_times_at(
    dir: BorrowedFd<'_>,
    name: impl AsRef<OsStr>,
    access: Time,
    modification: Time,
) -> Result<()> {
    let name = name.as_ref();
    let c_name = c_string(name.as_bytes(), "utimensat")?;
    let times = [access.raw(), modification.raw()];
    // SAFETY: `c_name` is a C string and `times` holds the two timespecs that the call reads.
    let ret = unsafe {
        libc::utimensat(dir.as_raw_fd(), c_name.as_ptr(), times.as_ptr(), libc::AT_SYMLINK_NOFOLLOW)
    };
    check(ret, || format!("utimensat({}, {name:?})", show(&dir))).map(drop)
}

/// Sets the owner of `name` in `dir`, a link not followed (fchownat(2)).
///
/// # Errors
/// `EPERM`, and `EINVAL` where an ID is not mapped.
pub fn chown_at(dir: BorrowedFd<'_>, name: impl AsRef<OsStr>, uid: u32, gid: u32) -> Result<()> {
    let name = name.as_ref();
    let c_name = c_string(name.as_bytes(), "fchownat")?;
    // SAFETY: `c_name` is a C string that outlives the call.
    let ret =
        unsafe { libc::fchownat(dir.as_raw_fd(), c_name.as_ptr(), uid, gid, libc::AT_SYMLINK_NOFOLLOW) };
    check(ret, || format!("fchownat({}, {name:?}, {uid}, {gid})", show(&dir))).map(drop)
}

/// Sets the permission bits of `name` in `dir`, which is no link (fchmodat(2)). Before Linux 6.6 the caller needs its procfs.
///
/// # Errors
/// `ENOENT`, `EPERM`.
pub fn chmod_at(dir: BorrowedFd<'_>, name: impl AsRef<OsStr>, mode: u32) -> Result<()> {
    let name = name.as_ref();
    or_older(chmod_directly(dir, name, mode), || {
        let flags = libc::O_PATH | libc::O_NOFOLLOW;
        let file = file::open(dir, Path::new(name), flags, 0, Resolve::BeneathNoLinks)?;
        let c_path = by_descriptor(file.as_fd(), None)?;
        // SAFETY: `c_path` is a C string that outlives the call.
        let ret = unsafe { libc::fchmodat(libc::AT_FDCWD, c_path.as_ptr(), mode, 0) };
        check(ret, || format!("fchmodat({c_path:?} of {name:?}, {mode:#o})")).map(drop)
    })
}

fn chmod_directly(dir: BorrowedFd<'_>, name: &OsStr, mode: u32) -> Result<()> {
    const SYS_FCHMODAT2: i64 = 452;
    let c_name = c_string(name.as_bytes(), "fchmodat2")?;
    // SAFETY: `c_name` is a C string that outlives the call, which Linux 6.6 brought: it refuses links, which
    // fchmodat(2) follows.
    let ret = unsafe {
        libc::syscall(SYS_FCHMODAT2, dir.as_raw_fd(), c_name.as_ptr(), mode, libc::AT_SYMLINK_NOFOLLOW)
    };
    check(ret, || format!("fchmodat2({}, {name:?}, {mode:#o})", show(&dir))).map(drop)
}

/// What came of a call, or of what takes its place on kernels that have not got it.
fn or_older(done: Result<()>, older: impl FnOnce() -> Result<()>) -> Result<()> {
    match done {
        Err(e) if e.errno() == Errno::ENOSYS => older(),
        other => other,
    }
}

/// The path of an open file, or of `name` in an open directory, for calls that take only paths. It leads to what is open
/// and nowhere else, whatever has its name by now.
fn by_descriptor(fd: BorrowedFd<'_>, name: Option<&OsStr>) -> Result<CString> {
    let mut path = format!("/proc/self/fd/{}", fd.as_raw_fd()).into_bytes();
    path.extend(name.into_iter().flat_map(|name| [b"/", name.as_bytes()].concat()));
    c_string(&path, "/proc/self/fd")
}

/// Sets the extended attribute `name` of an open file (fsetxattr(2)); not for `O_PATH` descriptors.
///
/// # Errors
/// `EOPNOTSUPP` where the file system has no such attributes, `ENOSPC` where they are too long together.
pub fn set_xattr(fd: BorrowedFd<'_>, name: &OsStr, value: &[u8]) -> Result<()> {
    let c_name = c_string(name.as_bytes(), "fsetxattr")?;
    // SAFETY: the name is a C string, and value's pointer and length belong together.
    let ret =
        unsafe { libc::fsetxattr(fd.as_raw_fd(), c_name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    check(ret, || format!("fsetxattr({}, {name:?}, {} bytes)", show(&fd), value.len())).map(drop)
}

/// Sets the times of last access and modification of an open file to now (futimens(3), no times given).
///
/// # Errors
/// `EPERM`, `EROFS`.
pub fn set_times_now(fd: BorrowedFd<'_>) -> Result<()> {
    // SAFETY: without times the call reads no memory.
    let ret = unsafe { libc::futimens(fd.as_raw_fd(), std::ptr::null()) };
    check(ret, || format!("futimens({}, now)", show(&fd))).map(drop)
}

/// What setxattrat(2) and getxattrat(2) read (`struct xattr_args`).
#[repr(C, align(8))]
struct XattrArgs {
    value: u64,
    size: u32,
    flags: u32,
}

/// Sets the extended attribute `name` of `file` in `dir`, a link not followed: for what can't be opened, as
/// links and device nodes (setxattrat(2)). Before Linux 6.13 the caller needs its procfs.
///
/// # Errors
/// `EPERM` for `user.` attributes of anything but files and directories.
pub fn set_xattr_at(dir: BorrowedFd<'_>, file: &OsStr, name: &OsStr, value: &[u8]) -> Result<()> {
    or_older(set_xattr_directly(dir, file, name, value), || {
        let c_path = by_descriptor(dir, Some(file))?;
        let c_name = c_string(name.as_bytes(), "lsetxattr")?;
        let (start, length) = (value.as_ptr().cast(), value.len());
        // SAFETY: path and name are C strings, and value's pointer and length belong together.
        let ret = unsafe { libc::lsetxattr(c_path.as_ptr(), c_name.as_ptr(), start, length, 0) };
        check(ret, || format!("lsetxattr({c_path:?}, {name:?}, {length} bytes)")).map(drop)
    })
}

fn set_xattr_directly(dir: BorrowedFd<'_>, file: &OsStr, name: &OsStr, value: &[u8]) -> Result<()> {
    const SYS_SETXATTRAT: i64 = 463;
    let c_file = c_string(file.as_bytes(), "setxattrat")?;
    let c_name = c_string(name.as_bytes(), "setxattrat")?;
    let args = XattrArgs { value: value.as_ptr() as u64, size: value.len() as u32, flags: 0 };
    // SAFETY: file and name are C strings; `args` has the layout and the size that the call reads, and holds
    // pointer and length of `value`, which outlives the call.
    let ret = unsafe {
        libc::syscall(
            SYS_SETXATTRAT,
            dir.as_raw_fd(),
            c_file.as_ptr(),
            libc::AT_SYMLINK_NOFOLLOW,
            c_name.as_ptr(),
            &raw const args,
            size_of::<XattrArgs>(),
        )
    };
    check(ret, || format!("setxattrat({}, {file:?}, {name:?}, {} bytes)", show(&dir), value.len())).map(drop)
}

/// The value of the extended attribute `name` of an open file, none where it has no such attribute
/// (fgetxattr(2)).
///
/// # Errors
/// Only on a closed or `O_PATH` descriptor.
pub fn xattr(fd: BorrowedFd<'_>, name: &OsStr) -> Result<Option<Vec<u8>>> {
    let c_name = c_string(name.as_bytes(), "fgetxattr")?;
    let mut value = vec![0_u8; 65536];
    // SAFETY: the name is a C string, and the buffer's pointer and length belong together.
    let ret =
        unsafe { libc::fgetxattr(fd.as_raw_fd(), c_name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
    match check(ret, || format!("fgetxattr({}, {name:?})", show(&fd))) {
        Ok(length) => {
            value.truncate(length.unsigned_abs());
            Ok(Some(value))
        }
        Err(e) if matches!(e.errno(), Errno::ENODATA | Errno::EOPNOTSUPP) => Ok(None),
        Err(e) => Err(e),
    }
}

/// The names of an open file's extended attributes (flistxattr(2)).
///
/// # Errors
/// Only on a closed or `O_PATH` descriptor.
pub fn xattr_names(fd: BorrowedFd<'_>) -> Result<Vec<CString>> {
    let mut names = vec![0_u8; 65536];
    // SAFETY: the buffer's pointer and length belong together.
    let ret = unsafe { libc::flistxattr(fd.as_raw_fd(), names.as_mut_ptr().cast(), names.len()) };
    match check(ret, || format!("flistxattr({})", show(&fd))) {
        Ok(length) => names.truncate(length.unsigned_abs()),
        Err(e) if e.errno() == Errno::EOPNOTSUPP => return Ok(Vec::new()),
        Err(e) => return Err(e),
    }
    Ok(names.split(|b| *b == 0).filter(|n| !n.is_empty()).filter_map(|n| CString::new(n).ok()).collect())
}

/// Copies all that the regular file `from` holds to the empty file `to`, holes as holes (sendfile(2), and lseek(2) with
/// `SEEK_DATA`). What is written to `from` meanwhile may be missed.
///
/// # Errors
/// `ENOSPC`, `EIO`.
pub fn copy_data(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<()> {
    let size = file::stat(from)?.st_size;
    let failed = |call: &str| {
        let call = format!("{call}({}, {})", show(&to), show(&from));
        move |errno| Error::new(call, errno)
    };
    let mut at = 0;
    while at < size {
        at = match lseek(from, at, Whence::SeekData) {
            Err(Errno::ENXIO) => break,
            other => other.map_err(failed("lseek"))?,
        };
        let end = lseek(from, at, Whence::SeekHole).map_err(failed("lseek"))?;
        lseek(to, at, Whence::SeekSet).map_err(failed("lseek"))?;
        while at < end {
            let length = usize::try_from(end - at).unwrap_or(usize::MAX);
            if nix::sys::sendfile::sendfile(to, from, Some(&mut at), length).map_err(failed("sendfile"))? == 0
            {
                break; // It was cut short meanwhile.
            }
        }
    }
    nix::unistd::ftruncate(to, size).map_err(failed("ftruncate"))
}

/// Writes everything of the file system that holds `fd` to its device (syncfs(2)).
///
/// # Errors
/// `EIO`, `ENOSPC`: something written before is lost.
pub fn sync_file_system(fd: BorrowedFd<'_>) -> Result<()> {
    // SAFETY: the call takes no pointers.
    let ret = unsafe { libc::syncfs(fd.as_raw_fd()) };
    check(ret, || format!("syncfs({})", show(&fd))).map(drop)
}

/// Writes an open file or directory to its device (fsync(2)).
///
/// # Errors
/// `EIO`, `ENOSPC`.
pub fn sync(fd: BorrowedFd<'_>) -> Result<()> {
    // SAFETY: the call takes no pointers.
    let ret = unsafe { libc::fsync(fd.as_raw_fd()) };
    check(ret, || format!("fsync({})", show(&fd))).map(drop)
}

/// Tells the file system that the directories made in `dir` have nothing to do with each other: ext4 then puts each, with
/// what is in it, into a part of the disk of its own, where many at once don't search the same inodes (ioctl_iflags(2),
/// `FS_TOPDIR_FL`). It is a hint; false where the file system takes none.
pub fn spread_directories(dir: BorrowedFd<'_>) -> bool {
    let mut flags: libc::c_int = 0;
    // SAFETY: the request writes an int, whatever its number says, to `flags`, which outlives the call.
    let got = unsafe { libc::ioctl(dir.as_raw_fd(), libc::FS_IOC_GETFLAGS as _, &raw mut flags) };
    flags |= FS_TOPDIR_FL;
    // SAFETY: the request reads an int from `flags`, which outlives the call.
    got == 0 && unsafe { libc::ioctl(dir.as_raw_fd(), libc::FS_IOC_SETFLAGS as _, &raw const flags) } == 0
}

/// `linux/fs.h`.
const FS_TOPDIR_FL: libc::c_int = 0x2_0000;

/// Asks the kernel to begin writing an open file's data to its device, without waiting
/// (sync_file_range(2), `SYNC_FILE_RANGE_WRITE`): a later [`sync_file_system`] then finds little to do.
///
/// # Errors
/// `EIO`, `ENOSPC`.
pub fn begin_sync(fd: BorrowedFd<'_>, offset: u64, length: u64) -> Result<()> {
    // SAFETY: the call takes no pointers.
    let ret = unsafe {
        libc::sync_file_range(
            fd.as_raw_fd(),
            offset.cast_signed(),
            length.cast_signed(),
            libc::SYNC_FILE_RANGE_WRITE,
        )
    };
    check(ret, || format!("sync_file_range({}, {offset}, {length})", show(&fd))).map(drop)
}

/// Removes `name` in `dir` and all below it, following no link, with a handful of descriptors however deep
/// the tree is: a directory that is not empty is moved up to the top before its turn comes. What is gone
/// already is no error.
///
/// # Errors
/// `EBUSY` where something is mounted inside.
pub fn remove_tree(dir: BorrowedFd<'_>, name: impl AsRef<OsStr>) -> Result<()> {
    let name = name.as_ref();
    match file::unlink(dir, name) {
        Err(e) if matches!(e.errno(), Errno::EISDIR | Errno::EPERM) => {}
        Err(e) if e.errno() == Errno::ENOENT => return Ok(()),
        other => return other,
    }
    let flags = libc::O_DIRECTORY | libc::O_NOFOLLOW;
    let top = match file::open(dir, name, flags, 0, Resolve::BeneathNoLinks) {
        Err(e) if e.errno() == Errno::ENOENT => return Ok(()),
        other => other?,
    };
    let mut moved = 0_u64;
    loop {
        let names = file::list(top.as_fd())?;
        if names.is_empty() {
            return file::rmdir(dir, name);
        }
        for name in names {
            if !gone(top.as_fd(), &name)? {
                let inner = file::open(top.as_fd(), &name, flags, 0, Resolve::BeneathNoLinks)?;
                flatten(inner.as_fd(), top.as_fd(), &mut moved)?;
                file::rmdir(top.as_fd(), &name)?;
            }
        }
    }
}

/// Empties `inner`: what is no directory is removed, what is one and not empty becomes a child of `top`.
fn flatten(inner: BorrowedFd<'_>, top: BorrowedFd<'_>, moved: &mut u64) -> Result<()> {
    for name in file::list(inner)? {
        while !gone(inner, &name)? {
            *moved += 1;
            match file::rename(inner, &name, top, format!(".removed-{moved}")) {
                Err(e) if matches!(e.errno(), Errno::ENOTEMPTY | Errno::EEXIST | Errno::ENOTDIR) => {}
                Err(e) => return Err(e),
                Ok(()) => break,
            }
        }
    }
    Ok(())
}

/// Removes `name` in `dir` where that takes one call; false where it is a directory with something in it.
fn gone(dir: BorrowedFd<'_>, name: &OsStr) -> Result<bool> {
    match file::unlink(dir, name) {
        Ok(()) => return Ok(true),
        Err(e) if e.errno() == Errno::ENOENT => return Ok(true),
        Err(e) if matches!(e.errno(), Errno::EISDIR | Errno::EPERM) => {}
        Err(e) => return Err(e),
    }
    match file::rmdir(dir, name) {
        Ok(()) => Ok(true),
        Err(e) if e.errno() == Errno::ENOENT => Ok(true),
        Err(e) if matches!(e.errno(), Errno::ENOTEMPTY | Errno::EEXIST) => Ok(false),
        Err(e) => Err(e),
    }
}

/// Gives a file that was opened with `O_TMPFILE` the name `name` in `dir` (linkat(2) with `AT_EMPTY_PATH`; where the caller has no
/// right to that, as before Linux 6.10 without `CAP_DAC_READ_SEARCH`, by its procfs, as open(2) has it).
///
/// # Errors
/// `EEXIST` where the name is taken.
pub fn link_open(fd: BorrowedFd<'_>, dir: BorrowedFd<'_>, name: impl AsRef<OsStr>) -> Result<()> {
    let name = name.as_ref();
    let c_name = c_string(name.as_bytes(), "linkat")?;
    // SAFETY: both paths are C strings that outlive the call.
    let ret = unsafe {
        libc::linkat(fd.as_raw_fd(), EMPTY.as_ptr(), dir.as_raw_fd(), c_name.as_ptr(), libc::AT_EMPTY_PATH)
    };
    match check(ret, || format!("linkat({}, {}, {name:?})", show(&fd), show(&dir))) {
        Err(e) if e.errno() == Errno::ENOENT => {}
        other => return other.map(drop),
    }
    let c_path = by_descriptor(fd, None)?;
    // SAFETY: both paths are C strings that outlive the call.
    let ret = unsafe {
        libc::linkat(
            libc::AT_FDCWD,
            c_path.as_ptr(),
            dir.as_raw_fd(),
            c_name.as_ptr(),
            libc::AT_SYMLINK_FOLLOW,
        )
    };
    check(ret, || format!("linkat({c_path:?}, {}, {name:?})", show(&dir))).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_not_be_opened_gets_permissions_and_attributes_from_older_kernels_too() {
        use crate::{identity, seccomp};
        let (parent, scratch) = (std::env::temp_dir(), format!("coracle-sys-old-{}", std::process::id()));
        let parent = file::open_dir(parent).unwrap();
        file::mkdir(parent.as_fd(), &scratch, 0o700).unwrap();
        let dir = file::open(parent.as_fd(), &scratch, libc::O_DIRECTORY, 0, Resolve::Beneath).unwrap();
        file::mknod(dir.as_fd(), "fifo", libc::S_IFIFO | 0o600, 0).unwrap();
        file::symlink("fifo", dir.as_fd(), "link").unwrap();
        let older = || {
            // fchmodat2(2) and setxattrat(2) answer ENOSYS.
            let program = [
                0x20,
                0x15 | 1 << 16 | 452 << 32,
                0x15 | 1 << 24 | 463 << 32,
                6 | 0x5_0026 << 32,
                6 | 0x7fff_0000 << 32,
            ];
            identity::no_new_privileges().unwrap();
            seccomp::load(&program, 0).unwrap();
            assert_eq!(chmod_directly(dir.as_fd(), "fifo".as_ref(), 0).unwrap_err().errno(), Errno::ENOSYS);
            chmod_at(dir.as_fd(), "fifo", 0o4751).unwrap();
            set_xattr_at(dir.as_fd(), "link".as_ref(), "trusted.of".as_ref(), b"link").unwrap();
        };
        std::thread::scope(|scope| scope.spawn(older).join().unwrap());
        assert_eq!(file::stat_at(dir.as_fd(), "fifo").unwrap().st_mode, libc::S_IFIFO | 0o4751);
        let of = |name: &str| {
            let (path, mut value) = (by_descriptor(dir.as_fd(), Some(name.as_ref())).unwrap(), [0_u8; 8]);
            let into = value.as_mut_ptr().cast();
            // SAFETY: path and name are C strings, and the kernel writes at most as many bytes as `value` has.
            let length = unsafe { libc::lgetxattr(path.as_ptr(), c"trusted.of".as_ptr(), into, value.len()) };
            usize::try_from(length).map(|length| value[..length].to_vec()).ok()
        };
        assert_eq!((of("link"), of("fifo")), (Some(b"link".to_vec()), None));
        remove_tree(parent.as_fd(), &scratch).unwrap();
    }

    #[test]
    fn a_file_without_a_name_gets_one_where_its_descriptor_alone_is_refused() {
        use crate::{identity, seccomp};
        let dir = file::open_dir(std::env::temp_dir()).unwrap();
        let fd =
            file::open(dir.as_fd(), ".", libc::O_TMPFILE | libc::O_WRONLY, 0o600, Resolve::Beneath).unwrap();
        let name = format!("coracle-sys-named-{}", std::process::id());
        let link = || {
            // linkat(2) answers ENOENT where its fifth argument is AT_EMPTY_PATH.
            let (linkat, empty) = (libc::SYS_linkat as u64, libc::AT_EMPTY_PATH as u64);
            let program = [
                0x20,
                0x15 | 3 << 24 | linkat << 32,
                0x20 | 48 << 32,
                0x15 | 1 << 24 | empty << 32,
                6 | 0x5_0002 << 32,
                6 | 0x7fff_0000 << 32,
            ];
            identity::no_new_privileges().unwrap();
            seccomp::load(&program, 0).unwrap();
            link_open(fd.as_fd(), dir.as_fd(), &name).unwrap();
        };
        std::thread::scope(|scope| scope.spawn(link).join().unwrap());
        assert_eq!(file::stat_at(dir.as_fd(), &name).unwrap().st_ino, file::stat(fd.as_fd()).unwrap().st_ino);
        file::unlink(dir.as_fd(), &name).unwrap();
    }

    #[test]
    fn a_file_system_without_the_flag_spreads_no_directories() {
        let shown = file::open_dir("/proc/self").unwrap();
        assert!(!spread_directories(shown.as_fd()));
    }

    #[test]
    fn a_tree_deeper_than_descriptors_are_many_is_removed() {
        let parent = file::open_dir(std::env::temp_dir()).unwrap();
        let name = format!("coracle-sys-{}", std::process::id());
        let enter = |dir: BorrowedFd<'_>, name: &str| {
            file::mkdir(dir, name, 0o700).unwrap();
            file::open(dir, name, libc::O_DIRECTORY, 0, Resolve::Beneath).unwrap()
        };
        let mut here = enter(parent.as_fd(), &name);
        for _ in 0..1500 {
            here = enter(here.as_fd(), "d");
        }
        remove_tree(parent.as_fd(), &name).unwrap();
        assert_eq!(file::stat_at(parent.as_fd(), &name).unwrap_err().errno(), Errno::ENOENT);
        remove_tree(parent.as_fd(), &name).unwrap();
    }
}
