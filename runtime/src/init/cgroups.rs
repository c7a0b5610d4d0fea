//! The container's own view of the cgroup hierarchies (runtime-spec 1.3, config-linux.md, "cgroup" mounts).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use coracle_sys::file::{self, Resolve};
use coracle_sys::mount::{self, Attributes, attr};

use super::mounts::attach;
use super::root::Root;
use crate::cgroup::{Hierarchy, Place};
use crate::error::{Code, Context, Error, Result};
use crate::stages::plan::mounts::{MountPlan, Source};

const SAFE: u64 = attr::NOSUID | attr::NODEV | attr::NOEXEC;

/// For a container without cgroups of its own: it shows those of the runtime's caller, in which it lives, and lets nobody
/// change them.
pub(super) fn mount_callers(root: &Root, plan: &MountPlan) -> Result<Option<OwnedFd>> {
    let attributes = Attributes { set: plan.attributes.set | attr::RDONLY, ..plan.attributes };
    let made = mount(root, &MountPlan { attributes, ..plan.clone() }, &Place::callers()?)?;
    // The configuration may not ask for it, and then nobody makes it so later.
    if let Some(made) = &made {
        let read_only = Attributes { set: attr::RDONLY, ..Attributes::default() };
        mount::set_attributes(made.as_fd(), read_only, false)?;
    }
    Ok(made)
}

/// Mounts the hierarchies as the host has them: the unified tree alone on version 2 and where only it is asked for,
/// else a directory each. Each shows the container's own cgroup as its root, by binding that directory alone. In a cgroup
/// namespace a mount of its own would show no more (both are views of the host's one file system, and mountinfo(5) names
/// the same root), but for each hierarchy the kernel would look at every cgroup of the machine (`cgroup1_get_tree`).
/// The directory that holds several is returned: it becomes read-only when the mount points in it are made.
pub(super) fn mount(root: &Root, plan: &MountPlan, place: &Place) -> Result<Option<OwnedFd>> {
    let top = root.target(&plan.target, true)?;
    let read_only = (plan.attributes.set | plan.recursive.set) & attr::RDONLY;
    let all: Vec<_> = place.paths().collect();
    let is_alone = plan.source == Source::Cgroups { unified: true } || all.len() == 1;
    if let Some((_, path)) = all.iter().find(|(hierarchy, _)| is_alone && hierarchy.unified) {
        let made = bound(path, SAFE | read_only)?;
        attach(made.as_fd(), top.as_fd(), plan.attributes, plan.recursive)?;
        return Ok(None);
    }
    if plan.source == (Source::Cgroups { unified: true }) {
        return Err(Error::new(Code::Unsupported, "this host has no unified hierarchy of cgroups")
            .hint("use the type \"cgroup\""));
    }
    let context = mount::Context::open("tmpfs")?;
    context.set("mode", b"755")?;
    if let Some(label) = &plan.label {
        context.set("context", label.as_bytes()).context(|| "labelling it (/linux/mountLabel)")?;
    }
    let tmpfs = context.mount(SAFE)?;
    // Attached first: kernels before 6.15 mount nothing on what is still detached.
    mount::attach(tmpfs.as_fd(), top.as_fd())?;
    for (hierarchy, path) in &all {
        let made = bound(path, SAFE | read_only);
        made.and_then(|made| one(tmpfs.as_fd(), hierarchy, &made))
            .context(|| format!("mounting cgroup hierarchy {:?}", hierarchy.name))?;
    }
    let attributes = Attributes { set: 0, ..plan.attributes };
    mount::set_attributes(tmpfs.as_fd(), attributes, false)?;
    Ok(Some(tmpfs))
}

fn one(tmpfs: BorrowedFd<'_>, hierarchy: &Hierarchy, made: &OwnedFd) -> Result<()> {
    file::mkdir(tmpfs, &hierarchy.name, 0o755)?;
    let flags = libc::O_PATH | libc::O_DIRECTORY;
    let dir = file::open(tmpfs, &hierarchy.name, flags, 0, Resolve::BeneathNoLinks)?;
    mount::attach(made.as_fd(), dir.as_fd())?;
    if hierarchy.name.contains(',') {
        for name in hierarchy.name.split(',') {
            file::symlink(&hierarchy.name, tmpfs, name)?;
        }
    }
    Ok(())
}

fn bound(path: &Path, attributes: u64) -> Result<OwnedFd> {
    let tree = mount::clone_tree(file::CWD, path, false)?;
    mount::set_attributes(tree.as_fd(), Attributes { set: attributes, ..Attributes::default() }, false)?;
    Ok(tree)
}
