//! `volume/host-path`: files and directories of the host in the container.

use std::os::fd::AsFd;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use coracle_isolator::{Adjustment, Config, Error, Isolator, Result, adjusted};
use coracle_sys::Errno;
use coracle_sys::file::{self, CWD, Resolve};
use coracle_sys::touch;
use nix::libc;
use oci_spec::runtime::Mount;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::failed;

/// Looks after the bind mounts of the specification: a source that is relative starts at the bundle, and each must
/// be there before anything is made; or it is made, below directories that the operator names.
#[derive(Debug, Default)]
pub struct HostPath(Settings);

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Settings {
    /// Below which directories a source that is missing is made: a directory, which stays.
    create: Vec<PathBuf>,
    /// How long a source may take to say whether it is there, in seconds.
    deadline: f64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { create: Vec::new(), deadline: 10.0 }
    }
}

impl Isolator for HostPath {
    fn name(&self) -> &str {
        "volume/host-path"
    }

    fn configure(&mut self, options: &Map<String, Value>) -> Result<()> {
        let settings: Settings =
            serde_json::from_value(Value::Object(options.clone())).map_err(|e| Error::new(e.to_string()))?;
        if !(0.01..=3600.0).contains(&settings.deadline) {
            return Err(Error::new(format!(
                "a deadline of {} s is not between 0.01 and 3600",
                settings.deadline
            )));
        }
        let is_whole = |path: &PathBuf| {
            path.is_absolute() && !path.components().any(|part| part == Component::ParentDir)
        };
        if let Some(wrong) = settings.create.iter().find(|path| !is_whole(path)) {
            return Err(Error::new(format!("create: {wrong:?} is no absolute path")));
        }
        self.0 = settings;
        Ok(())
    }

    fn prepare(&self, config: &Config<'_>) -> Result<Adjustment> {
        let mut adjustment = Adjustment::default();
        let mounts = config.spec.mounts().as_deref().unwrap_or_default();
        let root = config.spec.root().as_ref().map(|root| config.bundle.join(root.path()));
        let is_inside = |i: usize, source: &Path| {
            root.as_ref().is_some_and(|root| inside(&mounts[..i], source, root).is_some())
        };
        let mut resolved: Vec<(usize, PathBuf)> = Vec::new();
        for (i, mount) in mounts.iter().enumerate().filter(|(_, mount)| is_bind(mount)) {
            let at = |e: Error| e.at(format!("/mounts/{i}/source"));
            let source = source(mount, config.bundle).map_err(at)?;
            if !is_inside(i, &source) && self.made_below(&source).is_none() {
                self.is_there(mount, &source).map_err(at)?;
            }
            if mount.source().as_ref() != Some(&source) {
                resolved.push((i, source));
            }
        }
        let resolved = resolved.into_iter().map(|(i, source)| {
            let mut mount = mounts[i].clone();
            mount.set_source(Some(source));
            (i, mount)
        });
        adjustment.mounts = adjusted(mounts, &resolved.collect::<Vec<_>>());
        Ok(adjustment)
    }

    fn provide(&self, config: &Config<'_>) -> Result<()> {
        if self.0.create.is_empty() {
            return Ok(());
        }
        let mounts = config.spec.mounts().as_deref().unwrap_or_default();
        for (i, mount) in mounts.iter().enumerate().filter(|(_, mount)| is_bind(mount)) {
            let source = mount.source().as_deref().unwrap_or(Path::new(""));
            let Some((above, below)) = self.made_below(source) else { continue };
            let top = file::open_dir(above).map_err(failed)?;
            if matches!(file::open(top.as_fd(), below, libc::O_PATH, 0, Resolve::Beneath), Err(e) if e.errno() == Errno::ENOENT)
            {
                let made = file::mkdir_all_no_links(top.as_fd(), below, 0o755);
                made.map_err(|e| failed(e).at(format!("/mounts/{i}/source")))?;
            }
        }
        Ok(())
    }
}

impl HostPath {
    /// The directory below which `source` is made where it is missing, and its path there.
    fn made_below<'p>(&'p self, source: &'p Path) -> Option<(&'p Path, &'p Path)> {
        let below = |above: &'p PathBuf| Some((above.as_path(), source.strip_prefix(above).ok()?));
        let is_plain = |path: &Path| path.components().all(|part| matches!(part, Component::Normal(_)));
        self.0
            .create
            .iter()
            .find_map(below)
            .filter(|(_, path)| is_plain(path) && !path.as_os_str().is_empty())
    }

    /// Asks the kernel's memory first, which answers at once. What it does not hold may be on a server that never
    /// answers: that is asked by a process which can be killed.
    fn is_there(&self, mount: &Mount, source: &Path) -> Result<()> {
        // The runtime opens it again when it mounts: the plan has no side effects and keeps nothing open.
        let is_link = has(mount, &["copy-symlink", "src-nofollow"]);
        let told = |e: coracle_sys::Error| failed(e).on_path(source.to_string_lossy());
        if file::is_there_at_once(source, is_link).map_err(told)?.is_some() {
            return Ok(());
        }
        let flags = libc::O_PATH | if is_link { libc::O_NOFOLLOW } else { 0 };
        let deadline = Duration::from_secs_f64(self.0.deadline);
        let open = || file::open(CWD, source, flags, 0, Resolve::Host).map(|_| Vec::new());
        match touch::within(deadline, &[], open) {
            Err(e) if e.errno() == Errno::ETIMEDOUT => {
                let seconds = self.0.deadline;
                Err(Error::new(format!("{} did not answer within {seconds} s", source.display()))
                    .with_hint("does its server hang?"))
            }
            answered => answered.map(drop).map_err(told),
        }
    }
}

