//! The built-in isolators for what a process may do: capabilities, labels, system calls, files, resource
//! limits.
//!
//! All but `linux/rdt`, `linux/net-devices` and `network/interfaces` shape the plan of each process that is started in the
//! container and do nothing on the host.

#![forbid(unsafe_code)]

pub mod capabilities;
pub mod cdi;
pub mod interfaces;
pub mod landlock;
pub mod lsm;
pub mod net_devices;
pub mod rdt;
pub mod rlimits;
pub mod seccomp;

use coracle_isolator::Isolator;

/// The isolators of this family.
pub fn isolators() -> Vec<Box<dyn Isolator + Send>> {
    vec![
        Box::new(capabilities::Capabilities),
        Box::<cdi::Cdi>::default(),
        Box::new(landlock::Landlock),
        Box::new(lsm::Lsm),
        Box::new(net_devices::NetDevices::default()),
        Box::new(rdt::Rdt::default()),
        Box::new(rlimits::Rlimits),
        Box::new(seccomp::Seccomp),
        Box::new(interfaces::Interfaces),
    ]
}
