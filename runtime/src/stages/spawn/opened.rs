//! What the runtime opens for a child before it clones it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use coracle_sys::descriptor;

use super::owners::Owners;
use super::{joins, sources};
use crate::error::Result;
use crate::init::Sources;
use crate::init::join::Joined;
use crate::stages::plan::Launch;
use crate::stages::plan::mounts::MountPlan;

/// Open namespaces and trees for a child.
#[derive(Debug)]
pub struct Opened {
    /// The namespaces that it joins, but for a mount namespace alone.
    pub joins: Vec<Joined>,
    /// The mount namespace that it joins, last of all.
    pub mounts_of: Option<Joined>,
    /// The trees that it is shown.
    pub sources: Sources,
    /// How the owners of the trees are mapped that it finds in its own root, in the order of the mounts.
    pub maps: Vec<Owners>,
}

impl Opened {
    /// All that `launch` names by path.
    ///
    /// # Errors
    /// `InvalidSpec`, with the field, for what is not there or something else.
    pub fn by_plan(launch: &Launch) -> Result<Self> {
        let (joins, mounts_of) = joins::open(&launch.namespaces)?;
        let joined_user = joins.iter().find(|joined| joined.kinds == libc::CLONE_NEWUSER);
        let joined_user = joined_user.map(|joined| joined.fd.as_fd());
        let sources = sources::open(launch, joined_user)?;
        let maps = sources::maps_inside(launch, joined_user)?;
        Ok(Self { joins, mounts_of, sources, maps })
    }

    /// The namespaces of the kinds `kinds` (`CLONE_NEW*`) of a process, all by its pidfd, and none that `launch` names by
    /// path; and the trees that the child could not open.
    ///
    /// # Errors
    /// Whatever opening says.
    pub fn by_process(launch: &Launch, process: BorrowedFd<'_>, kinds: i32) -> Result<Self> {
        let (sources, maps) = (sources::open(launch, None)?, sources::maps_inside(launch, None)?);
        Ok(Self { joins: joins_of(process, kinds)?, mounts_of: None, sources, maps })
    }

    /// The same, for a child whose root is the tree `root`.
    ///
    /// # Errors
    /// Whatever opening says.
    pub fn in_root(root: OwnedFd, process: BorrowedFd<'_>, kinds: i32) -> Result<Self> {
        let sources = Sources { root: Some(root), ..Sources::default() };
        Ok(Self { joins: joins_of(process, kinds)?, mounts_of: None, sources, maps: Vec::new() })
    }

    /// Adds the mount `plan` to `launch`, whose source is the tree `tree`.
    pub fn mount(&mut self, launch: &mut Launch, plan: MountPlan, tree: OwnedFd) {
        let Some(inside) = &mut launch.inside else { return };
        self.sources.mounts.resize_with(inside.mounts.len(), || None);
        self.sources.mounts.push(Some(tree));
        inside.mounts.push(plan);
    }
}

/// A user namespace by itself, since it is joined when the rights over the others are no longer needed.
fn joins_of(process: BorrowedFd<'_>, kinds: i32) -> Result<Vec<Joined>> {
    let parts = [kinds & !libc::CLONE_NEWUSER, kinds & libc::CLONE_NEWUSER];
    let joined = |kinds| {
        Ok(Joined { kinds, fd: descriptor::duplicate(process)?, name: "the target's namespaces".to_owned() })
    };
    parts.into_iter().filter(|kinds| *kinds != 0).map(joined).collect()
}
