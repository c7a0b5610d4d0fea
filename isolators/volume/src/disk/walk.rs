//! Going through all files of a directory, in a process that can be killed: the disk, or a server, may take its time, and
//! what is gone through is a container's.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use coracle_sys::file::{self, Resolve};
use coracle_sys::{Errno, Result, identity, quota, touch};
use nix::libc;

/// The deepest directory that is gone into. Each on the way is open.
const DEEPEST: usize = 512;

/// What a disk counts in (stat(2)).
const BLOCK: u64 = 512;

/// How much the files below `paths` take on the disk, each file once however many names it has; what is mounted in there
/// left out. They are those with the numbers `inodes`, where these are known.
///
/// # Errors
/// `ETIMEDOUT` after `limit`; `ENOENT` and `ESTALE` where one is gone or another is in its place; `ELOOP` for directories that are
/// deeper than anybody makes them.
pub(super) fn usage(paths: &[PathBuf], inodes: &[(u64, u64)], limit: Duration) -> Result<u64> {
    let answer = touch::within(limit, &[], || {
        let mut sum = Sum::default();
        for (i, path) in paths.iter().enumerate() {
            if inodes.get(i).is_some_and(|known| self::inodes(&paths[i..=i]).is_ok_and(|now| now != [*known]))
            {
                return Err(coracle_sys::Error::new(format!("openat2({path:?}, …)"), Errno::ESTALE));
            }
            through(path, libc::O_PATH, |file, stat| sum.add(file, stat))?;
        }
        Ok(sum.bytes.to_le_bytes().to_vec())
    })?;
    let bytes = answer.try_into().map_err(|_| coracle_sys::Error::new("read()", Errno::EIO))?;
    Ok(u64::from_le_bytes(bytes))
}

/// The device and the number of each of the directories `paths`.
///
/// # Errors
/// `ENOENT`, `ENOTDIR`.
pub(super) fn inodes(paths: &[PathBuf]) -> Result<Vec<(u64, u64)>> {
    let of = |path: &PathBuf| {
        file::open_dir(path).and_then(|dir| file::stat(dir.as_fd())).map(|stat| (stat.st_dev, stat.st_ino))
    };
    paths.iter().map(of).collect()
}

/// Makes all files below `path` ones of the project `id`.
///
/// # Errors
/// As [`usage`], and what the kernel says of projects.
pub(super) fn assign(path: &Path, id: u32, limit: Duration) -> Result<()> {
    let assigned = touch::within(limit, &[], || {
        through(path, libc::O_RDONLY | libc::O_NONBLOCK, |file, stat| {
            let kind = stat.st_mode & libc::S_IFMT;
            // The kernel has projects for these alone; what else there is takes no room.
            let is_directory = kind == libc::S_IFDIR;
            if is_directory || kind == libc::S_IFREG {
                quota::set_project(file, id, is_directory)
            } else {
                Ok(())
            }
        })
        .map(|()| Vec::new())
    });
    assigned.map(drop)
}

#[derive(Default)]
struct Sum {
    bytes: u64,
    /// Files with more than one name.
    seen: BTreeSet<u64>,
}

impl Sum {
    fn add(&mut self, _: BorrowedFd<'_>, stat: &libc::stat) -> Result<()> {
        let is_directory = stat.st_mode & libc::S_IFMT == libc::S_IFDIR;
        if is_directory || stat.st_nlink == 1 || self.seen.insert(stat.st_ino) {
            self.bytes += stat.st_blocks.cast_unsigned() * BLOCK;
        }
        Ok(())
    }
}

/// A directory on the way, and what in it is still to be looked at.
struct Level {
    dir: OwnedFd,
    names: Vec<OsString>,
}

/// Does `visit` to the directory `path` and to all in it, opened: for reading where it is a directory, with the flags `how` where
/// it is a regular file (whose owner can hold up who opens it to read: fcntl(2), "Leases"), else not. What goes away meanwhile is
/// passed over.
fn through(
    path: &Path,
    how: i32,
    mut visit: impl FnMut(BorrowedFd<'_>, &libc::stat) -> Result<()>,
) -> Result<()> {
    let _ = identity::raise_to_hard_limit("RLIMIT_NOFILE");
    let top = file::open_dir(path)?;
    let device = file::stat(top.as_fd())?.st_dev;
    visit(top.as_fd(), &file::stat(top.as_fd())?)?;
    let mut levels = vec![Level { names: file::list(top.as_fd())?, dir: top }];
    while let Some(level) = levels.last_mut() {
        let Some(name) = level.names.pop() else {
            levels.pop();
            continue;
        };
        let gone = |e: &coracle_sys::Error| e.errno() == Errno::ENOENT;
        let stat = match file::stat_at(level.dir.as_fd(), &name) {
            Err(e) if gone(&e) => continue,
            stat => stat?,
        };
        let kind = stat.st_mode & libc::S_IFMT;
        let flags = match kind {
            libc::S_IFDIR => libc::O_DIRECTORY,
            libc::S_IFREG => how,
            _ => libc::O_PATH,
        };
        // Opened, it is what it is, whatever its name meant before.
        let opened = file::open(level.dir.as_fd(), &name, flags | libc::O_NOFOLLOW, 0, Resolve::Beneath);
        let opened = match opened {
            Err(e) if gone(&e) || matches!(e.errno(), Errno::ELOOP | Errno::ENOTDIR | Errno::ENXIO) => {
                continue;
            }
            opened => opened?,
        };
        let stat = file::stat(opened.as_fd())?;
        if stat.st_dev != device {
            continue;
        }
        visit(opened.as_fd(), &stat)?;
        if kind == libc::S_IFDIR && stat.st_mode & libc::S_IFMT == libc::S_IFDIR {
            let names = file::list(opened.as_fd())?;
            if levels.len() == DEEPEST {
                return Err(coracle_sys::Error::new(format!("openat2({path:?}, …)"), Errno::ELOOP));
            }
            levels.push(Level { names, dir: opened });
        }
    }
    Ok(())
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "tests lay out files on the host")]
mod tests {
    use std::fs;

    use super::*;

    fn sum(path: &Path) -> u64 {
        let mut sum = Sum::default();
        through(path, libc::O_PATH, |file, stat| sum.add(file, stat)).unwrap();
        sum.bytes
    }

    #[test]
    fn each_file_is_counted_once_and_no_link_is_followed() {
        let dir = tempfile::tempdir().unwrap();
        let empty = sum(dir.path());
        fs::write(dir.path().join("file"), vec![1; 64 << 10]).unwrap();
        fs::hard_link(dir.path().join("file"), dir.path().join("other-name")).unwrap();
        fs::create_dir(dir.path().join("below")).unwrap();
        std::os::unix::fs::symlink("/usr", dir.path().join("below/link")).unwrap();
        std::os::unix::fs::symlink("..", dir.path().join("below/loop")).unwrap();
        let grown = sum(dir.path()) - empty;
        assert!((64 << 10..80 << 10).contains(&grown), "{grown}");
    }

    #[test]
    fn directories_that_are_too_deep_are_told_of() {
        let dir = tempfile::tempdir().unwrap();
        let deep = (0..DEEPEST).fold(dir.path().to_owned(), |path, _| path.join("d"));
        fs::create_dir_all(&deep).unwrap();
        let error = through(dir.path(), libc::O_PATH, |_, _| Ok(())).unwrap_err();
        assert_eq!(error.errno(), Errno::ELOOP);
    }
}
