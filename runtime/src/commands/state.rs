//! `state`: prints a container's state as the runtime specification defines it.

use crate::cli::Global;
use crate::error::Result;
use crate::state::{Record, State};

/// Prints the state of container `id`.
///
/// # Errors
/// `NotFound`.
pub fn state(global: &Global, id: &str) -> Result<u8> {
    let state = State::open_unlocked(&global.root, id)?;
    let record = state.record()?.unwrap_or_else(|| Record::new(id, None));
    crate::print(&format!("{:#}\n", record.to_state()));
    Ok(0)
}
