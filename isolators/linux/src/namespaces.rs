//! `linux/namespaces`: namespaces that no container may share with the host.

use std::os::fd::AsFd;
use std::path::Path;

use coracle_isolator::{Error, Isolator, Result};
use coracle_sys::file::{self, CWD, Resolve};
use nix::libc;
use oci_spec::runtime::{LinuxNamespaceType, Spec};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::failed;

/// Refuses containers that would be in a namespace of the runtime's of one of the kinds that the option `require` names, be it that
/// they ask for none of their own, or that they join it by its path. Namespaces are made and joined by the container's process.
#[derive(Debug, Default)]
pub struct Namespaces(Settings);

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Settings {
    /// `cgroup`, `ipc`, `mount`, `network`, `pid`, `time`, `user` or `uts`.
    require: Vec<LinuxNamespaceType>,
}

impl Isolator for Namespaces {
    fn name(&self) -> &str {
        "linux/namespaces"
    }

    fn configure(&mut self, options: &Map<String, Value>) -> Result<()> {
        self.0 = crate::settings(options)?;
        Ok(())
    }

    fn validate(&self, spec: &Spec) -> Result<()> {
        let namespaces = spec.linux().as_ref().and_then(|linux| linux.namespaces().as_deref());
        for kind in &self.0.require {
            let found = namespaces.unwrap_or_default().iter().find(|namespace| namespace.typ() == *kind);
            let is_own = match found.map(|namespace| namespace.path().as_deref()) {
                None => false,
                Some(None) => true,
                Some(Some(path)) => !is_runtimes(*kind, path)?,
            };
            if !is_own {
                return Err(Error::new(format!("the {kind} namespace would be the host's"))
                    .at("/linux/namespaces")
                    .with_hint("the host's operator requires another, by the options of linux/namespaces"));
            }
        }
        Ok(())
    }
}

/// Whether the namespace at `path` is the one that the runtime is in.
fn is_runtimes(kind: LinuxNamespaceType, path: &Path) -> Result<bool> {
    let identity = |path: &Path| {
        let opened = file::open(CWD, path, libc::O_PATH, 0, Resolve::Host).map_err(failed)?;
        let stat = file::stat(opened.as_fd()).map_err(failed)?;
        Ok((stat.st_dev, stat.st_ino))
    };
    Ok(identity(path)? == identity(Path::new(&format!("/proc/self/ns/{kind}")))?)
}
