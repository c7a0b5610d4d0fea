//! The container's root: attached, filled, covered, entered.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use coracle_sys::file::{self, Resolve};
use coracle_sys::mount::{self, Attributes, Propagation, attr};
use coracle_sys::{Errno, descriptor, namespace};

use super::bare;
use super::root::Root;
use crate::error::{Code, Context, Error, Result};
use crate::hooks;
use crate::stages::plan::launch::Inside;

const READ_ONLY: Attributes = Attributes { set: attr::RDONLY, clear: 0, propagation: None };

/// Lets mount events travel between the host and the trees of its that are cloned from now on, as the configuration says.
pub(super) fn share_events(inside: &Inside) -> Result<()> {
    if !inside.own_mounts {
        return Ok(());
    }
    // What can't be bound could not be cloned: that waits for the end.
    let propagation = match inside.propagation {
        None => Propagation::Slave,
        Some((Propagation::Unbindable, _)) => Propagation::Private,
        Some((propagation, _)) => propagation,
    };
    Ok(mount::set_attributes(host_root()?.as_fd(), only(propagation), true)?)
}

fn host_root() -> coracle_sys::Result<OwnedFd> {
    file::open(file::CWD, "/", libc::O_PATH | libc::O_DIRECTORY, 0, Resolve::Host)
}

/// Mounts the root file system on its own directory, in the child's own mount namespace, and returns it. From here on
/// everything of the container is reached through this descriptor. Hooks complete the container by what they mount or link
/// at that path.
///
/// Never over the host's root: each `..` on a path of the host that arrives there, as in a link like `../usr/lib/os-release`,
/// would go on in the container's root file system, and be led by the image.
pub(super) fn attach(inside: &Inside, opened: Option<&OwnedFd>) -> Result<OwnedFd> {
    if !inside.own_mounts {
        return attach_on_itself(&inside.rootfs);
    }
    let rootfs = &inside.rootfs;
    let root = match opened {
        Some(opened) => descriptor::duplicate(opened.as_fd())?,
        None => clone_root(rootfs)?,
    };
    if matches!(inside.propagation, Some((Propagation::Shared, _))) {
        // Else what is mounted in the container would appear in its root file system on the host, and so would its root.
        mount::set_attributes(root.as_fd(), only(Propagation::Private), false)?;
        mount::set_attributes(host_root()?.as_fd(), only(Propagation::Slave), true)?;
    }
    home(rootfs)
        .and_then(|home| mount::attach(root.as_fd(), home.as_fd()))
        .map_err(Error::from)
        .map_err(|e| if e.errno() == Some(Errno::ENOTDIR) { e.code_is(Code::InvalidSpec) } else { e })
        .context(|| format!("mounting the root file system {rootfs:?}"))?;
    Ok(root)
}

/// The directory of the root file system; or, for a child that may not go there, the first on the way that it may not look
/// into: what that covers neither it nor its hooks could have reached.
fn home(rootfs: &Path) -> coracle_sys::Result<OwnedFd> {
    let mut place = rootfs;
    loop {
        let opened = file::open(file::CWD, place, libc::O_PATH | libc::O_DIRECTORY, 0, Resolve::Host);
        match (&opened, place.parent()) {
            (Err(e), Some(parent)) if e.errno() == Errno::EACCES => place = parent,
            _ => return opened,
        }
    }
}

/// Runs the createContainer hooks, with the bundle `bundle` as their working directory: in the root they could be made to
/// load what the image brings (CVE-2025-23266).
pub(super) fn run_hooks(inside: &Inside, state: &serde_json::Value, bundle: &Path) -> Result<()> {
    if inside.create_hooks.is_empty() {
        return Ok(());
    }
    hooks::run("createContainer", &inside.create_hooks, state, bundle)
}

