//! What follows from how the containers stand: whose turn it is, who is removed, who is started again.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use coracle_sys::process::{self, Exit};
use serde_json::json;

use super::errand::Purpose;
use super::member::{End, Phase, Running};
use super::pulling::pulls_first;
use super::sandbox::AGAIN;
use super::{Path, Supervisor};
use crate::error::{Code, Context, Error, Result};
use crate::pod::host;
use crate::pod::launch::{self, Launched, Wanted};
use crate::pod::logs::Log;
use crate::pod::network;
use crate::pod::plan::Role;
use crate::pod::record::{self, Ended, Life, Wish};
use crate::pod::sandbox::Sandbox;
use crate::pod::volume;
use crate::time;

/// How often the removal of a container that fails is tried again at once. What is left then goes with the pod.
const MOST_REMOVALS: u32 = 2;

impl Supervisor {
    /// Does what is due as things stand.
    pub(super) fn advance(&mut self) {
        self.remove_ended();
        let doomed = self.members.iter().filter_map(|(path, member)| Some((path.clone(), member.doomed?)));
        for (path, grace) in doomed.collect::<Vec<_>>() {
            self.end(&path, grace);
        }
        match self.record.wish {
            Wish::Created => {}
            Wish::Run => self.go_on(),
            Wish::Stop => self.wind_down(),
        }
    }

    /// The containers of the document, in their order.
    pub(super) fn planned(&self) -> Vec<(Path, Role)> {
        self.plan.members.iter().map(|member| (Path::from(member.path.as_str()), member.role)).collect()
    }

    /// Starts whose turn it is.
    fn go_on(&mut self) {
        if self.sandbox.is_none() || self.preparing.is_some() {
            return;
        }
        let planned = self.planned();
        for (path, role) in &planned {
            self.start_if_due(path);
            let Some(member) = self.members.get(path) else { continue };
            match role {
                Role::Init if !member.life.done => return,
                Role::Init if !member.life.ended.as_ref().is_some_and(Ended::is_success) => {
                    return self.stop(self.plan.grace, &format!("init container {path:?} failed"));
                }
                Role::Sidecar if !member.has_started() && self.precedes_waiting(path) => return,
                _ => {}
            }
        }
        let is_done = |(path, role): &(Path, Role)| {
            *role != Role::Main || self.members.get(path).is_some_and(|member| member.life.done)
        };
        if planned.iter().all(is_done) {
            self.record.wish = Wish::Stop;
            self.save();
            self.wind_down();
        }
    }

    /// Whether containers after that at `path` have not had their turn: a sidecar that is started again later holds nobody
    /// up.
    fn precedes_waiting(&self, path: &Path) -> bool {
        let after = self.plan.members.iter().skip_while(|member| member.path != **path).skip(1);
        let is_waiting =
            |path: &str| self.members.get(path).is_some_and(|m| matches!(m.phase, Phase::Waiting));
        after.map(|member| member.path.as_str()).any(is_waiting)
    }

    fn start_if_due(&mut self, path: &Path) {
        let is_due = self.members.get(path).is_some_and(|member| match member.phase {
            Phase::Waiting => true,
            Phase::BackOff(at) => at <= Instant::now(),
            _ => false,
        });
        if is_due {
            self.launch(path);
        }
    }

    /// Starts the launch of the container at `path`, or to pull its image where that comes first.
    pub(super) fn launch(&mut self, path: &Path) {
        if self.members.get(path).is_some_and(pulls_first) {
            return self.pull(path);
        }
        if let Err(error) = self.try_launch(path) {
            self.is_not_launched(path, error);
        }
    }

    /// The container at `path` could not be launched.
    pub(super) fn is_not_launched(&mut self, path: &Path, error: Error) {
        let ended = failed_launch(&error);
        if let Some(member) = self.members.get_mut(path) {
            member.failure = Some(error);
        }
        self.end_with(path, ended);
    }

    fn try_launch(&mut self, path: &Path) -> Result<()> {
        let log = Log::open(self.dir.logs(path)?, self.plan.logs).context(|| "opening the log")?;
        let Some(member) = self.members.get_mut(path) else { return Ok(()) };
        member.cause = None;
        let streams = member.streams(log)?;
        let Some(member) = self.members.get(path) else { return Ok(()) };
        let no_sandbox = || Error::new(Code::IllegalState, "the pod does not run");
        let order = self.order().ok_or_else(no_sandbox)?;
        for (stream, fd) in &member.pipes.outputs {
            order.sandbox.keeper.hold(&format!("{path}:{}", stream.name()), fd.as_fd())?;
        }
        if let Some(input) = &member.pipes.input {
            order.sandbox.keeper.hold(&format!("{path}:stdin"), input.as_fd())?;
        }
        let wanted = Wanted { member: &member.plan, is_pulled: member.is_pulled };
        let job = launch::start(order, wanted, streams, &self.isolators)?;
        if let Some(member) = self.members.get_mut(path) {
            (member.phase, member.is_pulled) = (Phase::Launching(job), false);
        }
        self.tell(path, "launching");
        Ok(())
    }

