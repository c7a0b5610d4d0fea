//! `network/ports`: a container listens on ports that it was allotted, and on no others.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use coracle_isolator::{Adjustment, Cgroup, Config, Error, Handles, Isolator, Limitation, Result, pointer};
use coracle_sys::file::{self, CWD, Resolve};
use coracle_sys::listeners::{self, Listener};
use coracle_sys::netlink::Netlink;
use coracle_sys::{event, namespace, process};
use oci_spec::runtime::Spec;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::failed;

/// The annotation with the ports that a container is allotted: `8080,9000-9010`; empty for none.
pub const ANNOTATION: &str = "io.coracle.ports";

/// Finds TCP sockets of a container that listen on other ports than those in its annotation. It looks again and again,
/// since the kernel does not tell of a new one: who must not listen for a moment is kept from it by a port rule of
/// `linux/landlock`.
#[derive(Debug, Default)]
pub(crate) struct Ports(Settings);

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Settings {
    /// How often it looks, in seconds.
    interval: f64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { interval: 5.0 }
    }
}

/// The ports of a container.
#[derive(Debug, PartialEq)]
struct Allotted(Vec<RangeInclusive<u16>>);

impl Isolator for Ports {
    fn name(&self) -> &str {
        "network/ports"
    }

    fn configure(&mut self, options: &Map<String, Value>) -> Result<()> {
        let settings: Settings =
            serde_json::from_value(Value::Object(options.clone())).map_err(|e| Error::new(e.to_string()))?;
        if !(0.01..=3600.0).contains(&settings.interval) {
            return Err(Error::new(format!(
                "an interval of {} s is not between 0.01 and 3600",
                settings.interval
            )));
        }
        self.0 = settings;
        Ok(())
    }

    fn prepare(&self, config: &Config<'_>) -> Result<Adjustment> {
        allotted(config.spec).map(|_| Adjustment::default())
    }

    fn enforces(&self, spec: &Spec) -> bool {
        allotted(spec).is_ok_and(|allotted| allotted.is_some())
    }

    fn watch(&self, container: &Handles<'_>) -> Result<Option<OwnedFd>> {
        if !self.enforces(container.spec) {
            return Ok(None);
        }
        let timer = event::timer(Duration::from_secs_f64(self.0.interval));
        timer.map(Some).map_err(failed)
    }

    fn limitation(&self, container: &Handles<'_>) -> Result<Option<Limitation>> {
        let (Some(allotted), Some(pidfd)) = (allotted(container.spec)?, container.pidfd) else {
            return Ok(None);
        };
        let Some(all) = listening(pidfd)? else { return Ok(None) };
        let others: Vec<Listener> = all.into_iter().filter(|listener| !allotted.has(listener.port)).collect();
        if others.is_empty() {
            return Ok(None);
        }
        // Others may share the namespace: what counts is whose the socket is.
        let own = sockets(container.cgroup, pidfd);
        let found = others.iter().find(|listener| own.contains(&listener.inode));
        Ok(found.map(|listener| Limitation {
            message: format!(
                "it listens on port {} of {}, which it was not allotted",
                listener.port, listener.address
            ),
            reason: "ports".to_owned(),
            resources: None,
        }))
    }
}

impl Allotted {
    fn parse(text: &str) -> Result<Self> {
        let range = |word: &str| {
            let (first, last) = word.split_once('-').unwrap_or((word, word));
            let (first, last) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
            (first <= last).then_some(first..=last)
        };
        let words = text.split(',').map(str::trim).filter(|word| !word.is_empty());
        let ranges = words.map(|word| {
            range(word).ok_or_else(|| {
                let error = Error::new(format!("{word:?} is no port and no range of ports"));
                error.with_hint("write 8080,9000-9010").at(pointer("/annotations", ANNOTATION))
            })
        });
        ranges.collect::<Result<_>>().map(Self)
    }

    fn has(&self, port: u16) -> bool {
        self.0.iter().any(|range| range.contains(&port))
    }
}

fn allotted(spec: &Spec) -> Result<Option<Allotted>> {
    let text = spec.annotations().as_ref().and_then(|annotations| annotations.get(ANNOTATION));
    text.map(|text| Allotted::parse(text)).transpose()
}

/// What listens in the network namespace of a process; nothing where the process is gone.
fn listening(pidfd: BorrowedFd<'_>) -> Result<Option<Vec<Listener>>> {
    const NETWORK: i32 = libc::CLONE_NEWNET;
    let own = file::open(CWD, "/proc/self/ns/net", 0, 0, Resolve::Host).map_err(failed)?;
    match namespace::join(pidfd, NETWORK) {
        Err(e) if e.errno() == coracle_sys::Errno::ESRCH => return Ok(None),
        joined => joined.map_err(failed)?,
    }
    // The runtime has one thread: nothing else is opened meanwhile.
    let opened = Netlink::for_sockets();
    namespace::join(own.as_fd(), NETWORK).map_err(failed)?;
    let netlink = opened.map_err(failed)?;
    listeners::tcp(&netlink).map(Some).map_err(failed)
}

/// The numbers of all sockets that the processes of a container hold: of all in its cgroup and below; of its first one,
/// where it has no cgroup. A process that ends meanwhile holds none.
fn sockets(cgroup: &Cgroup, pidfd: BorrowedFd<'_>) -> BTreeSet<u32> {
    let mut pids: Vec<i32> = process::pid_of(pidfd).into_iter().collect();
    if let Some((_, dir)) = cgroup.dirs().next() {
        members(dir, 0, &mut pids);
    }
    let mut found = BTreeSet::new();
    for pid in pids {
        let Ok(dir) = file::open(CWD, format!("/proc/{pid}/fd"), libc::O_DIRECTORY, 0, Resolve::Host) else {
            continue;
        };
        for name in file::list(dir.as_fd()).unwrap_or_default() {
            let target = file::read_link(dir.as_fd(), &name).unwrap_or_default();
            let target = target.to_string_lossy();
            let inode = target.strip_prefix("socket:[").and_then(|rest| rest.strip_suffix(']'));
            found.extend(inode.and_then(|inode| inode.parse::<u32>().ok()));
        }
    }
    found
}

/// The processes of a cgroup and of those below it.
fn members(dir: BorrowedFd<'_>, depth: u32, pids: &mut Vec<i32>) {
    const DEEPEST: u32 = 32;
    const LONGEST: u64 = 16 << 20;
    if let Ok(text) = file::read(dir, "cgroup.procs", LONGEST, Resolve::Beneath) {
        pids.extend(String::from_utf8_lossy(&text).lines().filter_map(|line| line.parse::<i32>().ok()));
    }
    for name in file::list(dir).unwrap_or_default() {
        let below = file::open(dir, &name, libc::O_DIRECTORY, 0, Resolve::BeneathNoLinks);
        if let (Ok(below), true) = (below, depth < DEEPEST) {
            members(below.as_fd(), depth + 1, pids);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_single_ones_and_ranges() {
        let allotted = Allotted::parse("80, 8000-8010").unwrap();
        assert!(allotted.has(80) && allotted.has(8010) && !allotted.has(81) && !allotted.has(8011));
        assert!(!Allotted::parse("").unwrap().has(1));
        for wrong in ["x", "80-", "90-80", "70000"] {
            let error = Allotted::parse(wrong).unwrap_err().to_string();
            let wanted =
                format!("/annotations/io.coracle.ports: {wrong:?} is no port and no range of ports; write");
            assert!(error.starts_with(&wanted), "{error}");
        }
    }
}
