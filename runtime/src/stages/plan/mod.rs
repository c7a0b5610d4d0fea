//! Asks every question before anything is touched: is the configuration sound, is every field in it honoured,
//! where do the cgroups go? Pure: nothing on the host is changed, and nothing needs root.

pub mod checks;
pub mod id_maps;
pub mod namespace_checks;
pub mod launch;
mod mount_options;
pub mod mounts;
pub mod namespaces;
pub mod process;
pub mod scheduling;

use std::path::{Path, PathBuf};

use coracle_isolator::Kind;
use oci_spec::runtime::{Linux, Spec};

use crate::cgroup::{self, Management, Place};
use crate::error::{Code, Error, Result};
use crate::stages::spec::Loaded;
use crate::state::record::Process;

pub use launch::Launch;

/// A container that can be made, as far as can be told without making it.
#[derive(Debug)]
pub struct Plan {
    /// The container's ID.
    pub id: String,
    /// What kind of container it is to isolators.
    pub kind: Kind,
    /// For a debug container, the command by which somebody looks into another.
    pub client: Option<Process>,
    /// The bundle's absolute path.
    pub bundle: PathBuf,
    /// The root file system's absolute path.
    pub rootfs: PathBuf,
    /// The configuration, checked.
    pub spec: Spec,
    /// The same, as it was written.
    pub text: Vec<u8>,
    /// What in the configuration is passed over.
    pub warnings: Vec<String>,
    /// Where the container's cgroups go; `None` where it gets none.
    pub cgroup: Option<Place>,
}

/// What the caller wants beside the configuration.
#[derive(Debug, Clone, Copy)]
pub struct Wish<'a> {
    /// The container's ID.
    pub id: &'a str,
    /// Who makes its cgroups, with which rights.
    pub cgroups: Management,
}

/// Checks a configuration and decides what it leaves open.
///
/// # Errors
/// `InvalidSpec` for what is wrong, `Unsupported` for a field that is not honoured; both name the field.
pub fn plan(loaded: Loaded, wish: Wish<'_>) -> Result<Plan> {
    checks::check(&loaded.spec)?;
    let root = loaded.spec.root().as_ref().map(|r| r.path().clone()).unwrap_or_default();
    let rootfs = loaded.bundle.join(root);
    let wanted = linux(&loaded.spec)?.cgroups_path().as_deref();
    let cgroup = cgroup::place(wish.id, wanted, wish.cgroups)?;
    let Loaded { bundle, spec, text, warnings } = loaded;
    // Whatever the launch plan can't say is said now, before any side effect.
    Launch::new(&spec, &rootfs)?;
    Ok(Plan {
        id: wish.id.to_owned(),
        kind: Kind::Oci,
        client: None,
        bundle,
        rootfs,
        spec,
        text,
        warnings,
        cgroup,
    })
}

/// The configuration's `linux` section.
///
/// # Errors
/// `InvalidSpec` where there is none.
pub fn linux(spec: &Spec) -> Result<&Linux> {
    spec.linux().as_ref().ok_or_else(|| Error::new(Code::InvalidSpec, "/linux is missing"))
}

/// An absolute path of a container, below its root: without the leading slash.
pub fn below_root(path: &Path) -> PathBuf {
    path.components()
        .filter(|c| matches!(c, std::path::Component::Normal(_) | std::path::Component::ParentDir))
        .collect()
}
