//! The mounts of the configuration: made detached, given their attributes, attached to a descriptor in the root.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use coracle_sys::file::{self, Resolve};
use coracle_sys::mount::{self, Attributes, attr};
use coracle_sys::{Errno, archive};

use super::copy_up::copy_up;
use super::root::Root;
use super::{Birth, cgroups};
use crate::error::{Code, Context, Error, Result};
use crate::stages::plan::mounts::{Link, MountPlan, Source};

/// Makes one mount.
pub(super) fn mount(root: &mut Root, plan: &MountPlan, birth: &Birth<'_>) -> Result<()> {
    let made = match &plan.source {
        Source::Bind { .. } => bind(root, plan),
        Source::New { fstype, source, parameters } => {
            new(root, plan, &NewFileSystem { fstype, source: source.as_deref(), parameters }).map(Some)
        }
        Source::Cgroups { .. } => match birth.place {
            Some(place) => cgroups::mount(root, plan, place, birth.in_cgroup_namespace).map(|()| None),
            None => Err(Error::new(Code::InvalidSpec, "the container has no cgroups to show")),
        },
        Source::Present => change(root, plan),
    };
    let mounting = || format!("mounting {} at {:?}", plan.field, Path::new("/").join(&plan.target));
    if let Some(made) = made.context(mounting)? {
        root.mounted(plan, made);
    }
    Ok(())
}

fn bind(root: &Root, plan: &MountPlan) -> Result<Option<OwnedFd>> {
    let Source::Bind { path, recursive, link } = &plan.source else { return Ok(None) };
    let copied = if *link == Link::Copied { file::read_link(file::CWD, path).ok() } else { None };
    if let Some(content) = copied {
        return copy_link(root, &plan.target, &content).map(|()| None);
    }
    let tree = if *link == Link::Mounted {
        mount::clone_link(file::CWD, path, *recursive)?
    } else {
        mount::clone_tree(file::CWD, path, *recursive)?
    };
    let target = target(root, plan, is_dir(tree.as_fd())?)?;
    attach(tree.as_fd(), target.as_fd(), plan.attributes, plan.recursive)?;
    Ok(Some(tree))
}

/// Makes the symbolic link of the host again in the container, where it is not there already.
fn copy_link(root: &Root, path: &Path, content: &OsStr) -> Result<()> {
    let (dir, name) = root.place(path)?;
    match file::symlink(content, dir.as_fd(), name) {
        Err(e) if e.errno() == Errno::EEXIST => {}
        other => return Ok(other?),
    }
    match file::read_link(dir.as_fd(), name) {
        Ok(found) if found == content => Ok(()),
        _ => Err(Error::new(
            Code::InvalidSpec,
            format!("something else than a link to {content:?} is there already"),
        )
        .hint("leave out \"copy-symlink\"")),
    }
}

/// Changes the attributes of what is mounted there already.
fn change(root: &Root, plan: &MountPlan) -> Result<Option<OwnedFd>> {
    let nothing = || Error::new(Code::InvalidSpec, "there is nothing to remount");
    let mounted = root.existing(&plan.target)?.ok_or_else(nothing)?;
    set_attributes(mounted.as_fd(), plan.attributes, plan.recursive).map_err(|e| {
        if e.errno() == Some(Errno::EINVAL) { e.hint("is anything mounted there?") } else { e }
    })?;
    Ok(None)
}

/// What to mount on. A procfs or sysfs that a link leads elsewhere would not be where later steps, and users, expect it
/// (CVE-2019-19921 and those after it).
fn target(root: &Root, plan: &MountPlan, is_dir: bool) -> Result<OwnedFd> {
    if plan.shows_kernel() && is_dir {
        root.real_directory(&plan.target)
    } else if plan.on_link {
        root.target_itself(&plan.target, is_dir)
    } else {
        root.target(&plan.target, is_dir)
    }
}

struct NewFileSystem<'a> {
    fstype: &'a str,
    source: Option<&'a str>,
    parameters: &'a [(String, Option<String>)],
}

