//! What the runtime sees of isolators.
//!
//! A [`Registry`] holds the configured isolators in the order of their calls. It makes each call of the contract
//! on all of them, sees to it that every field has one owner, names the isolator and the call in each failure,
//! and applies what they adjust to the specification.

#![forbid(unsafe_code)]

pub mod registry;
mod order;
mod owners;
mod apply;

pub use registry::{Adjusted, Registry};

/// The examples of the isolator author's guide, compiled and run.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/isolators.md")]
struct Guide;