    /// The job or the first process of the container at `path` has ended.
    pub(super) fn step(&mut self, path: &Path) {
        let Some(member) = self.members.get_mut(path) else { return };
        match std::mem::replace(&mut member.phase, Phase::Waiting) {
            Phase::Pulling(job) => self.is_pulled(path, job.finish::<()>().err()),
            Phase::Launching(job) => match job.finish::<Launched>() {
                Ok((launched, _)) if launched.lacks_image => self.pull(path),
                Ok((launched, terminal)) => {
                    let running = member_runs(&launched);
                    member.warnings = launched.warnings;
                    let taken = terminal.map_or(Ok(()), |master| member.take_terminal(master));
                    match running.and_then(|running| taken.map(|()| running)) {
                        Ok(running) => self.has_begun(path, running),
                        Err(error) => self.is_not_launched(path, error),
                    }
                }
                Err(error) => self.is_not_launched(path, error),
            },
            Phase::Running(running) => self.has_ended(path, running),
            Phase::Removing(job, ended) => self.is_removed(path, job.finish::<Vec<String>>().err(), ended),
            other => member.phase = other,
        }
    }

    fn has_begun(&mut self, path: &Path, running: Running) {
        let Some(member) = self.members.get_mut(path) else { return };
        member.health.begin(Instant::now());
        (member.unpulled, member.message) = (0, None);
        if let Some(sandbox) = &self.sandbox {
            let _ = sandbox.keeper.hold(&format!("{path}:process"), running.pidfd.as_fd());
            let terminal = member.pipes.input.as_ref().filter(|_| member.pipes.terminal);
            let _ = terminal.map(|master| sandbox.keeper.hold(&format!("{path}:terminal"), master.as_fd()));
        }
        member.phase = Phase::Running(running);
        let hook = member.plan.container.lifecycle.post_start.clone();
        self.tell(path, "running");
        if let Some(hook) = hook {
            self.run_hook(path, &hook, Purpose::PostStart(path.clone()), None);
        }
        if self.record.wish == Wish::Stop {
            self.wind_down();
        }
    }

    fn has_ended(&mut self, path: &Path, running: Running) {
        let exit = exit_of(&running);
        self.with(path, |member| member.ran = running.since.elapsed());
        let ended = record::ended(exit, &running.started);
        let cause = self.members.get_mut(path).and_then(|member| member.cause.take());
        // Who went by itself when it was asked to, was not ended by a process that it lost for want of memory.
        let went = cause.is_some() && ended.exit_code == Some(0);
        let limitation = self.limitation(path).filter(|_| !went);
        let (reason, message) = if let Some(message) = self.eviction(path) {
            ("Evicted".to_owned(), message)
        } else if let Some(message) = limitation {
            ("OOMKilled".to_owned(), message)
        } else {
            (cause.unwrap_or_else(|| ended.reason.clone()), String::new())
        };
        self.end_with(path, Ended { reason, message, ..ended });
    }

    /// The container at `path` has ended so; what is left of it is still to be removed.
    pub(super) fn end_with(&mut self, path: &Path, ended: Ended) {
        self.errands.values_mut().for_each(|errand| errand.end_for(path));
        let Some(member) = self.members.get_mut(path) else { return };
        (member.life.ended, member.life.removing) = (Some(ended.clone()), true);
        (member.phase, member.doomed, member.message) = (Phase::Ended(Some(ended)), None, None);
        self.save_life(path);
        for child in self.below(path) {
            self.with(&child, |member| member.doomed = Some(Duration::ZERO));
        }
    }

    /// The containers below that at `path`.
    pub(super) fn below(&self, path: &str) -> Vec<Path> {
        let prefix = format!("{path}/");
        self.members.keys().filter(|other| other.starts_with(&prefix)).cloned().collect()
    }

    /// Starts the removal of those that have ended and have nobody below them.
    fn remove_ended(&mut self) {
        let ended = self.members.iter().filter(|(_, member)| matches!(member.phase, Phase::Ended(_)));
        for path in ended.map(|(path, _)| path.clone()).collect::<Vec<_>>() {
            if self.below(&path).iter().any(|child| self.members[child].is_busy()) {
                continue;
            }
            let job = self.removal(&path);
            let Some(member) = self.members.get_mut(&path) else { continue };
            match (&member.phase, job) {
                (Phase::Ended(ended), Ok(job)) => member.phase = Phase::Removing(job, ended.clone()),
                // There are too many processes, for now.
                _ => self.again = Some(Instant::now() + AGAIN),
            }
        }
    }

