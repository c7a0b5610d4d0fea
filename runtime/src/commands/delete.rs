//! `delete`: removes a container and everything that was made for it.

use crate::cli::Global;
use crate::error::{Code, Error, Result};
use crate::isolators;
use crate::stages::cleanup;
use crate::state::{State, Status};

/// Removes container `id`: one that has stopped or waits for `start`, or with `force` any, and then one that there is
/// not, too.
///
/// # Errors
/// `IllegalState` where it runs and `force` is not given.
pub fn delete(global: &Global, id: &str, force: bool) -> Result<u8> {
    let idle = if force { State::open_idle(&global.root, id)? } else { None };
    if force && idle.is_none() {
        kill_first(global, id);
    }
    let state = match idle.map_or_else(|| State::open(&global.root, id), Ok) {
        Err(e) if force && e.code() == Code::NotFound => return Ok(0),
        other => other?,
    };
    // A record that can't be read must not keep its container for ever, if it is to go by force.
    let status = match state.record() {
        Err(e) if !force => return Err(e),
        record => record.ok().flatten().map(|record| record.status()),
    };
    // One that waits for `start` goes without force, as with runc.
    if let Some(status @ (Status::Running | Status::Paused)) = status
        && !force
    {
        let why = format!("cannot delete container {id:?} that is not stopped: {status}");
        return Err(Error::new(Code::IllegalState, why).hint("kill it first, or use delete --force"));
    }
    // Nor must a configuration that can't be read: then plugins are not asked.
    let isolators = match isolators::all(global) {
        Err(e) if force => {
            global.warn([format!("{e}; no plugin is asked to give back what it holds")]);
            isolators::built_in_alone(global)?
        }
        other => other?,
    };
    global.warn(cleanup::remove(state, &isolators, force)?);
    Ok(0)
}

/// A command that talks to the first process has the container's lock for as long as that is silent, perhaps for ever: it may be
/// stopped. It is killed all the same, and needs no lock for it.
fn kill_first(global: &Global, id: &str) {
    let record = State::open_unlocked(&global.root, id).and_then(|state| state.record());
    if let Ok(Some(record)) = record {
        let _ = record.kill_first();
    }
}
