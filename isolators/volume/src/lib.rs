//! The built-in isolators for volumes.

#![forbid(unsafe_code)]

pub mod host_path;
pub mod persistent;

use std::path::Path;

use coracle_isolator::Isolator;

/// The isolators of this family, for containers whose states lie in `root`.
pub fn isolators(root: &Path) -> Vec<Box<dyn Isolator + Send>> {
    vec![Box::new(host_path::HostPath), Box::new(persistent::Persistent::new(root))]
}
