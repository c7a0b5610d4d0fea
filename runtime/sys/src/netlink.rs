//! Network interfaces and their addresses, over a routing socket (netlink(7), rtnetlink(7)).
//!
//! The few messages that moving an interface takes are put together here: the crates for it know every message there
//! is, and bring an asynchronous executor or a parser generator's worth of code.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{self, AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType};

use crate::error::{Error, Result, named, show};

const ACK: u16 = 0x4;
const REQUEST: u16 = 0x1;
const ROOT_AND_MATCH: u16 = 0x300;
const EXCL_AND_CREATE: u16 = 0x600;

const DONE: u16 = 3;
const ERROR: u16 = 2;
const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;

const IFLA_IFNAME: u16 = 3;
const IFLA_NET_NS_FD: u16 = 28;
const IFA_LABEL: u16 = 3;
const IFA_CACHEINFO: u16 = 6;
const IFA_FLAGS: u16 = 8;

/// The lengths of `struct nlmsghdr` and `struct ifaddrmsg`, and of an attribute's header.
const HEADER: usize = 16;
const ADDRESS: usize = 8;
const ATTRIBUTE: usize = 4;

/// More than the kernel puts into one answer (`NLMSG_GOODSIZE`, at most 32 KiB for a dump).
const LONGEST: usize = 64 << 10;

/// A routing socket, or one that tells of sockets. It stays with the network namespace in which it was opened.
#[derive(Debug)]
pub struct Netlink(OwnedFd);

/// An address of an interface, as the kernel tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// Family, length of the prefix, flags, scope.
    fixed: [u8; 4],
    /// What else there is to it: type and value.
    attributes: Vec<(u16, Vec<u8>)>,
}

/// An interface, as the kernel tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Its number.
    pub index: i32,
    /// Its name; it may have been asked for by another one of its names.
    pub name: String,
    /// Whether it is up.
    pub is_up: bool,
}

impl Address {
    /// Whether it holds everywhere and for good (`RT_SCOPE_UNIVERSE`, `IFA_F_PERMANENT`): not of the link alone, nor one
    /// that came with an advertisement of a router and goes again.
    pub fn is_global(&self) -> bool {
        const PERMANENT: u32 = 0x80;
        let long = self.attributes.iter().find(|(kind, _)| *kind == IFA_FLAGS);
        let long = long.and_then(|(_, value)| Some(u32::from_ne_bytes(value.as_slice().try_into().ok()?)));
        let flags = long.unwrap_or_else(|| u32::from(self.fixed[2]));
        self.fixed[3] == 0 && flags & PERMANENT != 0
    }
}

impl Interface {
    /// What the body of an answer tells: `struct ifinfomsg`, and attributes.
    fn of(told: &[u8]) -> Option<Self> {
        let (index, flags) = (number(told.get(4..8)?), number(told.get(8..12)?));
        let (_, name) = attributes(told.get(16..)?).into_iter().find(|(kind, _)| *kind == IFLA_IFNAME)?;
        let name = String::from_utf8(name).ok()?.trim_end_matches('\0').to_owned();
        Some(Self { index, name, is_up: flags & libc::IFF_UP != 0 })
    }
}

impl Netlink {
    /// A socket of the caller's network namespace.
    ///
    /// # Errors
    /// `EMFILE`.
    pub fn open() -> Result<Self> {
        Self::of(SockProtocol::NetlinkRoute)
    }

    /// One that tells of other sockets (sock_diag(7)).
    ///
    /// # Errors
    /// `EPROTONOSUPPORT` where the kernel has none of these.
    pub fn for_sockets() -> Result<Self> {
        Self::of(SockProtocol::NetlinkSockDiag)
    }

    /// What the kernel tells of the sockets that `wanted`, a `struct inet_diag_req_v2`, describes.
    pub(crate) fn sockets(&self, wanted: &[u8]) -> Result<Vec<Vec<u8>>> {
        const SOCK_DIAG_BY_FAMILY: u16 = 20;
        let call = || "netlink(SOCK_DIAG_BY_FAMILY)".to_owned();
        self.ask(Request::new(SOCK_DIAG_BY_FAMILY, wanted), ROOT_AND_MATCH, call)
    }

