//! Whether the ports of the host that a container wants are free: plugins take one from whoever listens there.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, UdpSocket};

use coracle_isolator::{Error, Result};

use crate::records::{Record, Records};
use crate::wanted::PortMapping;

/// Checks that nobody else has the ports of `record`: no other container or pod, and no process of the host.
pub(crate) fn check_free(records: &Records, record: &Record) -> Result<()> {
    for id in records.ids()?.into_iter().filter(|id| *id != record.id) {
        let Ok(Some(other)) = records.read(&id) else { continue };
        let taken = |port: &&PortMapping| other.wanted.ports.iter().any(|theirs| theirs.collides_with(port));
        if let Some(port) = record.wanted.ports.iter().find(taken).filter(|_| other.is_owned()) {
            let who = other.names.last().unwrap_or(&id);
            return Err(Error::new(format!("port {} of the host is published for {who:?}", port.told())));
        }
    }
    match record.wanted.ports.iter().find(|port| is_used(port)) {
        Some(port) => {
            Err(Error::new(format!("port {} of the host is taken by a process there", port.told()))
                .with_hint("see ss -lnp"))
        }
        None => Ok(()),
    }
}

/// Whether a process of the host has the port. What can't be told otherwise is left to the plugin: an address may not be
/// the host's yet.
fn is_used(port: &PortMapping) -> bool {
    let any = [IpAddr::from(Ipv4Addr::UNSPECIFIED), Ipv6Addr::UNSPECIFIED.into()];
    let addresses: Vec<IpAddr> = port.host_ip.parse().map_or(any.to_vec(), |address| vec![address]);
    addresses.into_iter().any(|address| {
        let bound = match port.protocol.as_str() {
            "tcp" => TcpListener::bind((address, port.host_port)).map(drop),
            "udp" => UdpSocket::bind((address, port.host_port)).map(drop),
            _ => Ok(()),
        };
        bound.is_err_and(|e| e.kind() == std::io::ErrorKind::AddrInUse)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_used_as_long_as_somebody_listens() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let host_port = listener.local_addr().unwrap().port();
        let port = PortMapping { host_port, protocol: "tcp".to_owned(), ..PortMapping::default() };
        assert!(is_used(&port));
        assert!(!is_used(&PortMapping { host_ip: "127.0.0.2".to_owned(), ..port.clone() }));
        assert!(!is_used(&PortMapping { protocol: "udp".to_owned(), ..port.clone() }));
        drop(listener);
        assert!(!is_used(&port));
    }

    #[test]
    fn addresses_keep_ports_apart_and_none_is_all() {
        let port = |text: &str| PortMapping::parse(text).unwrap();
        assert!(port("80:1").collides_with(&port("127.0.0.1:80:2")));
        assert!(!port("127.0.0.2:80:1").collides_with(&port("127.0.0.1:80:2")));
        assert!(!port("80:1/udp").collides_with(&port("80:1")));
        assert_eq!(port("[::1]:80:1").told(), "[::1]:80/tcp");
    }
}
