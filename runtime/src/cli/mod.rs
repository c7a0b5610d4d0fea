//! The command line, runc's: global options, a command, its options, its arguments.

mod words;
mod help;
mod launch;
mod exec;
mod debug;
mod look;
mod update;
mod checkpoint;
mod isolator;
mod complete;
mod node;
mod pod;
mod network;

use std::ffi::OsString;
use std::path::PathBuf;

use coracle_sys::identity;
use lexopt::prelude::*;

use crate::cgroup::{Management, Manager, Rootless};
use crate::error::{Error, Result};
use help::HELP;
use words::{need_id, only_id, text, usage};

pub use checkpoint::Checkpoint;
pub use complete::candidates;
pub use debug::{Debug, Debugging, Files, Wanted};
pub use exec::Exec;
pub use isolator::{Isolators, Stats};
pub use launch::{ImageRun, Launch, Pull};
pub use look::{Events, List, Listen, Ps};
pub use network::NetworkVerb;
pub use node::NodeVerb;
pub use pod::{Attach, Drain, ListForm, Logs, Make, PodExec, PodVerb, Target};
pub use update::Update;
pub(crate) use words::signal;

/// What stands before the command.
#[derive(Debug, Clone)]
pub struct Global {
    /// The directory of the containers' states (`--root`).
    pub root: PathBuf,
    /// Where failures are logged too (`--log`).
    pub log: Option<PathBuf>,
    /// Whether the log is JSON (`--log-format json`).
    pub log_json: bool,
    /// Whether what is done is logged, too (`--debug`).
    pub debug: bool,
    /// Who makes the containers' cgroups (`--cgroup-manager`, `--systemd-cgroup`), with which rights (`--rootless`).
    pub cgroups: Management,
    /// CRIU's name or path (`--criu`).
    pub criu: String,
    /// The directory of the configuration (`--config`).
    pub config: PathBuf,
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
    /// Looks into a container, or at who does.
    Debug(Debugging),
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
        /// Take the ID for a regular expression, and all containers that it matches.
        regex: bool,
    },
    /// Freezes a container's processes.
    Pause(String),
    /// Thaws them.
    Resume(String),
    /// Changes a container's limits.
    Update(Box<Update>),
    /// Writes a container's processes to files.
    Checkpoint(Box<Checkpoint>),
    /// Makes a container again from such files.
    Restore(Launch, Box<Checkpoint>),
    /// Changes what is mounted in a container.
    Mounts(Mounts),
    /// Prints what a container uses, again and again, and when it runs into its memory limit.
    Events(Events),
    /// Prints a container's processes.
    Ps(Ps),
    /// Prints all containers.
    List(List),
    /// Prints what the isolators measured.
    Stats(Stats),
    /// Prints or serves what all containers and pods use, and what their programs tell.
    Metrics(Listen),
    /// Looks at isolators.
    Isolator(Isolators),
    /// Prints the volumes.
    Volumes,
    /// Removes a volume.
    RemoveVolume(String),
    /// Looks at networks.
    Network(NetworkVerb),
    /// Removes what launches left that were cut off.
    Recover,
    /// Does something with pods.
    Pod(PodVerb),
    /// Ends the pods of the host for its maintenance.
    Drain(Drain),
    /// Writes a `config.json` to start from.
    Spec {
        /// The bundle.
        bundle: PathBuf,
        /// The file's name in it, or a path.
        file: PathBuf,
        /// One that a user without privilege can run.
        rootless: bool,
    },
    /// Prints what this runtime can do, as JSON.
    Features,
    /// Prints the launch plan of a bundle, as JSON.
    Plan(PathBuf),
    /// Hands over to `coracle-image`.
    Image(Vec<OsString>),
    /// Hands over to `coracle-isolator-host`.
    IsolatorHost(Vec<OsString>),
    /// Prints what may stand in the place of the last of these words: completion for shells.
    Complete(Vec<String>),
    /// Prints a text and is done.
    Print(String),
}

