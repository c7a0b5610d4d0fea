//! `spec`: writes a `config.json` to start from.

use std::os::fd::AsFd;
use std::path::Path;

use coracle_sys::file::{self, Resolve};
use serde_json::{Value, json};

use crate::cgroup;
use crate::error::{Code, Context, Error, Result};

/// Writes the configuration `name` into the bundle `bundle`: with `rootless` one that the caller can run without privilege.
///
/// # Errors
/// Where one is there already: nobody's work is overwritten.
pub fn spec(bundle: &Path, name: &Path, rootless: bool) -> Result<u8> {
    let spec = serde_json::to_value(coracle_image::bundle::default_spec()?);
    let mut spec = spec.map_err(|e| Error::new(Code::System, e.to_string()))?;
    sort_capabilities(&mut spec["process"]["capabilities"]);
    if !cgroup::is_unified()? {
        // As runc has it: who runs on version 1 knows its cgroups by the host's paths.
        remove_namespace(&mut spec, "cgroup");
    }
    if rootless {
        make_rootless(&mut spec);
    }
    let path = bundle.join(name);
    let attempt = || -> Result<()> {
        let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL;
        let file = file::open(file::CWD, &path, flags, 0o644, Resolve::Host)?;
        Ok(file::write_all(file.as_fd(), format!("{spec:#}\n").as_bytes())?)
    };
    attempt().context(|| format!("writing {path:?}"))?;
    Ok(0)
}

/// What a user without privilege may do, as runc writes it: one user, the caller, who is root inside; the host's
/// network, and therefore the host's sysfs; no limits, and no groups that the user namespace does not know.
fn make_rootless(spec: &mut Value) {
    remove_namespace(spec, "network");
    let linux = &mut spec["linux"];
    let mapping = |host: u32| json!([{"containerID": 0, "hostID": host, "size": 1}]);
    linux["uidMappings"] = mapping(nix::unistd::geteuid().as_raw());
    linux["gidMappings"] = mapping(nix::unistd::getegid().as_raw());
    if let Some(namespaces) = linux["namespaces"].as_array_mut() {
        namespaces.push(json!({"type": "user"}));
    }
    if let Some(linux) = linux.as_object_mut() {
        linux.remove("resources");
    }
    for mount in spec["mounts"].as_array_mut().into_iter().flatten() {
        if mount["type"] == "sysfs" {
            let options = ["rbind", "nosuid", "noexec", "nodev", "ro"];
            *mount = json!({"destination": "/sys", "type": "none", "source": "/sys", "options": options});
        }
        if let Some(options) = mount["options"].as_array_mut() {
            let is_owner = |option: &Value| {
                option.as_str().is_some_and(|text| text.starts_with("uid=") || text.starts_with("gid="))
            };
            options.retain(|option| !is_owner(option));
        }
    }
    if let Some(mounts) = spec["mounts"].as_array_mut() {
        mounts.retain(|mount| mount["type"] != "cgroup");
    }
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
