//! The supervisor of a pod: one process, one loop. It waits for descriptors (callers, first processes, jobs, what
//! containers write) and for the next moment at which something is due, and does what follows.

mod attach;
mod calls;
mod debug;
mod ending;
mod errand;
mod health;
mod limits;
mod member;
mod order;
mod pending;
mod pulling;
mod sandbox;
mod start;

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use coracle_isolator_host::Registry;
use coracle_sys::{Errno, process};
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::signalfd::SignalFd;
use serde_json::{Value, json};

use super::job::Job;
use super::launch::{self, Order};
use super::logs::Stream;
use super::network::Networks;
use super::plan::Plan;
use super::record::{Directory, Record, Wish};
use super::sandbox::Sandbox;
use super::varlink::listener::Listener;
use super::volume;
use crate::cli::Global;
use crate::error::{Error, Result};
use errand::Errand;
use member::{End, Member, Phase, Running};
use pending::Client;

pub use start::{Beside, adopt, begin};

/// A container's path.
type Path = Rc<str>;

/// After how long without anything to do a supervisor lets go of what it does not need.
const REST: Duration = Duration::from_secs(1);

/// What there is to wait for.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Source {
    Listener,
    Signals,
    Keeper,
    Preparing,
    Teardown,
    Client(u64),
    /// The job or the first process of a container.
    Member(Path),
    Output(Path, Stream),
    /// A reader that takes something, or is gone.
    Readers(Path),
    /// The writer who says something, or the container that takes it.
    Writer(Path),
    Errand(u64),
    /// The job that a caller waits for.
    Measure(u64),
}

/// The supervisor.
pub struct Supervisor {
    global: Global,
    dir: Directory,
    record: Record,
    plan: Plan,
    isolators: Registry,
    sandbox: Option<Sandbox>,
    members: BTreeMap<Path, Member>,
    clients: BTreeMap<u64, Client>,
    errands: BTreeMap<u64, Errand>,
    /// What is asked of isolators, by who waits for it.
    measures: BTreeMap<u64, Job>,
    listener: Listener,
    signals: SignalFd,
    networks: Networks,
    /// The sandbox is being attached to its networks: no container begins before.
    preparing: Option<Job>,
    /// Why the pod could not begin.
    failure: Option<Error>,
    /// The removal of the sandbox.
    teardown: Option<Job>,
    /// When that is tried again, where it failed.
    again: Option<Instant>,
    /// When the pod was started.
    started: Instant,
    /// How long containers may take to end, this time.
    grace: Duration,
    /// When they are to have ended, once they are asked to.
    ends: Option<Instant>,
    /// What can't be written or removed, and says nothing of how the pod has ended.
    trouble: Option<String>,
    /// Whether the pod is to be forgotten when it has ended.
    leaving: bool,
    /// Whether there may be children that have ended and nobody knows.
    unreaped: bool,
    /// When it last saw to whose turn it is.
    advanced: Instant,
    /// When it has had nothing to do for long; `None` where it has been at rest since.
    rests: Option<Instant>,
    next: u64,
}

impl Supervisor {
    /// Looks after the pod until it is removed.
    ///
    /// # Errors
    /// Where waiting fails, which no kernel is known to do.
    pub fn run(mut self) -> Result<()> {
        loop {
            self.advanced = Instant::now();
            self.advance();
            self.answer();
            if self.leaving && self.is_over() {
                let left = launch::remove_left(&self.dir, &self.record.store, &self.isolators);
                match left.and_then(|()| volume::remove(self.volumes())) {
                    Ok(()) => {
                        self.vanish();
                        return Ok(());
                    }
                    Err(error) => self.refuse_to_end(&error),
                }
            }
            let ready = self.wait()?;
            for source in &ready {
                self.handle(source);
            }
            self.reap();
            self.expire(Instant::now());
            self.rest(ready.is_empty());
        }
    }

