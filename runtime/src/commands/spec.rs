//! `spec`: writes a `config.json` to start from.

use std::os::fd::AsFd;
use std::path::Path;

use coracle_sys::file::{self, Resolve};
use serde_json::{Value, json};

use crate::error::{Code, Context, Error, Result};

/// Writes `config.json` into the bundle `bundle`: with `rootless` one that the caller can run without privilege.
///
/// # Errors
/// Where one is there already: nobody's work is overwritten.
pub fn spec(bundle: &Path, rootless: bool) -> Result<u8> {
    let spec = serde_json::to_value(coracle_image::bundle::default_spec()?);
    let mut spec = spec.map_err(|e| Error::new(Code::System, e.to_string()))?;
    sort_capabilities(&mut spec["process"]["capabilities"]);
    if rootless {
        make_rootless(&mut spec);
    }
    let attempt = || -> Result<()> {
        let dir = file::open_dir(bundle)?;
        let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL;
        let file = file::open(dir.as_fd(), "config.json", flags, 0o644, Resolve::BeneathNoLinks)?;
        Ok(file::write_all(file.as_fd(), format!("{spec:#}\n").as_bytes())?)
    };
    attempt().context(|| format!("writing {:?}", bundle.join("config.json")))?;
    Ok(0)
}

/// What a user without privilege may do, as runc writes it: one user, the caller, who is root inside; the host's
/// network, and therefore the host's sysfs; no limits, and no groups that the user namespace does not know.
fn make_rootless(spec: &mut Value) {
    let linux = &mut spec["linux"];
    let mapping = |host: u32| json!([{"containerID": 0, "hostID": host, "size": 1}]);
    linux["uidMappings"] = mapping(nix::unistd::geteuid().as_raw());
    linux["gidMappings"] = mapping(nix::unistd::getegid().as_raw());
    if let Some(namespaces) = linux["namespaces"].as_array_mut() {
        namespaces.retain(|namespace| namespace["type"] != "network");
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

/// Sets have no order; what is written should have one, so that two of it are the same.
fn sort_capabilities(sets: &mut Value) {
    for set in sets.as_object_mut().into_iter().flat_map(serde_json::Map::values_mut) {
        if let Some(set) = set.as_array_mut() {
            set.sort_by(|a, b| a.as_str().cmp(&b.as_str()));
        }
    }
}
