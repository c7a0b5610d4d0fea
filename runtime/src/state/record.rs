//! What is known of a container: who it is, how far it has come, what must be undone.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use coracle_isolator::Kind;
use coracle_sys::process::Child;
use coracle_sys::{Errno, event, process};
use oci_spec::runtime::LinuxDeviceCgroup;
use serde::{Deserialize, Serialize};

use crate::cgroup::{Place, Tree};
use crate::error::{Code, Error, Result};
use crate::stages::spec::SPEC_VERSION;

/// How far a container has come, as its creator wrote down. Whether it still lives is asked of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// It is being made.
    Creating,
    /// CRIU is making it again, and may have made processes that are not on record yet.
    Restoring,
    /// Its first process waits for `start`.
    Created,
    /// Its first process executes the user's program.
    Running,
}

/// The status of a container as the runtime specification names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// It is being made.
    Creating,
    /// Its first process waits for `start`.
    Created,
    /// Its first process executes the user's program.
    Running,
    /// All of its processes are frozen.
    Paused,
    /// Its first process has ended.
    Stopped,
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        })
    }
}

/// A process, named for good: a PID is used again, a PID with its start time is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Its PID, in the namespace of the runtime.
    pub pid: i32,
    /// When it started, in clock ticks since boot.
    pub start_time: u64,
    /// The number that only its descriptors have ([`process::inode`]), where procfs may be hidden from who asks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inode: Option<u64>,
}

impl Process {
    /// The process `pid` as it is now.
    ///
    /// # Errors
    /// `NotFound` where it is gone.
    pub fn now(pid: i32) -> Result<Self> {
        Ok(Self { pid, start_time: process::status(pid)?.start_time, inode: None })
    }

    /// The process `child`, which with `is_users` may be a user's without privilege: a procfs with `hidepid` shows that what it may
    /// dump alone, and a child of the runtime it may not.
    ///
    /// # Errors
    /// As [`Self::now`].
    pub fn of(child: &Child, is_users: bool) -> Result<Self> {
        let inode = if is_users { process::inode(child.pidfd.as_fd())? } else { None };
        Ok(Self { inode, ..Self::now(child.pid)? })
    }

    /// Whether it lives; a zombie doesn't, unless only its first thread has ended.
    pub fn is_alive(&self) -> bool {
        match process::status(self.pid) {
            // Gone, or hidden: who can't be told apart from it must not be taken for gone.
            Err(e) if e.errno() == Errno::ENOENT => !matches!(self.find(), Ok(None)),
            status => status.is_ok_and(|status| self.is_living(&status)),
        }
    }

    /// A descriptor of this very process; `None` where it is gone, or can't be asked for.
    pub fn open(&self) -> Option<OwnedFd> {
        self.find().ok().flatten()
    }

    /// The same for who must not take one for gone that can't be asked for.
    ///
    /// # Errors
    /// `EMFILE`, `ENOMEM`; `System` where procfs hides one of the caller's processes that may be it.
    pub fn find(&self) -> Result<Option<OwnedFd>> {
        let is_gone = |e: &coracle_sys::Error| matches!(e.errno(), Errno::ESRCH | Errno::ENOENT);
        let pidfd = match process::pidfd(self.pid) {
            Err(e) if is_gone(&e) => return Ok(None),
            pidfd => pidfd?,
        };
        // Asked after opening: if it still has the start time now, the descriptor can't be another's.
        match process::status(self.pid) {
            Err(e) if e.errno() == Errno::ENOENT => self.find_hidden(pidfd),
            Err(e) if is_gone(&e) => Ok(None),
            status => Ok(self.is_living(&status?).then_some(pidfd)),
        }
    }

    /// procfs has no process of this number, but `pidfd` was opened: it has gone meanwhile, or is not shown (`hidepid`, proc(5)).
    fn find_hidden(&self, pidfd: OwnedFd) -> Result<Option<OwnedFd>> {
        match process::signal(pidfd.as_fd(), 0) {
            // One that is the caller's can be signalled: the number is another's now.
            Err(e) if matches!(e.errno(), Errno::ESRCH | Errno::EPERM) => return Ok(None),
            asked => asked?,
        }
        if event::readable(&[pidfd.as_fd()], Some(Duration::ZERO))? == [true] {
            return Ok(None);
        }
        if let (Some(own), Some(found)) = (self.inode, process::inode(pidfd.as_fd())?) {
            return Ok((own == found).then_some(pidfd));
        }
        Err(Error::new(Code::System, format!("/proc does not show process {}, which lives", self.pid))
            .hint("it is mounted with hidepid: mount it without, or end that process yourself"))
    }

