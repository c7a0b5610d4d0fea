//! What an isolator tells about a container.

use std::collections::BTreeMap;

use oci_spec::runtime::LinuxResources;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What a container uses. Each isolator fills in what it looks after; what the kernel does not tell is absent.
/// Times are nanoseconds, sizes are bytes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Usage {
    /// Processor time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<CpuUsage>,
    /// Memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<MemoryUsage>,
    /// Tasks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pids: Option<PidsUsage>,
    /// Block devices, by `major:minor`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub io: BTreeMap<String, IoUsage>,
    /// Waiting for block devices.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub io_pressure: Option<Pressure>,
    /// Huge pages, by their size as the kernel writes it: `2MB`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub hugetlb: BTreeMap<String, HugetlbUsage>,
    /// RDMA devices, by name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub rdma: BTreeMap<String, RdmaUsage>,
    /// Network interfaces of the container's own network namespace, by name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub network: BTreeMap<String, NetworkUsage>,
    /// What isolators measure beside this, by `isolator/measure`: `example/audit/launches`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub other: BTreeMap<String, f64>,
}

impl Usage {
    /// Adds what `other` knows and this does not.
    pub fn merge(&mut self, other: Self) {
        self.cpu = self.cpu.take().or(other.cpu);
        self.memory = self.memory.take().or(other.memory);
        self.pids = self.pids.take().or(other.pids);
        add_unknown(&mut self.io, other.io);
        self.io_pressure = self.io_pressure.take().or(other.io_pressure);
        add_unknown(&mut self.hugetlb, other.hugetlb);
        add_unknown(&mut self.rdma, other.rdma);
        add_unknown(&mut self.network, other.network);
        add_unknown(&mut self.other, other.other);
    }
}

fn add_unknown<T>(known: &mut BTreeMap<String, T>, other: BTreeMap<String, T>) {
    for (name, value) in other {
        known.entry(name).or_insert(value);
    }
}

/// Processor time.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct CpuUsage {
    /// All of it.
    pub total: u64,
    /// In user mode.
    pub user: u64,
    /// In the kernel.
    pub system: u64,
    /// All of it by processor; version 1 alone tells.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub per_cpu: Vec<u64>,
    /// Periods in which there was a quota.
    pub periods: u64,
    /// Periods in which the quota was used up.
    pub throttled_periods: u64,
    /// For how long tasks had to wait for the next period.
    pub throttled_time: u64,
    /// Waiting for a processor.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pressure: Option<Pressure>,
}

/// How much of the time tasks waited for a resource (psi.rst of the kernel's documentation, Linux 4.20).
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Pressure {
    /// Some of the tasks waited.
    pub some: Stall,
    /// All of them did.
    pub full: Stall,
}

/// Shares of the last ten, sixty and three hundred seconds in percent, and all of the time in microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Stall {
    /// Of the last ten seconds.
    pub avg10: f64,
    /// Of the last minute.
    pub avg60: f64,
    /// Of the last five minutes.
    pub avg300: f64,
    /// Since the beginning.
    pub total: u64,
}

/// Memory.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct MemoryUsage {
    /// What is charged to the container now, page cache included.
    pub usage: u64,
    /// The most that ever was; the kernel tells since 5.19 on version 2.
    pub peak: Option<u64>,
    /// The limit; absent where there is none.
    pub limit: Option<u64>,
    /// Swap space in use, without memory.
    pub swap: Option<u64>,
    /// The limit of swap space, without memory; absent where there is none.
    pub swap_limit: Option<u64>,
    /// What the kernel itself holds for the container.
    pub kernel: Option<u64>,
    /// Anonymous memory.
    pub rss: u64,
    /// Page cache.
    pub cache: u64,
    /// What could be given up without harm: inactive page cache.
    pub inactive_file: u64,
    /// Times that the limit was hit.
    pub limit_hits: u64,
    /// Processes killed for want of memory.
    pub oom_kills: u64,
    /// All that the kernel counts, by its own names (`memory.stat`).
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub statistics: BTreeMap<String, u64>,
    /// Waiting for memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pressure: Option<Pressure>,
}

/// Tasks: processes and threads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct PidsUsage {
    /// How many there are.
    pub current: u64,
    /// The limit; absent where there is none.
    pub limit: Option<u64>,
}

/// A block device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct IoUsage {
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub write_bytes: u64,
    /// Read operations.
    pub reads: u64,
    /// Write operations.
    pub writes: u64,
}

/// Huge pages of one size.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct HugetlbUsage {
    /// What is in use.
    pub usage: u64,
    /// The most that ever was; version 1 alone tells.
    pub peak: Option<u64>,
    /// Allocations that the limit refused.
    pub failures: u64,
}

/// An RDMA device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct RdmaUsage {
    /// Handles in use.
    pub hca_handles: u64,
    /// Objects in use.
    pub hca_objects: u64,
}

/// A network interface, as the container sees it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct NetworkUsage {
    /// Bytes received.
    pub receive_bytes: u64,
    /// Packets received.
    pub receive_packets: u64,
    /// Packets that came broken.
    pub receive_errors: u64,
    /// Packets that came and were dropped.
    pub receive_dropped: u64,
    /// Bytes sent.
    pub transmit_bytes: u64,
    /// Packets sent.
    pub transmit_packets: u64,
    /// Packets that could not be sent.
    pub transmit_errors: u64,
    /// Packets that were dropped before they were sent.
    pub transmit_dropped: u64,
}

/// A limit that a container has run into.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Limitation {
    /// What happened, for people: `memory limit of 64 MiB exceeded`.
    pub message: String,
    /// A word for programs, one for each cause: `oom`.
    pub reason: String,
    /// The limits that were exceeded.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    #[cfg_attr(test, schemars(schema_with = "crate::schemas::resources"))]
    pub resources: Option<LinuxResources>,
}

/// What others may know of a container, by subject: `{"network": {"addresses": ["10.1.0.2/16"]}}`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Status(pub BTreeMap<String, Value>);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_several_isolators_become_one_document() {
        let mut usage = Usage { cpu: Some(CpuUsage { total: 5, ..CpuUsage::default() }), ..Usage::default() };
        let pids = Some(PidsUsage { current: 2, limit: None });
        usage.merge(Usage { pids, cpu: Some(CpuUsage::default()), ..Usage::default() });
        assert_eq!(usage.cpu.unwrap().total, 5);
        assert_eq!(usage.pids, pids);
    }

    #[test]
    fn what_is_not_known_is_not_in_the_document() {
        assert_eq!(serde_json::to_string(&Usage::default()).unwrap(), "{}");
    }
}
