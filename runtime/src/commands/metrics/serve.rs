//! Serving them: each caller by a fork that has a deadline, so that none can keep another from them. What it speaks is as
//! much of HTTP/1.1 (RFC 9112) as whoever scrapes needs.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use coracle_sys::process::{self, Child};
use coracle_sys::{Errno, descriptor, event, file, signal, socket};

use crate::cli::{Global, Listen};
use crate::error::{Code, Context, Error, Result};
use crate::pod::varlink::listener::{SHORTAGE, is_short};

/// How long a caller may take, all in all.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long it may take to ask: who connects and says nothing keeps others waiting no longer.
const ASKS_WITHIN: Duration = Duration::from_secs(1);

/// How many callers there may be at a time. Others wait.
const MOST: usize = 8;

/// How long a server that was killed may go on to be found where it listened: by the callers' forks, which end with it, but later.
const LINGERS: Duration = Duration::from_secs(1);

/// The longest request, in bytes.
const LONGEST: usize = 8192;

/// The type of the text (Prometheus's exposition format).
const TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Who is answered.
struct Answering {
    child: Child,
    until: Instant,
}

/// Serves until a signal comes.
pub(super) fn serve(global: &Global, listen: &Listen) -> Result<u8> {
    let signals = signal::signal_fd()?;
    let mut listeners = Vec::new();
    if let Some(address) = listen.address {
        let listener = once_free(|| listen_on(address)).context(|| format!("listening on {address}"))?;
        listeners.push(listener);
    }
    if let Some(path) = &listen.socket {
        listeners.push(once_free(|| listen_at(path)).context(|| format!("listening on {path:?}"))?);
    }
    // One that has no words for a caller left: of a call that was given up.
    listeners.iter().try_for_each(|listener| descriptor::set_nonblocking(listener.as_fd()))?;
    let mut answering: Vec<Answering> = Vec::new();
    let mut deaf: Option<Instant> = None;
    while !is_asked_to_end(signals.as_fd(), &listeners, &mut answering, deaf)? {
        deaf.take_if(|at| *at <= Instant::now());
        for listener in &listeners {
            if answering.len() == MOST || deaf.is_some() {
                break;
            }
            match take(global, listener.as_fd()) {
                Ok(taken) => answering.extend(taken),
                Err(_) => deaf = Some(Instant::now() + SHORTAGE),
            }
        }
    }
    if let Some(path) = &listen.socket {
        let (dir, name) = place(path)?;
        let _ = file::unlink(dir.as_fd(), name);
    }
    Ok(0)
}

/// Has a fork answer the next caller, if there is one.
///
/// # Errors
/// That the host is short of something: others are to be taken in later. A caller who is there already has to ask again.
fn take(global: &Global, listener: BorrowedFd<'_>) -> Result<Option<Answering>> {
    let caller = match socket::accept(listener) {
        Err(e) if is_short(&e) => return Err(e.into()),
        Err(_) => return Ok(None),
        Ok(caller) => caller,
    };
    let child = process::spawn(0, None, || i32::from(answer(global, caller.as_fd()).is_err()))?;
    Ok(Some(Answering { child, until: Instant::now() + PATIENCE }))
}

/// Waits for what happens next, and for those who are answered; for callers but where they are left in the queue until `deaf`. True where
/// a signal says that this is the end.
fn is_asked_to_end(
    signals: BorrowedFd<'_>,
    listeners: &[OwnedFd],
    answering: &mut Vec<Answering>,
    deaf: Option<Instant>,
) -> Result<bool> {
    let children = answering.iter().map(|one| one.child.pidfd.as_fd());
    let callers = listeners.iter().map(AsFd::as_fd).filter(|_| answering.len() < MOST && deaf.is_none());
    let fds: Vec<BorrowedFd<'_>> = std::iter::once(signals).chain(children).chain(callers).collect();
    let next = answering.iter().map(|one| one.until).chain(deaf).min();
    let ready = match event::readable(&fds, next.map(|at| at.saturating_duration_since(Instant::now()))) {
        // The kernel is short of memory.
        Err(e) if matches!(e.errno(), Errno::ENOMEM | Errno::EAGAIN) => {
            std::thread::sleep(SHORTAGE);
            Vec::new()
        }
        ready => ready?,
    };
    let now = Instant::now();
    answering.retain(|one| {
        if one.until <= now {
            one.child.kill();
        }
        let is_over = one.until <= now
            || matches!(
                event::readable(&[one.child.pidfd.as_fd()], Some(Duration::ZERO)).as_deref(),
                Ok([true])
            );
        if is_over {
            let _ = process::wait(one.child.pidfd.as_fd());
        }
        !is_over
    });
    if ready.first() != Some(&true) {
        return Ok(false);
    }
    Ok(is_end(signals))
}

