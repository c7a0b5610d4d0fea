//! The fields of a `v1.Pod` that are honoured, by the names that Kubernetes gives them. A field that is not here is
//! refused.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

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
    /// Lines of `/etc/hosts`.
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

/// Limits (what may be used at most) and requests (what is to be had when others want it, too).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Resources {
    /// The most.
    pub limits: Amounts,
    /// The least.
    pub requests: Amounts,
}

/// Amounts, as Kubernetes writes quantities.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Amounts {
    /// Processors: `500m` is a half.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<Quantity>,
    /// Bytes: `64Mi`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Quantity>,
    /// Processes and threads; ours, not Kubernetes'.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pids: Option<Quantity>,
}

/// A quantity: a number, or a string of a number and a suffix.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Quantity {
    /// Plain.
    Number(f64),
    /// With a suffix.
    Text(String),
}

/// A volume: its name and one source.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Volume {
    /// Its name, unique in the pod.
    pub name: String,
    /// An empty directory that goes with the pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub empty_dir: Option<EmptyDir>,
    /// A path of the host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_path: Option<HostPath>,
    /// The files of an image, read-only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageVolume>,
    /// Secret files, in memory only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret: Option<SecretVolume>,
    /// A volume of the host with a name, which outlives the pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub persistent_volume_claim: Option<Claim>,
    /// A directory of each container's own; ours, not Kubernetes'.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<SandboxVolume>,
}

/// A volume of the host with a name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Claim {
    /// The volume's name, as `coracle volume` has it.
    pub claim_name: String,
    /// Whether nobody in the pod can write to it.
    #[serde(default)]
    pub read_only: bool,
}

/// A directory that belongs to a container and goes with it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SandboxVolume {
    /// Where in what belongs to the container, a relative path, which is made.
    pub path: PathBuf,
    /// Whose it is.
    #[serde(default)]
    pub of: Whose,
}

/// Whose a directory is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Whose {
    /// That of the container in which it is mounted.
    #[default]
    Own,
    /// That of the container above it.
    Parent,
}

/// An empty directory.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct EmptyDir {
    /// `Memory`, or empty for the host's disk.
    pub medium: String,
    /// The most that it may hold; for one in memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size_limit: Option<Quantity>,
}

/// A path of the host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HostPath {
    /// The path.
    pub path: PathBuf,
    /// What must be there, or is made: `Directory`, `DirectoryOrCreate`, `File`, `FileOrCreate`, `Socket` or nothing.
    #[serde(default, rename = "type")]
    pub kind: String,
}

/// The files of an image.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ImageVolume {
    /// The image's reference.
    pub reference: String,
    /// When it is pulled.
    #[serde(default)]
    pub pull_policy: Option<PullPolicy>,
}

/// Secret files: those of a directory of the host, copied into memory when the pod starts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SecretVolume {
    /// The name of the secret: a directory in the directory of secrets.
    pub secret_name: String,
    /// The permission bits of the files.
    #[serde(default)]
    pub default_mode: Option<u32>,
}

/// Where a volume is mounted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VolumeMount {
    /// The volume.
    pub name: String,
    /// Where, in the container.
    pub mount_path: PathBuf,
    /// Whether it can't be written.
    #[serde(default)]
    pub read_only: bool,
    /// What of the volume is mounted: a relative path, looked up in it and made where it is missing. All of it where this
    /// is empty.
    #[serde(default, skip_serializing_if = "is_empty")]
    pub sub_path: PathBuf,
}

fn is_empty(path: &std::path::Path) -> bool {
    path.as_os_str().is_empty()
}

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

/// A line of `/etc/hosts`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostAlias {
    /// The address.
    pub ip: String,
    /// The names.
    pub hostnames: Vec<String>,
}

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
    /// With `false`, no program gives more rights than its caller has.
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
