//! The mounts of the configuration: made detached, given their attributes, attached to a descriptor in the root.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use coracle_sys::file::{self, Resolve};
use coracle_sys::mount::{self, Attributes};
use coracle_sys::{Errno, archive};

use super::{Birth, cgroups};
use crate::error::{Code, Context, Error, Result};
use crate::stages::plan::mounts::{MountPlan, Source};

/// Makes one mount.
pub(super) fn mount(root: BorrowedFd<'_>, plan: &MountPlan, birth: &Birth<'_>) -> Result<()> {
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
    made.context(|| format!("mounting {} at {:?}", plan.field, Path::new("/").join(&plan.target)))
}

fn bind(root: BorrowedFd<'_>, plan: &MountPlan, source: &Path, recursive: bool) -> Result<()> {
    let tree = mount::clone_tree(file::CWD, source, recursive)?;
    let is_dir = is_dir(tree.as_fd())?;
    let target = target(root, &plan.target, is_dir)?;
    attach(plan, tree.as_fd(), target.as_fd())
}

struct NewFileSystem<'a> {
    fstype: &'a str,
    source: Option<&'a str>,
    parameters: &'a [(String, Option<String>)],
}

fn new(root: BorrowedFd<'_>, plan: &MountPlan, wanted: &NewFileSystem<'_>) -> Result<()> {
    // A procfs or sysfs that a link leads elsewhere would not be where later steps, and users, expect it
    // (CVE-2019-19921 and those after it).
    let kernel = matches!(wanted.fstype, "proc" | "sysfs");
    let existed = file::open(root, &plan.target, libc::O_PATH, 0, Resolve::InRoot).ok();
    if kernel {
        refuse_links(root, &plan.target)?;
    }
    let target = target(root, &plan.target, true)?;
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
    let has_mode = wanted.parameters.iter().any(|(name, _)| name == "mode");
    if let (Some(existed), "tmpfs", false) = (existed, wanted.fstype, has_mode) {
        // A tmpfs over a directory takes that directory's permissions, as runc's does.
        let mode = file::stat(existed.as_fd())?.st_mode & 0o7777;
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
    attach(&plan_after, made.as_fd(), target.as_fd())
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

/// The directory or file to mount on, in the root; made where it is missing.
pub(super) fn target(root: BorrowedFd<'_>, path: &Path, is_dir: bool) -> Result<OwnedFd> {
    if is_dir {
        return Ok(file::mkdir_all(root, path, 0o755)?);
    }
    match file::open(root, path, libc::O_PATH, 0, Resolve::InRoot) {
        Err(e) if e.errno() == Errno::ENOENT => {}
        other => return Ok(other?),
    }
    let parent = file::mkdir_all(root, path.parent().unwrap_or(Path::new("")), 0o755)?;
    let name = path.file_name().ok_or_else(|| Error::new(Code::InvalidSpec, "it has no name"))?;
    match file::mknod(parent.as_fd(), name, libc::S_IFREG | 0o644, 0) {
        Err(e) if e.errno() != Errno::EEXIST => return Err(e.into()),
        _ => {}
    }
    // A dangling link of that name is followed no further: what it names is not there to be covered.
    Ok(file::open(root, path, libc::O_PATH, 0, Resolve::InRoot)?)
}

fn refuse_links(root: BorrowedFd<'_>, path: &Path) -> Result<()> {
    match file::open(root, path, libc::O_PATH | libc::O_NOFOLLOW, 0, Resolve::BeneathNoLinks) {
        Err(e) if e.errno() == Errno::ELOOP => {
            Err(Error::new(Code::InvalidSpec, "a symbolic link is in the way")
                .hint("procfs and sysfs are mounted on real directories only"))
        }
        Ok(fd) if file::stat(fd.as_fd())?.st_mode & libc::S_IFMT == libc::S_IFLNK => {
            Err(Error::new(Code::InvalidSpec, "it is a symbolic link")
                .hint("procfs and sysfs are mounted on real directories only"))
        }
        _ => Ok(()),
    }
}

fn is_dir(fd: BorrowedFd<'_>) -> Result<bool> {
    Ok(file::stat(fd)?.st_mode & libc::S_IFMT == libc::S_IFDIR)
}
