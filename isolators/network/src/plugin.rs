//! One call of one plugin: a program with a few variables, a document in, a document out (CNI 1.1, section 2).

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use coracle_isolator::{Error, Result};
use coracle_sys::file::{self, CWD, Resolve};
use coracle_sys::process;
use coracle_sys::program::{self, Ended, Outcome};
use serde::Deserialize;
use serde_json::Value;

use crate::failed;

/// Where plugins find the tools that they call.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// "Try again later" (CNI 1.1, "Error").
const TRY_AGAIN: u64 = 11;

/// How long until a plugin that says so is called again; each time twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// Where plugins are, and how long a call may take.
#[derive(Debug, Clone)]
pub(crate) struct Plugins {
    pub(crate) directories: Vec<PathBuf>,
    pub(crate) deadline: Duration,
}

/// What a call is about: the variables of a plugin's environment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Call<'a> {
    /// `ADD`, `CHECK`, `DEL`, `GC`, `STATUS`, `VERSION`.
    pub(crate) verb: &'static str,
    /// The container, by the name that CNI knows it by; empty for verbs that concern none.
    pub(crate) container: &'a str,
    /// Its network namespace; `None` where it is gone.
    pub(crate) namespace: Option<&'a Path>,
    /// The interface in it.
    pub(crate) interface: &'a str,
}

/// What a plugin says went wrong.
#[derive(Deserialize)]
struct Failure {
    code: u64,
    msg: String,
    #[serde(default)]
    details: String,
}

impl Plugins {
    /// Calls the plugin `name` with the document `config`, again where it asks for that. The document that it answers;
    /// null where it answers nothing.
    ///
    /// # Errors
    /// Naming the plugin and the verb: where it fails, with the code that it tells; where it can't be started, takes
    /// longer than the deadline, or answers what is no document.
    pub(crate) fn call(&self, name: &str, call: &Call<'_>, config: &Value) -> Result<Value> {
        let program = self.find(name)?;
        let deadline = Instant::now() + self.deadline;
        let mut pause = FIRST_PAUSE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let failure = match self.run(&program, call, config, left)? {
                Outcome::TooLate => return Err(self.too_late(name, call)),
                Outcome::Interrupted(signal) => {
                    let why = format!("it was interrupted by {}", process::signal_name(signal));
                    return Err(told(name, call, &words(why)));
                }
                Outcome::Ended(ended) => match answered(&ended) {
                    Ok(answer) => return Ok(answer),
                    Err(failure) => failure,
                },
            };
            let again = failure.code == TRY_AGAIN && Instant::now() + pause < deadline;
            if !again {
                return Err(told(name, call, &failure));
            }
            std::thread::sleep(pause);
            pause *= 2;
        }
    }

    /// The program of a plugin.
    fn find(&self, name: &str) -> Result<PathBuf> {
        let mut paths = self.directories.iter().map(|dir| dir.join(name));
        let is_there = |path: &PathBuf| file::open(CWD, path, libc::O_PATH, 0, Resolve::Host).is_ok();
        paths.find(is_there).ok_or_else(|| {
            let looked: Vec<_> = self.directories.iter().map(|dir| dir.display().to_string()).collect();
            Error::new(format!("there is no plugin {name:?} in {}", looked.join(" or ")))
                .with_hint("containernetworking-plugins has the usual ones")
        })
    }

    fn run(&self, program: &Path, call: &Call<'_>, config: &Value, left: Duration) -> Result<Outcome> {
        #[expect(clippy::disallowed_methods, reason = "this is where network plugins are started")]
        let mut command = Command::new(program);
        let directories: Vec<&str> = self.directories.iter().filter_map(|dir| dir.to_str()).collect();
        command
            .env_clear()
            .env("PATH", PATH)
            .env("CNI_COMMAND", call.verb)
            .env("CNI_PATH", directories.join(":"));
        if !call.container.is_empty() {
            command.env("CNI_CONTAINERID", call.container).env("CNI_IFNAME", call.interface);
            command.env("CNI_NETNS", call.namespace.unwrap_or(Path::new("")));
        }
        command.current_dir("/").stdout(Stdio::piped()).stderr(Stdio::piped());
        program::run(&mut command, config.to_string().as_bytes(), Some(left)).map_err(failed)
    }

    fn too_late(&self, name: &str, call: &Call<'_>) -> Error {
        let seconds = self.deadline.as_secs_f64();
        Error::new(format!("plugin {name:?} did not answer {} within {seconds} s, and was killed", call.verb))
    }
}

/// What a plugin that has ended answered.
fn answered(ended: &Ended) -> std::result::Result<Value, Failure> {
    let silent = ended.stdout.iter().all(u8::is_ascii_whitespace);
    if ended.status.success() {
        return match serde_json::from_slice(&ended.stdout) {
            Ok(answer) => Ok(answer),
            Err(_) if silent => Ok(Value::Null),
            Err(error) => Err(words(format!("its answer is no JSON: {error}"))),
        };
    }
    serde_json::from_slice::<Failure>(&ended.stdout)
        .map_err(|_| {
            let said = String::from_utf8_lossy(&ended.stderr);
            let said =
                said.trim().lines().last().map(|line| format!(", saying {line:?}")).unwrap_or_default();
            words(format!("it ended with {}{said}", ended.status))
        })
        .and_then(Err)
}

fn words(msg: String) -> Failure {
    Failure { code: 0, msg, details: String::new() }
}

fn told(name: &str, call: &Call<'_>, failure: &Failure) -> Error {
    let details = if failure.details.is_empty() { String::new() } else { format!(" ({})", failure.details) };
    let code = if failure.code == 0 { String::new() } else { format!(" (CNI code {})", failure.code) };
    // A plugin hands on what its programs say, in lines.
    let why: Vec<&str> = failure.msg.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let told = format!("plugin {name:?} could not {}: {}{details}{code}", call.verb, why.join("; "));
    // It ends on a terminal, which would obey.
    Error::new(told.chars().map(|c| if c.is_control() { ' ' } else { c }).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_word_of_a_plugins_reaches_a_terminal_as_an_order() {
        let call = Call { verb: "ADD", container: "c", namespace: None, interface: "eth0" };
        let failure = Failure { code: 7, msg: "a\x1b[2J\nb".to_owned(), details: "\x07c".to_owned() };
        let told = told("p", &call, &failure).to_string();
        assert_eq!(told, "plugin \"p\" could not ADD: a [2J; b ( c) (CNI code 7)");
    }
}
