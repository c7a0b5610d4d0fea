//! How a supervisor begins: for a new pod, and in the place of one that died.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use coracle_sys::{Errno, descriptor, file, process, signal, socket};

use super::member::{End, Member, Phase, Running};
use super::{Path, Supervisor};
use crate::cli::Global;
use crate::error::{Code, Context, Error, Result};
use crate::isolators;
use crate::pod::document::{Pod, RestartPolicy};
use crate::pod::host;
use crate::pod::launch;
use crate::pod::logs::{Log, Stream};
use crate::pod::network::Networks;
use crate::pod::node;
use crate::pod::plan::{self, Plan, Role};
use crate::pod::record::{self, Directory, Record, SOCKET, Wish};
use crate::pod::sandbox::Sandbox;
use crate::pod::users;
use crate::pod::varlink::listener::Listener;
use crate::stages::spec;
use crate::state::{self, State};
use crate::time;

/// How long a supervisor may take to listen.
const READY: Duration = Duration::from_secs(10);

/// What the starter of a supervisor answers when that has said that it listens.
const HEARD: &[u8] = b"heard";

/// What a caller says beside the document of a pod that is to be made.
#[derive(Debug, Clone)]
pub struct Beside {
    /// Where its images are.
    pub store: PathBuf,
    /// The node of the tree that it stands below.
    pub parent: Option<String>,
    /// Whether its users are not the host's.
    pub own_users: bool,
    /// Its networks, as its annotation would name them.
    pub network: Option<String>,
}

/// Makes the pod that `document` describes, and starts its supervisor. The calling process must be the protected image
/// of the runtime.
///
/// # Errors
/// `InvalidSpec`, `Exists`; then nothing is left.
pub fn begin(global: &Global, mut document: Pod, beside: Beside) -> Result<()> {
    host::check_open(&global.root)?;
    let Beside { store, parent, own_users, network } = beside;
    if own_users || node::wants_own_users(&global.root, parent.as_deref())? {
        document.give_own_users()?;
    }
    Networks::new(global)?.settle(&mut document, network)?;
    let wish = plan::Wish { cgroups: global.cgroups, parent: parent.as_deref() };
    let mut plan = plan::plan(&document, &wish)?;
    let kept_nodes = parent.as_deref().map_or(Ok(0), |p| node::kept(&global.root, p, plan.nodes_there()))?;
    plan.keep_nodes(kept_nodes);
    let dir = Directory::create(&global.root, &plan.name)?;
    let record = Record {
        document,
        created: time::now(),
        wish: Wish::Created,
        started: None,
        supervisor: None,
        keeper: None,
        cgroup: None,
        store,
        parent,
        users: None,
        networks: None,
        kept_nodes,
        resources: None,
        message: None,
    };
    let name = plan.name.clone();
    let begun = dir.lock().and_then(|_| write(global, &dir, record));
    let begun = begun.and_then(|record| spawn(global, dir, record, plan));
    begun.inspect_err(|_| drop(give_up(&global.root, &name)))
}

