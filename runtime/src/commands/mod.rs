//! The commands, one file each: a short list of stages.

pub mod create;
pub mod start;
pub mod run;
pub mod exec;
pub mod debug;
pub mod state;
pub mod kill;
pub mod pause;
pub mod update;
pub mod checkpoint;
pub mod restore;
pub mod mounts;
pub mod delete;
pub mod ps;
pub mod list;
pub mod stats;
pub mod metrics;
pub mod isolator;
pub mod network;
pub mod volume;
pub mod recover;
pub mod events;
pub mod spec;
pub mod plan;
pub mod features;
pub mod pod;
pub mod drain;

use std::os::fd::AsFd;

use coracle_sys::pattern::Pattern;
use coracle_sys::process::Child;
use coracle_sys::{file, socket};

use crate::cli::{self, Command, Global, Kill};
use crate::error::{Code, Context, Error, Result};
use crate::stages::plan::Launch;
use crate::{image, isolators, self_image};

/// Does what the command line asks and returns the exit code.
///
/// # Errors
/// Whatever the command fails with.
pub fn execute(global: &Global, command: Command) -> Result<u8> {
    match command {
        Command::Create(options) => create::create(global, &options),
        Command::Start(id) => start::start(global, &id),
        Command::Run(options, image) => run::run(global, &options, image.as_deref()),
        Command::Exec(options) => exec::exec(global, &options),
        Command::Debug(wanted) => debug::debug(global, &wanted),
        Command::State(id) => state::state(global, &id),
        Command::Kill(options) if options.regex => for_each(global, &options.id, |id| {
            kill::kill(global, &Kill { id: id.to_owned(), ..options.clone() })
        }),
        Command::Kill(options) => kill::kill(global, &options),
        Command::Pause(id) => pause::pause(global, &id),
        Command::Resume(id) => pause::resume(global, &id),
        Command::Update(options) => update::update(global, &options),
        Command::Mounts(options) => mounts::mounts(global, &options),
        Command::Checkpoint(options) => checkpoint::checkpoint(global, &options),
        Command::Restore(options, from) => restore::restore(global, &options, &from),
        Command::Events(options) => events::events(global, &options),
        Command::Delete { id, force, regex: true } => {
            for_each(global, &id, |id| delete::delete(global, id, force))
        }
        Command::Delete { id, force, regex: false } => delete::delete(global, &id, force),
        Command::Ps(options) => ps::ps(global, &options),
        Command::List(options) => list::list(global, &options),
        Command::Stats(options) => stats::stats(global, &options),
        Command::Metrics(listen) => metrics::metrics(global, &listen),
        Command::Isolator(wanted) => isolator::isolator(global, &wanted),
        Command::Volumes => volume::list(global),
        Command::RemoveVolume(name) => volume::remove(global, &name),
        Command::Network(verb) => network::network(global, &verb),
        Command::Drain(options) => drain::drain(global, &options),
        Command::Pod(verb) => pod::execute(global, &verb),
        Command::Recover => recover::recover(global),
        Command::Spec { bundle, file, rootless } => spec::spec(&bundle, &file, rootless),
        Command::Plan(bundle) => plan::plan(global, &bundle),
        Command::Features => features::features(),
        Command::Image(args) => Err(self_image::hand_over(image::PROGRAM, args)),
        Command::IsolatorHost(args) => Err(self_image::hand_over(isolators::HOST, args)),
        Command::Complete(words) => {
            let ids = || crate::state::ids(&global.root).unwrap_or_default();
            crate::print(
                &cli::candidates(&words, ids).into_iter().map(|word| word + "\n").collect::<String>(),
            );
            Ok(0)
        }
        Command::Print(text) => {
            crate::print(&text);
            Ok(0)
        }
    }
}

/// Does `verb` to each container whose ID matches `pattern`, whatever becomes of the others.
///
/// # Errors
/// `Usage` for what is no regular expression; else the first failure.
fn for_each(global: &Global, pattern: &str, verb: impl Fn(&str) -> Result<u8>) -> Result<u8> {
    let pattern = Pattern::new(pattern)
        .map_err(|why| Error::new(Code::Usage, format!("--regex {pattern:?}: {why}")))?;
    let ids = crate::state::ids(&global.root)?.into_iter().filter(|id| pattern.matches(id));
    let mut failures = ids.filter_map(|id| verb(&id).err()).collect::<Vec<_>>().into_iter();
    let first = failures.next();
    global.warn(failures.map(|failure| failure.to_string()));
    first.map_or(Ok(0), Err)
}

/// Logs, under `--debug`, with which flags seccomp(2) will take the system call filter.
fn debug_filter(global: &Global, launch: &Launch) {
    if let Some(filter) = &launch.process.seccomp {
        global.debug(|| format!("seccomp filter flags: {}", filter.flags));
    }
}

/// Tells whoever asked for it who a process is: by its PID (`--pid-file`), and by a descriptor (`--pidfd-socket`),
/// in the message that runc sends: `kind` is `standard` for a container's first process and `setns` for others.
///
/// # Errors
/// Where the file can't be written or nobody listens.
fn announce(options: &cli::Launch, child: &Child, kind: &str) -> Result<()> {
    if let Some(path) = &options.pidfd_socket {
        let sent = socket::once_listening(|| socket::connect_stream(path))
            .and_then(|socket| socket::send(socket.as_fd(), kind.as_bytes(), &[child.pidfd.as_fd()]));
        sent.context(|| format!("sending the process's descriptor to --pidfd-socket {path:?}"))?;
    }
    let Some(path) = &options.pid_file else { return Ok(()) };
    let doing = || format!("writing --pid-file {path:?}");
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(std::path::Path::new("."));
    let dir = file::open_dir(parent).context(doing)?;
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    // At once: whoever waits for the file must not read half a number.
    file::replace(dir.as_fd(), &name, child.pid.to_string().as_bytes(), 0o644).context(doing)
}
