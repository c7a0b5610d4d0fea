//! Hooks: programs of the host that run at moments of a container's life (runtime-spec 1.3, config.md, "POSIX-platform
//! Hooks").
//!
//! A hook gets the container's state on its standard input, and the environment of its configuration; where that names
//! none it has the little that the runtime keeps of its own. What an image names never reaches a hook of the host
//! (CVE-2025-23266).

use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use coracle_sys::descriptor;
use coracle_sys::program::{self, Outcome};
use oci_spec::runtime::{Hook, Spec};

use crate::error::{Code, Context, Error, Result};
use crate::self_image;

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
    each(stage, hooks, state, dir).collect()
}

/// Runs the hooks as [`run`] does, but all of them: one that fails keeps none after it from running. Returns what
/// failed.
pub fn run_all(stage: &str, hooks: &[Hook], state: &serde_json::Value, dir: &Path) -> Vec<Error> {
    each(stage, hooks, state, dir).filter_map(Result::err).collect()
}

/// Keeps from the hooks to come what the caller left open. For commands that enter no container, and so have not left it
/// behind already ([`self_image::protect`]).
///
/// # Errors
/// `System` where the kernel refuses.
pub fn close_inherited() -> Result<()> {
    Ok(descriptor::close_on_exec_from(3)?)
}

/// How each hook came out; it runs when it is asked for.
fn each(
    stage: &str,
    hooks: &[Hook],
    state: &serde_json::Value,
    dir: &Path,
) -> impl Iterator<Item = Result<()>> {
    hooks.iter().enumerate().map(move |(index, hook)| {
        run_one(hook, state, dir).map_err(|e| e.code_is(Code::Hook)).context(|| {
            format!("error running {stage} hook #{index}: /hooks/{stage}/{index} ({:?})", hook.path())
        })
    })
}

fn run_one(hook: &Hook, state: &serde_json::Value, dir: &Path) -> Result<()> {
    #[expect(clippy::disallowed_methods, reason = "this is where hooks are started")]
    let mut command = Command::new(hook.path());
    if let Some([name, args @ ..]) = hook.args().as_deref() {
        command.arg0(name).args(args);
    }
    command.env_clear();
    match hook.env() {
        // What has no `=` can be in no environment that std::process makes; the plan has refused it.
        Some(env) => command.envs(env.iter().filter_map(|v| v.split_once('='))),
        None => command.envs(self_image::kept()),
    };
    command.current_dir(dir).stdout(Stdio::null()).stderr(Stdio::piped());
    let timeout = hook.timeout().and_then(|s| u64::try_from(s).ok()).map(Duration::from_secs);
    let ended = match program::run(&mut command, state.to_string().as_bytes(), timeout)? {
        Outcome::Ended(ended) => ended,
        Outcome::TooLate => {
            let seconds = timeout.unwrap_or_default().as_secs();
            return Err(Error::new(Code::Hook, format!("it took longer than its timeout of {seconds} s")));
        }
        Outcome::Interrupted(signal) => return Err(Error::interrupted(signal).code_is(Code::Hook)),
    };
    if ended.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&ended.stderr);
    let said = said.trim().lines().last().map(|line| format!(", saying {line:?}")).unwrap_or_default();
    let error = Error::new(Code::Hook, format!("it failed with {}{said}", ended.status));
    Err(match ended.status.signal() {
        Some(libc::SIGSYS) => {
            error.hint("bad system call: /linux/seccomp does not allow it, and holds for start hooks")
        }
        _ => error,
    })
}
