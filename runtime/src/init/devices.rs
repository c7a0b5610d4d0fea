//! The device nodes and links of `/dev` (runtime-spec 1.3, config-linux.md, "Devices", and runtime-linux.md,
//! "Dev symbolic links").

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use coracle_sys::Errno;
use coracle_sys::file::{self, Resolve};
use coracle_sys::{identity, mount};

use crate::error::{Code, Context, Error, Result};
use crate::stages::plan::launch::Device;

const LINKS: [(&str, &str); 5] = [
    ("/proc/self/fd", "fd"),
    ("/proc/self/fd/0", "stdin"),
    ("/proc/self/fd/1", "stdout"),
    ("/proc/self/fd/2", "stderr"),
    ("pts/ptmx", "ptmx"),
];

/// What the runtime did about devices.
pub(super) struct Made<'a> {
    /// The nodes that it made, in the order of the devices.
    pub(super) nodes: &'a [Option<OwnedFd>],
    /// Whether it put the child into a user namespace.
    pub(super) in_user_namespace: bool,
}

/// Makes the devices `devices`; by attaching what the runtime has made or binding the host's where a user namespace, the
/// container's or the runtime's own, forbids making them.
pub(super) fn make(root: BorrowedFd<'_>, devices: &[Device], before: &Made<'_>) -> Result<()> {
    if devices.is_empty() {
        return Ok(());
    }
    let dev = open_dev(root)?;
    let mut bound = before.in_user_namespace;
    // Each instance of devpts has a multiplexer of its own, to which the link leads; another's would be none of the container's.
    for (index, device) in devices.iter().enumerate().filter(|(_, d)| d.target != Path::new("dev/ptmx")) {
        let node = before.nodes.get(index).and_then(Option::as_ref);
        let make = |bound| match node {
            Some(node) => attach(root, device, node),
            None if bound => bind(root, device),
            None => make_one(root, dev.as_fd(), device),
        };
        let mut made = make(bound);
        if !bound && made.as_ref().is_err_and(|e| e.errno() == Some(Errno::EPERM)) && identity::is_rootless()
        {
            bound = true;
            made = make(bound);
        }
        made.context(|| format!("making device {:?}", Path::new("/").join(&device.target)))?;
    }
    for (target, name) in LINKS {
        match file::symlink(target, dev.as_fd(), name) {
            Err(e) if e.errno() != Errno::EEXIST => return Err(e).context(|| format!("making /dev/{name}")),
            _ => {}
        }
    }
    Ok(())
}

/// `/dev` itself: a real directory, never a link of the image's (CVE-2026-41579).
fn open_dev(root: BorrowedFd<'_>) -> Result<OwnedFd> {
    let flags = libc::O_PATH | libc::O_DIRECTORY;
    match file::open(root, "dev", flags, 0, Resolve::BeneathNoLinks) {
        Ok(dev) => Ok(dev),
        Err(e) if e.errno() == Errno::ENOENT => Ok(file::mkdir_all(root, "dev", 0o755)?),
        Err(e) if matches!(e.errno(), Errno::ELOOP | Errno::ENOTDIR) => {
            Err(Error::new(Code::InvalidSpec, "/dev in the root file system is no directory")
                .hint("a link there could lead device nodes astray"))
        }
        Err(e) => Err(e).context(|| "opening /dev"),
    }
}

fn make_one(root: BorrowedFd<'_>, dev: BorrowedFd<'_>, device: &Device) -> Result<()> {
    let (dir, name) = place(root, device)?;
    let dir = dir.as_ref().map_or(dev, OwnedFd::as_fd);
    let number = file::device(device.major, device.minor);
    match file::mknod(dir, &name, device.kind | device.mode, number) {
        Ok(()) => {}
        Err(e) if e.errno() == Errno::EEXIST => {
            let stat = file::stat_at(dir, &name)?;
            if stat.st_mode & libc::S_IFMT != device.kind || stat.st_rdev != number {
                return Err(Error::new(Code::InvalidSpec, "something else is there already"));
            }
            return Ok(());
        }
        Err(e) => return Err(e.into()),
    }
    if (device.uid, device.gid) != (0, 0) {
        let made = file::open(dir, &name, libc::O_PATH | libc::O_NOFOLLOW, 0, Resolve::BeneathNoLinks)?;
        file::chown(made.as_fd(), device.uid, device.gid)?;
    }
    Ok(())
}

/// The directory that holds a device (`None`: `/dev`), and its name there.
fn place(root: BorrowedFd<'_>, device: &Device) -> Result<(Option<OwnedFd>, std::ffi::OsString)> {
    let no_name = || Error::new(Code::InvalidSpec, "it has no name");
    let name = device.target.file_name().ok_or_else(no_name)?.to_owned();
    let parent = device.target.parent().unwrap_or(Path::new(""));
    let dir = if parent == Path::new("dev") { None } else { Some(file::mkdir_all(root, parent, 0o755)?) };
    Ok((dir, name))
}

const BOUND: &str =
    "in a user namespace devices are bound from the host, before Linux 6.15 and for others than root";

fn bind(root: BorrowedFd<'_>, device: &Device) -> Result<()> {
    let host = Path::new("/").join(&device.target);
    let source = file::open(file::CWD, &host, libc::O_PATH | libc::O_NOFOLLOW, 0, Resolve::Host)
        .map_err(|e| Error::from(e).hint(BOUND))?;
    let stat = file::stat(source.as_fd())?;
    if stat.st_mode & libc::S_IFMT != device.kind || stat.st_rdev != file::device(device.major, device.minor)
    {
        return Err(Error::new(Code::Unsupported, "the host has no such device at that path").hint(BOUND));
    }
    attach(root, device, &mount::clone_tree(source.as_fd(), Path::new(""), false)?)
}

fn attach(root: BorrowedFd<'_>, device: &Device, tree: &OwnedFd) -> Result<()> {
    let target = super::root::target(root, &device.target, false)?;
    Ok(mount::attach(tree.as_fd(), target.as_fd())?)
}
