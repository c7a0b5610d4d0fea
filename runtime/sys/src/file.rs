//! Files and directories, by file descriptor.
//!
//! Every function takes a directory and a name below it. [`open`] with [`Resolve::InRoot`] or
//! [`Resolve::Beneath`] is how an untrusted tree is walked (openat2(2), Linux 5.6); the functions that change
//! things take one last component, never a path with a slash, so that no symbolic link can lead them away.

use std::ffi::{CStr, OsStr, OsString};
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path};
use std::time::{Duration, Instant};

use nix::errno::Errno;

use crate::error::{Error, Result, check, check_fd, named, show};
use crate::event;
use crate::mount::attr;
use crate::mount::{EMPTY, c_string};

/// How [`open`] follows what it meets on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resolve {
    /// As the directory were the root: absolute links and `..` stay inside. No magic links.
    InRoot,
    /// Never out of the directory; an absolute link or a `..` that leaves is `EXDEV`. No magic links.
    Beneath,
    /// Never out of the directory, and no symbolic link anywhere on the way (`ELOOP`).
    BeneathNoLinks,
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

/// Makes the directory `name` in `dir` (mkdirat(2)).
///
/// # Errors
/// `EEXIST` where the name is taken.
pub fn mkdir(dir: BorrowedFd<'_>, name: impl AsRef<OsStr>, mode: u32) -> Result<()> {
    let name = name.as_ref();
    let mode_bits = nix::sys::stat::Mode::from_bits_truncate(mode);
    named(nix::sys::stat::mkdirat(dir, name, mode_bits), || {
        format!("mkdirat({}, {name:?}, {mode:#o})", show(&dir))
    })
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
    if ret < 0 && Errno::last() == Errno::EAGAIN {
        return Ok(None);
    }
    check_fd(ret, || format!("openat2(AT_FDCWD, {path:?})")).map(|_| Some(()))
}

/// Opens the directory `path` below `root`, making what is missing with `mode`. Links that the tree holds are
/// followed inside the root, dangling ones too, as users of runc expect; nothing is made outside.
///
/// # Errors
/// `ENOTDIR` where a file is in the way, `ELOOP` where links lead in a circle.
pub fn mkdir_all(root: BorrowedFd<'_>, path: impl AsRef<Path>, mode: u32) -> Result<OwnedFd> {
    make_missing(root, path.as_ref(), mode, Resolve::InRoot, 0)
}

/// As [`mkdir_all`], but every component is a directory itself: a link on the way is an error, however often it is
/// swapped for a directory meanwhile.
///
/// # Errors
/// `ELOOP` where a link is in the way, `ENOTDIR` where a file is.
pub fn mkdir_all_no_links(root: BorrowedFd<'_>, path: impl AsRef<Path>, mode: u32) -> Result<OwnedFd> {
    make_missing(root, path.as_ref(), mode, Resolve::BeneathNoLinks, 0)
}

/// Opens `path`, after making it and before that its parent where they are missing. `links` dangling ones were
/// followed on the way.
fn make_missing(
    root: BorrowedFd<'_>,
    path: &Path,
    mode: u32,
    resolve: Resolve,
    links: u32,
) -> Result<OwnedFd> {
    let is_top = path.as_os_str().is_empty();
    let opened =
        open(root, if is_top { Path::new(".") } else { path }, libc::O_PATH | libc::O_DIRECTORY, 0, resolve);
    let missing = match opened {
        Err(e) if e.errno() == Errno::ENOENT && !is_top => e,
        other => return other,
    };
    let parent = path.parent().unwrap_or(Path::new(""));
    let dir = make_missing(root, parent, mode, resolve, links)?;
    // What ends in `..` is there once its parent is.
    if let Some(Component::Normal(name)) = path.components().next_back() {
        match mkdir(dir.as_fd(), name, mode) {
            Err(e) if e.errno() == Errno::EEXIST && resolve == Resolve::InRoot => {
                // A dangling link, or somebody was quicker.
                if let Ok(target) = read_link(dir.as_fd(), name) {
                    if links == 40 {
                        return Err(Error::new(missing.call(), Errno::ELOOP));
                    }
                    return make_missing(root, &parent.join(target), mode, resolve, links + 1);
                }
            }
            Err(e) if e.errno() != Errno::EEXIST => return Err(e),
            _ => {}
        }
    }
    open(root, path, libc::O_PATH | libc::O_DIRECTORY, 0, resolve)
}

