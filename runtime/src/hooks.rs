//! Hooks: programs of the host that run at moments of a container's life (runtime-spec 1.3, config.md, "POSIX-platform
//! Hooks").
//!
//! A hook gets the container's state on its standard input, and the environment of its configuration; where that names
//! none it has the little that the runtime keeps of its own. What an image names never reaches a hook of the host
//! (CVE-2025-23266).

use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use coracle_sys::{event, process, signal};
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::signalfd::SignalFd;
use oci_spec::runtime::{Hook, Spec};

use crate::error::{Code, Context, Error, Result};

/// The hooks of a configuration, each list with its name.
pub fn all(spec: &Spec) -> Vec<(&'static str, Vec<Hook>)> {
    let Some(hooks) = spec.hooks() else { return Vec::new() };
    [
        ("prestart", hooks.prestart()),
        ("createRuntime", hooks.create_runtime()),
        ("createContainer", hooks.create_container()),
        ("startContainer", hooks.start_container()),
        ("poststart", hooks.poststart()),
        ("poststop", hooks.poststop()),
    ]
    .into_iter()
    .filter_map(|(name, list)| list.clone().map(|list| (name, list)))
    .collect()
}

/// The hooks of `spec` that are called `stage`.
pub fn of(spec: &Spec, stage: &str) -> Vec<Hook> {
    all(spec).into_iter().filter(|(name, _)| *name == stage).flat_map(|(_, list)| list).collect()
}

/// Runs the hooks `hooks`, one after the other, with the container's state `state` as their input and `dir` as
/// their working directory.
///
/// # Errors
/// `Hook` for the first that fails or takes too long; those after it are not run.
pub fn run(stage: &str, hooks: &[Hook], state: &serde_json::Value, dir: &Path) -> Result<()> {
    for (index, hook) in hooks.iter().enumerate() {
        run_one(hook, state, dir).map_err(|e| e.code_is(Code::Hook)).context(|| {
            format!("error running {stage} hook #{index}: /hooks/{stage}/{index} ({:?})", hook.path())
        })?;
    }
    Ok(())
}

fn run_one(hook: &Hook, state: &serde_json::Value, dir: &Path) -> Result<()> {
    #[expect(clippy::disallowed_methods, reason = "this is where hooks are started")]
    let mut command = Command::new(hook.path());
    if let Some([name, args @ ..]) = hook.args().as_deref() {
        command.arg0(name).args(args);
    }
    if let Some(env) = hook.env() {
        // What has no `=` can be in no environment that std::process makes; the plan has refused it.
        command.env_clear().envs(env.iter().filter_map(|v| v.split_once('=')));
    }
    // A file, not a pipe: it holds a state of any size, and a hook that does not read it keeps nobody waiting.
    let input = process::memory_file("state", state.to_string().as_bytes())?;
    command.current_dir(dir).stdin(input).stdout(Stdio::null()).stderr(Stdio::piped()).process_group(0);
    signal::bind_to_runtime(&mut command);
    let mut child = command.spawn().map_err(io_error)?;
    let timeout = hook.timeout().and_then(|s| u64::try_from(s).ok()).map(Duration::from_secs);
    let said = ends_within(&mut child, timeout).map_err(|late| {
        // What it has started, too, which is in its process group.
        let killed = process::kill(-child.id().cast_signed(), libc::SIGKILL).map_err(Error::from);
        let awaited = child.wait().map_err(io_error);
        killed.and(awaited).map_or_else(|failure| failure, |_| late)
    })?;
    let status = child.wait().map_err(io_error)?;
    if status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&said);
    let said = said.trim().lines().last().map(|line| format!(", saying {line:?}")).unwrap_or_default();
    let error = Error::new(Code::Hook, format!("it failed with {status}{said}"));
    Err(match status.signal() {
        Some(libc::SIGSYS) => {
            error.hint("bad system call: /linux/seccomp does not allow it, and holds for start hooks")
        }
        _ => error,
    })
}

/// How much of what a hook says on its standard error is kept, in bytes: the end of it.
const SAID: usize = 4096;

/// How much a pipe holds, in bytes: one read takes all that a hook that has ended has said (pipe(7)).
const PIPE: usize = 65536;

/// Waits until `child` ends, and returns the end of what it said. What it leaves running may hold its standard error
/// open, and is not waited for. It is not to keep a command that is asked to end, either.
fn ends_within(child: &mut Child, timeout: Option<Duration>) -> Result<Vec<u8>> {
    let late = || {
        let seconds = timeout.unwrap_or_default().as_secs();
        Error::new(Code::Hook, format!("it took longer than its timeout of {seconds} s"))
    };
    let pidfd = process::pidfd(child.id().cast_signed())?;
    let deadline = timeout.map(|timeout| Instant::now() + timeout);
    let mut stderr = child.stderr.take();
    let mut said = Vec::new();
    let signals = signal::endings()?;
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let left = left.map_or(PollTimeout::NONE, |l| PollTimeout::try_from(l).unwrap_or(PollTimeout::MAX));
        let readable = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let mut fds = vec![readable(pidfd.as_fd())];
        fds.extend(stderr.as_ref().map(|stderr| readable(stderr.as_fd())));
        fds.extend(signals.as_ref().map(|signals| readable(signals.as_fd())));
        match nix::poll::poll(&mut fds, left) {
            Ok(0) => return Err(late()),
            Err(_) => continue,
            Ok(_) => {}
        }
        let is_ready = |fd: Option<&PollFd<'_>>| fd.and_then(PollFd::any).unwrap_or(false);
        let (ended, speaks) = (is_ready(fds.first()), stderr.is_some() && is_ready(fds.get(1)));
        if speaks {
            let mut chunk = [0; PIPE];
            let length = stderr.as_mut().map_or(Ok(0), |stderr| stderr.read(&mut chunk)).unwrap_or(0);
            said.extend_from_slice(&chunk[..length]);
            said.drain(..said.len().saturating_sub(SAID));
            stderr = stderr.filter(|_| length > 0);
        }
        if ended {
            return Ok(said);
        }
        interrupted(signals.as_ref())?;
    }
}

/// Fails where a signal has come that asks to end.
fn interrupted(signals: Option<&SignalFd>) -> Result<()> {
    match signals.and_then(|signals| signals.read_signal().ok().flatten()) {
        None => Ok(()),
        Some(info) => {
            let name = process::signal_name(info.ssi_signo.cast_signed());
            Err(Error::new(Code::Hook, format!("it was interrupted by {name}")))
        }
    }
}

/// Waits until `socket`, over which the container's process talks, has something to say; a hook of `spec` that runs in
/// there is not to keep a command that is asked to end. Nothing for a container without such hooks.
///
/// # Errors
/// `Hook` where such a signal came.
pub fn wait_for_inside(spec: &Spec, socket: BorrowedFd<'_>) -> Result<()> {
    let is_inside = |name: &str| matches!(name, "createContainer" | "startContainer");
    if !all(spec).iter().any(|(name, hooks)| is_inside(name) && !hooks.is_empty()) {
        return Ok(());
    }
    let Some(signals) = signal::endings()? else { return Ok(()) };
    loop {
        let ready = event::readable(&[socket, signals.as_fd()], None)?;
        if ready.first() == Some(&true) {
            return Ok(());
        }
        interrupted(Some(&signals)).context(|| "running the hooks in the container")?;
    }
}

fn io_error(error: std::io::Error) -> Error {
    let errno = error.raw_os_error().map(coracle_sys::Errno::from_raw);
    Error::new(Code::Hook, errno.map_or_else(|| error.to_string(), coracle_sys::error::reason))
}
