//! `metrics/statsd`: an endpoint of StatsD's for each container.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use coracle_isolator::{Adjustment, Config, Error, Handles, Isolator, Kind, Result, States, known, pointer};
use coracle_sys::file::{self, CWD, Resolve};
use coracle_sys::{Errno, descriptor, event, namespace, socket};
use nix::libc;
use oci_spec::runtime::{LinuxNamespaceType, Spec};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::collector::{self, END, Held, PATIENCE, TELL};
use crate::failed;
use crate::series::{Family, Limits};

/// The annotation by which a container asks for an endpoint: `true`; `false` where all others get one.
pub const ANNOTATION: &str = "io.coracle.statsd";

/// StatsD's port.
const PORT: u16 = 8125;

/// Where collectors are asked, in the directory of states.
const DIRECTORY: &str = ".metrics";

/// The longest answer of a collector, in bytes. It is bounded by what a collector keeps.
const LONGEST: u64 = 64 << 20;

/// Tells each process of a container where to send what it measures (`STATSD_UDP_HOST`, `STATSD_UDP_PORT`), and keeps what
/// it sends, bounded, for whoever asks.
///
/// The address is one of the loopback network, made of the container's ID: it is known before there is a network
/// namespace, and those who share one, the host's too, are told apart by it. A process of its own holds the socket.
#[derive(Debug)]
pub struct Statsd {
    root: PathBuf,
    settings: Settings,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Settings {
    /// Whether a container gets an endpoint that does not ask for one.
    all: bool,
    /// What is kept of each container.
    limits: Limits,
}

/// What a container's programs have told.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Told {
    /// The container.
    pub id: String,
    /// Whether it lives.
    pub is_alive: bool,
    /// What was measured, and how much of it was refused.
    pub families: Vec<Family>,
}

impl Told {
    pub(crate) fn new(id: &str, is_alive: bool, families: Vec<Family>) -> Self {
        Self { id: id.to_owned(), is_alive, families }
    }
}

impl Statsd {
    /// For containers whose states lie in `root`.
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned(), settings: Settings::default() }
    }

    /// What the programs of all containers have told that are not removed yet.
    ///
    /// # Errors
    /// Where the collectors can't be found.
    pub fn told(&self) -> Result<Vec<Told>> {
        let Some(dir) = self.open()? else { return Ok(Vec::new()) };
        let mut names = file::list(dir.as_fd()).map_err(failed)?;
        names.sort_unstable();
        // One that was removed meanwhile, or was killed, tells nothing.
        let names = names.iter().filter_map(|name| name.to_str());
        Ok(names.filter_map(|name| ask(dir.as_fd(), name).ok().flatten()).collect())
    }

    fn open(&self) -> Result<Option<OwnedFd>> {
        match file::open(CWD, self.root.join(DIRECTORY), libc::O_DIRECTORY, 0, Resolve::Host) {
            Err(e) if e.errno() == Errno::ENOENT => Ok(None),
            dir => dir.map(Some).map_err(failed),
        }
    }

    /// Where the container `id` is to send what it measures.
    fn address(&self, id: &str) -> Ipv4Addr {
        let [a, b, c, ..] = known::number(&self.root, id).to_be_bytes();
        // 127.0.0.0/24 is where other programs listen.
        Ipv4Addr::new(127, a.max(1), b, c.clamp(1, 254))
    }

    /// The name of a container's socket.
    fn name_of(&self, id: &str) -> String {
        format!("{:016x}", known::number(&self.root, id))
    }

    /// What makes a process of the container `id` find the endpoint.
    fn variables(&self, id: &str) -> [String; 2] {
        [format!("STATSD_UDP_HOST={}", self.address(id)), format!("STATSD_UDP_PORT={PORT}")]
    }

    fn is_wanted(&self, config: &Config<'_>) -> Result<bool> {
        let annotations = config.spec.annotations().as_ref();
        match annotations.and_then(|annotations| annotations.get(ANNOTATION)).map(String::as_str) {
            Some("true") => Ok(true),
            Some("false") => Ok(false),
            Some(other) => Err(Error::new(format!("{other:?} is neither true nor false"))
                .at(pointer("/annotations", ANNOTATION))),
            None => Ok(self.settings.all && config.kind != Kind::Debug),
        }
    }

    /// Starts the collector of the container whose first process is `first`.
    fn begin(&self, container: &Handles<'_>, first: BorrowedFd<'_>, network: Network<'_>) -> Result<()> {
        let (datagrams, listener) = self.listen(container.id, network)?;
        let held = Held { datagrams, listener, first };
        collector::start(container.id, held, self.settings.limits).map_err(failed)
    }

    /// Listens for the container `id`, in its network namespace; and for those who ask what it has told.
    fn listen(&self, id: &str, network: Network<'_>) -> Result<(OwnedFd, OwnedFd)> {
        let address = SocketAddrV4::new(self.address(id), PORT);
        let datagrams = network
            .make(|| socket::datagrams(address))
            .map_err(|e| failed(e).on_path(format!("network namespace of container {id:?}")))?;
        let root = file::open_dir(&self.root).map_err(failed)?;
        loop {
            let made = file::mkdir_all_no_links(root.as_fd(), DIRECTORY, 0o700)
                .and_then(|dir| socket::listen_stream(dir.as_fd(), &self.name_of(id)));
            match made {
                // Another container's removal took the directory, which was empty.
                Err(e) if e.errno() == Errno::ENOENT => {}
                listener => return listener.map(|listener| (datagrams, listener)).map_err(failed),
            }
        }
    }
}

