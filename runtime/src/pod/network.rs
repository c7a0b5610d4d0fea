//! The networks of a pod, by CNI: its sandbox is attached as a container is, by a job of the supervisor.

use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use coracle_isolator_network::conflist::is_allowed;
use coracle_isolator_network::{HostAlias, NetworkCni, PortMapping, Sandbox, Wanted};
use coracle_sys::file;
use serde::{Deserialize, Serialize};

use super::document::{Container, Pod};
use super::record::PODS;
use crate::cli::Global;
use crate::commands::network::configured;
use crate::error::{Code, Context, Error, Result};

/// The annotation that says which networks a pod is on, as [`ANNOTATION`](coracle_isolator_network::ANNOTATION) does for a
/// container; `none` where it is on none, whatever the operator has configured.
pub const ANNOTATION: &str = "io.coracle/network";

/// An interface of a pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attached {
    /// The network's name.
    pub name: String,
    /// The interface.
    pub interface: String,
    /// Its addresses.
    pub addresses: Vec<String>,
}

/// Puts pods on networks.
#[derive(Debug)]
pub struct Networks {
    isolator: NetworkCni,
    root: PathBuf,
}

impl Networks {
    /// As the operator has configured them.
    ///
    /// # Errors
    /// Where the configuration can't be read.
    pub fn new(global: &Global) -> Result<Self> {
        Ok(Self { isolator: configured(global)?, root: global.root.clone() })
    }

    /// Writes into `pod` which networks it is on, where it does not say: `given` by its maker, else what is configured for
    /// pods. Checks that all of it can be had.
    ///
    /// # Errors
    /// `InvalidSpec`.
    pub fn settle(&self, pod: &mut Pod, given: Option<String>) -> Result<()> {
        let said = pod.metadata.annotations.get(ANNOTATION);
        if said.is_some() && given.is_some() {
            let why = "--network and the document's annotation io.coracle/network exclude each other";
            return Err(Error::new(Code::Usage, why));
        }
        let configured = self.isolator.cni().for_pods().filter(|_| !pod.spec.host_network);
        if let (None, Some(text)) = (said, given.or(configured.map(str::to_owned))) {
            pod.metadata.annotations.insert(ANNOTATION.to_owned(), text);
        }
        let Some(wanted) = wanted(pod)? else { return Ok(()) };
        if !is_allowed() {
            return Err(at(Error::new(
                Code::Unsupported,
                "plugins change the host's network, which takes its root",
            )));
        }
        self.isolator.cni().plan(&wanted).map_err(|e| at(e.into()))
    }

    /// What plugins know the pod by. No container is called so.
    fn known_by(&self, pod: &str) -> String {
        self.isolator.known_by(&format!("{PODS}/{pod}"))
    }

