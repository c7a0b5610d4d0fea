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
    let spec = serde_json::to_string_pretty(&coracle_image::bundle::default_spec()?)
        .map_err(|e| Error::new(Code::System, e.to_string()))?;
    let attempt = || -> Result<()> {
        let dir = file::open_dir(bundle)?;
        let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL;
        let file = file::open(dir.as_fd(), "config.json", flags, 0o644, Resolve::BeneathNoLinks)?;
        Ok(file::write_all(file.as_fd(), format!("{spec}\n").as_bytes())?)
    };
    attempt().context(|| format!("writing {:?}", bundle.join("config.json")))?;
    Ok(0)
}