/// Makes a file of any type: `mode` holds the type and the permission bits, `device` the number of a device
/// node (mknodat(2)).
///
/// # Errors
/// `EEXIST` where the name is taken, `EPERM` where a device node is not allowed.
pub fn mknod(dir: BorrowedFd<'_>, name: impl AsRef<OsStr>, mode: u32, device: u64) -> Result<()> {
    let name = name.as_ref();
    let c_name = c_string(name.as_bytes(), "mknodat")?;
    // SAFETY: `c_name` is a valid C string that outlives the call.
    let ret = unsafe { libc::mknodat(dir.as_raw_fd(), c_name.as_ptr(), mode, device) };
    check(ret, || format!("mknodat({}, {name:?}, {mode:#o}, {device:#x})", show(&dir))).map(drop)
}

/// Makes the symbolic link `name` in `dir` (symlinkat(2)).
///
/// # Errors
/// `EEXIST` where the name is taken.
pub fn symlink(target: impl AsRef<OsStr>, dir: BorrowedFd<'_>, name: impl AsRef<OsStr>) -> Result<()> {
    let (target, name) = (target.as_ref(), name.as_ref());
    named(nix::unistd::symlinkat(target, dir, name), || {
        format!("symlinkat({target:?}, {}, {name:?})", show(&dir))
    })
}

/// Reads the symbolic link `name` in `dir` (readlinkat(2)).
///
/// # Errors
/// `EINVAL` where it is no link.
pub fn read_link(dir: BorrowedFd<'_>, name: impl AsRef<OsStr>) -> Result<OsString> {
    let name = name.as_ref();
    named(nix::fcntl::readlinkat(dir, name), || format!("readlinkat({}, {name:?})", show(&dir)))
}

/// Gives the file `name` in `dir` a second name (linkat(2), links not followed).
///
/// # Errors
/// `EEXIST` where the new name is taken.
pub fn link(
    dir: BorrowedFd<'_>,
    name: impl AsRef<OsStr>,
    new_dir: BorrowedFd<'_>,
    new_name: impl AsRef<OsStr>,
) -> Result<()> {
    let (name, new_name) = (name.as_ref(), new_name.as_ref());
    named(nix::unistd::linkat(dir, name, new_dir, new_name, nix::fcntl::AtFlags::empty()), || {
        format!("linkat({}, {name:?}, {}, {new_name:?})", show(&dir), show(&new_dir))
    })
}

/// Gives the file `name` in `dir` the name `new_name` in `new_dir`, replacing what is there (renameat(2)).
///
/// # Errors
/// `EXDEV` between file systems.
pub fn rename(
    dir: BorrowedFd<'_>,
    name: impl AsRef<OsStr>,
    new_dir: BorrowedFd<'_>,
    new_name: impl AsRef<OsStr>,
) -> Result<()> {
    let (name, new_name) = (name.as_ref(), new_name.as_ref());
    named(nix::fcntl::renameat(dir, name, new_dir, new_name), || {
        format!("renameat({}, {name:?}, {}, {new_name:?})", show(&dir), show(&new_dir))
    })
}

/// Removes the file `name` in `dir` (unlinkat(2)).
///
/// # Errors
/// `ENOENT` where there is none, `EISDIR` where it is a directory.
pub fn unlink(dir: BorrowedFd<'_>, name: impl AsRef<OsStr>) -> Result<()> {
    remove(dir, name.as_ref(), nix::unistd::UnlinkatFlags::NoRemoveDir)
}

/// Removes the empty directory `name` in `dir` (unlinkat(2)).
///
/// # Errors
/// `ENOENT` where there is none, `ENOTEMPTY` where something is in it.
pub fn rmdir(dir: BorrowedFd<'_>, name: impl AsRef<OsStr>) -> Result<()> {
    remove(dir, name.as_ref(), nix::unistd::UnlinkatFlags::RemoveDir)
}

