//! `volume/persistent`: directories with names, which outlive their containers.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use coracle_isolator::{Adjustment, Config, Error, Isolator, Result, States, adjusted};
use coracle_sys::Errno;
use coracle_sys::archive::remove_tree;
use coracle_sys::file::{self, CWD, Resolve};
use nix::libc;
use oci_spec::runtime::Spec;
use serde_json::{Map, Value};

use crate::{bound, failed, has_users, is_name, known_by, mounted_in, opened, owner};

/// The type of a mount whose source is the name of a volume.
pub const TYPE: &str = "volume";

/// Gives containers the volumes that their mounts of the type `volume` name, made where there are none. Several may use
/// one at a time. Who uses which is on record, so that none is removed under its users.
///
/// `STATE/NAME/data` is a volume; `STATE/.users/…` holds, for each container, a path that is there as long as it is
/// known, and the names of its volumes, a line each.
#[derive(Debug)]
pub struct Persistent {
    root: PathBuf,
    state: PathBuf,
}

/// A volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Its name.
    pub name: String,
    /// The containers that use it, as the paths of their states.
    pub users: Vec<PathBuf>,
}

const USERS: &str = ".users";
const LOCK: &str = ".lock";
const DATA: &str = "data";

/// The longest list of a container's volumes, in bytes.
const LONGEST: u64 = 1 << 20;

impl Persistent {
    /// For containers whose states lie in `root`.
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned(), state: "/var/lib/coracle/volumes".into() }
    }

    /// All volumes, by name.
    ///
    /// # Errors
    /// Where they can't be read.
    pub fn list(&self) -> Result<Vec<Volume>> {
        let Some(dir) = self.open()? else { return Ok(Vec::new()) };
        let names = file::list(dir.as_fd()).map_err(failed)?;
        let mut names: Vec<String> = names.into_iter().filter_map(|name| name.into_string().ok()).collect();
        names.retain(|name| is_name(name));
        names.sort_unstable();
        let used = users(&dir)?;
        let users = |name: &String| -> Vec<PathBuf> {
            let of = used.iter().filter(|(.., names)| names.contains(name));
            of.map(|(_, owner, _)| owner.clone()).collect()
        };
        Ok(names.into_iter().map(|name| Volume { users: users(&name), name }).collect())
    }

    /// Removes a volume with all that it holds.
    ///
    /// # Errors
    /// Where there is none, a container uses it, or something is mounted in it.
    pub fn remove(&self, name: &str) -> Result<()> {
        let none = || Error::new(format!("there is no volume {name:?}"));
        let dir = self.open()?.filter(|_| is_name(name)).ok_or_else(none)?;
        let _lock = lock(&dir, |fd| file::lock(fd, true))?;
        let volume = self.list()?.into_iter().find(|volume| volume.name == name).ok_or_else(none)?;
        if let Some(user) = volume.users.first() {
            return Err(Error::new(format!("volume {name:?} is in use: {}", user.display()))
                .with_hint("delete the container first"));
        }
        // What is mounted in there is not the volume's own.
        if let Some(point) = mounted_in(&self.state.join(name))? {
            return Err(Error::new(format!("something is mounted in volume {name:?}, on {point}")));
        }
        remove_tree(dir.as_fd(), name).map_err(failed)
    }

    fn open(&self) -> Result<Option<OwnedFd>> {
        opened(&self.state)
    }

    /// The names of the volumes that the final specification of a container mounts.
    fn used(&self, spec: &Spec) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        for source in spec.mounts().iter().flatten().filter_map(|mount| mount.source().as_deref()) {
            // Also a part of one, which is mounted by its path.
            let name = source.strip_prefix(&self.state).ok().and_then(|rest| rest.iter().next()?.to_str());
            if let Some(name) = name.filter(|name| is_name(name) && !names.iter().any(|n| n == name)) {
                names.push(name.to_owned());
            }
        }
        names
    }
}

impl Isolator for Persistent {
    fn name(&self) -> &str {
        "volume/persistent"
    }

    fn configure(&mut self, options: &Map<String, Value>) -> Result<()> {
        crate::configure_directory(options, "state", &mut self.state)
    }

    fn recover(&self, _: &States) -> Result<()> {
        let Some(dir) = self.open()? else { return Ok(()) };
        let _lock = lock(&dir, file::lock_shared)?;
        for (list, owner, _) in users(&dir)? {
            let found = file::open(CWD, &owner, libc::O_PATH, 0, Resolve::Host);
            if matches!(found, Err(e) if e.errno() == Errno::ENOENT) {
                forget(&dir, &list)?;
            }
        }
        Ok(())
    }