    fn of(protocol: SockProtocol) -> Result<Self> {
        let call = || "socket(AF_NETLINK)".to_owned();
        let made = socket::socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol);
        let fd = named(made, call)?;
        named(socket::bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0)), || "bind(AF_NETLINK)".to_owned())?;
        Ok(Self(fd))
    }

    /// The interface that `name` is the name of, or an alternative name (`ip link property add … altname`).
    ///
    /// # Errors
    /// `ENODEV` where there is none.
    pub fn link(&self, name: &str) -> Result<Interface> {
        let request = Request::link(RTM_GETLINK, 0, 0, 0).attribute(IFLA_IFNAME, &c_string(name));
        let call = || format!("netlink(RTM_GETLINK, {name:?})");
        let told = self.ask(request, ACK, call)?;
        let link = told.first().and_then(|link| Interface::of(link));
        link.ok_or_else(|| Error::new(call(), Errno::ENODEV))
    }

    /// The addresses of interface `index`.
    ///
    /// # Errors
    /// `ENOBUFS` where there are too many to tell.
    pub fn addresses(&self, index: i32) -> Result<Vec<Address>> {
        let request = Request::new(RTM_GETADDR, &[0; ADDRESS]);
        let told = self.ask(request, ROOT_AND_MATCH, || "netlink(RTM_GETADDR)".to_owned())?;
        let own = told.iter().filter(|told| told.get(4..8).map(number) == Some(index));
        let address = |told: &Vec<u8>| Address {
            fixed: [told[0], told[1], told[2], told[3]],
            attributes: attributes(&told[ADDRESS..]),
        };
        Ok(own.map(address).collect())
    }

    /// Gives `address` to interface `index`. What belongs to its old name and to its age stays behind.
    ///
    /// # Errors
    /// `EEXIST` where it has it already.
    pub fn add_address(&self, index: i32, address: &Address) -> Result<()> {
        let fixed = [&address.fixed[..], &index.to_ne_bytes()].concat();
        let kept = address.attributes.iter().filter(|(kind, _)| !matches!(*kind, IFA_LABEL | IFA_CACHEINFO));
        let request = kept.fold(Request::new(RTM_NEWADDR, &fixed), |request, (kind, value)| {
            request.attribute(*kind, value)
        });
        self.ask(request, ACK | EXCL_AND_CREATE, || format!("netlink(RTM_NEWADDR, {index})")).map(drop)
    }

    /// Brings interface `index` up, or down.
    ///
    /// # Errors
    /// `EPERM`.
    pub fn set_up(&self, index: i32, up: bool) -> Result<()> {
        let flag = libc::IFF_UP.cast_unsigned();
        let request = Request::link(RTM_NEWLINK, index, if up { flag } else { 0 }, flag);
        let word = if up { "up" } else { "down" };
        self.ask(request, ACK, || format!("netlink(RTM_NEWLINK, {index}, {word})")).map(drop)
    }

    /// Moves interface `index` to the network namespace `namespace`, where it is called `name` from the first moment on.
    ///
    /// # Errors
    /// `EEXIST` where another is called so there, `EINVAL` for one that can't be moved, `EPERM`.
    pub fn move_to(&self, index: i32, namespace: BorrowedFd<'_>, name: &str) -> Result<()> {
        let request = Request::link(RTM_NEWLINK, index, 0, 0)
            .attribute(IFLA_NET_NS_FD, &namespace.as_raw_fd().to_ne_bytes())
            .attribute(IFLA_IFNAME, &c_string(name));
        let call = || format!("netlink(RTM_NEWLINK, {index}, {}, {name:?})", show(&namespace));
        self.ask(request, ACK, call).map(drop)
    }

    /// Sends a request and returns the bodies of the answers, up to the last.
    fn ask(&self, request: Request, flags: u16, call: impl Fn() -> String) -> Result<Vec<Vec<u8>>> {
        let fd = self.0.as_raw_fd();
        let bytes = request.finish(flags | REQUEST);
        named(socket::send(fd, &bytes, MsgFlags::empty()), &call)?;
        let mut buffer = vec![0; LONGEST];
        let mut told = Vec::new();
        loop {
            let length = match socket::recv(fd, &mut buffer, MsgFlags::empty()) {
                Err(Errno::EINTR) => continue,
                other => named(other, &call)?,
            };
            for (kind, body) in messages(&buffer[..length]) {
                match kind {
                    DONE => return Ok(told),
                    ERROR => {
                        return acknowledged(body).map(|()| told).map_err(|errno| Error::new(call(), errno));
                    }
                    _ => told.push(body.to_vec()),
                }
            }
        }
    }
}

/// What an acknowledgement says: the negative number of an error, or 0.
fn acknowledged(body: &[u8]) -> std::result::Result<(), Errno> {
    match body.get(..4).map(number) {
        Some(0) => Ok(()),
        Some(errno) => Err(Errno::from_raw(-errno)),
        None => Err(Errno::EBADMSG),
    }
}

