//! `create` and `run`: from a bundle, and from an image.

use std::path::PathBuf;

use coracle_image::bundle::{Network, Seccomp};
use lexopt::prelude::*;

use super::words::{need_id, parsed, rest, size, text, usage};
use crate::error::Result;

/// The options of `create` and `run`.
#[derive(Debug, Clone, Default)]
pub struct Launch {
    /// The container's ID.
    pub id: String,
    /// The bundle's directory.
    pub bundle: PathBuf,
    /// Where the first process's PID is written.
    pub pid_file: Option<PathBuf>,
    /// The Unix socket that gets the terminal's master.
    pub console_socket: Option<String>,
    /// The Unix socket that gets a descriptor of the process (pidfd_open(2)).
    pub pidfd_socket: Option<String>,
    /// How many descriptors from 3 on the process inherits.
    pub preserve_fds: u32,
    /// Change the root by chroot(2), on an initial ramfs that can't be pivoted.
    pub no_pivot: bool,
    /// Keep the caller's session keyring.
    pub no_new_keyring: bool,
    /// Do not wait for the end.
    pub detach: bool,
    /// Leave the container's state and cgroups behind when it ends.
    pub keep: bool,
}

/// The options of `run --image`.
#[derive(Debug, Clone, Default)]
pub struct ImageRun {
    /// The image's reference in the store.
    pub reference: String,
    /// The image store.
    pub store: Option<PathBuf>,
    /// What the bundle is made with.
    pub options: coracle_image::bundle::Options,
}
/// The options of `create` or `run`, which `command` is.
pub(super) fn parse(parser: &mut lexopt::Parser, command: &str) -> Result<(Launch, Option<Box<ImageRun>>)> {
    let mut launch = Launch { bundle: ".".into(), ..Launch::default() };
    let mut image = ImageRun::default();
    let mut from_image = false;
    let mut args: Vec<String> = Vec::new();
    while let Some(arg) = parser.next()? {
        match arg {
            Short('b') | Long("bundle") => launch.bundle = parser.value()?.into(),
            Short('d') | Long("detach") if command == "run" => launch.detach = true,
            Long("keep") if command == "run" => launch.keep = true,
            Long("no-subreaper") if command == "run" => {}
            Long(name) if is_shared(name) => shared(name.to_owned().as_str(), parser, &mut launch)?,
            Long("image") if command == "run" => {
                from_image = true;
                image.reference = text(parser)?;
            }
            Short('e') | Short('v') | Short('u') | Short('w') | Short('t') | Long(_) if command == "run" => {
                from_image_option(&arg_name(&arg), parser, &mut image)?;
            }
            Value(id) if launch.id.is_empty() => {
                launch.id = id.string()?;
                if from_image {
                    args = rest(parser)?;
                }
            }
            other => return Err(other.unexpected().into()),
        }
    }
    need_id(&launch.id, command)?;
    image.options.args = args;
    Ok((launch, from_image.then(|| Box::new(image))))
}

/// Options that `create`, `run` and `exec` have in common.
pub(super) fn is_shared(name: &str) -> bool {
    ["pid-file", "console-socket", "pidfd-socket", "preserve-fds", "no-pivot", "no-new-keyring"]
        .contains(&name)
}

/// Takes one of them.
pub(super) fn shared(name: &str, parser: &mut lexopt::Parser, launch: &mut Launch) -> Result<()> {
    match name {
        "pid-file" => launch.pid_file = Some(parser.value()?.into()),
        "console-socket" => launch.console_socket = Some(text(parser)?),
        "pidfd-socket" => launch.pidfd_socket = Some(text(parser)?),
        "preserve-fds" => launch.preserve_fds = preserve_fds(&text(parser)?)?,
        "no-pivot" => launch.no_pivot = true,
        _ => launch.no_new_keyring = true,
    }
    Ok(())
}

/// No process has more descriptors than this (`fs.nr_open`, proc_sys_fs(5)).
const MOST_FDS: u32 = 1 << 20;

fn preserve_fds(value: &str) -> Result<u32> {
    let number = parsed::<u32>("preserve-fds", value)?;
    let few = Some(number).filter(|n| *n <= MOST_FDS);
    few.ok_or_else(|| usage(format!("--preserve-fds {number} is more than a process can have open")))
}

fn arg_name(arg: &lexopt::Arg<'_>) -> String {
    match arg {
        Short(short) => short.to_string(),
        Long(long) => (*long).to_owned(),
        Value(value) => value.to_string_lossy().into_owned(),
    }
}

fn from_image_option(name: &str, parser: &mut lexopt::Parser, image: &mut ImageRun) -> Result<()> {
    let options = &mut image.options;
    match name {
        "store" => image.store = Some(parser.value()?.into()),
        "e" | "env" => options.env.push(text(parser)?),
        "v" | "volume" => options.volumes.push(text(parser)?),
        "tmpfs" => options.tmpfs.push(text(parser)?),
        "u" | "user" => options.user = Some(text(parser)?),
        "w" | "workdir" => options.working_dir = Some(text(parser)?),
        "t" | "tty" => options.terminal = true,
        "hostname" => options.hostname = Some(text(parser)?),
        "entrypoint" => options.entrypoint = Some(vec![text(parser)?]),
        "cap-add" => options.cap_add.push(text(parser)?),
        "cap-drop" => options.cap_drop.push(text(parser)?),
        "read-only" => options.read_only = true,
        "memory" => options.memory = Some(size(name, &text(parser)?)?),
        "cpus" => options.cpus = Some(parsed(name, &text(parser)?)?),
        "cpu-shares" => options.cpu_shares = Some(parsed(name, &text(parser)?)?),
        "pids" => options.pids = Some(parsed(name, &text(parser)?)?),
        "network" => options.network = parse_network(&text(parser)?)?,
        "seccomp" => options.seccomp = parse_seccomp(&text(parser)?),
        other => return Err(usage(format!("run has no option {other:?}")).hint("see coracle help")),
    }
    Ok(())
}

fn parse_network(text: &str) -> Result<Network> {
    match text {
        "none" => Ok(Network::None),
        "host" => Ok(Network::Host),
        other => Err(usage(format!("--network {other:?} is neither none nor host"))),
    }
}

fn parse_seccomp(text: &str) -> Seccomp {
    match text {
        "default" => Seccomp::Default,
        "unconfined" => Seccomp::Unconfined,
        file => Seccomp::File(file.into()),
    }
}
