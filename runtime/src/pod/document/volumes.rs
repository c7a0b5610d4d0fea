//! Volumes, and where they are mounted.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{PullPolicy, Quantity};

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
    /// What must be there, or is made: `Directory`, `DirectoryOrCreate`, `File`, `Socket` or nothing.
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

fn is_empty(path: &Path) -> bool {
    path.as_os_str().is_empty()
}
