//! `stats`: prints what the isolators measured.

use coracle_isolator::Handles;

use crate::cli::Global;
use crate::error::{Code, Context, Error, Result};
use crate::isolators;
use crate::stages::spec;
use crate::state::State;

/// Prints the usage of container `id` as JSON.
///
/// # Errors
/// `NotFound`; `Unsupported` where the container has no cgroups.
pub fn stats(global: &Global, id: &str) -> Result<u8> {
    let state = State::open_unlocked(&global.root, id)?;
    let place = state.record()?.and_then(|record| record.cgroup);
    let place =
        place.ok_or_else(|| Error::new(Code::Unsupported, format!("container {id:?} has no cgroups")))?;
    let spec = spec::parse(&state.config()?)?;
    let cgroup = place.open()?.into_handles();
    let handles = Handles { id, pidfd: None, cgroup: &cgroup, spec: &spec };
    let usage = isolators::all(global)?.usage(&handles).context(|| format!("measuring container {id:?}"))?;
    let usage = serde_json::to_string_pretty(&usage).map_err(|e| Error::new(Code::System, e.to_string()))?;
    crate::print(&format!("{usage}\n"));
    Ok(0)
}
