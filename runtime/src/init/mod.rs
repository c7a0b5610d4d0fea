//! The child, from birth to execve: it runs inside only, and does what the launch plan says, in this order.
//!
//! Nothing here decides anything. What fails is told to the runtime over the handshake and printed there, once.

pub mod join;
mod mounts;
pub mod remount;
mod copy_up;
mod cgroups;
mod devices;
mod root;
mod rootfs;
mod bare;
mod console;
mod scheduling;
mod labels;
mod landlock;
mod program;
mod confine;

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use coracle_sys::file::{self, Resolve};
use coracle_sys::landlock::Ruleset;
use coracle_sys::{Errno, descriptor, identity, namespace, net, process, signal};
use nix::sys::signal::Signal;
use oci_spec::runtime::Hook;

use crate::cgroup::Place;
use crate::cli;
use crate::error::{Code, Context, Error, Result};
use crate::handshake::{Building, Executing, Waiting};
use crate::hooks;
use crate::stages::plan::Launch;
use crate::stages::plan::launch::{Inside, sysctl_path};
use join::{Host, Joined};
use labels::Labels;
use root::Root;

pub use mounts::{mounting, open_source};
pub use rootfs::clone_root;

/// What the child is born with beside its plan.
#[derive(Debug)]
pub struct Birth<'a> {
    /// The bundle, in which hooks run.
    pub bundle: &'a Path,
    /// The container's state, for hooks; its PID is not known when the child is born.
    pub state: serde_json::Value,
    /// What is still to be done on the host's side; `None` where a go-between did it.
    pub host: Option<Host<'a>>,
    /// The mount namespace that is joined last of all, where one is joined by path.
    pub mounts_of: Option<&'a Joined>,
    /// Where the container's cgroups are; `None` where it has none.
    pub place: Option<&'a Place>,
    /// Whether it is in a user namespace of the container, made or joined.
    pub in_user_namespace: bool,
    /// What the runtime opened because the child could not.
    pub sources: &'a Sources,
    /// The socket that gets the terminal's master, where the process has a terminal.
    pub terminal: Option<OwnedFd>,
    /// The options of the command.
    pub options: &'a cli::Launch,
}

/// Trees of the host, and new file systems, that the runtime made ready for the child, detached. Empty where it has none.
#[derive(Debug, Default)]
pub struct Sources {
    /// The root file system.
    pub root: Option<OwnedFd>,
    /// What each mount shows, in their order, where the runtime made it ready.
    pub mounts: Vec<Option<OwnedFd>>,
    /// The device nodes, in their order, where the runtime made them.
    pub devices: Vec<Option<OwnedFd>>,
}

impl Sources {
    fn opened(&self) -> impl Iterator<Item = &OwnedFd> {
        self.root.iter().chain(self.mounts.iter().chain(&self.devices).flatten())
    }

    fn mount(&self, index: usize) -> Option<&OwnedFd> {
        self.mounts.get(index)?.as_ref()
    }
}

impl Birth<'_> {
    /// The numbers of the descriptors that the child needs up to its program, or beyond; with its ends of the conversation.
    pub fn descriptors(&self, word: &Waiting, door: Option<&OwnedFd>) -> impl Iterator<Item = i32> {
        let opened = door.into_iter().chain(&self.terminal).chain(self.sources.opened());
        let given: Vec<i32> = opened.map(AsRawFd::as_raw_fd).chain([word.descriptor()]).collect();
        self.options.preserve_fds.iter().copied().chain(given)
    }
}

/// The child's life. Returns the exit code of a child that did not become the user's program.
pub fn run(launch: &Launch, birth: &Birth<'_>, word: Waiting, door: Option<OwnedFd>) -> i32 {
    let labels = match enter(launch, birth, &word, door.as_ref()) {
        Ok(labels) => labels,
        Err(error) => {
            word.failed(&error);
            return 1;
        }
    };
    let Ok(Some(building)) = word.wait() else { return 1 };
    let ready = match build(launch, birth, labels, &building) {
        Ok(ready) => ready,
        Err(error) => {
            building.failed(&error);
            return 1;
        }
    };
    if door.is_some() {
        // Who asks a created container to end must not wait for somebody to start it.
        let _ = signal::end_on(&[Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP]);
    }
    let Ok(Some(executing)) = building.ready(door) else { return 1 };
    let error = become_program(launch, birth, &ready, &executing).unwrap_or_else(|error| error);
    executing.failed(&error);
    1
}

