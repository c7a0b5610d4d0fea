//! `create` and `run`: from a bundle, and from an image.

use std::path::PathBuf;

use coracle_image::bundle::Seccomp;
use coracle_isolator_volume::disk;
use coracle_sys::descriptor;
use lexopt::prelude::*;

use super::network::Networks;
use super::words::{self, need_id, parsed, rest, size, text, usage};
use crate::error::Result;

/// The options of `create` and `run`.
#[derive(Debug, Clone, Default)]
pub struct Launch {
    /// The container's ID.
    pub id: String,
    /// The bundle's directory.
    pub bundle: PathBuf,
    /// The configuration, where it is not the bundle's `config.json`.
    pub config: Option<PathBuf>,
    /// Where the first process's PID is written.
    pub pid_file: Option<PathBuf>,
    /// The Unix socket that gets the terminal's master.
    pub console_socket: Option<String>,
    /// The Unix socket that gets a descriptor of the process (pidfd_open(2)).
    pub pidfd_socket: Option<String>,
    /// The descriptors that the process inherits.
    pub preserve_fds: Vec<i32>,
    /// How many of them, the first ones, are sockets to listen on (sd_listen_fds(3)).
    pub listen_fds: u32,
    /// Change the root by chroot(2), on an initial ramfs that can't be pivoted.
    pub no_pivot: bool,
    /// Keep the caller's session keyring.
    pub no_new_keyring: bool,
    /// Do not wait for the end.
    pub detach: bool,
    /// Leave the container's state and cgroups behind when it ends.
    pub keep: bool,
    /// Whoever launches passes the terminal on to others, as a pod's supervisor does: they show it.
    pub hands_terminal_on: bool,
}

impl Launch {
    /// No options but what the environment says.
    ///
    /// # Errors
    /// `Usage` where it says nonsense.
    pub(super) fn listening() -> Result<Self> {
        let listen_fds = listen_fds();
        Ok(Self { listen_fds, preserve_fds: open_fds(listen_fds)?, ..Self::default() })
    }
}

/// When `run` and `debug` with `--image` pull it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Pull {
    /// Each time.
    Always,
    /// Where the store doesn't have it.
    #[default]
    Missing,
    /// Not at all.
    Never,
}

/// The options of `run --image`.
#[derive(Debug, Clone, Default)]
pub struct ImageRun {
    /// The image's reference in the store.
    pub reference: String,
    /// The image store.
    pub store: Option<PathBuf>,
    /// When the image is pulled from its registry.
    pub pull: Pull,
    /// What the bundle is made with.
    pub options: coracle_image::bundle::Options,
}

/// The options of `create` or `run`, which `command` is.
pub(super) fn parse(parser: &mut lexopt::Parser, command: &str) -> Result<(Launch, Option<Box<ImageRun>>)> {
    let mut launch = Launch::listening()?;
    let mut image = ImageRun::default();
    let mut networks = Networks::default();
    let mut from_image = false;
    let mut bundle: Option<PathBuf> = None;
    let mut only_for_images: Option<String> = None;
    loop {
        if from_image && launch.id.is_empty() && program_follows(parser) {
            return Err(usage("the container's ID is missing before --")
                .hint("coracle run --image REFERENCE [options] ID [-- PROGRAM...]"));
        }
        let Some(arg) = parser.next()? else { break };
        match arg {
            Short('b') | Long("bundle") => bundle = Some(parser.value()?.into()),
            Short('f') | Long("config") => launch.config = Some(parser.value()?.into()),
            Short('d') if command == "run" => launch.detach = true,
            Long("detach") if command == "run" => launch.detach = words::switch(parser, "detach")?,
            Long("keep") if command == "run" => launch.keep = words::switch(parser, "keep")?,
            Short('n') => words::no_subreaper(parser)?,
            Long("no-subreaper") => drop(words::switch(parser, "no-subreaper")?),
            Long(name) if is_shared(name) => shared(name.to_owned().as_str(), parser, &mut launch)?,
            Long("image") if command == "run" => {
                from_image = true;
                image.reference = text(parser)?;
            }
            Short(_) | Long(_) if command == "run" => {
                let name = arg_name(&arg);
                from_image_option(&name, parser, (&mut image, &mut networks))?;
                only_for_images.get_or_insert(name);
            }
            Value(id) if launch.id.is_empty() => {
                launch.id = words::id(id)?;
                if from_image {
                    image.options.args = rest(parser)?;
                }
            }
            other => return Err(other.unexpected().into()),
        }
    }
    need_id(&launch.id, command)?;
    match (from_image, &bundle, only_for_images) {
        (true, _, _) if launch.config.is_some() => Err(usage("--config and --image exclude each other")
            .hint("an image's container has its own configuration")),
        (true, Some(_), _) => {
            Err(usage("--bundle and --image exclude each other")
                .hint("an image's container has its own bundle"))
        }
        (false, _, Some(name)) => Err(usage(format!("{name} is for containers from an image"))
            .hint("add --image REFERENCE, or set it in the bundle's config.json")),
        _ => {
            launch.bundle = bundle.unwrap_or_else(|| ".".into());
            networks.apply(&mut image.options)?;
            Ok((launch, from_image.then(|| Box::new(image))))
        }
    }
}

