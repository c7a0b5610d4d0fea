//! What is kept of the limits of a container, for whoever looks later: `STATE/HASH`.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use coracle_isolator::{Error, Result};
use coracle_sys::Errno;
use coracle_sys::file::{self, Resolve};
use nix::libc;
use serde::{Deserialize, Serialize};

use crate::{failed, is_owned, known_by, made, opened, owner};

/// The longest record, in bytes.
const LONGEST: u64 = 1 << 20;

const LOCK: &str = ".lock";

/// The limits of a container.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Record {
    /// A path that is there as long as the container is known.
    pub(super) owner: PathBuf,
    pub(super) limits: Vec<Limit>,
}

/// The limit of what is at one destination.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Limit {
    pub(super) destination: String,
    pub(super) bytes: u64,
    /// The directories of the host.
    pub(super) paths: Vec<PathBuf>,
    /// The device and the number of each where they are counted by name: another one in its place has not its files.
    #[serde(default)]
    pub(super) inodes: Vec<(u64, u64)>,
    /// The project that keeps it, where one does.
    pub(super) project: Option<u32>,
}

/// Where records are.
#[derive(Debug)]
pub(super) struct Records {
    pub(super) root: PathBuf,
    pub(super) state: PathBuf,
}

impl Records {
    pub(super) fn new(root: &Path, name: &str) -> Self {
        Self { root: root.to_owned(), state: Path::new(super::STATE).join(name) }
    }

    /// Has nobody else change what is on record, as long as what is returned is open.
    pub(super) fn lock(&self) -> Result<OwnedFd> {
        let locked = || -> coracle_sys::Result<OwnedFd> {
            let dir = made(&self.state)?;
            let flags = libc::O_RDONLY | libc::O_CREAT;
            let lock = file::open(dir.as_fd(), LOCK, flags, 0o600, Resolve::BeneathNoLinks)?;
            file::lock(lock.as_fd(), true)?;
            Ok(lock)
        };
        locked().map_err(|e| failed(e).on_path(self.state.to_string_lossy()))
    }

    /// Puts the limits of the container `id` on record.
    pub(super) fn write(&self, id: &str, limits: &[Limit]) -> Result<()> {
        let record = Record { owner: owner(&self.root, id), limits: limits.to_vec() };
        let text = serde_json::to_vec(&record).map_err(|e| Error::new(e.to_string()))?;
        let dir = made(&self.state).map_err(failed)?;
        file::replace_synced(dir.as_fd(), &known_by(&self.root, id), &text, 0o600).map_err(failed)
    }

    /// The limits of the container `id`; none where it is not known.
    pub(super) fn of(&self, id: &str) -> Result<Vec<Limit>> {
        self.read(&known_by(&self.root, id))
            .map(|record| record.map_or_else(Vec::new, |record| record.limits))
    }

    fn read(&self, name: &str) -> Result<Option<Record>> {
        let Some(dir) = opened(&self.state)? else { return Ok(None) };
        match file::read(dir.as_fd(), name, LONGEST, Resolve::BeneathNoLinks) {
            Err(e) if e.errno() == Errno::ENOENT => Ok(None),
            text => {
                let record = serde_json::from_slice(&text.map_err(failed)?);
                record.map(Some).map_err(|e| Error::new(format!("{:?}: {e}", self.state.join(name))))
            }
        }
    }

    /// All of them, by name.
    pub(super) fn all(&self) -> Result<Vec<(String, Record)>> {
        let Some(dir) = opened(&self.state)? else { return Ok(Vec::new()) };
        let names = file::list(dir.as_fd()).map_err(failed)?;
        let names = names.iter().filter_map(|name| name.to_str()).filter(|name| !name.starts_with('.'));
        names.filter_map(|name| Some(self.read(name).transpose()?.map(|r| (name.to_owned(), r)))).collect()
    }

    /// The projects that are on record.
    pub(super) fn projects(&self) -> Result<BTreeSet<u32>> {
        let all = self.all()?;
        Ok(all.iter().flat_map(|(_, record)| &record.limits).filter_map(|limit| limit.project).collect())
    }

    /// The names of those whose owners are gone.
    pub(super) fn left(&self) -> Result<Vec<String>> {
        let all = self.all()?.into_iter();
        Ok(all.filter(|(_, record)| !is_owned(&record.owner)).map(|(name, _)| name).collect())
    }

    /// Forgets the record `name`. One that is not there is no failure.
    pub(super) fn forget(&self, name: &str) -> Result<()> {
        let Some(dir) = opened(&self.state)? else { return Ok(()) };
        match file::unlink(dir.as_fd(), name) {
            Err(e) if e.errno() != Errno::ENOENT => Err(failed(e)),
            _ => Ok(()),
        }
    }
}
