//! Opens what a running process sees as its files, for others to be shown it.

use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use coracle_sys::file::{self, Resolve};
use coracle_sys::mount::{self, Attributes, Propagation};
use coracle_sys::{descriptor, event, namespace, process, signal, socket};

use crate::error::{Code, Context, Error, Result};
use crate::handshake::{LONGEST, LONGEST_TEXT};

/// How long the process that opened the files may take to end.
const ENDING: Duration = Duration::from_secs(1);

/// A process that is there, named for good.
#[derive(Debug, Clone, Copy)]
pub struct Reached<'a> {
    /// Its PID.
    pub pid: i32,
    /// A descriptor of it.
    pub pidfd: BorrowedFd<'a>,
}

/// The files of a process, as detached trees: what happens to them is seen by nobody but who attaches them, and they
/// follow what the process's owner mounts.
#[derive(Debug)]
pub struct Reach {
    /// Its root directory, with all that is mounted below.
    pub root: OwnedFd,
    /// Those of the files that were asked for that are there.
    pub files: Vec<(PathBuf, OwnedFd)>,
}

/// Opens the root directory of `target` and those of the files `wanted`, paths below it, that are there.
///
/// A mount can be cloned in its own mount namespace only (open_tree(2)), so a child of the runtime joins that, and no
/// other: in the target's procfs it is not to be seen. The root is the process's own, by descriptor.
///
/// # Errors
/// `NotFound` where the process ends meanwhile, and whatever the kernel refuses.
pub fn reach(target: Reached<'_>, wanted: &[&str]) -> Result<Reach> {
    let dir = file::open_dir(format!("/proc/{}", target.pid))?;
    let root = file::open(dir.as_fd(), "root", libc::O_PATH | libc::O_DIRECTORY, 0, Resolve::Host);
    // Asked after opening: if it still lives, what was opened is its own.
    process::signal(target.pidfd, 0).map_err(Error::from).map_err(|e| e.code_is(Code::NotFound))?;
    let root = root.context(|| "opening the target's root directory")?;
    let (mine, theirs) = socket::pair()?;
    let child = process::spawn(0, None, || {
        let kept = [theirs.as_raw_fd(), target.pidfd.as_raw_fd(), root.as_raw_fd()];
        let cloned = process::die_with_parent(true)
            .and_then(|()| descriptor::close_all_but(&kept))
            .map_err(Error::from)
            .and_then(|()| clone_all(target.pidfd, root.as_fd(), wanted, theirs.as_fd()));
        cloned.map_or_else(|error| tell(theirs.as_fd(), error), |()| 0)
    });
    let child = child.context(|| "cloning a process for the target's files")?;
    drop(theirs);
    let received = receive(mine.as_fd());
    if received.is_err() {
        child.kill();
    }
    // One that hangs in a file system of the target's dies when that answers, and is not waited for.
    if event::readable(&[child.pidfd.as_fd()], Some(ENDING))? == [true] {
        process::wait(child.pidfd.as_fd())?;
    }
    received.context(|| "opening the target's files")
}

fn tell(socket: BorrowedFd<'_>, error: Error) -> i32 {
    let text = serde_json::to_vec(&error.cut(LONGEST_TEXT)).unwrap_or_default();
    let _ = socket::send(socket, &text, &[]);
    1
}

/// The root comes first, as `.`; then the files by name. A failure is a text without a descriptor.
fn receive(socket: BorrowedFd<'_>) -> Result<Reach> {
    let died = || Error::new(Code::System, "the process for the target's files died");
    let mut trees = Vec::new();
    loop {
        if let Some(signal) = signal::wait_for(socket)? {
            return Err(Error::interrupted(signal));
        }
        let Some((text, fd)) = socket::receive(socket, LONGEST)? else { break };
        match fd {
            Some(tree) => trees.push((PathBuf::from(OsStr::from_bytes(&text)), tree)),
            None => return Err(serde_json::from_slice(&text).unwrap_or_else(|_| died())),
        }
    }
    let mut trees = trees.into_iter();
    let (_, root) = trees.next().ok_or_else(died)?;
    Ok(Reach { root, files: trees.collect() })
}

/// The child's part.
fn clone_all(
    target: BorrowedFd<'_>,
    root: BorrowedFd<'_>,
    wanted: &[&str],
    socket: BorrowedFd<'_>,
) -> Result<()> {
    namespace::join(target, libc::CLONE_NEWNS).context(|| "joining the target's mount namespace")?;
    let give = |name: &str, fd: BorrowedFd<'_>, recursive| -> Result<()> {
        let tree = mount::clone_tree(fd, Path::new(""), recursive)?;
        let slave = Attributes { propagation: Some(Propagation::Slave), ..Attributes::default() };
        mount::set_attributes(tree.as_fd(), slave, recursive)?;
        Ok(socket::send(socket, name.as_bytes(), &[tree.as_fd()])?)
    };
    give(".", root, true)?;
    for name in wanted {
        let found = file::open(root, name, libc::O_PATH, 0, Resolve::InRoot);
        let is_file = |fd: &OwnedFd| {
            file::stat(fd.as_fd()).is_ok_and(|stat| stat.st_mode & libc::S_IFMT == libc::S_IFREG)
        };
        if let Some(fd) = found.ok().filter(is_file) {
            give(name, fd.as_fd(), false)?;
        }
    }
    Ok(())
}
