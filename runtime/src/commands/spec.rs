//! `spec`: writes a `config.json` to start from.

use std::os::fd::AsFd;
use std::path::Path;

use coracle_sys::file::{self, Resolve};

use crate::error::{Code, Context, Error, Result};

/// Writes `config.json` into the bundle `bundle`.
///
/// # Errors
/// Where one is there already: nobody's work is overwritten.
pub fn spec(bundle: &Path) -> Result<u8> {
    let spec = serde_json::to_value(coracle_image::bundle::default_spec()?);
    let mut spec = spec.map_err(|e| Error::new(Code::System, e.to_string()))?;
    sort_capabilities(&mut spec["process"]["capabilities"]);
    let attempt = || -> Result<()> {
        let dir = file::open_dir(bundle)?;
        let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL;
        let file = file::open(dir.as_fd(), "config.json", flags, 0o644, Resolve::BeneathNoLinks)?;
        Ok(file::write_all(file.as_fd(), format!("{spec:#}\n").as_bytes())?)
    };
    attempt().context(|| format!("writing {:?}", bundle.join("config.json")))?;
    Ok(0)
}

/// Sets have no order; what is written should have one, so that two of it are the same.
fn sort_capabilities(sets: &mut serde_json::Value) {
    for set in sets.as_object_mut().into_iter().flat_map(serde_json::Map::values_mut) {
        if let Some(set) = set.as_array_mut() {
            set.sort_by(|a, b| a.as_str().cmp(&b.as_str()));
        }
    }
}
