//! The caller's side of Varlink: one call after the other, each waited for.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use coracle_sys::{descriptor, event, socket};
use serde_json::Value;

use super::{Call, Connection, Reply};
use crate::error::{Code, Error, Result};

/// A connection to a service.
#[derive(Debug)]
pub struct Client {
    connection: Connection,
}

impl Client {
    /// The client over `socket`.
    pub fn new(socket: OwnedFd) -> Self {
        Self { connection: Connection::new(socket) }
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
    /// `EPIPE` where the service is gone.
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
            event::writable(self.connection.fd(), None)?;
            self.connection.flush()?;
        }
        Ok(())
    }

    /// Waits for the next reply.
    ///
    /// # Errors
    /// What the service failed with, or that it went away.
    pub fn reply(&mut self) -> Result<(Reply, Vec<OwnedFd>)> {
        loop {
            if let Some(reply) = self.pending()? {
                return Ok(reply);
            }
            event::readable(&[self.connection.fd()], None)?;
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

/// Connects to the stream socket `name` in `dir`.
///
/// # Errors
/// `ECONNREFUSED` where nobody listens any more, `ENOENT` where there is none.
pub fn connect(dir: BorrowedFd<'_>, name: &str) -> Result<Client> {
    let socket = socket::connect_stream(&socket::in_dir(dir.as_fd(), name))?;
    Ok(Client::new(socket))
}
