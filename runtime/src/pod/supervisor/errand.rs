//! Errands: what is run in a container beside its own process (an `exec` of a caller, a hook, a probe), or asked of it
//! over the pod's network. Each is a job; one that leaves a process in the container goes on with that process.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use coracle_sys::process::{self, Exit};
use coracle_sys::{descriptor, namespace, signal};

use super::ending::ask_to_end;
use super::health::Which;
use super::member::{End, Phase};
use super::{Path, Supervisor};
use crate::cli;
use crate::commands::exec;
use crate::error::{Code, Context, Error, Result};
use crate::pod::document::{Container, Handler, HttpGet, PortRef, Probe, seconds};
use crate::pod::job::Job;
use crate::pod::launch::{Launched, Streams};
use crate::pod::plan::Kind;
use crate::state::State;

/// How long a process may take to begin.
const BEGINS_WITHIN: Duration = Duration::from_secs(60);

/// How long the answer to a hook may take that has no other end.
const ANSWERED_WITHIN: Duration = Duration::from_secs(3600);

/// Why an errand is run.
#[derive(Debug, Clone)]
pub(super) enum Purpose {
    /// A caller asked for it.
    Call(u64),
    /// A probe.
    Probe(Path, Which),
    /// The hook after a start.
    PostStart(Path),
    /// The hook before an end.
    PreStop(Path),
}

#[derive(Debug)]
enum Stage {
    /// It begins, or is all that there is to do.
    Job(Job),
    /// The process in the container.
    Process { pid: i32, pidfd: OwnedFd },
}

/// An errand.
#[derive(Debug)]
pub(super) struct Errand {
    purpose: Purpose,
    /// The container.
    path: Path,
    stage: Stage,
    deadline: Option<Instant>,
    /// Whether it took too long.
    is_late: bool,
}

impl Errand {
    /// Becomes readable when there is a next step.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        match &self.stage {
            Stage::Job(job) => job.fd(),
            Stage::Process { pidfd, .. } => pidfd.as_fd(),
        }
    }

    /// The PID of its child of the supervisor.
    pub(super) fn pid(&self) -> i32 {
        match &self.stage {
            Stage::Job(job) => job.pid(),
            Stage::Process { pid, .. } => *pid,
        }
    }

    /// When it has taken too long.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let begins = match &self.stage {
            Stage::Job(job) => job.deadline(),
            Stage::Process { .. } => None,
        };
        self.deadline.filter(|_| !self.is_late).into_iter().chain(begins).min()
    }

    fn kill(&mut self) {
        self.is_late = true;
        match &self.stage {
            Stage::Job(job) => job.kill(),
            Stage::Process { pidfd, .. } => drop(process::signal(pidfd.as_fd(), libc::SIGKILL)),
        }
    }

    /// Ends it if it is run for the container at `path`.
    pub(super) fn end_for(&mut self, path: &Path) {
        if self.path == *path {
            self.kill();
        }
    }

    /// Whether the caller `client` asked for it.
    pub(super) fn is_of(&self, client: u64) -> bool {
        matches!(self.purpose, Purpose::Call(caller) if caller == client)
    }
}

impl Supervisor {
    /// Runs a program in the container at `path`, with these streams or none.
    ///
    /// # Errors
    /// `NotFound`, `IllegalState` where the container does not run.
    pub(super) fn execute(
        &mut self,
        path: &Path,
        options: cli::Exec,
        streams: Option<Streams>,
        (purpose, within): (Purpose, Option<Duration>),
    ) -> Result<u64> {
        let member = self.members.get(path).ok_or_else(|| no_container(path))?;
        let Phase::Running(_) = member.phase else {
            return Err(Error::new(Code::IllegalState, format!("container {path:?} does not run")));
        };
        let (states, name) = self.dir.states(path);
        let fds: Vec<BorrowedFd<'_>> = streams.iter().flat_map(|s| &s.fds).map(AsFd::as_fd).collect();
        let global = &self.global;
        let job = Job::start(BEGINS_WITHIN, &fds, None, |mouth| {
            signal::unblock()?;
            set_streams(streams.as_ref())?;
            let state = State::open_unlocked(&states, &name)?;
            let place = state.record()?.and_then(|record| record.cgroup);
            let cgroups = place.map(|place| place.room()).unwrap_or_default();
            let launch = cli::Launch { hands_terminal_on: true, ..options.launch };
            let running = exec::launch(global, &state, &cli::Exec { cgroups, launch, ..options })?;
            if let Some(socket) = running.console {
                let master = coracle_sys::socket::receive(socket.as_fd(), 64)?.and_then(|(_, fd)| fd);
                master.map_or(Ok(()), |master| mouth.send(master.as_fd()))?;
            }
            Ok(Launched { pid: running.child.pid, ..Launched::default() })
        })?;
        Ok(self.run_errand(path, purpose, job, within))
    }

