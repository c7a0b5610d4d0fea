//! The caller's side of Varlink: one call after the other, each waited for.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use coracle_sys::{descriptor, event, socket};
use serde_json::Value;

use super::{Call, Connection, Reply};
use crate::error::{Code, Error, Result};

/// A connection to a service.
#[derive(Debug)]
pub struct Client {
    connection: Connection,
    /// Until when the service is waited for, if not for ever.
    until: Option<Instant>,
}

impl Client {
    /// The client over `socket`.
    pub fn new(socket: OwnedFd) -> Self {
        Self { connection: Connection::new(socket), until: None }
    }

    /// Waits for the service no longer than `most` from now on, all in all.
    pub fn limit(&mut self, most: Duration) {
        self.until = Instant::now().checked_add(most);
    }

    /// For how long the service is still waited for; none where that has no end.
    fn left(&self) -> Option<Duration> {
        self.until.map(|until| until.saturating_duration_since(Instant::now()))
    }

    /// Calls `method` and returns its one reply, and the descriptors that came with it.
    ///
    /// # Errors
    /// What the service failed with, or that it went away.
    pub fn call(&mut self, method: &str, parameters: Value) -> Result<(Value, Vec<OwnedFd>)> {
        self.begin(method, parameters, &[], false)?;
        self.reply().map(|(reply, fds)| (reply.parameters, fds))
    }

    /// Calls `method`, and gives it descriptors; with `more`, more than one reply is welcome.
    ///
    /// # Errors
    /// `EPIPE` where the service is gone; that it does not answer where it takes too long.
    pub fn begin(
        &mut self,
        method: &str,
        parameters: Value,
        fds: &[BorrowedFd<'_>],
        more: bool,
    ) -> Result<()> {
        let call = Call { method: method.to_owned(), parameters, more, oneway: false, upgrade: false };
        let fds = fds.iter().map(|fd| descriptor::duplicate(*fd)).collect::<coracle_sys::Result<_>>()?;
        self.connection.send(&call, fds)?;
        while self.connection.owes() {
            if !event::writable(self.connection.fd(), self.left())? {
                return Err(silent());
            }
            self.connection.flush()?;
        }
        Ok(())
    }

    /// Waits for the next reply.
    ///
    /// # Errors
    /// What the service failed with, or that it went away, or does not answer.
    pub fn reply(&mut self) -> Result<(Reply, Vec<OwnedFd>)> {
        loop {
            if let Some(reply) = self.pending()? {
                return Ok(reply);
            }
            if event::readable(&[self.connection.fd()], self.left())? != [true] {
                return Err(silent());
            }
            if !self.connection.receive()? {
                return Err(
                    Error::new(Code::System, "the pod's supervisor went away").hint("see coracle recover")
                );
            }
        }
    }

    /// The socket: what is readable there is a reply, or part of one.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.connection.fd()
    }

    /// The next reply, where a whole one has been received.
    fn pending(&mut self) -> Result<Option<(Reply, Vec<OwnedFd>)>> {
        let Some((text, fds)) = self.connection.message() else { return Ok(None) };
        let malformed = |e: serde_json::Error| Error::new(Code::System, format!("a reply is malformed: {e}"));
        let reply: Reply = serde_json::from_slice(&text).map_err(malformed)?;
        let Some(name) = &reply.error else { return Ok(Some((reply, fds))) };
        let failure = serde_json::from_value(reply.parameters["failure"].clone());
        Err(failure.unwrap_or_else(|_| Error::new(Code::System, format!("{name} {}", reply.parameters))))
    }
}

fn silent() -> Error {
    Error::new(Code::System, "the pod's supervisor does not answer")
}

/// Connects to the stream socket `name` in `dir`.
///
/// # Errors
/// `ECONNREFUSED` where nobody listens any more, `ENOENT` where there is none.
pub fn connect(dir: BorrowedFd<'_>, name: &str) -> Result<Client> {
    let socket = socket::connect_stream(&socket::in_dir(dir.as_fd(), name))?;
    Ok(Client::new(socket))
}

/// The same, and the service is waited for no longer than `most`, all in all.
///
/// # Errors
/// As [`connect`]; `ETIMEDOUT` where it takes nobody in.
pub fn connect_within(dir: BorrowedFd<'_>, name: &str, most: Duration) -> Result<Client> {
    let until = Instant::now().checked_add(most);
    let socket = socket::connect_stream_within(&socket::in_dir(dir.as_fd(), name), most)?;
    Ok(Client { until, ..Client::new(socket) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_does_not_answer_is_not_waited_for_without_end() {
        let (mine, theirs) = socket::stream_pair().unwrap();
        let mut client = Client::new(mine);
        client.limit(Duration::from_millis(20));
        let silent = client.call("io.coracle.Pod.Inspect", Value::Null).unwrap_err();
        assert!(silent.to_string().contains("does not answer"), "{silent}");
        client.limit(Duration::from_secs(5));
        socket::send_some(theirs.as_fd(), b"{\"parameters\": {\"pod\": 1}}\0", &[]).unwrap();
        assert_eq!(client.reply().unwrap().0.parameters["pod"], 1);
    }
}
