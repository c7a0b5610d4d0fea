//! `pause` and `resume`: stops all processes of a container where they are, and lets them go on.

use crate::cli::Global;
use crate::error::{Code, Context, Error, Result};
use crate::state::{Record, State, Status};

/// Freezes container `id`, and waits until every process of it has stopped.
///
/// # Errors
/// `IllegalState` where it neither runs nor waits for `start`.
pub fn pause(global: &Global, id: &str) -> Result<u8> {
    let attempt = || -> Result<()> {
        let (state, mut record) = open(global, id)?;
        if !matches!(record.status(), Status::Running | Status::Created) {
            return Err(Error::new(Code::IllegalState, format!("it is {}", record.status()))
                .hint("only a running container can be paused, or a created one"));
        }
        // Before it is so: whoever reads the record asks the kernel then.
        record.paused = true;
        state.write(&record)?;
        record.cgroups()?.freeze().inspect_err(|_| {
            record.paused = false;
            let _ = state.write(&record);
        })
    };
    attempt().context(|| format!("pausing container {id:?}"))?;
    Ok(0)
}

/// Thaws container `id`.
///
/// # Errors
/// `IllegalState` where it is not paused.
pub fn resume(global: &Global, id: &str) -> Result<u8> {
    let attempt = || -> Result<()> {
        let (state, mut record) = open(global, id)?;
        let tree = record.cgroups()?;
        // Whoever froze it: the kernel knows. It is asked again where a `pause` was cut off.
        if !record.paused && !tree.is_freezing()? {
            return Err(Error::new(Code::IllegalState, "container not paused"));
        }
        tree.thaw()?;
        record.paused = false;
        state.write(&record)
    };
    attempt().context(|| format!("resuming container {id:?}"))?;
    Ok(0)
}

fn open(global: &Global, id: &str) -> Result<(State, Record)> {
    let state = State::open(&global.root, id)?;
    let record = state.record()?.ok_or_else(|| Error::new(Code::IllegalState, "it is creating"))?;
    Ok((state, record))
}