    fn is_living(&self, status: &process::Status) -> bool {
        let has_ended = matches!(status.state, 'Z' | 'X') && status.threads <= 1;
        status.start_time == self.start_time && !has_ended
    }

    /// Kills it and waits, at most ten seconds, until it is gone. `freed` is called when it has been signalled, to
    /// take away what keeps it from dying.
    ///
    /// # Errors
    /// `System` where it waits for the kernel and does not die.
    pub fn kill(&self, freed: impl FnOnce()) -> Result<()> {
        let Some(pidfd) = self.find()? else { return Ok(()) };
        match process::signal(pidfd.as_fd(), libc::SIGKILL) {
            Err(e) if e.errno() != Errno::ESRCH => return Err(e.into()),
            _ => freed(),
        }
        if event::readable(&[pidfd.as_fd()], Some(Duration::from_secs(10)))? == [true] {
            return Ok(());
        }
        Err(Error::new(Code::System, format!("process {} can't be killed", self.pid))
            .hint("it waits for the kernel; try again when what it waits for has come"))
    }
}

/// A mount that was added to a container while it ran.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Added {
    /// Where, below the container's root, by the name that was asked for.
    pub path: PathBuf,
    /// Its number (`STATX_MNT_ID`): whatever goes by the name later may be another.
    pub mount: u64,
}

/// The annotation of a state that tells what optional isolators failed with.
const WARNINGS: &str = "io.coracle.warnings";

/// A container's record.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Record {
    /// The container's ID.
    pub id: String,
    /// The version of the runtime specification that its configuration names.
    pub oci_version: String,
    /// The absolute path of its bundle.
    pub bundle: PathBuf,
    /// The absolute path of its root file system.
    pub rootfs: PathBuf,
    /// When it was made, as RFC 3339 writes it, in UTC.
    pub created: String,
    /// The annotations of its configuration.
    pub annotations: HashMap<String, String>,
    /// How far it has come.
    pub phase: Phase,
    /// Its first process, once there is one.
    pub process: Option<Process>,
    /// Its cgroups. Written before they are made.
    pub cgroup: Option<Place>,
    /// The isolators whose `prepare` is about to be called: those to clean up.
    pub isolators: Vec<String>,
    /// What optional isolators failed with when it was launched.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// Whether `pause` was asked for, so that the kernel is to be asked whether it is frozen.
    #[serde(default)]
    pub paused: bool,
    /// The rules of devices that isolators gave it: its configuration does not name them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub device_rules: Vec<LinuxDeviceCgroup>,
    /// For a container in the runtime's own mount namespace, where its mounts don't end with it: the number of the
    /// mount that its root file system lies on, over which they are made.
    #[serde(default)]
    pub mounts_over: Option<u64>,
    /// Which mount that was, once it is made.
    #[serde(default)]
    pub mounted: Option<String>,
    /// What `mounts add` has mounted in it since, in that order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub added: Vec<Added>,
    /// The image store that its snapshot is mounted from, for a container that was run from an image.
    pub store: Option<PathBuf>,
    /// For a debug container, the command by which somebody looks into another, which it must not outlive.
    #[serde(default)]
    pub client: Option<Process>,
    /// Whether it is a member of a pod.
    #[serde(default)]
    pub is_nested: bool,
    /// Whether there may be containers below it (`web/debug-1`), which go before it.
    #[serde(default)]
    pub has_children: bool,
    /// Whether isolators may have something beside it that is to be started again where it was killed. Earlier versions did
    /// not write it down.
    #[serde(default = "is_unknown")]
    pub has_beside: bool,
}

fn is_unknown() -> bool {
    true
}

