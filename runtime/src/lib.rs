//! Coracle: a native container runtime for Linux, composed of isolators.
//!
//! The command line comes in at [`cli`], goes to one file of [`commands`], and that is a short list of
//! [`stages`]. What happens inside the container, up to execve(2), is in [`init`]; all that the two sides say to
//! each other is in [`handshake`].

#![forbid(unsafe_code)]

pub mod cli;
pub mod error;
mod told;
pub mod self_image;
pub mod commands;
pub mod stages;
pub mod handshake;
pub mod init;
pub mod isolators;
pub mod hooks;
pub mod notify;
pub mod seccomp_agent;
pub mod cgroup;
pub mod state;
pub mod pod;
pub mod image;
pub mod criu;
pub mod prometheus;
pub mod time;

/// Writes `text`, whole lines, to the standard output. Returns whether it could: that nobody is left to read it is
/// no failure of ours, but who prints again and again must end then, as no signal does it (Rust ignores SIGPIPE). Any other
/// failure is [`unwritten`]'s to tell.
pub(crate) fn print(text: &str) -> bool {
    use std::io::{ErrorKind, Write};
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Ok(()) => return true,
        Err(e) if e.kind() == ErrorKind::BrokenPipe => {}
        // Of several the first is told.
        Err(e) => drop(UNWRITTEN.set(e)),
    }
    false
}

/// Why something could not be written to the standard output, though somebody may wait for it.
static UNWRITTEN: std::sync::OnceLock<std::io::Error> = std::sync::OnceLock::new();

/// What went wrong with the standard output, if anything did: for the end of a command.
#[must_use]
pub fn unwritten() -> Option<error::Error> {
    let why = UNWRITTEN.get()?;
    Some(error::Error::system(why).doing("writing to the standard output"))
}
