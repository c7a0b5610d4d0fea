//! The mounts of the configuration: made detached, given their attributes, attached to a descriptor in the root.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use coracle_sys::file::{self, Resolve};
use coracle_sys::mount::{self, Attributes, attr};
use coracle_sys::{Errno, archive, descriptor, identity};

use super::copy_up::copy_up;
use super::root::Root;
use super::{Birth, Sources, cgroups};
use crate::error::{Code, Context, Error, Result};
use crate::handshake::Building;
use crate::stages::plan::launch::Inside;
use crate::stages::plan::mounts::{Link, MountPlan, Source};

/// Opens what `plan` mounts, detached: a tree of the host, or a new file system without anything of what it will cover.
/// `None` for what only the child can make, and where a link is copied.
///
/// # Errors
/// Whatever the kernel says.
pub fn open_source(plan: &MountPlan) -> Result<Option<OwnedFd>> {
    match &plan.source {
        Source::Bind { path, link: Link::Copied, .. } if file::read_link(file::CWD, path).is_ok() => Ok(None),
        Source::Bind { path, recursive, link: Link::Mounted } => {
            Ok(Some(mount::clone_link(file::CWD, path, *recursive)?))
        }
        Source::Bind { path, recursive, link: Link::Refused } => {
            let host = file::open_dir("/")?;
            let below = path.strip_prefix("/").unwrap_or(path);
            let source = file::open(host.as_fd(), below, libc::O_PATH, 0, Resolve::BeneathNoLinks)?;
            Ok(Some(mount::clone_tree(source.as_fd(), Path::new(""), *recursive)?))
        }
        Source::Bind { path, recursive, .. } => Ok(Some(mount::clone_tree(file::CWD, path, *recursive)?)),
        Source::New { .. } => create(plan, None).map(Some),
        Source::Inside { .. } | Source::Cgroups { .. } | Source::Present => Ok(None),
    }
}

/// What is being done while the mount `plan` is made.
pub fn mounting(plan: &MountPlan) -> String {
    format!("mounting {} at {:?}", plan.field, Path::new("/").join(&plan.target))
}

/// Opens what the mounts show of the host, in their order, but for what the runtime opened: before the container's root
/// is mounted, which is no part of a tree that holds its directory.
pub(super) fn open_sources(inside: &Inside, ready: &Sources) -> Result<Vec<Option<OwnedFd>>> {
    let open = |(index, plan): (usize, &MountPlan)| match (ready.mount(index), &plan.source) {
        (Some(ready), _) => Ok(Some(descriptor::duplicate(ready.as_fd())?)),
        (None, Source::Bind { .. }) => open_source(plan).context(|| mounting(plan)),
        _ => Ok(None),
    };
    inside.mounts.iter().enumerate().map(open).collect()
}

/// Makes one mount; of `opened` where its source is ready.
pub(super) fn mount(
    root: &mut Root,
    plan: &MountPlan,
    birth: &Birth<'_>,
    opened: Option<OwnedFd>,
    word: &Building,
) -> Result<()> {
    let made = match (&plan.source, opened) {
        (Source::Bind { .. } | Source::New { .. }, Some(opened)) => put(root, plan, opened).map(Some),
        // A link, which is made again.
        (Source::Bind { path, .. }, None) => {
            let content = file::read_link(file::CWD, path).map_err(Error::from);
            content.and_then(|content| copy_link(root, &plan.target, &content)).map(|()| None)
        }
        (Source::Inside { path, recursive }, _) => inside(root, path, *recursive)
            .context(|| format!("{}/source", plan.field))
            .and_then(
                |tree| if plan.id_map.is_some() { word.map(tree.as_fd()).map(|()| tree) } else { Ok(tree) },
            )
            .and_then(|tree| put(root, plan, tree))
            .map(Some),
        (Source::New { .. }, None) => new(root, plan).or_else(|e| hosts(root, plan, birth, e)).map(Some),
        (Source::Cgroups { .. }, _) => match birth.place {
            Some(place) => cgroups::mount(root, plan, place),
            None => cgroups::mount_callers(root, plan),
        },
        (Source::Present, _) => change(root, plan).map(|()| None),
    };
    if let Some(made) = made.context(|| mounting(plan))? {
        root.mounted(plan, made);
    }
    Ok(())
}

