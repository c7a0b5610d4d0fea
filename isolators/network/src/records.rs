//! What is known of attachments, on disk: it outlives the runtime, the container, and the machine's next start.
//!
//! `STATE/ID/` holds `record.json`, links to what is most needed of it, and the files that the container sees in `/etc`;
//! `STATE/.lock` is held together by those who attach and detach, and alone by those who collect; `STATE/.networks/NAME`
//! lists who is on a network; `STATE/.unreadable-ID` is a record that told nothing.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use coracle_isolator::{Error, Result};
use coracle_sys::archive::remove_tree;
use coracle_sys::file::{self, CWD, Resolve};
use coracle_sys::{Errno, mount};
use nix::sys::statfs::NSFS_MAGIC;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::conflist::Conflist;
use crate::failed;
use crate::wanted::Wanted;

const RECORD: &str = "record.json";
const LOCK: &str = ".lock";
const NETWORKS: &str = ".networks";
const OWNER: &str = "owner";
const NAMESPACE: &str = "namespace";

/// The longest record, and the longest list of a network's members, in bytes.
const LONGEST: u64 = 16 << 20;

/// What is known of a container, or a sandbox, on networks.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Record {
    /// What plugins know it by.
    pub(crate) id: String,
    /// A path that is there as long as somebody knows of it.
    pub(crate) owner: PathBuf,
    /// Where its network namespace is held by a mount.
    pub(crate) namespace: PathBuf,
    /// The start of the machine in which that holds (`/proc/sys/kernel/random/boot_id`).
    pub(crate) boot: String,
    /// What others call it.
    pub(crate) names: Vec<String>,
    /// What it asks for.
    pub(crate) wanted: Wanted,
    /// Its networks.
    pub(crate) attachments: Vec<Attachment>,
    /// Whether it was to be detached: what is left of it is owed, whoever still knows of it.
    #[serde(default)]
    pub(crate) is_leaving: bool,
}

/// A network of a container.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Attachment {
    /// The network as it was configured then: it is left as it was entered.
    pub(crate) network: Conflist,
    /// The interface.
    pub(crate) interface: String,
    /// What its plugins were told at run time.
    pub(crate) runtime: Map<String, Value>,
    /// Whether ADD was about to be called. Written before it was.
    pub(crate) begun: bool,
    /// What ADD came to so far.
    pub(crate) result: Option<Value>,
}

impl Record {
    /// Its network namespace, as long as that is held.
    pub(crate) fn living_namespace(&self) -> Option<&Path> {
        let held = file::open(CWD, &self.namespace, libc::O_PATH, 0, Resolve::Host)
            .and_then(|fd| file::file_system(fd.as_fd()));
        let is_held = held.is_ok_and(|kind| kind == NSFS_MAGIC) && boot().is_ok_and(|now| now == self.boot);
        is_held.then_some(self.namespace.as_path())
    }

    /// Whether somebody still knows of it.
    pub(crate) fn is_owned(&self) -> bool {
        let found = file::open(CWD, &self.owner, libc::O_PATH, 0, Resolve::Host);
        !matches!(found, Err(e) if matches!(e.errno(), Errno::ENOENT | Errno::ENOTDIR))
    }

    /// Holds the network namespace `namespace` by a mount.
    pub(crate) fn hold(&self, namespace: BorrowedFd<'_>) -> Result<()> {
        let held = || -> coracle_sys::Result<()> {
            let flags = libc::O_RDONLY | libc::O_CREAT | libc::O_NOFOLLOW;
            let target = file::open(CWD, &self.namespace, flags, 0o400, Resolve::Host)?;
            mount::attach(mount::clone_tree(namespace, Path::new(""), false)?.as_fd(), target.as_fd())
        };
        held().map_err(|e| failed(e).on_path(self.namespace.to_string_lossy()))
    }

