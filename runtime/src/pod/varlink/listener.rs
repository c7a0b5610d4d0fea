//! Where callers come in: no more of them at a time than can be served, and none while there is no room for one.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use coracle_sys::{Errno, identity, socket};

use super::Connection;

/// The most callers at a time.
pub const MOST_CLIENTS: usize = 256;

/// How long callers are left in the queue where something is short that is needed for one.
pub const SHORTAGE: Duration = Duration::from_millis(100);

/// Whether `error`, of [`socket::accept`], says that there are no descriptors or no memory for another connection. The caller stays in the
/// queue, so that who waits for callers is told of it at once again.
pub fn is_short(error: &coracle_sys::Error) -> bool {
    matches!(error.errno(), Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM | Errno::ENOBUFS)
}

/// A socket that listens.
#[derive(Debug)]
pub struct Listener {
    socket: OwnedFd,
    /// Until when callers wait, where there was no descriptor or memory for one.
    deaf: Option<Instant>,
}

impl Listener {
    /// The listener at `socket`.
    pub fn new(socket: OwnedFd) -> Self {
        Self { socket, deaf: None }
    }

    /// What becomes readable when somebody calls; `None` while callers wait.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.deaf.is_none().then(|| self.socket.as_fd())
    }

    /// Until when they wait.
    pub fn deadline(&self) -> Option<Instant> {
        self.deaf
    }

    /// They have waited long enough by `now`.
    pub fn expire(&mut self, now: Instant) {
        self.deaf.take_if(|at| *at <= now);
    }

    /// The next caller, beside `others`; `None` where it can't be taken in, or is none to be listened to.
    pub fn accept(&mut self, others: usize) -> Option<Connection> {
        let connection = match socket::accept(self.socket.as_fd()) {
            Ok(connection) => connection,
            Err(e) => {
                self.deaf = is_short(&e).then(|| Instant::now() + SHORTAGE);
                return None;
            }
        };
        // Who has no right to the socket's file can't come here; but a descriptor of it can be passed on.
        let user = socket::peer_user(connection.as_fd()).ok()?;
        let is_welcome = user == 0 || user == identity::caller();
        (is_welcome && others < MOST_CLIENTS).then(|| Connection::new(connection))
    }
}