    pub(super) fn run_errand(
        &mut self,
        path: &Path,
        purpose: Purpose,
        job: Job,
        within: Option<Duration>,
    ) -> u64 {
        self.next += 1;
        let deadline = within.map(|within| Instant::now() + within);
        let errand = Errand { purpose, path: path.clone(), stage: Stage::Job(job), deadline, is_late: false };
        self.errands.insert(self.next, errand);
        self.next
    }

    /// Runs a hook of the container at `path`, within this time if there is one; a hook that can't be run has failed.
    pub(super) fn run_hook(
        &mut self,
        path: &Path,
        hook: &Handler,
        purpose: Purpose,
        within: Option<Duration>,
    ) {
        let begun = match (&hook.exec, &hook.http_get, &hook.sleep) {
            (Some(exec), ..) => {
                let options = program(&exec.command);
                self.execute(path, options, None, (purpose.clone(), within))
            }
            (_, Some(get), _) => {
                let within = within.unwrap_or(ANSWERED_WITHIN);
                self.ask(path, purpose.clone(), within, Question::Http(get.clone()))
            }
            (.., sleep) => {
                let time = seconds(sleep.as_ref().map_or(0, |sleep| sleep.seconds));
                let within = within.unwrap_or(time + BEGINS_WITHIN);
                self.ask(path, purpose.clone(), within, Question::Sleep(time))
            }
        };
        if let Err(error) = begun {
            self.conclude(&purpose, Err(error));
        }
    }

    /// Asks the probes that are due.
    pub(super) fn probe(&mut self, now: Instant) {
        let running = self
            .members
            .iter_mut()
            .filter(|(_, member)| matches!(&member.phase, Phase::Running(running) if running.end == End::No));
        let due: Vec<(Path, Which, Probe)> = running
            .flat_map(|(path, member)| {
                member.health.due(now).into_iter().map(|(which, probe)| (path.clone(), which, probe))
            })
            .collect();
        for (path, which, probe) in due {
            let within = seconds(probe.timeout_seconds.unwrap_or(1));
            let purpose = Purpose::Probe(path.clone(), which);
            let begun = match (&probe.exec, &probe.http_get, &probe.tcp_socket) {
                (Some(exec), ..) => {
                    let options = program(&exec.command);
                    self.execute(&path, options, None, (purpose.clone(), Some(within)))
                }
                (_, Some(get), _) => self.ask(&path, purpose.clone(), within, Question::Http(get.clone())),
                (.., tcp) => {
                    let port = tcp.as_ref().map_or(PortRef::Number(0), |tcp| tcp.port.clone());
                    let host = tcp.as_ref().and_then(|tcp| tcp.host.clone());
                    self.ask(&path, purpose.clone(), within, Question::Tcp(host, port))
                }
            };
            // What the supervisor lacks to ask, descriptors or processes, says nothing of who is asked.
            if let (Err(_), Some(member)) = (begun, self.members.get_mut(&path)) {
                member.health.postpone(which, now);
            }
        }
    }

    /// Asks a question over the network of the pod.
    fn ask(&mut self, path: &Path, purpose: Purpose, within: Duration, question: Question) -> Result<u64> {
        let member = self.members.get(path).ok_or_else(|| no_container(path))?;
        let network = self.sandbox.as_ref().and_then(|sandbox| sandbox.namespace(Kind::Net));
        let keep: Vec<BorrowedFd<'_>> = network.into_iter().collect();
        let container = &member.plan.container;
        let job = Job::start(within, &keep, None, |_| {
            if let Some(network) = network {
                namespace::join(network, libc::CLONE_NEWNET).context(|| "joining the pod's network")?;
            }
            answer(&question, container, within).map(|()| Launched::default())
        })?;
        Ok(self.run_errand(path, purpose, job, None))
    }

