//! Which namespaces the container gets: new ones, and those it joins.

use std::path::PathBuf;

use oci_spec::runtime::{LinuxIdMapping, LinuxNamespaceType, Spec};
use serde::Serialize;

use super::linux;
use crate::error::Result;

/// The container's namespaces.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Namespaces {
    /// The kinds that are new (`CLONE_NEW*`), but for cgroup and time, which need a step of their own.
    pub new: i32,
    /// Whether the cgroup namespace is new: made by the child itself, once it is in its cgroups.
    pub new_cgroup: bool,
    /// Whether the time namespace is new: made by the runtime, for its children.
    pub new_time: bool,
    /// Those that are joined, each with its kind.
    pub join: Vec<(i32, PathBuf)>,
    /// How user IDs are mapped, as `/proc/PID/uid_map` wants it; empty without a new user namespace.
    pub uid_map: String,
    /// The same for groups.
    pub gid_map: String,
    /// The new time namespace's offsets, as `/proc/PID/timens_offsets` wants them.
    pub time_offsets: String,
}

/// The namespaces that `spec` asks for.
///
/// # Errors
/// `InvalidSpec` where there is no `linux` section.
pub fn plan(spec: &Spec) -> Result<Namespaces> {
    let linux = linux(spec)?;
    let mut plan = Namespaces::default();
    for namespace in linux.namespaces().iter().flatten() {
        let flag = clone_flag(namespace.typ());
        match (namespace.path(), flag) {
            (Some(path), _) => plan.join.push((flag, path.clone())),
            (None, libc::CLONE_NEWCGROUP) => plan.new_cgroup = true,
            (None, libc::CLONE_NEWTIME) => plan.new_time = true,
            (None, _) => plan.new |= flag,
        }
    }
    plan.uid_map = id_map(linux.uid_mappings());
    plan.gid_map = id_map(linux.gid_mappings());
    for (clock, offset) in linux.time_offsets().iter().flatten() {
        let (secs, nanos) = (offset.secs().unwrap_or(0), offset.nanosecs().unwrap_or(0));
        plan.time_offsets.push_str(&format!("{clock} {secs} {nanos}\n"));
    }
    Ok(plan)
}

/// The kinds of namespaces (`CLONE_NEW*`) that a process joins which is executed in a container of `spec`.
///
/// # Errors
/// `InvalidSpec` where there is no `linux` section.
pub fn kinds(spec: &Spec) -> Result<i32> {
    let namespaces = linux(spec)?.namespaces();
    Ok(namespaces.iter().flatten().fold(0, |flags, n| flags | clone_flag(n.typ())))
}

impl Namespaces {
    /// Whether the container has a user namespace of its own.
    pub fn new_user(&self) -> bool {
        self.new & libc::CLONE_NEWUSER != 0
    }

    /// Whether the container has a network namespace of its own, whose loopback interface is down.
    pub fn new_network(&self) -> bool {
        self.new & libc::CLONE_NEWNET != 0
    }
}

fn clone_flag(kind: LinuxNamespaceType) -> i32 {
    match kind {
        LinuxNamespaceType::Mount => libc::CLONE_NEWNS,
        LinuxNamespaceType::Cgroup => libc::CLONE_NEWCGROUP,
        LinuxNamespaceType::Uts => libc::CLONE_NEWUTS,
        LinuxNamespaceType::Ipc => libc::CLONE_NEWIPC,
        LinuxNamespaceType::User => libc::CLONE_NEWUSER,
        LinuxNamespaceType::Pid => libc::CLONE_NEWPID,
        LinuxNamespaceType::Network => libc::CLONE_NEWNET,
        LinuxNamespaceType::Time => libc::CLONE_NEWTIME,
    }
}

/// Mappings as `/proc/PID/uid_map` wants them.
pub(super) fn id_map(mappings: &Option<Vec<LinuxIdMapping>>) -> String {
    let line = |m: &LinuxIdMapping| format!("{} {} {}\n", m.container_id(), m.host_id(), m.size());
    mappings.iter().flatten().map(line).collect()
}
