//! A pod on disk.
//!
//! ```text
//! ROOT/.pods/NAME/            the pod; whose lock the supervisor holds for as long as it lives
//!     pod.json                who it is, what was made for it, what its supervisor is
//!     members/PATH.json       a container's restarts and its last end (`/` of the path written as `~`)
//!     containers/NAME/        a container while there is something to undo of it, as for any other
//!     containers/NAME/containers/CHILD/
//!     logs/PATH/              what it wrote
//!     api.sock keeper.sock
//! ```
//!
//! No container's ID begins with a dot, so no pod is taken for one.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use coracle_sys::archive::remove_tree;
use coracle_sys::file::{self, Resolve};
use coracle_sys::{Errno, process};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::document::{Pod, Resources};
use super::network::Attached;
use super::users::Range;
use crate::cgroup::Place;
use crate::error::{Code, Context, Error, Result};
use crate::state::record::Process;
use crate::state::{self, LONGEST};

/// Where the states of the containers of a pod are, in its directory; and in a container's, of those below it.
pub const BELOW: &str = "containers";

/// The directory of pods in the directory of states.
pub const PODS: &str = ".pods";

/// The socket of a pod's API.
pub const SOCKET: &str = "api.sock";

const RECORD: &str = "pod.json";

/// What is known of a pod.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Record {
    /// Its document.
    pub document: Pod,
    /// When it was made.
    pub created: String,
    /// Whether it is to run.
    pub wish: Wish,
    /// When it was last started, from the machine's start.
    #[serde(default)]
    pub started: Option<Duration>,
    /// Its supervisor.
    pub supervisor: Option<Process>,
    /// The holder of its namespaces.
    pub keeper: Option<Process>,
    /// Its cgroups. Written before they are made.
    pub cgroup: Option<Place>,
    /// Where its images are.
    pub store: PathBuf,
    /// The node of the tree that it stands below.
    pub parent: Option<String>,
    /// The IDs of the host that its users have, where they are not the host's.
    #[serde(default)]
    pub users: Option<Range>,
    /// How many of the nodes that it stands below must stay when it goes.
    #[serde(default)]
    pub kept_nodes: usize,
    /// What it is attached to: nothing before that is begun, an empty list until it is done.
    #[serde(default)]
    pub networks: Option<Vec<Attached>>,
    /// Its limits, where they are no longer those of its document.
    #[serde(default)]
    pub resources: Option<Resources>,
    /// Why it was ended or could not go on, where that is not its containers' doing.
    #[serde(default)]
    pub message: Option<String>,
}

/// What is to become of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Wish {
    /// It waits for `start`.
    Created,
    /// Its containers run.
    Run,
    /// Its containers end.
    Stop,
}

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ended {
    /// The exit code as shells have it; `None` where nobody saw it.
    pub exit_code: Option<i32>,
    /// The signal that ended it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// Why, in a word: `Completed`, `Error`, `OOMKilled`, `Evicted`, `LaunchFailed`, `DeadlineExceeded`, `Unhealthy`,
    /// `SandboxLost`, `Lost`.
    pub reason: String,
    /// Why, for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// When it was started.
    pub started: String,
    /// When it ended.
    pub finished: String,
}

impl Ended {
    /// Whether it did what it should: one that was ended for not doing so did not, however politely it went. Of one that lost
    /// a process for want of memory, the exit code says whether it could do without.
    pub fn is_success(&self) -> bool {
        self.exit_code == Some(0) && ["Completed", "OOMKilled"].contains(&self.reason.as_str())
    }
}

/// What outlives a container.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Life {
    /// How often it was started again.
    pub restarts: u32,
    /// How it last ended.
    pub ended: Option<Ended>,
    /// Whether what is left of it after that end is still to be removed.
    pub removing: bool,
    /// Whether it is over for good in this run of the pod.
    pub done: bool,
    /// The document of a container that came later, and is in no pod's.
    pub nested: Option<super::document::Container>,
    /// Its limits, where they are no longer those of its document.
    pub resources: Option<Resources>,
}

/// A pod's directory.
#[derive(Debug)]
pub struct Directory {
    pods: OwnedFd,
    dir: OwnedFd,
    path: PathBuf,
    name: String,
}

