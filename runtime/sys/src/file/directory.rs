//! The names in a directory: making, moving, removing and listing what they name.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path};

use nix::errno::Errno;

use crate::error::{Error, Result, check, named, show};
use crate::file::{Resolve, open};
use crate::mount::c_string;

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

/// Gives two files in `dir` each other's names (renameat2(2), `RENAME_EXCHANGE`, Linux 3.15).
pub(super) fn exchange(dir: BorrowedFd<'_>, one: &str, other: &str) -> Result<()> {
    let (from, to) = (c_string(one.as_bytes(), "renameat2")?, c_string(other.as_bytes(), "renameat2")?);
    let fd = dir.as_raw_fd();
    // SAFETY: both names are C strings that outlive the call.
    let ret = unsafe {
        libc::syscall(libc::SYS_renameat2, fd, from.as_ptr(), fd, to.as_ptr(), libc::RENAME_EXCHANGE)
    };
    check(ret, || format!("renameat2({}, {one:?}, {other:?}, RENAME_EXCHANGE)", show(&dir))).map(drop)
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
    loop {
        match nix::unistd::unlinkat(dir, name, flags) {
            Err(Errno::EINTR) => {} // what is undone in passing has nobody who would try again
            removed => return named(removed, || format!("unlinkat({}, {name:?})", show(&dir))),
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::remove_tree;
    use crate::file::{open_dir, stat, stat_at};

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
