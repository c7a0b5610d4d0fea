//! `linux/net-devices`: interfaces of the host that move into the container's network namespace.

use std::cell::RefCell;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use coracle_isolator::{Adjustment, Config, Error, Handles, Isolator, Result, pointer};
use coracle_sys::file::{self, Resolve};
use coracle_sys::netlink::{Address, Interface, Netlink};
use coracle_sys::{Errno, namespace, process};
use oci_spec::runtime::{LinuxNamespace, LinuxNamespaceType, Spec};

use crate::failed;

/// Moves what `linux.netDevices` names, once the container's first process is there. An interface keeps its addresses of
/// global scope and comes up in its new place; routes, and what else belonged to the old one, stay behind
/// (runtime-spec 1.3, config-linux.md, "Network Devices").
///
/// Nothing is to be cleaned up: with the network namespace, the kernel ends an interface that was made by software and
/// gives one of hardware back to the host. Where a launch fails, each comes back as it was.
#[derive(Debug, Default)]
pub struct NetDevices(RefCell<Option<Moved>>);

/// What was moved, and both networks, which live as long as this does.
#[derive(Debug)]
struct Moved {
    here: Netlink,
    there: Netlink,
    own: OwnedFd,
    links: Vec<Link>,
}

/// An interface as it was on the host, before it moved.
#[derive(Debug)]
struct Link {
    /// What the configuration calls it.
    asked: String,
    old: Interface,
    new: String,
    addresses: Vec<Address>,
}

impl Isolator for NetDevices {
    fn name(&self) -> &str {
        "linux/net-devices"
    }

    fn prepare(&self, config: &Config<'_>) -> Result<Adjustment> {
        let wanted = wanted(config.spec);
        if wanted.is_empty() {
            return Ok(Adjustment::default());
        }
        if network(config.spec).is_none() {
            let why = "it is set but /linux/namespaces has no \"network\"";
            return Err(Error::new(why)
                .at(FIELD)
                .with_hint("unable to move network devices without a NET namespace"));
        }
        for (index, (name, new)) in wanted.iter().enumerate() {
            is_name(name).map_err(|why| Error::new(why).at(field(name)))?;
            let renamed = format!("{}/name", field(name));
            is_name(new).map_err(|why| Error::new(format!("{new:?}: {why}")).at(renamed.clone()))?;
            if wanted[..index].iter().any(|(_, other)| other == new) {
                return Err(Error::new(format!("two interfaces would be called {new:?}")).at(renamed));
            }
        }
        Ok(Adjustment::default())
    }

    fn isolate(&self, container: &Handles<'_>) -> Result<()> {
        let wanted = wanted(container.spec);
        if wanted.is_empty() {
            return Ok(());
        }
        let own = open("/proc/self/ns/net")?;
        let target = target(container)?;
        let here = Netlink::open().map_err(failed)?;
        let there = in_namespace(&target, &own)?;
        // Moved as a whole or not at all, as far as can be told before.
        let links = found(&here, &there, &wanted)?;
        let mut moved = Moved { here, there, own, links: Vec::new() };
        let result = links.into_iter().try_for_each(|link| {
            let asked = field(&link.asked);
            go(&mut moved, link, &target).map_err(|e| hinted(e).at(asked))
        });
        self.0.replace(Some(moved));
        result
    }

    fn give_back(&self, _: &str) -> Result<()> {
        let Some(Moved { here, there, own, links }) = self.0.take() else { return Ok(()) };
        // One that is lost keeps none of the others away.
        let mut result = Ok(());
        for link in links.iter().rev() {
            let back = come_back(&here, &there, link, &own);
            result = result.and(back.map_err(|e| hinted(e).at(field(&link.asked))));
        }
        result
    }
}

const FIELD: &str = "/linux/netDevices";

/// The JSON pointer of an interface's entry.
fn field(name: &str) -> String {
    pointer(FIELD, name)
}