    /// The files of `/etc` of the pod's containers.
    pub fn files(&self, pod: &str) -> [(PathBuf, &'static str); 3] {
        self.isolator.cni().files(&self.known_by(pod))
    }

    /// Attaches the namespace of `pod` to its networks; again where that was begun before.
    ///
    /// # Errors
    /// Naming the network and the plugin, or who has a port. What was begun is undone by [`detach`](Self::detach).
    pub fn attach(&self, pod: &Pod, hostname: &str, namespace: BorrowedFd<'_>) -> Result<Vec<Attached>> {
        let Some(wanted) = wanted(pod)? else { return Ok(Vec::new()) };
        let name = &pod.metadata.name;
        let id = self.known_by(name);
        let pods = self.root.join(PODS);
        // Beside the pod's directory: where a plugin will not let go, the pod is forgotten all the same.
        let (owner, held) = (pods.join(name), pods.join(format!(".network-{name}")));
        let sandbox = Sandbox { id: &id, owner: &owner, namespace: &held, names: &[hostname, name] };
        let attach = || {
            self.isolator.cni().reserve(&sandbox, &wanted)?;
            self.isolator.cni().attach(&id, namespace)
        };
        let attached = attach().map_err(Error::from).context(|| "attaching the pod to its networks")?;
        Ok(attached.into_iter().map(Attached::from).collect())
    }

    /// Takes the pod `pod` off its networks. One that is on none is no failure.
    ///
    /// # Errors
    /// The first plugin's that fails; what failed is tried again next time.
    pub fn detach(&self, pod: &str) -> Result<()> {
        let detached = self.isolator.cni().detach(&self.known_by(pod)).map_err(Error::from);
        detached.context(|| "taking the pod off its networks")
    }
}

impl From<coracle_isolator_network::cni::Attached> for Attached {
    fn from(at: coracle_isolator_network::cni::Attached) -> Self {
        let addresses = at.addresses.iter().map(ToString::to_string).collect();
        Self { name: at.network, interface: at.interface, addresses }
    }
}

/// What `pod` asks of its networks; `None` where it is on none.
///
/// # Errors
/// `InvalidSpec`, with what is wrong.
pub fn wanted(pod: &Pod) -> Result<Option<Wanted>> {
    let text = pod.metadata.annotations.get(ANNOTATION).filter(|text| *text != "none");
    let published = published(pod)?;
    let Some(text) = text else {
        return match published.first() {
            Some((at, _)) if !pod.spec.host_network => {
                Err(Error::new(Code::InvalidSpec, format!("{at}: the pod is on no network"))
                    .hint("name one with --network, or in annotation io.coracle/network"))
            }
            _ => Ok(None),
        };
    };
    if pod.spec.host_network {
        return Err(at(Error::new(Code::InvalidSpec, "hostNetwork excludes it")));
    }
    let mut wanted = Wanted::parse(text).map_err(|e| at(e.into()))?;
    for (place, port) in published {
        if let Some(other) = wanted.ports.iter().find(|other| other.collides_with(&port)) {
            let why = format!(
                "{place}: {} is taken by {} of annotation io.coracle/network",
                port.told(),
                other.told()
            );
            return Err(Error::new(Code::InvalidSpec, why));
        }
        wanted.ports.push(port);
    }
    wanted.hosts.extend(names(pod)?);
    Ok(Some(wanted))
}

fn at(error: Error) -> Error {
    error.doing("/metadata/annotations/io.coracle~1network")
}

/// The ports of the host that lead to containers, each with its place in the document.
fn published(pod: &Pod) -> Result<Vec<(String, PortMapping)>> {
    let lists = [("initContainers", &pod.spec.init_containers), ("containers", &pod.spec.containers)];
    let containers = lists.into_iter().flat_map(|(list, containers)| {
        containers.iter().enumerate().map(move |(index, one)| (format!("/spec/{list}/{index}/ports"), one))
    });
    let mut published: Vec<(String, PortMapping)> = Vec::new();
    for (at, container) in containers {
        for (at, port) in ports(&at, container) {
            let is_same = |(_, other): &&(String, PortMapping)| port.collides_with(other);
            if let Some((other, _)) = published.iter().find(is_same) {
                let why = format!("{at}: {} is taken by {other}", port.told());
                return Err(Error::new(Code::InvalidSpec, why));
            }
            if pod.spec.host_network && port.host_port != port.container_port {
                let why = format!("{at}: with hostNetwork, it must be the containerPort");
                return Err(Error::new(Code::InvalidSpec, why));
            }
            published.push((at, port));
        }
    }
    Ok(published)
}

fn ports(at: &str, container: &Container) -> Vec<(String, PortMapping)> {
    let one = |(index, port): (usize, &super::document::Port)| {
        let mapping = PortMapping {
            host_port: port.host_port.filter(|number| *number > 0)?,
            container_port: port.container_port,
            protocol: port.protocol.as_deref().unwrap_or("TCP").to_ascii_lowercase(),
            host_ip: port.host_ip.clone(),
        };
        Some((format!("{at}/{index}/hostPort"), mapping))
    };
    container.ports.iter().enumerate().filter_map(one).collect()
}

/// What a pod's containers know beside others on its networks: the aliases of the document, and each other.
fn names(pod: &Pod) -> Result<Vec<HostAlias>> {
    let mut names = Vec::new();
    for (index, alias) in pod.spec.host_aliases.iter().enumerate() {
        let ip = alias.ip.parse().map_err(|_| {
            let why = format!("/spec/hostAliases/{index}/ip: {:?} is no address", alias.ip);
            Error::new(Code::InvalidSpec, why)
        })?;
        names.push(HostAlias { ip, hostnames: alias.hostnames.clone() });
    }
    let ip = std::net::IpAddr::from([127, 0, 0, 1]);
    names.push(HostAlias { ip, hostnames: containers(pod).map(str::to_owned).collect() });
    Ok(names)
}

/// The names of the pod's containers, at which each finds the others.
pub fn containers(pod: &Pod) -> impl Iterator<Item = &str> {
    let all = pod.spec.init_containers.iter().chain(&pod.spec.containers);
    all.map(|container| container.name.as_str())
}

/// Takes the directory of pods away, where nothing is left in it.
pub fn tidy(root: &Path) {
    let _ = file::rmdir(file::CWD, root.join(PODS));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::document;

    fn pod(metadata: &str, containers: &str) -> Pod {
        let text =
            format!("apiVersion: v1\nkind: Pod\nmetadata:\n  name: web\n{metadata}spec:\n{containers}");
        document::parse(text.as_bytes()).unwrap()
    }

    const ON: &str = "  annotations: {io.coracle/network: 'front,back'}\n";

    #[test]
    fn ports_and_names_of_containers_go_with_the_networks_of_the_annotation() {
        let containers = "  containers: [{name: a, image: i, ports: [{containerPort: 80, hostPort: 8080, hostIP: 127.0.0.1}]}]\n";
        let wanted = wanted(&pod(ON, containers)).unwrap().unwrap();
        assert_eq!(wanted.networks.len(), 2);
        let port = &wanted.ports[0];
        assert_eq!(
            (port.host_port, port.protocol.as_str(), port.host_ip.as_str()),
            (8080, "tcp", "127.0.0.1")
        );
        assert_eq!(wanted.hosts.last().unwrap().hostnames, ["a"]);
        let none = "  annotations: {io.coracle/network: none}\n";
        assert_eq!(super::wanted(&pod(none, "  containers: [{name: a, image: i}]\n")).unwrap(), None);
    }

    #[test]
    fn what_can_not_be_published_is_refused_by_its_pointer() {
        let two = "  containers: [{name: a, image: i, ports: [{containerPort: 80, hostPort: 80}]}, \
                   {name: b, image: i, ports: [{containerPort: 81, hostPort: 80, hostIP: 127.0.0.1}]}]\n";
        let host = "  hostNetwork: true\n  containers: [{name: a, image: i, ports: [{containerPort: 80, hostPort: 81}]}]\n";
        for (metadata, containers, words) in [
            (
                ON,
                two,
                "/spec/containers/1/ports/0/hostPort: 127.0.0.1:80/tcp is taken by /spec/containers/0/ports/0/hostPort",
            ),
            ("", two, "/spec/containers/1/ports/0/hostPort: 127.0.0.1:80/tcp is taken"),
            ("", host, "/spec/containers/0/ports/0/hostPort: with hostNetwork, it must be the containerPort"),
            (ON, "  hostNetwork: true\n  containers: [{name: a, image: i}]\n", "hostNetwork excludes it"),
            (
                "",
                "  containers: [{name: a, image: i, ports: [{containerPort: 80, hostPort: 81}]}]\n",
                "/spec/containers/0/ports/0/hostPort: the pod is on no network; name one with --network",
            ),
        ] {
            let error = wanted(&pod(metadata, containers)).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
