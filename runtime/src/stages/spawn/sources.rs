//! Making ready, for the child, what only the runtime has the right to change.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use coracle_sys::mount::{self, Attributes, Propagation};
use coracle_sys::{descriptor, identity};

use super::devices;
use super::owners::{self, Owners};
use crate::error::{Context, Result};
use crate::init::{Sources, clone_root, mounting, open_source};
use crate::stages::plan::Launch;
use crate::stages::plan::mounts::{MountPlan, Source};
use crate::stages::plan::namespaces::Namespaces;

/// Makes ready, as detached trees, what the child could not: mounts whose files have other owners inside, since only the
/// runtime has the right to map them; those that name a descriptor of its own; and, for a child in a user namespace, device nodes, the root file system and the
/// sources of bind mounts, since it may not pass through a directory that belongs to a user who is not mapped there. A caller without
/// privilege can't, and need not: its child is the same user. What is `joined` holds a user namespace that the
/// container joins, if it does.
///
/// # Errors
/// Whatever the kernel says of one, with its field; `Unsupported` where a file system can't map owners.
pub(super) fn open(launch: &Launch, joined: Option<BorrowedFd<'_>>) -> Result<Sources> {
    let Some(inside) = &launch.inside else { return Ok(Sources::default()) };
    let for_stranger = inside.own_mounts && launch.namespaces.in_user() && identity::caller() == 0;
    let is_needed = |plan: &MountPlan| {
        plan.id_map.is_some() || is_ours(plan) || for_stranger && matches!(plan.source, Source::Bind { .. })
    };
    if !for_stranger && !inside.mounts.iter().any(is_needed) {
        return Ok(Sources::default());
    }
    let one = |plan: &MountPlan| if is_needed(plan) { source(plan, launch, joined) } else { Ok(None) };
    let mounts = inside.mounts.iter().map(one).collect::<Result<_>>()?;
    let root = for_stranger.then(|| clone_root(&inside.rootfs).and_then(follow_host)).transpose()?;
    let devices = if for_stranger { devices::make(&inside.devices, &launch.namespaces)? } else { Vec::new() };
    Ok(Sources { root, mounts, devices })
}

/// Whether a bind mount names a descriptor of the runtime, which the child does not have.
fn is_ours(plan: &MountPlan) -> bool {
    let Source::Bind { path, .. } = &plan.source else { return false };
    let own = || format!("{}/fd", std::process::id());
    path.strip_prefix("/proc").is_ok_and(|rest| rest.starts_with(own()))
}

/// How the owners are mapped of those mounts whose trees the child finds in its own root, in their order.
///
/// # Errors
/// `EPERM` for a caller without privilege.
pub(super) fn maps_inside(launch: &Launch, joined: Option<BorrowedFd<'_>>) -> Result<Vec<Owners>> {
    let mounts = launch.inside.iter().flat_map(|inside| &inside.mounts);
    let inside = mounts.filter(|plan| matches!(plan.source, Source::Inside { .. }));
    inside.filter_map(|plan| owners(plan, launch, joined).transpose()).collect()
}

fn source(plan: &MountPlan, launch: &Launch, joined: Option<BorrowedFd<'_>>) -> Result<Option<OwnedFd>> {
    let Some(tree) = open_source(plan).context(|| mounting(plan))? else { return Ok(None) };
    if let Some(owners) = owners(plan, launch, joined).context(|| mounting(plan))? {
        owners.map(tree.as_fd())?;
    }
    follow_host(tree).map(Some).context(|| mounting(plan))
}

/// How the owners in `plan` are mapped; `None` where they are not.
fn owners(plan: &MountPlan, launch: &Launch, joined: Option<BorrowedFd<'_>>) -> Result<Option<Owners>> {
    let Some(map) = &plan.id_map else { return Ok(None) };
    let namespace = match (&map.users, joined) {
        (None, Some(joined)) => descriptor::duplicate(joined)?,
        (None, None) => {
            let Namespaces { uid_map, gid_map, .. } = &launch.namespaces;
            owners::user_namespace(uid_map, gid_map)?
        }
        (Some(users), _) => owners::user_namespace(&users.uid_map, &users.gid_map)?,
    };
    Ok(Some(Owners::new(mounting(plan), namespace, map.recursive)))
}

/// Lets mount events come from the host to `tree`, and none go back: what a tree has that the child clones itself.
fn follow_host(tree: OwnedFd) -> Result<OwnedFd> {
    let slave = Attributes { propagation: Some(Propagation::Slave), ..Attributes::default() };
    mount::set_attributes(tree.as_fd(), slave, true)?;
    Ok(tree)
}
