//! Who processes are, and what they may.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::EnvVar;

/// What holds for all containers of a pod.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct PodSecurity {
    /// The user.
    pub run_as_user: Option<u32>,
    /// The group.
    pub run_as_group: Option<u32>,
    /// Whether root is refused.
    pub run_as_non_root: Option<bool>,
    /// More groups.
    pub supplemental_groups: Vec<u32>,
    /// A group of all processes, to which empty volumes belong.
    pub fs_group: Option<u32>,
    /// Kernel parameters of the pod's namespaces.
    pub sysctls: Vec<EnvVar>,
    /// Which system calls may be made.
    pub seccomp_profile: Option<SeccompProfile>,
}

/// Who the processes of a container are, and what they may.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Security {
    /// The user.
    pub run_as_user: Option<u32>,
    /// The group.
    pub run_as_group: Option<u32>,
    /// Whether root is refused.
    pub run_as_non_root: Option<bool>,
    /// Whether the root file system can't be written.
    pub read_only_root_filesystem: bool,
    /// With `true`, programs may give more rights than their caller has.
    pub allow_privilege_escalation: Option<bool>,
    /// All capabilities, all devices, no filters.
    pub privileged: bool,
    /// Over and from the default ones.
    pub capabilities: Capabilities,
    /// Which system calls may be made.
    pub seccomp_profile: Option<SeccompProfile>,
}

/// Capabilities, with or without `CAP_`; `ALL` is all.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Capabilities {
    /// More.
    pub add: Vec<String>,
    /// Less.
    pub drop: Vec<String>,
}

/// Which system calls may be made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SeccompProfile {
    /// `RuntimeDefault`, `Unconfined` or `Localhost`.
    #[serde(rename = "type")]
    pub kind: SeccompKind,
    /// The profile's file, for `Localhost`.
    #[serde(default)]
    pub localhost_profile: Option<PathBuf>,
}

/// Where a filter comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SeccompKind {
    /// The built-in list.
    RuntimeDefault,
    /// None.
    Unconfined,
    /// A file.
    Localhost,
}
