//! The commands, one file each: a short list of stages.

pub mod create;
pub mod start;
pub mod run;
pub mod exec;
pub mod state;
pub mod kill;
pub mod delete;
pub mod ps;
pub mod list;
pub mod stats;
pub mod spec;
pub mod plan;
pub mod features;

use crate::cli::{Command, Global};
use crate::error::Result;

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
        Command::Delete { id, force } => delete::delete(global, &id, force),
        Command::Ps(options) => ps::ps(global, &options),
        Command::List(options) => list::list(global, &options),
        Command::Stats(id) => stats::stats(global, &id),
        Command::Spec(bundle) => spec::spec(&bundle),
        Command::Plan(bundle) => plan::plan(global, &bundle),
        Command::Features => features::features(),
        Command::Image(args) => Err(crate::image::hand_over(args)),
        Command::Print(text) => {
            crate::print(&text);
            Ok(0)
        }
    }
}

/// Writes the PID of a process for whoever asked with `--pid-file`.
///
/// # Errors
/// Where the file can't be written.
fn write_pid_file(options: &crate::cli::Launch, pid: i32) -> Result<()> {
    use crate::error::Context;
    use coracle_sys::file;
    use std::os::fd::AsFd;
    let Some(path) = &options.pid_file else { return Ok(()) };
    let doing = || format!("writing --pid-file {path:?}");
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(std::path::Path::new("."));
    let dir = file::open_dir(parent).context(doing)?;
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    // At once: whoever waits for the file must not read half a number.
    file::replace(dir.as_fd(), &name, pid.to_string().as_bytes(), 0o644).context(doing)
}
