//! Hooks: programs of the host that run at moments of a container's life (runtime-spec 1.3, config.md, "POSIX-platform
//! Hooks").
//!
//! A hook gets the container's state on its standard input, the environment of its configuration and no other
//! (what an image names must not reach it: CVE-2025-23266), and the bundle as its working directory.

use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use coracle_sys::process;
use nix::poll::{PollFd, PollFlags, PollTimeout};
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
        run_one(hook, state, dir)
            .map_err(|e| e.code_is(Code::Hook))
            .context(|| format!("running hooks.{stage}[{index}] ({:?})", hook.path()))?;
    }
    Ok(())
}

fn run_one(hook: &Hook, state: &serde_json::Value, dir: &Path) -> Result<()> {
    #[expect(clippy::disallowed_methods, reason = "this is where hooks are started")]
    let mut command = Command::new(hook.path());
    if let Some([name, args @ ..]) = hook.args().as_deref() {
        command.arg0(name).args(args);
    }
    command.env_clear().envs(hook.env().iter().flatten().filter_map(|v| v.split_once('=')));
    command.current_dir(dir).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(io_error)?;
    // A hook that does not read its input closes it; that is no failure.
    let _ = child.stdin.take().map(|mut input| input.write_all(state.to_string().as_bytes()));
    let timeout = hook.timeout().and_then(|s| u64::try_from(s).ok()).map(Duration::from_secs);
    if !ends_within(child.id(), timeout)? {
        child.kill().map_err(io_error)?;
        child.wait().map_err(io_error)?;
        let seconds = timeout.unwrap_or_default().as_secs();
        return Err(Error::new(Code::Hook, format!("it took longer than its timeout of {seconds} s")));
    }
    let output = child.wait_with_output().map_err(io_error)?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.trim().lines().last().map(|line| format!(", saying {line:?}")).unwrap_or_default();
    Err(Error::new(Code::Hook, format!("it failed with {}{said}", output.status)))
}

fn ends_within(pid: u32, timeout: Option<Duration>) -> Result<bool> {
    let Some(timeout) = timeout else { return Ok(true) };
    let pidfd = process::pidfd(pid.cast_signed())?;
    let deadline = Instant::now() + timeout;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match nix::poll::poll(&mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)], left) {
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(_) => {}
        }
    }
}

fn io_error(error: std::io::Error) -> Error {
    let errno = error.raw_os_error().map(coracle_sys::Errno::from_raw);
    Error::new(Code::Hook, errno.map_or_else(|| error.to_string(), coracle_sys::error::reason))
}