    /// The job or the process of an errand has ended.
    pub(super) fn step_errand(&mut self, id: u64) {
        let Some(errand) = self.errands.remove(&id) else { return };
        let Errand { purpose, path, stage, deadline, is_late } = errand;
        match stage {
            Stage::Process { pidfd, .. } => {
                let ended = process::wait(pidfd.as_fd()).map_err(Error::from);
                self.conclude(&purpose, if is_late { Err(too_late()) } else { ended });
            }
            Stage::Job(job) => match job.finish::<Launched>() {
                Ok((Launched { pid: 0, exit, .. }, _)) => {
                    self.conclude(&purpose, Ok(Exit::Code(exit.into())));
                }
                Ok((Launched { pid, .. }, terminal)) => match process::pidfd(pid) {
                    Ok(pidfd) => {
                        self.tell_begun(&purpose, pid, terminal);
                        let stage = Stage::Process { pid, pidfd };
                        let mut errand = Errand { purpose, path, stage, deadline, is_late };
                        if is_late {
                            errand.kill();
                        }
                        self.errands.insert(id, errand);
                    }
                    Err(error) => self.conclude(&purpose, Err(error.into())),
                },
                Err(error) => self.conclude(&purpose, Err(if is_late { too_late() } else { error })),
            },
        }
    }

    /// What follows from how an errand ended.
    fn conclude(&mut self, purpose: &Purpose, ended: Result<Exit>) {
        let is_success = matches!(ended, Ok(Exit::Code(0)));
        let said = match &ended {
            Ok(exit) => format!("exit code {}", exit.code()),
            Err(error) => error.to_string(),
        };
        match purpose {
            Purpose::Call(client) => self.answer_exec(*client, ended),
            Purpose::Probe(path, which) => {
                let Some(member) = self.members.get_mut(path) else { return };
                let is_ready = member.health.is_ready();
                let ends = member.health.note(*which, is_success, Instant::now());
                if is_ready != member.health.is_ready() {
                    self.tell(path, if is_ready { "not-ready" } else { "ready" });
                }
                if ends {
                    self.end_unhealthy(path, &format!("its {} probe failed: {said}", which.name()));
                }
            }
            Purpose::PostStart(path) if !is_success => {
                self.end_unhealthy(path, &format!("its postStart hook failed: {said}"));
            }
            Purpose::PostStart(_) => {}
            Purpose::PreStop(path) => {
                let Some(member) = self.members.get_mut(path) else { return };
                if let Phase::Running(running) = &mut member.phase
                    && let End::Hook(deadline) = running.end
                {
                    ask_to_end(running, deadline);
                }
            }
        }
    }

    /// Ends a container that does not do what it should; its restart policy says what follows.
    fn end_unhealthy(&mut self, path: &Path, why: &str) {
        let grace = self.plan.grace;
        // What was asked of one that has ended meanwhile says nothing of the next.
        let running = self.members.get_mut(path).filter(|member| matches!(member.phase, Phase::Running(_)));
        let Some(member) = running else { return };
        member.cause = Some("Unhealthy".to_owned());
        member.warnings.push(why.to_owned());
        // Those below it end first: until then, it is asked again and again.
        member.doomed = Some(grace);
        self.end(path, grace);
    }

    pub(super) fn expire_errands(&mut self, now: Instant) {
        let late = self.errands.values_mut().filter(|errand| errand.deadline().is_some_and(|at| at <= now));
        late.for_each(Errand::kill);
    }

    /// Ends what the caller `client`, who is gone, has asked for.
    pub(super) fn end_errands_of(&mut self, client: u64) {
        self.errands.values_mut().filter(|errand| errand.is_of(client)).for_each(Errand::kill);
    }
}

pub(super) fn no_container(path: &str) -> Error {
    Error::new(Code::NotFound, format!("the pod has no container {path:?}")).hint("see coracle pod inspect")
}

fn too_late() -> Error {
    Error::new(Code::System, "it took too long")
}

