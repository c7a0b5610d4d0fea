//! A connection to systemd's manager.
//!
//! It is our own, of one screen, because what there is for D-Bus brings a second version of nix, bitflags and syn
//! (rustbus), an asynchronous executor (zbus), or a C library that is not linked statically (dbus).

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use coracle_sys::{Errno, identity, namespace, socket};

use super::message::{FIXED, Kind, Message, Object, Writer};
use crate::error::{Code, Context, Error, Result};

/// How long systemd may take for all that is asked of it at once.
const PATIENCE: Duration = Duration::from_secs(15);

const SYSTEM_BUS: &str = "/run/dbus/system_bus_socket";
/// Where systemd listens itself, for root: for machines without a bus.
const PRIVATE: &str = "/run/systemd/private";

const MANAGER: Object = Object {
    name: "org.freedesktop.systemd1",
    path: "/org/freedesktop/systemd1",
    interface: "org.freedesktop.systemd1.Manager",
};
const BUS: Object =
    Object { name: "org.freedesktop.DBus", path: "/org/freedesktop/DBus", interface: "org.freedesktop.DBus" };

/// What systemd said instead of doing what was asked.
#[derive(Debug)]
pub(super) struct Refused {
    /// The failure's name, `org.freedesktop.systemd1.NoSuchUnit`.
    pub(super) name: String,
    /// The same for people.
    pub(super) text: String,
}

/// A connection, which hears of jobs that end.
#[derive(Debug)]
pub(super) struct Bus {
    stream: UnixStream,
    serial: u32,
    deadline: Instant,
    /// Jobs that ended while something else was awaited: path and result.
    ended: Vec<(String, String)>,
}

impl Bus {
    /// Connects to the manager of the system or, with `user`, of the calling user.
    ///
    /// # Errors
    /// `Unsupported` where none listens, `System` where it doesn't answer in fifteen seconds.
    pub(super) fn connect(user: bool) -> Result<Self> {
        let is_private = |bus: &Self| {
            bus.stream.peer_addr().is_ok_and(|a| a.as_pathname().is_some_and(|p| p.ends_with("private")))
        };
        let mut bus = Self::new(open(user)?);
        bus.authenticate().context(|| "authenticating with D-Bus")?;
        if !is_private(&bus) {
            bus.settled(&BUS, "Hello", "", Writer::default())?;
            let mut rule = Writer::default();
            rule.text("type='signal',interface='org.freedesktop.systemd1.Manager',member='JobRemoved'");
            bus.settled(&BUS, "AddMatch", "s", rule)?;
        }
        bus.settled(&MANAGER, "Subscribe", "", Writer::default())?;
        Ok(bus)
    }

    fn new(stream: UnixStream) -> Self {
        Self { stream, serial: 0, deadline: Instant::now() + PATIENCE, ended: Vec::new() }
    }