/// Clones the root file system as a detached tree.
///
/// # Errors
/// `InvalidSpec` where there is none.
pub fn clone_root(rootfs: &Path) -> Result<OwnedFd> {
    mount::clone_tree(file::CWD, rootfs, true)
        .map_err(Error::from)
        .map_err(|e| if e.errno() == Some(Errno::ENOENT) { e.code_is(Code::InvalidSpec) } else { e })
        .context(|| format!("opening the root file system {rootfs:?}"))
}

/// Mounts the root file system on its own directory, in a mount namespace that belongs to others, too: nothing of
/// theirs is covered, and no root but the child's own is changed.
fn attach_on_itself(rootfs: &Path) -> Result<OwnedFd> {
    let root = clone_root(rootfs)?;
    mount::set_attributes(root.as_fd(), only(Propagation::Private), true)?;
    let mounted = file::open(file::CWD, rootfs, libc::O_PATH | libc::O_DIRECTORY, 0, Resolve::Host)
        .and_then(|dir| mount::attach(root.as_fd(), dir.as_fd()));
    mounted.context(|| format!("mounting the root file system {rootfs:?} in a mount namespace of others"))?;
    Ok(root)
}

fn only(propagation: Propagation) -> Attributes {
    Attributes { propagation: Some(propagation), ..Attributes::default() }
}

/// Makes the directory `path`, an absolute path of the container, where it is missing.
pub(super) fn make_dir(root: BorrowedFd<'_>, path: &Path) -> Result<()> {
    match file::mkdir_all(root, path, 0o755) {
        // The working directory may be one that only the user can reach, or no directory; changing to it tells.
        Ok(_) => Ok(()),
        Err(e) if matches!(e.errno(), Errno::EACCES | Errno::EROFS | Errno::ENOTDIR) => Ok(()),
        Err(e) => Err(e).context(|| format!("making the working directory {path:?}")),
    }
}

/// Covers the masked paths and makes the read-only ones so.
pub(super) fn mask(root: &Root, inside: &Inside) -> Result<()> {
    for path in &inside.readonly_paths {
        let Some(target) = existing(root, path)? else { continue };
        if is_root(root, target.as_fd())? {
            // What is mounted over a root directory is not seen from there.
            mount::set_attributes(root.as_fd(), READ_ONLY, true)
                .context(|| "making the root read-only (/linux/readonlyPaths)")?;
            continue;
        }
        let tree = mount::clone_tree(target.as_fd(), Path::new(""), true);
        let covered = tree.and_then(|tree| {
            mount::set_attributes(tree.as_fd(), READ_ONLY, true)?;
            mount::attach(tree.as_fd(), target.as_fd())
        });
        covered.context(|| format!("making {path:?} read-only (/linux/readonlyPaths)"))?;
    }
    let mut covers = Covers { label: inside.mount_label.as_deref(), null: None, empty: None };
    for path in &inside.masked_paths {
        let Some(target) = existing(root, path)? else { continue };
        if is_root(root, target.as_fd())? {
            let why = format!(
                "/linux/maskedPaths: {:?} is the root, which can't be masked",
                Path::new("/").join(path)
            );
            return Err(Error::new(Code::InvalidSpec, why));
        }
        covers.cover(target.as_fd()).context(|| format!("masking {path:?} (/linux/maskedPaths)"))?;
    }
    Ok(())
}

/// Whether `target` is the root directory itself, and no other mount of it.
fn is_root(root: &Root, target: BorrowedFd<'_>) -> Result<bool> {
    let [own, other] = [root.as_fd(), target].map(file::stat);
    let (own, other) = (own?, other?);
    let is_same = (own.st_dev, own.st_ino) == (other.st_dev, other.st_ino);
    Ok(is_same && file::mount_id(root.as_fd())? == file::mount_id(target)?)
}

/// The file or directory `path`, or `None` where there is none: only then there is nothing to protect.
fn existing(root: &Root, path: &Path) -> Result<Option<OwnedFd>> {
    root.existing(path).context(|| format!("opening {path:?}"))
}

