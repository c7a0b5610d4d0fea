//! Serving `io.coracle.Host`: one loop, in which no caller waits for another. What takes long is a job.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use coracle_sys::file;
use coracle_sys::{Errno, socket};
use nix::poll::{PollFd, PollFlags, PollTimeout};
use serde_json::Value;

use super::host::{HOST_SOCKET, INTERFACE, Service};
use super::job::Job;
use super::record::PODS;
use super::varlink::listener::{Listener, MOST_CLIENTS, SHORTAGE};
use super::varlink::{self, Call, Connection, Reply, client};
use crate::cli::Global;
use crate::error::{Code, Context, Error, Result};

/// What takes long: it waits for pods, for their supervisors, or for who pulls images.
const LONG: [&str; 3] = ["Drain", "Recover", "PruneImages"];

/// A caller.
struct Client {
    connection: Connection,
    /// Whether it takes no reply to its call.
    oneway: bool,
}

/// What there is to wait for.
#[derive(Clone, Copy)]
enum Source {
    Listener,
    Client(u64),
    Job(u64),
}

/// Who serves.
struct Server {
    service: Service,
    listener: Listener,
    clients: BTreeMap<u64, Client>,
    /// What is being done, by who asked for it; it is done to its end, even where that is gone.
    jobs: BTreeMap<u64, Job>,
    next: u64,
}

/// Serves `io.coracle.Host` in the directory of pods until it is killed. The calling process must be the protected image
/// of the runtime.
///
/// # Errors
/// `Exists` where somebody serves there; where waiting fails.
pub fn serve(global: &Global) -> Result<()> {
    let base = file::open_dir(if global.root.is_absolute() { "/" } else { "." })?;
    file::mkdir_all(base.as_fd(), &global.root, 0o711)?;
    let pods = file::mkdir_all(base.as_fd(), global.root.join(PODS), 0o700)?;
    if client::connect(pods.as_fd(), HOST_SOCKET).is_ok() {
        return Err(Error::new(Code::Exists, "somebody serves the pods of this host"));
    }
    let _ = file::unlink(pods.as_fd(), HOST_SOCKET);
    let listener = socket::listen_stream(pods.as_fd(), HOST_SOCKET).context(|| "making the host's socket")?;
    let mut server = Server {
        service: Service::new(global),
        listener: Listener::new(listener),
        clients: BTreeMap::new(),
        jobs: BTreeMap::new(),
        next: 0,
    };
    loop {
        for source in server.wait()? {
            match source {
                Source::Listener => server.accept(),
                Source::Client(id) => server.hear(id),
                Source::Job(id) => server.finish(id),
            }
        }
        server.listener.expire(Instant::now());
    }
}

impl Server {
    /// Waits until something is ready, or callers can be taken in again.
    fn wait(&self) -> Result<Vec<Source>> {
        let readable = PollFlags::POLLIN;
        let mut sources: Vec<(Source, BorrowedFd<'_>, PollFlags)> = Vec::new();
        sources.extend(self.listener.fd().map(|listener| (Source::Listener, listener, readable)));
        for (id, client) in &self.clients {
            let writes = if client.connection.owes() { PollFlags::POLLOUT } else { PollFlags::empty() };
            sources.push((Source::Client(*id), client.connection.fd(), readable | writes));
        }
        sources.extend(self.jobs.iter().map(|(id, job)| (Source::Job(*id), job.fd(), readable)));
        let mut fds: Vec<PollFd<'_>> =
            sources.iter().map(|(_, fd, flags)| PollFd::new(*fd, *flags)).collect();
        let timeout = self.listener.deadline().map_or(PollTimeout::NONE, |at| {
            let left = at.saturating_duration_since(Instant::now()) + Duration::from_micros(999);
            PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
        });
        match nix::poll::poll(&mut fds, timeout) {
            Err(Errno::EINTR) => return Ok(Vec::new()),
            // The kernel is short of memory.
            Err(Errno::ENOMEM | Errno::EAGAIN) => {
                std::thread::sleep(SHORTAGE);
                return Ok(Vec::new());
            }
            Err(errno) => return Err(Error::from(coracle_sys::Error::new("poll()", errno))),
            Ok(_) => {}
        }
        let ready = sources.iter().zip(&fds).filter(|(_, fd)| fd.any().unwrap_or(false));
        Ok(ready.map(|((source, ..), _)| *source).collect())
    }

    fn accept(&mut self) {
        if let Some(connection) = self.listener.accept(self.clients.len()) {
            self.next += 1;
            self.clients.insert(self.next, Client { connection, oneway: false });
        }
    }

    fn hear(&mut self, id: u64) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        let heard = client.connection.flush().and_then(|()| client.connection.receive());
        if matches!(heard, Ok(true)) {
            self.take_calls(id);
        } else {
            self.clients.remove(&id);
        }
    }

    /// Takes the calls of `id` that have come, one after the other: the next when the one before is answered.
    fn take_calls(&mut self, id: u64) {
        while !self.jobs.contains_key(&id) {
            let message = self.clients.get_mut(&id).and_then(|client| client.connection.message());
            let Some((text, _)) = message else { return };
            match serde_json::from_slice::<Call>(&text) {
                Ok(call) => self.call(id, call),
                Err(_) => drop(self.clients.remove(&id)),
            }
        }
    }

    fn call(&mut self, id: u64, call: Call) {
        if let Some(client) = self.clients.get_mut(&id) {
            client.oneway = call.oneway;
        }
        let method = call.method.strip_prefix(INTERFACE).and_then(|method| method.strip_prefix('.'));
        let given = call.given();
        let done = match method {
            Some(method) if LONG.contains(&method) => match self.begin(method, given) {
                Ok(job) => return drop(self.jobs.insert(id, job)),
                Err(error) => Some(Err(error)),
            },
            method => method.and_then(|method| self.service.perform(method, given).transpose()),
        };
        match done {
            None => self.say(id, &varlink::about(&call, &[(INTERFACE, varlink::HOST)])),
            Some(done) => self.answer(id, done),
        }
    }

    /// Starts a job that does what `method` says.
    fn begin(&self, method: &str, given: Value) -> Result<Job> {
        if self.jobs.len() >= MOST_CLIENTS {
            return Err(Error::new(Code::IllegalState, "too much is being done already").hint("try it again"));
        }
        Job::start(None::<Duration>, &[], None, |_| self.service.perform(method, given))
    }

    /// What the caller `id` waits for has been done.
    fn finish(&mut self, id: u64) {
        let Some(job) = self.jobs.remove(&id) else { return };
        self.answer(id, job.finish::<Value>().map(|(said, _)| said));
        self.take_calls(id);
    }

    fn answer(&mut self, id: u64, done: Result<Value>) {
        let reply = match done {
            Ok(said) => Reply::last(said),
            Err(error) => Reply::failed(INTERFACE, &error),
        };
        self.say(id, &reply);
    }

    fn say(&mut self, id: u64, reply: &Reply) {
        let Some(client) = self.clients.get_mut(&id).filter(|client| !client.oneway) else { return };
        if client.connection.send(reply, Vec::new()).is_err() {
            self.clients.remove(&id);
        }
    }
}
