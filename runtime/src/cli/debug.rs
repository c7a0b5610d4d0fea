//! `debug`.

use std::path::PathBuf;

use lexopt::prelude::*;

use super::launch::{Pull, cpus, parse_pull};
use super::words::{parsed, rest, size, switch, text, usage};
use crate::error::Result;

/// What `debug` is to do.
#[derive(Debug)]
pub enum Debugging {
    /// Look into a container.
    Session(Box<Debug>),
    /// Print all sessions.
    List,
    /// End all sessions.
    RemoveAll,
}

/// Whom a session looks into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// A container of this runtime, by its ID.
    Container(String),
    /// A process, of whatever made it (`--pid`).
    Process(i32),
}

/// Which files a session sees, and where (`--fs`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Files {
    /// The target's, as they are.
    Target,
    /// The image's, and the target's below [`Self::PLACE`].
    Image,
    /// The image's alone.
    ImageOnly,
}

impl Files {
    /// Where the target's root is in one that is the image's.
    pub const PLACE: &str = "/target";
}

/// A session.
#[derive(Debug, Clone)]
pub struct Debug {
    /// Whom it looks into.
    pub target: Wanted,
    /// The program and its arguments; none where the image has its own.
    pub args: Vec<String>,
    /// The image with the tools.
    pub image: Option<String>,
    /// The image store.
    pub store: Option<PathBuf>,
    /// When the image is pulled from its registry.
    pub pull: Pull,
    /// Which files it sees.
    pub files: Files,
    /// Whether the image's files can be written to, for as long as the session goes.
    pub writable: bool,
    /// Whether the process gets a terminal.
    pub tty: bool,
    /// More environment variables.
    pub env: Vec<String>,
    /// The working directory.
    pub cwd: Option<PathBuf>,
    /// The user: `UID[:GID]`, with an image also by name.
    pub user: Option<String>,
    /// Capabilities over the target's; `ALL` is all.
    pub cap_add: Vec<String>,
    /// All rights that the user namespace has to give.
    pub privileged: bool,
    /// The kinds of namespaces that are joined (`CLONE_NEW*`).
    pub join: i32,
    /// Where its cgroup goes, as `linux.cgroupsPath` has it.
    pub cgroup: Option<String>,
    /// Its limit of memory, in bytes.
    pub memory: Option<i64>,
    /// Its limit of processor time, in processors.
    pub cpus: Option<f64>,
    /// Its most processes and threads.
    pub pids: Option<i64>,
}

const KINDS: [(&str, i32); 7] = [
    ("pid", libc::CLONE_NEWPID),
    ("network", libc::CLONE_NEWNET),
    ("ipc", libc::CLONE_NEWIPC),
    ("uts", libc::CLONE_NEWUTS),
    ("user", libc::CLONE_NEWUSER),
    ("time", libc::CLONE_NEWTIME),
    ("cgroup", libc::CLONE_NEWCGROUP),
];

impl Default for Debug {
    fn default() -> Self {
        let all = KINDS.iter().fold(0, |all, (_, kind)| all | kind);
        Self {
            target: Wanted::Container(String::new()),
            args: Vec::new(),
            image: None,
            store: None,
            pull: Pull::default(),
            files: Files::Target,
            writable: false,
            tty: false,
            env: Vec::new(),
            cwd: None,
            user: None,
            cap_add: Vec::new(),
            privileged: false,
            join: all & !libc::CLONE_NEWCGROUP,
            cgroup: None,
            memory: None,
            cpus: None,
            pids: None,
        }
    }
}

/// The options of `debug`.
pub(super) fn parse(parser: &mut lexopt::Parser) -> Result<Debugging> {
    let mut debug = Debug::default();
    let (mut pid, mut id, mut files) = (None, None, None);
    while let Some(arg) = parser.next()? {
        match arg {
            Long("ls") => return super::words::nothing(parser).map(|()| Debugging::List),
            Long("rm-all") => return super::words::nothing(parser).map(|()| Debugging::RemoveAll),
            Long("pid") => {
                pid = Some(parsed::<u32>("pid", &text(parser)?)?);
                if let Some(args) = program(parser)? {
                    debug.args = args;
                    break;
                }
            }
            Long("fs") => files = Some(parse_files(&text(parser)?)?),
            Short(_) | Long(_) => option(&name(&arg), parser, &mut debug)?,
            Value(value) if pid.is_none() => {
                id = Some(super::words::id(value)?);
                debug.args = rest(parser)?;
            }
            Value(value) => {
                debug.args = [vec![value.string()?], rest(parser)?].concat();
            }
        }
        if let (Some(_), Some(args)) = (pid, program(parser)?) {
            debug.args = args;
        }
    }
    debug.target = match (pid, id) {
        (Some(pid), None) => Wanted::Process(i32::try_from(pid).unwrap_or(i32::MAX)),
        (None, Some(id)) => Wanted::Container(id),
        _ => {
            return Err(usage("debug needs a container's ID or --pid PID")
                .hint("coracle debug [options] TARGET [-- PROGRAM...]"));
        }
    };
    settle(debug, files).map(|debug| Debugging::Session(Box::new(debug)))
}

/// What follows `--`, where that is next.
fn program(parser: &mut lexopt::Parser) -> Result<Option<Vec<String>>> {
    let is_next = parser.try_raw_args().is_some_and(|args| args.peek().is_some_and(|next| next == "--"));
    is_next.then(|| rest(parser)).transpose()
}

