//! The built-in isolators for control groups.

#![forbid(unsafe_code)]

use coracle_isolator::Isolator;

/// The isolators of this family.
pub fn isolators() -> Vec<Box<dyn Isolator>> {
    Vec::new()
}
