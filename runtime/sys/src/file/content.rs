//! The content of files: reading no more than is allowed, writing all of it, and who may do so at a time.

use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use crate::archive;
use crate::error::{Error, Result, check, named, show};
use crate::event;
use crate::file::{Resolve, exchange, open, rename, unlink};

/// Reads what there is, at most as much as `buffer` holds; 0 at the end (read(2)).
///
/// # Errors
/// `EAGAIN` where there is nothing yet, in a file that is open without blocking.
pub fn read_some(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<usize> {
    named(nix::unistd::read(fd, buffer), || format!("read({})", show(&fd)))
}

/// Has the next read begin at the beginning (lseek(2)).
///
/// # Errors
/// `ESPIPE` of what has no beginning: a pipe, a socket.
pub fn rewind(fd: BorrowedFd<'_>) -> Result<()> {
    let moved = nix::unistd::lseek(fd, 0, nix::unistd::Whence::SeekSet);
    named(moved, || format!("lseek({}, 0)", show(&fd))).map(drop)
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
    file.read_to_end(&mut bytes).map_err(|e| Error::of_io(&call, &e))?;
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

/// Replaces the file `name` in `dir` by one that holds `bytes`, at once: readers see the old or the new. When the power is
/// cut, both may be lost, and an empty file be left: [`replace_synced`] is for what is to be read after that.
///
/// # Errors
/// As [`open`], [`write_all`] and [`rename`]; the old file stays.
pub fn replace(dir: BorrowedFd<'_>, name: &str, bytes: &[u8], mode: u32) -> Result<()> {
    let (temporary, _) = write_beside(dir, name, bytes, mode)?;
    // Not renamed over the old one: ext4 would write the new one's data to the disk there and then.
    match exchange(dir, &temporary, name) {
        Ok(()) => unlink(dir, &temporary),
        // There is no old one, or the file system can't exchange.
        Err(_) => rename(dir, &temporary, dir, name),
    }
}

/// The same, on the disk when it returns, where `dir` is open to be read: for the price of two writes to the device,
/// a millisecond or more.
///
/// # Errors
/// As [`replace`] and [`archive::sync`].
pub fn replace_synced(dir: BorrowedFd<'_>, name: &str, bytes: &[u8], mode: u32) -> Result<()> {
    let (temporary, fd) = write_beside(dir, name, bytes, mode)?;
    archive::sync(fd.as_fd())?;
    rename(dir, &temporary, dir, name)?;
    archive::sync(dir)
}

/// Writes `bytes` to a file that is to become `name` in `dir`: what it is called until then, and it, open.
fn write_beside(dir: BorrowedFd<'_>, name: &str, bytes: &[u8], mode: u32) -> Result<(String, OwnedFd)> {
    let temporary = format!(".{name}.new");
    let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_TRUNC | libc::O_NOFOLLOW;
    let fd = open(dir, &temporary, flags, mode, Resolve::BeneathNoLinks)?;
    write_all(fd.as_fd(), bytes)?;
    Ok((temporary, fd))
}

/// Removes the file `name` from `dir`, and what a [`replace`] of it has left that was cut off. One that is not there is
/// gone.
///
/// # Errors
/// As [`unlink`].
pub fn remove_replaced(dir: BorrowedFd<'_>, name: &str) -> Result<()> {
    for name in [&format!(".{name}.new"), name] {
        match unlink(dir, name) {
            Err(e) if e.errno() != Errno::ENOENT => return Err(e),
            _ => {}
        }
    }
    Ok(())
}

/// Takes (or with `wait` waits for) the advisory lock of an open file; it is held until the descriptor is
/// closed, with all of its copies, or [`unlock`]ed (flock(2)).
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

/// Lets the advisory lock of an open file go, for all copies of its descriptor.
///
/// # Errors
/// None that a kernel is known to give.
pub fn unlock(fd: BorrowedFd<'_>) -> Result<()> {
    flock(fd, libc::LOCK_UN)
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
