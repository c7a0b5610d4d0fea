//! The mounts of the configuration: made detached, given their attributes, attached to a descriptor in the root.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use coracle_sys::file::{self, Resolve};
use coracle_sys::mount::{self, Attributes};
use coracle_sys::{Errno, archive};

use super::root::Root;
use super::{Birth, cgroups};
use crate::error::{Code, Context, Error, Result};
use crate::stages::plan::mounts::{MountPlan, Source};

/// Makes one mount.
pub(super) fn mount(root: &mut Root, plan: &MountPlan, birth: &Birth<'_>) -> Result<()> {
    let made = match &plan.source {
        Source::Bind { path, recursive } => bind(root, plan, path, *recursive),
        Source::New { fstype, source, parameters } => {
            new(root, plan, &NewFileSystem { fstype, source: source.as_deref(), parameters })
        }
        Source::Cgroups => match birth.place {
            Some(place) => cgroups::mount(root, plan, place, birth.in_cgroup_namespace),
            None => Err(Error::new(Code::InvalidSpec, "the container has no cgroups to show")),
        },
    };
    let made =
        made.context(|| format!("mounting {} at {:?}", plan.field, Path::new("/").join(&plan.target)))?;
    root.mounted(plan, made);
    Ok(())
}

fn bind(root: &Root, plan: &MountPlan, source: &Path, recursive: bool) -> Result<OwnedFd> {
    let tree = mount::clone_tree(file::CWD, source, recursive)?;
    let target = target(root, plan, is_dir(tree.as_fd())?)?;
    attach(plan, tree.as_fd(), target.as_fd())?;
    Ok(tree)
}

/// What to mount on. A procfs or sysfs that a link leads elsewhere would not be where later steps, and users, expect it
/// (CVE-2019-19921 and those after it).
fn target(root: &Root, plan: &MountPlan, is_dir: bool) -> Result<OwnedFd> {
    if plan.shows_kernel() && is_dir {
        root.real_directory(&plan.target)
    } else {
        root.target(&plan.target, is_dir)
    }
}

struct NewFileSystem<'a> {
    fstype: &'a str,
    source: Option<&'a str>,
    parameters: &'a [(String, Option<String>)],
}

fn new(root: &Root, plan: &MountPlan, wanted: &NewFileSystem<'_>) -> Result<OwnedFd> {
    let kernel = matches!(wanted.fstype, "proc" | "sysfs");
    let has_mode = wanted.parameters.iter().any(|(name, _)| name == "mode");
    // A tmpfs over a directory takes that directory's permissions, as runc's does.
    let covered = if wanted.fstype == "tmpfs" && !has_mode { root.existing(&plan.target)? } else { None };
    let target = target(root, plan, true)?;
    let context = mount::Context::open(wanted.fstype).map_err(|e| unknown_type(e, plan))?;
    if let Some(source) = wanted.source.filter(|s| !s.is_empty()) {
        context.set("source", source.as_bytes())?;
    }
    for (name, value) in wanted.parameters {
        match value {
            Some(value) => context.set(name, value.as_bytes()),
            None => context.set_flag(name),
        }
        .context(|| format!("{}.options", plan.field))?;
    }
    if let Some(covered) = covered {
        let mode = file::stat(covered.as_fd())?.st_mode & 0o7777;
        context.set("mode", format!("{mode:o}").as_bytes())?;
    }
    let label = plan.label.as_deref().filter(|_| !kernel);
    if let Some(label) = label.filter(|_| wanted.fstype != "mqueue") {
        context.set("context", label.as_bytes()).context(|| "labelling it (linux.mountLabel)")?;
    }
    let made = context.mount(plan.attributes.set)?;
    if let Some(label) = label.filter(|_| wanted.fstype == "mqueue") {
        // Its policy has it labelled file by file, its root first.
        let own_root = file::open(made.as_fd(), ".", libc::O_DIRECTORY, 0, Resolve::Beneath)?;
        relabel(own_root.as_fd(), label)?;
    }
    let plan_after = MountPlan { attributes: after_creation(plan), ..plan.clone() };
    attach(&plan_after, made.as_fd(), target.as_fd())?;
    Ok(made)
}

/// Gives an open file the SELinux label of the container's files.
pub(super) fn relabel(file: BorrowedFd<'_>, label: &str) -> Result<()> {
    archive::set_xattr(file, OsStr::new("security.selinux"), label.as_bytes())
        .context(|| "labelling it (linux.mountLabel)")
}

/// What is left of a mount's attributes once it was created with those to set.
fn after_creation(plan: &MountPlan) -> Attributes {
    Attributes { propagation: plan.attributes.propagation, ..Attributes::default() }
}

fn unknown_type(error: coracle_sys::Error, plan: &MountPlan) -> Error {
    let is_unknown = error.errno() == Errno::ENODEV;
    let error = Error::from(error);
    if !is_unknown {
        return error;
    }
    error.code_is(Code::Unsupported).hint(format!("this kernel doesn't know {}.type", plan.field))
}

/// Sets the attributes while nobody can see the mount, then attaches it.
pub(super) fn attach(plan: &MountPlan, made: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Result<()> {
    for (attributes, recursive) in [(plan.recursive, true), (plan.attributes, false)] {
        if !attributes.is_empty() {
            mount::set_attributes(made, attributes, recursive)?;
        }
    }
    Ok(mount::attach(made, target)?)
}

fn is_dir(fd: BorrowedFd<'_>) -> Result<bool> {
    Ok(file::stat(fd)?.st_mode & libc::S_IFMT == libc::S_IFDIR)
}
