//! Device nodes for a user namespace, in which nobody may make any.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use coracle_sys::mount::{self, attr};
use coracle_sys::{file, identity};

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
    let mut place = None;
    let mut make = |(index, device): (usize, &Device)| -> Result<Option<OwnedFd>> {
        let owners = (host_id(&namespaces.uid_map, device.uid), host_id(&namespaces.gid_map, device.gid));
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

/// Who `id` is on the host, by the lines of a map: inside, outside, how many.
fn host_id(map: &str, id: u32) -> Option<u32> {
    map.lines().find_map(|line| {
        let mut numbers = line.split_whitespace().map(str::parse::<u32>);
        let mut next = || numbers.next()?.ok();
        let (inside, outside, count) = (next()?, next()?, next()?);
        let offset = id.checked_sub(inside).filter(|offset| *offset < count)?;
        outside.checked_add(offset)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_are_told_as_the_host_knows_them() {
        let map = "0 100000 10\n10 500 1\n";
        assert_eq!(
            [0, 9, 10, 11].map(|id| host_id(map, id)),
            [Some(100_000), Some(100_009), Some(500), None]
        );
        assert_eq!(host_id("", 0), None);
    }
}
