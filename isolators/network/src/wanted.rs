//! What a container asks of its networks.

use std::net::IpAddr;

use coracle_isolator::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// The networks of a container, and what goes with them: the document in the annotation `io.coracle.network`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Wanted {
    /// The networks, each with an interface of its own, in this order.
    pub networks: Vec<Network>,
    /// Ports of the host that lead to the container, by the first network that can.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<PortMapping>,
    /// Names beside those of the containers on its networks, for `/etc/hosts`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<HostAlias>,
    /// What stands in `/etc/resolv.conf`. Without servers, those that the networks name; else the host's.
    pub dns: Dns,
}

/// One network.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Network {
    /// Its name, as its configuration says; `bridge` is there without one.
    pub name: String,
    /// What its interface is called in the container: `eth0` and so on unless this says otherwise.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub interface: Option<String>,
    /// What its plugins are told at run time, by the names of CNI's conventions: `ips`, `mac`, `bandwidth`, `ipRanges`,
    /// `dns`, `aliases` … Each must be a capability of one of them.
    #[serde(flatten)]
    pub runtime: Map<String, Value>,
}

/// A port of the host that leads to one of the container, by CNI's names.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PortMapping {
    /// The host's port.
    pub host_port: u16,
    /// The container's port.
    pub container_port: u16,
    /// `tcp`, `udp` or `sctp`.
    #[serde(default = "tcp")]
    pub protocol: String,
    /// The host's address; all of them where it is empty.
    #[serde(rename = "hostIP", skip_serializing_if = "String::is_empty", default)]
    pub host_ip: String,
}

fn tcp() -> String {
    "tcp".to_owned()
}

/// An address and its names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostAlias {
    /// The address.
    pub ip: IpAddr,
    /// Its names.
    pub hostnames: Vec<String>,
}

/// How names become addresses (resolv.conf(5)), by CNI's names.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Dns {
    /// Addresses of name servers.
    #[serde(skip_serializing_if = "Vec::is_empty", alias = "servers")]
    pub nameservers: Vec<String>,
    /// The domain that a short name is looked up in, where `search` names none.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub domain: String,
    /// Domains that a short name is looked up in.
    #[serde(skip_serializing_if = "Vec::is_empty", alias = "searches")]
    pub search: Vec<String>,
    /// Options of the resolver.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

impl Wanted {
    /// What the text of the annotation asks for: names with commas between them, or the document.
    ///
    /// # Errors
    /// Where it can't be understood, or asks for what can't be.
    pub fn parse(text: &str) -> Result<Self> {
        let wanted = match text.trim_start().starts_with('{') {
            true => serde_json::from_str(text).map_err(|e| Error::new(e.to_string()))?,
            false => Self {
                networks: text.split(',').map(|name| Network::named(name.trim())).collect(),
                ..Self::default()
            },
        };
        wanted.check()?;
        Ok(wanted)
    }

    fn check(&self) -> Result<()> {
        if self.networks.is_empty() {
            return Err(Error::new("it names no network"));
        }
        for (index, network) in self.networks.iter().enumerate() {
            if !is_name(&network.name) {
                return Err(Error::new(format!("{:?} is no name of a network", network.name)));
            }
            let interface = self.interface(index);
            if interface.is_empty() || interface.len() > 15 || !is_name(&interface) {
                return Err(Error::new(format!("{interface:?} is no name of an interface")));
            }
            if (0..index).any(|other| self.interface(other) == interface) || interface == "lo" {
                return Err(Error::new(format!("two interfaces would be called {interface:?}")));
            }
            // What a plugin and we keep of a network, we keep by its name.
            if self.networks[..index].iter().any(|other| other.name == network.name) {
                return Err(Error::new(format!("network {:?} is named twice", network.name)));
            }
            // They are looked at before a plugin takes them from whoever has them.
            if network.runtime.contains_key("portMappings") {
                let why = format!("network {:?} has \"portMappings\" of its own", network.name);
                return Err(Error::new(why).with_hint("write them in \"ports\""));
            }
        }
        self.check_ports()?;
        let mut names = self.hosts.iter().flat_map(|alias| &alias.hostnames);
        match names.find(|name| !is_name(name)) {
            Some(name) => Err(Error::new(format!("{name:?} is no name of a host"))),
            None => self.dns.check(),
        }
    }

