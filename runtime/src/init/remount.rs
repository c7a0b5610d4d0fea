//! What is mounted in a container that runs is changed by a child of the runtime, which joins the container's mount and
//! user namespaces and no others.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use coracle_sys::{Errno, descriptor, file, identity, mount, namespace, process};

use super::mounts;
use super::root::Root;
use crate::error::{Code, Context, Error, Result};
use crate::handshake::Waiting;
use crate::stages::plan::mounts::{MountPlan, Source};

/// What is to become of a container's mounts.
#[derive(Debug)]
pub enum Change {
    /// More of them: files and directories of the host, and new file systems.
    Add(Vec<MountPlan>),
    /// These are detached: the field that names one, and its place below the root.
    Remove(Vec<(String, PathBuf)>),
}

/// The child's life: makes the change in the namespaces `kinds` of the process `first`. Returns its exit code.
pub fn run(change: &Change, first: BorrowedFd<'_>, kinds: i32, word: Waiting) -> i32 {
    // The runtime's own end of the conversation, too: its end is told by the end of the last copy.
    let keep = [word.descriptor(), first.as_raw_fd()];
    if process::die_with_parent(true).and_then(|()| descriptor::close_all_but(&keep)).is_err() {
        return 1;
    }
    let Ok(Some(building)) = word.wait() else { return 1 };
    match make(change, first, kinds & (libc::CLONE_NEWNS | libc::CLONE_NEWUSER)) {
        Ok(()) => i32::from(building.ready(None).is_err()),
        Err(error) => {
            building.failed(&error);
            1
        }
    }
}

fn make(change: &Change, first: BorrowedFd<'_>, kinds: i32) -> Result<()> {
    identity::set_umask(0);
    match change {
        Change::Add(plans) => {
            let trees = plans.iter().map(source).collect::<Result<Vec<_>>>()?;
            let mut root = join(first, kinds)?;
            for (plan, tree) in plans.iter().zip(trees) {
                add(&mut root, plan, tree).context(|| at(&plan.field, &plan.target))?;
            }
            root.finish().map(drop)
        }
        Change::Remove(paths) => {
            // By the host's procfs, which the container can't have made up.
            let descriptors = file::open_dir("/proc/self/fd")?;
            let root = join(first, kinds)?;
            namespace::enter(descriptors.as_fd())?;
            paths.iter().try_for_each(|(field, path)| remove(&root, path).context(|| at(field, path)))
        }
    }
}

fn at(field: &str, path: &Path) -> String {
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

fn add(root: &mut Root, plan: &MountPlan, tree: Option<OwnedFd>) -> Result<()> {
    let made = match tree {
        Some(tree) => mounts::put(root, plan, tree)?,
        None => mounts::new(root, plan)?,
    };
    root.mounted(plan, made);
    Ok(())
}

fn remove(root: &Root, path: &Path) -> Result<()> {
    let nothing = || Error::new(Code::NotFound, "nothing is mounted there");
    let found = root.existing(path)?.ok_or_else(nothing)?;
    match mount::detach_descriptor(found.as_raw_fd()) {
        Err(e) if e.errno() == Errno::EINVAL => Err(nothing()),
        other => Ok(other?),
    }
}