impl Directory {
    /// Takes the name `name` for a new pod.
    ///
    /// # Errors
    /// `Exists` where it is taken.
    pub fn create(root: &Path, name: &str) -> Result<Self> {
        let base = file::open_dir(if root.is_absolute() { "/" } else { "." })?;
        file::mkdir_all(base.as_fd(), root, 0o711).context(|| "making the directory of states (--root)")?;
        // Whoever removes the last pod removes the directory of pods.
        for _ in 0..8 {
            let all = root.join(PODS);
            file::mkdir_all(base.as_fd(), &all, 0o700).context(|| "making the directory of pods")?;
            let pods = file::open_dir(&all)?;
            match file::mkdir(pods.as_fd(), name, 0o700) {
                Ok(()) => return Self::open(root, name),
                Err(e) if e.errno() == Errno::ENOENT => {}
                Err(e) if e.errno() == Errno::EEXIST => {
                    return Err(Error::new(Code::Exists, format!("pod {name:?} already exists"))
                        .hint("remove it, or choose another name"));
                }
                Err(e) => return Err(e).context(|| format!("making pod {name:?}")),
            }
        }
        Err(Error::new(Code::System, "the directory of pods is being removed again and again"))
    }

    /// Opens the directory of a pod.
    ///
    /// # Errors
    /// `NotFound` where there is none.
    pub fn open(root: &Path, name: &str) -> Result<Self> {
        let missing =
            || Error::new(Code::NotFound, format!("pod {name:?} does not exist")).hint("see coracle pod ls");
        if name.is_empty() || name.contains('/') || name.starts_with('.') {
            return Err(missing());
        }
        let all = std::path::absolute(root.join(PODS)).unwrap_or_default();
        let pods = match file::open_dir(&all) {
            Err(e) if e.errno() == Errno::ENOENT => return Err(missing()),
            other => other?,
        };
        match file::open(pods.as_fd(), name, libc::O_DIRECTORY, 0, Resolve::BeneathNoLinks) {
            Err(e) if e.errno() == Errno::ENOENT => Err(missing()),
            dir => Ok(Self { pods, dir: dir?, path: all.join(name), name: name.to_owned() }),
        }
    }

    /// The pod's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its absolute path, for mounts.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The directory.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// The numbers of its descriptors, for whoever goes on with it in a fork.
    pub fn descriptors(&self) -> [i32; 2] {
        [self.pods.as_raw_fd(), self.dir.as_raw_fd()]
    }

    /// Takes the supervisor's lock; false where a supervisor lives.
    ///
    /// # Errors
    /// None that a kernel is known to give.
    pub fn lock(&self) -> Result<bool> {
        match file::lock(self.dir.as_fd(), false) {
            Err(e) if e.errno() == Errno::EWOULDBLOCK => Ok(false),
            other => Ok(other.map(|()| true)?),
        }
    }

    /// The directory of states of the containers beside that at `path`, and its name there.
    pub fn states(&self, path: &str) -> (PathBuf, String) {
        let (above, name) = path.rsplit_once('/').map_or((None, path), |(above, name)| (Some(above), name));
        let mut states = self.path.join(BELOW);
        for parent in above.into_iter().flat_map(|above| above.split('/')) {
            states = states.join(parent).join(BELOW);
        }
        (states, name.to_owned())
    }

    /// The record; `None` where the pod's maker died before it wrote one.
    ///
    /// # Errors
    /// `System` where it is malformed.
    pub fn record(&self) -> Result<Option<Record>> {
        self.read(RECORD)
    }

    /// Replaces the record.
    ///
    /// # Errors
    /// `ENOSPC`.
    pub fn write(&self, record: &Record) -> Result<()> {
        self.replace(self.dir.as_fd(), RECORD, record)
    }

    /// What outlives the container at `path`.
    ///
    /// # Errors
    /// `System` where it is malformed.
    pub fn life(&self, path: &str) -> Result<Option<Life>> {
        self.read(&format!("members/{}", file_name(path)))
    }

    /// What outlives every container, with its path.
    ///
    /// # Errors
    /// `System` where one is malformed.
    pub fn lives(&self) -> Result<Vec<(String, Life)>> {
        let members = file::mkdir_all(self.dir.as_fd(), "members", 0o700)?;
        let members = file::open(members.as_fd(), ".", libc::O_DIRECTORY, 0, Resolve::Beneath)?;
        let names = file::list(members.as_fd())?;
        let mut paths: Vec<String> = names.iter().filter_map(|name| path_of(name.to_str()?)).collect();
        paths.sort();
        let life = |path: String| Ok(self.life(&path)?.map(|life| (path, life)));
        paths.into_iter().filter_map(|path| life(path).transpose()).collect()
    }

    /// Replaces it.
    ///
    /// # Errors
    /// `ENOSPC`.
    pub fn write_life(&self, path: &str, life: &Life) -> Result<()> {
        let members = file::mkdir_all(self.dir.as_fd(), "members", 0o700)?;
        self.replace(members.as_fd(), &file_name(path), life)
    }