    /// Says who we are (D-Bus Specification, "Authentication Protocol"): the kernel vouches for it.
    fn authenticate(&mut self) -> Result<()> {
        let user = user()?.unwrap_or(0).to_string();
        let user: String = user.bytes().map(|byte| format!("{byte:02x}")).collect();
        self.send(format!("\0AUTH EXTERNAL {user}\r\n").as_bytes())?;
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            let mut byte = [0];
            self.receive(&mut byte)?;
            line.push(byte[0]);
            if line.len() > 1024 {
                break;
            }
        }
        if !line.starts_with(b"OK ") {
            let line = line.trim_ascii().escape_ascii().to_string();
            return Err(Error::new(Code::System, format!("it says {line:?}")));
        }
        self.send(b"BEGIN\r\n")
    }

    /// Calls `method` of the manager and waits for the answer.
    ///
    /// # Errors
    /// Where the connection fails; what the manager refuses is no error here.
    pub(super) fn call(
        &mut self,
        method: &str,
        signature: &str,
        arguments: Writer,
    ) -> Result<std::result::Result<Message, Refused>> {
        self.ask(&MANAGER, method, signature, arguments)
    }

    fn ask(
        &mut self,
        object: &Object,
        method: &str,
        signature: &str,
        arguments: Writer,
    ) -> Result<std::result::Result<Message, Refused>> {
        self.serial += 1;
        let call = arguments.into_call(self.serial, object, method, signature);
        let doing = || format!("asking systemd to {method}");
        self.send(&call).context(doing)?;
        loop {
            let message = self.message().context(doing)?;
            match message.kind {
                Kind::Reply if message.answers == self.serial => return Ok(Ok(message)),
                Kind::Failure if message.answers == self.serial => {
                    let text = message.arguments().text().unwrap_or_default();
                    return Ok(Err(Refused { name: message.failure, text }));
                }
                _ => self.remember(&message),
            }
        }
    }

    fn settled(&mut self, object: &Object, method: &str, signature: &str, arguments: Writer) -> Result<()> {
        match self.ask(object, method, signature, arguments)? {
            Ok(_) => Ok(()),
            Err(refused) => {
                Err(Error::new(Code::System, refused.text).doing(format!("asking systemd to {method}")))
            }
        }
    }

    /// Waits until the job of the path `job` has ended, and says how: `done`, `failed`, `canceled`, `timeout`,
    /// `dependency`, `skipped`.
    ///
    /// # Errors
    /// Where the connection fails.
    pub(super) fn await_job(&mut self, job: &str) -> Result<String> {
        loop {
            if let Some((_, result)) = self.ended.iter().find(|(path, _)| path == job) {
                return Ok(result.clone());
            }
            let message = self.message().context(|| "waiting for systemd")?;
            self.remember(&message);
        }
    }

    /// `JobRemoved` has the job's number, its path, its unit, and its result.
    fn remember(&mut self, message: &Message) {
        if message.kind != Kind::Signal || message.member != "JobRemoved" {
            return;
        }
        let mut arguments = message.arguments();
        let mut read = || {
            arguments.number()?;
            let path = arguments.text()?;
            arguments.text()?;
            Ok::<_, Error>((path, arguments.text()?))
        };
        self.ended.extend(read().ok());
    }

    fn message(&mut self) -> Result<Message> {
        let mut fixed = [0; FIXED];
        self.receive(&mut fixed)?;
        let mut bytes = vec![0; Message::length(&fixed)?];
        bytes[..FIXED].copy_from_slice(&fixed);
        self.receive(&mut bytes[FIXED..])?;
        Message::parse(&bytes)
    }

    fn send(&mut self, bytes: &[u8]) -> Result<()> {
        let left = self.patience()?;
        self.stream
            .set_write_timeout(Some(left))
            .and_then(|()| self.stream.write_all(bytes))
            .map_err(|error| broken(&error))
    }

    fn receive(&mut self, bytes: &mut [u8]) -> Result<()> {
        let mut filled = 0;
        while filled < bytes.len() {
            let left = self.patience()?;
            let read = self
                .stream
                .set_read_timeout(Some(left))
                .and_then(|()| self.stream.read(&mut bytes[filled..]));
            match read {
                Ok(0) => return Err(Error::new(Code::System, "D-Bus closed the connection")),
                Ok(count) => filled += count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(broken(&error)),
            }
        }
        Ok(())
    }

    fn patience(&self) -> Result<Duration> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(silent()) } else { Ok(left) }
    }
}

