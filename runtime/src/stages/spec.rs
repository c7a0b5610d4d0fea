//! Reads a bundle's `config.json`. Parsing only: what it means is the plan's business.

use std::path::{Path, PathBuf};

use coracle_sys::Errno;
use coracle_sys::file::{self, Resolve};
use oci_spec::runtime::{Process, Spec};

use crate::error::{Code, Context, Error, Result};

/// The version of the runtime specification that Coracle follows.
pub const SPEC_VERSION: &str = "1.3.0";

/// The largest configuration that is read, in bytes.
const LARGEST: u64 = 16 << 20;

/// A bundle's configuration as it was read.
#[derive(Debug)]
pub struct Loaded {
    /// The bundle's absolute path.
    pub bundle: PathBuf,
    /// The configuration.
    pub spec: Spec,
    /// The same, as it was written.
    pub text: Vec<u8>,
}

/// Reads the configuration of the bundle at `bundle`, relative to the working directory.
///
/// # Errors
/// `InvalidSpec` where there is none or it is malformed; the error says where.
pub fn load(bundle: &Path) -> Result<Loaded> {
    let bundle = std::path::absolute(bundle)
        .map_err(|e| Error::new(Code::InvalidSpec, format!("the bundle's path is no path: {e}")))?;
    let path = bundle.join("config.json");
    let text = match file::read(file::CWD, &path, LARGEST, Resolve::Host) {
        Err(e) if e.errno() == Errno::ENOENT => {
            return Err(Error::from(e).code_is(Code::InvalidSpec).hint("make one with coracle spec"));
        }
        other => other.map_err(Error::from).map_err(|e| e.code_is(Code::InvalidSpec))?,
    };
    let spec = parse(&text).context(|| format!("reading {path:?}"))?;
    Ok(Loaded { bundle, spec, text })
}

/// The configuration that `text` holds.
///
/// # Errors
/// `InvalidSpec` with line and column where it is malformed.
pub fn parse(text: &[u8]) -> Result<Spec> {
    // The parser would take a list for an object whose fields come in order.
    if text.trim_ascii_start().first() != Some(&b'{') {
        return Err(Error::new(Code::InvalidSpec, "it holds no JSON object"));
    }
    serde_json::from_slice(text).map_err(|e| Error::new(Code::InvalidSpec, e.to_string()))
}

/// Reads the process that `exec --process` is to run from the file at `path`.
///
/// # Errors
/// As [`load`].
pub fn load_process(path: &Path) -> Result<Process> {
    let text = file::read(file::CWD, path, LARGEST, Resolve::Host)?;
    serde_json::from_slice(&text)
        .map_err(|e| Error::new(Code::InvalidSpec, e.to_string()))
        .context(|| format!("reading {path:?}"))
}
