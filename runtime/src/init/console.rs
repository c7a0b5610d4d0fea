//! The terminal of a process that asks for one: a new pseudoterminal of the container's devpts, whose master goes
//! to whoever looks after it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use coracle_sys::file::{self, Resolve};
use coracle_sys::{descriptor, mount, socket, tty};

use super::Birth;
use crate::error::{Code, Context, Error, Result};
use crate::stages::plan::launch::Inside;
use crate::stages::plan::process::ProcessPlan;

/// Opens the terminal of a container's first process and mounts it on `/dev/console`, where `inside` says so.
pub(super) fn open(
    root: BorrowedFd<'_>,
    (plan, inside): (&ProcessPlan, &Inside),
    birth: &Birth<'_>,
) -> Result<()> {
    let Some(socket) = birth.terminal.as_ref().filter(|_| plan.terminal) else { return Ok(()) };
    let attempt = || -> Result<()> {
        let peer = open_pair(root, birth, plan, socket.as_fd())?;
        if let Some(label) = &inside.mount_label {
            super::mounts::relabel(peer.as_fd(), label)?;
        }
        if inside.console {
            let source = mount::clone_tree(peer.as_fd(), Path::new(""), false)?;
            let target = super::root::target(root, Path::new("dev/console"), false)?;
            mount::attach(source.as_fd(), target.as_fd())?;
        }
        become_terminal(peer)
    };
    attempt().context(|| "giving the process a terminal")
}

/// Opens the terminal of a process that is executed in a container, from inside.
pub(super) fn open_in_container(plan: &ProcessPlan, birth: &Birth<'_>) -> Result<()> {
    let Some(socket) = birth.terminal.as_ref().filter(|_| plan.terminal) else { return Ok(()) };
    let attempt = || -> Result<()> {
        let root = file::open_dir("/")?;
        become_terminal(open_pair(root.as_fd(), birth, plan, socket.as_fd())?)
    };
    attempt().context(|| "giving the process a terminal")
}

/// Opens a pair, sends the master away and returns the peer. The peer comes by descriptor: whatever the image
/// has at the path of its name is not asked (CVE-2025-52565).
fn open_pair(
    root: BorrowedFd<'_>,
    birth: &Birth<'_>,
    plan: &ProcessPlan,
    socket: BorrowedFd<'_>,
) -> Result<OwnedFd> {
    let devpts = file::open(root, "dev/pts", libc::O_DIRECTORY, 0, Resolve::InRoot)
        .map_err(Error::from)
        .map_err(|e| e.hint("a terminal needs a devpts mount at /dev/pts"))?;
    if file::file_system(devpts.as_fd())? != DEVPTS_SUPER_MAGIC {
        return Err(Error::new(Code::InvalidSpec, "/dev/pts is no devpts")
            .hint("a terminal needs a devpts mount at /dev/pts"));
    }
    let (master, peer) = tty::open_pair(devpts.as_fd())?;
    // The size of the caller's terminal is there before the program looks at its own.
    let (stdin, stdout) = (std::io::stdin(), std::io::stdout());
    let is_shown_here = birth.options.console_socket.is_none();
    let callers = is_shown_here.then(|| tty::size_of(&[stdin.as_fd(), stdout.as_fd()])).flatten();
    if let Some((rows, columns)) = callers.or(plan.console_size) {
        tty::set_size(master.as_fd(), rows, columns)?;
    }
    if is_shown_here && !birth.options.hands_terminal_on && !tty::is_terminal(stdout.as_fd()) {
        // It is the runtime that shows it, to a file or a pipe, which wants line ends as they were written. A caller's own
        // terminal is raw: programs set this one as they need it, for the whole screen for example.
        tty::keep_line_ends(peer.as_fd())?;
    }
    if plan.uid != 0 {
        // The group stays: devpts gives it the one that may write to terminals.
        file::chown(peer.as_fd(), plan.uid, u32::MAX)?;
    }
    socket::send(socket, b"/dev/ptmx", &[master.as_fd()])?;
    Ok(peer)
}

const DEVPTS_SUPER_MAGIC: file::FsType = file::FsType(0x1cd1);

fn become_terminal(peer: OwnedFd) -> Result<()> {
    tty::make_controlling(peer.as_fd())?;
    for stream in 0..3 {
        descriptor::set_stream(peer.as_fd(), stream)?;
    }
    Ok(())
}
