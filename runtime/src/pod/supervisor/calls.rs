//! The methods of `io.coracle.Pod`.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use coracle_sys::{descriptor, process, tty};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::errand::{Purpose, no_container};
use super::member::{Member, Phase};
use super::pending::{INTERFACE, Pending};
use super::{Path, Supervisor};
use crate::cli;
use crate::error::{Code, Error, Result};
use crate::pod::document::{self, RestartPolicy};
use crate::pod::launch::Streams;
use crate::pod::logs::{self, Stream};
use crate::pod::plan::{self, Role};
use crate::pod::record::{Life, Wish};
use crate::pod::varlink::{self, Call, Reply};
use crate::stages::spec;

/// What a method says: an answer with descriptors, or what is to be waited for.
pub(super) enum Answer {
    Now(Value, Vec<OwnedFd>),
    Later(Pending),
}

pub(super) fn now(value: Value) -> Result<Answer> {
    Ok(Answer::Now(value, Vec::new()))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Empty {}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Named {
    container: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Stop {
    #[serde(default)]
    grace_seconds: Option<u64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Remove {
    #[serde(default)]
    force: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Wait {
    #[serde(default)]
    pub(super) container: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Kill {
    container: String,
    signal: i32,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Exec {
    container: String,
    args: Vec<String>,
    #[serde(default)]
    env: Vec<String>,
    #[serde(default)]
    cwd: Option<std::path::PathBuf>,
    #[serde(default)]
    user: Option<String>,
    #[serde(default)]
    terminal: bool,
    #[serde(default)]
    stdin: Option<usize>,
    #[serde(default)]
    stdout: Option<usize>,
    #[serde(default)]
    stderr: Option<usize>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Attach {
    container: String,
    #[serde(default)]
    stdin: bool,
    #[serde(default)]
    tail: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Resize {
    container: String,
    rows: u16,
    columns: u16,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Launch {
    parent: String,
    container: Value,
}

fn parameters<T: DeserializeOwned>(call: &Call) -> Result<T> {
    spec::json::from_value(call.given()).map_err(|e| e.code_is(Code::Usage).doing(call.method.clone()))
}

impl Supervisor {
    /// Something has come from the caller `id`, or it takes more.
    pub(super) fn hear(&mut self, id: u64) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        let heard = client.connection.flush().and_then(|()| client.connection.receive());
        if matches!(heard, Ok(true)) {
            self.take_calls(id);
        } else {
            self.forget_client(id);
        }
    }

    /// Takes the calls of `id` that have come, one after the other.
    pub(super) fn take_calls(&mut self, id: u64) {
        while let Some(client) = self.clients.get_mut(&id) {
            if client.pending.is_some() {
                return;
            }
            let Some((text, fds)) = client.connection.message() else { return };
            match serde_json::from_slice::<Call>(&text) {
                Ok(call) => self.call(id, &call, fds),
                Err(_) => return self.forget_client(id),
            }
        }
    }

    fn call(&mut self, id: u64, call: &Call, fds: Vec<OwnedFd>) {
        if let Some(client) = self.clients.get_mut(&id) {
            (client.more, client.oneway) = (call.more, call.oneway);
        }
        let Some(method) = call.method.strip_prefix(INTERFACE).and_then(|method| method.strip_prefix('.'))
        else {
            let reply = varlink::about(call, &[(INTERFACE, varlink::POD)]);
            return self.say(id, &reply, Vec::new());
        };
        if method == "Watch" && !call.more {
            return self.say(id, &Reply::expected_more(), Vec::new());
        }
        match self.method(id, method, call, fds) {
            Ok(Some(Answer::Now(value, fds))) => self.say(id, &Reply::last(value), fds),
            Ok(Some(Answer::Later(pending))) => {
                if let Some(client) = self.clients.get_mut(&id) {
                    client.pending = Some(pending);
                }
            }
            Ok(None) => {
                let reply = Reply::of_service("MethodNotFound", "method", &call.method);
                self.say(id, &reply, Vec::new());
            }
            Err(error) => self.say(id, &Reply::failed(INTERFACE, &error), Vec::new()),
        }
    }

    fn method(&mut self, id: u64, method: &str, call: &Call, fds: Vec<OwnedFd>) -> Result<Option<Answer>> {
        match method {
            "Inspect" => parameters::<Empty>(call).and_then(|_| now(json!({ "pod": self.told() }))),
            "Document" => {
                parameters::<Empty>(call).and_then(|_| now(json!({ "document": self.record.document })))
            }
            "Start" => parameters::<Empty>(call).and_then(|_| self.begin()),
            "Stop" => parameters(call).and_then(|given| self.stop_call(&given)),
            "Remove" => parameters(call).and_then(|given| self.remove_call(&given)),
            "Wait" => parameters(call).and_then(|given| self.wait_call(given)),
            "Kill" => parameters(call).and_then(|given| self.kill(&given)),
            "Exec" => parameters(call).and_then(|given| self.exec(id, given, fds)),
            "LaunchDebug" => parameters(call).and_then(|given| self.launch_debug(id, given, fds)),
            "Attach" => parameters(call).and_then(|given| self.attach(&given)),
            "Resize" => parameters(call).and_then(|given| self.resize(&given)),
            "Logs" => parameters(call).and_then(|given| self.logs(&given)),
            "Rotate" => parameters(call).and_then(|given| self.rotate(&given)),
            "Launch" => parameters(call).and_then(|given| self.launch_nested(given)),
            "Forget" => parameters(call).and_then(|given| self.forget(&given)),
            "Update" => parameters(call).and_then(|given| self.update(&given)),
            "Usage" => parameters(call).and_then(|given| self.usage(id, &given)),
            "Watch" => parameters::<Empty>(call).map(|_| Answer::Later(Pending::Watch)),
            _ => return Ok(None),
        }
        .map(Some)
    }

    fn begin(&mut self) -> Result<Answer> {
        self.start()?;
        Ok(Answer::Later(Pending::Start))
    }

    fn stop_call(&mut self, given: &Stop) -> Result<Answer> {
        let grace = given.grace_seconds.map_or(self.plan.grace, document::seconds);
        if self.record.wish != Wish::Stop || !self.is_over() {
            self.stop(grace, "");
        }
        Ok(Answer::Later(Pending::Stop))
    }

    fn remove_call(&mut self, given: &Remove) -> Result<Answer> {
        if !given.force && !self.is_over() {
            let why = format!("pod {:?} is not over: {}", self.plan.name, self.phase().to_lowercase());
            return Err(Error::new(Code::IllegalState, why).hint("stop it first, or remove it with --force"));
        }
        if !self.is_over() {
            self.stop(Duration::ZERO, "");
        }
        self.leaving = true;
        Ok(Answer::Later(Pending::Remove))
    }

    fn wait_call(&self, given: Wait) -> Result<Answer> {
        let path = given.container.map(|path| self.found(&path).map(|(path, _)| path)).transpose()?;
        Ok(Answer::Later(Pending::Wait(path)))
    }

    pub(super) fn found(&self, path: &str) -> Result<(Path, &Member)> {
        let found = self.members.get_key_value(path);
        found.map(|(path, member)| (path.clone(), member)).ok_or_else(|| no_container(path))
    }

    fn kill(&self, given: &Kill) -> Result<Answer> {
        let (path, member) = self.found(&given.container)?;
        let Phase::Running(running) = &member.phase else {
            return Err(Error::new(Code::IllegalState, format!("container {path:?} does not run")));
        };
        process::signal(running.pidfd.as_fd(), given.signal)?;
        if given.signal == libc::SIGKILL {
            self.thaw_to_die(&path);
        }
        now(json!({}))
    }

    fn exec(&mut self, id: u64, given: Exec, fds: Vec<OwnedFd>) -> Result<Answer> {
        let (path, _) = self.found(&given.container)?;
        let streams = streams([given.stdin, given.stdout, given.stderr], &fds)?;
        let options = cli::Exec {
            args: given.args,
            env: given.env,
            cwd: given.cwd,
            user: given.user,
            tty: given.terminal,
            ..cli::Exec::default()
        };
        self.execute(&path, options, Some(streams), (Purpose::Call(id), None))?;
        Ok(Answer::Later(Pending::Exec))
    }

    fn attach(&mut self, given: &Attach) -> Result<Answer> {
        let (path, member) = self.found(&given.container)?;
        let lacks_input = given.stdin && member.pipes.input.is_none();
        let reads = member.plan.container.stdin || member.plan.container.tty;
        if lacks_input && reads && !matches!(member.phase, Phase::Running(_)) {
            return Err(Error::new(Code::IllegalState, format!("container {path:?} does not run")));
        }
        if lacks_input {
            let why = format!("container {path:?} has no standard input");
            return Err(Error::new(Code::IllegalState, why).hint("stdin or tty must be true in its document"));
        }
        let member = self.members.get_mut(&path).ok_or_else(|| no_container(&path))?;
        let mut fds = Vec::new();
        let stdin = given.stdin.then(|| member.attached.write()).transpose()?;
        let stdin = stdin.map(|fd| push(&mut fds, fd));
        let stdout = push(&mut fds, member.attached.read(Stream::Stdout, given.tail)?);
        let stderr = (!member.pipes.terminal).then(|| member.attached.read(Stream::Stderr, given.tail));
        let stderr = stderr.transpose()?.map(|fd| push(&mut fds, fd));
        if !member.is_busy() {
            member.attached.end();
        }
        let reply = json!({
            "stdin": stdin, "stdout": stdout, "stderr": stderr, "terminal": member.plan.container.tty,
        });
        Ok(Answer::Now(reply, fds))
    }

    fn resize(&self, given: &Resize) -> Result<Answer> {
        let (path, member) = self.found(&given.container)?;
        let master = member.pipes.outputs.first().map(|(_, master)| master).filter(|_| member.pipes.terminal);
        let none = || Error::new(Code::IllegalState, format!("container {path:?} has no terminal"));
        tty::set_size(master.ok_or_else(none)?.as_fd(), given.rows, given.columns)?;
        now(json!({}))
    }

    fn logs(&self, given: &Named) -> Result<Answer> {
        let (path, member) = self.found(&given.container)?;
        let dir = self.dir.logs(&path)?;
        let files = logs::files(&dir)?;
        let reply = json!({ "files": (0..files.len()).collect::<Vec<_>>(), "ended": !member.is_busy() });
        Ok(Answer::Now(reply, files))
    }

    fn rotate(&mut self, given: &Named) -> Result<Answer> {
        let (path, _) = self.found(&given.container)?;
        let log = self.members.get_mut(&path).and_then(|member| member.pipes.log.as_mut());
        log.map_or(Ok(()), logs::Log::rotate)?;
        now(json!({}))
    }

    fn launch_nested(&mut self, given: Launch) -> Result<Answer> {
        let (parent, member) = self.found(&given.parent)?;
        if !matches!(member.phase, Phase::Running(_)) {
            return Err(Error::new(Code::IllegalState, format!("container {parent:?} does not run")));
        }
        let text = given.container.to_string();
        let container = document::parse_container(text.as_bytes(), Some(&self.record.document))?;
        let path: Path = format!("{parent}/{}", container.name).into();
        if let Some(there) = self.members.get(&path) {
            // The same again changes nothing: a caller that did not hear the answer asks once more.
            if there.life.nested.as_ref() == Some(&container) {
                return Ok(Answer::Later(Pending::Launch(path)));
            }
            return Err(Error::new(Code::Exists, format!("container {path:?} already exists")));
        }
        let mut plan = plan::member(container.clone(), Role::Nested, RestartPolicy::Never);
        plan.path = path.to_string();
        let life = Life { nested: Some(container), ..Life::default() };
        self.dir.write_life(&path, &life)?;
        self.members.insert(path.clone(), Member::new(plan, life));
        self.launch(&path);
        Ok(Answer::Later(Pending::Launch(path)))
    }

    fn forget(&mut self, given: &Named) -> Result<Answer> {
        let Ok((path, member)) = self.found(&given.container) else { return now(json!({})) };
        if member.plan.role != Role::Nested {
            let why = format!("container {path:?} belongs to the pod");
            return Err(Error::new(Code::IllegalState, why).hint("remove the pod"));
        }
        for path in self.below(&path).into_iter().chain([path.clone()]) {
            if let Some(member) = self.members.get_mut(&path) {
                (member.doomed, member.leaves) = (Some(Duration::ZERO), true);
            }
        }
        Ok(Answer::Later(Pending::Forget(path)))
    }
}

fn push(fds: &mut Vec<OwnedFd>, fd: OwnedFd) -> usize {
    fds.push(fd);
    fds.len() - 1
}

/// The streams that the caller passed, by their numbers among `fds`; nothing in the place of each that it did not.
pub(super) fn streams([stdin, stdout, stderr]: [Option<usize>; 3], fds: &[OwnedFd]) -> Result<Streams> {
    let one = |number: Option<usize>, name: &str| -> Result<OwnedFd> {
        let Some(number) = number else { return Ok(descriptor::null()?) };
        let missing =
            || Error::new(Code::Usage, format!("{name} is descriptor {number}, and {} came", fds.len()));
        Ok(descriptor::duplicate(fds.get(number).ok_or_else(missing)?.as_fd())?)
    };
    Ok(Streams { fds: [one(stdin, "stdin")?, one(stdout, "stdout")?, one(stderr, "stderr")?] })
}
