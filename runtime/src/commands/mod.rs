//! The commands, one file each: a short list of stages.

pub mod create;
pub mod start;
pub mod run;
pub mod exec;
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
pub mod isolator;
pub mod recover;
pub mod events;
pub mod spec;
pub mod plan;
pub mod features;

use std::os::fd::AsFd;

use coracle_sys::process::Child;
use coracle_sys::{file, socket};

use crate::cli::{Command, Global};
use crate::error::{Context, Result};
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
        Command::State(id) => state::state(global, &id),
        Command::Kill(options) => kill::kill(global, &options),
        Command::Pause(id) => pause::pause(global, &id),
        Command::Resume(id) => pause::resume(global, &id),
        Command::Update(options) => update::update(global, &options),
        Command::Mounts(options) => mounts::mounts(global, &options),
        Command::Checkpoint(options) => checkpoint::checkpoint(global, &options),
        Command::Restore(options, from) => restore::restore(global, &options, &from),
        Command::Events(options) => events::events(global, &options),
        Command::Delete { id, force } => delete::delete(global, &id, force),
        Command::Ps(options) => ps::ps(global, &options),
        Command::List(options) => list::list(global, &options),
        Command::Stats(options) => stats::stats(global, &options),
        Command::Isolator(wanted) => isolator::isolator(global, &wanted),
        Command::Recover => recover::recover(global),
        Command::Spec { bundle, rootless } => spec::spec(&bundle, rootless),
        Command::Plan(bundle) => plan::plan(global, &bundle),
        Command::Features => features::features(),
        Command::Image(args) => Err(self_image::hand_over(image::PROGRAM, args)),
        Command::IsolatorHost(args) => Err(self_image::hand_over(isolators::HOST, args)),
        Command::Print(text) => {
            crate::print(&text);
            Ok(0)
        }
    }
}

/// Tells whoever asked for it who a process is: by its PID (`--pid-file`), and by a descriptor (`--pidfd-socket`),
/// in the message that runc sends: `kind` is `standard` for a container's first process and `setns` for others.
///
/// # Errors
/// Where the file can't be written or nobody listens.
fn announce(options: &crate::cli::Launch, child: &Child, kind: &str) -> Result<()> {
    if let Some(path) = &options.pidfd_socket {
        let sent = socket::connect_stream(path)
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