/// What masked paths are covered with: for directories one empty read-only file system, for files the host's
/// null device, opened and verified before the container could have a say in what it is (CVE-2025-31133).
struct Covers<'a> {
    label: Option<&'a str>,
    null: Option<OwnedFd>,
    empty: Option<OwnedFd>,
}

impl Covers<'_> {
    fn cover(&mut self, target: BorrowedFd<'_>) -> Result<()> {
        let is_dir = file::stat(target)?.st_mode & libc::S_IFMT == libc::S_IFDIR;
        let slot = if is_dir { &mut self.empty } else { &mut self.null };
        let Some(cover) = slot else {
            let first = if is_dir { empty_dir(self.label)? } else { bound_null()? };
            mount::attach(first.as_fd(), target)?;
            *slot = Some(first);
            return Ok(());
        };
        // Of the first, which is attached: kernels before 6.15 clone nothing that is still detached.
        let copy = mount::clone_tree(cover.as_fd(), Path::new(""), false)?;
        Ok(mount::attach(copy.as_fd(), target)?)
    }
}

fn empty_dir(label: Option<&str>) -> Result<OwnedFd> {
    let context = mount::Context::open("tmpfs")?;
    context.set("size", b"0")?;
    context.set("nr_inodes", b"1")?;
    if let Some(label) = label {
        context.set("context", label.as_bytes()).context(|| "labelling it (/linux/mountLabel)")?;
    }
    Ok(context.mount(attr::RDONLY | attr::NOSUID | attr::NODEV | attr::NOEXEC)?)
}

/// The host's null device, bound.
fn bound_null() -> Result<OwnedFd> {
    let null = file::open(file::CWD, "/dev/null", libc::O_PATH | libc::O_NOFOLLOW, 0, Resolve::Host)?;
    let stat = file::stat(null.as_fd())?;
    if stat.st_mode & libc::S_IFMT != libc::S_IFCHR || stat.st_rdev != file::device(1, 3) {
        return Err(Error::new(Code::System, "the host's /dev/null is not the null device"));
    }
    Ok(mount::clone_tree(null.as_fd(), Path::new(""), false)?)
}

/// Makes `root` the root directory, for good: nothing of the host is left to be seen.
pub(super) fn enter(root: OwnedFd, inside: &Inside, no_pivot: bool) -> Result<()> {
    if inside.readonly {
        mount::set_attributes(root.as_fd(), READ_ONLY, false).context(|| "making the root read-only")?;
    }
    namespace::enter(root.as_fd())?;
    if !inside.own_mounts {
        namespace::chroot_here()?;
        return Ok(namespace::change_dir(Path::new("/"))?);
    }
    if no_pivot {
        mount::move_over_root(root.as_fd())
            .context(|| "moving the root file system over the host's (--no-pivot)")?;
        bare::hide(root.as_fd()).context(|| "hiding the host's procfs and sysfs")?;
        namespace::chroot_here()?;
    } else {
        mount::pivot_root_here()
            .map_err(Error::from)
            .map_err(|e| e.hint("on an initial ramfs, use --no-pivot"))
            .context(|| "entering the root file system")?;
        mount::detach(Path::new("."))?;
    }
    namespace::change_dir(Path::new("/"))?;
    // Slaves and private mounts are so from the beginning.
    if let Some((propagation @ (Propagation::Shared | Propagation::Unbindable), recursive)) =
        inside.propagation
    {
        let own = file::open(file::CWD, "/", libc::O_PATH | libc::O_DIRECTORY, 0, Resolve::Host)?;
        let attributes = Attributes { propagation: Some(propagation), ..Attributes::default() };
        // The mounts of the configuration say themselves which of them are shared.
        mount::set_attributes(own.as_fd(), attributes, recursive && propagation == Propagation::Unbindable)?;
    }
    Ok(())
}