impl Isolator for Statsd {
    fn name(&self) -> &str {
        "metrics/statsd"
    }

    fn configure(&mut self, options: &Map<String, Value>) -> Result<()> {
        let settings = serde_json::from_value(Value::Object(options.clone()));
        self.settings = settings.map_err(|e| Error::new(e.to_string()))?;
        Ok(())
    }

    fn recover(&self, found: &States) -> Result<()> {
        let Some(dir) = self.open()? else { return Ok(()) };
        let known: Vec<String> = found.states.iter().map(|state| self.name_of(&state.id)).collect();
        for name in file::list(dir.as_fd()).map_err(failed)? {
            let Some(name) = name.to_str().filter(|name| !known.iter().any(|known| known == name)) else {
                continue;
            };
            // Pods know containers that are not told of here.
            if !ask(dir.as_fd(), name)?.is_some_and(|told| told.is_alive) {
                end(dir.as_fd(), name)?;
            }
        }
        self.tidy();
        Ok(())
    }

    fn process(&self, config: &Config<'_>) -> Result<Adjustment> {
        let mut adjustment = Adjustment::default();
        if self.is_wanted(config)? {
            adjustment.process.env.extend(self.variables(config.id));
        }
        Ok(adjustment)
    }

    fn isolate(&self, container: &Handles<'_>) -> Result<()> {
        let Some(first) = container.pidfd.filter(|_| is_told(container.spec, &self.variables(container.id)))
        else {
            return Ok(());
        };
        // Of a container of this name that was removed by force.
        self.cleanup(container.id)?;
        self.begin(container, first, Network::of(container.spec, first))
    }

    fn has_beside(&self, config: &Config<'_>) -> bool {
        is_told(config.spec, &self.variables(config.id))
    }

    fn resume(&self, container: &Handles<'_>) -> Result<()> {
        let (name, dir) = (self.name_of(container.id), self.open()?);
        // The socket's file is there also where the collector was killed.
        let is_known = |dir: &OwnedFd| file::stat_at(dir.as_fd(), &name).is_ok();
        let is_wanted =
            dir.as_ref().is_some_and(is_known) || is_told(container.spec, &self.variables(container.id));
        let Some(first) = container.pidfd.filter(|_| is_wanted) else { return Ok(()) };
        if dir.map(|dir| ask(dir.as_fd(), &name)).transpose()?.flatten().is_some() {
            return Ok(());
        }
        self.cleanup(container.id)?;
        self.begin(container, first, Network::Process(first))
    }

    fn cleanup(&self, id: &str) -> Result<()> {
        let Some(dir) = self.open()? else { return Ok(()) };
        end(dir.as_fd(), &self.name_of(id))?;
        drop(dir);
        self.tidy();
        Ok(())
    }
}

impl Statsd {
    /// Removes the directory when it is empty.
    fn tidy(&self) {
        let _ = file::open_dir(&self.root).and_then(|root| file::rmdir(root.as_fd(), DIRECTORY));
    }
}