/// Where `main` learns the global options, even where the command after them can't be understood.
pub fn parse(args: Vec<OsString>) -> (Global, Result<Command>) {
    let mut parser = lexopt::Parser::from_args(args);
    let mut global = Global {
        root: PathBuf::new(),
        log: None,
        log_json: false,
        debug: false,
        cgroups: Management { by: Manager::Cgroupfs, rootless: Rootless::Auto },
        criu: "criu".into(),
        config: "/etc/coracle".into(),
    };
    let command = parse_command(&mut parser, &mut global);
    if global.root.as_os_str().is_empty() {
        global.root = default_root();
    }
    (global, command)
}

/// Where the states are without `--root`: the user's own are in the directory of its session, as runc's and crun's.
fn default_root() -> PathBuf {
    let session = std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty());
    match session.filter(|_| identity::is_rootless()) {
        Some(dir) => PathBuf::from(dir).join("coracle"),
        None => "/run/coracle".into(),
    }
}

fn parse_command(parser: &mut lexopt::Parser, global: &mut Global) -> Result<Command> {
    while let Some(arg) = parser.next()? {
        match arg {
            Long("root") => global.root = parser.value()?.into(),
            Long("log") => global.log = Some(words::log(parser.value()?)?),
            Long("log-format") => match text(parser)?.as_str() {
                "text" => global.log_json = false,
                "json" => global.log_json = true,
                other => return Err(usage(format!("--log-format {other:?} is neither text nor json"))),
            },
            Long("cgroup-manager") => match text(parser)?.as_str() {
                "cgroupfs" => global.cgroups.by = Manager::Cgroupfs,
                "systemd" => global.cgroups.by = Manager::Systemd,
                "disabled" => global.cgroups.by = Manager::Disabled,
                other => {
                    return Err(usage(format!(
                        "--cgroup-manager {other:?} is none of cgroupfs, systemd, disabled"
                    )));
                }
            },
            Long("systemd-cgroup") => {
                if words::switch(parser, "systemd-cgroup")? {
                    global.cgroups.by = Manager::Systemd;
                }
            }
            Long("rootless") => global.cgroups.rootless = words::rootless(&text(parser)?)?,
            Long("debug") => global.debug = words::switch(parser, "debug")?,
            Long("log-level") => global.debug = words::is_debug(&text(parser)?)?,
            Long("criu") => global.criu = text(parser)?,
            Long("config") => global.config = parser.value()?.into(),
            Short('v' | 'V') | Long("version") => return Ok(Command::Print(version())),
            Short('h' | '?') | Long("help") => return Ok(Command::Print(HELP.to_owned())),
            Value(command) => return parse_options(&command.string()?, parser),
            other => return Err(other.unexpected().into()),
        }
    }
    Ok(Command::Print(HELP.to_owned()))
}

fn parse_options(command: &str, parser: &mut lexopt::Parser) -> Result<Command> {
    if help::is_wanted(parser, command) {
        let none = || usage(format!("No help topic for '{command}'")).hint("see coracle help");
        return help::of(command).map(Command::Print).ok_or_else(none);
    }
    match command {
        "create" => Ok(Command::Create(launch::parse(parser, "create")?.0)),
        "run" => launch::parse(parser, "run").map(|(launch, image)| Command::Run(launch, image)),
        "start" => Ok(Command::Start(only_id(parser, "start")?)),
        "exec" => exec::parse(parser).map(|e| Command::Exec(Box::new(e))),
        "debug" => debug::parse(parser).map(Command::Debug),
        "state" => Ok(Command::State(only_id(parser, "state")?)),
        "stats" => isolator::stats(parser).map(Command::Stats),
        "metrics" => look::metrics(parser).map(Command::Metrics),
        "isolator" => isolator::isolator(parser).map(Command::Isolator),
        "volume" => volume(parser),
        "network" => network::network(parser).map(Command::Network),
        "recover" => words::nothing(parser).map(|()| Command::Recover),
        "pod" => pod::parse(parser),
        "drain" => pod::drain(parser),
        "kill" => kill(parser),
        "pause" => Ok(Command::Pause(only_id(parser, "pause")?)),
        "resume" => Ok(Command::Resume(only_id(parser, "resume")?)),
        "update" => update::parse(parser).map(|update| Command::Update(Box::new(update))),
        "checkpoint" => checkpoint::checkpoint(parser).map(|options| Command::Checkpoint(Box::new(options))),
        "restore" => {
            checkpoint::restore(parser).map(|(launch, from)| Command::Restore(launch, Box::new(from)))
        }
        "mounts" => mounts(parser),
        "events" => look::events(parser).map(Command::Events),
        "delete" => delete(parser),
        "ps" => look::ps(parser),
        "list" | "ls" => look::list(parser),
        "spec" => spec(parser),
        "plan" => plan(parser),
        "features" => words::nothing(parser).map(|()| Command::Features),
        "image" => Ok(Command::Image(parser.raw_args()?.collect())),
        "isolator-host" => Ok(Command::IsolatorHost(parser.raw_args()?.collect())),
        "complete" => words::rest(parser).map(Command::Complete),
        "help" => help(parser),
        "version" => Ok(Command::Print(version())),
        other => Err(no_command(other)),
    }
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
    /// Take the ID for a regular expression, and all containers that it matches.
    pub regex: bool,
}

