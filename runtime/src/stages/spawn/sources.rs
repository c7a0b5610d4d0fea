//! Making ready, for the child, what only the runtime has the right to change.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use coracle_sys::mount::{self, Attributes, Propagation};
use coracle_sys::{Errno, identity};

use super::{devices, owners};
use crate::error::{Code, Context, Error, Result};
use crate::init::{Sources, clone_root, open_source};
use crate::stages::plan::Launch;
use crate::stages::plan::id_maps::IdMap;
use crate::stages::plan::mounts::{MountPlan, Source};
use crate::stages::plan::namespaces::Namespaces;

/// Makes ready, as detached trees, what the child could not: mounts whose files have other owners inside, since only the
/// runtime has the right to map them; and, for a child in a user namespace, device nodes, the root file system and the
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
        plan.id_map.is_some() || for_stranger && matches!(plan.source, Source::Bind { .. })
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

fn source(plan: &MountPlan, launch: &Launch, joined: Option<BorrowedFd<'_>>) -> Result<Option<OwnedFd>> {
    let attempt = || -> Result<Option<OwnedFd>> {
        let Some(tree) = open_source(plan)? else { return Ok(None) };
        if let Some(map) = &plan.id_map {
            map_owners(tree.as_fd(), map, launch, joined).context(|| "mapping the owners of its files")?;
        }
        follow_host(tree).map(Some)
    };
    attempt().context(|| format!("mounting {} at {:?}", plan.field, Path::new("/").join(&plan.target)))
}

fn map_owners(
    tree: BorrowedFd<'_>,
    map: &IdMap,
    launch: &Launch,
    joined: Option<BorrowedFd<'_>>,
) -> Result<()> {
    let set = |namespace| {
        mount::set_idmap(tree, namespace, map.recursive).map_err(Error::from).map_err(|e| match e.errno() {
            Some(Errno::EINVAL) => e.code_is(Code::Unsupported).hint("does this file system map owners?"),
            _ => e,
        })
    };
    match (&map.users, joined) {
        (None, Some(joined)) => set(joined),
        (None, None) => {
            let Namespaces { uid_map, gid_map, .. } = &launch.namespaces;
            set(owners::user_namespace(uid_map, gid_map)?.as_fd())
        }
        (Some(users), _) => set(owners::user_namespace(&users.uid_map, &users.gid_map)?.as_fd()),
    }
}

/// Lets mount events come from the host to `tree`, and none go back: what a tree has that the child clones itself.
fn follow_host(tree: OwnedFd) -> Result<OwnedFd> {
    let slave = Attributes { propagation: Some(Propagation::Slave), ..Attributes::default() };
    mount::set_attributes(tree.as_fd(), slave, true)?;
    Ok(tree)
}