fn remove(dir: BorrowedFd<'_>, name: &OsStr, flags: nix::unistd::UnlinkatFlags) -> Result<()> {
    named(nix::unistd::unlinkat(dir, name, flags), || format!("unlinkat({}, {name:?})", show(&dir)))
}

/// The names in the directory `dir`, without "." and "..", in no order (getdents64(2)).
///
/// # Errors
/// `ENOTDIR`.
pub fn list(dir: BorrowedFd<'_>) -> Result<Vec<OsString>> {
    let call = || format!("getdents64({})", show(&dir));
    let again = open(dir, ".", libc::O_DIRECTORY | libc::O_RDONLY, 0, Resolve::Beneath)?;
    let mut names = Vec::new();
    let mut entries = named(nix::dir::Dir::from_fd(again), call)?;
    for entry in entries.iter() {
        let entry = named(entry, call)?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(OsString::from_vec(name.to_vec()));
        }
    }
    Ok(names)
}

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

pub use nix::sys::statfs::FsType;

/// The type of the file system that holds `fd`, one of the `*_MAGIC` numbers (fstatfs(2)).
///
/// # Errors
/// Only on a closed descriptor.
pub fn file_system(fd: BorrowedFd<'_>) -> Result<FsType> {
    named(nix::sys::statfs::fstatfs(fd), || format!("fstatfs({})", show(&fd))).map(|s| s.filesystem_type())
}

/// Another descriptor of what `fd` is open on (fcntl(2), `F_DUPFD_CLOEXEC`).
///
/// # Errors
/// `EMFILE`.
pub fn duplicate(fd: BorrowedFd<'_>) -> Result<OwnedFd> {
    fd.try_clone_to_owned()
        .map_err(|_| Error::new(format!("fcntl({}, F_DUPFD_CLOEXEC)", show(&fd)), Errno::last()))
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

/// Makes reads and writes of `fd`, and of every descriptor that shares its open file, fail with `EAGAIN` rather than
/// wait (fcntl(2), `O_NONBLOCK`).
///
/// # Errors
/// None that a kernel is known to give for a file that is open.
pub fn set_nonblocking(fd: BorrowedFd<'_>) -> Result<()> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    named(fcntl(fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)), || format!("fcntl({}, F_SETFL)", show(&fd)))
        .map(drop)
}

/// Reads what there is, at most as much as `buffer` holds; 0 at the end (read(2)).
///
/// # Errors
/// `EAGAIN` where there is nothing yet, in a file that is open without blocking.
pub fn read_some(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<usize> {
    named(nix::unistd::read(fd, buffer), || format!("read({})", show(&fd)))
}

/// Reads an open file to its end, but no more than `most` bytes.
///
/// # Errors
/// `EFBIG` where the file holds more than `most` bytes, and whatever read(2) says.
pub fn read_all(fd: OwnedFd, most: u64) -> Result<Vec<u8>> {
    let call = format!("read([{}])", fd.as_raw_fd());
    // Most files that are read here are small, and procfs and cgroupfs tell no size: one read, and one for the end.
    let mut bytes = Vec::with_capacity(usize::try_from(most.min(8191)).unwrap_or(0) + 1);
    let mut file = std::fs::File::from(fd).take(most + 1);
    file.read_to_end(&mut bytes).map_err(|e| io_error(&call, &e))?;
    if bytes.len() as u64 > most { Err(Error::new(call, Errno::EFBIG)) } else { Ok(bytes) }
}

/// Reads a pipe that is open without blocking to its end, but no more than `most` bytes, and no longer than `limit`.
///
/// # Errors
/// `ETIMEDOUT` after the limit, `EFBIG` where there is more, or whatever read(2) says.
pub fn read_pipe(fd: BorrowedFd<'_>, most: u64, limit: Duration) -> Result<Vec<u8>> {
    let failed = |errno| Error::new(format!("read({})", show(&fd)), errno);
    let deadline = Instant::now() + limit;
    let mut bytes = Vec::new();
    let mut chunk = [0; 8192];
    while bytes.len() as u64 <= most {
        match nix::unistd::read(fd, &mut chunk) {
            Ok(0) => return Ok(bytes),
            Ok(n) => bytes.extend(&chunk[..n]),
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => {
                let left = deadline.saturating_duration_since(Instant::now());
                if event::readable(&[fd], Some(left))? != [true] {
                    return Err(failed(Errno::ETIMEDOUT));
                }
            }
            Err(errno) => return Err(failed(errno)),
        }
    }
    Err(failed(Errno::EFBIG))
}

/// Reads the file `path` below `dir`, but no more than `most` bytes.
///
/// # Errors
/// As [`open`] and [`read_all`].
pub fn read(dir: BorrowedFd<'_>, path: impl AsRef<Path>, most: u64, resolve: Resolve) -> Result<Vec<u8>> {
    let path = path.as_ref();
    let fd = open(dir, path, libc::O_RDONLY, 0, resolve)?;
    read_all(fd, most).map_err(|e| Error::new(format!("read({path:?})"), e.errno()))
}

/// Writes all of `bytes` to an open file in as few calls as the kernel allows.
///
/// # Errors
/// Whatever write(2) says.
pub fn write_all(fd: BorrowedFd<'_>, mut bytes: &[u8]) -> Result<()> {
    while !bytes.is_empty() {
        match nix::unistd::write(fd, bytes) {
            Ok(0) => return Err(Error::new(format!("write({})", show(&fd)), Errno::EIO)),
            Ok(n) => bytes = &bytes[n..],
            Err(Errno::EINTR) => {}
            Err(errno) => {
                let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(64)]).into_owned();
                return Err(Error::new(format!("write({}, {shown:?})", show(&fd)), errno));
            }
        }
    }
    Ok(())
}