/// Where `source`, that of a bind mount, is below the container's root, if it is there that one of the mounts before it,
/// `earlier`, shows it: a path below `rootfs` names, as with runc, what the container has there by then.
pub fn inside(earlier: &[Mount], source: &Path, rootfs: &Path) -> Option<PathBuf> {
    let path = source.strip_prefix(rootfs).ok()?;
    let is_plain = path.components().all(|part| matches!(part, Component::Normal(_)));
    let shows_it = |mount: &Mount| path.starts_with(target(mount.destination(), rootfs));
    (is_plain && earlier.iter().any(shows_it)).then(|| path.to_owned())
}

/// Where `destination` is below the container's root. One that begins with the path of that root, `rootfs`, counts
/// from there, as with runc.
pub fn target<'a>(destination: &'a Path, rootfs: &Path) -> &'a Path {
    let rest = destination.strip_prefix(rootfs).or_else(|_| destination.strip_prefix("/"));
    rest.unwrap_or(destination)
}

/// A bind mount says so in its options; its type is then ignored, but `bind` as a type means the same. With `remount`
/// nothing is bound: what is mounted there changes.
fn is_bind(mount: &Mount) -> bool {
    let is_named = mount.typ().as_deref() == Some("bind") || has(mount, &["bind", "rbind"]);
    is_named && !has(mount, &["remount"])
}

fn has(mount: &Mount, options: &[&str]) -> bool {
    mount.options().iter().flatten().any(|option| options.contains(&option.as_str()))
}

/// The source of a bind mount as an absolute path.
fn source(mount: &Mount, bundle: &Path) -> Result<PathBuf> {
    let source = mount.source().as_deref().filter(|source| !source.as_os_str().is_empty());
    let source = source.ok_or_else(|| {
        let destination = mount.destination().display();
        Error::new(format!("the bind mount on {destination} has none"))
    })?;
    Ok(bundle.join(source))
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "tests lay out files on the host")]
mod tests {
    use coracle_isolator::{CgroupVersion, Kind};
    use oci_spec::runtime::Spec;
    use serde_json::{Value, json};

    use super::*;

    /// What the isolator makes of `mounts` in a bundle that holds `data/`.
    fn prepared(mounts: &Value) -> (PathBuf, Result<Adjustment>) {
        let bundle = tempfile::tempdir().unwrap();
        std::fs::create_dir(bundle.path().join("data")).unwrap();
        // Looked for, so that the kernel knows at once that there is none: tests have threads, and can't be forked.
        assert!(std::fs::metadata(bundle.path().join("nothing")).is_err());
        let spec: Spec = serde_json::from_value(json!({"ociVersion": "1.2.0", "mounts": mounts})).unwrap();
        let config = Config {
            id: "c",
            kind: Kind::Oci,
            bundle: bundle.path(),
            spec: &spec,
            cgroup: CgroupVersion::V1,
        };
        (bundle.path().to_owned(), HostPath::default().prepare(&config))
    }

    fn sources(adjustment: &Adjustment) -> Vec<&Path> {
        adjustment.mounts.iter().map(|mount| mount.source().as_deref().unwrap()).collect()
    }

    #[test]
    fn a_relative_source_starts_at_the_bundle() {
        let mount = json!({"destination": "/d", "source": "data", "options": ["rbind", "ro"]});
        let (bundle, adjustment) = prepared(&json!([mount]));
        let adjustment = adjustment.unwrap();
        assert_eq!(sources(&adjustment), [bundle.join("data")]);
        assert_eq!(adjustment.mounts[0].options().as_deref().unwrap(), ["rbind", "ro"]);
    }

    #[test]
    fn what_is_absolute_or_no_bind_mount_stays_as_it_is() {
        let mounts = json!([
            {"destination": "/p", "source": "proc", "type": "proc"},
            {"destination": "/t", "source": "/tmp", "type": "bind"},
        ]);
        assert_eq!(prepared(&mounts).1.unwrap(), Adjustment::default());
    }

    #[test]
    fn mounts_of_one_destination_keep_their_order() {
        let mounts = json!([
            {"destination": "/d", "type": "tmpfs", "source": "tmpfs"},
            {"destination": "/d", "source": "data", "options": ["bind"]},
            {"destination": "/d", "type": "tmpfs", "source": "last"},
        ]);
        let (bundle, adjustment) = prepared(&mounts);
        assert_eq!(sources(&adjustment.unwrap()), [Path::new("tmpfs"), &bundle.join("data")]);
    }

    #[test]
    fn a_source_that_is_not_there_is_named() {
        let mounts = json!([
            {"destination": "/t", "source": "/tmp", "type": "bind"},
            {"destination": "/d", "source": "nothing", "options": ["bind"]},
        ]);
        let (bundle, adjustment) = prepared(&mounts);
        let wanted = format!(
            "/mounts/1/source: openat2(AT_FDCWD, {:?}): no such file or directory",
            bundle.join("nothing")
        );
        assert_eq!(adjustment.unwrap_err().to_string(), wanted);
    }

    #[test]
    fn a_bind_mount_without_a_source_is_named() {
        let mounts = json!([{"destination": "/d", "type": "bind"}]);
        let wanted = "/mounts/0/source: the bind mount on /d has none";
        assert_eq!(prepared(&mounts).1.unwrap_err().to_string(), wanted);
    }
}
