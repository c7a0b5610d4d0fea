//! Lets the isolators act on the waiting process, runs the hooks of this moment, and lets the child build the
//! inside of the container.

use std::os::fd::{AsFd, OwnedFd};

use coracle_isolator::Handles;
use coracle_isolator_host::Registry;
use coracle_sys::process::{self, Child, Exit};

use super::prepare::Container;
use super::spawn::{Born, Waiting};
use crate::error::{Context, Error, Result};
use crate::handshake;
use crate::hooks;

/// A container that is whole: its first process is ready to execute.
#[derive(Debug)]
pub struct Isolated {
    /// Who it is.
    pub container: Container,
    /// Its first process.
    pub ready: ReadyProcess,
}

/// A process that is ready to execute.
#[derive(Debug)]
pub struct ReadyProcess {
    /// The process.
    pub child: Child,
    /// The conversation with it.
    pub word: handshake::Ready,
    /// As in [`Born`].
    pub console: Option<OwnedFd>,
}

/// Isolates the waiting container.
///
/// # Errors
/// What an isolator, a hook or the child says went wrong.
pub fn isolate(waiting: Waiting, isolators: &Registry) -> Result<Isolated> {
    let Waiting { container, born, cgroup } = waiting;
    let handles = Handles {
        id: container.state.id(),
        pidfd: Some(born.child.pidfd.as_fd()),
        cgroup: &cgroup,
        spec: &container.spec,
    };
    isolators.isolate(&handles).context(|| "isolating the container")?;
    for stage in ["prestart", "createRuntime"] {
        let hooks = hooks::of(&container.spec, stage);
        if !hooks.is_empty() {
            hooks::run(stage, &hooks, &container.record.to_state(), &container.record.bundle)?;
        }
    }
    Ok(Isolated { container, ready: go(born)? })
}

/// Lets a process build what it needs, and waits until it is ready.
///
/// # Errors
/// What the child says went wrong.
pub fn go(born: Born) -> Result<ReadyProcess> {
    let Born { child, cloned, console } = born;
    match cloned.go() {
        Ok(word) => Ok(ReadyProcess { child, word, console }),
        Err(error) => Err(reaped(&child, error)),
    }
}

/// A child that failed ends by itself. It is awaited: a zombie whose parent is gone can keep a whole PID namespace
/// from ending.
pub(super) fn reaped(child: &Child, error: Error) -> Error {
    match process::wait(child.pidfd.as_fd()) {
        Ok(Exit::Signal(libc::SIGKILL)) => error.hint("it was killed: is a memory limit too low?"),
        Ok(Exit::Signal(signal)) => error.hint(format!("it ended by signal {signal}")),
        _ => error,
    }
}
