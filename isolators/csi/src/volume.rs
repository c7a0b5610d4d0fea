//! A volume: what the operator says of it, and what is on record: `STATE/NAME` holds `record`, `lock`, `staging`, and
//! `targets/CONTAINER`, by what the container is [known by](crate::Csi::known_by). Nobody else does anything to a volume
//! while one is open.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use coracle_isolator::{Error, Result};
use coracle_sys::file::{self, Resolve};
use coracle_sys::{Errno, machine};
use nix::libc;
use serde::{Deserialize, Serialize};

use crate::messages::{AccessMode, COUNTS, EXPANDS, MountVolume, STAGES, VolumeCapability};
use crate::node::{About, Node};

/// The longest document, record or secret, in bytes.
const LONGEST: u64 = 1 << 20;

const RECORD: &str = "record";
const LOCK: &str = "lock";
const STAGING: &str = "staging";
const TARGETS: &str = "targets";

/// What the operator says of a volume.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Definition {
    /// The name of its driver.
    pub(crate) driver: String,
    /// What the driver knows it by.
    volume_id: String,
    #[serde(default)]
    fs_type: String,
    #[serde(default)]
    mount_flags: Vec<String>,
    #[serde(default)]
    access_mode: Mode,
    #[serde(default)]
    volume_context: BTreeMap<String, String>,
    #[serde(default)]
    publish_context: BTreeMap<String, String>,
    /// The name of a secret, which is read when the driver is asked, and kept nowhere.
    secret: Option<String>,
    /// How large it is to be made when it is shown.
    required_bytes: Option<i64>,
}

/// `VolumeCapability.AccessMode.Mode`.
#[derive(Debug, Default, Clone, Copy, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
enum Mode {
    #[default]
    SingleNodeWriter = 1,
    SingleNodeReaderOnly,
    MultiNodeReaderOnly,
    MultiNodeSingleWriter,
    MultiNodeMultiWriter,
    SingleNodeSingleWriter,
    SingleNodeMultiWriter,
}

impl Definition {
    pub(crate) fn read(directory: &Path, name: &str) -> Result<Self> {
        let is_name = name.starts_with(|c: char| c.is_ascii_alphanumeric())
            && name.len() <= 200
            && name.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c));
        if !is_name {
            return Err(Error::new(format!("{name:?} is no name of a volume")));
        }
        let path = directory.join(format!("{name}.json"));
        let text = file::read(file::CWD, &path, LONGEST, Resolve::Host).map_err(|e| match e.errno() {
            Errno::ENOENT => Error::new(format!("there is no volume {name:?} ({})", path.display())),
            _ => failed(e),
        })?;
        serde_json::from_slice(&text).map_err(|e| Error::new(format!("{}: {e}", path.display())))
    }

    fn capability(&self) -> VolumeCapability {
        VolumeCapability {
            mount: Some(MountVolume { fs_type: self.fs_type.clone(), mount_flags: self.mount_flags.clone() }),
            access_mode: Some(AccessMode { mode: self.access_mode as i32 }),
        }
    }

    /// What the driver needs to know and nobody else: the files of the secret, by name.
    pub(crate) fn secrets(&self, directory: &Path) -> Result<BTreeMap<String, String>> {
        let Some(name) = &self.secret else { return Ok(BTreeMap::new()) };
        let read = || -> coracle_sys::Result<BTreeMap<String, String>> {
            let all = file::open_dir(directory)?;
            let dir = file::open(all.as_fd(), name, libc::O_DIRECTORY, 0, Resolve::Beneath)?;
            let mut secrets = BTreeMap::new();
            for file_name in file::list(dir.as_fd())? {
                // What begins with a dot is how Kubernetes keeps versions.
                let name = file_name.to_string_lossy().into_owned();
                if !name.starts_with('.') {
                    let content = file::read(dir.as_fd(), &name, LONGEST, Resolve::Beneath)?;
                    secrets.insert(name, String::from_utf8_lossy(&content).into_owned());
                }
            }
            Ok(secrets)
        };
        read().map_err(|e| failed(e).on_path(directory.join(name).to_string_lossy()))
    }
}

/// What is on record. Nothing of a secret is.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    driver: String,
    volume: String,
    capabilities: Vec<i32>,
    /// Whether the driver has been asked to stage it, and whether it said that it did.
    staged: Progress,
    /// The containers that the driver has been asked to publish it for.
    users: BTreeSet<String>,
    /// The start of the machine in which all this holds; empty where an earlier version did not write it down.
    #[serde(default)]
    boot: String,
}