/// Whether the signal that has come is one that ends: not that of a child's end.
fn is_end(signals: BorrowedFd<'_>) -> bool {
    let mut info = [0_u8; 128];
    let number = match file::read_some(signals, &mut info) {
        Ok(length) if length >= 4 => i32::from_ne_bytes([info[0], info[1], info[2], info[3]]),
        _ => return false,
    };
    [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT].contains(&number)
}

/// The directory and the name of a socket.
fn place(path: &Path) -> Result<(OwnedFd, String)> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name =
        path.file_name().and_then(|name| name.to_str()).ok_or_else(|| Error::new(Code::Usage, "no name"))?;
    Ok((file::open_dir(parent)?, name.to_owned()))
}

/// What `listen` gives, once nobody else has the address, or as soon as it is plain that another will keep it.
fn once_free(listen: impl Fn() -> Result<OwnedFd>) -> Result<OwnedFd> {
    let until = Instant::now() + LINGERS;
    loop {
        match listen() {
            Err(error) if error.errno() == Some(Errno::EADDRINUSE) && Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(10));
            }
            listening => return listening,
        }
    }
}

fn listen_on(address: SocketAddr) -> Result<OwnedFd> {
    let failed = |e: io::Error| coracle_sys::Error::of_io(format!("bind({address})"), &e);
    Ok(TcpListener::bind(address).map_err(failed)?.into())
}

/// Listens at `path`, in the place of one that nobody listens at any more.
fn listen_at(path: &Path) -> Result<OwnedFd> {
    let (dir, name) = place(path)?;
    let is_left = match socket::connect_stream(&socket::in_dir(dir.as_fd(), &name)) {
        Err(e) => e.errno() == Errno::ECONNREFUSED && is_socket(dir.as_fd(), &name),
        Ok(_) => false,
    };
    if is_left {
        file::unlink(dir.as_fd(), &name)?;
    }
    Ok(socket::listen_stream(dir.as_fd(), &name)?)
}

fn is_socket(dir: BorrowedFd<'_>, name: &str) -> bool {
    file::stat_at(dir, name).is_ok_and(|stat| stat.st_mode & libc::S_IFMT == libc::S_IFSOCK)
}

/// Answers one caller.
fn answer(global: &Global, caller: BorrowedFd<'_>) -> Result<()> {
    // The sockets are the server's: when it is gone, nobody is to find them taken.
    descriptor::close_all_but(&[caller.as_raw_fd()])?;
    process::die_with_parent(true)?;
    signal::unblock()?;
    let request = read(caller, Instant::now() + ASKS_WITHIN)?;
    let path = request.strip_prefix("GET ").and_then(|rest| rest.split([' ', '?']).next());
    let (status, body) = match path {
        Some("/metrics" | "/") => ("200 OK", super::text(global)?),
        Some(_) => ("404 Not Found", "what there is is at /metrics\n".to_owned()),
        None => ("405 Method Not Allowed", "this answers GET\n".to_owned()),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {TYPE}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    file::write_all(caller, (head + &body).as_bytes())?;
    Ok(())
}

/// The request, up to the empty line that ends it, or as far as it has come by `until`.
fn read(caller: BorrowedFd<'_>, until: Instant) -> Result<String> {
    let mut request = Vec::new();
    let mut chunk = [0; 1024];
    while !request.windows(4).any(|end| end == b"\r\n\r\n") && request.len() < LONGEST {
        let left = until.saturating_duration_since(Instant::now());
        if event::readable(&[caller], Some(left))? != [true] {
            break;
        }
        match file::read_some(caller, &mut chunk)? {
            0 => break,
            length => request.extend_from_slice(&chunk[..length]),
        }
    }
    Ok(String::from_utf8_lossy(&request).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_ends_at_an_empty_line_or_at_its_limit() {
        let (mine, theirs) = socket::stream_pair().unwrap();
        file::write_all(mine.as_fd(), b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        let read = || read(theirs.as_fd(), Instant::now() + ASKS_WITHIN).unwrap();
        assert!(read().starts_with("GET /metrics "));
        file::write_all(mine.as_fd(), &[b'x'; 2 * LONGEST]).unwrap();
        assert!(read().len() < LONGEST + 1024);
    }

    #[test]
    fn who_does_not_ask_in_time_is_not_waited_for() {
        let (mine, theirs) = socket::stream_pair().unwrap();
        file::write_all(mine.as_fd(), b"GET").unwrap();
        assert_eq!(read(theirs.as_fd(), Instant::now() + Duration::from_millis(20)).unwrap(), "GET");
    }
}