/// Removes a pod that could not begin, once nobody looks after it: a supervisor that has not been heard ends.
fn give_up(root: &std::path::Path, name: &str) -> Result<()> {
    let dir = Directory::open(root, name)?;
    let end = Instant::now() + READY;
    while !dir.lock()? {
        if Instant::now() > end {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    dir.remove()
}

/// Writes the record of a new pod, with the IDs that its users get, where they are not the host's.
fn write(global: &Global, dir: &Directory, mut record: Record) -> Result<Record> {
    if record.document.spec.host_users == Some(false) {
        users::choose(&global.root, |range| {
            record.users = Some(range);
            dir.write(&record)
        })?;
    } else {
        dir.write(&record)?;
    }
    Ok(record)
}

/// Starts another supervisor for the pod in `dir` where none lives; true where it did.
///
/// # Errors
/// What keeps it from starting.
pub fn adopt(global: &Global, dir: Directory) -> Result<bool> {
    if !dir.lock()? {
        return Ok(false);
    }
    let Some(record) = dir.record()? else {
        // Its maker died before it had made anything.
        dir.remove()?;
        return Ok(false);
    };
    let wish = plan::Wish { cgroups: global.cgroups, parent: record.parent.as_deref() };
    let mut plan = plan::plan(&record.document, &wish)?;
    plan.keep_nodes(record.kept_nodes);
    if let Some(resources) = &record.resources {
        plan.resources = plan::resources(resources);
    }
    // Whoever has made its cgroups is not asked again.
    plan.cgroup = record.cgroup.clone().or(plan.cgroup);
    spawn(global, dir, record, plan)?;
    Ok(true)
}

fn no_directory() -> Error {
    Error::new(Code::System, "the working directory is gone")
}

/// Forks the supervisor of the pod in `dir`, whose lock the caller has taken and it takes over, and waits until it
/// listens.
fn spawn(global: &Global, dir: Directory, record: Record, plan: Plan) -> Result<()> {
    // The supervisor stands in another directory than its caller.
    let absolute = |path: &PathBuf| std::path::absolute(path).map_err(|_| no_directory());
    let global =
        &Global { root: absolute(&global.root)?, config: absolute(&global.config)?, ..global.clone() };
    let (mine, theirs) = socket::pair()?;
    let keep: Vec<i32> = dir.descriptors().into_iter().chain([theirs.as_raw_fd()]).collect();
    // Twice, so that it is nobody's child: the caller does not wait for it.
    let between = process::spawn(0, None, || {
        let _ = descriptor::close_all_but(&keep);
        let spawned = process::spawn(0, None, || supervise(global, dir, (record, plan), theirs));
        i32::from(spawned.is_err())
    })?;
    process::wait(between.pidfd.as_fd())?;
    let died = || Error::new(Code::System, "the pod's supervisor did not start");
    if coracle_sys::event::readable(&[mine.as_fd()], Some(READY))? != [true] {
        return Err(died());
    }
    let (told, _) = socket::receive(mine.as_fd(), 64 << 10)?.ok_or_else(died)?;
    serde_json::from_slice::<Result<()>>(&told).map_err(|_| died())??;
    Ok(socket::send(mine.as_fd(), HEARD, &[])?)
}

/// The life of a supervisor. Returns its exit code.
fn supervise(global: &Global, dir: Directory, (record, plan): (Record, Plan), starter: OwnedFd) -> i32 {
    let settled = settle().and_then(|()| Supervisor::new(global, dir, record, plan));
    let (told, supervisor) = match settled {
        Ok(supervisor) => (Ok(()), Some(supervisor)),
        Err(error) => (Err(error.cut(1000)), None),
    };
    let text = serde_json::to_vec::<Result<()>>(&told).unwrap_or_default();
    let is_heard =
        socket::send(starter.as_fd(), &text, &[]).and_then(|()| socket::receive(starter.as_fd(), 64));
    drop(starter);
    match supervisor {
        // Who has not heard of it says that there is no pod.
        Some(supervisor) if is_heard.is_ok_and(|heard| heard.is_some()) => {
            i32::from(supervisor.run().is_err())
        }
        _ => 1,
    }
}

/// Leaves what was the starter's.
fn settle() -> Result<()> {
    process::new_session()?;
    process::become_subreaper()?;
    coracle_sys::namespace::change_dir(std::path::Path::new("/"))?;
    descriptor::silence()?;
    Ok(())
}

impl Supervisor {
    fn new(global: &Global, dir: Directory, record: Record, plan: Plan) -> Result<Self> {
        let signals = signal::signal_fd()?;
        match file::unlink(dir.fd(), SOCKET) {
            Err(e) if e.errno() != Errno::ENOENT => return Err(e.into()),
            _ => {}
        }
        let listener = socket::listen_stream(dir.fd(), SOCKET).context(|| "making the pod's socket")?;
        let record = record.supervised()?;
        // Whoever adopts a pod on a full disk only can't be named there.
        let trouble = dir.write(&record).err().map(|error| error.to_string());
        let ago = record.started.map(|at| time::since_start().saturating_sub(at));
        let started = ago.and_then(|ago| Instant::now().checked_sub(ago));
        let global = Global { log: None, debug: false, ..global.clone() };
        let mut supervisor = Self {
            sandbox: Sandbox::adopt(&dir, &record, &plan)?,
            isolators: isolators::all(&global)?,
            members: BTreeMap::new(),
            clients: BTreeMap::new(),
            errands: BTreeMap::new(),
            measures: BTreeMap::new(),
            listener: Listener::new(listener),
            signals,
            networks: Networks::new(&global)?,
            preparing: None,
            failure: None,
            teardown: None,
            again: None,
            started: started.unwrap_or_else(Instant::now),
            grace: plan.grace,
            ends: None,
            trouble,
            leaving: false,
            unreaped: true,
            advanced: Instant::now(),
            rests: Some(Instant::now() + super::REST),
            next: 0,
            global,
            dir,
            record,
            plan,
        };
        supervisor.find_members()?;
        Ok(supervisor)
    }

    /// The containers of the document and those that came later, as they were left.
    fn find_members(&mut self) -> Result<()> {
        for plan in self.plan.members.clone() {
            let path: Path = plan.path.as_str().into();
            let life = self.dir.life(&path)?.unwrap_or_default();
            self.members.insert(path, Member::new(plan, life));
        }
        for (path, life) in self.dir.lives()? {
            let Some(container) = life.nested.clone() else { continue };
            let mut plan = plan::member(container, Role::Nested, RestartPolicy::Never);
            plan.path.clone_from(&path);
            self.members.insert(path.into(), Member::new(plan, life));
        }
        let mut held = match &self.sandbox {
            Some(sandbox) => sandbox.keeper.held()?,
            None => BTreeMap::new(),
        };
        for path in self.members.keys().cloned().collect::<Vec<_>>() {
            self.find(&path, &mut held)?;
        }
        if self.record.wish == Wish::Run {
            self.prepare();
        }
        if self.record.wish == Wish::Run && self.sandbox.is_none() {
            self.stop(Duration::ZERO, "the supervisor and the holder of the pod's namespaces were killed");
        }
        Ok(())
    }

    /// Takes over what a former supervisor has left of the container at `path`.
    fn find(&mut self, path: &Path, held: &mut BTreeMap<String, OwnedFd>) -> Result<()> {
        let (states, name) = self.dir.states(path);
        let state = match State::open_unlocked(&states, &name) {
            Err(e) if e.code() == Code::NotFound => None,
            state => Some(state?),
        };
        let Some(member) = self.members.get_mut(path) else { return Ok(()) };
        if member.life.done {
            // What could not be removed of it goes with the pod.
            return Ok(());
        }
        let ended = member.life.ended.clone().filter(|_| member.life.removing);
        if state.is_none() && ended.is_none() {
            if member.plan.role == Role::Nested {
                // Its launch was cut off and has left nothing: whoever asked for it asks again.
                (member.phase, member.leaves) = (Phase::Over, true);
            }
            return Ok(());
        }
        take_streams(member, path, held)?;
        member.pipes.log = Some(Log::open(self.dir.logs(path)?, self.plan.logs)?);
        if let Some(ended) = ended {
            // How it ended is known, and whether anything is left of it the removal finds out.
            member.phase = Phase::Ended(Some(ended));
            return Ok(());
        }
        let stop_signal = state.as_ref().and_then(|state| launch::stop_signal(&spec::kept(state).ok()?));
        let record = state.map_or(Ok(None), |state| state.record());
        let never_ran = record.as_ref().is_ok_and(|record| {
            // Its program is let go when that is on record.
            record.as_ref().is_none_or(|record| record.phase != state::Phase::Running)
        });
        let record = record.ok().flatten();
        let pidfd = held.remove(&format!("{path}:process"));
        let process = record.as_ref().filter(|record| record.phase == state::Phase::Running);
        let process = process.and_then(|record| record.process);
        let found = process.map_or(Ok(None), |process| process.find())?;
        let living = process.map(|process| process.pid).zip(found);
        let (pid, pidfd) = match (living, pidfd) {
            (Some((pid, found)), held) => (pid, held.unwrap_or(found)),
            // It has ended, and the kernel may still know how.
            (None, Some(pidfd)) => (process.map_or(0, |process| process.pid), pidfd),
            (None, None) if never_ran => {
                member.phase = Phase::Ended(None);
                return Ok(());
            }
            (None, None) => {
                self.end_with(path, record::ended(None, &time::now()));
                return Ok(());
            }
        };
        let started = record.map_or_else(time::now, |record| record.created);
        member.health.begin(Instant::now());
        let (since, end, stop_signal) = (Instant::now(), End::No, stop_signal.unwrap_or(libc::SIGTERM));
        member.phase = Phase::Running(Running { pid, pidfd, started, since, end, stop_signal });
        Ok(())
    }
}

fn take_streams(member: &mut Member, path: &str, held: &mut BTreeMap<String, OwnedFd>) -> Result<()> {
    member.pipes.terminal = member.plan.container.tty;
    if let Some(master) = held.remove(&format!("{path}:terminal")) {
        return member.take_terminal(master);
    }
    member.pipes.input = held.remove(&format!("{path}:stdin"));
    for stream in [Stream::Stdout, Stream::Stderr] {
        if let Some(output) = held.remove(&format!("{path}:{}", stream.name())) {
            member.pipes.outputs.push((stream, output));
        }
    }
    Ok(())
}