/// The interfaces `wanted`, as they are on the host. An interface may have names beside its own, and is found by each.
fn found(here: &Netlink, there: &Netlink, wanted: &[(&str, &str)]) -> Result<Vec<Link>> {
    let mut links: Vec<Link> = Vec::with_capacity(wanted.len());
    for (asked, new) in wanted {
        let refused = |why: String| Err(Error::new(why).at(field(asked)));
        let old = here.link(asked).map_err(|e| missing(e, asked))?;
        let new = if new == asked { &old.name } else { *new };
        if let Some(other) = links.iter().find(|link| link.old.index == old.index) {
            return refused(format!("{:?} is the same interface, {:?}", other.asked, old.name));
        }
        if links.iter().any(|link| link.new == new) {
            return refused(format!("two interfaces would be called {new:?}"));
        }
        // The kernel gives no interface a name that it has already, and says so once it has moved.
        if new != old.name && here.link(new).is_ok_and(|other| other.index == old.index) {
            return refused(format!("{new:?} is an alternative name of {:?} itself", old.name));
        }
        if there.link(new).is_ok() {
            return refused(format!("the container's network has an interface {new:?} already"));
        }
        let addresses = here.addresses(old.index).map_err(|e| hinted(e).at(field(asked)))?;
        let addresses = addresses.into_iter().filter(Address::is_global).collect();
        links.push(Link { asked: (*asked).to_owned(), new: new.to_owned(), old, addresses });
    }
    Ok(links)
}

/// The interfaces to move, in the order of their names, each with what it is called in the container.
fn wanted(spec: &Spec) -> Vec<(&str, &str)> {
    let devices = spec.linux().as_ref().and_then(|linux| linux.net_devices().as_ref());
    let mut wanted: Vec<_> = devices
        .into_iter()
        .flatten()
        .map(|(name, device)| {
            let new = device.name().as_deref().filter(|new| !new.is_empty());
            (name.as_str(), new.unwrap_or(name))
        })
        .collect();
    wanted.sort_unstable();
    wanted
}

fn network(spec: &Spec) -> Option<&LinuxNamespace> {
    let namespaces = spec.linux().as_ref()?.namespaces().as_deref()?;
    namespaces.iter().find(|namespace| namespace.typ() == LinuxNamespaceType::Network)
}

/// What the kernel takes for a name (`dev_valid_name` of `net/core/dev.c`), and no pattern for one.
fn is_name(name: &str) -> std::result::Result<(), &'static str> {
    const LONGEST: usize = 15;
    match name {
        "" => Err("an interface has a name"),
        "." | ".." => Err("no interface has such a name"),
        _ if name.len() > LONGEST => Err("a name has at most 15 bytes"),
        _ if name.contains(|c: char| matches!(c, '/' | ':' | '%' | '\0') || c.is_ascii_whitespace()) => {
            Err("a name has no /, :, % and no white space")
        }
        _ => Ok(()),
    }
}

/// The container's network namespace: the one that it joins by path, or the one that its first process was born in.
fn target(container: &Handles<'_>) -> Result<OwnedFd> {
    let path = network(container.spec).and_then(|network| network.path().as_ref());
    match path.filter(|path| !path.as_os_str().is_empty()) {
        Some(path) => open(path),
        None => {
            let pidfd =
                container.pidfd.ok_or_else(|| Error::new("the container has no process").at(FIELD))?;
            // It is the runtime's child and not awaited yet, so the number is its own.
            let pid = process::pid_of(pidfd).map_err(failed)?;
            open(format!("/proc/{pid}/ns/net"))
        }
    }
}

fn open(path: impl AsRef<Path>) -> Result<OwnedFd> {
    file::open(file::CWD, path.as_ref(), 0, 0, Resolve::Host).map_err(failed)
}

/// A routing socket of the namespace `target`. The runtime has one thread and no other socket to open meanwhile.
fn in_namespace(target: &OwnedFd, own: &OwnedFd) -> Result<Netlink> {
    const NETWORK: i32 = 0x4000_0000;
    namespace::join(target.as_fd(), NETWORK).map_err(|e| hinted(e).at(FIELD))?;
    let opened = Netlink::open();
    namespace::join(own.as_fd(), NETWORK).map_err(failed)?;
    opened.map_err(failed)
}

