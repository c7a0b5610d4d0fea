//! Unix sockets: messages with whole boundaries, and descriptors in them.

use std::io::{IoSlice, IoSliceMut};
use std::net::SocketAddrV4;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr,
    setsockopt, sockopt,
};
use nix::sys::time::TimeVal;

use crate::error::{Error, Result, named, show};
use crate::signal;

/// Two connected sockets that keep message boundaries (socketpair(2), `SOCK_SEQPACKET`).
///
/// # Errors
/// `EMFILE`.
pub fn pair() -> Result<(OwnedFd, OwnedFd)> {
    let made =
        nix::sys::socket::socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC);
    named(made, || "socketpair()".to_owned())
}

/// Two connected sockets for streams of bytes (socketpair(2), `SOCK_STREAM`).
///
/// # Errors
/// `EMFILE`.
pub fn stream_pair() -> Result<(OwnedFd, OwnedFd)> {
    let made =
        nix::sys::socket::socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC);
    named(made, || "socketpair()".to_owned())
}

/// Sends as much of `bytes` to a stream as it takes now, and with the first of them the descriptors. Returns how many
/// bytes it took (sendmsg(2), `MSG_DONTWAIT`).
///
/// # Errors
/// `EAGAIN` where it takes none now, `EPIPE` where the peer is gone.
pub fn send_some(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<usize> {
    let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control = if raw.is_empty() { &[][..] } else { &rights[..] };
    let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
    let iov = [IoSlice::new(bytes)];
    named(nix::sys::socket::sendmsg::<()>(socket.as_raw_fd(), &iov, control, flags, None), || {
        format!("sendmsg({})", show(&socket))
    })
}

/// How many descriptors [`receive_some`] takes at once.
pub const MOST_FDS: usize = 64;

/// How many a message can have at all (`SCM_MAX_FD`, unix(7)). There is always room for them: those that the kernel
/// could not tell of it would have made all the same, and whoever sends could fill the receiver's table.
const MOST_SENT: usize = 253;

/// Receives what there is of a stream into `buffer`, and the descriptors that came with it. Returns how many bytes;
/// none at the end (recvmsg(2), `MSG_DONTWAIT`).
///
/// # Errors
/// `EAGAIN` where there is nothing yet, `ECONNRESET` where the peer is gone, `EMSGSIZE` where more than [`MOST_FDS`]
/// descriptors came.
pub fn receive_some(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<(usize, Vec<OwnedFd>)> {
    let call = || format!("recvmsg({})", show(&socket));
    let mut space = nix::cmsg_space!([RawFd; MOST_SENT]);
    let mut iov = [IoSliceMut::new(buffer)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
    let received = nix::sys::socket::recvmsg::<()>(socket.as_raw_fd(), &mut iov, Some(&mut space), flags);
    let message = named(received, call)?;
    let fds = descriptors(named(message.cmsgs(), call)?);
    if fds.len() > MOST_FDS {
        return Err(Error::new(call(), Errno::EMSGSIZE));
    }
    Ok((message.bytes, fds))
}

/// All descriptors that came with a message.
fn descriptors(controls: impl Iterator<Item = ControlMessageOwned>) -> Vec<OwnedFd> {
    let mut fds = Vec::new();
    for control in controls {
        if let ControlMessageOwned::ScmRights(raw) = control {
            // SAFETY: the kernel has just made these descriptors for us, and nobody else knows them.
            fds.extend(raw.into_iter().map(|raw| unsafe { OwnedFd::from_raw_fd(raw) }));
        }
    }
    fds
}

/// Sends `bytes` as one message, with descriptors (sendmsg(2)). A peer that is gone is `EPIPE`, no signal.
///
/// # Errors
/// `EPIPE`, `EMSGSIZE`.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<()> {
    let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control = if raw.is_empty() { &[][..] } else { &rights[..] };
    let iov = [IoSlice::new(bytes)];
    loop {
        let sent =
            nix::sys::socket::sendmsg::<()>(socket.as_raw_fd(), &iov, control, MsgFlags::MSG_NOSIGNAL, None);
        match sent {
            Err(Errno::EINTR) => {}
            other => return named(other, || format!("sendmsg({})", show(&socket))).map(drop),
        }
    }
}

/// Has whoever receives from `socket` wait at most this long, and then be told `EAGAIN` (`SO_RCVTIMEO`, socket(7)).
///
/// # Errors
/// None that a kernel is known to give.
pub fn limit_waiting(socket: BorrowedFd<'_>, most: Duration) -> Result<()> {
    let (seconds, micros) = (most.as_secs().cast_signed(), i64::from(most.subsec_micros()));
    let set = setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(seconds, micros));
    named(set, || format!("setsockopt({}, SO_RCVTIMEO)", show(&socket)))
}

/// Receives one message of at most `most` bytes, with at most one descriptor, the last of several; none at the end
/// (recvmsg(2)).
///
/// # Errors
/// `EMSGSIZE` where the message is longer.
pub fn receive(socket: BorrowedFd<'_>, most: usize) -> Result<Option<(Vec<u8>, Option<OwnedFd>)>> {
    let call = || format!("recvmsg({})", show(&socket));
    // Asked first how long it is: a buffer for the longest would cost more than the call does.
    let length = loop {
        match nix::sys::socket::recv(socket.as_raw_fd(), &mut [], MsgFlags::MSG_PEEK | MsgFlags::MSG_TRUNC) {
            Err(Errno::EINTR | Errno::ECONNRESET) => continue,
            other => break named(other, call)?,
        }
    };
    let mut bytes = vec![0_u8; length.min(most)];
    let mut space = nix::cmsg_space!([RawFd; MOST_SENT]);
    let (length, truncated, fd) = loop {
        let mut iov = [IoSliceMut::new(&mut bytes)];
        let message = nix::sys::socket::recvmsg::<()>(
            socket.as_raw_fd(),
            &mut iov,
            Some(&mut space),
            MsgFlags::MSG_CMSG_CLOEXEC,
        );
        let message = match message {
            // A peer that closed with our words unread resets the connection once; what it said is still there.
            Err(Errno::EINTR | Errno::ECONNRESET) => continue,
            other => named(other, call)?,
        };
        let fd = descriptors(named(message.cmsgs(), call)?).pop();
        break (message.bytes, message.flags.contains(MsgFlags::MSG_TRUNC), fd);
    };
    if truncated {
        return Err(Error::new(call(), Errno::EMSGSIZE));
    }
    if length == 0 && fd.is_none() {
        return Ok(None);
    }
    bytes.truncate(length);
    Ok(Some((bytes, fd)))
}

/// Makes a listening socket named `name` in the directory `dir` (bind(2), listen(2)). The name is reached
/// through `/proc/self/fd`, since a socket's address holds 108 bytes and a directory's path may be longer.
///
/// # Errors
/// `EADDRINUSE` where the name is taken.
pub fn listen(dir: BorrowedFd<'_>, name: &str) -> Result<OwnedFd> {
    listen_as(dir, name, SockType::SeqPacket)
}

/// The same for connections that are streams of bytes.
///
/// # Errors
/// As [`listen`].
pub fn listen_stream(dir: BorrowedFd<'_>, name: &str) -> Result<OwnedFd> {
    listen_as(dir, name, SockType::Stream)
}

fn listen_as(dir: BorrowedFd<'_>, name: &str, kind: SockType) -> Result<OwnedFd> {
    let call = || format!("bind({}, {name:?})", show(&dir));
    let socket =
        named(nix::sys::socket::socket(AddressFamily::Unix, kind, SockFlag::SOCK_CLOEXEC, None), || {
            "socket()".to_owned()
        })?;
    let address = named(UnixAddr::new(in_dir(dir, name).as_str()), call)?;
    // Its file is made with the mask's bits: nobody else may connect, whatever directory it lies in.
    let mask = nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o177));
    let bound = nix::sys::socket::bind(socket.as_raw_fd(), &address);
    nix::sys::stat::umask(mask);
    named(bound, call)?;
    let backlog = named(Backlog::new(64), call)?;
    named(nix::sys::socket::listen(&socket, backlog), || format!("listen({})", show(&socket)))?;
    Ok(socket)
}

