//! `spec`: writes a `config.json` to start from.

use std::os::fd::AsFd;
use std::path::Path;

use coracle_image::bundle;
use coracle_sys::file::{self, Resolve};
use coracle_sys::users::Maps;
use serde_json::Value;

use crate::cgroup;
use crate::error::{Context, Error, Result};

/// Writes the configuration `name` into the bundle `directory`: with `rootless` one that the caller can run without privilege.
///
/// # Errors
/// Where one is there already: nobody's work is overwritten.
pub fn spec(directory: &Path, name: &Path, rootless: bool) -> Result<u8> {
    let spec = bundle::default_spec()?;
    let spec = if rootless { bundle::rootless(&spec, &Maps::own())? } else { spec };
    let spec = serde_json::to_value(spec);
    let mut spec = spec.map_err(Error::system)?;
    sort_capabilities(&mut spec["process"]["capabilities"]);
    if !cgroup::is_unified()? {
        // As runc has it: who runs on version 1 knows its cgroups by the host's paths.
        remove_namespace(&mut spec, "cgroup");
    }
    let path = directory.join(name);
    let attempt = || -> Result<()> {
        let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL;
        let file = file::open(file::CWD, &path, flags, 0o644, Resolve::Host)?;
        Ok(file::write_all(file.as_fd(), format!("{spec:#}\n").as_bytes())?)
    };
    attempt().context(|| format!("writing {path:?}"))?;
    Ok(0)
}

fn remove_namespace(spec: &mut Value, kind: &str) {
    if let Some(namespaces) = spec["linux"]["namespaces"].as_array_mut() {
        namespaces.retain(|namespace| namespace["type"] != kind);
    }
}

/// Sets have no order; what is written should have one, so that two of it are the same.
fn sort_capabilities(sets: &mut Value) {
    for set in sets.as_object_mut().into_iter().flat_map(serde_json::Map::values_mut) {
        if let Some(set) = set.as_array_mut() {
            set.sort_by(|a, b| a.as_str().cmp(&b.as_str()));
        }
    }
}
