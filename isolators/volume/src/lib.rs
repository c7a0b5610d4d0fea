//! The built-in isolators for volumes.

#![forbid(unsafe_code)]

pub mod disk;
pub mod host_path;
pub mod owned;
pub mod persistent;
mod sandbox_path;
mod secret;
mod tmpfs;

use std::path::{Path, PathBuf};

use coracle_isolator::known::{self, owner};
use coracle_isolator::{Error, Isolator, Result};
use coracle_sys::file::{self, CWD, Resolve};
use coracle_sys::{Errno, mount};
use oci_spec::runtime::{Mount, Spec};
use serde_json::{Map, Value};

/// The isolators of this family, for containers whose states lie in `root`.
pub fn isolators(root: &Path) -> Vec<Box<dyn Isolator + Send>> {
    vec![
        Box::new(host_path::HostPath::default()),
        Box::new(persistent::Persistent::new(root)),
        Box::new(sandbox_path::SandboxPath::new(root)),
        Box::new(secret::Secrets::new(root)),
        Box::new(tmpfs::Tmpfs::default()),
        Box::new(disk::DiskQuota::new(root)),
        Box::new(disk::DiskUsage::new(root)),
    ]
}

/// Takes the options of an isolator that has one alone, the directory `name`.
fn configure_directory(options: &Map<String, Value>, name: &str, directory: &mut PathBuf) -> Result<()> {
    for (option, value) in options {
        match value.as_str() {
            Some(path) if option == name && path.starts_with('/') => *directory = path.into(),
            _ => return Err(Error::new(format!("{option:?}: it takes {{ {name} = \"/DIRECTORY\" }}"))),
        }
    }
    Ok(())
}

fn failed(error: coracle_sys::Error) -> Error {
    Error::failed(error.call(), error.errno())
}

/// The name that what belongs to a container goes by: there may be a container of its name in another directory of states.
pub fn known_by(root: &Path, id: &str) -> String {
    format!("{:016x}", known::number(root, id))
}

/// What can be a name of a volume, as Docker has it.
pub fn is_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.len() <= 200
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c))
}

/// The mount `mount` of `source` on the host, in which the container's users own what they own for it.
fn bound(mount: &Mount, source: PathBuf, has_users: bool) -> Mount {
    let mut options: Vec<String> = mount.options().clone().unwrap_or_default();
    options.push("rbind".to_owned());
    if has_users && !options.iter().any(|option| ["idmap", "ridmap"].contains(&option.as_str())) {
        options.push("idmap".to_owned());
    }
    let mut mount = mount.clone();
    mount.set_typ(Some("bind".to_owned())).set_source(Some(source)).set_options(Some(options));
    mount
}

/// Whether the container has a user namespace of its own.
fn has_users(spec: &Spec) -> bool {
    let linux = spec.linux().as_ref();
    linux.and_then(|linux| linux.uid_mappings().as_ref()).is_some_and(|maps| !maps.is_empty())
}

/// The mounts of the type `fstype`, each with its index.
fn of_type<'s>(spec: &'s Spec, fstype: &'s str) -> impl Iterator<Item = (usize, &'s Mount)> {
    let mounts = spec.mounts().as_deref().unwrap_or_default().iter().enumerate();
    mounts.filter(move |(_, mount)| mount.typ().as_deref() == Some(fstype))
}

/// Where something is mounted in the directory `place` of the host, itself left out.
fn mounted_in(place: &Path) -> Result<Option<String>> {
    let table = mount::table().map_err(failed)?;
    let found = table.iter().find(|line| line.path.starts_with(place));
    Ok(found.map(|line| line.path.display().to_string()))
}

/// Makes the directory `path` of the host, for its owner alone, and opens it.
fn made(path: &Path) -> coracle_sys::Result<std::os::fd::OwnedFd> {
    use std::os::fd::AsFd;
    let top = file::open_dir("/")?;
    file::mkdir_all_no_links(top.as_fd(), path.strip_prefix("/").unwrap_or(path), 0o700)?;
    file::open_dir(path)
}

/// Opens the directory `path` of the host where it is there. Who may not look has put nothing there: it is root's, and the
/// caller the root of a user namespace.
fn opened(path: &Path) -> Result<Option<std::os::fd::OwnedFd>> {
    match file::open_dir(path) {
        Err(e) if [Errno::ENOENT, Errno::EACCES].contains(&e.errno()) => Ok(None),
        dir => dir.map(Some).map_err(failed),
    }
}

/// Whether the owner at `path` is there.
fn is_owned(path: &Path) -> bool {
    let found = file::open(CWD, path, nix::libc::O_PATH, 0, Resolve::Host);
    !matches!(found, Err(e) if e.errno() == Errno::ENOENT)
}
