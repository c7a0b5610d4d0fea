//! The isolator contract for C.
//!
//! [`table`] is what crosses the border between the host and a plugin; the header `coracle_isolator.h` beside this crate
//! is made of it. [`author`] exports what is written in Rust as such a table; the other side, which loads one, is in
//! `isolators/host`.
//!
//! The crate depends on nothing, and `table` on nothing but `core`.

#![expect(unsafe_code, reason = "this crate is the border to C, and holds the author's side of it")]

pub mod table;
mod verb;
pub mod author;

pub use verb::{Given, Verb};

/// The header, for authors in C.
pub const HEADER: &str = include_str!("../coracle_isolator.h");

/// The name of the function that a plugin exports.
pub const SYMBOL: &str = "coracle_isolator_table";
