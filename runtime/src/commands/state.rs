//! `state`: prints a container's state as the runtime specification defines it.

use crate::cli::Global;
use crate::error::{Error, Result};
use crate::state::{Record, State};

/// Prints the state of container `id`.
///
/// # Errors
/// `NotFound`.
pub fn state(global: &Global, id: &str) -> Result<u8> {
    let state = State::open_unlocked(&global.root, id)?;
    let record = state.record()?.unwrap_or_else(|| Record::new(id, None));
    let told = serde_json::to_string_pretty(&record.told());
    crate::print(&(told.map_err(Error::system)? + "\n"));
    Ok(0)
}
