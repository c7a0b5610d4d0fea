//! `pod`: its verbs and their options.

use std::path::PathBuf;
use std::time::Duration;

use coracle_image::bundle;
use lexopt::prelude::*;

use super::Command;
use super::network::Networks;
use super::node::{self, NodeVerb};
use super::words::{self, parsed, rest, text, usage};
use crate::error::{Error, Result};

/// A verb of `pod` with its options.
#[derive(Debug, Clone)]
pub enum PodVerb {
    /// Makes a pod, and starts it.
    Run(Make),
    /// Makes a pod that waits for `start`.
    Create(Make),
    /// Prints what would be made.
    Plan(Make),
    /// Starts a pod that waits, or has ended.
    Start(String),
    /// Ends a pod's containers.
    Stop {
        /// The pod.
        pod: String,
        /// Within how many seconds.
        grace: Option<u64>,
    },
    /// Forgets a pod.
    Remove {
        /// The pod.
        pod: String,
        /// Also when it runs.
        force: bool,
    },
    /// Prints all pods.
    List {
        /// How.
        form: ListForm,
        /// Those below this node of the tree alone.
        below: Option<String>,
    },
    /// Looks after the tree of tenants.
    Node(NodeVerb),
    /// Prints a pod as JSON.
    Inspect(String),
    /// Prints what a container wrote.
    Logs(Logs),
    /// Joins the caller's streams to a container's.
    Attach(Attach),
    /// Runs a program in a container.
    Exec(Box<PodExec>),
    /// Waits for the end of a container, or of the pod.
    Wait(Target),
    /// Sends a signal to a container.
    Kill(Target, i32),
    /// Prints what a pod uses.
    Stats {
        /// The pods; all where none is named.
        pods: Vec<String>,
        /// Again and again, as a table.
        top: bool,
    },
    /// Sets limits.
    Update(Target, PathBuf),
    /// Launches a container below another.
    Launch(Target, PathBuf),
    /// Forgets a container that was launched so.
    Forget(Target),
    /// Serves `io.coracle.Host`.
    Serve,
    /// Prints what happens.
    Watch(String),
}

/// What `pod ls` prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListForm {
    /// A table.
    Table,
    /// JSON.
    Json,
    /// Names alone.
    Names,
}

/// The options of `pod run` and `pod create`.
#[derive(Debug, Clone, Default)]
pub struct Make {
    /// The document's file, `-` for the standard input.
    pub file: Option<PathBuf>,
    /// Or an image, of which the one container of the pod is made.
    pub image: Option<String>,
    /// The pod's name, for one of an image.
    pub name: Option<String>,
    /// The program, for one of an image.
    pub args: Vec<String>,
    /// The image store.
    pub store: Option<PathBuf>,
    /// The node of the tree.
    pub parent: Option<String>,
    /// Whether the pod's users are not the host's.
    pub own_users: bool,
    /// Its networks, as its annotation would name them.
    pub network: Option<String>,
    /// Whether its network is the host's, for one of an image.
    pub host_network: bool,
}

/// A pod, and a container of it.
#[derive(Debug, Clone, Default)]
pub struct Target {
    /// The pod.
    pub pod: String,
    /// The container's path in it; `None` where the pod itself is meant, or its one container.
    pub container: Option<String>,
}

/// The options of `pod logs`.
#[derive(Debug, Clone, Default)]
pub struct Logs {
    /// Whose.
    pub target: Target,
    /// What is still to come, too.
    pub follow: bool,
    /// The last lines only.
    pub tail: Option<usize>,
    /// With the time of each line.
    pub timestamps: bool,
}

/// The options of `pod attach`.
#[derive(Debug, Clone, Default)]
pub struct Attach {
    /// To whom.
    pub target: Target,
    /// Pass the standard input on.
    pub stdin: bool,
    /// What was written before, too.
    pub tail: bool,
}