/// Leaves what is the parent's, and enters what is the container's.
fn enter(launch: &Launch, birth: &Birth<'_>, word: &Waiting, door: Option<&OwnedFd>) -> Result<Labels> {
    process::die_with_parent(true)?;
    let kept: Vec<i32> = birth.descriptors(word, door).collect();
    let host = birth.host.iter().flat_map(Host::descriptors);
    let for_now = host.chain(birth.mounts_of.iter().map(|joined| joined.fd.as_raw_fd()));
    descriptor::close_all_but(&kept.iter().copied().chain(for_now).collect::<Vec<_>>())?;
    let has_left = birth.host.is_none() && birth.mounts_of.is_none() && launch.inside.is_none();
    let labels = Labels::open(&launch.process, has_left)?;
    if let Some(host) = &birth.host {
        host.leave(launch)?;
    }
    if launch.namespaces.new_time {
        join::new_time(&launch.namespaces.time_offsets)?;
    }
    if let Some(mounts) = birth.mounts_of {
        mounts.join(libc::CLONE_NEWNS)?;
    }
    // What leads back to the host is not held a moment longer than needed.
    descriptor::close_all_but(&kept.into_iter().chain(labels.descriptors()).collect::<Vec<_>>())?;
    if launch.namespaces.new_cgroup {
        namespace::unshare(libc::CLONE_NEWCGROUP)?;
    }
    process::new_session()?;
    Ok(labels)
}

/// What is ready when the child says Ready.
struct Prepared {
    programs: Vec<CString>,
    /// Whether the working directory is the program's already.
    is_there: bool,
    /// The container's state, for the hooks that run just before the program.
    state: serde_json::Value,
    /// The rules of Landlock, their paths opened.
    landlock: Option<Ruleset>,
}

/// Builds the inside, up to where only the word is missing.
fn build(launch: &Launch, birth: &Birth<'_>, labels: Labels, word: &Building) -> Result<Prepared> {
    if !birth.options.no_new_keyring {
        labels.with_keys(&launch.process, new_keyring)?;
    }
    if birth.in_user_namespace {
        join::become_root(launch)?;
    }
    if launch.namespaces.new_network() {
        net::bring_loopback_up().context(|| "bringing the loopback interface up")?;
    }
    identity::set_umask(0);
    let mut state = own_state(launch, birth);
    match &launch.inside {
        Some(inside) => build_inside(launch, inside, birth, (&state, word))?,
        None => console::open_in_container(&launch.process, birth)?,
    }
    let is_there = program::could_change_dir(&launch.process)?;
    let programs = program::find(&launch.process, is_there)?;
    let landlock = landlock::open(&launch.process)?;
    scheduling::settle(&launch.process.scheduling)?;
    labels.label_program(&launch.process)?;
    process::die_with_parent(false)?;
    state["status"] = "created".into();
    Ok(Prepared { programs, is_there, state, landlock })
}

fn build_inside(
    launch: &Launch,
    inside: &Inside,
    birth: &Birth<'_>,
    (state, word): (&serde_json::Value, &Building),
) -> Result<()> {
    name_host(inside)?;
    let sysctls = inside.sysctl.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    set_sysctls("/linux/sysctl", sysctls)?;
    rootfs::share_events(inside)?;
    let sources = mounts::open_sources(inside, birth.sources)?;
    let mut root = Root::new(rootfs::attach(inside, birth.sources.root.as_ref())?);
    for (mount, source) in inside.mounts.iter().zip(sources) {
        mounts::mount(&mut root, mount, birth, source, word)?;
    }
    let made =
        devices::Made { nodes: &birth.sources.devices, in_user_namespace: launch.namespaces.in_user() };
    devices::make(root.as_fd(), &inside.devices, &made)?;
    console::open(root.as_fd(), (&launch.process, inside), birth)?;
    rootfs::run_hooks(inside, state, birth.bundle)?;
    rootfs::make_dir(root.as_fd(), &launch.process.cwd)?;
    rootfs::mask(&root, inside)?;
    rootfs::enter(root.finish()?, inside, birth.options.no_pivot)
}

fn name_host(inside: &Inside) -> Result<()> {
    if let Some(name) = &inside.hostname {
        namespace::set_hostname(name).context(|| "setting /hostname")?;
    }
    if let Some(name) = &inside.domainname {
        namespace::set_domainname(name).context(|| "setting /domainname")?;
    }
    Ok(())
}

