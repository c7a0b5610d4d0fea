//! What an isolator is told about a container.

use std::fmt;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxNamespaceType, Spec};
use serde::{Deserialize, Serialize};

/// The kinds of container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum Kind {
    /// A container of its own, made from an OCI bundle.
    Oci,
    /// The outermost container of a pod.
    Pod,
    /// A container inside another one.
    Nested,
    /// A container that looks into another one and ends with its session.
    Debug,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Oci, Self::Pod, Self::Nested, Self::Debug];
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Oci => "OCI",
            Self::Pod => "pod",
            Self::Nested => "nested",
            Self::Debug => "debug",
        })
    }
}

/// Which hierarchy of control groups carries the machine's resource controllers (cgroups(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum CgroupVersion {
    /// Version 1: a hierarchy for each controller or few. A hybrid machine is one of these.
    V1,
    /// Version 2: the unified hierarchy.
    V2,
}

/// Whether the container of `spec` has a user namespace: its own, or one that it joins.
#[must_use]
pub fn in_user_namespace(spec: &Spec) -> bool {
    let namespaces = spec.linux().as_ref().and_then(|linux| linux.namespaces().as_deref());
    namespaces.unwrap_or_default().iter().any(|namespace| namespace.typ() == LinuxNamespaceType::User)
}

/// A container that is about to be made, or a process that is about to be started in one.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Config<'a> {
    /// The container's ID.
    pub id: &'a str,
    /// The container's kind.
    pub kind: Kind,
    /// The bundle's directory: relative paths of the specification start here.
    pub bundle: &'a Path,
    /// The specification as it was written; for [`Isolator::process`](crate::Isolator::process) its `process`
    /// is the one that is about to be started.
    pub spec: &'a Spec,
    /// What the machine offers for limits.
    pub cgroup: CgroupVersion,
}

/// A [`Config`] as a document.
#[derive(Debug, Clone, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[cfg_attr(
    test,
    schemars(
        title = "Config",
        description = "A container that is about to be made, or a process \
    that is about to be started in one."
    )
)]
pub struct ConfigDocument {
    /// The container's ID.
    pub id: String,
    /// The container's kind.
    pub kind: Kind,
    /// The bundle's directory: relative paths of the specification start here.
    pub bundle: PathBuf,
    /// The specification as it was written: config.json of the OCI runtime specification. For `process`, its
    /// `process` is the one that is about to be started.
    #[cfg_attr(test, schemars(schema_with = "crate::schemas::spec"))]
    pub spec: Spec,
    /// What the machine offers for limits.
    pub cgroup: CgroupVersion,
}

impl ConfigDocument {
    /// The same, lent.
    pub fn lend(&self) -> Config<'_> {
        Config { id: &self.id, kind: self.kind, bundle: &self.bundle, spec: &self.spec, cgroup: self.cgroup }
    }
}

/// What a runtime finds when it looks after what an earlier one left.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct States {
    /// The containers that are known.
    pub states: Vec<State>,
    /// IDs of others that have left something behind.
    pub orphans: Vec<String>,
}

/// A container as it stood when an earlier runtime last wrote its state down.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct State {
    /// The container's ID.
    pub id: String,
    /// The container's kind.
    pub kind: Kind,
    /// The bundle's directory.
    pub bundle: PathBuf,
    /// The container's first process in the runtime's PID namespace, where it still lives.
    pub pid: Option<i32>,
}
