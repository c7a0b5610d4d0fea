//! The built-in isolators for control groups: every field of `linux.resources`, on cgroup version 1 and 2.
//!
//! Each isolator owns one controller. From what the specification sets, and nothing else, it makes a short list
//! of values and files ([`limit::Setting`]) and writes it into the open directories of the container's own group.
//! What the running version of cgroups can't do is an error that names the field; nothing is ignored.

#![forbid(unsafe_code)]

mod limit;
mod statistics;
mod cpu;
mod cpuset;
mod memory;
mod pids;
mod io;
mod hugetlb;
mod rdma;
mod net;
mod devices;
mod unified;
#[cfg(test)]
mod testing;

use coracle_isolator::Isolator;
use limit::Limits;

/// The isolators of this family.
pub fn isolators() -> Vec<Box<dyn Isolator>> {
    vec![
        Box::new(Limits(cpu::Cpu)),
        Box::new(Limits(cpuset::Cpuset)),
        Box::new(Limits(memory::Memory)),
        Box::new(Limits(pids::Pids)),
        Box::new(Limits(io::Io)),
        Box::new(Limits(hugetlb::Hugetlb)),
        Box::new(Limits(rdma::Rdma)),
        Box::new(Limits(net::Net)),
        Box::new(devices::Devices),
        Box::new(Limits(unified::Unified)),
    ]
}
