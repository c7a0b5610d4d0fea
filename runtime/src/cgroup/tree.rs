//! A container's cgroups, open: entering them, and what lives in them.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use coracle_isolator::Cgroup;
use coracle_sys::file::{self, Resolve};
use coracle_sys::{Errno, process};

use super::{Hierarchy, LONGEST, Version};
use crate::error::{Context, Result};

/// How many processes are held open at once to be signalled.
const MOST_AT_ONCE: usize = 256;

/// A container's cgroups, open.
#[derive(Debug)]
pub struct Tree {
    pub(super) version: Version,
    pub(super) dirs: Vec<(Hierarchy, OwnedFd)>,
    /// Why some were not made that the container can do without.
    pub(super) refused: Option<String>,
}

impl Tree {
    /// No cgroups at all, for a machine or a user that has none.
    pub fn none() -> Self {
        Self { version: Version::V1, dirs: Vec::new(), refused: None }
    }

    /// The unified directory, which a child is cloned into.
    pub fn unified(&self) -> Option<BorrowedFd<'_>> {
        self.dirs.iter().find(|(h, _)| h.unified).map(|(_, dir)| dir.as_fd())
    }

    /// Moves the calling process, which must have one thread, into the version 1 hierarchies.
    ///
    /// # Errors
    /// `ENOSPC` where a cpuset has no CPU, `EPERM`.
    pub fn enter(&self) -> Result<()> {
        for (hierarchy, dir) in self.dirs.iter().filter(|(h, _)| !h.unified) {
            file::write_to(dir.as_fd(), "tasks", b"0", Resolve::Beneath)
                .context(|| format!("entering the container's cgroup in hierarchy {:?}", hierarchy.name))?;
        }
        Ok(())
    }

    /// The numbers of the open directories: what a child must not close before it has entered them.
    pub fn descriptors(&self) -> impl Iterator<Item = i32> {
        self.dirs.iter().map(|(_, dir)| dir.as_raw_fd())
    }

    /// The same directories, as the isolators get them.
    pub fn into_handles(self) -> Cgroup {
        let dirs = self.dirs.into_iter().map(|(hierarchy, dir)| (hierarchy.controllers(), dir)).collect();
        Cgroup::new(self.version.into(), dirs).lacking(self.refused)
    }

    /// Whether a process lives in the cgroups or below: asked of the unified tree where there is one, which
    /// knows (`cgroup.events`), else of every hierarchy.
    ///
    /// # Errors
    /// Whatever reading says.
    pub fn is_populated(&self) -> Result<bool> {
        let Some(dir) = self.unified() else { return Ok(!self.processes()?.is_empty()) };
        let events = match file::read(dir, "cgroup.events", LONGEST, Resolve::Beneath) {
            Err(e) if is_gone(e.errno()) => return Ok(false),
            other => other?,
        };
        Ok(String::from_utf8_lossy(&events).lines().any(|line| line == "populated 1"))
    }

    /// The PIDs of all processes in the cgroups and below, each once.
    ///
    /// # Errors
    /// Whatever reading says.
    pub fn processes(&self) -> Result<Vec<i32>> {
        let mut found = Vec::new();
        for (_, dir) in &self.dirs {
            found.extend(processes_below(dir.as_fd())?);
        }
        found.sort_unstable();
        found.dedup();
        Ok(found)
    }

    /// Sends `signal` to every process: by `cgroup.kill` where the kernel has it (Linux 5.14, version 2) and
    /// the signal is `SIGKILL`, else one by one.
    ///
    /// # Errors
    /// Whatever reading says; a process that is gone is no error.
    pub fn signal_all(&self, signal: i32) -> Result<()> {
        if signal != libc::SIGKILL {
            return self.signal_each(signal);
        }
        let by_kernel = self.unified().map(|dir| file::write_to(dir, "cgroup.kill", b"1", Resolve::Beneath));
        let killed = if let Some(Ok(())) = by_kernel {
            Ok(())
        } else {
            // Who is frozen does not fork, so that nobody is missed.
            self.freeze_to_kill();
            self.signal_each(signal)
        };
        self.thaw_to_die();
        killed
    }

    /// A number may become another's between the reading and the signal. Whoever is still listed once its descriptor is open
    /// is meant.
    fn signal_each(&self, signal: i32) -> Result<()> {
        for some in self.processes()?.chunks(MOST_AT_ONCE) {
            let mut opened = Vec::new();
            for pid in some {
                match process::pidfd(*pid) {
                    Err(e) if e.errno() == Errno::ESRCH => {}
                    pidfd => opened.push((pid, pidfd?)),
                }
            }
            let listed = self.processes()?;
            for (_, pidfd) in opened.iter().filter(|(pid, _)| listed.binary_search(pid).is_ok()) {
                match process::signal(pidfd.as_fd(), signal) {
                    Err(e) if e.errno() != Errno::ESRCH => return Err(e.into()),
                    _ => {}
                }
            }
        }
        Ok(())
    }
}