/// Moves an interface to the network whose namespace `target` is.
///
/// It is the move that takes it down, once nothing forbids it any more (`__dev_change_net_namespace` of `net/core/dev.c`): one
/// that can't move stays as it is. What it had was read before, since IPv6 takes addresses away from an interface that goes down.
fn go(moved: &mut Moved, link: Link, target: &OwnedFd) -> coracle_sys::Result<()> {
    // Noted first: the kernel moves it, and may still fail to give it its name.
    moved.links.push(link);
    let (here, there) = (&moved.here, &moved.there);
    let Some(link) = moved.links.last() else { return Ok(()) };
    here.move_to(link.old.index, target.as_fd(), &link.new)?;
    settle(there, &link.new, &link.addresses, true)
}

fn come_back(here: &Netlink, there: &Netlink, link: &Link, own: &OwnedFd) -> coracle_sys::Result<()> {
    let Link { old, new, addresses, .. } = link;
    if here.link(&old.name).is_ok_and(|there_still| there_still.index == old.index) {
        return Ok(());
    }
    let moved = there.link(new).or_else(|missing| there.link(&old.name).map_err(|_| missing))?;
    there.move_to(moved.index, own.as_fd(), &old.name)?;
    settle(here, &old.name, addresses, old.is_up)
}

/// Gives interface `name` of `network`, which has just come, its addresses, and brings it up where it is to be.
fn settle(network: &Netlink, name: &str, addresses: &[Address], is_up: bool) -> coracle_sys::Result<()> {
    let link = network.link(name)?.index;
    for address in addresses {
        match network.add_address(link, address) {
            Err(e) if e.errno() == Errno::EEXIST => {}
            other => other?,
        }
    }
    network.set_up(link, is_up)
}

fn missing(error: coracle_sys::Error, name: &str) -> Error {
    let is_missing = error.errno() == Errno::ENODEV;
    let error = failed(error).at(field(name));
    if is_missing { error.with_hint("the runtime's network has no interface of this name") } else { error }
}

fn hinted(error: coracle_sys::Error) -> Error {
    let hint = match error.errno() {
        Errno::EPERM => "to move an interface takes CAP_NET_ADMIN over the host's network",
        Errno::EINVAL | Errno::EOPNOTSUPP => "some interfaces belong to one network for good, lo among them",
        _ => return failed(error),
    };
    failed(error).with_hint(hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prepared(devices: serde_json::Value, namespaces: serde_json::Value) -> Result<Adjustment> {
        let spec = serde_json::json!({
            "ociVersion": "1.3.0", "linux": {"netDevices": devices, "namespaces": namespaces},
        });
        let spec: Spec = serde_json::from_value(spec).unwrap();
        NetDevices::default().prepare(&Config {
            id: "c",
            kind: coracle_isolator::Kind::Oci,
            bundle: Path::new("/b"),
            spec: &spec,
            cgroup: coracle_isolator::CgroupVersion::V2,
        })
    }

    #[test]
    fn what_can_not_be_is_refused_by_name() {
        let network = || serde_json::json!([{"type": "network"}]);
        for (devices, namespaces, words) in [
            (serde_json::json!({"a": {}}), serde_json::json!([]), "no \"network\""),
            (serde_json::json!({"": {}}), network(), "an interface has a name"),
            (serde_json::json!({"..": {}}), network(), "no interface has such a name"),
            (serde_json::json!({"a b": {}}), network(), "no white space"),
            (serde_json::json!({"a": {"name": "x/y"}}), network(), "no /, :, %"),
            (serde_json::json!({"a": {"name": "eth%d"}}), network(), "no /, :, %"),
            (serde_json::json!({"a": {"name": "sixteen-letters-"}}), network(), "at most 15 bytes"),
            (serde_json::json!({"a": {"name": "x"}, "b": {"name": "x"}}), network(), "would be called \"x\""),
        ] {
            let error = prepared(devices, namespaces).unwrap_err().to_string();
            assert!(error.starts_with("/linux/netDevices") && error.contains(words), "{error}");
        }
    }

    #[test]
    fn interfaces_move_in_the_order_of_their_names() {
        let spec = serde_json::json!({
            "ociVersion": "1.3.0", "linux": {"netDevices": {"b": {"name": ""}, "a": {"name": "x"}}},
        });
        assert_eq!(wanted(&serde_json::from_value(spec).unwrap()), [("a", "x"), ("b", "b")]);
    }
}