/// A UDP socket that never waits, on an address that the network namespace need not have yet (`IP_FREEBIND`, ip(7)). The
/// kernel counts what it has to drop.
///
/// # Errors
/// `EADDRINUSE` where the port is taken.
pub fn datagrams(address: SocketAddrV4) -> Result<OwnedFd> {
    use nix::sys::socket::{SockaddrIn, setsockopt, sockopt};
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = nix::sys::socket::socket(AddressFamily::Inet, SockType::Datagram, flags, None);
    let socket = named(socket, || "socket()".to_owned())?;
    named(setsockopt(&socket, sockopt::IpFreebind, &true), || "setsockopt(IP_FREEBIND)".to_owned())?;
    named(setsockopt(&socket, sockopt::RxqOvfl, &1), || "setsockopt(SO_RXQ_OVFL)".to_owned())?;
    let bound = nix::sys::socket::bind(socket.as_raw_fd(), &SockaddrIn::from(address));
    named(bound, || format!("bind({address})"))?;
    Ok(socket)
}

/// Receives one datagram into `buffer`, which cuts what is longer. Returns its length, and how many the kernel has
/// dropped so far, where it has any (recvmsg(2), `SO_RXQ_OVFL`).
///
/// # Errors
/// `EAGAIN` where there is none.
pub fn receive_datagram(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<(usize, Option<u32>)> {
    let call = || format!("recvmsg({})", show(&socket));
    let mut space = nix::cmsg_space!(u32);
    let mut iov = [IoSliceMut::new(buffer)];
    let flags = MsgFlags::MSG_DONTWAIT;
    let received = nix::sys::socket::recvmsg::<()>(socket.as_raw_fd(), &mut iov, Some(&mut space), flags);
    let message = named(received, call)?;
    let dropped = named(message.cmsgs(), call)?.find_map(|control| match control {
        ControlMessageOwned::RxqOvfl(count) => Some(count),
        _ => None,
    });
    Ok((message.bytes, dropped))
}

/// A socket named `name` in the directory `dir` to which anybody who reaches it may send datagrams (bind(2)).
///
/// # Errors
/// `EADDRINUSE` where the name is taken.
pub fn named_datagrams(dir: BorrowedFd<'_>, name: &str) -> Result<OwnedFd> {
    let call = || format!("bind({}, {name:?})", show(&dir));
    let (kind, flags) = (SockType::Datagram, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK);
    let socket = nix::sys::socket::socket(AddressFamily::Unix, kind, flags, None);
    let socket = named(socket, || "socket()".to_owned())?;
    let address = named(UnixAddr::new(in_dir(dir, name).as_str()), call)?;
    let mask = nix::sys::stat::umask(nix::sys::stat::Mode::empty());
    let bound = nix::sys::socket::bind(socket.as_raw_fd(), &address);
    nix::sys::stat::umask(mask);
    named(bound, call)?;
    Ok(socket)
}

/// Sends one datagram to the socket at `address`, which the caller named: a path, or `@NAME` in the abstract namespace
/// (sendto(2), unix(7)).
///
/// # Errors
/// `ECONNREFUSED` where nobody has it any more, `ENOENT` where there is none.
pub fn send_to(address: &str, bytes: &[u8]) -> Result<()> {
    let call = || format!("sendto({address:?})");
    let socket =
        nix::sys::socket::socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None);
    let socket = named(socket, || "socket()".to_owned())?;
    let to = match address.strip_prefix('@') {
        Some(name) => UnixAddr::new_abstract(name.as_bytes()),
        None => UnixAddr::new(address),
    };
    let flags = MsgFlags::MSG_NOSIGNAL;
    named(nix::sys::socket::sendto(socket.as_raw_fd(), bytes, &named(to, call)?, flags), call).map(drop)
}

