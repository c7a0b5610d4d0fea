//! The built-in isolators for volumes.

#![forbid(unsafe_code)]

pub mod host_path;

use coracle_isolator::Isolator;

/// The isolators of this family.
pub fn isolators() -> Vec<Box<dyn Isolator + Send>> {
    vec![Box::new(host_path::HostPath)]
}
