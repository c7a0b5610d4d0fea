//! `kill`: sends a signal to a container's first process, or to all of its processes.

use std::os::fd::AsFd;

use coracle_sys::process;

use crate::cli::{Global, Kill};
use crate::error::{Code, Context, Error, Result};
use crate::state::State;

/// Sends the signal.
///
/// # Errors
/// `IllegalState` where the container does not run.
pub fn kill(global: &Global, options: &Kill) -> Result<u8> {
    let state = State::open_unlocked(&global.root, &options.id)?;
    let attempt = || -> Result<()> {
        let record = state.record()?.ok_or_else(not_running)?;
        if options.all {
            // Also where the first process has ended: others may be left in the cgroup.
            let tree = record.cgroup.as_ref().map(|place| place.open()).transpose()?;
            return tree.map_or_else(|| Err(not_running()), |tree| tree.signal_all(options.signal));
        }
        let pidfd = record.process.and_then(|first| first.open()).ok_or_else(not_running)?;
        match process::signal(pidfd.as_fd(), options.signal) {
            Err(e) if e.errno() == coracle_sys::Errno::ESRCH => Err(not_running()),
            other => Ok(other?),
        }
    };
    attempt().context(|| format!("signalling container {:?}", options.id))?;
    Ok(0)
}

fn not_running() -> Error {
    Error::new(Code::IllegalState, "container not running")
}
