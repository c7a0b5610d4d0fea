//! Varlink (varlink.org): JSON objects that end with a NUL byte, over a stream socket. Descriptors travel with the first
//! byte of a message, and parameters name them by their number in it.

pub mod client;
pub mod listener;

use std::collections::VecDeque;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use coracle_sys::{Errno, socket};
use nix::sys::socket::MsgFlags;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::error::{Code, Error, Result};

/// The interface of a pod.
pub const POD: &str = include_str!("io.coracle.Pod.varlink");

/// The interface of a host.
pub const HOST: &str = include_str!("io.coracle.Host.varlink");

/// The interface of every service.
const SERVICE: &str = include_str!("org.varlink.service.varlink");

/// The longest message, in bytes: a document with room around it.
const LONGEST: usize = 2 << 20;

/// How much is kept for a peer that does not read, in bytes.
const MOST_KEPT: usize = 4 << 20;

/// A call.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Call {
    /// The interface and the method: `io.coracle.Pod.Inspect`.
    pub method: String,
    /// What is given to it.
    #[serde(default)]
    pub parameters: Value,
    /// Whether more than one reply is welcome.
    #[serde(default)]
    pub more: bool,
    /// Whether no reply is.
    #[serde(default)]
    pub oneway: bool,
    /// Whether another protocol is to follow, which none of ours does.
    #[serde(default)]
    pub upgrade: bool,
}

impl Call {
    /// What is given to it: in Varlink, what may be left out may be null, too.
    pub fn given(&self) -> Value {
        match self.parameters.clone() {
            Value::Null => Value::Object(Map::default()),
            Value::Object(all) => all.into_iter().filter(|(_, value)| !value.is_null()).collect(),
            other => other,
        }
    }
}

/// A reply.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Reply {
    /// What it says.
    #[serde(default)]
    pub parameters: Value,
    /// Whether others follow.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub continues: bool,
    /// The name of a failure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl Reply {
    /// The last reply.
    pub fn last(parameters: Value) -> Self {
        Self { parameters, ..Self::default() }
    }

    /// One that others follow.
    pub fn more(parameters: Value) -> Self {
        Self { parameters, continues: true, error: None }
    }

    /// A failure, as `INTERFACE.Failed` with the code, the text and all that programs may want to know of it.
    pub fn failed(interface: &str, error: &Error) -> Self {
        let mut parameters = error.to_json(&crate::time::now());
        parameters["failure"] = serde_json::to_value(error).unwrap_or_default();
        Self { parameters, continues: false, error: Some(format!("{interface}.Failed")) }
    }

    /// The protocol's own failure of a call without `more` that only replies which others follow can answer.
    pub fn expected_more() -> Self {
        Self::service_error("ExpectedMore", json!({}))
    }

    /// A failure that the protocol itself defines, of a call that names what there is none of.
    pub fn of_service(error: &str, key: &str, value: &str) -> Self {
        Self::service_error(error, json!({ key: value }))
    }

    fn service_error(error: &str, parameters: Value) -> Self {
        Self { parameters, continues: false, error: Some(format!("org.varlink.service.{error}")) }
    }
}

/// A connection, which never waits.
#[derive(Debug)]
pub struct Connection {
    socket: OwnedFd,
    /// What has come of the next message, and with it.
    received: Vec<u8>,
    fds: Vec<OwnedFd>,
    /// Whole messages, each with its descriptors.
    messages: VecDeque<(Vec<u8>, Vec<OwnedFd>)>,
    /// What is to be sent, message by message, each with its descriptors.
    sending: VecDeque<(Vec<u8>, Vec<OwnedFd>)>,
}

impl Connection {
    /// The connection over `socket`.
    pub fn new(socket: OwnedFd) -> Self {
        let (received, fds, messages) = (Vec::new(), Vec::new(), VecDeque::new());
        Self { socket, received, fds, messages, sending: VecDeque::new() }
    }

    /// The socket.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Whether something waits to be sent.
    pub fn owes(&self) -> bool {
        !self.sending.is_empty()
    }

    /// Takes what has come, but no more than to the end of a message: descriptors that come with what follows are another's.
    /// False at the end.
    ///
    /// # Errors
    /// `EMSGSIZE` where a message is too long.
    pub fn receive(&mut self) -> Result<bool> {
        let mut buffer = [0; 16384];
        let received = self.peek(&mut buffer).and_then(|there| {
            let end = buffer[..there].iter().position(|byte| *byte == 0);
            socket::receive_some(self.socket.as_fd(), &mut buffer[..end.map_or(there, |end| end + 1)])
        });
        match received {
            Ok((0, _)) => Ok(false),
            Ok((length, fds)) => {
                self.received.extend_from_slice(&buffer[..length]);
                self.fds.extend(fds);
                if self.kept() > LONGEST || self.fds_kept() > socket::MOST_FDS {
                    return Err(Error::new(Code::Usage, format!("a message is longer than {LONGEST} bytes")));
                }
                if self.received.pop_if(|last| *last == 0).is_some() {
                    let message = (std::mem::take(&mut self.received), std::mem::take(&mut self.fds));
                    self.messages.push_back(message);
                }
                Ok(true)
            }
            Err(e) if matches!(e.errno(), Errno::EAGAIN | Errno::EINTR) => Ok(true),
            Err(e) if e.errno() == Errno::ECONNRESET => Ok(false),
            Err(e) => Err(e.into()),
        }
    }

