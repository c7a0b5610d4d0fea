//! `volume`: the volumes that have names.

use coracle_isolator::Isolator;
use coracle_isolator_volume::persistent::Persistent;

use crate::cli::Global;
use crate::error::Result;
use crate::isolators;

/// Prints all of them, each with the containers that use it.
///
/// # Errors
/// Where they can't be read.
pub fn list(global: &Global) -> Result<u8> {
    for volume in configured(global)?.list()? {
        let users: Vec<String> = volume.users.iter().map(|user| user.display().to_string()).collect();
        let row = format!("{:<24} {}", volume.name, users.join(" "));
        crate::print(&format!("{}\n", row.trim_end()));
    }
    Ok(0)
}

/// Removes one.
///
/// # Errors
/// Where there is none, or it is in use.
pub fn remove(global: &Global, name: &str) -> Result<u8> {
    configured(global)?.remove(name)?;
    Ok(0)
}

fn configured(global: &Global) -> Result<Persistent> {
    let mut isolator = Persistent::new(&global.root);
    if let Some(options) = isolators::options_of(global, isolator.name())? {
        isolator.configure(&options)?;
    }
    Ok(isolator)
}
