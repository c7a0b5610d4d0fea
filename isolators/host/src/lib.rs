//! What the runtime sees of isolators.
//!
//! A [`Registry`] holds the configured isolators in the order of their calls. It makes each call of the contract
//! on all of them, sees to it that every field has one owner, names the isolator and the call in each failure,
//! and applies what they adjust to the specification.
//!
//! A [`plugin::Plugin`] is an isolator from a file. It lives in another process, `coracle-isolator-host`, which is the
//! binary of this crate and the only place where foreign code is loaded and called; [`wire`] is all that the two say.

#![forbid(unsafe_code)]

pub mod config;
pub mod registry;
mod entry;
mod order;
mod owners;
mod apply;
pub mod plugin;
mod process;
pub mod about;
pub mod wire;

pub use config::{Config, Settings};
pub use registry::{Adjusted, Listed, Registry, Watched};

/// The examples of the isolator author's guide, compiled and run.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/isolators.md")]
struct Guide;
