//! The isolator contract: what the author of an isolator implements and is given.
//!
//! A container is composed of isolators. Each looks after one thing (memory, capabilities, volumes …): it may
//! adjust the plan of a container, act on the container from the host while its process waits, report what it
//! uses, and clean up. [`Isolator`] is the whole contract; what crosses it is either a document ([`Config`],
//! [`Adjustment`], [`Usage`], [`Limitation`], [`Status`], [`State`]), in the field names of the OCI runtime
//! specification where it has them, or an open file ([`Handles`], [`Cgroup`]), never a path or a process ID
//! that may mean something else a moment later.
//!
//! No isolator code runs inside the container's process: what must happen there is written into the plan.

#![forbid(unsafe_code)]

pub mod isolator;
pub mod config;
pub mod adjustment;
pub mod cgroup;
mod before;
pub mod report;
pub mod known;
pub mod error;
pub mod export;
#[cfg(test)]
mod schemas;

pub use adjustment::{
    Adjustment, CapabilitySets, HookAdjustment, Landlock, LinuxAdjustment, ProcessAdjustment, SeccompProgram,
    adjusted, pointer,
};
pub use cgroup::{Cgroup, Handles};
pub use config::{CgroupVersion, Config, ConfigDocument, Kind, State, States, in_user_namespace};
pub use error::{Error, Result};
pub use isolator::Isolator;
pub use nix::errno::Errno;
pub use report::{
    CpuUsage, HugetlbUsage, IoUsage, Limitation, MemoryUsage, NetworkUsage, PidsUsage, Pressure, RdmaUsage,
    Stall, Status, Usage,
};
