//! A container of a pod.

use serde::{Deserialize, Serialize};

use super::{Lifecycle, Probe, Resources, RestartPolicy, Security, VolumeMount};

/// A container.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Container {
    /// Its name, unique in the pod.
    pub name: String,
    /// Its image's reference in the store.
    pub image: String,
    /// When the image is pulled.
    pub image_pull_policy: Option<PullPolicy>,
    /// In place of the image's entrypoint; then its command does not count either.
    pub command: Vec<String>,
    /// In place of the image's command.
    pub args: Vec<String>,
    /// In place of the image's working directory.
    pub working_dir: Option<String>,
    /// Variables over the image's.
    pub env: Vec<EnvVar>,
    /// Limits and weights.
    pub resources: Resources,
    /// What is mounted.
    pub volume_mounts: Vec<VolumeMount>,
    /// Ends the container, to be started again, when it fails.
    pub liveness_probe: Option<Probe>,
    /// Tells whether the container can serve.
    pub readiness_probe: Option<Probe>,
    /// Holds the other probes back until it has succeeded.
    pub startup_probe: Option<Probe>,
    /// What is done after the start and before the end.
    pub lifecycle: Lifecycle,
    /// Who its processes are, and what they may.
    pub security_context: Security,
    /// Whether the standard input is kept open for `attach`.
    pub stdin: bool,
    /// Whether the standard input ends with its first writer.
    pub stdin_once: bool,
    /// Whether it has a terminal.
    pub tty: bool,
    /// Ports by name, for probes.
    pub ports: Vec<Port>,
    /// `Always` makes an init container a sidecar.
    pub restart_policy: Option<RestartPolicy>,
}

/// When an image is pulled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PullPolicy {
    /// Each time.
    Always,
    /// Where the store does not have it.
    IfNotPresent,
    /// Not at all.
    Never,
}

/// A variable of the environment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EnvVar {
    /// Its name.
    pub name: String,
    /// Its value.
    #[serde(default)]
    pub value: String,
}

/// A port that a container listens on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Port {
    /// The number.
    pub container_port: u16,
    /// The name.
    #[serde(default)]
    pub name: String,
    /// `TCP`, where it is not said, `UDP` or `SCTP`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// The port of the host that leads to it, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_port: Option<u16>,
    /// The host's address; all of them where it is empty.
    #[serde(rename = "hostIP", default, skip_serializing_if = "String::is_empty")]
    pub host_ip: String,
}