/// A tree of the container itself, as far as it is built.
fn inside(root: &Root, path: &Path, recursive: bool) -> Result<OwnedFd> {
    let nothing =
        || Error::new(Code::InvalidSpec, format!("there is no {path:?} in the container's root yet"));
    let shown = root.existing(path)?.ok_or_else(nothing)?;
    Ok(mount::clone_tree(shown.as_fd(), Path::new(""), recursive)?)
}

/// What the host has mounted in the place of a new file system that could not be made (`failure`): one that shows a
/// network or IPC namespace is for the root of the user namespace that owns it, and the container shares the host's.
fn hosts(root: &Root, plan: &MountPlan, birth: &Birth<'_>, failure: Error) -> Result<OwnedFd> {
    let place = if plan.is_new("sysfs") { "/sys" } else { "/dev/mqueue" };
    let is_shown = plan.is_new("sysfs") || plan.is_new("mqueue");
    let is_forbidden = failure.errno() == Some(Errno::EPERM);
    if !is_shown || !is_forbidden || !(birth.in_user_namespace || identity::is_rootless()) {
        return Err(failure);
    }
    let tree = mount::clone_tree(file::CWD, Path::new(place), true)?;
    let target = target(root, plan, true)?;
    // Other file systems come along, cgroups among them, which a user may have been given to write to (CVE-2023-25809).
    let read_only = plan.attributes.set & attr::RDONLY;
    let recursive = Attributes { set: plan.recursive.set | read_only, ..plan.recursive };
    attach(tree.as_fd(), target.as_fd(), plan.attributes, recursive)?;
    Ok(tree)
}

/// Attaches what is ready.
pub(super) fn put(root: &Root, plan: &MountPlan, made: OwnedFd) -> Result<OwnedFd> {
    let target = target(root, plan, is_dir(made.as_fd())?)?;
    attach_as_planned(plan, made.as_fd(), target.as_fd())?;
    Ok(made)
}

