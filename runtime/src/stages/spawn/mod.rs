//! Makes the container's cgroups and clones its first process, which waits.

mod sources;
mod owners;

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use coracle_isolator::Cgroup;
use coracle_sys::file::{self, Resolve};
use coracle_sys::process::{self, Child};
use coracle_sys::{namespace, scheduling, socket};

use super::prepare::{Container, Prepared};
use crate::cgroup::{Holder, Tree};
use crate::cli;
use crate::error::{Code, Context, Error, Result};
use crate::handshake::{self, Cloned};
use crate::init::{self, Birth, Sources};
use crate::stages::plan::Launch;
use crate::stages::plan::namespaces::Namespaces;
use crate::stages::plan::scheduling::Scheduling;
use crate::state::record::Process;

/// A container whose first process exists and waits for Go.
#[derive(Debug)]
pub struct Waiting {
    /// Who it is.
    pub container: Container,
    /// Its first process.
    pub born: Born,
    /// Its cgroups.
    pub cgroup: Cgroup,
    /// What keeps the scope that systemd made until the process is in all of its cgroups.
    pub holder: Option<Holder>,
}

/// A process that was cloned and waits for Go.
#[derive(Debug)]
pub struct Born {
    /// The process.
    pub child: Child,
    /// The conversation with it.
    pub cloned: Cloned,
    /// The socket over which its terminal's master comes, where the runtime itself looks after the terminal.
    pub console: Option<OwnedFd>,
    /// When and where it is to run.
    pub scheduling: Scheduling,
}

/// Makes the cgroups and clones the first process into them and into its namespaces. `door`: whether it waits
/// for a `start` of another process, rather than for the caller's word.
///
/// # Errors
/// `Exists` where a cgroup is in use, `System` where the kernel refuses.
pub fn spawn(prepared: Prepared, options: &cli::Launch, door: bool) -> Result<Waiting> {
    let Prepared { mut container, launch, .. } = prepared;
    let (tree, holder) = make_cgroups(&mut container)?;
    let joins = open_joins(&launch.namespaces)?;
    let joined_user = joins.iter().find(|(kinds, _)| kinds & libc::CLONE_NEWUSER != 0);
    let sources = sources::open(&launch, joined_user.map(|(_, fd)| fd.as_fd()))?;
    let door = door.then(|| socket::listen(container.state.dir(), handshake::DOOR)).transpose()?;
    let (console, terminal) = console(launch.process.terminal, options)?;
    let birth = Birth {
        id: container.state.id(),
        bundle: &container.record.bundle,
        state: container.record.to_state(),
        cgroups: &tree,
        place: container.record.cgroup.as_ref(),
        in_cgroup_namespace: launch.namespaces.new_cgroup
            || launch.namespaces.join.iter().any(|(kind, _)| *kind == libc::CLONE_NEWCGROUP),
        joins: &joins,
        sources: &sources,
        terminal,
        options,
    };
    let namespaces = launch.namespaces.clone();
    let (child, cloned) = clone_child(&launch, birth, door)?;
    // Before anything else: from here on a crash leaves a process that delete must find.
    container.record.process = Some(Process::now(child.pid)?);
    container.save()?;
    map_ids(child.pid, &namespaces).context(|| "mapping the container's users")?;
    let scheduling = launch.process.scheduling;
    let born = Born { child, cloned, console, scheduling };
    Ok(Waiting { container, born, cgroup: tree.into_handles(), holder })
}

/// Makes the cgroups of `container`. What turns out to be another's is on record as such before this launch is undone.
///
/// # Errors
/// `Exists` where one is in use.
pub fn make_cgroups(container: &mut Container) -> Result<(Tree, Option<Holder>)> {
    let Some(place) = &mut container.record.cgroup else { return Ok((Tree::none(), None)) };
    let resources = container.spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
    place.make(resources).or_else(|failure| {
        container.save()?;
        Err(failure)
    })
}

/// A container that stands, for a process that is to be executed in it.
#[derive(Debug)]
pub struct Target<'a> {
    /// The container's ID.
    pub id: &'a str,
    /// Its bundle.
    pub bundle: &'a Path,
    /// Its first process.
    pub first: OwnedFd,
    /// The kinds of namespaces (`CLONE_NEW*`) that it has of its own, or joined.
    pub kinds: i32,
    /// Its cgroups.
    pub cgroups: Tree,
}

/// Clones a process into the cgroups and namespaces of `target`, and returns it with the cgroups' handles.
///
/// # Errors
/// `System` where the kernel refuses.
pub fn spawn_into(launch: &Launch, target: Target<'_>, options: &cli::Launch) -> Result<(Born, Cgroup)> {
    let joins = [(target.kinds, target.first)];
    let (console, terminal) = console(launch.process.terminal, options)?;
    let birth = Birth {
        id: target.id,
        bundle: target.bundle,
        state: serde_json::Value::Null,
        cgroups: &target.cgroups,
        place: None,
        in_cgroup_namespace: true,
        joins: &joins,
        sources: &Sources::default(),
        terminal,
        options,
    };
    let (child, cloned) = clone_child(launch, birth, None)?;
    let scheduling = launch.process.scheduling.clone();
    Ok((Born { child, cloned, console, scheduling }, target.cgroups.into_handles()))
}

