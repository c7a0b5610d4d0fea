//! `volume/sandbox-path`: directories that belong to a container, or to the one above it, and go with it.

use std::os::fd::AsFd;
use std::path::{Component, Path, PathBuf};

use coracle_isolator::{Adjustment, Config, Error, Isolator, Result, States, adjusted};
use coracle_sys::file;
use oci_spec::runtime::Mount;
use serde_json::{Map, Value};

use crate::owned::Owned;
use crate::{bound, failed, has_users, is_owned, known_by, of_type, owner};

/// The type of a mount whose source is a path in a container's own directory on the host, or with the option `parent` in
/// that of the container above it.
const TYPE: &str = "sandbox";

/// Gives containers what their mounts of the type `sandbox` name.
#[derive(Debug)]
pub(crate) struct SandboxPath {
    root: PathBuf,
    owned: Owned,
}

impl SandboxPath {
    pub(crate) fn new(root: &Path) -> Self {
        Self { root: root.to_owned(), owned: Owned::new("/var/lib/coracle/sandboxes") }
    }

    /// Whose directory the mount `mount` of the container `id` is in.
    fn whose<'i>(mount: &Mount, id: &'i str) -> Result<&'i str> {
        let options = mount.options().as_deref().unwrap_or_default();
        if !options.iter().any(|option| option == "parent") {
            return Ok(id);
        }
        match id.rsplit_once('/') {
            Some((parent, _)) if parent.contains('/') => Ok(parent),
            Some((pod, _)) => Err(Error::new(format!("above the container there is but the pod {pod:?}"))
                .with_hint("volumes of the pod are shared by its containers: use emptyDir")),
            None => Err(Error::new("there is no container above this one")),
        }
    }

    /// What belongs to the container `id`.
    fn place(&self, id: &str) -> PathBuf {
        self.owned.data(&known_by(&self.root, id))
    }
}

impl Isolator for SandboxPath {
    fn name(&self) -> &str {
        "volume/sandbox-path"
    }

    fn configure(&mut self, options: &Map<String, Value>) -> Result<()> {
        crate::configure_directory(options, "state", &mut self.owned.state)
    }

    fn recover(&self, _: &States) -> Result<()> {
        self.owned.recover()
    }

    fn prepare(&self, config: &Config<'_>) -> Result<Adjustment> {
        let (mut adjustment, mut changed) = (Adjustment::default(), Vec::new());
        for (i, mount) in of_type(config.spec, TYPE) {
            let path = mount.source().as_deref().unwrap_or(Path::new(""));
            if !path.components().all(|part| matches!(part, Component::Normal(_))) {
                return Err(Error::new(format!("{path:?} is no path in a directory of the container's"))
                    .at(format!("/mounts/{i}/source")));
            }
            let of = Self::whose(mount, config.id).map_err(|e| e.at(format!("/mounts/{i}/options")))?;
            if of != config.id && !is_owned(&owner(&self.root, of)) {
                return Err(
                    Error::new(format!("there is no container {of:?}")).at(format!("/mounts/{i}/options"))
                );
            }
            let mut bind = bound(mount, self.place(of).join(path), has_users(config.spec));
            let options =
                bind.options().iter().flatten().filter(|o| !["self", "parent"].contains(&o.as_str()));
            // Whoever has a directory on the way in a container can put a link there after it was made here.
            bind.set_options(Some(options.cloned().chain(["src-nolinks".to_owned()]).collect()));
            changed.push((i, bind));
        }
        adjustment.mounts = adjusted(config.spec.mounts().as_deref().unwrap_or_default(), &changed);
        Ok(adjustment)
    }

    fn provide(&self, config: &Config<'_>) -> Result<()> {
        let above = config.id.rsplit_once('/').map(|(parent, _)| parent);
        for of in [Some(config.id), above].into_iter().flatten() {
            let place = self.place(of);
            let sources = config.spec.mounts().iter().flatten().filter_map(|mount| mount.source().as_deref());
            let wanted: Vec<&Path> = sources.filter_map(|source| source.strip_prefix(&place).ok()).collect();
            if wanted.is_empty() {
                continue;
            }
            let make = || -> coracle_sys::Result<()> {
                let data = self.owned.make(&known_by(&self.root, of), &owner(&self.root, of))?;
                wanted
                    .iter()
                    .try_for_each(|path| file::mkdir_all_no_links(data.as_fd(), path, 0o755).map(drop))
            };
            make().map_err(|e| failed(e).on_path(place.to_string_lossy()))?;
        }
        Ok(())
    }

    fn cleanup(&self, id: &str) -> Result<()> {
        self.owned.end(&known_by(&self.root, id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parent_is_the_container_above_and_no_pod() {
        let mut mount = Mount::default();
        mount.set_options(Some(vec!["parent".to_owned()]));
        assert_eq!(SandboxPath::whose(&mount, "pod/a/b").unwrap(), "pod/a");
        for (id, words) in [("pod/a", "but the pod \"pod\""), ("web", "no container above")] {
            let error = SandboxPath::whose(&mount, id).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
        mount.set_options(Some(vec!["self".to_owned()]));
        assert_eq!(SandboxPath::whose(&mount, "web").unwrap(), "web");
    }
}
