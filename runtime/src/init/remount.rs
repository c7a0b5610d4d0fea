//! What is mounted in a container that runs is changed by a child of the runtime, which joins the container's mount and
//! user namespaces and no others.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use coracle_sys::{Errno, descriptor, file, identity, mount, namespace, process};

use super::mounts;
use super::root::Root;
use crate::error::{Code, Context, Error, Result};
use crate::handshake::{Building, Waiting};
use crate::stages::plan::mounts::{MountPlan, Source};

/// What is to become of a container's mounts.
#[derive(Debug)]
pub enum Change {
    /// More of them: files and directories of the host, and new file systems.
    Add(Vec<MountPlan>),
    /// These are detached.
    Remove(Vec<Removal>),
}

/// A mount that is to go.
#[derive(Debug)]
pub struct Removal {
    /// The field that names it.
    pub field: String,
    /// Its place below the root.
    pub path: PathBuf,
    /// The number it was given when it was made.
    pub mount: u64,
}

/// The child's life: makes the change in the namespaces `kinds` of the process `first`. Returns its exit code.
pub fn run(change: &Change, first: BorrowedFd<'_>, kinds: i32, word: Waiting) -> i32 {
    // The runtime's own end of the conversation, too: its end is told by the end of the last copy.
    let keep = [word.descriptor(), first.as_raw_fd()];
    if process::die_with_parent(true).and_then(|()| descriptor::close_all_but(&keep)).is_err() {
        return 1;
    }
    let Ok(Some(building)) = word.wait() else { return 1 };
    match make(change, first, &building, kinds & (libc::CLONE_NEWNS | libc::CLONE_NEWUSER)) {
        Ok(()) => i32::from(building.ready(None).is_err()),
        Err(error) => {
            building.failed(&error);
            1
        }
    }
}

fn make(change: &Change, first: BorrowedFd<'_>, word: &Building, kinds: i32) -> Result<()> {
    identity::set_umask(0);
    match change {
        Change::Add(plans) => {
            let trees = plans.iter().map(source).collect::<Result<Vec<_>>>()?;
            let mut root = join(first, kinds)?;
            for (plan, tree) in plans.iter().zip(trees) {
                add(&mut root, plan, tree, word).context(|| at(&plan.field, &plan.target))?;
            }
            root.finish().map(drop)
        }
        Change::Remove(removals) => {
            // By the host's procfs, which the container can't have made up.
            let descriptors = file::open_dir("/proc/self/fd")?;
            let root = join(first, kinds)?;
            namespace::enter(descriptors.as_fd())?;
            removals.iter().try_for_each(|one| remove(&root, one, word).context(|| at(&one.field, &one.path)))
        }
    }
}

/// What an error calls the mount that `field` names.
pub fn at(field: &str, path: &Path) -> String {
    format!("{field} at {:?}", Path::new("/").join(path))
}

/// What of the host is to be mounted: it can be reached only before the container's namespaces are joined.
fn source(plan: &MountPlan) -> Result<Option<OwnedFd>> {
    let Source::Bind { .. } = &plan.source else { return Ok(None) };
    mounts::open_source(plan).context(|| at(&plan.field, &plan.target))
}

fn join(first: BorrowedFd<'_>, kinds: i32) -> Result<Root> {
    namespace::join(first, kinds).context(|| "joining the container's mount namespace")?;
    if kinds & libc::CLONE_NEWUSER != 0 {
        identity::set_group(0)?;
        identity::set_user(0)?;
    }
    // Joining a mount namespace makes its root the caller's root (setns(2)).
    Ok(Root::new(file::open_dir("/")?))
}

fn add(root: &mut Root, plan: &MountPlan, tree: Option<OwnedFd>, word: &Building) -> Result<()> {
    let made = match tree {
        Some(tree) => mounts::put(root, plan, tree)?,
        None => mounts::new(root, plan)?,
    };
    word.show(made.as_fd())?;
    root.mounted(plan, made);
    Ok(())
}

/// Whoever is in the container can have put another way there meanwhile, to a mount that covers what it must not see: none goes
/// but the one that was added.
fn remove(root: &Root, removal: &Removal, word: &Building) -> Result<()> {
    let found = root.existing(&removal.path)?;
    let is_it = |fd: &OwnedFd| file::mount_id(fd.as_fd()).map(|number| number == removal.mount);
    let is_there = found.as_ref().map(is_it).transpose()?.unwrap_or(false);
    let Some(found) = found.filter(|_| is_there) else {
        return Err(Error::new(Code::NotFound, "what was mounted there is not there any more").hint(
            "somebody in the container unmounted it, mounted over it, or moved a directory on the way to it",
        ));
    };
    match mount::detach_descriptor(found.as_raw_fd()) {
        Err(e) if e.errno() == Errno::EINVAL => {
            return Err(Error::new(Code::NotFound, "it is not where the mount begins"));
        }
        other => other?,
    }
    word.show(found.as_fd())
}