/// Whether `--` is next: what comes after it is the program.
fn program_follows(parser: &mut lexopt::Parser) -> bool {
    parser.try_raw_args().is_some_and(|args| args.peek().is_some_and(|next| next == "--"))
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
        "preserve-fds" => {
            let more = parsed::<u32>("preserve-fds", &text(parser)?)?;
            launch.preserve_fds = open_fds(launch.listen_fds.saturating_add(more))?;
        }
        "no-pivot" => launch.no_pivot = words::switch(parser, name)?,
        _ => launch.no_new_keyring = words::switch(parser, name)?,
    }
    Ok(())
}

/// No process has more descriptors than this (`fs.nr_open`, proc_sys_fs(5)).
const MOST_FDS: u32 = 1 << 20;

/// How many sockets to listen on the caller passes: from descriptor 3 on, before those of `--preserve-fds`. A variable that
/// is left of another process tells nothing of ours (sd_listen_fds(3)).
fn listen_fds() -> u32 {
    let number = |name: &str| std::env::var(name).ok().and_then(|number| number.parse().ok());
    let is_ours = number("LISTEN_PID") == Some(std::process::id());
    number("LISTEN_FDS").filter(|_| is_ours).unwrap_or(0)
}

/// Those of the first `number` descriptors from 3 on that the caller left open: the command line is read before any
/// other is.
fn open_fds(number: u32) -> Result<Vec<i32>> {
    let few = i32::try_from(number).ok().filter(|_| number <= MOST_FDS);
    let few =
        few.ok_or_else(|| usage(format!("--preserve-fds {number} is more than a process can have open")))?;
    Ok((3..3 + few).filter(|fd| descriptor::is_open(*fd)).collect())
}

fn arg_name(arg: &lexopt::Arg<'_>) -> String {
    match arg {
        Short(short) => format!("-{short}"),
        Long(long) => format!("--{long}"),
        Value(value) => value.to_string_lossy().into_owned(),
    }
}

fn from_image_option(
    name: &str,
    parser: &mut lexopt::Parser,
    (image, networks): (&mut ImageRun, &mut Networks),
) -> Result<()> {
    let options = &mut image.options;
    match name {
        "--store" => image.store = Some(parser.value()?.into()),
        "--pull" => image.pull = parse_pull(&text(parser)?)?,
        "-e" | "--env" => options.env.push(text(parser)?),
        "-v" | "--volume" => options.volumes.push(text(parser)?),
        "--tmpfs" => options.tmpfs.push(text(parser)?),
        "-u" | "--user" => options.user = Some(text(parser)?),
        "-w" | "--workdir" => options.working_dir = Some(text(parser)?),
        "-t" => options.terminal = true,
        "--tty" => options.terminal = words::switch(parser, "tty")?,
        "--hostname" => options.hostname = Some(text(parser)?),
        "--entrypoint" => options.entrypoint = Some(vec![text(parser)?]),
        "--cap-add" => options.cap_add.push(text(parser)?),
        "--cap-drop" => options.cap_drop.push(text(parser)?),
        "--read-only" => options.read_only = words::switch(parser, "read-only")?,
        "--memory" => options.memory = Some(size("memory", &text(parser)?)?),
        "--cpus" => options.cpus = Some(cpus(&text(parser)?)?),
        "--cpu-shares" => options.cpu_shares = Some(parsed("cpu-shares", &text(parser)?)?),
        "--pids" => options.pids = Some(parsed("pids", &text(parser)?)?),
        "--network" => networks.join(&text(parser)?),
        "-p" | "--publish" => networks.publish(&text(parser)?)?,
        "--dns" => networks.wanted.dns.nameservers.push(text(parser)?),
        "--device" => device(&text(parser)?, options)?,
        "--annotation" => annotation(&text(parser)?, options)?,
        "--storage-opt" => storage(&text(parser)?, options)?,
        "--seccomp" => options.seccomp = parse_seccomp(&text(parser)?),
        other => return Err(usage(format!("run has no option {other}")).hint(instead_of(other))),
    }
    Ok(())
}

/// What people of other tools find here instead of their option.
fn instead_of(option: &str) -> &'static str {
    match option {
        "--rm" => "a container goes when it ends, unless --keep is given",
        "-i" | "--interactive" => "the standard input is always passed on",
        "--name" => "the name stands after the options: coracle run [options] NAME",
        _ => "see coracle run --help",
    }
}

