//! The keeper: a process that holds what a pod must not lose with its supervisor: the namespaces that its containers
//! share, and descriptors (the ends of pipes and terminals that the containers write to, and pidfds, which tell how a
//! process ended that nobody awaited). Where the containers share a PID namespace, it is the first process there.
//!
//! It can do nothing else: it has no capabilities, one empty file system for all mounts, and it does not touch the host.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use coracle_sys::file::Resolve;
use coracle_sys::mount::{self, Attributes, Propagation, attr};
use coracle_sys::process::{self, Child};
use coracle_sys::{descriptor, event, file, identity, namespace, net, signal, socket};
use serde::{Deserialize, Serialize};

use super::plan::Shared;
use crate::error::{Code, Context, Error, Result};
use crate::init;

/// Its socket, in the pod's directory.
pub const SOCKET: &str = "keeper.sock";

/// The longest word that it is told.
const LONGEST: usize = 4096;

/// What a keeper is told.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Word {
    /// Hold the descriptor that comes with this, by this name.
    Hold(String),
    /// Let it go.
    Drop(String),
    /// Send all, each with its name, and an empty name last.
    Send,
}

/// Starts a keeper in the new namespaces that `shared` names; `map` maps the users of a new user namespace from outside.
/// It outlives its starter only once `record` has written its PID down: before, nobody could find it.
///
/// # Errors
/// `ENOSPC` where there are too many namespaces; what the kernel says to the host name and parameters.
pub fn start(
    dir: BorrowedFd<'_>,
    shared: &Shared,
    map: impl FnOnce(i32) -> Result<()>,
    record: impl FnOnce(i32) -> Result<()>,
) -> Result<Child> {
    let flags = shared.namespaces.iter().fold(0, |flags, kind| flags | kind.flag());
    let listener = socket::listen(dir, SOCKET).context(|| "making the keeper's socket")?;
    let (mine, theirs) = socket::pair()?;
    // To be searched by the root of a user namespace, too.
    let empty = file::mkdir_all(dir, "empty", 0o755)?;
    let keep = [listener.as_raw_fd(), theirs.as_raw_fd(), empty.as_raw_fd()];
    let child = process::spawn(flags, None, || {
        let _ = descriptor::close_all_but(&keep);
        let is_wanted = || matches!(socket::receive(theirs.as_fd(), 1), Ok(Some(_)));
        if !is_wanted() {
            return 1; // whoever started it is gone
        }
        let ready = settle(empty.as_fd(), shared, flags).map_err(|e| e.cut(1000));
        let told = serde_json::to_vec(&ready).unwrap_or_default();
        if socket::send(theirs.as_fd(), &told, &[]).is_err() || ready.is_err() || !is_wanted() {
            return 1;
        }
        let _ = descriptor::close_all_but(&[listener.as_raw_fd()]);
        keep_for_ever(&listener);
        1
    });
    let child = child.context(|| "cloning the keeper")?;
    let begun = || -> Result<()> {
        map(child.pid)?;
        socket::send(mine.as_fd(), b"g", &[])?;
        drop(theirs);
        let died = || Error::new(Code::System, "it died");
        let (told, _) = socket::receive(mine.as_fd(), LONGEST)?.ok_or_else(died)?;
        serde_json::from_slice::<Result<()>>(&told).map_err(|_| died())??;
        record(child.pid)?;
        Ok(socket::send(mine.as_fd(), b"r", &[])?)
    };
    begun().context(|| "starting the keeper of the pod's namespaces").inspect_err(|_| {
        child.kill();
        let _ = process::wait(child.pidfd.as_fd());
    })?;
    Ok(child)
}

/// Makes the namespaces what the pod wants, and gives up everything else.
fn settle(empty: BorrowedFd<'_>, shared: &Shared, flags: i32) -> Result<()> {
    // Everybody in a PID namespace can read them.
    process::hide_arguments().context(|| "hiding the command line")?;
    process::new_session()?;
    descriptor::silence()?;
    if flags & libc::CLONE_NEWUSER != 0 {
        identity::set_group(0)?;
        identity::set_user(0)?;
        process::undumpable()?;
    }
    if flags & libc::CLONE_NEWUTS != 0 {
        namespace::set_hostname(&shared.hostname).context(|| "setting hostname")?;
    }
    if flags & libc::CLONE_NEWNET != 0 {
        net::bring_loopback_up().context(|| "bringing the loopback interface up")?;
    }
    let sysctls = shared.sysctls.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    init::set_sysctls("the kernel parameter", sysctls)?;
    leave_host(empty).context(|| "leaving the host's mounts")?;
    identity::no_new_privileges()?;
    identity::set_capabilities(&identity::Capabilities::default())?;
    // Orphans in a PID namespace are its children: nobody asks for them.
    signal::ignore_children()?;
    Ok(())
}