/// Writes `bytes` to the existing file `name` below `dir`, as for a file of procfs or cgroupfs.
///
/// # Errors
/// As [`open`] and [`write_all`]; the error shows the file's name.
pub fn write_to(dir: BorrowedFd<'_>, name: impl AsRef<Path>, bytes: &[u8], resolve: Resolve) -> Result<()> {
    let name = name.as_ref();
    let fd = open(dir, name, libc::O_WRONLY, 0, resolve)?;
    write_all(fd.as_fd(), bytes).map_err(|e| {
        let shown = String::from_utf8_lossy(bytes);
        Error::new(format!("write({name:?}, {:?})", shown.trim_end()), e.errno())
    })
}

/// Replaces the file `name` in `dir` by one that holds `bytes`, at once: readers see the old or the new.
///
/// # Errors
/// As [`open`], [`write_all`] and [`rename`]; the old file stays.
pub fn replace(dir: BorrowedFd<'_>, name: &str, bytes: &[u8], mode: u32) -> Result<()> {
    let temporary = format!(".{name}.new");
    let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_TRUNC | libc::O_NOFOLLOW;
    let fd = open(dir, &temporary, flags, mode, Resolve::BeneathNoLinks)?;
    write_all(fd.as_fd(), bytes)?;
    // Not renamed over the old one: ext4 would write the new one's data to the disk there and then.
    match exchange(dir, &temporary, name) {
        Ok(()) => unlink(dir, &temporary),
        // There is no old one, or the file system can't exchange.
        Err(_) => rename(dir, &temporary, dir, name),
    }
}

/// Gives two files in `dir` each other's names (renameat2(2), `RENAME_EXCHANGE`, Linux 3.15).
fn exchange(dir: BorrowedFd<'_>, one: &str, other: &str) -> Result<()> {
    let (from, to) = (c_string(one.as_bytes(), "renameat2")?, c_string(other.as_bytes(), "renameat2")?);
    let fd = dir.as_raw_fd();
    // SAFETY: both names are C strings that outlive the call.
    let ret = unsafe {
        libc::syscall(libc::SYS_renameat2, fd, from.as_ptr(), fd, to.as_ptr(), libc::RENAME_EXCHANGE)
    };
    check(ret, || format!("renameat2({}, {one:?}, {other:?}, RENAME_EXCHANGE)", show(&dir))).map(drop)
}