    /// Forgets it, and what the container wrote.
    ///
    /// # Errors
    /// Whatever unlinking says but that there is none.
    pub fn forget_life(&self, path: &str) -> Result<()> {
        let members = file::mkdir_all(self.dir.as_fd(), "members", 0o700)?;
        match file::unlink(members.as_fd(), file_name(path)) {
            Err(e) if e.errno() != Errno::ENOENT => return Err(e.into()),
            _ => {}
        }
        let logs = file::mkdir_all(self.dir.as_fd(), "logs", 0o700)?;
        Ok(remove_tree(logs.as_fd(), state::name(path))?)
    }

    /// The directory of the logs of the container at `path`.
    ///
    /// # Errors
    /// `ENOSPC`.
    pub fn logs(&self, path: &str) -> Result<OwnedFd> {
        Ok(file::mkdir_all(self.dir.as_fd(), format!("logs/{}", state::name(path)), 0o700)?)
    }

    fn read<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>> {
        let doing = || format!("reading {name} of pod {:?}", self.name);
        let text = match file::read(self.dir.as_fd(), name, LONGEST, Resolve::BeneathNoLinks) {
            Err(e) if e.errno() == Errno::ENOENT => return Ok(None),
            other => other.context(doing)?,
        };
        let malformed = |e: serde_json::Error| Error::new(Code::System, format!("it is malformed: {e}"));
        serde_json::from_slice(&text).map(Some).map_err(malformed).context(doing)
    }

    fn replace(&self, dir: BorrowedFd<'_>, name: &str, content: &impl Serialize) -> Result<()> {
        let text = serde_json::to_vec(content).map_err(Error::system)?;
        file::replace(dir, name, &text, 0o600).context(|| format!("writing {name} of pod {:?}", self.name))
    }

    /// Forgets the pod. The record goes last, and beside it the socket: until then the supervisor may have to be asked again.
    ///
    /// # Errors
    /// Whatever unlinking says.
    pub fn remove(&self) -> Result<()> {
        for name in file::list(self.dir.as_fd())? {
            if name != RECORD && name != SOCKET {
                remove_tree(self.dir.as_fd(), &name)?;
            }
        }
        remove_tree(self.pods.as_fd(), &self.name).context(|| format!("removing pod {:?}", self.name))?;
        // The directory of pods goes with the last of them.
        let _ = self.path.parent().map(|all| file::rmdir(file::CWD, all));
        Ok(())
    }
}

fn file_name(path: &str) -> String {
    format!("{}.json", state::name(path))
}

fn path_of(name: &str) -> Option<String> {
    name.strip_suffix(".json").filter(|name| !name.starts_with('.')).map(|name| name.replace('~', "/"))
}

/// The names of all pods below `root`, in order.
///
/// # Errors
/// Whatever reading says but that there are none.
pub fn names(root: &Path) -> Result<Vec<String>> {
    let dir = match file::open_dir(root.join(PODS)) {
        Err(e) if e.errno() == Errno::ENOENT => return Ok(Vec::new()),
        other => other?,
    };
    let names = file::list(dir.as_fd())?.into_iter().filter_map(|name| name.into_string().ok());
    let mut names: Vec<String> = names.filter(|name| !name.starts_with('.') && name != "host.sock").collect();
    names.sort();
    Ok(names)
}

impl Record {
    /// The same, looked after by the calling process.
    ///
    /// # Errors
    /// None that a kernel is known to give.
    pub fn supervised(self) -> Result<Self> {
        let own = i32::try_from(std::process::id()).unwrap_or_default();
        Ok(Self { supervisor: Some(Process::now(own)?), ..self })
    }
}

/// How a process ended, in the words of a record.
pub fn ended(exit: Option<process::Exit>, started: &str) -> Ended {
    let (reason, signal) = match exit {
        Some(process::Exit::Code(0)) => ("Completed", None),
        Some(process::Exit::Code(_)) => ("Error", None),
        Some(process::Exit::Signal(signal)) => ("Error", Some(signal)),
        None => ("Lost", None),
    };
    Ended {
        exit_code: exit.map(|exit| exit.code().into()),
        signal,
        reason: reason.to_owned(),
        message: String::new(),
        started: started.to_owned(),
        finished: crate::time::now(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_ended_for_what_it_did_not_do_is_no_success() {
        let reasons = ["Completed", "OOMKilled", "Unhealthy", "DeadlineExceeded", "Evicted", "SandboxLost"];
        let ended = |code, reason: &str| {
            let reason = reason.to_owned();
            Ended { reason, ..ended(Some(process::Exit::Code(code)), "") }
        };
        assert_eq!(
            reasons.map(|reason| ended(0, reason).is_success()),
            [true, true, false, false, false, false]
        );
        assert!(!ended(1, "Error").is_success() && !super::ended(None, "").is_success());
    }
}