/// Makes an empty file system the only mount there is, over the directory `empty`. Containers that share the PID namespace see
/// this process as their first, and with `CAP_SYS_PTRACE` they can enter `/proc/1/root`: a mere chroot(2) would have the host above it.
fn leave_host(empty: BorrowedFd<'_>) -> Result<()> {
    namespace::enter(empty)?;
    namespace::unshare(libc::CLONE_NEWNS)?;
    let open = |path| file::open(file::CWD, path, libc::O_PATH | libc::O_DIRECTORY, 0, Resolve::Host);
    let private = Attributes { propagation: Some(Propagation::Private), ..Attributes::default() };
    mount::set_attributes(open("/")?.as_fd(), private, true)?;
    let root =
        mount::Context::open("tmpfs")?.mount(attr::RDONLY | attr::NOSUID | attr::NODEV | attr::NOEXEC)?;
    mount::attach(root.as_fd(), open(".")?.as_fd())?;
    namespace::enter(root.as_fd())?;
    mount::pivot_root_here()?;
    mount::detach(Path::new("."))?;
    Ok(namespace::change_dir(Path::new("/"))?)
}

/// Holds what it is told to, until it is killed.
fn keep_for_ever(listener: &OwnedFd) {
    let mut held: BTreeMap<String, OwnedFd> = BTreeMap::new();
    let mut speaker: Option<OwnedFd> = None;
    loop {
        let fds: Vec<BorrowedFd<'_>> =
            [Some(listener), speaker.as_ref()].into_iter().flatten().map(AsFd::as_fd).collect();
        let Ok(ready) = event::readable(&fds, None) else { continue };
        if ready.get(1) == Some(&true) && !listen(speaker.as_ref(), &mut held) {
            speaker = None;
        }
        if ready.first() == Some(&true)
            && let Ok(next) = socket::accept(listener.as_fd())
        {
            speaker = Some(next);
        }
    }
}

/// Does what the speaker says next; false where it is gone.
fn listen(speaker: Option<&OwnedFd>, held: &mut BTreeMap<String, OwnedFd>) -> bool {
    let Some(speaker) = speaker else { return false };
    let Ok(Some((word, fd))) = socket::receive(speaker.as_fd(), LONGEST) else { return false };
    match (serde_json::from_slice(&word), fd) {
        (Ok(Word::Hold(name)), Some(fd)) => {
            held.insert(name, fd);
        }
        (Ok(Word::Drop(name)), _) => {
            held.remove(&name);
        }
        (Ok(Word::Send), _) => {
            for (name, fd) in &*held {
                if socket::send(speaker.as_fd(), name.as_bytes(), &[fd.as_fd()]).is_err() {
                    return false;
                }
            }
            return socket::send(speaker.as_fd(), b".", &[]).is_ok();
        }
        _ => {}
    }
    true
}

/// The supervisor's way to the keeper.
#[derive(Debug)]
pub struct Keeper {
    socket: OwnedFd,
}

impl Keeper {
    /// Speaks to the keeper of the pod in `dir`.
    ///
    /// # Errors
    /// `ECONNREFUSED` where it is gone.
    pub fn connect(dir: BorrowedFd<'_>) -> Result<Self> {
        let socket = socket::connect(dir, SOCKET).context(|| "speaking to the keeper")?;
        Ok(Self { socket })
    }

    /// Has it hold `fd` as `name`.
    ///
    /// # Errors
    /// `EPIPE` where it is gone.
    pub fn hold(&self, name: &str, fd: BorrowedFd<'_>) -> Result<()> {
        self.say(&Word::Hold(name.to_owned()), &[fd])
    }

    /// Has it let `name` go.
    ///
    /// # Errors
    /// `EPIPE` where it is gone.
    pub fn drop_held(&self, name: &str) -> Result<()> {
        self.say(&Word::Drop(name.to_owned()), &[])
    }

    /// All that it holds.
    ///
    /// # Errors
    /// `EPIPE` where it is gone.
    pub fn held(&self) -> Result<BTreeMap<String, OwnedFd>> {
        self.say(&Word::Send, &[])?;
        let mut held = BTreeMap::new();
        while let Some((name, Some(fd))) = socket::receive(self.socket.as_fd(), LONGEST)? {
            held.insert(String::from_utf8_lossy(&name).into_owned(), fd);
        }
        Ok(held)
    }

    fn say(&self, word: &Word, fds: &[BorrowedFd<'_>]) -> Result<()> {
        let text = serde_json::to_vec(word).map_err(Error::system)?;
        Ok(socket::send(self.socket.as_fd(), &text, fds)?)
    }
}