fn kill(parser: &mut lexopt::Parser) -> Result<Command> {
    let mut kill = Kill { signal: libc::SIGTERM, ..Kill::default() };
    let mut has_signal = false;
    while let Some(arg) = parser.next()? {
        match arg {
            Short('a') => kill.all = true,
            Long("all") => kill.all = words::switch(parser, "all")?,
            Short('r') => kill.regex = true,
            Long("regex") => kill.regex = words::switch(parser, "regex")?,
            Value(id) if kill.id.is_empty() => kill.id = words::id(id)?,
            Value(signal) if !has_signal => {
                kill.signal = words::signal(&signal.string()?)?;
                has_signal = true;
            }
            other => return Err(other.unexpected().into()),
        }
    }
    need_id(&kill.id, "kill")?;
    Ok(Command::Kill(kill))
}

/// The arguments of `mounts`.
#[derive(Debug, Clone)]
pub struct Mounts {
    /// Whether to add them, or to remove them.
    pub add: bool,
    /// The container.
    pub id: String,
    /// The file that lists them as `mounts` does.
    pub file: PathBuf,
}

fn mounts(parser: &mut lexopt::Parser) -> Result<Command> {
    let wrong = |why: &str| usage(why).hint("coracle mounts add|remove ID FILE");
    let mut word = |missing: &str| match parser.next()? {
        Some(Value(value)) => Ok(value),
        Some(other) => Err(other.unexpected().into()),
        None => Err(wrong(missing)),
    };
    let add = match word("mounts needs add or remove")?.to_str() {
        Some("add") => true,
        Some("remove") => false,
        _ => return Err(wrong("mounts does nothing but add and remove")),
    };
    let id = words::id(word("mounts needs a container's ID")?)?;
    let file = word("mounts needs a file with mounts")?.into();
    words::nothing(parser)?;
    Ok(Command::Mounts(Mounts { add, id, file }))
}

fn volume(parser: &mut lexopt::Parser) -> Result<Command> {
    let wrong = |why: &str| usage(why).hint("coracle volume ls | rm NAME");
    let Some(verb) = parser.next()? else { return Err(wrong("volume needs ls or rm")) };
    let Value(verb) = verb else { return Err(verb.unexpected().into()) };
    let command = match verb.to_str() {
        Some("ls" | "list") => Command::Volumes,
        Some("rm") => {
            let name = parser.value().map_err(|_| wrong("volume rm needs a volume's name"))?;
            Command::RemoveVolume(name.string()?)
        }
        _ => return Err(wrong("volume does nothing but ls and rm")),
    };
    words::nothing(parser)?;
    Ok(command)
}

fn delete(parser: &mut lexopt::Parser) -> Result<Command> {
    let (mut id, mut force, mut regex) = (String::new(), false, false);
    while let Some(arg) = parser.next()? {
        match arg {
            Short('f') => force = true,
            Long("force") => force = words::switch(parser, "force")?,
            Short('r') => regex = true,
            Long("regex") => regex = words::switch(parser, "regex")?,
            Value(value) if id.is_empty() => id = words::id(value)?,
            other => return Err(other.unexpected().into()),
        }
    }
    need_id(&id, "delete")?;
    Ok(Command::Delete { id, force, regex })
}

