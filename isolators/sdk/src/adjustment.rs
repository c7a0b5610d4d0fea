//! What an isolator wants changed in a container's plan.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Hook, LinuxDevice, LinuxDeviceCgroup, LinuxIntelRdt, Mount, PosixRlimit, Scheduler};
use serde::{Deserialize, Serialize};

/// Changes to a plan, in the structure of the OCI runtime specification. What is absent or empty stays as it is.
///
/// Every field has one owner: [`fields`](Self::fields) names what is set, and two isolators that set one field
/// are an error.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Adjustment {
    /// Changes to `process`.
    pub process: ProcessAdjustment,
    /// Mounts: each replaces, in its place, the one with the same destination, or is added at the end. Several
    /// with one destination replace in order.
    #[cfg_attr(test, schemars(schema_with = "crate::schemas::mounts"))]
    pub mounts: Vec<Mount>,
    /// Changes to `linux`.
    pub linux: LinuxAdjustment,
    /// Hooks, which are run after those that are there.
    #[serde(skip_serializing_if = "HookAdjustment::is_empty")]
    pub hooks: HookAdjustment,
    /// What could not be done and need not stop the launch, for people: lower case, no full stop.
    pub warnings: Vec<String>,
}

/// What stands in [`Adjustment::mounts`] so that of `mounts` each of `changed`, with its index, is replaced: those, and with
/// them those that share a destination and stand before, since mounts of one destination are replaced in order.
pub fn adjusted(mounts: &[Mount], changed: &[(usize, Mount)]) -> Vec<Mount> {
    let mut adjusted = Vec::new();
    for (i, mount) in mounts.iter().enumerate() {
        let same = |j: usize| mounts[j].destination() == mount.destination();
        match changed.iter().find(|(j, _)| *j == i) {
            Some((_, changed)) => adjusted.push(changed.clone()),
            None if changed.iter().any(|(j, _)| *j > i && same(*j)) => adjusted.push(mount.clone()),
            None => {}
        }
    }
    adjusted
}

/// Hooks that are added (runtime-spec 1.3, config.md, "POSIX-platform Hooks"). Those of later moments can't be: nobody
/// would run them for a container that a plan was made for long ago.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct HookAdjustment {
    /// Before the container's root is built, in the runtime's namespaces; deprecated by the next.
    #[cfg_attr(test, schemars(schema_with = "crate::schemas::hooks"))]
    pub prestart: Vec<Hook>,
    /// At the same moment.
    #[cfg_attr(test, schemars(schema_with = "crate::schemas::hooks"))]
    pub create_runtime: Vec<Hook>,
    /// When the root is built and not yet the process's root, in the container's namespaces.
    #[cfg_attr(test, schemars(schema_with = "crate::schemas::hooks"))]
    pub create_container: Vec<Hook>,
    /// Before the program is executed, in the container.
    #[cfg_attr(test, schemars(schema_with = "crate::schemas::hooks"))]
    pub start_container: Vec<Hook>,
}

impl HookAdjustment {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Changes to `process`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ProcessAdjustment {
    /// The capabilities that the process gets.
    pub capabilities: Option<CapabilitySets>,
    /// Resource limits: each replaces the one of its type.
    #[cfg_attr(test, schemars(schema_with = "crate::schemas::rlimits"))]
    pub rlimits: Vec<PosixRlimit>,
    /// Variables, `NAME=value`: each replaces the one of its name.
    pub env: Vec<String>,
    /// Whether the process and its children can never gain privileges by execve(2).
    pub no_new_privileges: Option<bool>,
    /// Groups that it is in beside those it is in already.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub additional_gids: Vec<u32>,
    /// How soon the process is killed for want of memory, -1000 to 1000 (proc_pid_oom_score_adj(5)).
    pub oom_score_adj: Option<i32>,
    /// When its threads run (sched(7)).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, schemars(schema_with = "crate::schemas::scheduler"))]
    pub scheduler: Option<Scheduler>,
}

/// Changes to `linux`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct LinuxAdjustment {
    /// Kernel parameters of the container's namespaces, by dotted name.
    pub sysctl: BTreeMap<String, String>,
    /// Device nodes: each replaces the one with its path.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(test, schemars(schema_with = "crate::schemas::devices"))]
    pub devices: Vec<LinuxDevice>,
    /// Rules for devices, which follow those in `linux.resources.devices`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(test, schemars(schema_with = "crate::schemas::device_rules"))]
    pub device_rules: Vec<LinuxDeviceCgroup>,
    /// `linux.intelRdt`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, schemars(schema_with = "crate::schemas::intel_rdt"))]
    pub intel_rdt: Option<LinuxIntelRdt>,
    /// The system call filter, compiled.
    pub seccomp: Option<SeccompProgram>,
    /// What the process may no longer do to files, ports and other processes.
    pub landlock: Option<Landlock>,
}