/// What goes without saying, and what does not go together.
fn settle(mut debug: Debug, files: Option<Files>) -> Result<Debug> {
    let default = if debug.image.is_some() { Files::Image } else { Files::Target };
    debug.files = files.unwrap_or(default);
    match (debug.files, debug.image.is_some()) {
        (Files::Target, true) => Err(usage("--fs target has no place for the files of --image")
            .hint("leave one of them out: with --fs image the target's files are in /target")),
        (Files::Image | Files::ImageOnly, false) => {
            Err(usage("--fs image needs an image").hint("add --image REFERENCE"))
        }
        (Files::Target, false) if debug.writable => {
            Err(usage("--writable is for the files of an image").hint("add --image REFERENCE"))
        }
        _ => {
            if debug.args.is_empty() && debug.image.is_none() {
                debug.args.push("sh".to_owned());
            }
            Ok(debug)
        }
    }
}

fn name(arg: &lexopt::Arg<'_>) -> String {
    match arg {
        Short(short) => short.to_string(),
        Long(long) => (*long).to_owned(),
        Value(_) => String::new(),
    }
}

fn option(name: &str, parser: &mut lexopt::Parser, debug: &mut Debug) -> Result<()> {
    match name {
        "image" => debug.image = Some(text(parser)?),
        "store" => debug.store = Some(parser.value()?.into()),
        "pull" => debug.pull = parse_pull(&text(parser)?)?,
        "writable" => debug.writable = switch(parser, name)?,
        // The standard input is always passed on; people type -it.
        "i" => {}
        "interactive" => drop(switch(parser, name)?),
        "t" => debug.tty = true,
        "tty" => debug.tty = switch(parser, name)?,
        "e" | "env" => debug.env.push(text(parser)?),
        "w" | "workdir" | "cwd" => debug.cwd = Some(parser.value()?.into()),
        "u" | "user" => debug.user = Some(text(parser)?),
        "cap-add" => debug.cap_add.extend(text(parser)?.split(',').map(str::to_owned)),
        "privileged" => debug.privileged = switch(parser, name)?,
        "join" => debug.join = parse_kinds(&text(parser)?)?,
        "cgroup" => debug.cgroup = Some(text(parser)?),
        "memory" => debug.memory = Some(size("memory", &text(parser)?)?),
        "cpus" => debug.cpus = Some(cpus(&text(parser)?)?),
        "pids" => debug.pids = Some(parsed("pids", &text(parser)?)?),
        other => {
            let dashes = if other.chars().count() == 1 { "-" } else { "--" };
            return Err(
                usage(format!("debug has no option {dashes}{other}")).hint("see coracle debug --help")
            );
        }
    }
    Ok(())
}

fn parse_files(word: &str) -> Result<Files> {
    match word {
        "target" => Ok(Files::Target),
        "image" => Ok(Files::Image),
        "image-only" => Ok(Files::ImageOnly),
        other => Err(usage(format!("--fs {other:?} is none of target, image, image-only"))),
    }
}

fn parse_kinds(words: &str) -> Result<i32> {
    words.split(',').filter(|word| !word.is_empty()).try_fold(0, |kinds, word| {
        let known = KINDS.iter().find(|(name, _)| *name == word);
        let (_, kind) = known.ok_or_else(|| {
            usage(format!("--join {word:?} is no namespace that can be joined"))
                .hint("a list of pid, network, ipc, uts, user, time, cgroup")
        })?;
        Ok(kinds | kind)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn debug(line: &str) -> Result<Debug> {
        match parse(&mut lexopt::Parser::from_args(line.split(' ')))? {
            Debugging::Session(debug) => Ok(*debug),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_target_is_a_container_or_a_process() {
        let by_id = debug("-it web -- ps -t").unwrap();
        assert_eq!((by_id.target, by_id.tty), (Wanted::Container("web".to_owned()), true));
        assert_eq!(by_id.args, ["ps", "-t"]);
        let by_pid = debug("--pid 7 -t -- ls --pid").unwrap();
        assert_eq!((by_pid.target, by_pid.tty), (Wanted::Process(7), true));
        assert_eq!(by_pid.args, ["ls", "--pid"]);
        assert_eq!(debug("--pid 7 ls -l").unwrap().args, ["ls", "-l"]);
        assert_eq!(debug("web").unwrap().args, ["sh"]);
        assert!(debug("--image tools web").unwrap().args.is_empty());
    }

    #[test]
    fn namespaces_are_joined_by_name_and_all_but_the_cgroups_by_default() {
        assert_eq!(debug("--join pid,user web").unwrap().join, libc::CLONE_NEWPID | libc::CLONE_NEWUSER);
        let all = debug("web").unwrap().join;
        assert!(all & libc::CLONE_NEWNET != 0 && all & libc::CLONE_NEWCGROUP == 0);
    }

    #[test]
    fn what_does_not_go_together_is_refused() {
        for (line, words) in [
            ("-t", "debug needs a container's ID or --pid PID"),
            ("--image tools --fs target web", "--fs target has no place for the files of --image"),
            ("--fs image web", "--fs image needs an image; add --image REFERENCE"),
            ("--writable web", "--writable is for the files of an image"),
            ("--fs all web", "--fs \"all\" is none of target, image, image-only"),
            ("--join mount web", "--join \"mount\" is no namespace that can be joined"),
            ("--rm web", "debug has no option --rm; see coracle debug --help"),
        ] {
            let error = debug(line).unwrap_err().to_string();
            assert!(error.starts_with(words), "{line}: {error}");
        }
    }
}
