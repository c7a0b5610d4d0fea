//! Reads a bundle's `config.json`. Parsing only: what it means is the plan's business.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use coracle_sys::Errno;
use coracle_sys::file::{self, Resolve};
use oci_spec::runtime::{LinuxResources, Mount, Process, Spec};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_path_to_error::Segment;

use crate::error::{Code, Context, Error, Result};

pub use coracle_image::bundle::SPEC_VERSION;

/// The largest configuration that is read, in bytes.
const LARGEST: u64 = 16 << 20;

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
/// `InvalidSpec` with the JSON pointer, line and column of what is malformed.
pub fn parse(text: &[u8]) -> Result<Spec> {
    // The parser would take a list for an object whose fields come in order.
    if text.trim_ascii_start().first() != Some(&b'{') {
        return Err(Error::new(Code::InvalidSpec, "it holds no JSON object"));
    }
    read(text)
}

fn read<T: DeserializeOwned>(text: &[u8]) -> Result<T> {
    read_as_is(text).or_else(|error| renamed(text).and_then(|text| read_as_is(&text).ok()).ok_or(error))
}

/// The same document with the flags of `process.scheduler` renamed to what oci-spec expects, which is not what
/// the specification calls them; `None` where there are none.
fn renamed(text: &[u8]) -> Option<Vec<u8>> {
    let mut document: serde_json::Value = serde_json::from_slice(text).ok()?;
    let at = ["/process/scheduler/flags", "/scheduler/flags"];
    let pointer = at.into_iter().find(|pointer| document.pointer(pointer).is_some())?;
    for flag in document.pointer_mut(pointer)?.as_array_mut()? {
        match flag.as_str() {
            Some("SCHED_FLAG_RESET_ON_FORK") => *flag = "SCHED_RESET_ON_FORK".into(),
            Some("SCHED_FLAG_DL_OVERRUN") => *flag = "SCHED_FLAG_D_L_OVERRUN".into(),
            _ => {}
        }
    }
    serde_json::to_vec(&document).ok()
}

fn read_as_is<T: DeserializeOwned>(text: &[u8]) -> Result<T> {
    let mut json = serde_json::Deserializer::from_slice(text);
    let read = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let at = pointer(error.path());
        let why = error.into_inner();
        Error::new(Code::InvalidSpec, if at.is_empty() { why.to_string() } else { format!("{at}: {why}") })
    })?;
    json.end().map_err(|e| Error::new(Code::InvalidSpec, e.to_string()))?;
    Ok(read)
}

/// A path as a JSON pointer (RFC 6901).
fn pointer(path: &serde_path_to_error::Path) -> String {
    let step = |segment: &Segment| match segment {
        Segment::Seq { index } => format!("/{index}"),
        Segment::Map { key } => format!("/{}", key.replace('~', "~0").replace('/', "~1")),
        Segment::Enum { .. } | Segment::Unknown => String::new(),
    };
    path.iter().map(step).collect()
}

/// Reads the process that `exec --process` is to run from the file at `path`, which can be a pipe that another program
/// writes (`/dev/fd/63`), but not for ever.
///
/// # Errors
/// As [`load`].
pub fn load_process(path: &Path) -> Result<Process> {
    let invalid = |why: &str| Error::new(Code::InvalidSpec, why);
    let attempt = || -> Result<Process> {
        let fd = file::open(file::CWD, path, libc::O_RDONLY | libc::O_NONBLOCK, 0, Resolve::Host)?;
        let text = match file::stat(fd.as_fd())?.st_mode & libc::S_IFMT {
            libc::S_IFREG => file::read_all(fd, LARGEST)?,
            libc::S_IFIFO => file::read_pipe(fd.as_fd(), LARGEST, WRITTEN_WITHIN)?,
            _ => return Err(invalid("it is neither a file nor a pipe")),
        };
        if text.is_empty() {
            return Err(invalid("it is empty, or a pipe that nobody writes"));
        }
        read(&text)
    };
    attempt().context(|| format!("reading {path:?}"))
}

/// The mounts of a list, or of a configuration's `mounts`.
///
/// # Errors
/// As [`parse`].
pub fn parse_mounts(text: &[u8]) -> Result<Vec<Mount>> {
    #[derive(Deserialize)]
    struct Document {
        mounts: Vec<Mount>,
    }
    if text.trim_ascii_start().first() == Some(&b'[') {
        return read(text);
    }
    read::<Document>(text).map(|document| document.mounts)
}

/// The limits that `update` is to set.
///
/// # Errors
/// As [`parse`].
pub fn parse_resources(text: &[u8]) -> Result<LinuxResources> {
    read(text).context(|| "reading the new limits")
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
            read::<Process>(text.as_bytes()).unwrap();
            let text = format!(r#"{{"ociVersion": "1.2.0", "process": {text}}}"#);
            parse(text.as_bytes()).unwrap();
        }
    }

    #[test]
    fn what_is_malformed_is_told_with_its_pointer() {
        for (text, words) in [
            (r#"{"ociVersion": 1}"#, "/ociVersion: invalid type: integer `1`, expected a string at line 1"),
            (
                r#"{"ociVersion": "1.2.0", "mounts": [{"destination": "/a"}, {"destination": 7}]}"#,
                "/mounts/1/destination: invalid type",
            ),
            (
                r#"{"ociVersion": "1.2.0", "linux": {"sysctl": {"a/b~": 1}}}"#,
                "/linux/sysctl/a~1b~0: invalid type",
            ),
            (r#"{"ociVersion": "1.2.0""#, "EOF while parsing"),
            ("[]", "it holds no JSON object"),
            ("{} {}", "trailing characters"),
        ] {
            let error = parse(text.as_bytes()).unwrap_err().to_string();
            assert!(error.starts_with(words), "{text}: {error}");
        }
    }
}
