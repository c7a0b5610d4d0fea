//! Emptying and removing a container's cgroups.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use coracle_sys::file::{self, Resolve};
use coracle_sys::{Errno, process};

use super::tree::children;
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
/// it is reaped, so a busy one is tried again.
fn remove_tree(root: BorrowedFd<'_>, path: &Path) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(2);
    loop {
        let failure = match file::rmdir(root, path) {
            Ok(()) => return Ok(()),
            Err(e) if is_absent(e.errno()) => return Ok(()),
            Err(e) if e.errno() == Errno::EBUSY => e,
            Err(e) => return Err(e.into()),
        };
        let dir = match file::open(root, path, libc::O_DIRECTORY, 0, Resolve::BeneathNoLinks) {
            Err(e) if is_absent(e.errno()) => return Ok(()),
            other => other?,
        };
        for child in children(dir.as_fd())? {
            remove_tree(dir.as_fd(), Path::new(&child))?;
        }
        if Instant::now() > deadline {
            return Err(failure.into());
        }
        std::thread::sleep(Duration::from_micros(500));
    }
}
