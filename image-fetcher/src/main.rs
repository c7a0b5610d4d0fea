//! `coracle-image`: pulls, imports, lists, unpacks, mounts and removes images.

#![forbid(unsafe_code)]

mod bundles;
mod cli;
mod settings;
mod transfer;
mod progress;
mod show;

use std::io::Write;
use std::process::ExitCode;

use coracle_image::Kind;

/// 0: done; 1: it failed; 2: the command line can't be understood.
fn main() -> ExitCode {
    let mut out = Vec::new();
    // An archive may bring thousands of blobs, each an open file without a name until all are known to be right.
    let _ = coracle_sys::identity::raise_to_hard_limit("RLIMIT_NOFILE");
    let result = cli::run(std::env::args_os().skip(1), &mut out);
    // A reader that has gone away, as `head` does, is no failure of ours.
    let _ = std::io::stdout().write_all(&out);
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "coracle-image: {error}");
            ExitCode::from(if error.kind() == Kind::Usage { 2 } else { 1 })
        }
    }
}