/// Rules of Landlock (landlock(7)), in the kernel's bits.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Landlock {
    /// The accesses to files that are forbidden but where a path allows them (`LANDLOCK_ACCESS_FS_*`).
    pub handled_fs: u64,
    /// The accesses to TCP ports that are forbidden but where a port allows them (`LANDLOCK_ACCESS_NET_*`).
    pub handled_net: u64,
    /// What may not reach beyond the process and its descendants (`LANDLOCK_SCOPE_*`).
    pub scoped: u64,
    /// Paths in the container, and the accesses to them and all below them that are allowed.
    pub paths: Vec<(PathBuf, u64)>,
    /// Ports, and the accesses to them that are allowed.
    pub ports: Vec<(u16, u64)>,
}

/// Five sets of capabilities, each a mask in which bit `n` is the capability with the number `n`
/// (capabilities(7)).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct CapabilitySets {
    /// What execve(2) can ever give.
    pub bounding: u64,
    /// What the kernel checks.
    pub effective: u64,
    /// What may be made effective.
    pub permitted: u64,
    /// What a program file with capabilities may inherit.
    pub inheritable: u64,
    /// What a program file without capabilities inherits.
    pub ambient: u64,
}

/// A classic BPF program for seccomp(2), at most 4096 instructions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct SeccompProgram {
    /// The instructions, each a `struct sock_filter` packed as `code | jt << 16 | jf << 24 | k << 32`.
    pub program: Vec<u64>,
    /// `SECCOMP_FILTER_FLAG_*`.
    pub flags: u32,
}

impl Adjustment {
    /// The fields it sets, as JSON pointers (RFC 6901) into the specification, in which the items of a list go by
    /// what tells them apart: `/process/env/PATH`, `/mounts/~1data`.
    pub fn fields(&self) -> Vec<String> {
        let mut fields = self.process_fields();
        fields.extend(self.linux.seccomp.as_ref().map(|_| "/linux/seccomp".to_owned()));
        fields.extend(self.linux.landlock.as_ref().map(|_| "/linux/landlock".to_owned()));
        fields.extend(self.container_fields());
        fields
    }

    /// Those of [`fields`](Self::fields) that concern the container and not one of its processes.
    pub fn container_fields(&self) -> Vec<String> {
        // One thing has one pointer, however it is spelt: `/data/` is `/data`, and `net/ipv4/ip_forward` has dots, too.
        let place = |path: &Path| path.components().collect::<PathBuf>().to_string_lossy().into_owned();
        let mounts = self.mounts.iter().map(|m| pointer("/mounts", &place(m.destination())));
        let sysctls = self.linux.sysctl.keys().map(|name| pointer("/linux/sysctl", &name.replace('/', ".")));
        let devices = self.linux.devices.iter().map(|d| pointer("/linux/devices", &place(d.path())));
        let rdt = self.linux.intel_rdt.iter().map(|_| "/linux/intelRdt".to_owned());
        mounts.chain(sysctls).chain(devices).chain(rdt).collect()
    }

    fn process_fields(&self) -> Vec<String> {
        let process = &self.process;
        let mut fields = Vec::new();
        for (set, field) in [
            (process.capabilities.is_some(), "/process/capabilities"),
            (process.no_new_privileges.is_some(), "/process/noNewPrivileges"),
            (process.oom_score_adj.is_some(), "/process/oomScoreAdj"),
            (process.scheduler.is_some(), "/process/scheduler"),
        ] {
            if set {
                fields.push(field.to_owned());
            }
        }
        fields.extend(process.rlimits.iter().map(|r| pointer("/process/rlimits", &r.typ().to_string())));
        fields.extend(process.env.iter().map(|variable| pointer("/process/env", variable_name(variable))));
        fields
    }
}

/// The name of the variable `NAME=value`.
pub fn variable_name(variable: &str) -> &str {
    variable.split('=').next().unwrap_or_default()
}

/// The JSON pointer (RFC 6901) of what `key` holds in the object at `parent`.
pub fn pointer(parent: &str, key: &str) -> String {
    format!("{parent}/{}", key.replace('~', "~0").replace('/', "~1"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_what_it_sets_and_nothing_else() {
        assert_eq!(Adjustment::default().fields(), Vec::<String>::new());
        let mut mount = Mount::default();
        mount.set_destination("/data".into());
        let adjustment = Adjustment {
            process: ProcessAdjustment { env: vec!["A=1=2".to_owned()], ..ProcessAdjustment::default() },
            mounts: vec![mount],
            ..Adjustment::default()
        };
        assert_eq!(adjustment.fields(), ["/process/env/A", "/mounts/~1data"]);
        assert_eq!(adjustment.container_fields(), ["/mounts/~1data"]);
    }

    #[test]
    fn documents_use_the_names_of_the_specification() {
        let text = r#"{"process":{"noNewPrivileges":true,"oomScoreAdj":5},"linux":{"sysctl":{"a.b":"1"}}}"#;
        let adjustment: Adjustment = serde_json::from_str(text).unwrap();
        assert_eq!(
            adjustment.fields(),
            ["/process/noNewPrivileges", "/process/oomScoreAdj", "/linux/sysctl/a.b"]
        );
        let unknown = serde_json::from_str::<Adjustment>(r#"{"proces":{}}"#).unwrap_err();
        assert!(unknown.to_string().starts_with("unknown field `proces`"), "{unknown}");
    }
}