/// The options of `pod exec`.
#[derive(Debug, Clone, Default)]
pub struct PodExec {
    /// Where.
    pub target: Target,
    /// The program and its arguments.
    pub args: Vec<String>,
    /// More variables.
    pub env: Vec<String>,
    /// The working directory.
    pub cwd: Option<String>,
    /// `UID[:GID]`.
    pub user: Option<String>,
    /// Pass the standard input on.
    pub stdin: bool,
    /// With a terminal.
    pub tty: bool,
}

/// The options of `drain`.
#[derive(Debug, Clone, Default)]
pub struct Drain {
    /// Within which time pods are to be over.
    pub within: Option<Duration>,
    /// Take pods again.
    pub off: bool,
}

/// The options of `drain`.
pub(super) fn drain(parser: &mut lexopt::Parser) -> Result<Command> {
    let mut drain = Drain::default();
    while let Some(arg) = parser.next()? {
        match arg {
            Long("within") => drain.within = Some(Duration::from_secs(parsed("within", &text(parser)?)?)),
            Long("off") => drain.off = words::switch(parser, "off")?,
            other => return Err(other.unexpected().into()),
        }
    }
    Ok(Command::Drain(drain))
}

/// The verb that comes next.
pub(super) fn parse(parser: &mut lexopt::Parser) -> Result<Command> {
    let verb = match parser.next()? {
        Some(Value(verb)) => verb.string()?,
        Some(other) => return Err(other.unexpected().into()),
        None => return Err(usage("pod needs a verb").hint("see coracle help pod")),
    };
    let verb = match verb.as_str() {
        "run" => PodVerb::Run(make(parser)?),
        "create" => PodVerb::Create(make(parser)?),
        "plan" => PodVerb::Plan(make(parser)?),
        "start" => PodVerb::Start(only_pod(parser)?),
        "stop" => stop(parser)?,
        "rm" => remove(parser)?,
        "ls" | "list" => list(parser)?,
        "node" => PodVerb::Node(node::parse(parser)?),
        "inspect" => PodVerb::Inspect(only_pod(parser)?),
        "logs" => PodVerb::Logs(logs(parser)?),
        "attach" => PodVerb::Attach(attach(parser)?),
        "exec" => PodVerb::Exec(Box::new(exec(parser)?)),
        "wait" => PodVerb::Wait(target_and(parser, 0)?.0),
        "kill" => kill(parser)?,
        "stats" | "top" => stats(parser, verb == "top")?,
        "update" => file(parser).map(|(target, file)| PodVerb::Update(target, file))?,
        "launch" => file(parser).map(|(target, file)| PodVerb::Launch(target, file))?,
        "forget" => PodVerb::Forget(target_and(parser, 0)?.0),
        "serve" => words::nothing(parser).map(|()| PodVerb::Serve)?,
        "watch" => PodVerb::Watch(only_pod(parser)?),
        other => return Err(usage(format!("pod has no verb {other:?}")).hint("see coracle help pod")),
    };
    Ok(Command::Pod(verb))
}

pub(super) fn missing(what: &str) -> Error {
    usage(format!("{what} is missing")).hint("see coracle help pod")
}

fn only_pod(parser: &mut lexopt::Parser) -> Result<String> {
    target_and(parser, 0).and_then(|(target, _)| whole_pod(target))
}

/// The pod, where no container of it is named: what is done to the pod is done to all of them.
fn whole_pod(target: Target) -> Result<String> {
    check_target(&target)?;
    match target.container {
        Some(_) => Err(usage("it takes a pod, not a container").hint("coracle pod kill ends a container")),
        None => Ok(target.pod),
    }
}

/// `POD[/CONTAINER]`, or `POD -c CONTAINER`, and `more` other arguments.
fn target_and(parser: &mut lexopt::Parser, more: usize) -> Result<(Target, Vec<String>)> {
    let (mut target, mut others) = (Target::default(), Vec::new());
    while let Some(arg) = parser.next()? {
        match arg {
            Short('c') | Long("container") => target.container = Some(text(parser)?),
            Value(value) if target.pod.is_empty() => take_target(&mut target, &value.string()?)?,
            Value(value) if others.len() < more => others.push(value.string()?),
            other => return Err(other.unexpected().into()),
        }
    }
    check_target(&target)?;
    Ok((target, others))
}