impl Record {
    /// The record of a container of which nothing is known but its ID and the image store that it comes from.
    pub fn new(id: &str, store: Option<&Path>) -> Self {
        Self {
            id: id.to_owned(),
            oci_version: SPEC_VERSION.to_owned(),
            bundle: PathBuf::new(),
            rootfs: PathBuf::new(),
            created: crate::time::now(),
            annotations: HashMap::new(),
            phase: Phase::Creating,
            process: None,
            cgroup: None,
            isolators: Vec::new(),
            warnings: Vec::new(),
            paused: false,
            device_rules: Vec::new(),
            mounts_over: None,
            mounted: None,
            added: Vec::new(),
            store: store.map(Path::to_owned),
            client: None,
            is_nested: false,
            has_children: false,
            has_beside: false,
        }
    }

    /// What kind of container it is to isolators.
    pub fn kind(&self) -> Kind {
        match self.client {
            Some(_) => Kind::Debug,
            None if self.is_nested => Kind::Nested,
            None => Kind::Oci,
        }
    }

    /// Whether its launch was cut off, or whoever it was for is gone: nobody else will remove it.
    pub fn is_orphan(&self) -> bool {
        matches!(self.phase, Phase::Creating | Phase::Restoring)
            || self.client.is_some_and(|client| !client.is_alive())
    }

    /// Its status now. The freezer is asked only where the container was paused.
    pub fn status(&self) -> Status {
        match (self.phase, self.process) {
            (Phase::Creating | Phase::Restoring, None) => Status::Creating,
            (_, Some(process)) if process.is_alive() => match self.phase {
                Phase::Creating | Phase::Restoring => Status::Creating,
                _ if self.paused && self.is_frozen() => Status::Paused,
                Phase::Created => Status::Created,
                Phase::Running => Status::Running,
            },
            _ => Status::Stopped,
        }
    }

    /// Its cgroups, opened; an empty tree where it has none.
    ///
    /// # Errors
    /// Whatever opening says but that one is gone.
    pub fn cgroups(&self) -> Result<Tree> {
        self.cgroup.as_ref().map_or_else(|| Ok(Tree::none()), Place::open)
    }

    fn is_frozen(&self) -> bool {
        self.cgroups().and_then(|tree| tree.is_freezing()).unwrap_or(false)
    }

    /// Kills its first process and waits until it is gone.
    ///
    /// # Errors
    /// As [`Process::kill`].
    pub fn kill_first(&self) -> Result<()> {
        let Some(first) = self.process else { return Ok(()) };
        first.kill(|| {
            if let Some(Ok(tree)) = self.cgroup.as_ref().map(|place| place.open()) {
                tree.thaw_to_die();
            }
        })
    }

    /// The state that the runtime specification defines, with the fields that runc adds.
    pub fn to_state(&self) -> serde_json::Value {
        serde_json::to_value(self.told()).unwrap_or_default()
    }

    /// The same, with its members in runc's order, which is what scripts match.
    pub fn told(&self) -> Told<'_> {
        let status = self.status();
        let pid = match (status, self.process) {
            (Status::Stopped, _) | (_, None) => 0,
            (_, Some(process)) => process.pid,
        };
        let mut annotations = self.annotations.clone();
        if !self.warnings.is_empty() {
            annotations.insert(WARNINGS.to_owned(), self.warnings.join("; "));
        }
        Told {
            oci_version: &self.oci_version,
            id: &self.id,
            pid,
            status,
            bundle: &self.bundle,
            rootfs: &self.rootfs,
            created: &self.created,
            annotations,
            owner: String::new(),
        }
    }
}

/// What is told of a container.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Told<'a> {
    oci_version: &'a str,
    id: &'a str,
    pid: i32,
    status: Status,
    bundle: &'a Path,
    rootfs: &'a Path,
    created: &'a str,
    annotations: HashMap<String, String>,
    /// The name of the user whose container it is; empty where nobody has looked it up.
    pub owner: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_not_another_with_its_pid() {
        let own = Process::now(std::process::id() as i32).unwrap();
        assert!(own.is_alive());
        let earlier = Process { start_time: own.start_time - 1, ..own };
        assert!(!earlier.is_alive());
        assert!(earlier.open().is_none());
    }
}