    fn is_removed(&mut self, path: &Path, failure: Option<Error>, ended: Option<Ended>) {
        let (wish, bounds) = (self.record.wish, self.plan.back_off);
        let Some(member) = self.members.get_mut(path) else { return };
        if failure.is_some() && member.left < MOST_REMOVALS {
            member.left += 1;
            member.phase = Phase::Ended(ended);
            return;
        }
        (member.left, member.life.removing) = (0, false);
        member.finish_streams();
        if let Some(sandbox) = &self.sandbox {
            for what in ["stdin", "stdout", "stderr", "process", "terminal"] {
                let _ = sandbox.keeper.drop_held(&format!("{path}:{what}"));
            }
        }
        if let Some(failure) = failure {
            member.warnings.push(format!("something is left: {failure}"));
        }
        let Some(ended) = ended else {
            // It has never run: this is as it was before it was launched.
            (member.phase, member.leaves) = match member.plan.role {
                // Whoever asked for it asks again.
                Role::Nested => (Phase::Over, true),
                _ => (Phase::Waiting, false),
            };
            return;
        };
        let kills = self.plan.kill_on_failure && member.plan.role == Role::Main && !ended.is_success();
        if wish == Wish::Run && !kills && member.is_restarted(&ended) {
            let wait = member.back_off(bounds);
            member.phase = Phase::BackOff(Instant::now() + wait);
        } else {
            member.phase = Phase::Over;
            member.life.done = true;
        }
        self.save_life(path);
        self.tell(path, "exited");
        if kills && wish == Wish::Run {
            self.stop(self.plan.grace, &format!("container {path:?} failed, and one failure ends the pod"));
        }
    }

    /// Starts the pod, again where it has ended.
    ///
    /// # Errors
    /// `IllegalState` where it is ending; whatever keeps its sandbox from being made.
    pub(super) fn start(&mut self) -> Result<()> {
        match self.record.wish {
            Wish::Run => return Ok(()),
            Wish::Stop if !self.is_over() => {
                return Err(Error::new(Code::IllegalState, "the pod is ending").hint("wait for it to end"));
            }
            _ => {}
        }
        host::check_open(&self.global.root)?;
        let wanted = network::wanted(&self.record.document)?;
        volume::make(self.volumes())?;
        self.begin_anew()?;
        let made = Sandbox::make(&self.dir, &mut self.record, &self.plan, &self.isolators);
        self.sandbox = Some(made.inspect_err(|_| self.tear_down())?);
        (self.started, self.grace, self.ends) = (Instant::now(), self.plan.grace, None);
        (self.failure, self.again, self.trouble) = (None, None, None);
        (self.record.wish, self.record.message) = (Wish::Run, None);
        self.record.started = Some(time::since_start());
        self.record.networks = wanted.map(|_| Vec::new());
        self.save();
        self.prepare();
        Ok(())
    }

    /// Has the containers of the document wait for their turns. On disk first: who adopts a pod that is to run would take those
    /// that were done in an earlier run for done in this one.
    fn begin_anew(&mut self) -> Result<()> {
        for (path, member) in self.members.iter_mut().filter(|(_, member)| member.plan.role != Role::Nested) {
            if member.life.done || member.life.ended.is_some() {
                // How it ended in an earlier run says nothing of this one.
                let life = Life { done: false, ended: None, ..member.life.clone() };
                self.dir.write_life(path, &life)?;
                member.life = life;
            }
            member.phase = Phase::Waiting;
            (member.cause, member.streak, member.unpulled, member.message) = (None, 0, 0, None);
        }
        Ok(())
    }

    /// Tells who watches the pod that the container at `path` is now in `state`.
    pub(super) fn tell(&mut self, path: &Path, state: &str) {
        let exit = self.members.get(path).and_then(|member| member.life.ended.clone());
        let exit = exit.filter(|_| state == "exited");
        let event = json!({"time": time::now(), "container": &**path, "state": state, "exit": exit});
        self.tell_watchers(&event);
    }
}

/// How a process ended: by waiting for a child, by its descriptor for a former supervisor's.
fn exit_of(running: &Running) -> Option<Exit> {
    let pidfd = running.pidfd.as_fd();
    if let Ok(exit) = process::wait(pidfd) {
        return Some(exit);
    }
    // Procfs tells it until whoever inherited the process has awaited it, the descriptor from then on; in between it is asked
    // for again.
    for _ in 0..500 {
        match process::exit_of(pidfd) {
            Ok(Some(exit)) => return Some(exit),
            asked => match process::exit_of_zombie(running.pid, pidfd) {
                None if asked.is_ok() => std::thread::sleep(Duration::from_millis(2)),
                exit => return exit,
            },
        }
    }
    None
}

/// The process that the launcher has left to the supervisor and nobody has awaited.
fn member_runs(launched: &Launched) -> Result<Running> {
    let (pid, stop_signal) = (launched.pid, launched.stop_signal.unwrap_or(libc::SIGTERM));
    let pidfd = process::pidfd(pid)?;
    Ok(Running { pid, pidfd, started: time::now(), since: Instant::now(), end: End::No, stop_signal })
}

fn failed_launch(error: &Error) -> Ended {
    let now = time::now();
    Ended {
        exit_code: Some(i32::from(error.code().of_run())),
        signal: None,
        reason: "LaunchFailed".to_owned(),
        message: error.to_string(),
        started: now.clone(),
        finished: now,
    }
}
