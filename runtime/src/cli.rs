//! The command line, runc's: global options, a command, its options, its arguments.

use std::ffi::OsString;
use std::path::PathBuf;

use coracle_image::bundle::{Network, Seccomp};
use lexopt::prelude::*;

use crate::error::{Code, Error, Result};

/// What stands before the command.
#[derive(Debug, Clone)]
pub struct Global {
    /// The directory of the containers' states (`--root`).
    pub root: PathBuf,
    /// Where failures are logged too (`--log`).
    pub log: Option<PathBuf>,
    /// Whether the log is JSON (`--log-format json`).
    pub log_json: bool,
    /// Whether containers get cgroups (`--cgroup-manager cgroupfs|disabled`).
    pub cgroups: bool,
}

/// A command with its options.
#[derive(Debug)]
pub enum Command {
    /// Builds a container whose first process waits.
    Create(Launch),
    /// Lets the first process of a created container execute.
    Start(String),
    /// `create` and `start` in one, and unless detached also the wait and `delete`.
    Run(Launch, Option<Box<ImageRun>>),
    /// Runs one more process in a container.
    Exec(Box<Exec>),
    /// Prints a container's state as JSON.
    State(String),
    /// Sends a signal.
    Kill(Kill),
    /// Removes a container.
    Delete {
        /// The container.
        id: String,
        /// Also when it runs, and when there is none.
        force: bool,
    },
    /// Prints a container's processes.
    Ps(Ps),
    /// Prints all containers.
    List(List),
    /// Prints what the isolators measured, as JSON.
    Stats(String),
    /// Writes a `config.json` to start from.
    Spec(PathBuf),
    /// Prints what this runtime can do, as JSON.
    Features,
    /// Prints the launch plan of a bundle, as JSON.
    Plan(PathBuf),
    /// Hands over to `coracle-image`.
    Image(Vec<OsString>),
    /// Prints a text and is done.
    Print(String),
}

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

/// The options of `exec`.
#[derive(Debug, Clone, Default)]
pub struct Exec {
    /// The container.
    pub id: String,
    /// The program and its arguments.
    pub args: Vec<String>,
    /// A file with the whole process as JSON.
    pub process: Option<PathBuf>,
    /// The working directory.
    pub cwd: Option<PathBuf>,
    /// More environment variables.
    pub env: Vec<String>,
    /// `UID[:GID]`.
    pub user: Option<String>,
    /// Supplementary groups.
    pub additional_gids: Vec<u32>,
    /// Capabilities to add to every set but ambient.
    pub capabilities: Vec<String>,
    /// Forbid new privileges.
    pub no_new_privileges: bool,
    /// Give the process a terminal.
    pub tty: bool,
    /// As for `create`.
    pub launch: Launch,
}

/// The options of `kill`.
#[derive(Debug, Clone, Default)]
pub struct Kill {
    /// The container.
    pub id: String,
    /// The signal's number.
    pub signal: i32,
    /// To every process of the container.
    pub all: bool,
}

/// The options of `ps`.
#[derive(Debug, Clone, Default)]
pub struct Ps {
    /// The container.
    pub id: String,
    /// Print the PIDs as a JSON array.
    pub json: bool,
    /// Arguments for ps(1).
    pub args: Vec<String>,
}

/// The options of `list`.
#[derive(Debug, Clone, Default)]
pub struct List {
    /// Print JSON.
    pub json: bool,
    /// Print IDs only.
    pub quiet: bool,
}

/// Where `main` learns the global options, even where the command after them can't be understood.
pub fn parse(args: Vec<OsString>) -> (Global, Result<Command>) {
    let mut parser = lexopt::Parser::from_args(args);
    let mut global = Global { root: "/run/coracle".into(), log: None, log_json: false, cgroups: true };
    let command = parse_command(&mut parser, &mut global);
    (global, command)
}