/// Attaches a mount with what it still lacks of its attributes: a new file system has its own since it was created, and
/// what is filled later becomes read-only later.
fn attach_as_planned(plan: &MountPlan, made: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Result<()> {
    let own = match plan.source {
        Source::New { .. } => {
            Attributes { propagation: plan.attributes.propagation, ..Attributes::default() }
        }
        _ => plan.attributes,
    };
    if plan.locked != 0 {
        refuse_locked(plan, made)?;
    }
    let late = if plan.is_filled_later() { attr::RDONLY } else { 0 };
    let recursive = Attributes { set: plan.recursive.set & !late, ..plan.recursive };
    let losing = |bits| Attributes { clear: own.clear | bits, ..own };
    match attach(made, target, losing(plan.loses), recursive) {
        // Locked, since the runtime itself is in a user namespace: nobody has named these.
        Err(e) if e.errno() == Some(Errno::EPERM) && plan.loses != 0 => {
            attach(made, target, losing(plan.loses & attr::NOSYMFOLLOW), recursive)
        }
        other => other,
    }
}

/// # Errors
/// `InvalidSpec` where the source `made` has an attribute that a container in a user namespace may not undo.
fn refuse_locked(plan: &MountPlan, made: BorrowedFd<'_>) -> Result<()> {
    let has = file::mount_flags(made)?;
    for (bit, own, asked) in [
        (attr::RDONLY, "ro", "rw"),
        (attr::NOSUID, "nosuid", "suid"),
        (attr::NODEV, "nodev", "dev"),
        (attr::NOEXEC, "noexec", "exec"),
    ] {
        if plan.locked & has & bit != 0 {
            let why =
                format!("{}/options: {asked:?}: operation not permitted, its source is {own}", plan.field);
            return Err(Error::new(Code::InvalidSpec, why)
                .hint("in a user namespace this can't be undone: mount the source otherwise"));
        }
    }
    Ok(())
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
fn change(root: &Root, plan: &MountPlan) -> Result<()> {
    let nothing = || Error::new(Code::InvalidSpec, "there is nothing to remount");
    let mounted = root.existing(&plan.target)?.ok_or_else(nothing)?;
    set_attributes(mounted.as_fd(), plan.attributes, plan.recursive)
        .map_err(|e| if e.errno() == Some(Errno::EINVAL) { e.hint("is anything mounted there?") } else { e })
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

/// Creates the new file system of `plan`, which is to cover the directory `covered`.
fn create(plan: &MountPlan, covered: Option<&OwnedFd>) -> Result<OwnedFd> {
    let Source::New { fstype, source, parameters } = &plan.source else {
        return Err(Error::new(Code::InvalidSpec, "it is no new file system"));
    };
    let context = mount::Context::open(fstype).map_err(|e| unknown_type(e, plan))?;
    if let Some(source) = source.as_ref().filter(|s| !s.is_empty()) {
        context.set("source", source.as_bytes())?;
    }
    for (name, value) in parameters {
        let set = match value {
            Some(value) => context.set(name, value.as_bytes()),
            None => context.set_flag(name),
        };
        set.map_err(|e| of_owners(e, matches!(name.as_str(), "uid" | "gid")))
            .context(|| format!("{}/options", plan.field))?;
    }
    if let Some(covered) = covered.filter(|_| plan.takes_mode()) {
        let mode = file::stat(covered.as_fd())?.st_mode & 0o7777;
        context.set("mode", format!("{mode:o}").as_bytes())?;
    }
    let label = plan.label.as_deref().filter(|_| !matches!(fstype.as_str(), "proc" | "sysfs" | "mqueue"));
    if let Some(label) = label {
        context.set("context", label.as_bytes()).context(|| "labelling it (/linux/mountLabel)")?;
    }
    // What is still to be filled becomes read-only when it is.
    let late = if plan.is_filled_later() { attr::RDONLY } else { 0 };
    let has_owner = plan.has_parameter("uid") || plan.has_parameter("gid");
    context.mount(plan.attributes.set & !late).map_err(|e| of_owners(e, has_owner))
}

/// Kernels differ in when they look at an owner: as soon as it is told, or when the file system is made.
fn of_owners(error: coracle_sys::Error, is_owner: bool) -> Error {
    let is_refused = is_owner && error.errno() == Errno::EINVAL;
    let error = Error::from(error);
    if is_refused { error.hint("are uid and gid mapped in the user namespace?") } else { error }
}

pub(super) fn new(root: &Root, plan: &MountPlan) -> Result<OwnedFd> {
    let is_covering = plan.takes_mode() || plan.copy_up;
    let covered = if is_covering { root.existing(&plan.target)? } else { None };
    let target = target(root, plan, true)?;
    let made = create(plan, covered.as_ref())?;
    if let Some(label) = plan.label.as_deref().filter(|_| plan.is_new("mqueue")) {
        // Its policy has it labelled file by file, its root first.
        let own_root = file::open(made.as_fd(), ".", libc::O_DIRECTORY, 0, Resolve::Beneath)?;
        relabel(own_root.as_fd(), label)?;
    }
    if let Some(covered) = covered.filter(|_| plan.copy_up) {
        let as_asked = ["mode", "uid", "gid"].iter().any(|name| plan.has_parameter(name));
        copy_up(covered.as_fd(), made.as_fd(), !as_asked)?;
    }
    attach_as_planned(plan, made.as_fd(), target.as_fd())?;
    Ok(made)
}

/// Gives an open file the SELinux label of the container's files.
pub(super) fn relabel(file: BorrowedFd<'_>, label: &str) -> Result<()> {
    archive::set_xattr(file, OsStr::new("security.selinux"), label.as_bytes())
        .context(|| "labelling it (/linux/mountLabel)")
}

fn unknown_type(error: coracle_sys::Error, plan: &MountPlan) -> Error {
    let is_unknown = error.errno() == Errno::ENODEV;
    let error = Error::from(error);
    if !is_unknown {
        return error;
    }
    error.code_is(Code::Unsupported).hint(format!("this kernel doesn't know {}/type", plan.field))
}

/// Sets the attributes while nobody can see the mount, then attaches it.
pub(super) fn attach(
    made: BorrowedFd<'_>,
    target: BorrowedFd<'_>,
    attributes: Attributes,
    recursive: Attributes,
) -> Result<()> {
    set_attributes(made, attributes, recursive)?;
    mount::attach(made, target).map_err(Error::from).or_else(|e| match (is_dir(made)?, is_dir(target)?) {
        (true, false) => Err(e.hint("a directory can't be mounted on a file")),
        (false, true) => Err(e.hint("a file can't be mounted on a directory")),
        _ => Err(e),
    })
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