    /// Lets it go.
    pub(crate) fn let_go(&self) -> Result<()> {
        while self.living_namespace().is_some() {
            mount::detach(&self.namespace).map_err(failed)?;
        }
        let (Some(parent), Some(name)) = (self.namespace.parent(), self.namespace.file_name()) else {
            return Ok(());
        };
        match file::open_dir(parent).and_then(|dir| file::unlink(dir.as_fd(), name)) {
            Err(e) if e.errno() != Errno::ENOENT => Err(failed(e)),
            _ => Ok(()),
        }
    }
}

/// This start of the machine.
pub(crate) fn boot() -> Result<String> {
    coracle_sys::machine::boot().map_err(failed)
}

/// The records of a directory, with its lock.
#[derive(Debug)]
pub(crate) struct Records {
    dir: OwnedFd,
    _lock: OwnedFd,
}

impl Records {
    /// Opens the records in `path`, as one of several at a time. `None` where there are none.
    pub(crate) fn open(path: &Path) -> Result<Option<Self>> {
        match file::open(CWD, path, libc::O_DIRECTORY, 0, Resolve::Host) {
            // Who may not look has put nothing there.
            Err(e) if [Errno::ENOENT, Errno::EACCES].contains(&e.errno()) => Ok(None),
            dir => Self::locked(dir.map_err(failed)?, file::lock_shared).map(Some),
        }
    }

    /// The same, with nobody else at them.
    pub(crate) fn open_alone(path: &Path) -> Result<Option<Self>> {
        match file::open(CWD, path, libc::O_DIRECTORY, 0, Resolve::Host) {
            Err(e) if e.errno() == Errno::ENOENT => Ok(None),
            dir => Self::locked(dir.map_err(failed)?, |fd| file::lock(fd, true)).map(Some),
        }
    }

    /// The same as [`open`](Self::open), after making the directory where there is none.
    pub(crate) fn make(path: &Path) -> Result<Self> {
        let made = || -> coracle_sys::Result<OwnedFd> {
            let root = file::open_dir("/")?;
            file::mkdir_all_no_links(root.as_fd(), path.strip_prefix("/").unwrap_or(path), 0o700)?;
            file::open_dir(path)
        };
        Self::locked(made().map_err(|e| failed(e).on_path(path.to_string_lossy()))?, file::lock_shared)
    }