    /// Removes the pod's directory. Where that fails half-way nobody may reach this supervisor any more, so it ends all the
    /// same: `recover` goes on with what is left.
    fn vanish(&mut self) {
        match self.dir.remove() {
            Ok(()) => self.farewell(),
            Err(error) => self.refuse_to_end(&error),
        }
    }

    /// Lets go of what it took to do something, when for a while there was nothing to do.
    fn rest(&mut self, is_idle: bool) {
        let now = Instant::now();
        match self.rests {
            _ if !is_idle => self.rests = Some(now + REST),
            Some(at) if at <= now => {
                self.rests = None;
                let _ = process::forget_image();
            }
            _ => {}
        }
    }

    fn sources(&self) -> Vec<(Source, BorrowedFd<'_>, PollFlags)> {
        let readable = PollFlags::POLLIN;
        let mut all = vec![(Source::Signals, self.signals.as_fd(), readable)];
        all.extend(self.listener.fd().map(|listener| (Source::Listener, listener, readable)));
        all.extend(self.sandbox.iter().map(|sandbox| (Source::Keeper, sandbox.pidfd.as_fd(), readable)));
        all.extend(self.preparing.iter().map(|job| (Source::Preparing, job.fd(), readable)));
        all.extend(self.teardown.iter().map(|job| (Source::Teardown, job.fd(), readable)));
        for (id, client) in &self.clients {
            let writes = if client.connection.owes() { PollFlags::POLLOUT } else { PollFlags::empty() };
            all.push((Source::Client(*id), client.connection.fd(), readable | writes));
        }
        all.extend(self.errands.iter().map(|(id, errand)| (Source::Errand(*id), errand.fd(), readable)));
        all.extend(self.measures.iter().map(|(id, job)| (Source::Measure(*id), job.fd(), readable)));
        for (path, member) in &self.members {
            member_sources(path, member, &mut all);
        }
        all
    }

    /// Waits until something is ready or due.
    fn wait(&self) -> Result<Vec<Source>> {
        let sources = self.sources();
        let mut fds: Vec<PollFd<'_>> =
            sources.iter().map(|(_, fd, flags)| PollFd::new(*fd, *flags)).collect();
        let timeout = self.due().map_or(PollTimeout::NONE, |due| {
            // Rounded up: poll(2) counts milliseconds, and must not be called again and again in the last of them.
            let left = due.saturating_duration_since(Instant::now()) + Duration::from_micros(999);
            PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
        });
        match nix::poll::poll(&mut fds, timeout) {
            Err(Errno::EINTR) => return Ok(Vec::new()),
            // The kernel is short of memory: the pod shall not lose its supervisor for that.
            Err(Errno::ENOMEM | Errno::EAGAIN) => {
                std::thread::sleep(Duration::from_millis(10));
                return Ok(Vec::new());
            }
            Err(errno) => return Err(Error::from(coracle_sys::Error::new("poll()", errno))),
            Ok(_) => {}
        }
        let ready = sources.iter().zip(&fds).filter(|(_, fd)| fd.any().unwrap_or(false));
        Ok(ready.map(|((source, ..), _)| source.clone()).collect())
    }

    /// When something is due, whatever happens.
    fn due(&self) -> Option<Instant> {
        let members = self.members.values().filter_map(|member| {
            let phase = match &member.phase {
                // What was due when all was last looked at waits for others.
                Phase::BackOff(at) => Some(*at).filter(|at| *at > self.advanced),
                Phase::Launching(job) | Phase::Removing(job, _) => job.deadline(),
                // Who is to end is asked for its health no more.
                Phase::Running(Running { end: End::No, .. }) => member.health.next(),
                Phase::Running(running) => running.end.deadline(),
                _ => None,
            };
            phase.into_iter().chain(member.attached.deadline()).chain(member.pipes.hung_up).min()
        });
        let errands = self.errands.values().filter_map(Errand::deadline);
        let pod =
            self.plan.deadline.filter(|_| self.record.wish == Wish::Run).map(|most| self.started + most);
        members
            .chain(errands)
            .chain(pod)
            .chain(self.rests)
            .chain(self.again)
            .chain(self.listener.deadline())
            .chain(self.jobs().filter_map(Job::deadline))
            .min()
    }