/// Takes (or with `wait` waits for) the advisory lock of an open file; it is held until the descriptor is
/// closed (flock(2)).
///
/// # Errors
/// `EWOULDBLOCK` where somebody else holds it and `wait` is false.
pub fn lock(fd: BorrowedFd<'_>, wait: bool) -> Result<()> {
    flock(fd, libc::LOCK_EX | if wait { 0 } else { libc::LOCK_NB })
}

/// Waits for the advisory lock of an open file as one of several that may hold it together, while nobody holds it
/// [alone](lock).
///
/// # Errors
/// `ENOLCK`.
pub fn lock_shared(fd: BorrowedFd<'_>) -> Result<()> {
    flock(fd, libc::LOCK_SH)
}

fn flock(fd: BorrowedFd<'_>, operation: i32) -> Result<()> {
    loop {
        // SAFETY: the call takes no pointers.
        let ret = unsafe { libc::flock(fd.as_raw_fd(), operation) };
        if ret < 0 && Errno::last() == Errno::EINTR {
            continue;
        }
        return check(ret, || format!("flock({})", show(&fd))).map(drop);
    }
}

/// The number of a device node of the type `major`, `minor`.
pub fn device(major: u32, minor: u32) -> u64 {
    libc::makedev(major, minor)
}

/// The error that `error`, from the standard library, stands for.
fn io_error(call: &str, error: &std::io::Error) -> Error {
    Error::new(call, error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))
}

/// `bytes` up to its first NUL, as the kernel returns names.
pub fn until_nul(bytes: &[u8]) -> &[u8] {
    CStr::from_bytes_until_nul(bytes).map_or(bytes, CStr::to_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::remove_tree;

    /// Runs `test` in a new, empty directory.
    fn in_directory(name: &str, test: fn(BorrowedFd<'_>)) {
        let parent = open_dir(std::env::temp_dir()).unwrap();
        let name = format!("coracle-file-{name}-{}", std::process::id());
        mkdir(parent.as_fd(), &name, 0o700).unwrap();
        test(open(parent.as_fd(), &name, libc::O_DIRECTORY, 0, Resolve::Beneath).unwrap().as_fd());
        remove_tree(parent.as_fd(), &name).unwrap();
    }

    #[test]
    fn missing_directories_are_made_where_links_lead_inside_the_root() {
        in_directory("links", |root| {
            symlink("/there/deep", root, "absolute").unwrap();
            symlink("../../../up", root, "above").unwrap();
            symlink("circle", root, "circle").unwrap();
            mknod(root, "file", libc::S_IFREG | 0o600, 0).unwrap();
            for (wanted, made) in [
                ("a/b/c", "a/b/c"),
                ("absolute/x", "there/deep/x"),
                ("above/x", "up/x"),
                ("new/../y", "y"),
                ("/z", "z"),
            ] {
                let fd = mkdir_all(root, wanted, 0o755).unwrap();
                let inode = stat(fd.as_fd()).unwrap().st_ino;
                assert_eq!(inode, stat_at(root, made).unwrap().st_ino, "{wanted}");
            }
            assert_eq!(mkdir_all(root, "circle/x", 0o755).unwrap_err().errno(), Errno::ELOOP);
            assert_eq!(mkdir_all(root, "file/x", 0o755).unwrap_err().errno(), Errno::ENOTDIR);
        });
    }

    #[test]
    fn no_link_is_passed_where_none_may_be() {
        in_directory("no-links", |root| {
            symlink("there", root, "dangling").unwrap();
            mkdir_all_no_links(root, "a/b", 0o755).unwrap();
            symlink("a", root, "link").unwrap();
            for wanted in ["dangling", "dangling/x", "link", "link/b", "link/new"] {
                let error = mkdir_all_no_links(root, wanted, 0o755).unwrap_err();
                assert_eq!(error.errno(), Errno::ELOOP, "{wanted}");
            }
        });
    }
}
