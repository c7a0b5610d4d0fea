//! Which namespaces the container gets: new ones, and those it joins.

use std::path::PathBuf;

use oci_spec::runtime::{LinuxIdMapping, LinuxNamespace, LinuxNamespaceType, Spec};
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
    /// Whether the time namespace is new: made and entered by the child itself.
    pub new_time: bool,
    /// Those that are joined. A mount namespace comes last: paths of the host mean nothing in it.
    pub join: Vec<Join>,
    /// How user IDs are mapped, as `/proc/PID/uid_map` wants it; empty without a new user namespace.
    pub uid_map: String,
    /// The same for groups.
    pub gid_map: String,
    /// The new time namespace's offsets, as `/proc/PID/timens_offsets` wants them.
    pub time_offsets: String,
}

/// A namespace that is joined.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Join {
    /// Its kind (`CLONE_NEW*`).
    pub kind: i32,
    /// Its file.
    pub path: PathBuf,
    /// The field that names it.
    pub field: String,
}

/// The namespaces that `spec` asks for.
///
/// # Errors
/// `InvalidSpec` where there is no `linux` section.
pub fn plan(spec: &Spec) -> Result<Namespaces> {
    let linux = linux(spec)?;
    let mut plan = Namespaces::default();
    for (index, namespace) in linux.namespaces().iter().flatten().enumerate() {
        let flag = clone_flag(namespace.typ());
        match (path_of(namespace), flag) {
            (Some(path), kind) => plan.join.push(Join {
                kind,
                path: path.clone(),
                field: format!("/linux/namespaces/{index}/path"),
            }),
            (None, libc::CLONE_NEWCGROUP) => plan.new_cgroup = true,
            (None, libc::CLONE_NEWTIME) => plan.new_time = true,
            (None, _) => plan.new |= flag,
        }
    }
    plan.join.sort_by_key(|join| join.kind == libc::CLONE_NEWNS);
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

/// Whether a container of `spec` is in the runtime's own mount namespace.
///
/// # Errors
/// `InvalidSpec` where there is no `linux` section.
pub fn shares_mounts(spec: &Spec) -> Result<bool> {
    Ok(kinds(spec)? & libc::CLONE_NEWNS == 0)
}

/// The path of a namespace that is joined. An empty one is none, as for runc.
pub fn path_of(namespace: &LinuxNamespace) -> Option<&PathBuf> {
    namespace.path().as_ref().filter(|path| !path.as_os_str().is_empty())
}

impl Namespaces {
    /// Whether the container is in a user namespace that its configuration names, new or joined.
    pub fn in_user(&self) -> bool {
        self.new_user() || self.joins(libc::CLONE_NEWUSER)
    }

    /// Whether a namespace of one of the kinds `kinds` is joined.
    pub fn joins(&self, kinds: i32) -> bool {
        self.join.iter().any(|join| join.kind & kinds != 0)
    }

    /// Whether the container has a user namespace of its own.
    pub fn new_user(&self) -> bool {
        self.new & libc::CLONE_NEWUSER != 0
    }

    /// Whether the container has a mount namespace of its own.
    pub fn new_mount(&self) -> bool {
        self.new & libc::CLONE_NEWNS != 0
    }

    /// Whether the container has a network namespace of its own, whose loopback interface is down.
    pub fn new_network(&self) -> bool {
        self.new & libc::CLONE_NEWNET != 0
    }
}

/// The flag (`CLONE_NEW*`) of a kind of namespaces.
pub fn clone_flag(kind: LinuxNamespaceType) -> i32 {
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

/// The name of a kind of namespaces, as `linux.namespaces` has it.
pub fn name_of(kind: i32) -> &'static str {
    match kind {
        libc::CLONE_NEWNS => "mount",
        libc::CLONE_NEWCGROUP => "cgroup",
        libc::CLONE_NEWUTS => "uts",
        libc::CLONE_NEWIPC => "ipc",
        libc::CLONE_NEWUSER => "user",
        libc::CLONE_NEWPID => "pid",
        libc::CLONE_NEWNET => "network",
        libc::CLONE_NEWTIME => "time",
        _ => "unknown",
    }
}

/// Mappings as `/proc/PID/uid_map` wants them.
pub(super) fn id_map(mappings: &Option<Vec<LinuxIdMapping>>) -> String {
    let line = |m: &LinuxIdMapping| format!("{} {} {}\n", m.container_id(), m.host_id(), m.size());
    mappings.iter().flatten().map(line).collect()
}
