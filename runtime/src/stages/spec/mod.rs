//! Reads a bundle's `config.json`. Parsing only: what it means is the plan's business.

pub mod json;
mod repair;
mod strict;

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use coracle_sys::Errno;
use coracle_sys::file::{self, Resolve};
use oci_spec::runtime::{Linux, LinuxResources, Mount, Process, Spec};
use serde::{Deserialize, Serialize};

use crate::error::{Code, Context, Error, Result};
use crate::state::State;

pub use coracle_image::bundle::SPEC_VERSION;

/// The largest configuration, or part of one, that is read, in bytes.
pub const LARGEST: u64 = 16 << 20;

/// How long the end of a pipe is waited for.
const WRITTEN_WITHIN: Duration = Duration::from_secs(10);

/// A bundle's configuration as it was read.
#[derive(Debug)]
pub struct Loaded {
    /// The bundle's absolute path.
    pub bundle: PathBuf,
    /// The configuration.
    pub spec: Spec,
    /// The same, as it was written.
    pub text: Vec<u8>,
    /// What in it is passed over.
    pub warnings: Vec<String>,
}

impl Loaded {
    /// The configuration `config` that the runtime has composed itself, for a container in `bundle`.
    ///
    /// # Errors
    /// `InvalidSpec` where what went into it makes no configuration.
    pub fn composed(bundle: PathBuf, config: &impl Serialize) -> Result<Self> {
        let attempt = || -> Result<(Spec, Vec<u8>)> {
            let text = serde_json::to_vec(config).map_err(Error::system)?;
            Ok((parse(&text)?, text))
        };
        let (spec, text) = attempt().context(|| "composing the configuration")?;
        Ok(Self { bundle, spec, text, warnings: Vec::new() })
    }
}

/// Reads the configuration of the bundle at `bundle`: its `config.json`, or the file `config`. Both paths are relative
/// to the working directory.
///
/// # Errors
/// `InvalidSpec` where there is none or it is malformed; the error says where.
pub fn load(bundle: &Path, config: Option<&Path>) -> Result<Loaded> {
    let bundle = std::path::absolute(bundle)
        .map_err(|e| Error::new(Code::InvalidSpec, format!("the bundle's path is no path: {e}")))?;
    let path = config.map_or_else(|| bundle.join("config.json"), Path::to_owned);
    let text = match file::read_given(&path, LARGEST) {
        Err(e) if e.errno() == Errno::ENOENT => {
            return Err(Error::from(e).code_is(Code::InvalidSpec).hint("make one with coracle spec"));
        }
        Err(e) if e.errno() == Errno::EFBIG => {
            return Err(Error::from(e).code_is(Code::InvalidSpec).hint("at most 16 MiB are read"));
        }
        other => other.map_err(Error::from).map_err(|e| e.code_is(Code::InvalidSpec))?,
    };
    let (spec, warnings) = read(&text).context(|| format!("reading {path:?}"))?;
    Ok(Loaded { bundle, spec, text, warnings })
}

/// The configuration that `text` holds.
///
/// # Errors
/// `InvalidSpec` with the JSON pointer, line and column of what is malformed.
pub fn parse(text: &[u8]) -> Result<Spec> {
    Ok(read(text)?.0)
}

/// The same, and what is passed over in it.
fn read(text: &[u8]) -> Result<(Spec, Vec<String>)> {
    let (mut spec, warnings) = json::read::<Spec>(text, "")?;
    // Where 0 is no limit; podman writes it for `--pids-limit -1`.
    let is_before_1_3 = ["1.0", "1.1", "1.2"].iter().any(|version| spec.version().starts_with(version));
    let resources = spec.linux_mut().as_mut().and_then(|linux| linux.resources_mut().as_mut());
    if let Some(resources) = resources
        && resources.pids().as_ref().is_some_and(|pids| pids.limit() == 0)
        && (is_before_1_3 || !repair::limits_tasks(text))
    {
        resources.set_pids(None);
    }
    Ok((spec, warnings))
}

/// The configuration that the container of `state` was created with.
///
/// # Errors
/// Whatever reading says.
pub fn kept(state: &State) -> Result<Spec> {
    parse(&state.config()?)
}

/// Reads the process that `exec --process` is to run, the `/process` of a configuration, from the file at `path`, which
/// can be a pipe that another program writes (`/dev/fd/63`), but not for ever; and what is passed over in it.
///
/// # Errors
/// As [`load`].
pub fn load_process(path: &Path) -> Result<(Process, Vec<String>)> {
    let invalid = |why: &str| Error::new(Code::InvalidSpec, why);
    let attempt = || -> Result<(Process, Vec<String>)> {
        let fd = file::open(file::CWD, path, libc::O_RDONLY | libc::O_NONBLOCK, 0, Resolve::Host)?;
        let text = match file::stat(fd.as_fd())?.st_mode & libc::S_IFMT {
            libc::S_IFREG => file::read_all(fd, LARGEST)?,
            libc::S_IFIFO => file::read_pipe(fd.as_fd(), LARGEST, WRITTEN_WITHIN)?,
            _ => return Err(invalid("it is neither a file nor a pipe")),
        };
        if text.is_empty() {
            return Err(invalid("it is empty, or a pipe that nobody writes"));
        }
        json::read(&text, "/process")
    };
    attempt().context(|| format!("reading {path:?}"))
}

/// The mounts of a list, or of a configuration's `/mounts`.
///
/// # Errors
/// As [`parse`].
pub fn parse_mounts(text: &[u8]) -> Result<Vec<Mount>> {
    #[derive(Deserialize)]
    struct Document {
        mounts: Vec<Mount>,
    }
    if text.trim_ascii_start().first() == Some(&b'[') {
        return Ok(json::read(text, "/mounts")?.0);
    }
    Ok(json::read::<Document>(text, "")?.0.mounts)
}

/// The limits that `update` is to set, the `/linux/resources` of a configuration.
///
/// # Errors
/// As [`parse`].
pub fn parse_resources(text: &[u8]) -> Result<LinuxResources> {
    Ok(json::read(text, "/linux/resources")?.0)
}

/// What `update` is to change, the `/linux` of a configuration.
///
/// # Errors
/// As [`parse`].
pub fn parse_linux(text: &[u8]) -> Result<Linux> {
    Ok(json::read(text, "/linux")?.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_of_the_scheduler_go_by_the_names_of_the_specification() {
        let flags =
            ["RESET_ON_FORK", "RECLAIM", "DL_OVERRUN", "KEEP_POLICY", "KEEP_PARAMS", "UTIL_CLAMP_MIN"];
        for flag in flags {
            let text = format!(
                r#"{{"user": {{"uid": 0, "gid": 0}}, "cwd": "/",
                    "scheduler": {{"policy": "SCHED_DEADLINE", "flags": ["SCHED_FLAG_{flag}"]}}}}"#
            );
            json::read::<Process>(text.as_bytes(), "/process").unwrap();
            let text = format!(r#"{{"ociVersion": "1.2.0", "process": {text}}}"#);
            parse(text.as_bytes()).unwrap();
        }
    }
}