    /// Refuses what is no port, and two that want the same of the host.
    fn check_ports(&self) -> Result<()> {
        for (index, port) in self.ports.iter().enumerate() {
            port.check()?;
            if let Some(other) = self.ports[..index].iter().find(|other| other.collides_with(port)) {
                let (one, two) = (other.told(), port.told());
                return Err(Error::new(format!("port {two} of the host is published twice, first as {one}")));
            }
        }
        Ok(())
    }

    /// What the interface of the network with this number is called.
    pub fn interface(&self, index: usize) -> String {
        let given = self.networks.get(index).and_then(|network| network.interface.clone());
        given.unwrap_or_else(|| format!("eth{index}"))
    }
}

impl Network {
    /// The network `name`, with nothing said about it.
    pub fn named(name: &str) -> Self {
        Self { name: name.to_owned(), ..Self::default() }
    }
}

impl PortMapping {
    /// `[HOST-IP:]HOST-PORT:CONTAINER-PORT[/tcp|udp|sctp]`.
    ///
    /// # Errors
    /// Where it is not of this form.
    pub fn parse(text: &str) -> Result<Self> {
        let wrong = || {
            Error::new(format!("{text:?} is no mapping of a port"))
                .with_hint("write [HOST-IP:]HOST-PORT:CONTAINER-PORT[/tcp|udp|sctp]")
        };
        let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
        let (host, container) = ports.rsplit_once(':').ok_or_else(wrong)?;
        let (ip, host) = host.rsplit_once(':').unwrap_or(("", host));
        let mapping = Self {
            host_port: host.parse().map_err(|_| wrong())?,
            container_port: container.parse().map_err(|_| wrong())?,
            protocol: protocol.to_owned(),
            host_ip: ip.trim_start_matches('[').trim_end_matches(']').to_owned(),
        };
        mapping.check().map_err(|_| wrong())?;
        Ok(mapping)
    }

    /// The host's side, for people: `127.0.0.1:8080/tcp`.
    pub fn told(&self) -> String {
        let Self { host_port, protocol, host_ip, .. } = self;
        match host_ip.as_str() {
            "" => format!("{host_port}/{protocol}"),
            ip if ip.contains(':') => format!("[{ip}]:{host_port}/{protocol}"),
            ip => format!("{ip}:{host_port}/{protocol}"),
        }
    }

    /// Whether both want the same port of the host.
    pub fn collides_with(&self, other: &Self) -> bool {
        let address = |mapping: &Self| {
            let address = mapping.host_ip.parse::<IpAddr>().ok();
            address.map(|address| address.to_canonical()).filter(|address| !address.is_unspecified())
        };
        (self.host_port, &self.protocol) == (other.host_port, &other.protocol)
            && match (address(self), address(other)) {
                (Some(one), Some(two)) => one == two,
                _ => true,
            }
    }

    fn check(&self) -> Result<()> {
        let is_whole = self.host_port > 0
            && self.container_port > 0
            && ["tcp", "udp", "sctp"].contains(&self.protocol.as_str())
            && (self.host_ip.is_empty() || self.host_ip.parse::<IpAddr>().is_ok());
        if is_whole { Ok(()) } else { Err(Error::new(format!("{} is no mapping of a port", json!(self)))) }
    }
}

impl Dns {
    /// A line of resolv.conf(5) is words: none may hold what ends it.
    fn check(&self) -> Result<()> {
        if let Some(server) = self.nameservers.iter().find(|server| server.parse::<IpAddr>().is_err()) {
            return Err(Error::new(format!("the name server {server:?} is no address")));
        }
        let domain = Some(&self.domain).filter(|domain| !domain.is_empty());
        match self.search.iter().chain(&self.options).chain(domain).find(|word| !is_word(word)) {
            Some(word) => Err(Error::new(format!("{word:?} is no word of resolv.conf"))),
            None => Ok(()),
        }
    }
}

/// What can be a word in a line of resolv.conf(5), and begins no remark.
pub(crate) fn is_word(word: &str) -> bool {
    !word.is_empty() && !word.starts_with(['#', ';']) && word.chars().all(|c| c.is_ascii_graphic())
}