/// The cgroups in the cgroup `dir`: its entries that are directories. One that is gone has none.
pub(super) fn children(dir: BorrowedFd<'_>) -> Result<Vec<std::ffi::OsString>> {
    let mut found = Vec::new();
    let names = match file::list(dir) {
        Err(e) if is_gone(e.errno()) => return Ok(found),
        names => names?,
    };
    for name in names {
        if file::stat_at(dir, &name).is_ok_and(|s| s.st_mode & libc::S_IFMT == libc::S_IFDIR) {
            found.push(name);
        }
    }
    Ok(found)
}

/// Whether a file of a cgroup that is open could not be read because somebody, systemd perhaps, has removed the cgroup.
fn is_gone(errno: Errno) -> bool {
    matches!(errno, Errno::ENODEV | Errno::ENOENT)
}

pub(super) fn processes_below(dir: BorrowedFd<'_>) -> Result<Vec<i32>> {
    let mut found = Vec::new();
    each(dir, |cgroup| {
        match file::read(cgroup, "cgroup.procs", LONGEST, Resolve::Beneath) {
            Ok(text) => found.extend(pids(&text)),
            Err(e) if is_gone(e.errno()) => {}
            // A threaded cgroup: its processes are listed by the one above that is not.
            Err(e) if e.errno() == Errno::EOPNOTSUPP => {}
            Err(e) => return Err(e.into()),
        }
        Ok(())
    })?;
    Ok(found)
}

/// The processes that `cgroup.procs` lists. A process of another PID namespace, or one that has ended meanwhile, is a 0:
/// sent a signal, the caller's own process group.
pub(super) fn pids(text: &[u8]) -> Vec<i32> {
    let text = String::from_utf8_lossy(text);
    text.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 0).collect()
}

/// Calls `visit` with the cgroup `top` and with each below it. A container can make them thousands deep, so no more than
/// two are open at a time.
pub(super) fn each(top: BorrowedFd<'_>, mut visit: impl FnMut(BorrowedFd<'_>) -> Result<()>) -> Result<()> {
    visit(top)?;
    let mut here = file::open(top, ".", libc::O_DIRECTORY, 0, Resolve::Beneath)?;
    let mut waiting = vec![children(top)?];
    while let Some(names) = waiting.last_mut() {
        let Some(name) = names.pop() else {
            waiting.pop();
            if !waiting.is_empty() {
                here = above(here.as_fd())?;
            }
            continue;
        };
        let below = match file::open(here.as_fd(), &name, libc::O_DIRECTORY, 0, Resolve::BeneathNoLinks) {
            Err(e) if is_gone(e.errno()) => continue,
            below => below?,
        };
        visit(below.as_fd())?;
        let names = children(below.as_fd())?;
        if !names.is_empty() {
            here = below;
            waiting.push(names);
        }
    }
    Ok(())
}

/// The cgroup above `dir`. The kernel moves none to another parent, so this leads back to where one came from.
pub(super) fn above(dir: BorrowedFd<'_>) -> Result<OwnedFd> {
    Ok(file::open(dir, "..", libc::O_DIRECTORY, 0, Resolve::Host)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_can_not_be_named_is_none() {
        assert_eq!(pids(b"12\n0\n34\n"), [12, 34]);
    }
}
