//! The content of files: reading no more than is allowed, writing all of it, and who may do so at a time.

use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use crate::archive;
use crate::error::{Error, Result, check, named, show};
use crate::event;
use crate::file::{Resolve, exchange, open, rename, stat, unlink};
use crate::identity;

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

/// Reads the file `path` below `dir`, but no more than `most` bytes. A pipe, whose writer may never come, is refused and not
/// waited for.
///
/// # Errors
/// `EINVAL` for a pipe that tells nothing; as [`open`] and [`read_all`].
pub fn read(dir: BorrowedFd<'_>, path: impl AsRef<Path>, most: u64, resolve: Resolve) -> Result<Vec<u8>> {
    let path = path.as_ref();
    let fd = open(dir, path, libc::O_RDONLY | libc::O_NONBLOCK, 0, resolve)?;
    let read = read_all(fd, most).map_err(|e| Error::new(format!("read({path:?})"), e.errno()));
    let is_silent = read.as_ref().map_or_else(|e| e.errno() == Errno::EAGAIN, Vec::is_empty);
    // Asked only where it may be so: many are read on the way to a container's start.
    if is_silent && is_pipe(open(dir, path, libc::O_PATH, 0, resolve)?.as_fd())? {
        return Err(Error::new(format!("read({path:?}), a named pipe and no file"), Errno::EINVAL));
    }
    read
}

fn is_pipe(fd: BorrowedFd<'_>) -> Result<bool> {
    Ok(stat(fd)?.st_mode & libc::S_IFMT == libc::S_IFIFO)
}

/// Reads what the caller named on its command line, but no more than `most` bytes: a pipe, too, for whose end it waits.
///
/// # Errors
/// As [`open`] and [`read_all`].
pub fn read_given(path: impl AsRef<Path>, most: u64) -> Result<Vec<u8>> {
    let path = path.as_ref();
    let fd = open(crate::file::CWD, path, libc::O_RDONLY, 0, Resolve::Host)?;
    read_all(fd, most).map_err(|e| Error::new(format!("read({path:?})"), e.errno()))
}

/// Writes all of `bytes` to an open file in as few calls as the kernel allows.
///
/// # Errors
/// Whatever write(2) says; the error shows none of the bytes, which may be anything, or a secret.
pub fn write_all(fd: BorrowedFd<'_>, mut bytes: &[u8]) -> Result<()> {
    while !bytes.is_empty() {
        match nix::unistd::write(fd, bytes) {
            Ok(0) => return Err(Error::new(format!("write({})", show(&fd)), Errno::EIO)),
            Ok(n) => bytes = &bytes[n..],
            Err(Errno::EINTR) => {}
            Err(errno) => {
                return Err(Error::new(format!("write({}, {} bytes)", show(&fd), bytes.len()), errno));
            }
        }
    }
    Ok(())
}

/// Writes `bytes` to the existing file `name` below `dir`, as for a file of procfs or cgroupfs.
///
/// # Errors
/// As [`open`] and [`write_all`]; the error shows the file's name, and what it didn't take.
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
    // Not renamed over the old one: ext4 would write the new one's data to the disk there and then.
    write_beside(dir, name, (bytes, mode), |temporary, _| match exchange(dir, temporary, name) {
        Ok(()) => unlink(dir, temporary),
        // There is no old one, or the file system can't exchange.
        Err(_) => rename(dir, temporary, dir, name),
    })
}

/// The same, on the disk when it returns, where `dir` is open to be read: for the price of two writes to the device,
/// a millisecond or more.
///
/// # Errors
/// As [`replace`] and [`archive::sync`].
pub fn replace_synced(dir: BorrowedFd<'_>, name: &str, bytes: &[u8], mode: u32) -> Result<()> {
    write_beside(dir, name, (bytes, mode), |temporary, fd| {
        archive::sync(fd)?;
        rename(dir, temporary, dir, name)
    })?;
    archive::sync(dir)
}