    fn prepare(&self, config: &Config<'_>) -> Result<Adjustment> {
        let (mut adjustment, mut changed) = (Adjustment::default(), Vec::new());
        let mounts = config.spec.mounts().as_deref().unwrap_or_default();
        for (i, mount) in mounts.iter().enumerate().filter(|(_, mount)| mount.typ().as_deref() == Some(TYPE))
        {
            let name = mount.source().as_ref().and_then(|name| name.to_str()).unwrap_or_default();
            if !is_name(name) {
                let why = format!("{name:?} is no name of a volume");
                return Err(Error::new(why).at(format!("/mounts/{i}/source")));
            }
            changed.push((i, bound(mount, self.state.join(name).join(DATA), has_users(config.spec))));
        }
        adjustment.mounts = adjusted(mounts, &changed);
        Ok(adjustment)
    }

    fn provide(&self, config: &Config<'_>) -> Result<()> {
        let names = self.used(config.spec);
        if names.is_empty() {
            return Ok(());
        }
        let made = || -> coracle_sys::Result<OwnedFd> {
            let top = file::open_dir("/")?;
            let path = self.state.strip_prefix("/").unwrap_or(&self.state);
            file::mkdir_all_no_links(top.as_fd(), path.join(USERS), 0o700)?;
            file::open_dir(&self.state)
        };
        let dir = made().map_err(|e| failed(e).on_path(self.state.to_string_lossy()))?;
        let _lock = lock(&dir, file::lock_shared)?;
        // On record before it is made: who removes volumes looks here.
        let list = format!("{}\n{}\n", owner(&self.root, config.id).display(), names.join("\n"));
        let kept =
            file::open(dir.as_fd(), USERS, libc::O_DIRECTORY, 0, Resolve::BeneathNoLinks).and_then(|users| {
                file::replace(users.as_fd(), &known_by(&self.root, config.id), list.as_bytes(), 0o600)
            });
        kept.map_err(failed)?;
        for name in names {
            let path = Path::new(&name).join(DATA);
            file::mkdir_all_no_links(dir.as_fd(), path, 0o755).map_err(failed)?;
        }
        Ok(())
    }

    fn cleanup(&self, id: &str) -> Result<()> {
        match self.open()? {
            Some(dir) => forget(&dir, &known_by(&self.root, id)),
            None => Ok(()),
        }
    }
}

/// The lists of the containers' volumes: the name of each, its container's path, the volumes.
fn users(dir: &OwnedFd) -> Result<Vec<(String, PathBuf, Vec<String>)>> {
    let lists = match file::open(dir.as_fd(), USERS, libc::O_DIRECTORY, 0, Resolve::BeneathNoLinks) {
        Err(e) if e.errno() == Errno::ENOENT => return Ok(Vec::new()),
        lists => lists.map_err(failed)?,
    };
    let mut found = Vec::new();
    for name in file::list(lists.as_fd()).map_err(failed)? {
        let name = name.to_string_lossy().into_owned();
        let text = match file::read(lists.as_fd(), &name, LONGEST, Resolve::BeneathNoLinks) {
            Err(e) if e.errno() == Errno::ENOENT => continue,
            // A volume that it may name is not free.
            text => text.map_err(|e| failed(e).on_path(&name))?,
        };
        let text = String::from_utf8_lossy(&text).into_owned();
        let mut lines = text.lines().map(str::to_owned);
        // A list that was lost when the power was cut is empty, and nobody's.
        let owner = lines.next().unwrap_or_default();
        found.push((name, owner.into(), lines.collect()));
    }
    Ok(found)
}

fn forget(dir: &OwnedFd, list: &str) -> Result<()> {
    let lists = file::open(dir.as_fd(), USERS, libc::O_DIRECTORY, 0, Resolve::BeneathNoLinks);
    match lists.and_then(|lists| file::unlink(lists.as_fd(), list)) {
        Err(e) if e.errno() != Errno::ENOENT => Err(failed(e)),
        _ => Ok(()),
    }
}

fn lock(
    dir: &OwnedFd,
    take: impl Fn(std::os::fd::BorrowedFd<'_>) -> coracle_sys::Result<()>,
) -> Result<OwnedFd> {
    let flags = libc::O_RDONLY | libc::O_CREAT;
    let lock = file::open(dir.as_fd(), LOCK, flags, 0o600, Resolve::BeneathNoLinks);
    lock.and_then(|lock| take(lock.as_fd()).map(|()| lock)).map_err(failed)
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "tests lay out files on the host")]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_volume_that_a_list_may_name_which_can_not_be_read_is_not_removed() {
        let dir = tempfile::tempdir().unwrap();
        let volumes = Persistent { root: dir.path().to_owned(), state: dir.path().join("state") };
        fs::create_dir_all(volumes.state.join("data/data")).unwrap();
        fs::create_dir_all(volumes.state.join(USERS).join("list")).unwrap();
        let error = volumes.remove("data").unwrap_err().to_string();
        assert!(error.contains("list"), "{error}");
        fs::remove_dir(volumes.state.join(USERS).join("list")).unwrap();
        volumes.remove("data").unwrap();
    }
}
