//! What is asked of a container or done in it while it runs: probes and lifecycle hooks.

use serde::{Deserialize, Serialize};

use super::EnvVar;

/// A probe.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Probe {
    /// Succeeds with exit code 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exec: Option<ExecAction>,
    /// Succeeds with a status from 200 to 399.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http_get: Option<HttpGet>,
    /// Succeeds where somebody listens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp_socket: Option<TcpSocket>,
    /// Seconds before the first.
    pub initial_delay_seconds: u64,
    /// Seconds from one to the next; 10.
    pub period_seconds: Option<u64>,
    /// Seconds that one may take; 1.
    pub timeout_seconds: Option<u64>,
    /// After how many that succeed it has succeeded; 1.
    pub success_threshold: Option<u32>,
    /// After how many that fail it has failed; 3.
    pub failure_threshold: Option<u32>,
}

/// What is done after the start and before the end of a container.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Lifecycle {
    /// After the start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub post_start: Option<Handler>,
    /// Before SIGTERM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pre_stop: Option<Handler>,
}

/// One deed of a hook.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Handler {
    /// Runs a program in the container.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exec: Option<ExecAction>,
    /// Asks by HTTP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http_get: Option<HttpGet>,
    /// Waits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sleep: Option<Sleep>,
}

/// A program in the container.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExecAction {
    /// The program and its arguments.
    pub command: Vec<String>,
}

/// A request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpGet {
    /// The path; `/`.
    #[serde(default)]
    pub path: Option<String>,
    /// The port, by number or name.
    pub port: PortRef,
    /// The address; the pod's own loopback.
    #[serde(default)]
    pub host: Option<String>,
    /// Header fields.
    #[serde(default)]
    pub http_headers: Vec<EnvVar>,
}

/// A connection.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TcpSocket {
    /// The port, by number or name.
    pub port: PortRef,
    /// The address; the pod's own loopback.
    #[serde(default)]
    pub host: Option<String>,
}

/// A wait.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sleep {
    /// For how long.
    pub seconds: u64,
}

/// A port by its number, or by the name that `ports` gives it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum PortRef {
    /// The number.
    Number(u16),
    /// The name.
    Name(String),
}