/// A PID namespace and a time namespace that are joined, and a time namespace that is new, are entered by
/// children only: the runtime sets them for its next child, and takes that back afterwards.
const FOR_CHILDREN: i32 = libc::CLONE_NEWPID | libc::CLONE_NEWTIME;

fn clone_child(launch: &Launch, birth: Birth<'_>, door: Option<OwnedFd>) -> Result<(Child, Cloned)> {
    let (outside, inside) = handshake::begin()?;
    let own = OwnChildren::remember(launch, &birth)?;
    for (kinds, fd) in birth.joins.iter().filter(|(kinds, _)| kinds & FOR_CHILDREN != 0) {
        namespace::join(fd.as_fd(), kinds & FOR_CHILDREN).context(|| "joining a namespace")?;
    }
    if launch.namespaces.new_time {
        namespace::unshare(libc::CLONE_NEWTIME)?;
        let offsets = launch.namespaces.time_offsets.as_bytes();
        if !offsets.is_empty() {
            file::write_to(file::CWD, "/proc/self/timens_offsets", offsets, Resolve::Host)
                .context(|| "setting linux.timeOffsets")?;
        }
    }
    if let Some(processors) = &launch.process.scheduling.affinity.before_cgroup {
        // The child may be born into its cgroup, so its parent goes there first.
        scheduling::set_affinity(processors).context(|| "setting process.execCPUAffinity.initial")?;
    }
    let mut given = Some((inside, door));
    let child = process::spawn(launch.namespaces.new, birth.cgroups.unified(), || match given.take() {
        Some((inside, door)) => init::run(launch, &birth, inside, door),
        None => 1,
    });
    // The parent's copies of the child's ends close here, so that the end of the child is the end of the talk.
    drop(given);
    let child = child.context(|| "cloning the container's process")?;
    own.restore()?;
    Ok((child, outside))
}

/// The namespaces that the runtime's own next children (hooks) belong in.
struct OwnChildren(Vec<OwnedFd>);

impl OwnChildren {
    fn remember(launch: &Launch, birth: &Birth<'_>) -> Result<Self> {
        let joined = birth.joins.iter().fold(0, |all, (kinds, _)| all | kinds);
        let mut own = Vec::new();
        for (kind, name) in [(libc::CLONE_NEWPID, "pid"), (libc::CLONE_NEWTIME, "time")] {
            let new_time = kind == libc::CLONE_NEWTIME && launch.namespaces.new_time;
            if joined & kind != 0 || new_time {
                own.push(file::open(file::CWD, format!("/proc/self/ns/{name}"), 0, 0, Resolve::Host)?);
            }
        }
        Ok(Self(own))
    }

    fn restore(self) -> Result<()> {
        for namespace in self.0 {
            namespace::join(namespace.as_fd(), 0).context(|| "returning to the runtime's own namespaces")?;
        }
        Ok(())
    }
}

fn open_joins(namespaces: &Namespaces) -> Result<Vec<(i32, OwnedFd)>> {
    let open = |(kind, path): &(i32, std::path::PathBuf)| {
        let fd = file::open(file::CWD, path, libc::O_RDONLY, 0, Resolve::Host)
            .map_err(Error::from)
            .map_err(|e| e.code_is(Code::InvalidSpec))
            .context(|| "opening a namespace of linux.namespaces")?;
        Ok((*kind, fd))
    };
    namespaces.join.iter().map(open).collect()
}

/// Both ends of the way a terminal's master takes: what the runtime keeps, and what the child gets.
fn console(terminal: bool, options: &cli::Launch) -> Result<(Option<OwnedFd>, Option<OwnedFd>)> {
    match (&options.console_socket, terminal) {
        (Some(path), true) => {
            let socket = socket::connect_stream(path).context(|| "connecting to --console-socket")?;
            Ok((None, Some(socket)))
        }
        (Some(_), false) => {
            Err(Error::new(Code::Usage, "--console-socket is given but process.terminal is false"))
        }
        (None, true) if options.detach => {
            Err(Error::new(Code::Usage, "process.terminal is true, and nobody would hold the terminal")
                .hint("give a --console-socket"))
        }
        (None, true) => {
            let (keep, give) = socket::pair()?;
            Ok((Some(keep), Some(give)))
        }
        (None, false) => Ok((None, None)),
    }
}

/// Writes the ID maps of a new user namespace; nothing where there is none. The child can't have been awaited,
/// so its PID is still its own.
fn map_ids(pid: i32, namespaces: &Namespaces) -> Result<()> {
    if !namespaces.new_user() {
        return Ok(());
    }
    let dir = file::open_dir(format!("/proc/{pid}"))?;
    file::write_to(dir.as_fd(), "gid_map", namespaces.gid_map.as_bytes(), Resolve::Beneath)?;
    file::write_to(dir.as_fd(), "uid_map", namespaces.uid_map.as_bytes(), Resolve::Beneath)?;
    Ok(())
}