fn spec(parser: &mut lexopt::Parser) -> Result<Command> {
    let (mut bundle, mut rootless) = (PathBuf::from("."), false);
    let mut file = PathBuf::from("config.json");
    while let Some(arg) = parser.next()? {
        match arg {
            Short('b') | Long("bundle") => bundle = parser.value()?.into(),
            Short('f') | Long("file") => file = parser.value()?.into(),
            Long("rootless") => rootless = words::switch(parser, "rootless")?,
            other => return Err(other.unexpected().into()),
        }
    }
    Ok(Command::Spec { bundle, file, rootless })
}

fn plan(parser: &mut lexopt::Parser) -> Result<Command> {
    let mut bundle: Option<PathBuf> = None;
    while let Some(arg) = parser.next()? {
        match arg {
            Short('b') | Long("bundle") => bundle = Some(parser.value()?.into()),
            Value(value) if bundle.is_none() => bundle = Some(value.into()),
            other => return Err(other.unexpected().into()),
        }
    }
    Ok(Command::Plan(bundle.unwrap_or_else(|| ".".into())))
}

fn help(parser: &mut lexopt::Parser) -> Result<Command> {
    let Some(command) = parser.next()? else { return Ok(Command::Print(HELP.to_owned())) };
    let Value(command) = command else { return Err(command.unexpected().into()) };
    let command = command.string()?;
    words::nothing(parser)?;
    help::of(&command).map(Command::Print).ok_or_else(|| no_command(&command))
}

fn no_command(name: &str) -> Error {
    usage(format!("there is no command {name:?}")).hint("see coracle help")
}

/// What is built in, as crun tells it.
const BUILT_IN: &str = "+SYSTEMD +SELINUX +APPARMOR +CAP +SECCOMP +LANDLOCK +EBPF +CRIU";

fn version() -> String {
    let (own, spec) = (env!("CARGO_PKG_VERSION"), crate::stages::spec::SPEC_VERSION);
    format!("coracle version {own}\nspec: {spec}\n{BUILT_IN}\n")
}

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
    fn every_switch_may_say_true_or_false() {
        for line in [
            "kill --all=? --regex=? web",
            "delete --force=? --regex=? web",
            "run --detach=? --keep=? web",
            "exec --tty=? --detach=? web true",
            "list --quiet=?",
            "debug --image tools --writable=? --tty=? --privileged=? --interactive=? web",
            "pod run --own-users=? --file file",
            "pod rm --force=? web",
            "pod logs --follow=? --timestamps=? web/one",
            "pod attach --stdin=? --tail=? web/one",
            "pod exec --stdin=? --tty=? web/one true",
            "drain --off=?",
        ] {
            for value in ["true", "false"] {
                command(&line.replace('?', value)).unwrap();
            }
            let error = command(&line.replace('?', "maybe")).unwrap_err().to_string();
            assert!(error.contains("\"maybe\" is neither true nor false"), "{line}: {error}");
        }
        let Ok(Command::Exec(exec)) = command("exec --tty=false web ls") else { panic!() };
        assert!(!exec.tty);
    }

    #[test]
    fn a_wrong_command_line_says_what_is_wrong() {
        for (line, words) in [
            ("frobnicate", "there is no command \"frobnicate\""),
            ("start", "start needs a container's ID"),
            ("exec web", "exec needs a program"),
            ("--log-format xml state a", "neither text nor json"),
            ("state a b", "unexpected argument"),
            ("mounts", "mounts needs add or remove; coracle mounts add|remove ID FILE"),
            ("mounts list web", "mounts does nothing but add and remove"),
            ("mounts add web", "mounts needs a file with mounts"),
            ("mounts add web file more", "unexpected argument \"more\""),
            ("features extra", "unexpected argument \"extra\""),
            ("plan a b", "unexpected argument \"b\""),
            ("frobnicate --help", "No help topic for 'frobnicate'"),
            ("help frobnicate", "there is no command \"frobnicate\""),
            ("help run more", "unexpected argument \"more\""),
            ("--rootless maybe list", "--rootless \"maybe\" is neither true, false nor auto"),
        ] {
            let error = command(line).unwrap_err().to_string();
            assert!(error.contains(words), "{line}: {error}");
        }
    }
}
