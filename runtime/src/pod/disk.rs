//! What containers of a pod can write and is on the disk: the directory of states is in memory, most often, and all pods'.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use coracle_isolator_volume::known_by;
use coracle_isolator_volume::owned::Owned;
use coracle_sys::Errno;
use coracle_sys::file::{self, Resolve};

use super::record::Directory;
use crate::error::{Context, Result};

/// Where pods have theirs.
const STATE: &str = "/var/lib/coracle/pods";

/// The directory of volumes in a pod's.
const VOLUMES: &str = "volumes";

/// The file that is mounted as `/etc/hosts`.
const HOSTS: &str = "hosts";

/// What a pod has on the disk; it goes with the pod's directory of states.
pub(super) struct Disk<'d> {
    name: String,
    owner: &'d Path,
}

impl<'d> Disk<'d> {
    /// That of the pod in `dir`.
    pub(super) fn of(dir: &'d Directory) -> Self {
        let owner = dir.path();
        Self { name: known_by(owner.parent().unwrap_or(owner), dir.name()), owner }
    }

    /// The path of its `hosts`.
    pub(super) fn hosts(&self) -> PathBuf {
        Owned::new(STATE).data(&self.name).join(HOSTS)
    }

    /// The path of a volume.
    pub(super) fn volume(&self, name: &str) -> PathBuf {
        Owned::new(STATE).data(&self.name).join(VOLUMES).join(name)
    }

    fn make(&self) -> Result<OwnedFd> {
        Owned::new(STATE).make(&self.name, self.owner).context(|| format!("making a directory in {STATE}"))
    }

    /// Writes its `hosts`.
    ///
    /// # Errors
    /// `ENOSPC`.
    pub(super) fn write_hosts(&self, text: &str) -> Result<()> {
        Ok(file::replace(self.make()?.as_fd(), HOSTS, text.as_bytes(), 0o644)?)
    }

    /// Makes an empty directory that every user of the pod, and the group `group`, can write to. One that is there stays.
    ///
    /// # Errors
    /// `ENOSPC`.
    pub(super) fn make_empty(&self, name: &str, group: Option<u32>) -> Result<()> {
        let volumes = file::mkdir_all_no_links(self.make()?.as_fd(), VOLUMES, 0o711)?;
        if file::stat_at(volumes.as_fd(), name).is_ok() {
            return Ok(());
        }
        // It has its name once it is whole. No volume's begins with a dot.
        let unfinished = format!(".{name}");
        match file::mkdir(volumes.as_fd(), &unfinished, 0o777) {
            Err(e) if e.errno() != Errno::EEXIST => return Err(e.into()),
            _ => {}
        }
        let dir = file::open(volumes.as_fd(), &unfinished, libc::O_DIRECTORY, 0, Resolve::BeneathNoLinks)?;
        group.map_or(Ok(()), |group| file::chown(dir.as_fd(), 0, group))?;
        // mkdir(2) minds the mask.
        file::chmod(dir.as_fd(), if group.is_some() { 0o2777 } else { 0o777 })?;
        Ok(file::rename(volumes.as_fd(), unfinished, volumes.as_fd(), name)?)
    }

    /// Removes all of it.
    ///
    /// # Errors
    /// Where something is mounted in it.
    pub(super) fn remove(&self) -> Result<()> {
        Ok(Owned::new(STATE).end(&self.name)?)
    }
}

/// Removes what pods have left that are gone.
///
/// # Errors
/// The first that can't be removed.
pub(super) fn recover() -> Result<()> {
    Owned::new(STATE).recover().map_err(crate::error::Error::from).context(|| "removing what pods have left")
}