/// What CNI takes for a name of a network or a container; it is safe as a name of a file, and in a line of a file.
pub(crate) fn is_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.len() <= 253
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_alone_are_enough() {
        let wanted = Wanted::parse("front, back").unwrap();
        assert_eq!(wanted.networks, [Network::named("front"), Network::named("back")]);
        assert_eq!((wanted.interface(0), wanted.interface(1)), ("eth0".to_owned(), "eth1".to_owned()));
    }

    #[test]
    fn a_document_says_the_rest_by_the_names_of_cni() {
        let text = r#"{"networks": [{"name": "front", "interface": "net0", "mac": "02:00:00:00:00:01"}],
            "ports": [{"hostPort": 80, "containerPort": 8080, "hostIP": "127.0.0.1"}],
            "dns": {"servers": ["1.1.1.1"]}, "hosts": [{"ip": "::1", "hostnames": ["here"]}]}"#;
        let wanted = Wanted::parse(text).unwrap();
        assert_eq!(wanted.networks[0].runtime["mac"], "02:00:00:00:00:01");
        assert_eq!((wanted.interface(0).as_str(), wanted.ports[0].protocol.as_str()), ("net0", "tcp"));
        assert_eq!(wanted.dns.nameservers, ["1.1.1.1"]);
        let again = Wanted::parse(&json!(wanted).to_string()).unwrap();
        assert_eq!(again, wanted);
    }

    #[test]
    fn what_can_not_be_is_refused() {
        for (text, words) in [
            ("", "is no name of a network"),
            ("../x", "\"../x\" is no name of a network"),
            (r#"{"networks": []}"#, "it names no network"),
            (r#"{"network": []}"#, "unknown field `network`"),
            (r#"{"networks": [{"name": "a", "interface": "lo"}]}"#, "would be called \"lo\""),
            (r#"{"networks": [{"name": "a", "interface": "x/y"}]}"#, "is no name of an interface"),
            (
                r#"{"networks": [{"name": "a", "interface": "eth1"}, {"name": "b"}]}"#,
                "two interfaces would be called \"eth1\"",
            ),
            ("a,a", "network \"a\" is named twice"),
            (
                r#"{"networks": [{"name": "a", "portMappings": [{"hostPort": 1, "containerPort": 1}]}]}"#,
                "of its own; write them in \"ports\"",
            ),
            (r#"{"networks": [{"name": "a"}], "dns": {"servers": ["x"]}}"#, "\"x\" is no address"),
            (
                r#"{"networks": [{"name": "a"}], "dns": {"nameserver": ["::1"]}}"#,
                "unknown field `nameserver`",
            ),
            (r#"{"networks": [{"name": "a"}], "dns": {"domain": "a b"}}"#, "no word of resolv.conf"),
            (r#"{"networks": [{"name": "a"}], "dns": {"search": ["a\nb"]}}"#, "no word of resolv.conf"),
            (
                r#"{"networks": [{"name": "a"}], "hosts": [{"ip": "::1", "hostnames": ["a\n1.2.3.4 b"]}]}"#,
                "is no name of a host",
            ),
            (
                r#"{"networks": [{"name": "a"}], "ports": [{"hostPort": 1, "containerPort": 0}]}"#,
                "is no mapping of a port",
            ),
        ] {
            let error = Wanted::parse(text).unwrap_err().to_string();
            assert!(error.contains(words), "{text}: {error}");
        }
    }

    #[test]
    fn a_port_of_the_host_is_had_once() {
        let with = |ports: [&str; 2]| {
            let ports = ports.map(|port| PortMapping::parse(port).unwrap()).into();
            Wanted { networks: vec![Network::named("a")], ports, ..Wanted::default() }.check()
        };
        for twice in
            [["81:80", "81:81"], ["[fd00::1]:81:80", "[fd00:0::1]:81:80"], ["81:80", "127.0.0.1:81:80"]]
        {
            assert!(with(twice).unwrap_err().to_string().contains("is published twice"), "{twice:?}");
        }
        with(["81:80", "81:80/udp"]).unwrap();
        with(["127.0.0.1:81:80", "127.0.0.2:81:80"]).unwrap();
    }

    #[test]
    fn ports_are_written_as_docker_writes_them() {
        let port = PortMapping::parse("127.0.0.1:8080:80/udp").unwrap();
        assert_eq!((port.host_port, port.container_port), (8080, 80));
        assert_eq!((port.protocol.as_str(), port.host_ip.as_str()), ("udp", "127.0.0.1"));
        assert_eq!(PortMapping::parse("[::1]:8080:80").unwrap().host_ip, "::1");
        for wrong in ["80", "x:80", "80:0", "80:80/icmp", "host:80:80", "70000:80"] {
            let error = PortMapping::parse(wrong).unwrap_err().to_string();
            assert!(error.contains("is no mapping of a port; write "), "{wrong}: {error}");
        }
    }
}