impl NewFileSystem<'_> {
    fn has(&self, parameter: &str) -> bool {
        self.parameters.iter().any(|(name, _)| name == parameter)
    }

    /// A tmpfs over a directory takes that directory's permissions, as runc's does.
    fn takes_mode(&self) -> bool {
        self.fstype == "tmpfs" && !self.has("mode")
    }

    /// Begins the file system, up to where only its creation is missing.
    fn configure(&self, plan: &MountPlan, covered: Option<&OwnedFd>) -> Result<mount::Context> {
        let context = mount::Context::open(self.fstype).map_err(|e| unknown_type(e, plan))?;
        if let Some(source) = self.source.filter(|s| !s.is_empty()) {
            context.set("source", source.as_bytes())?;
        }
        for (name, value) in self.parameters {
            match value {
                Some(value) => context.set(name, value.as_bytes()),
                None => context.set_flag(name),
            }
            .context(|| format!("{}.options", plan.field))?;
        }
        if let Some(covered) = covered.filter(|_| self.takes_mode()) {
            let mode = file::stat(covered.as_fd())?.st_mode & 0o7777;
            context.set("mode", format!("{mode:o}").as_bytes())?;
        }
        if let Some(label) =
            plan.label.as_deref().filter(|_| !matches!(self.fstype, "proc" | "sysfs" | "mqueue"))
        {
            context.set("context", label.as_bytes()).context(|| "labelling it (linux.mountLabel)")?;
        }
        Ok(context)
    }
}

fn new(root: &Root, plan: &MountPlan, wanted: &NewFileSystem<'_>) -> Result<OwnedFd> {
    let is_covering = wanted.takes_mode() || plan.copy_up;
    let covered = if is_covering { root.existing(&plan.target)? } else { None };
    let target = target(root, plan, true)?;
    let context = wanted.configure(plan, covered.as_ref())?;
    // What is still to be filled becomes read-only when it is.
    let late = if plan.is_filled_later() { attr::RDONLY } else { 0 };
    let made = context.mount(plan.attributes.set & !late)?;
    if let Some(label) = plan.label.as_deref().filter(|_| wanted.fstype == "mqueue") {
        // Its policy has it labelled file by file, its root first.
        let own_root = file::open(made.as_fd(), ".", libc::O_DIRECTORY, 0, Resolve::Beneath)?;
        relabel(own_root.as_fd(), label)?;
    }
    if let Some(covered) = covered.filter(|_| plan.copy_up) {
        let as_asked = ["mode", "uid", "gid"].iter().any(|name| wanted.has(name));
        copy_up(covered.as_fd(), made.as_fd(), !as_asked)?;
    }
    let recursive = Attributes { set: plan.recursive.set & !late, ..plan.recursive };
    let own = Attributes { propagation: plan.attributes.propagation, ..Attributes::default() };
    attach(made.as_fd(), target.as_fd(), own, recursive)?;
    Ok(made)
}

/// Gives an open file the SELinux label of the container's files.
pub(super) fn relabel(file: BorrowedFd<'_>, label: &str) -> Result<()> {
    archive::set_xattr(file, OsStr::new("security.selinux"), label.as_bytes())
        .context(|| "labelling it (linux.mountLabel)")
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
pub(super) fn attach(
    made: BorrowedFd<'_>,
    target: BorrowedFd<'_>,
    attributes: Attributes,
    recursive: Attributes,
) -> Result<()> {
    set_attributes(made, attributes, recursive)?;
    Ok(mount::attach(made, target)?)
}

/// Sets the attributes; those of the whole tree come last, as with runc.
fn set_attributes(mount: BorrowedFd<'_>, attributes: Attributes, recursive: Attributes) -> Result<()> {
    for (attributes, is_recursive) in [(attributes, false), (recursive, true)] {
        if !attributes.is_empty() {
            mount::set_attributes(mount, attributes, is_recursive)?;
        }
    }
    Ok(())
}

fn is_dir(fd: BorrowedFd<'_>) -> Result<bool> {
    Ok(file::stat(fd)?.st_mode & libc::S_IFMT == libc::S_IFDIR)
}
