//! The pod itself: its name, and what holds for all of its containers.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Container, PodSecurity, Resources, Volume};

/// A pod.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Pod {
    /// `v1`.
    pub api_version: String,
    /// `Pod`.
    pub kind: String,
    /// Its name, and what is said of it.
    pub metadata: Metadata,
    /// What it is.
    pub spec: PodSpec,
}

/// Who a pod is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Metadata {
    /// Its name, unique on the host.
    pub name: String,
    /// Kept, and told by `inspect`; names of pods are the host's, not a namespace's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Kept, and told.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Kept, and told; those that begin with `io.coracle/` steer the pod.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// What a pod is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct PodSpec {
    /// Run one after the other before the others start; those with `restartPolicy: Always` are sidecars, and go on.
    pub init_containers: Vec<Container>,
    /// The containers.
    pub containers: Vec<Container>,
    /// What is mounted in them.
    pub volumes: Vec<Volume>,
    /// Which containers are started again.
    pub restart_policy: RestartPolicy,
    /// How long a container may take to end after SIGTERM, in seconds; 30 where it is not said.
    pub termination_grace_period_seconds: Option<u64>,
    /// After how many seconds from its start the pod is ended.
    pub active_deadline_seconds: Option<u64>,
    /// The host name; the pod's name where it is not said.
    pub hostname: Option<String>,
    /// Whether the host's network is used.
    #[serde(rename = "hostNetwork")]
    pub host_network: bool,
    /// Whether the host's processes are seen.
    #[serde(rename = "hostPID")]
    pub host_pid: bool,
    /// Whether the host's IPC is used.
    #[serde(rename = "hostIPC")]
    pub host_ipc: bool,
    /// With `false`, users of the pod are not the host's.
    pub host_users: Option<bool>,
    /// Whether the containers see each other's processes.
    pub share_process_namespace: bool,
    /// What holds for all containers.
    pub security_context: PodSecurity,
    /// Limits of the whole pod.
    pub resources: Resources,
    /// Lines of `/etc/hosts`; not with the host's network.
    pub host_aliases: Vec<HostAlias>,
}

/// Which containers are started again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum RestartPolicy {
    /// All, always.
    #[default]
    Always,
    /// Those that failed.
    OnFailure,
    /// None.
    Never,
}

/// A line of `/etc/hosts`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostAlias {
    /// The address.
    pub ip: String,
    /// The names.
    pub hostnames: Vec<String>,
}
