//! argv → command → exit code.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use coracle::cli::{self, Command};
use coracle::commands;

/// The allocator of musl gives every large piece back to the kernel at once: two system calls for each.
#[global_allocator]
static ALLOCATOR: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;

fn main() -> ExitCode {
    let (global, command) = cli::parse(std::env::args_os().skip(1).collect());
    let is_launch = matches!(command, Ok(Command::Run(..) | Command::Exec(_)));
    match command.and_then(|command| commands::execute(&global, command)) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            global.tell(&error);
            ExitCode::from(if is_launch { error.code().of_launch() } else { 1 })
        }
    }
}
