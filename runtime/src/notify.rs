//! The socket of sd_notify(3). A caller that wants to know when the container's program is ready names one in
//! `NOTIFY_SOCKET`: systemd, of a service that it starts, and podman (`--sdnotify`).
//!
//! The container gets a socket of its own, in a directory at the same path as with crun, and its name in the same
//! variable. Of what is said there only `READY=1` goes on to the caller, as with runc: the rest could speak for others.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use coracle_sys::file::{self, Resolve};
use coracle_sys::process::Child;
use coracle_sys::{Errno, event, socket};
use oci_spec::runtime::{MountBuilder, Spec};

use crate::error::{Code, Context, Error, Result};
use crate::state::State;

/// The directory in a container's state that the container is shown.
const DIRECTORY: &str = "notify";
/// The socket in it.
const SOCKET: &str = "notify";
/// Where the directory is shown of a caller whose own socket has no path.
const ELSEWHERE: &str = "/run/notify";
const VARIABLE: &str = "NOTIFY_SOCKET";
/// The longest message that is read, in bytes; what is longer is passed over.
const LONGEST: usize = 4096;

/// Where the caller wants to be told.
fn wanted() -> Option<String> {
    std::env::var(VARIABLE).ok().filter(|name| !name.is_empty())
}

/// Adds to `spec`, where the caller wants to be told, the directory of the container `id` below `root` and the variable.
///
/// # Errors
/// `Usage` where the state's directory can't be named.
pub fn share(spec: &mut Spec, root: &Path, id: &str) -> Result<()> {
    let Some(host) = wanted() else { return Ok(()) };
    let own = std::path::absolute(root.join(id).join(DIRECTORY));
    let own = own.map_err(|e| Error::new(Code::Usage, format!("--root {root:?}: {e}")))?;
    let place = if host.starts_with('/') { &host } else { ELSEWHERE };
    let options = ["bind", "ro", "nosuid", "nodev", "noexec"].map(str::to_owned);
    let mount = MountBuilder::default().destination(place).source(own).typ("bind").options(options).build();
    let mount = mount.map_err(Error::system)?;
    spec.mounts_mut().get_or_insert_default().push(mount);
    if let Some(process) = spec.process_mut() {
        let env = process.env_mut().get_or_insert_default();
        env.retain(|variable| !variable.starts_with("NOTIFY_SOCKET="));
        env.push(format!("{VARIABLE}={place}/{SOCKET}"));
    }
    Ok(())
}

/// Makes the directory, where the caller wants to be told.
///
/// # Errors
/// `ENOSPC`.
pub fn make_directory(state: &State) -> Result<()> {
    if wanted().is_none() {
        return Ok(());
    }
    file::mkdir(state.dir(), DIRECTORY, 0o755).context(|| format!("making the directory of {VARIABLE}"))
}

/// The container's socket, listened to for the caller.
#[derive(Debug)]
pub struct Notify {
    socket: OwnedFd,
    host: String,
}

impl Notify {
    /// Begins to listen, before the program can say anything. `None` where nobody wants to be told, or the container was
    /// made without such a directory.
    ///
    /// # Errors
    /// Whatever the kernel says.
    pub fn begin(state: &State) -> Result<Option<Self>> {
        let Some(host) = wanted() else { return Ok(None) };
        let dir = match file::open(state.dir(), DIRECTORY, libc::O_DIRECTORY, 0, Resolve::BeneathNoLinks) {
            Err(e) if e.errno() == Errno::ENOENT => return Ok(None),
            dir => dir?,
        };
        // A start that was cut off may have left its own.
        let _ = file::unlink(dir.as_fd(), SOCKET);
        let socket = socket::named_datagrams(dir.as_fd(), SOCKET);
        Ok(Some(Self { socket: socket.context(|| format!("listening for {VARIABLE}"))?, host }))
    }

    /// Waits until the program of `child` is ready, or has ended, and tells the caller, with its PID: who has asked for it
    /// does not stay.
    ///
    /// # Errors
    /// Where the caller can't be told.
    pub fn wait(&self, child: &Child) -> Result<()> {
        loop {
            let ready = event::readable(&[self.fd(), child.pidfd.as_fd()], None)?;
            if ready.first() != Some(&true) || self.hear(&format!("MAINPID={}\n", child.pid))? {
                return Ok(());
            }
        }
    }

    /// What becomes readable when the program says something.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Takes what the program says; true where it was that it is ready, which the caller has then been told, after `first`.
    ///
    /// # Errors
    /// Where the caller can't be told.
    pub fn hear(&self, first: &str) -> Result<bool> {
        let said = match socket::receive(self.fd(), LONGEST) {
            Err(e) if e.errno() == Errno::EMSGSIZE => return Ok(false),
            said => said?.map(|(text, _)| text).unwrap_or_default(),
        };
        if !said.split(|byte| *byte == b'\n').any(|line| line == b"READY=1") {
            return Ok(false);
        }
        let told = format!("{first}READY=1");
        socket::send_to(&self.host, told.as_bytes()).context(|| format!("telling {VARIABLE}"))?;
        Ok(true)
    }
}
