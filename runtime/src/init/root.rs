//! The container's root as it is filled: how everything below it is reached.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use coracle_sys::Errno;
use coracle_sys::file::{self, Resolve};
use coracle_sys::mount::{self, Attributes, attr};

use crate::error::{Code, Context, Error, Result};
use crate::stages::plan::mounts::MountPlan;

/// The container's root, and what was mounted in it that is needed again. What is below a file system of the kernel's
/// own is looked up from that very mount: whoever can rename things in the root file system meanwhile could put a link
/// in place of the directory it was mounted on, and what is to be covered would seem not to be there.
pub(super) struct Root {
    fd: OwnedFd,
    kept: Vec<Kept>,
}

struct Kept {
    path: PathBuf,
    fd: OwnedFd,
    /// Whether it shows what the kernel has to say, and what is below it is reached through it.
    shows_kernel: bool,
    /// Whether it is to be read-only in the end.
    read_only: bool,
}

impl Root {
    pub(super) fn new(fd: OwnedFd) -> Self {
        Self { fd, kept: Vec::new() }
    }

    /// Takes note of the mount `made`, which was attached as `plan` says.
    pub(super) fn mounted(&mut self, plan: &MountPlan, made: OwnedFd) {
        for covered in self.kept.iter_mut().filter(|kept| kept.path.starts_with(&plan.target)) {
            covered.shows_kernel = false;
        }
        let (shows_kernel, read_only) = (plan.shows_kernel(), plan.is_filled_later());
        if shows_kernel || read_only {
            self.kept.push(Kept { path: plan.target.clone(), fd: made, shows_kernel, read_only });
        }
    }

    /// Where the way to `path` begins, and the rest of the way (`.` where there is none).
    pub(super) fn way<'a>(&self, path: &'a Path) -> (BorrowedFd<'_>, &'a Path) {
        let kernel = self.kept.iter().filter(|kept| kept.shows_kernel);
        let mut ways = kernel.filter_map(|kept| Some((&kept.fd, path.strip_prefix(&kept.path).ok()?)));
        let (fd, rest) = ways.next_back().unwrap_or((&self.fd, path));
        (fd.as_fd(), if rest == Path::new("") { Path::new(".") } else { rest })
    }

    /// The file or directory `path`, or `None` where there is none.
    pub(super) fn existing(&self, path: &Path) -> Result<Option<OwnedFd>> {
        let (top, rest) = self.way(path);
        match file::open(top, rest, libc::O_PATH, 0, Resolve::InRoot) {
            Err(e) if matches!(e.errno(), Errno::ENOENT | Errno::ENOTDIR) => Ok(None),
            other => Ok(Some(other?)),
        }
    }

    /// The directory or file to mount on; made where it is missing.
    pub(super) fn target(&self, path: &Path, is_dir: bool) -> Result<OwnedFd> {
        let (top, rest) = self.way(path);
        target(top, rest, is_dir)
    }

    /// The same, but a link of that name is not followed.
    pub(super) fn target_itself(&self, path: &Path, is_dir: bool) -> Result<OwnedFd> {
        let (parent, name) = self.place(path)?;
        let open =
            || file::open(parent.as_fd(), name, libc::O_PATH | libc::O_NOFOLLOW, 0, Resolve::BeneathNoLinks);
        match open() {
            Err(e) if e.errno() == Errno::ENOENT && is_dir => file::mkdir(parent.as_fd(), name, 0o755)?,
            Err(e) if e.errno() == Errno::ENOENT => {
                file::mknod(parent.as_fd(), name, libc::S_IFREG | 0o644, 0)?;
            }
            other => return Ok(other?),
        }
        Ok(open()?)
    }

    /// The directory that holds `path`, made where it is missing, and the name in it.
    pub(super) fn place<'a>(&self, path: &'a Path) -> Result<(OwnedFd, &'a OsStr)> {
        let (top, rest) = self.way(path);
        place(top, rest)
    }

    /// The directory `path`, made where it is missing, with no link on the way to it.
    pub(super) fn real_directory(&self, path: &Path) -> Result<OwnedFd> {
        file::mkdir_all_no_links(self.fd.as_fd(), path, 0o755).map_err(|e| {
            let is_link = e.errno() == Errno::ELOOP;
            let error = Error::from(e);
            if !is_link {
                return error;
            }
            let why =
                format!("{path:?} must be mounted on ordinary directory: a symbolic link is in the way");
            Error::new(Code::InvalidSpec, why).hint("procfs and sysfs are mounted on nothing else")
        })
    }

    /// Gives what had to be filled first its last attribute, and lets go of all but the root itself.
    pub(super) fn finish(self) -> Result<OwnedFd> {
        let read_only = Attributes { set: attr::RDONLY, ..Attributes::default() };
        for kept in self.kept.iter().filter(|kept| kept.read_only) {
            mount::set_attributes(kept.fd.as_fd(), read_only, false)
                .context(|| format!("making {:?} read-only", Path::new("/").join(&kept.path)))?;
        }
        Ok(self.fd)
    }
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// How many links that lead to nothing are followed, as the kernel follows others (path_resolution(7)).
const MOST_LINKS: usize = 40;

/// The directory or file `path` below `top` to mount on; made where it is missing, and where a link leads to what is
/// missing, there.
pub(super) fn target(top: BorrowedFd<'_>, path: &Path, is_dir: bool) -> Result<OwnedFd> {
    if is_dir {
        return Ok(file::mkdir_all(top, path, 0o755)?);
    }
    let mut path = path.to_owned();
    for _ in 0..MOST_LINKS {
        match file::open(top, &path, libc::O_PATH, 0, Resolve::InRoot) {
            Err(e) if e.errno() == Errno::ENOENT => {}
            other => return Ok(other?),
        }
        let (parent, name) = place(top, &path)?;
        match file::mknod(parent.as_fd(), name, libc::S_IFREG | 0o644, 0) {
            Err(e) if e.errno() == Errno::EEXIST => {}
            other => other?,
        }
        if let Ok(content) = file::read_link(parent.as_fd(), name) {
            // Where it leads counts from its own directory, and never from above the container's root.
            path = path.parent().unwrap_or(Path::new("")).join(content);
        }
    }
    Err(Error::new(Code::InvalidSpec, "too many links are in the way"))
}

fn place<'a>(top: BorrowedFd<'_>, path: &'a Path) -> Result<(OwnedFd, &'a OsStr)> {
    let name = path.file_name().ok_or_else(|| Error::new(Code::InvalidSpec, "it has no name"))?;
    Ok((file::mkdir_all(top, path.parent().unwrap_or(Path::new("")), 0o755)?, name))
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "tests lay out files on the host")]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn what_a_link_leads_to_is_made_below_the_root() {
        let root = tempfile::tempdir().unwrap();
        let at = |path: &str| root.path().join(path);
        std::fs::create_dir(at("etc")).unwrap();
        symlink("/new/hosts", at("etc/hosts")).unwrap();
        symlink("../../../../above", at("etc/up")).unwrap();
        symlink("/etc/loop", at("etc/loop")).unwrap();
        let top = file::open_dir(root.path()).unwrap();
        target(top.as_fd(), Path::new("etc/hosts"), false).unwrap();
        target(top.as_fd(), Path::new("etc/up"), false).unwrap();
        assert!(at("new/hosts").is_file() && at("above").is_file());
        assert!(target(top.as_fd(), Path::new("etc/loop"), false).is_err());
    }
}
