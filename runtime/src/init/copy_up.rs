//! What a tmpfs covers, copied into it before it is attached (the option `tmpcopyup`).
//!
//! The tree is the image's, and others may change it meanwhile: it is walked by descriptor, no link is followed, and
//! only regular files are opened.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use coracle_sys::Errno;
use coracle_sys::archive::{self, Time};
use coracle_sys::file::{self, Resolve};

use crate::error::{Context, Result};

/// Copies what is below the directory `covered` to the empty directory `new`, with owners, permissions, times and
/// extended attributes; those of the directory itself too if `itself`. Files of several names become several files.
pub(super) fn copy_up(covered: BorrowedFd<'_>, new: BorrowedFd<'_>, itself: bool) -> Result<()> {
    let top = PathBuf::from(".");
    let mut waiting = vec![top.clone()];
    while let Some(path) = waiting.pop() {
        let copied = copy_directory(covered, new, &path, itself || path != top);
        let directories = copied.context(|| format!("copying up {path:?} (tmpcopyup)"))?;
        waiting.extend(directories.into_iter().map(|name| path.join(name)));
    }
    Ok(())
}

/// Copies the entries of one directory, and last its own attributes; returns the names of those that are directories,
/// which are made but still empty.
fn copy_directory(
    covered: BorrowedFd<'_>,
    new: BorrowedFd<'_>,
    path: &Path,
    itself: bool,
) -> Result<Vec<std::ffi::OsString>> {
    let from = file::open(covered, path, libc::O_DIRECTORY, 0, Resolve::BeneathNoLinks)?;
    let to = file::open(new, path, libc::O_DIRECTORY, 0, Resolve::BeneathNoLinks)?;
    let mut directories = Vec::new();
    for name in file::list(from.as_fd())? {
        let stat = file::stat_at(from.as_fd(), &name)?;
        match stat.st_mode & libc::S_IFMT {
            libc::S_IFDIR => {
                file::mkdir(to.as_fd(), &name, 0o700)?;
                directories.push(name);
            }
            libc::S_IFREG => copy_file(from.as_fd(), to.as_fd(), &name)?,
            libc::S_IFLNK => {
                file::symlink(file::read_link(from.as_fd(), &name)?, to.as_fd(), &name)?;
                own(to.as_fd(), &name, &stat)?;
            }
            _ => {
                file::mknod(to.as_fd(), &name, stat.st_mode, stat.st_rdev)?;
                own(to.as_fd(), &name, &stat)?;
            }
        }
    }
    if itself {
        copy_attributes(&from, &to)?;
    }
    Ok(directories)
}

/// Gives what can't be opened its owner and its times.
fn own(dir: BorrowedFd<'_>, name: &OsStr, stat: &libc::stat) -> Result<()> {
    archive::chown_at(dir, name, stat.st_uid, stat.st_gid)?;
    let (access, modification) = times(stat);
    Ok(archive::set_times_at(dir, name, access, modification)?)
}

fn copy_file(from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &OsStr) -> Result<()> {
    // It may have become something else since it was looked at: a pipe is not waited for, a link not followed.
    let flags = libc::O_RDONLY | libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let from = file::open(from, name, flags, 0, Resolve::BeneathNoLinks)?;
    let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL;
    let to = file::open(to, name, flags, 0o600, Resolve::BeneathNoLinks)?;
    archive::copy_data(from.as_fd(), to.as_fd()).context(|| format!("{name:?}"))?;
    copy_attributes(&from, &to)
}

fn copy_attributes(from: &OwnedFd, to: &OwnedFd) -> Result<()> {
    let stat = file::stat(from.as_fd())?;
    file::chown(to.as_fd(), stat.st_uid, stat.st_gid)?;
    // After the owner, whose change takes set-user-ID bits and capabilities away.
    file::chmod(to.as_fd(), stat.st_mode & 0o7777)?;
    for name in archive::xattr_names(from.as_fd())? {
        let name = OsStr::from_bytes(name.to_bytes());
        // SELinux labels a new file system itself.
        if name == "security.selinux" {
            continue;
        }
        let Some(value) = archive::xattr(from.as_fd(), name)? else { continue };
        match archive::set_xattr(to.as_fd(), name, &value) {
            // A tmpfs knows `user.` attributes since Linux 6.6.
            Err(e) if e.errno() == Errno::EOPNOTSUPP => {}
            other => other?,
        }
    }
    let (access, modification) = times(&stat);
    Ok(archive::set_times(to.as_fd(), access, modification)?)
}

fn times(stat: &libc::stat) -> (Time, Time) {
    let time = |seconds, nanoseconds| Time { seconds, nanoseconds: u32::try_from(nanoseconds).unwrap_or(0) };
    (time(stat.st_atime, stat.st_atime_nsec), time(stat.st_mtime, stat.st_mtime_nsec))
}
