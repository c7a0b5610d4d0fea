//! The isolators that are built in.

use coracle_isolator_host::Registry;

use crate::error::Result;

/// All built-in isolators, in the order of their calls.
///
/// # Errors
/// Where two have one name or wait for each other.
pub fn built_in() -> Result<Registry> {
    let mut all = coracle_isolator_linux::isolators();
    all.extend(coracle_isolator_volume::isolators());
    all.extend(coracle_isolator_cgroup::isolators());
    Ok(Registry::new(all)?)
}