/// Waits for a connection to a listening socket (accept4(2)).
///
/// # Errors
/// `EMFILE`.
pub fn accept(socket: BorrowedFd<'_>) -> Result<OwnedFd> {
    loop {
        match nix::sys::socket::accept4(socket.as_raw_fd(), SockFlag::SOCK_CLOEXEC) {
            Err(Errno::EINTR | Errno::ECONNABORTED) => {}
            Err(errno) => return Err(Error::new(format!("accept4({})", show(&socket)), errno)),
            // SAFETY: the kernel has just made this descriptor for us, and nobody else knows its number.
            Ok(raw) => return Ok(unsafe { OwnedFd::from_raw_fd(raw) }),
        }
    }
}

/// Tells the peer that nothing more will come (shutdown(2), `SHUT_WR`); nothing where `socket` is none.
pub fn end_writing(socket: BorrowedFd<'_>) {
    let _ = nix::sys::socket::shutdown(socket.as_raw_fd(), nix::sys::socket::Shutdown::Write);
}

/// The user at the other end of a connection, as it was when that was made (`SO_PEERCRED`, unix(7)).
///
/// # Errors
/// None that a kernel is known to give.
pub fn peer_user(socket: BorrowedFd<'_>) -> Result<u32> {
    let credentials = nix::sys::socket::getsockopt(&socket, sockopt::PeerCredentials);
    named(credentials, || format!("getsockopt({}, SO_PEERCRED)", show(&socket))).map(|peer| peer.uid())
}

/// Connects to the socket `name` in the directory `dir` (connect(2)).
///
/// # Errors
/// `ECONNREFUSED` where nobody listens any more, `ENOENT` where there is none.
pub fn connect(dir: BorrowedFd<'_>, name: &str) -> Result<OwnedFd> {
    let path = in_dir(dir, name);
    let (socket, address) = unconnected(&path, SockType::SeqPacket, SockFlag::empty())?;
    named(nix::sys::socket::connect(socket.as_raw_fd(), &address), || format!("connect({path:?})"))?;
    Ok(socket)
}

/// How long whoever listens may leave callers waiting.
const TAKEN_WITHIN: Duration = Duration::from_secs(15);

/// Connects to the stream socket at `path`, which the caller named, as for `--console-socket`. Whoever listens there may hang, and
/// its queue be full: that is waited for only so long, and no longer than until a signal comes that asks the caller to end.
///
/// # Errors
/// As [`connect`]; `ETIMEDOUT` where none is taken from the queue for fifteen seconds, `EINTR` where a signal came.
pub fn connect_stream(path: &str) -> Result<OwnedFd> {
    connect_stream_within(path, TAKEN_WITHIN)
}

