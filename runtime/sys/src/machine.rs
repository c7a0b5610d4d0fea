//! The machine.

use crate::error::Result;
use crate::file::{self, CWD, Resolve};

/// Which of its starts this is (`/proc/sys/kernel/random/boot_id`, random(4)).
///
/// # Errors
/// Where procfs is not mounted.
pub fn boot() -> Result<String> {
    let text = file::read(CWD, "/proc/sys/kernel/random/boot_id", 64, Resolve::Host)?;
    Ok(String::from_utf8_lossy(&text).trim().to_owned())
}