    fn handle(&mut self, source: &Source) {
        match source {
            Source::Listener => self.accept(),
            Source::Signals => self.take_signals(),
            Source::Keeper => self.lose_keeper(),
            Source::Preparing => self.finish_preparing(),
            Source::Teardown => self.finish_teardown(),
            Source::Client(id) => self.hear(*id),
            Source::Member(path) => self.step(path),
            Source::Errand(id) => self.step_errand(*id),
            Source::Measure(id) => self.finish_measure(*id),
            Source::Output(path, stream) => {
                self.with(path, |member| member.read(*stream));
            }
            Source::Readers(path) => {
                self.with(path, |member| member.attached.give());
            }
            Source::Writer(path) => {
                let is_closed = self.with(path, |member| {
                    let ended = member.attached.speak(member.pipes.input.as_ref());
                    let is_closed = ended && member.plan.container.stdin_once;
                    member.pipes.input.take_if(|_| is_closed);
                    is_closed
                });
                if let (Some(true), Some(sandbox)) = (is_closed, &self.sandbox) {
                    let _ = sandbox.keeper.drop_held(&format!("{path}:stdin"));
                }
            }
        }
    }

    fn with<T>(&mut self, path: &Path, deed: impl FnOnce(&mut Member) -> T) -> Option<T> {
        self.members.get_mut(path).map(deed)
    }

    fn accept(&mut self) {
        if let Some(connection) = self.listener.accept(self.clients.len()) {
            self.next += 1;
            self.clients.insert(self.next, Client::new(connection));
        }
    }

    /// A signal that asks to end stops the pod; children that nobody knows are reaped.
    fn take_signals(&mut self) {
        while let Ok(Some(info)) = self.signals.read_signal() {
            match info.ssi_signo.cast_signed() {
                libc::SIGTERM | libc::SIGINT => self.stop(self.plan.grace, "the supervisor was asked to end"),
                libc::SIGCHLD => self.unreaped = true,
                _ => {}
            }
        }
    }

    /// Reaps children that nobody knows. One that is known and has ended hides those after it until it is asked how: then it
    /// is tried again. A process of a container that stays a zombie would keep the end of the container's first one waiting.
    fn reap(&mut self) {
        if self.unreaped {
            let known: Vec<i32> = self.known_children().collect();
            self.unreaped = process::reap_unknown(|pid| known.contains(&pid));
        }
    }

    /// The children whose ends somebody asks for.
    fn known_children(&self) -> impl Iterator<Item = i32> {
        let first = self.members.values().filter_map(|member| match &member.phase {
            Phase::Pulling(job) | Phase::Launching(job) | Phase::Removing(job, _) => Some(job.pid()),
            Phase::Running(running) => Some(running.pid),
            _ => None,
        });
        first.chain(self.errands.values().map(Errand::pid)).chain(self.jobs().map(Job::pid))
    }

    /// The jobs that are no container's.
    fn jobs(&self) -> impl Iterator<Item = &Job> {
        self.preparing.iter().chain(&self.teardown).chain(self.measures.values())
    }

