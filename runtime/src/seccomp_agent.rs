//! The agent that decides on system calls in place of the kernel (`SCMP_ACT_NOTIFY`): it gets the descriptor of the
//! filter and the state of the container (runtime-spec 1.3, config-linux.md, "The Container Process State").

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use coracle_sys::seccomp::NEW_LISTENER;
use coracle_sys::{Errno, file, socket};
use oci_spec::runtime::{LinuxSeccomp, Spec};
use serde_json::{Value, json};

use crate::error::{Code, Context, Error, Result};
use crate::stages::plan::process::ProcessPlan;
use crate::stages::spec::SPEC_VERSION;

/// Makes sure, before anything is made, that `process` will find its agent if it needs one.
///
/// # Errors
/// `InvalidSpec` where nothing is at `linux.seccomp.listenerPath`, or no socket.
pub fn check(spec: &Spec, process: &ProcessPlan) -> Result<()> {
    if process.seccomp.as_ref().is_none_or(|filter| filter.flags & NEW_LISTENER == 0) {
        return Ok(());
    }
    let (path, _) = listener(spec);
    let found = socket::once_listening(|| file::open(file::CWD, path, libc::O_PATH, 0, file::Resolve::Host));
    let kind = found.and_then(|found| file::stat(found.as_fd())).map(|stat| stat.st_mode & libc::S_IFMT);
    let checked = match kind {
        Ok(libc::S_IFSOCK) => Ok(()),
        Ok(_) => Err(Error::new(Code::InvalidSpec, "it is no socket")),
        Err(e) => Err(Error::from(e).code_is(Code::InvalidSpec)),
    };
    checked.context(|| connecting(path))
}

/// Gives the agent of `spec` the descriptor `listener` of the filter of process `pid`. `state` is the container's.
///
/// # Errors
/// `System` where the agent does not listen.
pub fn deliver(spec: &Spec, filter: OwnedFd, pid: i32, state: &Value) -> Result<()> {
    let (path, metadata) = listener(spec);
    let told = json!({
        "ociVersion": SPEC_VERSION,
        "fds": ["seccompFd"],
        "pid": pid,
        "metadata": metadata,
        "state": state,
    });
    let socket = socket::once_listening(|| socket::connect_stream(&path.to_string_lossy()));
    let socket = socket.map_err(|e| match e.errno() {
        Errno::ECONNREFUSED => Error::from(e).hint("nobody listens there"),
        _ => Error::from(e),
    });
    let socket = socket.context(|| connecting(path))?;
    socket::send(socket.as_fd(), told.to_string().as_bytes(), &[filter.as_fd()])
        .context(|| "telling the seccomp agent of the container")
}

fn connecting(path: &Path) -> String {
    format!("failed to connect with seccomp agent {path:?} (/linux/seccomp/listenerPath)")
}

/// Where the agent listens, and what it is told beside the state.
fn listener(spec: &Spec) -> (&Path, &str) {
    let seccomp = spec.linux().as_ref().and_then(|linux| linux.seccomp().as_ref());
    let path = seccomp.and_then(|s: &LinuxSeccomp| s.listener_path().as_deref());
    let metadata = seccomp.and_then(|s| s.listener_metadata().as_deref());
    (path.unwrap_or(Path::new("")), metadata.unwrap_or_default())
}
