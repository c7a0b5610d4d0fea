//! User namespaces that are there for their maps alone: those of mounts whose files have other owners inside.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use coracle_sys::file::{self, Resolve};
use coracle_sys::{process, socket};

use crate::error::{Context, Result};

/// A user namespace with these maps, each as `/proc/PID/uid_map` wants it.
///
/// # Errors
/// `EINVAL` where the kernel refuses a map, `EPERM` for a caller without privilege.
pub fn user_namespace(uid_map: &str, gid_map: &str) -> Result<OwnedFd> {
    let (keep, give) = socket::pair()?;
    // It holds the namespace until this end of the pair is closed, and be it by this process's death.
    let child = process::spawn(libc::CLONE_NEWUSER, None, || {
        let waited =
            process::close_all_but(&[give.as_raw_fd()]).and_then(|()| socket::receive(give.as_fd(), 0));
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