fn parse_command(parser: &mut lexopt::Parser, global: &mut Global) -> Result<Command> {
    while let Some(arg) = parser.next()? {
        match arg {
            Long("root") => global.root = parser.value()?.into(),
            Long("log") => global.log = Some(parser.value()?.into()),
            Long("log-format") => match text(parser)?.as_str() {
                "text" => global.log_json = false,
                "json" => global.log_json = true,
                other => return Err(usage(format!("--log-format {other:?} is neither text nor json"))),
            },
            Long("cgroup-manager") => match text(parser)?.as_str() {
                "cgroupfs" => global.cgroups = true,
                "disabled" => global.cgroups = false,
                "systemd" => return Err(no_systemd()),
                other => {
                    return Err(usage(format!(
                        "--cgroup-manager {other:?} is neither cgroupfs nor disabled"
                    )));
                }
            },
            Long("systemd-cgroup") => return Err(no_systemd()),
            Long("debug") => {}
            Short('v') | Long("version") => return Ok(Command::Print(version())),
            Short('h') | Long("help") => return Ok(Command::Print(HELP.to_owned())),
            Value(command) => return parse_options(&command.string()?, parser),
            other => return Err(other.unexpected().into()),
        }
    }
    Ok(Command::Print(HELP.to_owned()))
}

fn parse_options(command: &str, parser: &mut lexopt::Parser) -> Result<Command> {
    match command {
        "create" => Ok(Command::Create(launch(parser, "create")?.0)),
        "run" => launch(parser, "run").map(|(launch, image)| Command::Run(launch, image)),
        "start" => Ok(Command::Start(only_id(parser, "start")?)),
        "exec" => exec(parser).map(|e| Command::Exec(Box::new(e))),
        "state" => Ok(Command::State(only_id(parser, "state")?)),
        "stats" => Ok(Command::Stats(only_id(parser, "stats")?)),
        "kill" => kill(parser),
        "delete" => delete(parser),
        "ps" => ps(parser),
        "list" | "ls" => list(parser),
        "spec" => Ok(Command::Spec(bundle_only(parser, "spec")?)),
        "plan" => Ok(Command::Plan(bundle_only(parser, "plan")?)),
        "features" => Ok(Command::Features),
        "image" => Ok(Command::Image(parser.raw_args()?.collect())),
        "help" => Ok(Command::Print(HELP.to_owned())),
        "version" => Ok(Command::Print(version())),
        other => Err(usage(format!("there is no command {other:?}")).hint("see coracle help")),
    }
}

