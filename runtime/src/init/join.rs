//! Leaving the host: the cgroups that are entered, the namespaces that are joined, the user that a process becomes in
//! a user namespace.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use coracle_sys::file::{self, Resolve};
use coracle_sys::{Errno, identity, namespace, process};

use crate::cgroup::Tree;
use crate::error::{Context, Error, Result};
use crate::stages::plan::Launch;

/// What a process leaves the host by.
#[derive(Debug, Clone, Copy)]
pub struct Host<'a> {
    /// The container's cgroups.
    pub cgroups: &'a Tree,
    /// The namespaces to join, but for a mount namespace alone.
    pub joins: &'a [Joined],
    /// Kinds of them that the runtime has joined already, for its next child.
    pub joined: i32,
}

/// An open namespace, or several of one process by its pidfd.
#[derive(Debug)]
pub struct Joined {
    /// The kinds (`CLONE_NEW*`).
    pub kinds: i32,
    /// The namespace or process.
    pub fd: OwnedFd,
    /// The field that names it, or what it is.
    pub name: String,
}

impl Host<'_> {
    /// The numbers of the descriptors that it holds.
    pub fn descriptors(&self) -> impl Iterator<Item = i32> {
        self.cgroups.descriptors().chain(self.joins.iter().map(|joined| joined.fd.as_raw_fd()))
    }

    /// Leaves the host: all that needs its procfs or its users comes first.
    ///
    /// # Errors
    /// What the kernel refuses, with the field.
    pub fn leave(&self, launch: &Launch) -> Result<()> {
        if let Some(adjustment) = launch.process.oom_score_adj {
            // The host's procfs: the container's own would be whatever its image makes of it.
            set_oom_score(adjustment).context(|| "setting /process/oomScoreAdj")?;
        }
        self.cgroups.enter()?;
        self.join_all()
    }

    /// Joins the namespaces. The others come before a user namespace, as far as the caller may: it has its own user's
    /// rights over them only until then. Those that need the rights of that user namespace come after it.
    fn join_all(&self) -> Result<()> {
        let one = |joined: &Joined| match joined.kinds & !self.joined {
            0 => Ok(()),
            kinds => joined.join(kinds),
        };
        let is_user = |joined: &&Joined| joined.kinds == libc::CLONE_NEWUSER;
        let Some(user) = self.joins.iter().find(is_user) else { return self.joins.iter().try_for_each(one) };
        let mut later = Vec::new();
        for joined in self.joins.iter().filter(|joined| !is_user(joined)) {
            match one(joined) {
                Err(e) if e.errno() == Some(Errno::EPERM) => later.push(joined),
                other => other?,
            }
        }
        one(user)?;
        later.into_iter().try_for_each(one)
    }
}

/// The first process of a container is born with the host's rights, and keeps its user out until it has given them up.
const NO_RIGHTS: &str = "this user has no rights in its user namespace; or the container waits for its `start`, and until then \
    root alone may join it";

impl Joined {
    /// Joins those of its namespaces that are of the kinds `kinds`. A PID namespace is joined for the caller's next
    /// children (pid_namespaces(7)).
    ///
    /// # Errors
    /// `EPERM`, with the field.
    pub fn join(&self, kinds: i32) -> Result<()> {
        namespace::join(self.fd.as_fd(), kinds)
            .map_err(Error::from)
            .map_err(|e| match e.errno() {
                Some(Errno::EPERM) => e.hint(NO_RIGHTS),
                _ => e,
            })
            .context(|| format!("joining {}", self.name))
    }
}

fn set_oom_score(adjustment: i32) -> Result<()> {
    let text = adjustment.to_string();
    // One whose users are still to be mapped is dumpable already, and must stay so.
    let is_lent = identity::caller() != 0 && !process::is_dumpable()?;
    if is_lent {
        process::dumpable()?;
    }
    let written = file::write_to(file::CWD, "/proc/self/oom_score_adj", text.as_bytes(), Resolve::Host);
    if is_lent {
        process::undumpable()?;
    }
    written.map_err(|e| match e.errno() {
        Errno::EACCES => {
            Error::from(e).hint("without privilege it can only be raised above the caller's own")
        }
        Errno::EINVAL => Error::from(e).hint(format!("{adjustment} is not between -1000 and 1000")),
        _ => e.into(),
    })
}

/// Makes a time namespace, sets its clocks while nobody is in it, and enters it.
///
/// # Errors
/// `EINVAL` where the kernel has none, `ERANGE` for an offset beyond what its clocks hold.
pub(super) fn new_time(offsets: &str) -> Result<()> {
    namespace::unshare(libc::CLONE_NEWTIME)?;
    if !offsets.is_empty() {
        file::write_to(file::CWD, "/proc/self/timens_offsets", offsets.as_bytes(), Resolve::Host)
            .context(|| "setting /linux/timeOffsets")?;
    }
    let made = file::open(file::CWD, "/proc/self/ns/time_for_children", 0, 0, Resolve::Host)?;
    namespace::join(made.as_fd(), libc::CLONE_NEWTIME).context(|| "entering the time namespace")
}

/// In a new user namespace a process is nobody until it becomes the root that was mapped for it; where none was, the
/// user that the program gets. Its capabilities stay.
pub(super) fn become_root(launch: &Launch) -> Result<()> {
    let become_user = |uid, gid| identity::set_group(gid).and_then(|()| identity::set_user(uid));
    match become_user(0, 0) {
        Err(e) if e.errno() == Errno::EINVAL => become_user(launch.process.uid, launch.process.gid)
            .map_err(Error::from)
            .map_err(|e| e.hint("is /process/user mapped in the user namespace?"))
            .context(|| "becoming root of the user namespace, or /process/user")?,
        other => other?,
    }
    // A caller without privilege was not so while its IDs were being mapped.
    Ok(process::undumpable()?)
}