/// Writes `bytes` to a file that `put` has become `name` in `dir`: it is told what the file is called until then, and gets it
/// open. Where one of the two fails, the file goes.
fn write_beside(
    dir: BorrowedFd<'_>,
    name: &str,
    (bytes, mode): (&[u8], u32),
    put: impl FnOnce(&str, BorrowedFd<'_>) -> Result<()>,
) -> Result<()> {
    let (temporary, fd) = make_beside(dir, name, mode)?;
    let done = write_all(fd.as_fd(), bytes).and_then(|()| put(&temporary, fd.as_fd()));
    done.inspect_err(|_| {
        // The first failure is the one to tell.
        let _ = unlink(dir, &temporary);
    })
}

/// Makes that file anew. One that is there is what a replacing has left that was cut off; but where others may write, it can be
/// anybody's, and is passed by.
fn make_beside(dir: BorrowedFd<'_>, name: &str, mode: u32) -> Result<(String, OwnedFd)> {
    let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL | libc::O_NOFOLLOW;
    let mut temporary = format!(".{name}.new");
    loop {
        match open(dir, &temporary, flags, mode, Resolve::BeneathNoLinks) {
            Err(e) if e.errno() == Errno::EEXIST => {}
            made => return Ok((temporary, made?)),
        }
        if is_own(dir)? {
            match unlink(dir, &temporary) {
                Err(e) if e.errno() != Errno::ENOENT => return Err(e),
                _ => {}
            }
        } else {
            temporary = format!(".{name}.{:016x}", random()?);
        }
    }
}

/// Whether nobody but the caller and root can make files in the directory `dir`.
fn is_own(dir: BorrowedFd<'_>) -> Result<bool> {
    let stat = stat(dir)?;
    Ok((stat.st_uid == 0 || stat.st_uid == identity::caller()) && stat.st_mode & 0o022 == 0)
}

/// A number that nobody can foretell (getrandom(2)).
///
/// # Errors
/// None that a kernel is known to give.
pub fn random() -> Result<u64> {
    let mut bytes = [0; 8];
    // SAFETY: the kernel writes at most as many bytes as the buffer has.
    let ret = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    check(ret, || "getrandom()".to_owned())?;
    Ok(u64::from_ne_bytes(bytes))
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

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "tests lay out files on the host")]
mod tests {
    use std::fs::{File, Permissions, set_permissions, write};
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::*;

    /// A directory of the mode `mode` in which the name is taken that a file has before it takes another's place; the number
    /// of what has taken it, and of what became of the file.
    fn replaced(mode: u32) -> (u64, u64) {
        let dir = tempfile::tempdir().unwrap();
        let (taken, file) = (dir.path().join(".pid.new"), dir.path().join("pid"));
        write(&taken, "of somebody else, longer than what is written").unwrap();
        let held = File::open(&taken).unwrap();
        set_permissions(dir.path(), Permissions::from_mode(mode)).unwrap();
        replace(crate::file::open_dir(dir.path()).unwrap().as_fd(), "pid", b"42", 0o644).unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "42");
        assert_eq!(taken.exists(), mode & 0o022 != 0);
        (held.metadata().unwrap().ino(), file.metadata().unwrap().ino())
    }

    #[test]
    fn what_others_have_laid_ready_is_not_written_to() {
        let (laid, written) = replaced(0o1777);
        assert_ne!(laid, written);
    }

    #[test]
    fn what_could_not_take_a_files_place_is_not_left() {
        let scratch = tempfile::tempdir().unwrap();
        let dir = crate::file::open_dir(scratch.path()).unwrap();
        std::fs::create_dir_all(scratch.path().join("index/in")).unwrap();
        replace_synced(dir.as_fd(), "index", b"42", 0o644).unwrap_err();
        assert_eq!(crate::file::list(dir.as_fd()).unwrap(), ["index"]);
    }

    #[test]
    fn a_pipe_that_nobody_writes_to_is_refused_and_not_waited_for() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("pipe");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let error = read(crate::file::CWD, &path, 10, Resolve::Host).unwrap_err().to_string();
        assert!(error.contains("a named pipe and no file: invalid argument"), "{error}");
        write(scratch.path().join("empty"), "").unwrap();
        assert!(read(crate::file::CWD, scratch.path().join("empty"), 10, Resolve::Host).unwrap().is_empty());
    }

    #[test]
    fn an_error_shows_nothing_of_what_was_not_written() {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let error = write_all(full.as_fd(), b"a secret").unwrap_err().to_string();
        assert!(error.contains("8 bytes") && !error.contains("secret"), "{error}");
    }

    #[test]
    fn what_was_cut_off_in_a_directory_of_ones_own_is_made_anew() {
        let (left, written) = replaced(0o755);
        assert_ne!(left, written);
    }
}
