//! `volume/host-path`: files and directories of the host in the container.

use std::path::{Component, Path, PathBuf};

use coracle_isolator::{Adjustment, Config, Error, Isolator, Result};
use coracle_sys::file::{self, CWD, Resolve};
use oci_spec::runtime::Mount;

/// Looks after the bind mounts of the specification: a source that is relative starts at the bundle, and each must
/// be there before anything is made.
#[derive(Debug)]
pub struct HostPath;

impl Isolator for HostPath {
    fn name(&self) -> &str {
        "volume/host-path"
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
            if !is_inside(i, &source) {
                is_there(mount, &source).map_err(at)?;
            }
            if mount.source().as_ref() != Some(&source) {
                resolved.push((i, source));
            }
        }
        adjustment.mounts = adjusted(mounts, &resolved);
        Ok(adjustment)
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

fn is_there(mount: &Mount, source: &Path) -> Result<()> {
    // The runtime opens it again when it mounts: the plan has no side effects and keeps nothing open.
    let is_link = has(mount, &["copy-symlink", "src-nofollow"]);
    let flags = nix::libc::O_PATH | if is_link { nix::libc::O_NOFOLLOW } else { 0 };
    match file::open(CWD, source, flags, 0, Resolve::Host) {
        Ok(_) => Ok(()),
        Err(e) => Err(Error::failed(e.call(), e.errno()).on_path(source.to_string_lossy())),
    }
}

/// The mounts whose sources change, and with them those that share a destination and stand before: an adjustment
/// replaces mounts of one destination in order.
fn adjusted(mounts: &[Mount], resolved: &[(usize, PathBuf)]) -> Vec<Mount> {
    let mut adjusted = Vec::new();
    for (i, mount) in mounts.iter().enumerate() {
        let same = |j: usize| mounts[j].destination() == mount.destination();
        match resolved.iter().find(|(j, _)| *j == i) {
            Some((_, source)) => {
                let mut mount = mount.clone();
                mount.set_source(Some(source.clone()));
                adjusted.push(mount);
            }
            None if resolved.iter().any(|(j, _)| *j > i && same(*j)) => adjusted.push(mount.clone()),
            None => {}
        }
    }
    adjusted
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
        let spec: Spec = serde_json::from_value(json!({"ociVersion": "1.2.0", "mounts": mounts})).unwrap();
        let config = Config {
            id: "c",
            kind: Kind::Oci,
            bundle: bundle.path(),
            spec: &spec,
            cgroup: CgroupVersion::V1,
        };
        (bundle.path().to_owned(), HostPath.prepare(&config))
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
