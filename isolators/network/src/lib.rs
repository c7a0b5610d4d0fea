//! The built-in isolators for networks.
//!
//! `network/cni` connects a container, or the sandbox of a pod, to networks by plugins of the Container Network Interface
//! (CNI 1.1, github.com/containernetworking/cni/blob/spec-v1.1.0/SPEC.md). What it does is also there as plain functions,
//! for those who have a network namespace and no container yet: [`Cni::attach`], [`Cni::detach`]. `network/ports` finds who listens where it was not
//! allotted a port.

#![forbid(unsafe_code)]

pub mod wanted;
pub mod conflist;
mod plugin;
mod list;
mod answer;
mod records;
mod names;
mod ports_of_host;
pub mod cni;
mod isolator;
mod ports;

use std::path::Path;

use coracle_isolator::Isolator;

pub use cni::{Cni, Sandbox, Settings};
pub use isolator::{ANNOTATION, NetworkCni};
pub use ports::ANNOTATION as PORTS;
pub use wanted::{HostAlias, Network, PortMapping, Wanted};

/// The isolators of this family, for containers whose states lie in `root`.
pub fn isolators(root: &Path) -> Vec<Box<dyn Isolator + Send>> {
    vec![Box::new(NetworkCni::new(root)), Box::<ports::Ports>::default()]
}

/// The failure of a system call.
fn failed(error: coracle_sys::Error) -> coracle_isolator::Error {
    coracle_isolator::Error::failed(error.call(), error.errno())
}
