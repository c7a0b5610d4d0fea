//! `network/cni`: a container's networks.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use coracle_isolator::{
    Adjustment, Config, Error, Handles, Isolator, Result, States, Status, known, pointer,
};
use coracle_sys::file::{self, CWD, Resolve};
use coracle_sys::process;
use oci_spec::runtime::{LinuxNamespaceType, Mount, Spec};
use serde_json::{Map, Value, json};

use crate::cni::{Cni, Sandbox};
use crate::conflist::is_allowed;
use crate::failed;
use crate::wanted::Wanted;

/// The annotation in which a container says which networks it is to be on: names with commas between them, or a
/// [`Wanted`] as JSON.
pub const ANNOTATION: &str = "io.coracle.network";

/// Where the states of containers are unless the caller says otherwise.
const DEFAULT_ROOT: &str = "/run/coracle";

/// Attaches a container's network namespace to the networks that its annotation names, and gives it files of its own for
/// names and addresses. Without the annotation it does nothing.
#[derive(Debug)]
pub struct NetworkCni {
    root: PathBuf,
    cni: Cni,
}

impl NetworkCni {
    /// For containers whose states lie in `root`.
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned(), cni: Cni::default() }
    }

    /// What it does, for whoever has no container.
    pub fn cni(&self) -> &Cni {
        &self.cni
    }

    /// What plugins know the container `id` by: they take fewer letters than a runtime, and there may be another
    /// container of this name in another directory of states.
    pub fn known_by(&self, id: &str) -> String {
        if self.root == Path::new(DEFAULT_ROOT) && crate::wanted::is_name(id) && id.len() <= LONGEST_NAME {
            return id.to_owned();
        }
        let number = known::number(&self.root, id);
        let name = id.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(LONGEST_NAME);
        format!("{number:016x}-{}", name.collect::<String>())
    }
}

/// A name is one of a file, too.
const LONGEST_NAME: usize = 200;

impl Isolator for NetworkCni {
    fn name(&self) -> &str {
        "network/cni"
    }

    fn configure(&mut self, options: &Map<String, Value>) -> Result<()> {
        let settings = serde_json::from_value(Value::Object(options.clone()));
        self.cni = Cni::new(settings.map_err(|e| Error::new(e.to_string()))?)?;
        Ok(())
    }

    fn recover(&self, _: &States) -> Result<()> {
        self.cni.collect(false)?.failures.into_iter().next().map_or(Ok(()), Err)
    }

    fn prepare(&self, config: &Config<'_>) -> Result<Adjustment> {
        let Some(wanted) = wanted(config.spec)? else { return Ok(Adjustment::default()) };
        has_namespace(config.spec)?;
        if !is_allowed() {
            return Err(at(Error::new("plugins change the host's network, which takes its root")));
        }
        self.cni.plan(&wanted).map_err(at)?;
        let taken = |path: &Path| {
            let mounts = config.spec.mounts().as_deref().unwrap_or_default();
            mounts.iter().any(|mount| mount.destination() == path || mount.destination() == Path::new("/etc"))
        };
        let files = self.cni.files(&self.known_by(config.id));
        let mounts = files.into_iter().map(|(source, name)| (source, Path::new("/etc").join(name)));
        let mounts = mounts.filter(|(_, path)| !taken(path)).map(|(source, path)| mount(source, path));
        Ok(Adjustment { mounts: mounts.collect(), ..Adjustment::default() })
    }

    fn provide(&self, config: &Config<'_>) -> Result<()> {
        let Some(wanted) = wanted(config.spec)? else { return Ok(()) };
        // Beside the container's state: where a plugin will not let go, the container can be forgotten all the same.
        let held = self.root.join(format!(".network-{}", config.id.replace('/', "~")));
        let name = config.id.rsplit('/').next().unwrap_or(config.id);
        let sandbox = Sandbox {
            id: &self.known_by(config.id),
            owner: &known::owner(&self.root, config.id),
            namespace: &held,
            names: &[config.spec.hostname().as_deref().unwrap_or(name), name],
        };
        self.cni.reserve(&sandbox, &wanted).map_err(at)
    }

