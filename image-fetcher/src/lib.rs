//! Images: from an archive to a root file system that a container can run on.
//!
//! A [`store::Store`] is an OCI image layout that other tools can read, with unpacked layers and mounted
//! snapshots beside the blobs. An image goes through it one way: [`import`](mod@import) or a
//! registry's [`pull`](registry::pull()) verifies and keeps its blobs,
//! [`unpack`](mod@unpack) makes each layer a directory in overlay form, [`snapshot`] mounts them one over the other, and
//! [`bundle`] writes the `config.json` that a runtime reads.
//!
//! What an image says is never trusted: bytes are digested while they flow, every input has a limit that its
//! error names, and nothing below a layer's or container's root is reached but by descriptors.

#![forbid(unsafe_code)]

pub mod error;
pub mod digest;
pub mod lock;
pub mod store;
pub mod image;
pub mod reference;
#[cfg(feature = "unpack")]
pub mod platform;
#[cfg(feature = "unpack")]
mod stage;
#[cfg(feature = "unpack")]
pub mod import;
#[cfg(feature = "unpack")]
pub mod unpack;
#[cfg(feature = "unpack")]
mod thread;
#[cfg(feature = "registry")]
pub mod registry;
mod metadata;
#[cfg(test)]
#[cfg(feature = "unpack")]
mod fixture;
pub mod snapshot;
pub mod bundle;
#[cfg(feature = "unpack")]
pub mod diff;
#[cfg(feature = "unpack")]
pub mod export;
#[cfg(feature = "unpack")]
pub mod space;
#[cfg(feature = "fuzz")]
pub mod fuzz;

pub use error::{Context, Error, Kind, Result};