fn program(args: &[String]) -> cli::Exec {
    cli::Exec { args: args.to_vec(), ..cli::Exec::default() }
}

/// The standard streams of a program that has none of a caller are nothing.
pub(super) fn set_streams(streams: Option<&Streams>) -> Result<()> {
    let Some(streams) = streams else { return Ok(descriptor::silence()?) };
    (0..).zip(&streams.fds).try_for_each(|(number, fd)| Ok(descriptor::set_stream(fd.as_fd(), number)?))
}

/// What is asked over the network.
#[derive(Debug, Clone)]
enum Question {
    Http(HttpGet),
    Tcp(Option<String>, PortRef),
    Sleep(Duration),
}

fn answer(question: &Question, container: &Container, within: Duration) -> Result<()> {
    match question {
        Question::Sleep(time) => {
            std::thread::sleep(*time);
            Ok(())
        }
        Question::Tcp(host, port) => connect(host.as_deref(), port, container, within).map(drop),
        Question::Http(get) => {
            let host = get.host.as_deref();
            let mut stream = connect(host, &get.port, container, within)?;
            http(&mut stream, get, host.unwrap_or("127.0.0.1"))
        }
    }
}

fn connect(host: Option<&str>, port: &PortRef, container: &Container, within: Duration) -> Result<TcpStream> {
    let number = match port {
        PortRef::Number(number) => *number,
        PortRef::Name(name) => {
            container.ports.iter().find(|port| port.name == *name).map_or(0, |port| port.container_port)
        }
    };
    let failed = |e: std::io::Error| Error::new(Code::System, format!("connecting to port {number}: {e}"));
    let addresses: Vec<SocketAddr> = match host {
        Some(host) => (host, number).to_socket_addrs().map_err(failed)?.collect(),
        None => vec![([127, 0, 0, 1], number).into(), (std::net::Ipv6Addr::LOCALHOST, number).into()],
    };
    let mut last = Error::new(Code::System, format!("port {number} has no address"));
    for address in addresses {
        match TcpStream::connect_timeout(&address, within) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = failed(error),
        }
    }
    Err(last)
}

/// The document's header fields, and ours where it has none of the name.
fn request(get: &HttpGet, host: &str) -> String {
    let given = |name: &str| get.http_headers.iter().any(|field| field.name.eq_ignore_ascii_case(name));
    let ours = [("Host", host), ("Connection", "close"), ("User-Agent", "coracle")];
    let ours = ours.into_iter().filter(|(name, _)| !given(name));
    let theirs = get.http_headers.iter().map(|field| (&*field.name, &*field.value));
    let fields: String = ours.chain(theirs).map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    format!("GET {} HTTP/1.1\r\n{fields}\r\n", get.target())
}

/// Success is a status from 200 to 399, as for Kubernetes.
fn http(stream: &mut TcpStream, get: &HttpGet, host: &str) -> Result<()> {
    let failed = |e: std::io::Error| Error::new(Code::System, format!("asking by HTTP: {e}"));
    stream.write_all(request(get, host).as_bytes()).map_err(failed)?;
    let mut head = [0; 64];
    let mut length = 0;
    while length < head.len() && !head[..length].contains(&b'\n') {
        match stream.read(&mut head[length..]).map_err(failed)? {
            0 => break,
            more => length += more,
        }
    }
    let line = String::from_utf8_lossy(&head[..length]).into_owned();
    let status: Option<u16> = line.split(' ').nth(1).and_then(|status| status.trim().parse().ok());
    match status.filter(|_| line.starts_with("HTTP/1.")) {
        Some(200..400) => Ok(()),
        Some(status) => Err(Error::new(Code::System, format!("HTTP status {status}"))),
        None => Err(Error::new(Code::System, "the answer is no HTTP")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_fields_of_the_document_take_the_places_of_ours() {
        let text =
            r#"{"port": 80, "path": "/up", "httpHeaders": [{"name": "host", "value": "web.example"}]}"#;
        let get: HttpGet = serde_json::from_str(text).unwrap();
        let wanted =
            "GET /up HTTP/1.1\r\nConnection: close\r\nUser-Agent: coracle\r\nhost: web.example\r\n\r\n";
        assert_eq!(request(&get, "127.0.0.1"), wanted);
    }
}