    fn isolate(&self, container: &Handles<'_>) -> Result<()> {
        if wanted(container.spec)?.is_none() {
            return Ok(());
        }
        let namespace = namespace(container)?;
        self.cni.attach(&self.known_by(container.id), namespace.as_fd()).map(drop)
    }

    fn status(&self, container: &Handles<'_>) -> Result<Status> {
        if wanted(container.spec)?.is_none() {
            return Ok(Status::default());
        }
        let attached = self.cni.attached(&self.known_by(container.id))?;
        let networks = attached
            .iter()
            .map(|at| json!({"name": at.network, "interface": at.interface, "addresses": at.addresses}));
        Ok(Status([("networks".to_owned(), networks.collect())].into()))
    }

    fn cleanup(&self, id: &str) -> Result<()> {
        self.cni.detach(&self.known_by(id))
    }
}

/// What the annotation asks for.
fn wanted(spec: &Spec) -> Result<Option<Wanted>> {
    let text = spec.annotations().as_ref().and_then(|annotations| annotations.get(ANNOTATION));
    text.map(|text| Wanted::parse(text).map_err(at)).transpose()
}

fn at(error: Error) -> Error {
    error.at(pointer("/annotations", ANNOTATION))
}

/// A namespace that others have made is theirs to attach.
fn has_namespace(spec: &Spec) -> Result<()> {
    let namespaces =
        spec.linux().as_ref().and_then(|linux| linux.namespaces().as_deref()).unwrap_or_default();
    match namespaces.iter().find(|namespace| namespace.typ() == LinuxNamespaceType::Network) {
        None => Err(at(Error::new("it is set but /linux/namespaces has no \"network\""))),
        Some(namespace) if namespace.path().as_ref().is_some_and(|path| !path.as_os_str().is_empty()) => {
            Err(at(Error::new("the container joins a network namespace that is another's"))
                .with_hint("whoever made it says which networks it is on"))
        }
        Some(_) => Ok(()),
    }
}

fn mount(source: PathBuf, destination: PathBuf) -> Mount {
    let options = ["bind", "rprivate", "ro", "nosuid", "nodev", "noexec"].map(str::to_owned).to_vec();
    let mut mount = Mount::default();
    mount.set_destination(destination).set_typ(Some("bind".to_owned())).set_source(Some(source));
    mount.set_options(Some(options));
    mount
}

/// The network namespace that the container's first process was born in.
fn namespace(container: &Handles<'_>) -> Result<OwnedFd> {
    let pidfd = container.pidfd.ok_or_else(|| Error::new("the container has no process"))?;
    // It is the runtime's child and not awaited yet, so the number is its own.
    let opened = process::pid_of(pidfd)
        .and_then(|pid| file::open(CWD, format!("/proc/{pid}/ns/net"), libc::O_RDONLY, 0, Resolve::Host));
    opened.map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plugins_know_a_container_by_a_name_that_they_take_and_no_other_has() {
        let usual = NetworkCni::new(Path::new("/run/coracle"));
        assert_eq!(usual.known_by("web-1"), "web-1");
        let other = NetworkCni::new(Path::new("/run/other"));
        assert_eq!(other.known_by("web-1"), "366af9f3aa6a53a5-web-1");
        assert_ne!(usual.known_by("_a"), usual.known_by("+a"));
        assert!(crate::wanted::is_name(&usual.known_by("pod/web+1")));
    }

    #[test]
    fn networks_need_a_namespace_of_the_containers_own() {
        for (namespaces, words) in [
            (json!([]), "has no \"network\""),
            (json!([{"type": "network", "path": "/run/netns/x"}]), "that is another's; whoever made it"),
        ] {
            let spec = json!({"ociVersion": "1.3.0", "linux": {"namespaces": namespaces},
                "annotations": {ANNOTATION: "bridge"}});
            let spec: Spec = serde_json::from_value(spec).unwrap();
            let error = has_namespace(&spec).unwrap_err().to_string();
            assert!(
                error.starts_with("/annotations/io.coracle.network: ") && error.contains(words),
                "{error}"
            );
        }
    }
}