    /// What a launch needs to know; `None` without a sandbox.
    fn order(&self) -> Option<Order<'_>> {
        Some(Order {
            pod: &self.record.document,
            plan: &self.plan,
            dir: &self.dir,
            store: &self.record.store,
            sandbox: self.sandbox.as_ref()?,
            cgroups: self.global.cgroups.below(),
            config: &self.global.config,
            users: self.record.users,
            networks: &self.networks,
        })
    }

    fn volumes(&self) -> volume::From<'_> {
        let (dir, record, networks) = (&self.dir, &self.record, &self.networks);
        let (pod, store, users) = (&record.document, &*record.store, record.users);
        volume::From { dir, pod, store, config: &self.global.config, users, networks }
    }

    /// Whether nothing of the pod is there but its records.
    fn is_over(&self) -> bool {
        let is_over = |member: &Member| matches!(member.phase, Phase::Over | Phase::Waiting);
        !self.has_sandbox() && self.members.values().all(is_over)
    }

    fn save(&mut self) {
        if let Err(error) = self.dir.write(&self.record) {
            self.trouble = Some(error.to_string());
        }
    }

    /// Keeps what outlives the container at `path`.
    fn save_life(&mut self, path: &Path) {
        let Some(member) = self.members.get(path) else { return };
        if let Err(error) = self.dir.write_life(path, &member.life) {
            self.trouble = Some(error.to_string());
        }
    }

    /// How far the pod is, in Kubernetes' words where it has one.
    fn phase(&self) -> &'static str {
        let main = || self.members.values().filter(|member| member.plan.role == super::plan::Role::Main);
        match self.record.wish {
            Wish::Created => "Created",
            Wish::Run if main().any(Member::has_run) => "Running",
            Wish::Run => "Pending",
            Wish::Stop if !self.is_over() => "Stopping",
            Wish::Stop => {
                let succeeded =
                    main().all(|member| member.life.ended.as_ref().is_some_and(|end| end.is_success()));
                if succeeded && self.record.message.is_none() { "Succeeded" } else { "Failed" }
            }
        }
    }

    /// What is told of the pod.
    fn told(&self) -> Value {
        json!({
            "name": self.plan.name,
            "phase": self.phase(),
            "created": self.record.created,
            "message": self.record.message.as_ref().or(self.trouble.as_ref()),
            "labels": self.record.document.metadata.labels,
            "annotations": self.record.document.metadata.annotations,
            "parent": self.record.parent,
            "users": self.record.users,
            "networks": self.record.networks,
            "supervisor": self.record.supervisor.map(|process| process.pid),
            "keeper": self.record.keeper.map(|process| process.pid),
            "cgroup": self.record.cgroup.as_ref().and_then(|place| place.at.first()).map(|site| &site.path),
            "containers": self.told_members(),
        })
    }

    /// What has come of a start or a stop.
    fn outcome(&self) -> Value {
        json!({ "name": self.plan.name, "phase": self.phase(), "containers": self.told_members() })
    }

    fn told_members(&self) -> Vec<Value> {
        let planned = self.plan.members.iter().filter_map(|member| self.members.get(member.path.as_str()));
        let nested = self.members.values().filter(|member| member.plan.role == super::plan::Role::Nested);
        planned.chain(nested).map(Member::told).collect()
    }

    /// Starts the removal of what is left of the container at `path`.
    fn removal(&self, path: &str) -> Result<Job> {
        launch::remove(&self.dir, path, &self.record.store, &self.isolators)
    }
}

fn member_sources<'m>(path: &Path, member: &'m Member, all: &mut Vec<(Source, BorrowedFd<'m>, PollFlags)>) {
    let readable = PollFlags::POLLIN;
    match &member.phase {
        Phase::Pulling(job) | Phase::Launching(job) | Phase::Removing(job, _) => {
            all.push((Source::Member(path.clone()), job.fd(), readable));
        }
        Phase::Running(running) => all.push((Source::Member(path.clone()), running.pidfd.as_fd(), readable)),
        _ => {}
    }
    for (stream, output) in member.pipes.outputs.iter().filter(|_| member.pipes.hung_up.is_none()) {
        if !member.attached.is_full(*stream) {
            all.push((Source::Output(path.clone(), *stream), output.as_fd(), readable));
        }
    }
    for (reader, flags) in member.attached.readers() {
        all.push((Source::Readers(path.clone()), reader, flags));
    }
    let speaker = member.attached.speaker().map(|socket| (socket, readable));
    let input = member.pipes.input.as_ref().filter(|_| member.attached.owes_input());
    let taker = input.map(|input| (input.as_fd(), PollFlags::POLLOUT));
    all.extend(speaker.or(taker).map(|(fd, flags)| (Source::Writer(path.clone()), fd, flags)));
}