pub(super) fn cpus(text: &str) -> Result<f64> {
    let number = parsed::<f64>("cpus", text)?;
    let some = Some(number).filter(|n| n.is_finite() && *n > 0.0);
    some.ok_or_else(|| usage(format!("--cpus {text:?} is no number of processors")).hint("write it like 1.5"))
}

pub(super) fn parse_pull(text: &str) -> Result<Pull> {
    match text {
        "always" => Ok(Pull::Always),
        "missing" => Ok(Pull::Missing),
        "never" => Ok(Pull::Never),
        _ => Err(usage(format!("--pull {text:?} is none of always, missing and never"))),
    }
}

/// A device by the name that its vendor gives it (docs/devices.md).
fn device(name: &str, options: &mut coracle_image::bundle::Options) -> Result<()> {
    if !name.contains('=') || name.starts_with('/') {
        let why = format!("--device {name:?} is not of the form VENDOR/CLASS=NAME");
        return Err(usage(why).hint("devices have names by CDI: docs/devices.md"));
    }
    let names = options.annotations.entry("cdi.k8s.io/coracle".to_owned()).or_default();
    if !names.is_empty() {
        names.push(',');
    }
    names.push_str(name);
    Ok(())
}

fn annotation(text: &str, options: &mut coracle_image::bundle::Options) -> Result<()> {
    let (name, value) = text
        .split_once('=')
        .filter(|(name, _)| !name.is_empty())
        .ok_or_else(|| usage(format!("--annotation {text:?} is not of the form NAME=VALUE")))?;
    options.annotations.insert(name.to_owned(), value.to_owned());
    Ok(())
}

/// What may be written over the image (Docker's option, and podman's). The isolator `disk/quota` has it kept.
fn storage(text: &str, options: &mut coracle_image::bundle::Options) -> Result<()> {
    let most = text.strip_prefix("size=").ok_or_else(|| {
        usage(format!("--storage-opt {text:?} is none that is known")).hint("write it like size=10g")
    })?;
    let most = size("storage-opt size", most)?;
    options.annotations.insert(disk::ANNOTATION.to_owned(), most.to_string());
    options.needs_quotas = true;
    Ok(())
}

fn parse_seccomp(text: &str) -> Seccomp {
    match text {
        "default" => Seccomp::Default,
        "unconfined" => Seccomp::Unconfined,
        file => Seccomp::File(file.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(line: &str) -> Result<(Launch, Option<Box<ImageRun>>)> {
        parse(&mut lexopt::Parser::from_args(line.split(' ')), "run")
    }

    #[test]
    fn what_follows_the_dashes_is_the_program_of_the_image() {
        let (launch, image) = run("--image app --cpus 1.5 web -- ls --image").unwrap();
        let image = image.unwrap();
        assert_eq!((launch.id.as_str(), image.options.cpus), ("web", Some(1.5)));
        assert_eq!(image.options.args, ["ls", "--image"]);
    }

    #[test]
    fn an_option_that_would_do_nothing_is_refused() {
        for (line, words) in [
            ("--memory 1g web", "--memory is for containers from an image; add --image REFERENCE"),
            ("-e A=b web", "-e is for containers from an image"),
            ("--image app --bundle /b web", "--bundle and --image exclude each other"),
            ("--image app --config /c.json web", "--config and --image exclude each other"),
            ("--image app -- true", "the container's ID is missing before --; coracle run --image"),
            ("--image app --cpus 0 web", "--cpus \"0\" is no number of processors"),
            ("--image app --cpus -1 web", "--cpus \"-1\" is no number of processors"),
            ("--image app --cpus nan web", "--cpus \"nan\" is no number of processors"),
            (
                "--image app --storage-opt dm.x=1 web",
                "--storage-opt \"dm.x=1\" is none that is known; write it like",
            ),
            ("--image app --storage-opt size=big web", "--storage-opt size \"big\" is no size"),
            ("--rm web", "run has no option --rm; a container goes when it ends, unless --keep is given"),
            ("-i web", "run has no option -i; the standard input is always passed on"),
            ("--name web", "run has no option --name; the name stands after the options"),
            (
                "--image app -p 80:80 web",
                "--publish and --dns are for containers on networks; add --network bridge",
            ),
            ("--image app --network host,bridge web", "--network host and others exclude each other"),
            ("--image app --network bridge -p 80 web", "\"80\" is no mapping of a port; write "),
            ("--frob web", "run has no option --frob; see coracle run --help"),
        ] {
            let error = run(line).unwrap_err().to_string();
            assert!(error.starts_with(words), "{line}: {error}");
        }
    }

    #[test]
    fn create_knows_nothing_of_images() {
        let parsed = parse(&mut lexopt::Parser::from_args(["--image", "app", "web"]), "create");
        assert_eq!(parsed.unwrap_err().to_string(), "invalid option '--image'; see coracle help");
    }
}
