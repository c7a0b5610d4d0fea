//! Sockets that listen (sock_diag(7)).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::error::{Error, Result};
use crate::netlink::Netlink;
use nix::errno::Errno;

/// A TCP socket that listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listener {
    /// Its address; all addresses where it is unspecified.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
    /// The number by which `/proc/PID/fd` shows it.
    pub inode: u32,
}

/// All of the network namespace in which `netlink` was opened, by [`Netlink::for_sockets`].
///
/// # Errors
/// `ENOENT` where the kernel has no sock_diag for TCP.
pub fn tcp(netlink: &Netlink) -> Result<Vec<Listener>> {
    let mut found = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        let told = netlink.sockets(&request(family as u8))?;
        for body in told {
            let listener =
                listener(&body).ok_or_else(|| Error::new("netlink(SOCK_DIAG_BY_FAMILY)", Errno::EBADMSG));
            found.push(listener?);
        }
    }
    Ok(found)
}

/// The length of `struct inet_diag_sockid`.
const SOCKET: usize = 48;

/// `struct inet_diag_req_v2`: family, protocol, extensions, padding, states, and a socket that is any.
fn request(family: u8) -> Vec<u8> {
    const LISTEN: u32 = 1 << 10;
    let mut bytes = vec![family, libc::IPPROTO_TCP as u8, 0, 0];
    bytes.extend(LISTEN.to_ne_bytes());
    bytes.resize(bytes.len() + SOCKET, 0);
    bytes
}

/// `struct inet_diag_msg`: family, state, timer, retransmissions; the socket, which begins with its port and, after the
/// peer's, its address; at the end of five numbers its inode.
fn listener(body: &[u8]) -> Option<Listener> {
    const FIXED: usize = 4;
    let port = u16::from_be_bytes(body.get(FIXED..FIXED + 2)?.try_into().ok()?);
    let address: [u8; 16] = body.get(FIXED + 4..FIXED + 20)?.try_into().ok()?;
    let inode = body.get(FIXED + SOCKET + 16..FIXED + SOCKET + 20)?;
    let address = match i32::from(body[0]) {
        libc::AF_INET => IpAddr::V4(Ipv4Addr::new(address[0], address[1], address[2], address[3])),
        _ => IpAddr::V6(Ipv6Addr::from(address)),
    };
    Some(Listener { address, port, inode: u32::from_ne_bytes(inode.try_into().ok()?) })
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_listener_is_told_by_its_port_and_the_number_of_its_socket() {
        let netlink = Netlink::for_sockets().unwrap();
        for bound in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(socket) = TcpListener::bind(bound) else { continue };
            let inode = crate::file::stat(socket.as_fd()).unwrap().st_ino;
            let wanted = socket.local_addr().unwrap();
            let found = tcp(&netlink).unwrap();
            let own = found.iter().find(|listener| u64::from(listener.inode) == inode).unwrap();
            assert_eq!((own.address, own.port), (wanted.ip(), wanted.port()));
        }
    }

    #[test]
    fn what_is_cut_short_is_no_listener() {
        assert_eq!(listener(&[2; 20]), None);
    }
}