/// Sets kernel parameters, each by its name or its path below `/proc/sys`, in the caller's namespaces; `field` is what errors
/// call them. Through the host's procfs, whose `/proc/sys` shows the parameters of the namespaces of whoever looks: the
/// container's own procfs could lead anywhere (CVE-2025-52881). What lies elsewhere is never written, whatever the names say.
///
/// # Errors
/// What the kernel says to a value.
pub fn set_sysctls<'a>(field: &str, sysctls: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<()> {
    let mut sysctls = sysctls.into_iter().peekable();
    if sysctls.peek().is_none() {
        return Ok(());
    }
    let parameters = host_proc("sys")?;
    for (name, value) in sysctls {
        let path = sysctl_path(name);
        file::write_to(parameters.as_fd(), path, value.as_bytes(), Resolve::BeneathNoLinks)
            .context(|| format!("setting {field} {name:?}"))?;
    }
    Ok(())
}

/// A directory of the host's procfs, which is verified to be one.
fn host_proc(name: &str) -> Result<OwnedFd> {
    let dir = file::open_dir(format!("/proc/{name}"))?;
    if file::file_system(dir.as_fd())? != nix::sys::statfs::PROC_SUPER_MAGIC {
        return Err(Error::new(Code::System, format!("/proc/{name} is no procfs")));
    }
    Ok(dir)
}

/// It has no name: one with a name would be looked for first, among those of all containers, and found where another had
/// laid it ready.
fn new_keyring() -> Result<()> {
    match namespace::new_session_keyring() {
        // A kernel without keys has none to protect.
        Err(e) if e.errno() == Errno::ENOSYS => Ok(()),
        Err(e) => {
            let error = Error::from(e).hint("--no-new-keyring keeps the caller's");
            Err(error).context(|| "making the container's session keyring")
        }
        Ok(()) => Ok(()),
    }
}

/// The container's state as its hooks inside get it: with the PID that the host knows the child by, which only the
/// host's procfs tells.
fn own_state(launch: &Launch, birth: &Birth<'_>) -> serde_json::Value {
    let mut state = birth.state.clone();
    let hooks = launch.inside.as_ref().map_or(0, |i| i.create_hooks.len() + i.start_hooks.len());
    if hooks > 0
        && let Ok(own) = file::read_link(file::CWD, "/proc/self")
        && let Some(pid) = own.to_str().and_then(|pid| pid.parse::<i32>().ok())
    {
        state["pid"] = pid.into();
    }
    state
}

/// Drops what the user's program must not have, and becomes it. Returns only where that failed.
fn become_program(launch: &Launch, birth: &Birth<'_>, ready: &Prepared, word: &Executing) -> Result<Error> {
    program::own_streams(&launch.process)?;
    signal::reset_signals()?;
    descriptor::close_on_exec_from(3)?;
    for fd in &birth.options.preserve_fds {
        descriptor::keep_on_exec(*fd).context(|| "keeping the descriptors of --preserve-fds")?;
    }
    let (args, env) = (
        program::strings(&launch.process.args)?,
        program::environment(&launch.process, birth.options.listen_fds)?,
    );
    confine::confine(
        &launch.process,
        (!ready.is_there).then_some(&launch.process.cwd),
        ready.landlock.as_ref(),
        word,
    )?;
    if let Some(inside) = &launch.inside {
        // Programs of the image, so they get no more rights than the user's.
        let hooks = start_hooks(inside, &env);
        hooks::run("startContainer", &hooks, &ready.state, Path::new("/"))?;
    }
    // Of several, the first that the user may execute.
    let mut failures = ready.programs.iter().map(|program| process::execute(program, &args, &env));
    let failure = failures.find(|failure| failure.errno() != Errno::EACCES);
    let name = &launch.process.args[0];
    let denied = || coracle_sys::Error::new(format!("execve({name:?})"), Errno::EACCES);
    Ok(program::explain(name, failure.unwrap_or_else(denied)))
}

/// The hooks that run just before the program. One that names no environment has the program's, as runc's users know it.
fn start_hooks(inside: &Inside, env: &[CString]) -> Vec<Hook> {
    let mut hooks = inside.start_hooks.clone();
    for hook in hooks.iter_mut().filter(|hook| hook.env().is_none()) {
        hook.set_env(Some(env.iter().map(|variable| variable.to_string_lossy().into_owned()).collect()));
    }
    hooks
}
