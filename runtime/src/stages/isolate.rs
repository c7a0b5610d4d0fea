//! Lets the isolators act on the waiting process, runs the hooks of this moment, and lets the child build the
//! inside of the container.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use coracle_isolator::Handles;
use coracle_isolator_host::Registry;
use coracle_sys::process::{self, Child, Exit};
use coracle_sys::{Errno, event, file, mount, scheduling};

use super::prepare::Container;
use super::spawn::{Born, Waiting};
use crate::error::{Code, Context, Error, Result};
use crate::handshake;
use crate::hooks;
use crate::stages::plan::scheduling::Scheduling;

/// A container that is whole: its first process is ready to execute.
#[derive(Debug)]
pub struct Isolated {
    /// Who it is.
    pub container: Container,
    /// Its first process.
    pub ready: ReadyProcess,
    /// What could not be done since it was prepared.
    pub warnings: Vec<String>,
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
    let Waiting { mut container, born, cgroup, holder, mut warnings } = waiting;
    let handles = Handles {
        id: &container.record.id,
        pidfd: Some(born.child.pidfd.as_fd()),
        cgroup: &cgroup,
        spec: &container.spec,
    };
    isolators.isolate(&handles).context(|| "isolating the container")?;
    warnings.extend(isolators.take_warnings());
    container.record.warnings.extend(warnings.iter().cloned());
    for stage in ["prestart", "createRuntime"] {
        let hooks = hooks::of(&container.spec, stage);
        if !hooks.is_empty() {
            hooks::run(stage, &hooks, &container.record.to_state(), &container.record.bundle)?;
        }
    }
    let ready = go(born)?;
    drop(holder);
    if container.record.mounts_over.is_some() {
        let root = file::open_dir(&container.record.rootfs).and_then(|root| mount::entry(root.as_fd()));
        container.record.mounted = Some(root.context(|| "looking at the root file system that was mounted")?);
    }
    Ok(Isolated { container, ready, warnings })
}

/// Lets a process build what it needs, waits until it is ready, and sets how it gets its turns.
///
/// # Errors
/// What the child says went wrong, or that the kernel refuses the turns.
pub fn go(born: Born) -> Result<ReadyProcess> {
    let Born { child, cloned, console, scheduling, maps } = born;
    let mut maps = maps.into_iter();
    let map = |tree: OwnedFd| {
        let owners =
            maps.next().ok_or_else(|| Error::new(Code::System, "it asks for a map that it has not"))?;
        owners.map(tree.as_fd())
    };
    let word = cloned.go_with(map).map_err(|error| reaped(&child, error))?;
    if let Err(error) = schedule(child.pid, &scheduling) {
        end(&child);
        return Err(error);
    }
    Ok(ReadyProcess { child, word, console })
}

/// From outside, where the rights for it are; and after the child has entered its cgroups, since one without a budget
/// for real-time processes takes none in. The child can't have been awaited, so its PID is still its own.
fn schedule(pid: i32, plan: &Scheduling) -> Result<()> {
    if let Some(turns) = &plan.turns {
        scheduling::set_turns(pid, turns)
            .map_err(Error::from)
            .map_err(|e| match e.errno() {
                Some(Errno::EPERM) if turns.policy == libc::SCHED_DEADLINE as u32 => {
                    e.hint("this process scheduler can't be used together with AllowedCPUs (/linux/resources/cpu/cpus)")
                }
                _ => e,
            })
            .context(|| "setting /process/scheduler")?;
    }
    if let Some((class, level)) = plan.io_priority {
        scheduling::set_io_priority(pid, class, level).context(|| "setting /process/ioPriority")?;
    }
    Ok(())
}

/// A child that failed ends by itself; one of which the runtime could not hear may wait for a `start` that never
/// comes, and is killed. It is awaited: a zombie whose parent is gone can keep a whole PID namespace from ending.
pub(super) fn reaped(child: &Child, error: Error) -> Error {
    if !ends(child) {
        end(child);
        return error;
    }
    match process::wait(child.pidfd.as_fd()) {
        Ok(Exit::Signal(libc::SIGKILL)) => error
            .hint("it was killed: by the kernel, for a memory limit that is too low, or by the container"),
        Ok(Exit::Signal(signal)) => error.hint(format!("it ended by signal {signal}")),
        _ => error,
    }
}

/// How long a child that failed may take to end.
const ENDS_WITHIN: Duration = Duration::from_secs(1);

/// Whether it ends in time.
fn ends(child: &Child) -> bool {
    matches!(event::readable(&[child.pidfd.as_fd()], Some(ENDS_WITHIN)).as_deref(), Ok([true]))
}

/// One that is frozen, or waits for the kernel, dies when it goes on: for that nobody waits.
fn end(child: &Child) {
    child.kill();
    if ends(child) {
        let _ = process::wait(child.pidfd.as_fd());
    }
}
