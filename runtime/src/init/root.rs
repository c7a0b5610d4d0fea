//! The container's root as it is filled: how everything below it is reached.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use coracle_sys::Errno;
use coracle_sys::file::{self, Resolve};

use crate::error::{Code, Error, Result};
use crate::stages::plan::mounts::MountPlan;

/// The container's root, and the kernel's own file systems that were mounted in it. What is below one of these is
/// looked up from that very mount: whoever can rename things in the root file system meanwhile could put a link in
/// place of the directory it was mounted on, and what is to be covered would seem not to be there.
pub(super) struct Root {
    fd: OwnedFd,
    kernel: Vec<(PathBuf, OwnedFd)>,
}

impl Root {
    pub(super) fn new(fd: OwnedFd) -> Self {
        Self { fd, kernel: Vec::new() }
    }

    /// Takes note of the mount `made`, which was attached as `plan` says.
    pub(super) fn mounted(&mut self, plan: &MountPlan, made: OwnedFd) {
        self.kernel.retain(|(path, _)| !path.starts_with(&plan.target));
        if plan.shows_kernel() {
            self.kernel.push((plan.target.clone(), made));
        }
    }

    /// Where the way to `path` begins, and the rest of the way (`.` where there is none).
    pub(super) fn way<'a>(&self, path: &'a Path) -> (BorrowedFd<'_>, &'a Path) {
        let mut ways = self.kernel.iter().filter_map(|(top, fd)| Some((fd, path.strip_prefix(top).ok()?)));
        match ways.next_back() {
            Some((fd, rest)) if rest == Path::new("") => (fd.as_fd(), Path::new(".")),
            Some((fd, rest)) => (fd.as_fd(), rest),
            None => (self.fd.as_fd(), path),
        }
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

    /// The directory `path`, made where it is missing, with no link on the way to it.
    pub(super) fn real_directory(&self, path: &Path) -> Result<OwnedFd> {
        file::mkdir_all_no_links(self.fd.as_fd(), path, 0o755).map_err(|e| {
            let is_link = e.errno() == Errno::ELOOP;
            let error = Error::from(e);
            if !is_link {
                return error;
            }
            Error::new(Code::InvalidSpec, "a symbolic link is in the way")
                .hint("procfs and sysfs are mounted on real directories only")
        })
    }

    pub(super) fn into_fd(self) -> OwnedFd {
        self.fd
    }
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The directory or file `path` below `top` to mount on; made where it is missing.
pub(super) fn target(top: BorrowedFd<'_>, path: &Path, is_dir: bool) -> Result<OwnedFd> {
    if is_dir {
        return Ok(file::mkdir_all(top, path, 0o755)?);
    }
    match file::open(top, path, libc::O_PATH, 0, Resolve::InRoot) {
        Err(e) if e.errno() == Errno::ENOENT => {}
        other => return Ok(other?),
    }
    let parent = file::mkdir_all(top, path.parent().unwrap_or(Path::new("")), 0o755)?;
    let name = path.file_name().ok_or_else(|| Error::new(Code::InvalidSpec, "it has no name"))?;
    match file::mknod(parent.as_fd(), name, libc::S_IFREG | 0o644, 0) {
        Err(e) if e.errno() != Errno::EEXIST => return Err(e.into()),
        _ => {}
    }
    // A dangling link of that name is followed no further: what it names is not there to be covered.
    Ok(file::open(top, path, libc::O_PATH, 0, Resolve::InRoot)?)
}