impl Record {
    /// Whether it holds no more, since the machine has started anew.
    fn is_over(&self) -> Result<bool> {
        Ok(!self.boot.is_empty() && machine::boot().map_err(failed)? != self.boot)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Progress {
    No,
    Begun,
    Done,
}

/// A volume, open.
#[derive(Debug)]
pub(crate) struct Volume {
    path: PathBuf,
    dir: OwnedFd,
    record: Record,
    _lock: OwnedFd,
}

impl Volume {
    /// Where the volume `name` is shown to the container `user`.
    pub(crate) fn target(state: &Path, name: &str, user: &str) -> PathBuf {
        state.join(name).join(TARGETS).join(user)
    }

    /// The names of those that are on record.
    pub(crate) fn names(state: &Path) -> Result<Vec<String>> {
        let dir = match file::open_dir(state) {
            Err(e) if e.errno() == Errno::ENOENT => return Ok(Vec::new()),
            dir => dir.map_err(failed)?,
        };
        let names = file::list(dir.as_fd()).map_err(failed)?;
        Ok(names.into_iter().filter_map(|name| name.into_string().ok()).collect())
    }

    /// Whether the volume `name` is on record as one of the container `user`'s, now.
    pub(crate) fn is_used(state: &Path, name: &str, user: &str) -> Result<bool> {
        match on_record(state, name) {
            // Others have nothing to do with a record that can't be read.
            Err(_) if !is_shown(state, name, user) => Ok(false),
            record => Ok(record?.is_some_and(|record| record.users.contains(user))),
        }
    }

    /// Whether the volume `name` is on record from before the machine's start.
    pub(crate) fn is_left(state: &Path, name: &str) -> Result<bool> {
        on_record(state, name)?.map_or(Ok(false), |record| record.is_over())
    }

    /// Opens the volume `name`, which may be a new one, as `definition` says.
    pub(crate) fn begin(state: &Path, name: &str, definition: &Definition) -> Result<Self> {
        let (dir, lock) = lock(state, name, true)?.ok_or_else(|| Error::new("somebody is at work on it"))?;
        let boot = machine::boot().map_err(failed)?;
        let new = || Record {
            driver: definition.driver.clone(),
            volume: definition.volume_id.clone(),
            capabilities: Vec::new(),
            staged: Progress::No,
            users: BTreeSet::new(),
            boot,
        };
        let record = read(&dir, name)?.unwrap_or_else(new);
        if (&record.driver, &record.volume) != (&definition.driver, &definition.volume_id) {
            return Err(Error::new(format!("volume {name:?} is in use, and was another when that began")));
        }
        Ok(Self { path: state.join(name), dir, record, _lock: lock })
    }

    /// Opens the volume `name`; nothing where none is on record, or somebody is at work on it and is not waited for.
    pub(crate) fn open(state: &Path, name: &str, wait: bool) -> Result<Option<Self>> {
        let Some((dir, lock)) = lock(state, name, wait)? else { return Ok(None) };
        let record = read(&dir, name)?;
        Ok(record.map(|record| Self { path: state.join(name), dir, record, _lock: lock }))
    }

    pub(crate) fn driver(&self) -> &str {
        &self.record.driver
    }

    pub(crate) fn is_used_by(&self, user: &str) -> bool {
        self.record.users.contains(user)
    }

    fn staging(&self) -> String {
        self.path.join(STAGING).to_string_lossy().into_owned()
    }

    fn target_of(&self, user: &str) -> String {
        self.path.join(TARGETS).join(user).to_string_lossy().into_owned()
    }

    fn keep(&self) -> Result<()> {
        let text = serde_json::to_vec(&self.record).map_err(|e| Error::new(e.to_string()))?;
        file::replace_synced(self.dir.as_fd(), RECORD, &text, 0o600).map_err(failed)
    }

    /// Shows the volume to the container `user`. What a driver is about to be asked is on record before.
    pub(crate) fn publish(
        &mut self,
        node: &Node,
        (definition, secrets): (&Definition, BTreeMap<String, String>),
        user: &str,
        readonly: bool,
    ) -> Result<()> {
        self.end_left(node)?;
        self.record.capabilities = node.capabilities()?;
        self.record.users.insert(user.to_owned());
        self.keep()?;
        let (staging, target) = (self.staging(), self.target_of(user));
        let (stages, capability) = (self.record.capabilities.contains(&STAGES), definition.capability());
        let volume = self.record.volume.clone();
        let about = About {
            volume: &volume,
            staging: if stages { &staging } else { "" },
            capability: &capability,
            context: &definition.volume_context,
            publish_context: &definition.publish_context,
            secrets: &secrets,
        };
        if stages && self.record.staged != Progress::Done {
            self.record.staged = Progress::Begun;
            self.keep()?;
            self.make(STAGING)?;
            node.stage(about)?;
            self.record.staged = Progress::Done;
            self.keep()?;
        }
        // The driver makes the last directory of the path.
        self.make(TARGETS)?;
        node.publish(about, &target, readonly)?;
        match definition.required_bytes.filter(|_| self.record.capabilities.contains(&EXPANDS)) {
            Some(bytes) if !readonly => node.expand(about, &target, bytes).map(drop),
            _ => Ok(()),
        }
    }

    /// Takes the volume from the containers of before the machine's start. Their mounts went with it, but what the driver
    /// keeps of them did not, and it is to stage the volume anew.
    pub(crate) fn end_left(&mut self, node: &Node) -> Result<()> {
        if self.record.is_over()? {
            for user in self.record.users.clone() {
                self.unpublish(node, &user)?;
            }
        }
        self.record.boot = machine::boot().map_err(failed)?;
        Ok(())
    }

    /// Takes the volume from the container `user`; after the last, from this machine.
    pub(crate) fn unpublish(&mut self, node: &Node, user: &str) -> Result<()> {
        node.unpublish(&self.record.volume, &self.target_of(user))?;
        // A driver may leave the directory, which is empty then. What it left mounted is not removed.
        self.leave(&format!("{TARGETS}/{user}"))?;
        self.record.users.remove(user);
        if !self.record.users.is_empty() {
            return self.keep();
        }
        if self.record.staged != Progress::No {
            // The last user stays on record until this is done, too.
            node.unstage(&self.record.volume, &self.staging())?;
            self.record.staged = Progress::No;
        }
        for name in [STAGING, TARGETS] {
            self.leave(name)?;
        }
        self.forget()
    }

    /// What the volume holds, by measure; nothing where its driver does not count.
    pub(crate) fn count(&self, node: &Node, user: &str) -> Result<Vec<(String, f64)>> {
        if !self.record.capabilities.contains(&COUNTS) || !self.is_used_by(user) {
            return Ok(Vec::new());
        }
        let counted = node.count(&self.record.volume, &self.target_of(user), &self.staging())?;
        let mut told = Vec::new();
        for usage in counted.usage {
            let unit = if usage.unit == 2 { "inodes" } else { "bytes" };
            told.push((format!("{unit}-used"), usage.used as f64));
            told.push((format!("{unit}-total"), usage.total as f64));
        }
        Ok(told)
    }

    fn make(&self, name: &str) -> Result<()> {
        file::mkdir_all_no_links(self.dir.as_fd(), name, 0o700).map(drop).map_err(failed)
    }

    /// Removes an empty directory, where it is there.
    fn leave(&self, path: &str) -> Result<()> {
        let (above, name) = path.rsplit_once('/').unwrap_or((".", path));
        let removed = file::open(self.dir.as_fd(), above, libc::O_DIRECTORY, 0, Resolve::BeneathNoLinks)
            .and_then(|dir| file::rmdir(dir.as_fd(), name));
        match removed {
            Err(e) if e.errno() != Errno::ENOENT => {
                Err(failed(e).on_path(self.path.join(path).to_string_lossy()))
            }
            _ => Ok(()),
        }
    }

    /// Takes the volume off the record. Its directory stays with the lock that others may wait for.
    fn forget(&self) -> Result<()> {
        file::unlink(self.dir.as_fd(), RECORD).map_err(failed)
    }
}

/// The directory of the volume `name`, and what keeps others from it; nothing where they keep us, and we don't `wait`.
fn lock(state: &Path, name: &str, wait: bool) -> Result<Option<(OwnedFd, OwnedFd)>> {
    let parent = file::open_dir(state)
        .map_err(|e| failed(e).with_hint("make the directory, and name it in writable"))?;
    let open = || -> coracle_sys::Result<Option<(OwnedFd, OwnedFd)>> {
        file::mkdir_all_no_links(parent.as_fd(), name, 0o700)?;
        let dir = file::open(parent.as_fd(), name, libc::O_DIRECTORY, 0, Resolve::BeneathNoLinks)?;
        let flags = libc::O_RDONLY | libc::O_CREAT;
        let lock = file::open(dir.as_fd(), LOCK, flags, 0o600, Resolve::BeneathNoLinks)?;
        match file::lock(lock.as_fd(), wait) {
            Err(e) if e.errno() == Errno::EWOULDBLOCK => Ok(None),
            locked => locked.map(|()| Some((dir, lock))),
        }
    };
    open().map_err(|e| failed(e).on_path(state.join(name).to_string_lossy()))
}

/// What is on record of the volume `name`, whoever is at work on it; nothing where that is no directory.
fn on_record(state: &Path, name: &str) -> Result<Option<Record>> {
    match file::open_dir(state.join(name)) {
        Err(e) if is_nothing(&e) => Ok(None),
        dir => read(&dir.map_err(failed)?, name),
    }
}

/// Whether there is a place where the volume `name` is shown to the container `user`. Listed, not looked up: what is
/// mounted there may be on a server that hangs.
fn is_shown(state: &Path, name: &str, user: &str) -> bool {
    let targets = file::open_dir(state.join(name).join(TARGETS)).and_then(|dir| file::list(dir.as_fd()));
    targets.map_or_else(|e| !is_nothing(&e), |users| users.iter().any(|target| target == user))
}

fn is_nothing(error: &coracle_sys::Error) -> bool {
    matches!(error.errno(), Errno::ENOENT | Errno::ENOTDIR)
}

/// The record of the volume `name` in `dir`.
fn read(dir: &OwnedFd, name: &str) -> Result<Option<Record>> {
    match file::read(dir.as_fd(), RECORD, LONGEST, Resolve::BeneathNoLinks) {
        Err(e) if e.errno() == Errno::ENOENT => Ok(None),
        text => serde_json::from_slice(&text.map_err(failed)?)
            .map(Some)
            .map_err(|e| Error::new(format!("the record of volume {name:?} is malformed: {e}"))),
    }
}

fn failed(error: coracle_sys::Error) -> Error {
    Error::failed(error.call(), error.errno())
}
