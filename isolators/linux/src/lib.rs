//! The built-in isolators for what a process may do: capabilities, labels, system calls, files, resource
//! limits; and the policies of an operator for what every container must have, and may not ask for.
//!
//! All but `linux/rdt`, `linux/net-devices` and `network/interfaces` shape the plan of each process that is started in the
//! container and do nothing on the host.

#![forbid(unsafe_code)]

pub mod capabilities;
pub mod cdi;
mod device_node;
pub mod devices;
pub mod interfaces;
pub mod landlock;
pub mod lsm;
pub mod namespaces;
pub mod net_devices;
pub mod nnp;
pub mod rdt;
pub mod rlimits;
pub mod scheduler;
pub mod seccomp;
pub mod sysctl;

use std::path::Path;

use coracle_isolator::{Error, Isolator, Result};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// The isolators of this family, for containers whose states lie in `root`.
pub fn isolators(root: &Path) -> Vec<Box<dyn Isolator + Send>> {
    vec![
        Box::new(capabilities::Capabilities),
        Box::<cdi::Cdi>::default(),
        Box::<devices::Devices>::default(),
        Box::new(landlock::Landlock),
        Box::new(lsm::Lsm),
        Box::<namespaces::Namespaces>::default(),
        Box::new(net_devices::NetDevices::default()),
        Box::<nnp::NoNewPrivileges>::default(),
        Box::new(rdt::Rdt::new(root)),
        Box::new(rlimits::Rlimits),
        Box::<scheduler::Scheduler>::default(),
        Box::new(seccomp::Seccomp),
        Box::<sysctl::Sysctl>::default(),
        Box::new(interfaces::Interfaces),
    ]
}

/// The options of an isolator, as its settings.
fn settings<T: DeserializeOwned>(options: &Map<String, Value>) -> Result<T> {
    serde_json::from_value(Value::Object(options.clone())).map_err(|e| Error::new(e.to_string()))
}

/// `value` as a type of the specification.
fn made<T: DeserializeOwned>(what: &str, value: Value) -> Result<T> {
    serde_json::from_value(value).map_err(|e| Error::new(format!("a {what} is malformed: {e}")))
}

fn failed(error: coracle_sys::Error) -> Error {
    Error::failed(error.call(), error.errno())
}
