//! Makes the container's cgroups and clones its first process, which waits.

mod opened;
mod joins;
mod sources;
pub mod owners;
mod clone;
mod devices;
pub mod users;

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use coracle_isolator::Cgroup;
use coracle_sys::process::Child;
use coracle_sys::{event, socket};

use super::prepare::{Container, Prepared};
use crate::cgroup::{Holder, Tree, Wanted};
use crate::cli;
use crate::error::{Code, Context, Error, Result};
use crate::handshake::{self, Cloned};
use crate::init::join::{Host, Joined};
use crate::init::{Birth, Sources};
use crate::stages::plan::Launch;
use crate::stages::plan::scheduling::Scheduling;
use crate::state::record::Process;

pub use opened::Opened;
pub use owners::Owners;

/// How long a child that has failed may take to end.
const ENDING: Duration = Duration::from_millis(50);

/// Said of a container whose processes can't be told from others.
const ELUSIVE: &str = "the container has neither a cgroup nor a PID namespace of its own: of its processes the first \
    alone can be found and killed. Such configuration is strongly discouraged";

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
    /// What could not be done.
    pub warnings: Vec<String>,
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
    /// How the owners of the trees are mapped that it asks the runtime for.
    pub maps: Vec<Owners>,
}

/// Makes the cgroups and clones the first process into them and into its namespaces. `door`: whether it waits
/// for a `start` of another process, rather than for the caller's word.
///
/// # Errors
/// `Exists` where a cgroup is in use, `System` where the kernel refuses.
pub fn spawn(prepared: Prepared, options: &cli::Launch, door: bool) -> Result<Waiting> {
    let opened = Opened::by_plan(&prepared.launch)?;
    spawn_with(prepared, opened, options, door)
}

/// The same, with what is opened already of what it joins and shows.
///
/// # Errors
/// As [`spawn`].
pub fn spawn_with(prepared: Prepared, opened: Opened, options: &cli::Launch, door: bool) -> Result<Waiting> {
    let Prepared { mut container, launch, .. } = prepared;
    let Opened { joins, mounts_of, sources, maps } = opened;
    let (tree, holder) = make_cgroups(&mut container)?;
    let door = door.then(|| socket::listen(container.state.dir(), handshake::DOOR)).transpose()?;
    let (console, terminal) = console(launch.process.terminal, options)?;
    let birth = Birth {
        bundle: &container.record.bundle,
        state: container.record.to_state(),
        host: None,
        mounts_of: mounts_of.as_ref(),
        place: container.record.cgroup.as_ref(),
        in_user_namespace: launch.namespaces.in_user(),
        sources: &sources,
        terminal,
        options,
    };
    let (child, cloned) =
        clone::clone_child(&launch, birth, Host { cgroups: &tree, joins: &joins, joined: 0 }, door)?;
    // Before anything else: from here on a crash leaves a process that delete must find.
    container.record.process = Some(Process::of(&child, launch.namespaces.in_user())?);
    container.save()?;
    if let Err(failure) = users::map(child.pid, &launch.namespaces) {
        // The files of a child that has failed are root's; it has said itself what went wrong.
        let has_ended = event::readable(&[child.pidfd.as_fd()], Some(ENDING))? == [true];
        let said = if has_ended { cloned.go().err() } else { None };
        return said.map_or_else(|| Err(failure).context(|| "mapping the container's users"), Err);
    }
    let born = Born { child, cloned, console, scheduling: launch.process.scheduling, maps };
    let is_elusive = container.record.cgroup.is_none() && launch.namespaces.new & libc::CLONE_NEWPID == 0;
    let warnings = is_elusive.then(|| ELUSIVE.to_owned()).into_iter().collect();
    Ok(Waiting { container, born, cgroup: tree.into_handles(), holder, warnings })
}

/// Makes the cgroups of `container`. What turns out to be another's is on record as such before this launch is undone.
///
/// # Errors
/// `Exists` where one is in use.
pub fn make_cgroups(container: &mut Container) -> Result<(Tree, Option<Holder>)> {
    let Some(place) = &mut container.record.cgroup else { return Ok((Tree::none(), None)) };
    let resources = container.spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
    let devices = resources.and_then(|resources| resources.devices().as_deref());
    let annotations = container.spec.annotations().as_ref();
    let made = place.make(&Wanted { resources, devices: Some(devices.unwrap_or_default()), annotations });
    if made.is_err() {
        container.save()?;
    } else if place.at.is_empty() {
        container.record.cgroup = None;
    }
    made
}

/// A container that stands, for a process that is to be executed in it.
#[derive(Debug)]
pub struct Target<'a> {
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
    let name = "the container's namespaces".to_owned();
    let joins = [Joined { kinds: target.kinds, fd: target.first, name }];
    let (console, terminal) = console(launch.process.terminal, options)?;
    let birth = Birth {
        bundle: target.bundle,
        state: serde_json::Value::Null,
        host: None,
        mounts_of: None,
        place: None,
        in_user_namespace: target.kinds & libc::CLONE_NEWUSER != 0,
        sources: &Sources::default(),
        terminal,
        options,
    };
    let host = Host { cgroups: &target.cgroups, joins: &joins, joined: 0 };
    let (child, cloned) = clone::clone_child(launch, birth, host, None)?;
    let scheduling = launch.process.scheduling.clone();
    let born = Born { child, cloned, console, scheduling, maps: Vec::new() };
    Ok((born, target.cgroups.into_handles()))
}

/// Both ends of the way a terminal's master takes: what the runtime keeps, and what the child gets.
fn console(terminal: bool, options: &cli::Launch) -> Result<(Option<OwnedFd>, Option<OwnedFd>)> {
    match (&options.console_socket, terminal) {
        (Some(path), true) => {
            let socket = socket::once_listening(|| socket::connect_stream(path));
            let socket = socket.context(|| "connecting to --console-socket")?;
            Ok((None, Some(socket)))
        }
        (Some(_), false) => {
            Err(Error::new(Code::Usage, "--console-socket is given but /process/terminal is false"))
        }
        (None, true) if options.detach => {
            Err(Error::new(Code::Usage, "/process/terminal is true, and nobody would hold the terminal")
                .hint("give a --console-socket"))
        }
        (None, true) => {
            let (keep, give) = socket::pair()?;
            Ok((Some(keep), Some(give)))
        }
        (None, false) => Ok((None, None)),
    }
}
