//! Debug containers that a caller asks the pod for: each is a job of the supervisor, and goes with its caller.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use coracle_sys::signal;
use serde::Deserialize;

use super::Supervisor;
use super::calls::{Answer, streams};
use super::errand::{Purpose, set_streams};
use super::pending::Pending;
use crate::cli::{self, Debugging, Files, Wanted};
use crate::commands::debug;
use crate::error::{Code, Error, Result};
use crate::pod::job::Job;
use crate::pod::launch::Launched;

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
        let streams = streams([given.stdin, given.stdout, given.stderr], &fds)?;
        let options = Debugging::Session(Box::new(self.session(given)?));
        let global = &self.global;
        let keep: Vec<BorrowedFd<'_>> = streams.fds.iter().map(AsFd::as_fd).collect();
        let job = Job::start(WITHIN, &keep, None, |_| {
            signal::unblock()?;
            set_streams(Some(&streams))?;
            let exit = debug::debug(global, &options)?;
            Ok(Launched { exit, ..Launched::default() })
        })?;
        self.run_errand(&path, Purpose::Call(id), job, None);
        Ok(Answer::Later(Pending::Exec))
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
            ..cli::Debug::default()
        })
    }
}
