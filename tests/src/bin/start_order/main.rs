//! `coracle-start-order PROGRAM` finds out which functions of the runtime a start executes, and prints a linker's script
//! that puts them side by side. The kernel maps a program's text by 64 KiB around each address that is used
//! (`fault_around_bytes`, mm/memory.c), so what lies scattered takes twice the memory, and more page faults.
//!
//! PROGRAM is the runtime with its symbols; it is traced instruction by instruction, which takes some minutes.

#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program whose output is what it is for")]

mod patterns;
mod symbols;
mod trace;

use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};

use coracle_fixtures::busybox;
use coracle_fixtures::spec::{Spec, docker_like_seccomp};

use symbols::Symbols;
use trace::Tracer;

fn main() -> ExitCode {
    let Some(program) = std::env::args().nth(1) else {
        eprintln!("coracle-start-order: give it the runtime, with its symbols");
        return ExitCode::FAILURE;
    };
    match order(Path::new(&program)) {
        Ok(script) => {
            print!("{script}");
            ExitCode::SUCCESS
        }
        Err(reason) => {
            eprintln!("coracle-start-order: {reason}");
            ExitCode::FAILURE
        }
    }
}

/// The script for the functions that `program` executes in the lives of two containers: first those of a plain `run`.
fn order(program: &Path) -> Result<String, String> {
    let symbols = Symbols::of(program)?;
    let dir = tempfile::tempdir().map_err(|error| format!("make a directory: {error}"))?;
    let spec = Spec::new().memory(64 << 20).cpu(1000).pids(64);
    bundle(&dir.path().join("plain"), &spec)?;
    let sleeper = spec.set("/linux/seccomp", docker_like_seccomp()).args(["sleep", "100000"]);
    bundle(&dir.path().join("sleeper"), &sleeper)?;
    let mut tracer = Tracer::new(program)?;
    let mut follow = |words: &[&str]| {
        let mut command = Command::new(program);
        command.args(["--root", "states"]).args(words).current_dir(dir.path());
        tracer.follow(&command)?;
        Ok::<_, String>(tracer.executed().clone())
    };
    let run = follow(&["run", "--bundle", "plain", "a"])?;
    follow(&["create", "--bundle", "sleeper", "b"])?;
    for words in [&["start", "b"][..], &["state", "b"], &["exec", "b", "true"], &["kill", "b", "KILL"]] {
        follow(words)?;
    }
    let all = follow(&["delete", "--force", "b"])?;
    Ok(patterns::script(&symbols, &[run, all]))
}

fn bundle(path: &Path, spec: &Spec) -> Result<(), String> {
    busybox::write(&path.join("rootfs"));
    fs::write(path.join("config.json"), spec.json().to_string())
        .map_err(|error| format!("write a bundle: {error}"))
}