fn take_target(target: &mut Target, text: &str) -> Result<()> {
    let (pod, container) = text.split_once('/').map_or((text, None), |(pod, path)| (pod, Some(path)));
    words::not_empty(pod, "the pod's name")?;
    pod.clone_into(&mut target.pod);
    if let Some(path) = container {
        target.container = Some(path.to_owned());
    }
    Ok(())
}

fn check_target(target: &Target) -> Result<()> {
    if target.pod.is_empty() { Err(missing("the pod's name")) } else { Ok(()) }
}

fn make(parser: &mut lexopt::Parser) -> Result<Make> {
    let (mut make, mut networks) = (Make::default(), Networks::default());
    while let Some(arg) = parser.next()? {
        match arg {
            Short('f') | Long("file") => make.file = Some(parser.value()?.into()),
            Long("store") => make.store = Some(parser.value()?.into()),
            Long("parent") => make.parent = Some(text(parser)?),
            Long("own-users") => make.own_users = words::switch(parser, "own-users")?,
            Long("network") => networks.join(&text(parser)?),
            Short('p') | Long("publish") => networks.publish(&text(parser)?)?,
            Long("dns") => networks.wanted.dns.nameservers.push(text(parser)?),
            Long("name") => make.name = Some(text(parser)?),
            Value(image) if make.image.is_none() && make.file.is_none() => {
                make.image = Some(image.string()?);
                make.args = rest(parser)?;
            }
            other => return Err(other.unexpected().into()),
        }
    }
    let mut options = bundle::Options::default();
    networks.apply(&mut options)?;
    make.network = options.annotations.remove(coracle_isolator_network::ANNOTATION);
    make.host_network = options.network == bundle::Network::Host;
    match (&make.file, &make.image) {
        (Some(_), _) if make.host_network => {
            Err(usage("--network host is for a pod of an image; a document says hostNetwork"))
        }
        (None, None) => Err(missing("-f FILE, or an image,")),
        (Some(_), Some(_)) => Err(usage("-f and an image exclude each other")),
        (Some(_), _) if make.name.is_some() => {
            Err(usage("--name is for a pod of an image; a document has one"))
        }
        (None, Some(_)) if make.name.is_none() => Err(missing("--name")),
        _ => Ok(make),
    }
}

fn stop(parser: &mut lexopt::Parser) -> Result<PodVerb> {
    let (mut target, mut grace) = (Target::default(), None);
    while let Some(arg) = parser.next()? {
        match arg {
            Short('t') | Long("time") => grace = Some(parsed("time", &text(parser)?)?),
            Value(value) if target.pod.is_empty() => take_target(&mut target, &value.string()?)?,
            other => return Err(other.unexpected().into()),
        }
    }
    Ok(PodVerb::Stop { pod: whole_pod(target)?, grace })
}

fn remove(parser: &mut lexopt::Parser) -> Result<PodVerb> {
    let (mut target, mut force) = (Target::default(), false);
    while let Some(arg) = parser.next()? {
        match arg {
            Short('f') => force = true,
            Long("force") => force = words::switch(parser, "force")?,
            Value(value) if target.pod.is_empty() => take_target(&mut target, &value.string()?)?,
            other => return Err(other.unexpected().into()),
        }
    }
    Ok(PodVerb::Remove { pod: whole_pod(target)?, force })
}

fn list(parser: &mut lexopt::Parser) -> Result<PodVerb> {
    let (mut form, mut below) = (ListForm::Table, None);
    while let Some(arg) = parser.next()? {
        match arg {
            Short('q') | Long("quiet") => form = ListForm::Names,
            Long("json") => form = ListForm::Json,
            Long("parent") => below = Some(text(parser)?),
            other => return Err(other.unexpected().into()),
        }
    }
    Ok(PodVerb::List { form, below })
}

