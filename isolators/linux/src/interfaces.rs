//! `network/interfaces`: tells what goes through the network interfaces of a container.

use std::collections::BTreeMap;

use coracle_isolator::{Error, Handles, Isolator, NetworkUsage, Result, Usage};
use coracle_sys::file::{self, Resolve};
use coracle_sys::{Errno, process};
use oci_spec::runtime::LinuxNamespaceType;

/// Reads `/proc/PID/net/dev` (proc_pid_net(5)) of a container's first process, where the container has a network
/// namespace: the counters of the host's are nobody's own.
#[derive(Debug)]
pub struct Interfaces;

impl Isolator for Interfaces {
    fn name(&self) -> &str {
        "network/interfaces"
    }

    fn usage(&self, container: &Handles<'_>) -> Result<Usage> {
        let namespaces = container.spec.linux().as_ref().and_then(|linux| linux.namespaces().as_deref());
        let is_own = namespaces.unwrap_or_default().iter().any(|n| n.typ() == LinuxNamespaceType::Network);
        let (true, Some(pidfd)) = (is_own, container.pidfd) else { return Ok(Usage::default()) };
        let told = process::pid_of(pidfd)
            .and_then(|pid| file::read(file::CWD, format!("/proc/{pid}/net/dev"), LONGEST, Resolve::Host));
        // Asked after reading: a PID is another's only once its process has ended.
        let network = match (told, process::signal(pidfd, 0)) {
            (Ok(text), Ok(())) => interfaces(&String::from_utf8_lossy(&text)),
            // One that ends lets go of its namespaces before it has ended.
            (Err(e), Ok(())) if e.errno() == Errno::ENOENT => BTreeMap::new(),
            (Err(e), Ok(())) => return Err(Error::failed(e.call(), e.errno())),
            (_, Err(_)) => BTreeMap::new(),
        };
        Ok(Usage { network, ..Usage::default() })
    }
}

/// A line has at most 200 bytes, and a container thousands of interfaces at most.
const LONGEST: u64 = 1 << 20;

/// Two lines of headings, then `name: ` and sixteen numbers a line, eight for what is received and eight for what is
/// sent.
fn interfaces(text: &str) -> BTreeMap<String, NetworkUsage> {
    let lines = text.lines().skip(2).filter_map(|line| line.split_once(':'));
    lines
        .filter_map(|(name, numbers)| {
            let numbers: Vec<u64> = numbers.split_ascii_whitespace().map_while(|n| n.parse().ok()).collect();
            let [rb, rp, re, rd, _, _, _, _, tb, tp, te, td, ..] = numbers[..] else { return None };
            let usage = NetworkUsage {
                receive_bytes: rb,
                receive_packets: rp,
                receive_errors: re,
                receive_dropped: rd,
                transmit_bytes: tb,
                transmit_packets: tp,
                transmit_errors: te,
                transmit_dropped: td,
            };
            Some((name.trim().to_owned(), usage))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::process::Command;

    use coracle_isolator::{Cgroup, CgroupVersion};
    use oci_spec::runtime::Spec;

    use super::*;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "a test's process that nobody awaits yet")]
    fn one_that_ends_meanwhile_has_none() {
        let mut child = Command::new("true").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let pidfd = process::pidfd(pid).unwrap();
        coracle_sys::event::readable(&[pidfd.as_fd()], None).unwrap();
        // With a network namespace of its own, as the default is. Nobody has awaited the process.
        let (cgroup, spec) = (Cgroup::new(CgroupVersion::V2, Vec::new()), Spec::default());
        let handles = Handles { id: "x", pidfd: Some(pidfd.as_fd()), cgroup: &cgroup, spec: &spec };
        assert!(Interfaces.usage(&handles).unwrap().network.is_empty());
        child.wait().unwrap();
    }

    #[test]
    fn each_interface_is_told_by_name() {
        let text = "Inter-|   Receive\n face |bytes\n    lo:  1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n  eth0:5 0 0 0 0 0 0 0 6 0 0 0 0 0 0 0\nbroken: 1 2\n";
        let found = interfaces(text);
        assert_eq!(found.len(), 2);
        let lo = found["lo"];
        assert_eq!(
            (lo.receive_bytes, lo.receive_dropped, lo.transmit_bytes, lo.transmit_dropped),
            (1, 4, 9, 12)
        );
        assert_eq!((found["eth0"].receive_bytes, found["eth0"].transmit_bytes), (5, 6));
    }
}