    /// Looks at what has come and leaves it there, without the descriptors.
    fn peek(&self, buffer: &mut [u8]) -> coracle_sys::Result<usize> {
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        let peeked = nix::sys::socket::recv(self.socket.as_raw_fd(), buffer, flags);
        peeked.map_err(|errno| coracle_sys::Error::new("recv()", errno))
    }

    /// How many bytes have come that nobody has taken.
    fn kept(&self) -> usize {
        self.received.len() + self.messages.iter().map(|(text, _)| text.len()).sum::<usize>()
    }

    /// The same for descriptors.
    fn fds_kept(&self) -> usize {
        self.fds.len() + self.messages.iter().map(|(_, fds)| fds.len()).sum::<usize>()
    }

    /// The next whole message, and the descriptors that came with it.
    pub fn message(&mut self) -> Option<(Vec<u8>, Vec<OwnedFd>)> {
        self.messages.pop_front()
    }

    /// Sends `message` as soon as the peer takes it.
    ///
    /// # Errors
    /// `EPIPE` where the peer is gone; `EMSGSIZE` where it has not read for too long.
    pub fn send(&mut self, message: &impl Serialize, fds: Vec<OwnedFd>) -> Result<()> {
        let mut text = serde_json::to_vec(message).map_err(Error::system)?;
        text.push(0);
        self.sending.push_back((text, fds));
        if self.sending.iter().map(|(text, _)| text.len()).sum::<usize>() > MOST_KEPT {
            return Err(Error::new(Code::System, "the peer does not read"));
        }
        self.flush()
    }

    /// Sends what waits to be sent, as far as the peer takes it.
    ///
    /// # Errors
    /// `EPIPE` where it is gone.
    pub fn flush(&mut self) -> Result<()> {
        while let Some((text, fds)) = self.sending.front_mut() {
            let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
            match socket::send_some(self.socket.as_fd(), text, &borrowed) {
                Ok(sent) => {
                    fds.clear();
                    text.drain(..sent);
                    if text.is_empty() {
                        self.sending.pop_front();
                    }
                }
                Err(e) if matches!(e.errno(), Errno::EAGAIN | Errno::EINTR) => return Ok(()),
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }
}

/// What every service says of itself: the answer to a call of `org.varlink.service`, for one that has the interfaces
/// `interfaces`, each with its name.
pub fn about(call: &Call, interfaces: &[(&str, &str)]) -> Reply {
    let all = interfaces.iter().copied().chain([("org.varlink.service", SERVICE)]);
    match call.method.as_str() {
        "org.varlink.service.GetInfo" => Reply::last(json!({
            "vendor": "Coracle",
            "product": "coracle",
            "version": env!("CARGO_PKG_VERSION"),
            "url": "",
            "interfaces": all.map(|(name, _)| name).collect::<Vec<_>>(),
        })),
        "org.varlink.service.GetInterfaceDescription" => {
            let wanted = call.parameters["interface"].as_str().unwrap_or_default();
            match all.into_iter().find(|(name, _)| *name == wanted) {
                Some((_, description)) => Reply::last(json!({ "description": description })),
                None => Reply::of_service("InterfaceNotFound", "interface", wanted),
            }
        }
        method => Reply::of_service("MethodNotFound", "method", method),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parameter_that_is_null_is_one_left_out() {
        let given = |text: &str| serde_json::from_str::<Call>(text).unwrap().given();
        assert_eq!(
            given(r#"{"method": "a.B", "parameters": {"env": null, "force": true}}"#),
            json!({"force": true})
        );
        assert_eq!(given(r#"{"method": "a.B", "parameters": null}"#), json!({}));
        assert_eq!(given(r#"{"method": "a.B", "parameters": [1]}"#), json!([1]));
    }

    #[test]
    fn descriptors_go_to_the_message_that_they_came_with() {
        let (mine, theirs) = socket::stream_pair().unwrap();
        let mut connection = Connection::new(mine);
        let null = coracle_sys::descriptor::null().unwrap();
        let send = |text: &[u8], fds: &[BorrowedFd<'_>]| {
            assert_eq!(socket::send_some(theirs.as_fd(), text, fds).unwrap(), text.len());
        };
        send(b"one\0", &[]);
        send(b"two\0three\0", &[null.as_fd()]);
        send(b"fo", &[null.as_fd(), null.as_fd()]);
        send(b"ur\0", &[]);
        for _ in 0..5 {
            assert!(connection.receive().unwrap());
        }
        let messages = std::iter::from_fn(|| connection.message());
        let told: Vec<_> =
            messages.map(|(text, fds)| (String::from_utf8(text).unwrap(), fds.len())).collect();
        let wanted = [("one", 0), ("two", 1), ("three", 0), ("four", 2)];
        assert_eq!(told, wanted.map(|(text, fds)| (text.to_owned(), fds)));
        drop(theirs);
        assert!(!connection.receive().unwrap(), "it is at its end");
    }
}