fn open(user: bool) -> Result<UnixStream> {
    let path = if user { user_bus()? } else { SYSTEM_BUS.to_owned() };
    let socket = match socket::connect_stream(&path) {
        Err(e) if !user && matches!(e.errno(), Errno::ENOENT | Errno::ECONNREFUSED) => {
            socket::connect_stream(PRIVATE)
        }
        other => other,
    };
    let socket = socket.context(|| "connecting to systemd").map_err(|error| {
        error.code_is(Code::Unsupported).hint("is systemd running? --cgroup-manager cgroupfs goes without it")
    })?;
    Ok(UnixStream::from(socket))
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Whose systemd is asked: the calling user's, or with `None` the machine's. The root of a user namespace is the user
/// that the host knows it by, in whose session it is; without one it has a machine of its own, as in a system container.
///
/// # Errors
/// `EINVAL` where the caller is mapped to nobody.
pub(super) fn user() -> Result<Option<u32>> {
    let caller = identity::caller();
    let has_session =
        || ["DBUS_SESSION_BUS_ADDRESS", "XDG_RUNTIME_DIR"].iter().any(|v| variable(v).is_some());
    match caller {
        0 if !identity::is_rootless() || !has_session() => Ok(None),
        0 => Ok(Some(namespace::user_above()?)),
        _ => Ok(Some(caller)),
    }
}

/// The socket of the calling user's bus.
fn user_bus() -> Result<String> {
    let address = variable("DBUS_SESSION_BUS_ADDRESS");
    let path = address.as_deref().and_then(|address| {
        address.split(';').find_map(|one| one.strip_prefix("unix:path=")?.split(',').next())
    });
    path.map(str::to_owned)
        .or_else(|| variable("XDG_RUNTIME_DIR").map(|dir| format!("{dir}/bus")))
        .ok_or_else(|| {
            Error::new(Code::Unsupported, "there is no DBUS_SESSION_BUS_ADDRESS and no XDG_RUNTIME_DIR")
                .doing("connecting to the user's systemd")
        })
}

fn broken(error: &std::io::Error) -> Error {
    match error.kind() {
        std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut => silent(),
        _ => Error::new(Code::System, format!("the connection to D-Bus broke: {error}")),
    }
}

fn silent() -> Error {
    Error::new(Code::System, format!("no answer within {} seconds", PATIENCE.as_secs()))
        .hint("is systemd hung? systemctl status tells")
}

#[cfg(test)]
mod tests {
    use super::super::message::tests::incoming;
    use super::*;

    /// A connection, and a manager that is about to have said all of `messages`.
    fn connected(messages: &[Vec<u8>]) -> Bus {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        for message in messages {
            theirs.write_all(message).unwrap();
        }
        let mut bus = Bus::new(ours);
        bus.deadline = Instant::now() + Duration::from_millis(100);
        // The other end stays open, and says no more.
        std::mem::forget(theirs);
        bus
    }

    fn texts(texts: &[&str]) -> Writer {
        let mut writer = Writer::default();
        for text in texts {
            writer.text(text);
        }
        writer
    }

    fn job_removed(job: &str, result: &str) -> Vec<u8> {
        let mut body = Writer::default();
        body.number(1).text(job).text("x.scope").text(result);
        incoming(4, &[(3, "s", "JobRemoved"), (8, "g", "uoss")], body)
    }

    #[test]
    fn a_job_that_ends_before_its_call_is_answered_is_not_missed() {
        let reply = incoming(2, &[(5, "u", "1"), (8, "g", "o")], texts(&["/job/2"]));
        let mut bus = connected(&[job_removed("/job/1", "failed"), job_removed("/job/2", "done"), reply]);
        let answer = bus.call("StopUnit", "ss", texts(&["x.scope", "replace"])).unwrap().unwrap();
        assert_eq!(answer.arguments().text().unwrap(), "/job/2");
        assert_eq!(bus.await_job("/job/2").unwrap(), "done");
    }

    #[test]
    fn what_the_manager_refuses_has_a_name_and_a_text() {
        let failure = incoming(3, &[(5, "u", "1"), (4, "s", "a.NoSuchUnit")], texts(&["it is not loaded"]));
        let refused = connected(&[failure]).call("StopUnit", "ss", texts(&["x", "y"])).unwrap().unwrap_err();
        assert_eq!((refused.name.as_str(), refused.text.as_str()), ("a.NoSuchUnit", "it is not loaded"));
    }

    #[test]
    fn silence_is_not_waited_for_without_end() {
        let error = connected(&[]).await_job("/job/1").unwrap_err().to_string();
        assert!(error.starts_with("waiting for systemd: no answer within"), "{error}");
    }
}
