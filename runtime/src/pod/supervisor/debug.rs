//! Debug containers that a caller asks the pod for: each is a job of the supervisor, and goes with its caller.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use coracle_sys::{descriptor, file, process, signal, tty};
use serde::Deserialize;
use serde_json::json;

use super::Supervisor;
use super::calls::{Answer, streams};
use super::errand::{Purpose, set_streams};
use super::pending::Pending;
use crate::cli::{self, Debugging, Files, Wanted};
use crate::commands::debug;
use crate::error::{Code, Context, Error, Result};
use crate::pod::job::Job;
use crate::pod::launch::{Launched, Streams};
use crate::pod::varlink::Reply;

/// A session has no longest time.
const WITHIN: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// What is asked for.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Debug {
    container: String,
    #[serde(default)]
    args: Vec<String>,
    #[serde(default)]
    image: Option<String>,
    #[serde(default)]
    files: Option<String>,
    #[serde(default)]
    env: Vec<String>,
    #[serde(default)]
    cwd: Option<PathBuf>,
    #[serde(default)]
    user: Option<String>,
    #[serde(default)]
    capabilities: Vec<String>,
    #[serde(default)]
    privileged: bool,
    #[serde(default)]
    terminal: bool,
    #[serde(default)]
    stdin: Option<usize>,
    #[serde(default)]
    stdout: Option<usize>,
    #[serde(default)]
    stderr: Option<usize>,
}

impl Supervisor {
    /// Begins a session for the caller `id`.
    pub(super) fn launch_debug(&mut self, id: u64, given: Debug, fds: Vec<OwnedFd>) -> Result<Answer> {
        let (path, _) = self.found(&given.container)?;
        let (master, streams) = if given.terminal {
            let (master, streams) = self.terminal(id, &given)?;
            (Some(master), streams)
        } else {
            (None, streams([given.stdin, given.stdout, given.stderr], &fds)?)
        };
        let options = Debugging::Session(Box::new(self.session(given)?));
        let global = &self.global;
        let keep: Vec<BorrowedFd<'_>> = streams.fds.iter().map(AsFd::as_fd).collect();
        let job = Job::start(WITHIN, &keep, None, |_| {
            signal::unblock()?;
            if master.is_some() {
                // As on a caller's own: the session hears of its size, and of its end.
                process::new_session()?;
                tty::make_controlling(streams.fds[0].as_fd())?;
            }
            set_streams(Some(&streams))?;
            let exit = debug::debug(global, &options)?;
            Ok(Launched { exit, ..Launched::default() })
        })?;
        if let Some(master) = master {
            self.say(id, &Reply::more(json!({ "terminal": 0 })), vec![master]);
        }
        self.run_errand(&path, Purpose::Call(id), job, None);
        Ok(Answer::Later(Pending::Exec))
    }

    /// A terminal for a session of the caller `id`: what the caller gets of it, and the session's standard streams.
    fn terminal(&self, id: u64, given: &Debug) -> Result<(OwnedFd, Streams)> {
        if [given.stdin, given.stdout, given.stderr].iter().any(Option::is_some) {
            return Err(Error::new(Code::Usage, "terminal: it excludes stdin, stdout and stderr"));
        }
        if !self.clients.get(&id).is_some_and(|client| client.more) {
            return Err(Error::new(Code::Usage, "terminal: it comes with the first of several replies")
                .hint("call with \"more\""));
        }
        let opened = file::open_dir("/dev/pts").and_then(|devpts| {
            let (master, peer) = tty::open_pair(devpts.as_fd())?;
            let fds = [descriptor::duplicate(peer.as_fd())?, descriptor::duplicate(peer.as_fd())?, peer];
            Ok((master, Streams { fds }))
        });
        opened.context(|| "opening a terminal for the session")
    }

    fn session(&self, given: Debug) -> Result<cli::Debug> {
        let files = match (given.files.as_deref(), &given.image) {
            (None, None) | (Some("target"), _) => Files::Target,
            (None, Some(_)) | (Some("image"), Some(_)) => Files::Image,
            (Some(other), _) => {
                let why = format!("files: {other:?} is neither target nor, with an image, image");
                return Err(Error::new(Code::Usage, why));
            }
        };
        if given.args.is_empty() && given.image.is_none() {
            return Err(Error::new(Code::Usage, "args: it names no program"));
        }
        Ok(cli::Debug {
            target: Wanted::Container(format!("{}/{}", self.plan.name, given.container)),
            args: given.args,
            image: given.image,
            store: Some(self.record.store.clone()),
            files,
            env: given.env,
            cwd: given.cwd,
            user: given.user,
            cap_add: given.capabilities,
            privileged: given.privileged,
            tty: given.terminal,
            ..cli::Debug::default()
        })
    }
}