    fn locked(dir: OwnedFd, take: impl Fn(BorrowedFd<'_>) -> coracle_sys::Result<()>) -> Result<Self> {
        let lock =
            file::open(dir.as_fd(), LOCK, libc::O_RDONLY | libc::O_CREAT, 0o600, Resolve::BeneathNoLinks);
        let lock = lock.and_then(|lock| take(lock.as_fd()).map(|()| lock)).map_err(failed)?;
        Ok(Self { dir, _lock: lock })
    }

    /// The directory of the container `id`, made where there is none.
    pub(crate) fn directory(&self, id: &str) -> Result<OwnedFd> {
        match file::mkdir(self.dir.as_fd(), id, 0o700) {
            Err(e) if e.errno() != Errno::EEXIST => Err(failed(e)),
            _ => file::open(self.dir.as_fd(), id, libc::O_DIRECTORY, 0, Resolve::BeneathNoLinks)
                .map_err(failed),
        }
    }

    /// The record of the container `id`.
    pub(crate) fn read(&self, id: &str) -> Result<Option<Record>> {
        let path = Path::new(id).join(RECORD);
        let text = match file::read(self.dir.as_fd(), path, LONGEST, Resolve::BeneathNoLinks) {
            Err(e) if e.errno() == Errno::ENOENT => return Ok(None),
            text => text.map_err(failed)?,
        };
        if text.is_empty() {
            // Written just before the power was cut: what it would tell of never ran.
            return Ok(None);
        }
        let record = serde_json::from_slice(&text);
        record
            .map(Some)
            .map_err(|e| Error::new(format!("the record of {id:?} on networks is malformed: {e}")))
    }

    /// Makes the record of a container that is about to be attached. Of its owner and its namespace there are links, too:
    /// whatever a cut of the power makes of a file, a link is there whole or not at all.
    pub(crate) fn begin(&self, record: &Record) -> Result<()> {
        let dir = self.directory(&record.id)?;
        for (name, target) in [(OWNER, &record.owner), (NAMESPACE, &record.namespace)] {
            let linked = match file::symlink(target, dir.as_fd(), name) {
                Err(e) if e.errno() == Errno::EEXIST => {
                    file::unlink(dir.as_fd(), name).and_then(|()| file::symlink(target, dir.as_fd(), name))
                }
                linked => linked,
            };
            linked.map_err(failed)?;
        }
        self.write(record)
    }

    /// What can be told of the container `id` without its record: all but its networks.
    pub(crate) fn remains(&self, id: &str) -> Option<Record> {
        let dir = file::open(self.dir.as_fd(), id, libc::O_DIRECTORY, 0, Resolve::BeneathNoLinks).ok()?;
        let linked = |name| file::read_link(dir.as_fd(), name).ok().map(PathBuf::from);
        Some(Record {
            id: id.to_owned(),
            owner: linked(OWNER)?,
            namespace: linked(NAMESPACE)?,
            boot: boot().ok()?,
            names: Vec::new(),
            wanted: Wanted::default(),
            attachments: Vec::new(),
            is_leaving: false,
        })
    }

    /// Moves a record that can't be read aside, and removes all else that is kept of the container `id`. What it is called
    /// now.
    pub(crate) fn set_aside(&self, id: &str) -> Result<String> {
        let aside = format!(".unreadable-{id}");
        let dir = self.directory(id)?;
        file::rename(dir.as_fd(), RECORD, self.dir.as_fd(), &aside).map_err(failed)?;
        self.remove(id)?;
        Ok(aside)
    }

    /// Replaces it: for as long as the machine runs.
    pub(crate) fn write(&self, record: &Record) -> Result<()> {
        let dir = self.directory(&record.id)?;
        file::replace(dir.as_fd(), RECORD, &text(record)?, 0o600).map_err(failed)
    }

    /// Replaces it, on the disk when it returns: what a container that runs has been given is to be given back also
    /// after the power was cut.
    pub(crate) fn write_synced(&self, record: &Record) -> Result<()> {
        let dir = self.directory(&record.id)?;
        file::replace_synced(dir.as_fd(), RECORD, &text(record)?, 0o600).map_err(failed)
    }

    /// Removes all that is kept of the container `id`.
    pub(crate) fn remove(&self, id: &str) -> Result<()> {
        remove_tree(self.dir.as_fd(), id).map_err(failed)
    }

    /// The IDs of all containers that are on record.
    pub(crate) fn ids(&self) -> Result<Vec<String>> {
        let names = file::list(self.dir.as_fd()).map_err(failed)?;
        let mut ids: Vec<String> = names.into_iter().filter_map(|name| name.into_string().ok()).collect();
        ids.retain(|id| !id.starts_with('.'));
        ids.sort_unstable();
        Ok(ids)
    }

    /// The directory of the networks' members, locked against all others who change it.
    pub(crate) fn networks(&self) -> Result<OwnedFd> {
        let opened = || -> coracle_sys::Result<OwnedFd> {
            let dir = file::mkdir_all_no_links(self.dir.as_fd(), NETWORKS, 0o700)?;
            let dir = file::open(dir.as_fd(), ".", libc::O_DIRECTORY, 0, Resolve::Beneath)?;
            file::lock(dir.as_fd(), true)?;
            Ok(dir)
        };
        opened().map_err(failed)
    }
}

fn text(record: &Record) -> Result<Vec<u8>> {
    serde_json::to_vec(record).map_err(|e| Error::new(e.to_string()))
}