fn logs(parser: &mut lexopt::Parser) -> Result<Logs> {
    let mut logs = Logs::default();
    while let Some(arg) = parser.next()? {
        match arg {
            Short('c') | Long("container") => logs.target.container = Some(text(parser)?),
            Short('f') => logs.follow = true,
            Long("follow") => logs.follow = words::switch(parser, "follow")?,
            Long("timestamps") => logs.timestamps = words::switch(parser, "timestamps")?,
            Long("tail") => logs.tail = Some(parsed("tail", &text(parser)?)?),
            Value(value) if logs.target.pod.is_empty() => take_target(&mut logs.target, &value.string()?)?,
            other => return Err(other.unexpected().into()),
        }
    }
    check_target(&logs.target)?;
    Ok(logs)
}

fn attach(parser: &mut lexopt::Parser) -> Result<Attach> {
    let mut attach = Attach::default();
    while let Some(arg) = parser.next()? {
        match arg {
            Short('c') | Long("container") => attach.target.container = Some(text(parser)?),
            Short('i') => attach.stdin = true,
            Long("stdin") => attach.stdin = words::switch(parser, "stdin")?,
            Long("tail") => attach.tail = words::switch(parser, "tail")?,
            Value(value) if attach.target.pod.is_empty() => {
                take_target(&mut attach.target, &value.string()?)?;
            }
            other => return Err(other.unexpected().into()),
        }
    }
    check_target(&attach.target)?;
    Ok(attach)
}

fn exec(parser: &mut lexopt::Parser) -> Result<PodExec> {
    let mut exec = PodExec::default();
    while let Some(arg) = parser.next()? {
        match arg {
            Short('c') | Long("container") => exec.target.container = Some(text(parser)?),
            Short('i') => exec.stdin = true,
            Long("stdin") => exec.stdin = words::switch(parser, "stdin")?,
            Short('t') => exec.tty = true,
            Long("tty") => exec.tty = words::switch(parser, "tty")?,
            Short('e') | Long("env") => exec.env.push(text(parser)?),
            Short('u') | Long("user") => exec.user = Some(text(parser)?),
            Short('w') | Long("workdir") => exec.cwd = Some(text(parser)?),
            Value(value) => {
                take_target(&mut exec.target, &value.string()?)?;
                exec.args = after_container(parser, &mut exec.target)?;
                break;
            }
            other => return Err(other.unexpected().into()),
        }
    }
    check_target(&exec.target)?;
    if exec.args.is_empty() { Err(missing("the program")) } else { Ok(exec) }
}

/// The program, before which `-c CONTAINER` may stand, as kubectl's users write it.
fn after_container(parser: &mut lexopt::Parser, target: &mut Target) -> Result<Vec<String>> {
    let mut args = rest(parser)?;
    if args.first().is_some_and(|first| first == "-c") && args.len() > 1 && target.container.is_none() {
        target.container = Some(args.remove(1));
        args.remove(0);
        if args.first().is_some_and(|first| first == "--") {
            args.remove(0);
        }
    }
    Ok(args)
}

fn kill(parser: &mut lexopt::Parser) -> Result<PodVerb> {
    let (target, signal) = target_and(parser, 1)?;
    let signal = signal.first().map_or(Ok(libc::SIGTERM), |text| words::signal(text))?;
    Ok(PodVerb::Kill(target, signal))
}

fn stats(parser: &mut lexopt::Parser, top: bool) -> Result<PodVerb> {
    let mut pods = Vec::new();
    while let Some(arg) = parser.next()? {
        match arg {
            Value(value) => {
                let name = value.string()?;
                words::not_empty(&name, "the pod's name")?;
                pods.push(name);
            }
            other => return Err(other.unexpected().into()),
        }
    }
    Ok(PodVerb::Stats { pods, top })
}

fn file(parser: &mut lexopt::Parser) -> Result<(Target, PathBuf)> {
    let (mut target, mut path) = (Target::default(), None);
    while let Some(arg) = parser.next()? {
        match arg {
            Short('c') | Long("container") => target.container = Some(text(parser)?),
            Short('f') | Long("file") => path = Some(parser.value()?.into()),
            Value(value) if target.pod.is_empty() => take_target(&mut target, &value.string()?)?,
            other => return Err(other.unexpected().into()),
        }
    }
    check_target(&target)?;
    Ok((target, path.ok_or_else(|| missing("-f FILE"))?))
}
