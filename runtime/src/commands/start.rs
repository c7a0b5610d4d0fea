//! `start`: lets the first process of a created container execute.

use coracle_sys::process::Child;
use coracle_sys::socket;

use crate::cli::Global;
use crate::error::{Code, Context, Error, Result};
use crate::handshake::{DOOR, Ready};
use crate::notify::Notify;
use crate::stages::prepare::Container;
use crate::stages::{release, spec};
use crate::state::{State, Status};

/// Starts the container.
///
/// # Errors
/// `IllegalState` where it is not `created`.
pub fn start(global: &Global, id: &str) -> Result<u8> {
    let attempt = || -> Result<()> {
        let state = State::open(&global.root, id)?;
        let record = state.record()?.ok_or_else(|| not_created("creating"))?;
        let door = match (record.status(), socket::connect(state.dir(), DOOR)) {
            (Status::Created, door) => door?,
            // A start that was cut off after it had written down that the container runs left it waiting.
            (Status::Running, Ok(door)) => door,
            (status, _) => return Err(not_created(&status.to_string())),
        };
        let spec = spec::kept(&state)?;
        let word = Ready::resume(door)?;
        let notify = Notify::begin(&state)?;
        let mut container = Container { state, record, spec };
        release::write_down(&mut container)?;
        let started = release::execute(&container, word);
        container.state.close_door();
        if started.as_ref().is_err_and(|e| e.code() == Code::Hook) {
            // A container whose poststart hook fails is stopped (runtime-spec 1.3, runtime.md, "Lifecycle").
            container.record.kill_first()?;
        }
        started?;
        let first = container.record.process;
        drop(container); // whoever waits for its program does not keep others from it
        if let (Some(notify), Some((first, pidfd))) =
            (notify, first.and_then(|first| Some((first, first.open()?))))
        {
            let told = notify.wait(&Child { pid: first.pid, pidfd });
            global.warn(told.err().map(|e| e.to_string()));
        }
        Ok(())
    };
    attempt().context(|| format!("starting container {id:?}"))?;
    Ok(0)
}

fn not_created(status: &str) -> Error {
    Error::new(Code::IllegalState, format!("cannot start a container in the {status} state"))
        .hint("only a created one can be started, and only once")
}