/// Whether the final specification tells the first process where to send what it measures.
fn is_told(spec: &Spec, variables: &[String; 2]) -> bool {
    let env = spec.process().as_ref().and_then(|process| process.env().as_ref());
    env.is_some_and(|env| variables.iter().all(|variable| env.contains(variable)))
}

/// Where the network namespace of a container is to be had.
#[derive(Clone, Copy)]
enum Network<'a> {
    /// It is the runtime's own.
    Host,
    /// It lies there: the waiting process is born in its own namespaces, but joins others whenever it comes to that.
    Path(&'a Path),
    /// This process is in it.
    Process(BorrowedFd<'a>),
}

impl<'a> Network<'a> {
    /// That of a container with the specification `spec`, whose first process `first` waits.
    fn of(spec: &'a Spec, first: BorrowedFd<'a>) -> Self {
        let namespaces =
            spec.linux().as_ref().and_then(|linux| linux.namespaces().as_deref()).unwrap_or_default();
        let Some(namespace) = namespaces.iter().find(|one| one.typ() == LinuxNamespaceType::Network) else {
            return Self::Host;
        };
        let path = namespace.path().as_deref().filter(|path| !path.as_os_str().is_empty());
        path.map_or(Self::Process(first), Self::Path)
    }

    /// Makes something in it. The runtime has one thread: nothing else is opened meanwhile.
    fn make<T>(self, make: impl FnOnce() -> coracle_sys::Result<T>) -> coracle_sys::Result<T> {
        const NETWORK: i32 = libc::CLONE_NEWNET;
        let own = file::open(CWD, "/proc/self/ns/net", 0, 0, Resolve::Host)?;
        match self {
            Self::Host => return make(),
            Self::Path(path) => {
                namespace::join(file::open(CWD, path, 0, 0, Resolve::Host)?.as_fd(), NETWORK)?;
            }
            Self::Process(process) => namespace::join(process, NETWORK)?,
        }
        let made = make();
        namespace::join(own.as_fd(), NETWORK)?;
        made
    }
}

/// What the collector `name` has; nothing where it is gone.
fn ask(dir: BorrowedFd<'_>, name: &str) -> Result<Option<Told>> {
    let Some(caller) = say(dir, name, TELL)? else { return Ok(None) };
    let text = descriptor::set_nonblocking(caller.as_fd())
        .and_then(|()| file::read_pipe(caller.as_fd(), LONGEST, PATIENCE))
        .map_err(failed)?;
    let told = serde_json::from_slice(&text);
    told.map(Some).map_err(|e| Error::new(format!("what a collector tells is malformed: {e}")))
}

/// Ends the collector `name`, and forgets it. One that is gone is no failure.
fn end(dir: BorrowedFd<'_>, name: &str) -> Result<()> {
    if let Some(caller) = say(dir, name, END)? {
        // It is gone when the connection ends.
        let ended = event::readable(&[caller.as_fd()], Some(PATIENCE)).map_err(failed)?;
        if ended != [true] {
            return Err(Error::new("the process that takes what the container measures does not end"));
        }
    }
    match file::unlink(dir, name) {
        Err(e) if e.errno() != Errno::ENOENT => Err(failed(e)),
        _ => Ok(()),
    }
}

fn say(dir: BorrowedFd<'_>, name: &str, word: u8) -> Result<Option<OwnedFd>> {
    let caller = match socket::connect_stream(&socket::in_dir(dir, name)) {
        Err(e) if matches!(e.errno(), Errno::ENOENT | Errno::ECONNREFUSED) => return Ok(None),
        caller => caller.map_err(failed)?,
    };
    match socket::send(caller.as_fd(), &[word], &[]) {
        Err(e) if e.errno() == Errno::EPIPE => Ok(None),
        sent => sent.map(|()| Some(caller)).map_err(failed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_container_has_an_address_of_its_own_on_the_loopback_network() {
        let statsd = Statsd::new(Path::new("/run/coracle"));
        let address = statsd.address("web");
        assert!(address.is_loopback() && address.octets()[1] > 0, "{address}");
        assert_eq!(address, statsd.address("web"));
        assert_ne!(address, statsd.address("web/nginx"));
        assert_ne!(address, Statsd::new(Path::new("/run/other")).address("web"));
    }
}
