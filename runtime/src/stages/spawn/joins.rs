//! Opening the namespaces that are joined by path.

use std::os::fd::{AsFd, OwnedFd};

use coracle_sys::file::{self, Resolve};
use coracle_sys::namespace;

use crate::error::{Code, Context, Error, Result};
use crate::init::join::Joined;
use crate::stages::plan::namespaces::{Join, Namespaces, name_of};

/// Opens the namespaces that `namespaces` joins; a mount namespace, which is joined last of all, by itself.
///
/// # Errors
/// `InvalidSpec`, with the field, for a path that is no namespace, or one of another kind.
pub(super) fn open(namespaces: &Namespaces) -> Result<(Vec<Joined>, Option<Joined>)> {
    let open = |join: &Join| {
        let opened = open_one(join).map_err(|e| e.code_is(Code::InvalidSpec));
        let fd = opened.context(|| join.field.clone())?;
        Ok(Joined { kinds: join.kind, fd, name: format!("{} ({:?})", join.field, join.path) })
    };
    let mut joins = namespaces.join.iter().map(open).collect::<Result<Vec<_>>>()?;
    let mounts = joins.pop_if(|joined| joined.kinds == libc::CLONE_NEWNS);
    Ok((joins, mounts))
}

fn open_one(join: &Join) -> Result<OwnedFd> {
    let path = &join.path;
    // Anything else is looked at only: opening a FIFO waits, and opening a device may do something to it.
    let place = file::open(file::CWD, path, libc::O_PATH, 0, Resolve::Host)?;
    if file::file_system(place.as_fd())? != nix::sys::statfs::NSFS_MAGIC {
        return Err(Error::new(Code::InvalidSpec, format!("{path:?} is no namespace"))
            .hint("name a file like /proc/PID/ns/net"));
    }
    let fd = file::open(file::CWD, path, libc::O_RDONLY | libc::O_NONBLOCK, 0, Resolve::Host)?;
    let kind = namespace::kind(fd.as_fd())?;
    if kind != join.kind {
        let (kind, wanted) = (name_of(kind), name_of(join.kind));
        let why = format!("{path:?} is a {kind} namespace, not a {wanted} namespace");
        return Err(Error::new(Code::InvalidSpec, why));
    }
    Ok(fd)
}