/// A message under construction.
struct Request(Vec<u8>);

impl Request {
    fn new(kind: u16, fixed: &[u8]) -> Self {
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(fixed);
        Self(bytes)
    }

    /// One that begins with `struct ifinfomsg`.
    fn link(kind: u16, index: i32, flags: u32, change: u32) -> Self {
        let fixed = [[0; 4], index.to_ne_bytes(), flags.to_ne_bytes(), change.to_ne_bytes()];
        Self::new(kind, fixed.as_flattened())
    }

    fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        let length = u16::try_from(ATTRIBUTE + value.len()).unwrap_or(u16::MAX);
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(aligned(self.0.len()), 0);
        self
    }

    fn finish(mut self, flags: u16) -> Vec<u8> {
        let length = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        self.0[6..8].copy_from_slice(&flags.to_ne_bytes());
        self.0
    }
}

/// Netlink aligns to four bytes.
fn aligned(length: usize) -> usize {
    length.next_multiple_of(4)
}

fn number(bytes: &[u8]) -> i32 {
    i32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

fn short(bytes: &[u8], at: usize) -> u16 {
    u16::from_ne_bytes([bytes[at], bytes[at + 1]])
}

fn c_string(text: &str) -> Vec<u8> {
    [text.as_bytes(), b"\0"].concat()
}

/// The messages that one datagram holds: each one's type and body.
fn messages(mut bytes: &[u8]) -> Vec<(u16, &[u8])> {
    let mut found = Vec::new();
    while bytes.len() >= HEADER {
        let length = usize::try_from(number(bytes)).unwrap_or(0);
        let Some(body) = bytes.get(HEADER..length) else { break };
        found.push((short(bytes, 4), body));
        bytes = bytes.get(aligned(length)..).unwrap_or_default();
    }
    found
}

fn attributes(mut bytes: &[u8]) -> Vec<(u16, Vec<u8>)> {
    let mut found = Vec::new();
    while bytes.len() >= ATTRIBUTE {
        let length = usize::from(short(bytes, 0));
        let Some(value) = bytes.get(ATTRIBUTE..length) else { break };
        found.push((short(bytes, 2), value.to_vec()));
        bytes = bytes.get(aligned(length)..).unwrap_or_default();
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_interface_is_the_first() {
        let netlink = Netlink::open().unwrap();
        assert_eq!(netlink.link("lo").map(|lo| (lo.index, lo.name)).unwrap(), (1, "lo".to_owned()));
        let error = netlink.link("no-such").unwrap_err();
        assert_eq!(error.errno(), Errno::ENODEV);
        assert!(
            error.to_string().starts_with("netlink(RTM_GETLINK, \"no-such\"): no such device"),
            "{error}"
        );
    }

    #[test]
    fn requests_are_laid_out_as_the_kernel_reads_them() {
        let bytes = Request::link(RTM_NEWLINK, 7, 0, 1).attribute(IFLA_IFNAME, &c_string("eth0")).finish(ACK);
        let found = messages(&bytes);
        assert_eq!((bytes.len(), found.len(), found[0].0), (44, 1, RTM_NEWLINK));
        assert_eq!(number(&found[0].1[4..]), 7);
        assert_eq!(attributes(&found[0].1[16..]), [(IFLA_IFNAME, b"eth0\0".to_vec())]);
    }

    #[test]
    fn what_is_cut_short_is_not_read_beyond_its_end() {
        let bytes = Request::link(RTM_NEWLINK, 7, 0, 1).attribute(IFLA_IFNAME, &c_string("eth0")).finish(ACK);
        assert!(messages(&bytes[..40]).is_empty());
        assert!(attributes(&[9, 0, 3, 0, 1]).is_empty());
        assert_eq!(acknowledged(&[1]), Err(Errno::EBADMSG));
    }

    #[test]
    fn only_permanent_addresses_of_global_scope_go_along() {
        let address = |flags, scope, attributes| Address { fixed: [2, 24, flags, scope], attributes };
        assert!(address(0x80, 0, Vec::new()).is_global());
        for other in [address(0x80, 253, Vec::new()), address(0, 0, Vec::new())] {
            assert!(!other.is_global());
        }
        // The long flags have the last word.
        assert!(!address(0x80, 0, vec![(IFA_FLAGS, 0x100_u32.to_ne_bytes().to_vec())]).is_global());
    }
}
