//! Device nodes for a user namespace, in which nobody may make any.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use coracle_sys::mount::{self, attr};
use coracle_sys::{file, identity, users};

use crate::error::{Context, Result};
use crate::self_image::UMASK;
use crate::stages::plan::launch::Device;
use crate::stages::plan::namespaces::Namespaces;

/// Makes those of `devices` that the configuration asks for and that the host has not just so, each as a detached mount
/// of one node; the others are bound from the host. Before Linux 6.15 none can be made like this.
///
/// # Errors
/// Where a node can't be made.
pub(super) fn make(devices: &[Device], namespaces: &Namespaces) -> Result<Vec<Option<OwnedFd>>> {
    let (uids, gids) = (users::lines(&namespaces.uid_map), users::lines(&namespaces.gid_map));
    let mut place = None;
    let mut make = |(index, device): (usize, &Device)| -> Result<Option<OwnedFd>> {
        let owners = (users::outside(&uids, device.uid), users::outside(&gids, device.gid));
        let (Some(uid), Some(gid)) = owners else { return Ok(None) };
        if device.is_default() || is_hosts(device, uid, gid) {
            return Ok(None);
        }
        let place = match &mut place {
            Some(place) => place,
            none => none.insert(mount::Context::open("tmpfs")?.mount(attr::NOSUID | attr::NOEXEC)?),
        };
        let Some(tree) = node(place.as_fd(), &index.to_string(), device)? else { return Ok(None) };
        file::chown(tree.as_fd(), uid, gid)?;
        Ok(Some(tree))
    };
    let path = |device: &Device| Path::new("/").join(&device.target);
    let named = |one: (usize, &Device)| make(one).context(|| format!("making device {:?}", path(one.1)));
    devices.iter().enumerate().map(named).collect()
}

/// A node in the file system `place`, as a mount of its own; `None` where the kernel clones no mount that is detached.
fn node(place: BorrowedFd<'_>, name: &str, device: &Device) -> Result<Option<OwnedFd>> {
    identity::set_umask(0);
    let made = file::mknod(place, name, device.kind | device.mode, file::device(device.major, device.minor));
    identity::set_umask(UMASK);
    made?;
    Ok(mount::clone_tree(place, Path::new(name), false).ok())
}

/// Whether the host has the very node where the container is to have it.
fn is_hosts(device: &Device, uid: u32, gid: u32) -> bool {
    let host = file::stat_at(file::CWD, Path::new("/").join(&device.target));
    host.is_ok_and(|stat| {
        (stat.st_mode, stat.st_rdev) == (device.kind | device.mode, file::device(device.major, device.minor))
            && (stat.st_uid, stat.st_gid) == (uid, gid)
    })
}
