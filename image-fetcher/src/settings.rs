//! What the operator has settled for all calls: `/etc/coracle/image.toml`, and variables that go before it.

use std::path::Path;

use coracle_image::snapshot::Snapshotter;
use coracle_image::{Context, Error, Kind, Result};
use coracle_sys::Errno;
use coracle_sys::file::{self, Resolve};
use serde::Deserialize;

const FILE: &str = "/etc/coracle/image.toml";

/// What the file holds.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    snapshotter: Option<String>,
}

/// What layers are unpacked into where the command line doesn't say it: what `CORACLE_SNAPSHOTTER` names, else the file's
/// `snapshotter`, else a directory.
///
/// # Errors
/// Where either can't be understood.
pub(crate) fn snapshotter() -> Result<Snapshotter> {
    if let Some(name) = std::env::var_os("CORACLE_SNAPSHOTTER") {
        return parse(&name.to_string_lossy()).context(|| "reading CORACLE_SNAPSHOTTER");
    }
    let settled = read(Path::new(FILE)).context(|| format!("reading {FILE}"))?.snapshotter;
    settled.map_or(Ok(Snapshotter::default()), |name| parse(&name).context(|| format!("reading {FILE}")))
}

fn parse(name: &str) -> Result<Snapshotter> {
    name.parse().map_err(|why: String| Error::new(Kind::Usage, why))
}

fn read(path: &Path) -> Result<Settings> {
    let bytes = match file::read(file::CWD, path, 1 << 20, Resolve::Host) {
        Err(e) if e.errno() == Errno::ENOENT => return Ok(Settings::default()),
        other => other?,
    };
    basic_toml::from_slice(&bytes).map_err(|e| Error::new(Kind::Malformed, e.to_string()))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::disallowed_methods, reason = "tests make files on the host")]

    use super::*;

    #[test]
    fn the_file_settles_the_snapshotter_and_may_be_missing() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("image.toml");
        assert_eq!(read(&path).unwrap(), Settings::default());
        std::fs::write(&path, "snapshotter = \"erofs\"\n").unwrap();
        assert_eq!(read(&path).unwrap().snapshotter.as_deref(), Some("erofs"));
    }

    #[test]
    fn what_is_not_known_is_named() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("image.toml");
        std::fs::write(&path, "snapshoter = \"erofs\"\n").unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("unknown field `snapshoter`"));
        let error = parse("zfs").unwrap_err();
        assert_eq!(error.to_string(), "a snapshotter is overlay or erofs, not \"zfs\"");
    }
}
