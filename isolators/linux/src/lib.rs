//! The built-in isolators for what a process may do: capabilities, system calls, resource limits.

#![forbid(unsafe_code)]

use coracle_isolator::Isolator;

/// The isolators of this family.
pub fn isolators() -> Vec<Box<dyn Isolator>> {
    Vec::new()
}