/// The same, waiting for room in its queue for `limit` at most.
///
/// # Errors
/// As [`connect_stream`].
pub fn connect_stream_within(path: &str, limit: Duration) -> Result<OwnedFd> {
    let call = || format!("connect({path:?})");
    let (socket, address) = unconnected(path, SockType::Stream, SockFlag::SOCK_NONBLOCK)?;
    let deadline = Instant::now() + limit;
    let mut pause = Duration::from_millis(1);
    loop {
        match nix::sys::socket::connect(socket.as_raw_fd(), &address) {
            // What unix(7) says of a full queue; there is nothing to poll for.
            Err(Errno::EAGAIN) if Instant::now() < deadline => {}
            Err(Errno::EAGAIN) => return Err(Error::new(call(), Errno::ETIMEDOUT)),
            connected => {
                named(connected, call)?;
                break;
            }
        }
        if signal::comes_within(pause)? {
            return Err(Error::new(call(), Errno::EINTR));
        }
        pause = (pause * 2).min(Duration::from_millis(50));
    }
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    named(fcntl(&socket, FcntlArg::F_SETFL(OFlag::empty())), || "fcntl(F_SETFL)".to_owned())?;
    Ok(socket)
}

/// How long a listener may need from its start until it listens.
const BEGUN_WITHIN: Duration = Duration::from_millis(200);

/// Does `reach` until what it reaches for is there, or a signal comes that asks the caller to end: a socket whose listener
/// was begun in the same breath, as by `listen & run`, is at first not there, or not listened at.
///
/// # Errors
/// As `reach`; `ENOENT` and `ECONNREFUSED` after a fifth of a second.
pub fn once_listening<T>(mut reach: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + BEGUN_WITHIN;
    loop {
        let reached = reach();
        let is_early =
            reached.as_ref().is_err_and(|e| matches!(e.errno(), Errno::ENOENT | Errno::ECONNREFUSED));
        if !is_early || Instant::now() >= deadline || signal::comes_within(Duration::from_millis(5))? {
            return reached;
        }
    }
}

fn unconnected(path: &str, kind: SockType, flags: SockFlag) -> Result<(OwnedFd, UnixAddr)> {
    let flags = flags | SockFlag::SOCK_CLOEXEC;
    let socket =
        named(nix::sys::socket::socket(AddressFamily::Unix, kind, flags, None), || "socket()".to_owned())?;
    Ok((socket, named(UnixAddr::new(path), || format!("connect({path:?})"))?))
}

/// The path of the file `name` in `dir` that fits a socket's address.
pub fn in_dir(dir: BorrowedFd<'_>, name: &str) -> String {
    format!("/proc/self/fd/{}/{name}", dir.as_raw_fd())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn of_the_descriptors_of_a_message_none_stays_open_that_nobody_gets() {
        for count in [2, 3, 100] {
            let (ours, theirs) = pair().unwrap();
            let (end, sent) = nix::unistd::pipe().unwrap();
            send(theirs.as_fd(), b"word", &vec![sent.as_fd(); count]).unwrap();
            drop(sent);
            let (word, last) = receive(ours.as_fd(), 10).unwrap().unwrap();
            assert_eq!((&*word, last.is_some()), (&b"word"[..], true), "{count}");
            drop(last);
            // While anybody has the other end, nothing comes; children of other tests have it for a moment.
            let mut fds = [nix::poll::PollFd::new(end.as_fd(), nix::poll::PollFlags::POLLIN)];
            assert_eq!(nix::poll::poll(&mut fds, 10_000_u16).unwrap(), 1, "{count}: one is still open");
        }
    }

    #[test]
    fn more_descriptors_than_are_taken_are_refused() {
        let (ours, theirs) = stream_pair().unwrap();
        let sent = vec![theirs.as_fd(); MOST_FDS + 1];
        send_some(theirs.as_fd(), b"word", &sent).unwrap();
        let refused = receive_some(ours.as_fd(), &mut [0; 10]).unwrap_err();
        assert_eq!(refused.errno(), Errno::EMSGSIZE);
    }

    #[test]
    fn whoever_takes_nobody_from_its_queue_is_not_waited_for_without_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        named(nix::sys::socket::listen(&listener, Backlog::new(0).unwrap()), || "listen()".to_owned())
            .unwrap();
        let connect = || connect_stream_within(path.to_str().unwrap(), Duration::from_millis(20));
        let first = connect().unwrap();
        assert_eq!(connect().unwrap_err().errno(), Errno::ETIMEDOUT);
        drop((listener.accept().unwrap(), first));
        connect().unwrap();
    }
}
