//! argv → command → exit code.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use coracle::cli::{self, Command};
use coracle::commands;
use coracle::error::Code;

/// The allocator of musl gives every large piece back to the kernel at once: two system calls for each.
#[global_allocator]
static ALLOCATOR: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;

fn main() -> ExitCode {
    let (global, command) = cli::parse(std::env::args_os().skip(1).collect());
    let failed: fn(Code) -> u8 = match command {
        Ok(Command::Run(..) | Command::Debug(_)) => Code::of_run,
        // Runc's, which a program in the container is the least likely to exit with.
        Ok(Command::Exec(_)) => |_| 255,
        _ => |_| 1,
    };
    let done = command.and_then(|command| commands::execute(&global, command));
    match done.and_then(|code| coracle::unwritten().map_or(Ok(code), Err)) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            global.tell(&error);
            ExitCode::from(failed(error.code()))
        }
    }
}
