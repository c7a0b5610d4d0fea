//! Lets the process execute the user's program.

use std::os::fd::OwnedFd;

use coracle_sys::process::Child;
use oci_spec::runtime::Spec;

use super::isolate::{Isolated, ReadyProcess, reaped};
use super::prepare::Container;
use crate::error::Result;
use crate::handshake::Ready;
use crate::hooks;
use crate::notify::Notify;
use crate::seccomp_agent;
use crate::state::{Phase, Record};

/// A process that executes the user's program.
#[derive(Debug)]
pub struct Running {
    /// The process.
    pub child: Child,
    /// As in [`super::spawn::Born`].
    pub console: Option<OwnedFd>,
    /// Where it says that it is ready, and somebody wants to know.
    pub notify: Option<Notify>,
    /// For a container's first process: whether isolators may have something beside the container.
    pub has_beside: bool,
}

/// Releases the container's first process. The container's lock ends with it, but for who kept a copy of its state.
///
/// # Errors
/// What the child says went wrong, or a poststart hook.
pub fn release(isolated: Isolated) -> Result<Running> {
    let Isolated { mut container, ready: ReadyProcess { child, word, console }, .. } = isolated;
    write_down(&mut container)?;
    execute(&container, word)?;
    Ok(Running { child, console, notify: None, has_beside: container.record.has_beside })
}

/// Writes down that `container` runs, before it is so: a crash in between must not leave a running container that is taken
/// for a created one.
///
/// # Errors
/// `ENOSPC`; then it still waits to be started.
pub fn write_down(container: &mut Container) -> Result<()> {
    container.record.phase = Phase::Running;
    container.save()
}

/// Says Exec to the first process of `container` and runs the hooks that follow.
///
/// # Errors
/// What the child says went wrong, or a poststart hook.
pub fn execute(container: &Container, word: Ready) -> Result<()> {
    word.exec(|filter| deliver(container, filter))?;
    let hooks = hooks::of(&container.spec, "poststart");
    if hooks.is_empty() {
        return Ok(());
    }
    hooks::close_inherited()?;
    hooks::run("poststart", &hooks, &container.record.to_state(), &container.record.bundle)
}

fn deliver(container: &Container, filter: OwnedFd) -> Result<()> {
    let Some(first) = container.record.process else { return Ok(()) };
    // Its program does not run before its agent knows of it.
    let mut state = container.record.to_state();
    state["status"] = "created".into();
    seccomp_agent::deliver(&container.spec, filter, first.pid, &state)
}

/// Releases a process that is executed in the container of `record` with the configuration `spec`.
///
/// # Errors
/// What the child says went wrong.
pub fn release_process(ready: ReadyProcess, record: &Record, spec: &Spec) -> Result<Running> {
    let ReadyProcess { child, word, console } = ready;
    match word.exec(|filter| seccomp_agent::deliver(spec, filter, child.pid, &record.to_state())) {
        Ok(()) => Ok(Running { child, console, notify: None, has_beside: false }),
        Err(error) => Err(reaped(&child, error)),
    }
}
