//! User namespaces that are there for their maps alone: those of mounts whose files have other owners inside.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use coracle_sys::file::{self, Resolve};
use coracle_sys::{Errno, descriptor, mount, process, socket};

use crate::error::{Code, Context, Error, Result};

/// How the owners of a mount's files are mapped.
#[derive(Debug)]
pub struct Owners {
    mounting: String,
    namespace: OwnedFd,
    recursive: bool,
}

impl Owners {
    /// By the maps of the user namespace `namespace`; those of what is mounted below, too, if `recursive`. Errors tell that
    /// `mounting` failed.
    pub fn new(mounting: String, namespace: OwnedFd, recursive: bool) -> Self {
        Self { mounting, namespace, recursive }
    }

    /// Maps the owners in `tree`, which is detached.
    ///
    /// # Errors
    /// `Unsupported` where its file system maps none, `System` where the caller has no rights over that.
    pub fn map(&self, tree: BorrowedFd<'_>) -> Result<()> {
        let mapped = mount::set_idmap(tree, self.namespace.as_fd(), self.recursive).map_err(Error::from);
        let mapped = mapped.map_err(|e| match e.errno() {
            Some(Errno::EINVAL) => e.code_is(Code::Unsupported).hint("does this file system map owners?"),
            _ => e,
        });
        mapped.context(|| "mapping the owners of its files").context(|| self.mounting.clone())
    }
}

/// A user namespace with these maps, each as `/proc/PID/uid_map` wants it.
///
/// # Errors
/// `EINVAL` where the kernel refuses a map, `EPERM` for a caller without privilege.
pub fn user_namespace(uid_map: &str, gid_map: &str) -> Result<OwnedFd> {
    let (keep, give) = socket::pair()?;
    // It holds the namespace until this end of the pair is closed, and be it by this process's death.
    let child = process::spawn(libc::CLONE_NEWUSER, None, || {
        let waited =
            descriptor::close_all_but(&[give.as_raw_fd()]).and_then(|()| socket::receive(give.as_fd(), 0));
        i32::from(waited.is_err())
    });
    let child = child.context(|| "cloning a process for a user namespace")?;
    drop(give);
    let opened = mapped(child.pid, uid_map, gid_map);
    drop(keep);
    process::wait(child.pidfd.as_fd())?;
    opened
}

/// Maps the users of the namespace of the child `pid`, and opens it. The child can't have been awaited, so its PID is
/// its own.
fn mapped(pid: i32, uid_map: &str, gid_map: &str) -> Result<OwnedFd> {
    let dir = file::open_dir(format!("/proc/{pid}"))?;
    file::write_to(dir.as_fd(), "gid_map", gid_map.as_bytes(), Resolve::Beneath)?;
    file::write_to(dir.as_fd(), "uid_map", uid_map.as_bytes(), Resolve::Beneath)?;
    // A file of namespaces is a magic link.
    Ok(file::open(dir.as_fd(), "ns/user", 0, 0, Resolve::Host)?)
}
