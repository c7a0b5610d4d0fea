//! `kill`: sends a signal to a container's first process, or to all of its processes.

use std::os::fd::AsFd;

use coracle_sys::process;
use oci_spec::runtime::LinuxNamespaceType;

use crate::cli::{Global, Kill};
use crate::error::{Context, Error, Result};
use crate::stages::spec;
use crate::state::{Record, State};

/// Sends the signal. `SIGKILL` goes to all processes of a container without a PID namespace of its own, whose others
/// would outlive the first, and ends a paused container, too.
///
/// # Errors
/// `IllegalState` where the container does not run.
pub fn kill(global: &Global, options: &Kill) -> Result<u8> {
    let state = State::open_unlocked(&global.root, &options.id)?;
    let attempt = || -> Result<()> {
        let record = state.record()?.ok_or_else(Error::not_running)?;
        if options.all {
            // Also where the first process has ended: others may be left in the cgroup.
            return kill_all(&record, options.signal);
        }
        let first = record.process.map_or(Ok(None), |first| first.find());
        let signalled = first.and_then(|first| first.ok_or_else(Error::not_running)).and_then(|first| {
            process::signal(first.as_fd(), options.signal).map_err(|e| match e.errno() {
                coracle_sys::Errno::ESRCH => Error::not_running(),
                _ => e.into(),
            })
        });
        if options.signal != libc::SIGKILL {
            return signalled;
        }
        // Without a PID namespace of their own, others outlive the first, and are the container's still.
        if let Some(place) = &record.cgroup
            && !has_pid_namespace(&state)
        {
            let tree = place.open()?;
            return if tree.is_populated()? { tree.signal_all(libc::SIGKILL) } else { signalled };
        }
        signalled?;
        record.cgroup.as_ref().map_or(Ok(()), |place| place.open().map(|tree| tree.thaw_to_die()))
    };
    attempt().context(|| format!("signalling container {:?}", options.id))?;
    Ok(0)
}

fn kill_all(record: &Record, signal: i32) -> Result<()> {
    if let Some(place) = &record.cgroup {
        return place.open()?.signal_all(signal);
    }
    // Without cgroups its first process is all that is known of it.
    let first = record.process.map_or(Ok(None), |first| first.find())?;
    match first.map_or(Ok(()), |first| process::signal(first.as_fd(), signal)) {
        Err(e) if e.errno() == coracle_sys::Errno::ESRCH => Ok(()),
        signalled => Ok(signalled?),
    }
}

/// Whether the container was made with a PID namespace of its own. A configuration that can't be read is taken for
/// one with: then no more is killed than was asked for.
fn has_pid_namespace(state: &State) -> bool {
    let Ok(spec) = spec::kept(state) else { return true };
    let namespaces = spec.linux().as_ref().and_then(|linux| linux.namespaces().clone()).unwrap_or_default();
    namespaces.iter().any(|n| n.typ() == LinuxNamespaceType::Pid && n.path().is_none())
}