fn launch(parser: &mut lexopt::Parser, command: &str) -> Result<(Launch, Option<Box<ImageRun>>)> {
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
fn is_shared(name: &str) -> bool {
    ["pid-file", "console-socket", "preserve-fds", "no-pivot", "no-new-keyring"].contains(&name)
}

fn shared(name: &str, parser: &mut lexopt::Parser, launch: &mut Launch) -> Result<()> {
    match name {
        "pid-file" => launch.pid_file = Some(parser.value()?.into()),
        "console-socket" => launch.console_socket = Some(text(parser)?),
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
        "memory" => options.memory = Some(parse_size(&text(parser)?)?),
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

fn parsed<T: std::str::FromStr<Err: std::fmt::Display>>(name: &str, value: &str) -> Result<T> {
    value.parse().map_err(|e| usage(format!("--{name} {value:?}: {e}")))
}

/// A number of bytes: `512k`, `64m`, `1g`, or plain.
fn parse_size(value: &str) -> Result<i64> {
    let (digits, shift) = match value.to_ascii_lowercase().chars().last() {
        Some('k') => (&value[..value.len() - 1], 10),
        Some('m') => (&value[..value.len() - 1], 20),
        Some('g') => (&value[..value.len() - 1], 30),
        _ => (value, 0),
    };
    let size = digits.parse::<i64>().ok().and_then(|n| n.checked_mul(1 << shift)).filter(|n| *n > 0);
    size.ok_or_else(|| usage(format!("--memory {value:?} is no size")).hint("write it like 64m or 1g"))
}

fn exec(parser: &mut lexopt::Parser) -> Result<Exec> {
    let mut exec = Exec::default();
    while let Some(arg) = parser.next()? {
        match arg {
            Short('p') | Long("process") => exec.process = Some(parser.value()?.into()),
            Long("cwd") => exec.cwd = Some(parser.value()?.into()),
            Short('e') | Long("env") => exec.env.push(text(parser)?),
            Short('u') | Long("user") => exec.user = Some(text(parser)?),
            Short('g') | Long("additional-gids") => exec.additional_gids.push(parser.value()?.parse()?),
            Short('c') | Long("cap") => exec.capabilities.push(text(parser)?),
            Long("no-new-privs") => exec.no_new_privileges = true,
            Short('t') | Long("tty") => exec.tty = true,
            Short('d') | Long("detach") => exec.launch.detach = true,
            Long("ignore-paused") => {}
            Long(name) if is_shared(name) => shared(name.to_owned().as_str(), parser, &mut exec.launch)?,
            Value(id) => {
                exec.id = id.string()?;
                exec.args = rest(parser)?;
            }
            other => return Err(other.unexpected().into()),
        }
    }
    need_id(&exec.id, "exec")?;
    if exec.args.is_empty() && exec.process.is_none() {
        return Err(usage("exec needs a program to run".into()).hint("coracle exec ID PROGRAM [ARG...]"));
    }
    Ok(exec)
}

fn kill(parser: &mut lexopt::Parser) -> Result<Command> {
    let mut kill = Kill { signal: libc::SIGTERM, ..Kill::default() };
    let mut has_signal = false;
    while let Some(arg) = parser.next()? {
        match arg {
            Short('a') | Long("all") => kill.all = true,
            Value(id) if kill.id.is_empty() => kill.id = id.string()?,
            Value(signal) if !has_signal => {
                kill.signal = parse_signal(&signal.string()?)?;
                has_signal = true;
            }
            other => return Err(other.unexpected().into()),
        }
    }
    need_id(&kill.id, "kill")?;
    Ok(Command::Kill(kill))
}

/// A signal by number or name, with or without `SIG`.
fn parse_signal(text: &str) -> Result<i32> {
    if let Ok(number) = text.parse::<i32>()
        && (0..=64).contains(&number)
    {
        return Ok(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = if upper.starts_with("SIG") { upper } else { format!("SIG{upper}") };
    let signal: std::result::Result<nix::sys::signal::Signal, _> = name.parse();
    signal.map(|s| s as i32).map_err(|_| usage(format!("there is no signal {text:?}")))
}

fn delete(parser: &mut lexopt::Parser) -> Result<Command> {
    let (mut id, mut force) = (String::new(), false);
    while let Some(arg) = parser.next()? {
        match arg {
            Short('f') | Long("force") => force = true,
            Value(value) if id.is_empty() => id = value.string()?,
            other => return Err(other.unexpected().into()),
        }
    }
    need_id(&id, "delete")?;
    Ok(Command::Delete { id, force })
}

fn ps(parser: &mut lexopt::Parser) -> Result<Command> {
    let mut ps = Ps::default();
    while let Some(arg) = parser.next()? {
        match arg {
            Short('f') | Long("format") => ps.json = is_json(&text(parser)?)?,
            Value(id) => {
                ps.id = id.string()?;
                ps.args = rest(parser)?;
            }
            other => return Err(other.unexpected().into()),
        }
    }
    need_id(&ps.id, "ps")?;
    Ok(Command::Ps(ps))
}

fn list(parser: &mut lexopt::Parser) -> Result<Command> {
    let mut list = List::default();
    while let Some(arg) = parser.next()? {
        match arg {
            Short('f') | Long("format") => list.json = is_json(&text(parser)?)?,
            Short('q') | Long("quiet") => list.quiet = true,
            other => return Err(other.unexpected().into()),
        }
    }
    Ok(Command::List(list))
}

fn is_json(format: &str) -> Result<bool> {
    match format {
        "json" => Ok(true),
        "table" => Ok(false),
        other => Err(usage(format!("--format {other:?} is neither table nor json"))),
    }
}

fn bundle_only(parser: &mut lexopt::Parser, command: &str) -> Result<PathBuf> {
    let mut bundle = PathBuf::from(".");
    while let Some(arg) = parser.next()? {
        match arg {
            Short('b') | Long("bundle") => bundle = parser.value()?.into(),
            Value(value) if command == "plan" => bundle = value.into(),
            other => return Err(other.unexpected().into()),
        }
    }
    Ok(bundle)
}

fn only_id(parser: &mut lexopt::Parser, command: &str) -> Result<String> {
    let mut id = String::new();
    while let Some(arg) = parser.next()? {
        match arg {
            Value(value) if id.is_empty() => id = value.string()?,
            other => return Err(other.unexpected().into()),
        }
    }
    need_id(&id, command)?;
    Ok(id)
}

fn need_id(id: &str, command: &str) -> Result<()> {
    if id.is_empty() {
        return Err(usage(format!("{command} needs a container's ID")).hint("see coracle help"));
    }
    Ok(())
}

/// All that is left, as it is: what looks like an option belongs to the container's program. A first `--`
/// only says so.
fn rest(parser: &mut lexopt::Parser) -> Result<Vec<String>> {
    let mut rest: Vec<OsString> = parser.raw_args()?.collect();
    if rest.first().is_some_and(|first| first == "--") {
        rest.remove(0);
    }
    rest.into_iter().map(|arg| Ok(arg.string()?)).collect()
}

fn text(parser: &mut lexopt::Parser) -> Result<String> {
    Ok(parser.value()?.string()?)
}

fn usage(why: String) -> Error {
    Error::new(Code::Usage, why)
}

fn no_systemd() -> Error {
    Error::new(Code::Unsupported, "the systemd cgroup manager is not supported yet")
        .hint("leave --systemd-cgroup away, or use --cgroup-manager cgroupfs")
}

fn version() -> String {
    format!("coracle version {}\nspec: {}\n", env!("CARGO_PKG_VERSION"), crate::stages::spec::SPEC_VERSION)
}

impl From<lexopt::Error> for Error {
    fn from(error: lexopt::Error) -> Self {
        usage(error.to_string()).hint("see coracle help")
    }
}

const HELP: &str = include_str!("help.txt");

#[cfg(test)]
mod tests {
    use super::*;

    fn command(line: &str) -> Result<Command> {
        parse(line.split(' ').map(OsString::from).collect()).1
    }

    #[test]
    fn options_after_the_container_belong_to_the_program() {
        let Ok(Command::Exec(exec)) = command("exec -t web ls -t --all") else { panic!() };
        assert_eq!(exec.args, ["ls", "-t", "--all"]);
        assert!(exec.tty);
    }

    #[test]
    fn a_double_dash_before_the_program_is_no_argument() {
        let Ok(Command::Exec(exec)) = command("exec web -- ls --") else { panic!() };
        assert_eq!(exec.args, ["ls", "--"]);
    }

    #[test]
    fn signals_are_known_by_name_and_number() {
        for (text, number) in [("9", 9), ("KILL", 9), ("SIGTERM", 15), ("sigint", 2), ("0", 0), ("64", 64)] {
            assert_eq!(parse_signal(text).unwrap(), number);
        }
        assert!(parse_signal("SIGNONE").unwrap_err().to_string().contains("no signal \"SIGNONE\""));
    }

    #[test]
    fn sizes_have_units() {
        assert_eq!(parse_size("64m").unwrap(), 64 << 20);
        assert_eq!(parse_size("4096").unwrap(), 4096);
        for bad in ["", "m", "-1", "1x", "99999999999g"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_wrong_command_line_says_what_is_wrong() {
        for (line, words) in [
            ("frobnicate", "there is no command \"frobnicate\""),
            ("start", "start needs a container's ID"),
            ("exec web", "exec needs a program"),
            ("--log-format xml state a", "neither text nor json"),
            ("state a b", "unexpected argument"),
        ] {
            let error = command(line).unwrap_err().to_string();
            assert!(error.contains(words), "{line}: {error}");
        }
    }
}
