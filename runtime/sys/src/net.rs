//! The network namespace's own interface.

use std::os::fd::AsRawFd;

use nix::sys::socket::{AddressFamily, SockFlag, SockType};

use crate::error::{Result, check, named};

/// Brings the loopback interface of the caller's network namespace up (netdevice(7), `SIOCSIFFLAGS`).
///
/// # Errors
/// `EPERM` where the namespace belongs to another user namespace.
pub fn bring_loopback_up() -> Result<()> {
    let socket = named(
        nix::sys::socket::socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None),
        || "socket(AF_INET)".to_owned(),
    )?;
    // SAFETY: ifreq is a plain structure and union of integers, for which zero is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as i16;
    // SAFETY: SIOCSIFFLAGS reads an ifreq, which outlives the call.
    let ret =
        unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as libc::Ioctl, &raw const request) };
    check(ret, || "ioctl(SIOCSIFFLAGS, \"lo\")".to_owned()).map(drop)
}
