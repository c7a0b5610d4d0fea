//! Emptying and removing a container's cgroups.

use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use coracle_sys::file::{self, Resolve};
use coracle_sys::{Errno, process};

use super::tree::{above, children};
use super::{Place, is_absent, mount_point};
use crate::error::{Code, Context, Error, Result};

impl Place {
    /// Kills every process in the cgroups and below, and waits until all are gone.
    ///
    /// # Errors
    /// `System` where some are left after ten seconds, as a process in an uninterruptible wait would be.
    pub fn kill(&self) -> Result<()> {
        let tree = self.open()?;
        let deadline = Instant::now() + Duration::from_secs(10);
        let mut pause = Duration::from_micros(200);
        while tree.is_populated()? {
            tree.signal_all(libc::SIGKILL)?;
            process::reap_all();
            if Instant::now() > deadline {
                let left = tree.processes()?;
                return Err(Error::new(Code::System, format!("processes {left:?} can't be killed"))
                    .hint("they wait for the kernel; try again when what they wait for has come"));
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(50));
        }
        if let Some(unit) = &self.unit {
            // A scope whose last process is gone ends by itself. Stopping it makes systemd forget how it ended, and
            // is not worth keeping the container for where systemd doesn't answer.
            let _ = unit.stop();
        }
        Ok(())
    }

    /// Removes the cgroups, what the container made below them, and the parents that were made for it and
    /// that nobody else uses. What was there before the container stays, and what is gone already is no error.
    ///
    /// # Errors
    /// `EBUSY` where a process stays in a cgroup for two seconds.
    pub fn remove(&self) -> Result<()> {
        let root = mount_point()?;
        let mut first_failure = Ok(());
        for site in self.at.iter().filter(|site| site.keep < site.depth()) {
            let removed = remove_tree(root.as_fd(), &site.full()).context(|| {
                format!("removing cgroup {:?} in hierarchy {:?}", site.path, site.hierarchy.name)
            });
            first_failure = first_failure.and(removed);
            for parent in site.path.ancestors().skip(1).take(site.depth() - site.keep - 1) {
                if !is_parent_gone(root.as_fd(), &Path::new(&site.hierarchy.name).join(parent)) {
                    break; // another container is in it
                }
            }
        }
        first_failure
    }
}

/// Removes a cgroup that was made for one below it, unless that is in use. Nobody comes back for it, so where the kernel can't at
/// this moment (it may lack memory), it is asked again.
fn is_parent_gone(root: BorrowedFd<'_>, path: &Path) -> bool {
    for _ in 0..2 {
        match file::rmdir(root, path) {
            Ok(()) => return true,
            Err(e) if is_absent(e.errno()) => return true,
            Err(e) if e.errno() == Errno::EBUSY => return false,
            Err(_) => {}
        }
    }
    false
}

/// Removes a cgroup and all below it. A process that has been killed is gone from its cgroup a moment after
/// it is reaped, so a busy one is tried again for as long as others go, and two seconds more.
fn remove_tree(root: BorrowedFd<'_>, path: &Path) -> Result<()> {
    let mut deadline = Instant::now() + Duration::from_secs(2);
    loop {
        let Some(failure) = busy(file::rmdir(root, path))? else { return Ok(()) };
        let dir = match file::open(root, path, libc::O_DIRECTORY, 0, Resolve::BeneathNoLinks) {
            Err(e) if is_absent(e.errno()) => return Ok(()),
            other => other?,
        };
        if remove_below(dir)? {
            deadline = Instant::now() + Duration::from_secs(2);
            continue;
        }
        if Instant::now() > deadline {
            return Err(failure.into());
        }
        std::thread::sleep(Duration::from_micros(500));
    }
}

/// Removes what is below the cgroup `top` and is not busy, the deepest first; returns whether there was any. A
/// container can make them thousands deep, so no more than two are open at a time.
fn remove_below(top: OwnedFd) -> Result<bool> {
    let mut any = false;
    let mut waiting = vec![children(top.as_fd())?];
    let mut way: Vec<OsString> = Vec::new();
    let mut here = top;
    while let Some(names) = waiting.last_mut() {
        if let Some(name) = names.pop() {
            if busy(file::rmdir(here.as_fd(), &name))?.is_none() {
                any = true;
                continue;
            }
            let below = match file::open(here.as_fd(), &name, libc::O_DIRECTORY, 0, Resolve::BeneathNoLinks) {
                Err(e) if is_absent(e.errno()) => continue,
                below => below?,
            };
            let names = children(below.as_fd())?;
            if !names.is_empty() {
                here = below;
                waiting.push(names);
                way.push(name);
            }
        } else {
            waiting.pop();
            let Some(name) = way.pop() else { break };
            here = above(here.as_fd())?;
            any |= busy(file::rmdir(here.as_fd(), &name))?.is_none();
        }
    }
    Ok(any)
}

/// What the removal of a cgroup failed with that is still in use; `None` where it is gone.
fn busy(removed: coracle_sys::Result<()>) -> Result<Option<coracle_sys::Error>> {
    match removed {
        Ok(()) => Ok(None),
        Err(e) if is_absent(e.errno()) => Ok(None),
        Err(e) if e.errno() == Errno::EBUSY => Ok(Some(e)),
        Err(e) => Err(e.into()),
    }
}
