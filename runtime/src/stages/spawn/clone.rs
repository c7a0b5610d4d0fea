//! Cloning the process: straight into its namespaces, or through a go-between.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use coracle_sys::file::{self, Resolve};
use coracle_sys::process::{self, Child};
use coracle_sys::{Errno, descriptor, identity, namespace, scheduling, signal, socket};

use crate::error::{Code, Context, Error, Result};
use crate::handshake::{self, Cloned, Waiting};
use crate::init::join::Host;
use crate::init::{self, Birth};
use crate::stages::plan::Launch;
use crate::stages::plan::namespaces::Namespaces;

/// What only children can join: a parent joins it for them (pid_namespaces(7)).
const FOR_CHILDREN: i32 = libc::CLONE_NEWPID;

/// The way out for who may make a cgroup and not enter it (cgroups(7), "Delegation").
const NOT_DELEGATED: &str =
    "is the caller itself in a cgroup that was delegated to it, as by systemd-run --user --scope?";

/// What the child gets of the conversation: its end, and the socket on which it waits for a `start`.
type Given = (Waiting, Option<OwnedFd>);

/// Clones the process of `launch`; `door` is where it waits for a `start`.
///
/// # Errors
/// Whatever the kernel refuses.
pub(super) fn clone_child(
    launch: &Launch,
    birth: Birth<'_>,
    host: Host<'_>,
    door: Option<OwnedFd>,
) -> Result<(Child, Cloned)> {
    let (outside, inside) = handshake::begin()?;
    if let Some(processors) = &launch.process.scheduling.affinity.before_cgroup {
        // The child may be born into its cgroup, so its parent goes there first.
        scheduling::set_affinity(processors).context(|| "setting /process/execCPUAffinity/initial")?;
    }
    let child = if needs_go_between(launch, host) {
        through_go_between(launch, birth, host, (inside, door))
    } else {
        straight(launch, birth, Host { joined: FOR_CHILDREN, ..host }, (inside, door))
    };
    Ok((child?, outside))
}

/// Whether joining must come before cloning, in a process that never comes back: new namespaces of a user namespace
/// that is joined, a new user namespace in which nothing else could be joined any more, or a caller that gets the
/// right to join a PID namespace only by joining the user namespace first, or could not return from it.
///
/// And whoever in a PID namespace has `CAP_SYS_PTRACE` reaches, by procfs, the root directory and the descriptors of all
/// who are born there, so these must not be the host's any more. In a user namespace nobody has it over them before they
/// join that, and a label had better be applied by the host's procfs.
fn needs_go_between(launch: &Launch, host: Host<'_>) -> bool {
    let namespaces: &Namespaces = &launch.namespaces;
    let joins = |kinds| host.joins.iter().any(|joined| joined.kinds & kinds != 0);
    let is_beyond_reach = launch.process.is_labelled() && joins(libc::CLONE_NEWUSER);
    let is_seen = joins(libc::CLONE_NEWNS) && !is_beyond_reach;
    joins(libc::CLONE_NEWUSER) && namespaces.new != 0
        || namespaces.new_user() && !host.joins.is_empty()
        || joins(FOR_CHILDREN) && (is_seen || identity::is_rootless())
}

/// A PID namespace that is joined is entered by children only: the runtime joins it for its next child, and takes
/// that back afterwards.
fn straight(launch: &Launch, birth: Birth<'_>, host: Host<'_>, given: Given) -> Result<Child> {
    let joined = host.joins.iter().find(|joined| joined.kinds & FOR_CHILDREN != 0);
    let own = match joined {
        Some(joined) => {
            let own = file::open(file::CWD, "/proc/self/ns/pid", 0, 0, Resolve::Host)?;
            joined.join(FOR_CHILDREN)?;
            Some(own)
        }
        None => None,
    };
    let birth = Birth { host: Some(host), ..birth };
    let (word, door) = given;
    let child = mappable(launch, || {
        let flags = launch.namespaces.new;
        process::spawn(flags, host.cgroups.unified(), move || init::run(launch, &birth, word, door))
    });
    if let Some(own) = own {
        namespace::join(own.as_fd(), 0).context(|| "returning to the runtime's own namespaces")?;
    }
    let cloned = child.map_err(|error| match error.errno() {
        Errno::EACCES if host.cgroups.unified().is_some() => Error::from(error).hint(NOT_DELEGATED),
        _ => error.into(),
    });
    cloned.context(|| "cloning the container's process")
}

/// The go-between joins what is to be joined, and clones the process as its sibling: a child of the runtime.
fn through_go_between(launch: &Launch, birth: Birth<'_>, host: Host<'_>, given: Given) -> Result<Child> {
    let (mine, theirs) = socket::pair()?;
    let body = move || {
        let cloned = go_between(launch, birth, host, given, theirs.as_raw_fd())
            .map_err(|e| e.cut(handshake::LONGEST_TEXT));
        let told = serde_json::to_vec(&cloned).unwrap_or_default();
        i32::from(socket::send(theirs.as_fd(), &told, &[]).is_err())
    };
    let go_between = process::spawn(0, host.cgroups.unified(), body).context(|| "cloning a go-between")?;
    if let Some(signal) = signal::wait_for(mine.as_fd())? {
        // What it has cloned ends with the runtime's end of their conversation.
        go_between.kill();
        return Err(Error::interrupted(signal)).context(|| "waiting for the go-between");
    }
    let told = socket::receive(mine.as_fd(), handshake::LONGEST);
    process::wait(go_between.pidfd.as_fd())?;
    let died = || Error::new(Code::System, "the go-between that joins namespaces died");
    let (told, _) = told?.ok_or_else(died)?;
    let pid: Result<i32> = serde_json::from_slice(&told).map_err(|_| died())?;
    // It is this process's child and not awaited yet, so the number is its own.
    let pid = pid?;
    Ok(Child { pid, pidfd: process::pidfd(pid)? })
}

/// Leaves the host, and everything that leads back to it but `told`, the socket to the runtime; then clones the process.
fn go_between(launch: &Launch, birth: Birth<'_>, host: Host<'_>, given: Given, told: i32) -> Result<i32> {
    process::die_with_parent(true)?;
    if host.joins.iter().any(|joined| joined.kinds & FOR_CHILDREN != 0) {
        // Everybody in a PID namespace can read them.
        process::hide_arguments().context(|| "hiding the command line")?;
    }
    host.leave(launch)?;
    let (word, door) = given;
    let mounts_of = birth.mounts_of.iter().map(|joined| joined.fd.as_raw_fd());
    descriptor::close_all_but(
        &birth.descriptors(&word, door.as_ref()).chain(mounts_of).chain([told]).collect::<Vec<_>>(),
    )?;
    let clone =
        || process::spawn_sibling(launch.namespaces.new, move || init::run(launch, &birth, word, door));
    mappable(launch, clone).context(|| "cloning the container's process")
}

/// Runs `clone` so that the user namespace it makes can be mapped by a runtime without privilege: the files of a
/// process that can't be dumped are root's.
fn mappable<T>(launch: &Launch, clone: impl FnOnce() -> coracle_sys::Result<T>) -> coracle_sys::Result<T> {
    if !launch.namespaces.new_user() || identity::caller() == 0 {
        return clone();
    }
    process::dumpable()?;
    let cloned = clone();
    process::undumpable()?;
    cloned
}
