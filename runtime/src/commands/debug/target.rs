//! Whom a session looks into.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use coracle_sys::file;
use coracle_sys::process;
use serde_json::{Value, json};

use super::foreign;
use crate::cgroup::Place;
use crate::cli::{Global, Wanted};
use crate::error::{Code, Context, Error, Result};
use crate::pod::record::Directory;
use crate::stages::reach::{Reach, Reached, reach};
use crate::state::record::Process;
use crate::state::{self, Record, State, Status};

/// Files of the target that a session with files of its own needs: they say how names become addresses.
const FILES: [&str; 2] = ["etc/hosts", "etc/resolv.conf"];

/// The kinds of namespaces (`CLONE_NEW*`), and what procfs calls them.
const KINDS: [(&str, i32); 7] = [
    ("user", libc::CLONE_NEWUSER),
    ("pid", libc::CLONE_NEWPID),
    ("net", libc::CLONE_NEWNET),
    ("ipc", libc::CLONE_NEWIPC),
    ("uts", libc::CLONE_NEWUTS),
    ("time", libc::CLONE_NEWTIME),
    ("cgroup", libc::CLONE_NEWCGROUP),
];

/// What is looked into, as it was found.
pub(super) struct Target {
    /// The container that it is, or that it is taken for (`pid-7`): the first part of the session's ID.
    pub(super) name: String,
    /// Its first process; none where that has ended.
    pub(super) first: Option<First>,
    /// Its configuration; of another runtime's as far as the process shows it.
    pub(super) config: Value,
    /// Its bundle.
    pub(super) bundle: PathBuf,
    /// The directory of its root file system, where it has ended; else only a name for it.
    pub(super) rootfs: PathBuf,
    /// Its cgroups, where it is a container of this runtime.
    pub(super) cgroup: Option<Place>,
}

/// A process that runs.
pub(super) struct First {
    /// Who it is.
    pub(super) process: Process,
    pidfd: OwnedFd,
    /// The kinds of namespaces that are others than the runtime's own.
    pub(super) kinds: i32,
    /// Its files.
    pub(super) reach: Reach,
}

impl First {
    pub(super) fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    fn open(process: Process) -> Result<Self> {
        let ended = || Error::new(Code::NotFound, format!("process {} has ended", process.pid));
        let pidfd = process.open().ok_or_else(ended)?;
        let kinds = other_kinds(process.pid)?;
        let reach = reach(Reached { pid: process.pid, pidfd: pidfd.as_fd() }, &FILES)?;
        // Asked last: what was read above is this very process's.
        process::signal(pidfd.as_fd(), 0).map_err(|_| ended())?;
        Ok(Self { process, pidfd, kinds, reach })
    }
}

impl Target {
    /// Finds whom `wanted` means, and opens its files.
    ///
    /// # Errors
    /// `NotFound`; `IllegalState` for a container that is still being made.
    pub(super) fn find(global: &Global, wanted: &Wanted) -> Result<Self> {
        match wanted {
            Wanted::Container(id) => container(global, id),
            Wanted::Process(pid) => foreign_process(*pid).context(|| format!("--pid {pid}")),
        }
    }

    /// Whether its process runs, where it had one when it was found.
    pub(super) fn has_ended(&self) -> bool {
        self.first.as_ref().is_some_and(|first| !first.process.is_alive())
    }
}

/// The state of container `id`, or of the member of a pod that it names (`web/nginx`).
fn state_of(global: &Global, id: &str) -> Result<State> {
    let missing = match State::open_unlocked(&global.root, id) {
        Err(e) if e.code() == Code::NotFound => e,
        found => return found,
    };
    let Some((pod, path)) = id.split_once('/') else { return Err(missing) };
    let (states, name) = Directory::open(&global.root, pod).map_err(|_| missing)?.states(path);
    State::open_unlocked(&states, &name).map_err(|e| e.doing(format!("looking in pod {pod:?}")))
}

fn container(global: &Global, id: &str) -> Result<Target> {
    let state = state_of(global, id)?;
    let record = state.record()?.filter(|record| record.status() != Status::Creating).ok_or_else(|| {
        Error::new(Code::IllegalState, format!("container {id:?} is still being made"))
            .hint("with --pid its first process can be looked into, once it has one")
    })?;
    let config = serde_json::from_slice(&state.config()?)
        .map_err(|e| Error::new(Code::System, format!("its configuration is malformed: {e}")))?;
    let first = record.process.filter(|first| first.is_alive()).map(First::open).transpose()?;
    let Record { bundle, rootfs, cgroup, .. } = record;
    Ok(Target { name: id.to_owned(), first, config, bundle, rootfs, cgroup })
}

fn foreign_process(pid: i32) -> Result<Target> {
    let process = Process::now(pid).map_err(|_| Error::new(Code::NotFound, "there is no such process"))?;
    let first = First::open(process)?;
    let config = foreign::config(pid, first.kinds)?;
    process::signal(first.pidfd(), 0)?;
    Ok(Target {
        name: format!("pid-{pid}"),
        first: Some(first),
        config,
        bundle: PathBuf::from("/"),
        rootfs: PathBuf::from(format!("/proc/{pid}/root")),
        cgroup: None,
    })
}

/// The kinds of namespaces in which process `pid` is in others than the runtime.
fn other_kinds(pid: i32) -> Result<i32> {
    let (own, its) = (file::open_dir("/proc/self/ns")?, file::open_dir(format!("/proc/{pid}/ns"))?);
    KINDS.iter().try_fold(0, |kinds, (name, kind)| {
        // A kernel that lacks a kind has no file for it.
        let Ok(own) = file::read_link(own.as_fd(), name) else { return Ok(kinds) };
        let is_other = file::read_link(its.as_fd(), name)? != own;
        Ok(if is_other { kinds | kind } else { kinds })
    })
}

/// The namespaces of the kinds `kinds` of process `pid`, as a configuration names them.
pub(super) fn namespaces(pid: i32, kinds: i32) -> Vec<Value> {
    let joined = KINDS.iter().filter(|(_, kind)| kinds & kind != 0);
    joined
        .map(|(file, kind)| {
            let name = crate::stages::plan::namespaces::name_of(*kind);
            json!({"type": name, "path": format!("/proc/{pid}/ns/{file}")})
        })
        .collect()
}

/// Where the cgroup of session `id` goes: beside the target's own and named after it, so that the limits above it hold
/// for both, and what one uses is not the other's.
pub(super) fn cgroup_beside(target: &Target, id: &str, by_systemd: bool) -> String {
    let last = id.rsplit('/').next().unwrap_or(id);
    let name = state::name(id).replace('~', ".");
    let unit = target.cgroup.as_ref().and_then(|place| place.unit.as_ref());
    let path = target.cgroup.as_ref().and_then(|place| place.at.first()).map(|site| &site.path);
    match (by_systemd, unit, path) {
        (true, Some(unit), _) => unit.beside(last),
        (true, None, _) => format!(":coracle:{name}"),
        (false, _, Some(path)) => format!("/{}.{last}", path.display()),
        (false, _, None) => format!("/{name}"),
    }
}
