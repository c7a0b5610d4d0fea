//! How containers and the pod are ended, and what happens where they take too long.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use coracle_sys::process;

use super::errand::Purpose;
use super::member::{End, Phase, Running};
use super::{Path, Supervisor};
use crate::pod::job::Job;
use crate::pod::plan::Role;
use crate::pod::record::Wish;
use crate::state::State;

/// What a container gets at least, as with Kubernetes, that is asked to end when the time of the pod, or of its hook, is over.
const LAST_MOMENT: Duration = Duration::from_secs(2);

impl Supervisor {
    /// Ends the pod: containers together, then sidecars in reverse order. Who asks again can but shorten the time.
    pub(super) fn stop(&mut self, grace: Duration, why: &str) {
        if !why.is_empty() {
            self.record.message = Some(why.to_owned());
        }
        let ends = Instant::now() + grace;
        self.grace = if self.ends.is_some() { self.grace.min(grace) } else { grace };
        self.ends = Some(self.ends.map_or(ends, |before| before.min(ends)));
        self.record.wish = Wish::Stop;
        self.save();
        self.wind_down();
    }

    /// How long who is asked to end now may take: what is left of the pod's time, and a moment where its turn comes late.
    fn grace_left(&mut self) -> Duration {
        let (now, grace) = (Instant::now(), self.grace);
        let ends = *self.ends.get_or_insert(now + grace);
        ends.saturating_duration_since(now).max(LAST_MOMENT.min(grace))
    }

    pub(super) fn wind_down(&mut self) {
        let with_role = |sidecars: bool| -> Vec<Path> {
            let is_one = |role: Role| (role == Role::Sidecar) == sidecars;
            self.members.iter().filter(|(_, m)| is_one(m.plan.role)).map(|(path, _)| path.clone()).collect()
        };
        let (others, sidecars) = (with_role(false), with_role(true));
        let grace = self.grace_left();
        for path in &others {
            self.end(path, grace);
        }
        if others.iter().any(|path| self.members[path].is_busy()) {
            return;
        }
        let in_order = self.planned().into_iter().rev().map(|(path, _)| path);
        for path in in_order.filter(|path| sidecars.contains(path)) {
            self.end(&path, grace);
            if self.members[&path].is_busy() {
                return;
            }
        }
        self.tear_down();
    }

    /// Asks the container at `path` to end, within `grace`; those below it first.
    pub(super) fn end(&mut self, path: &Path, grace: Duration) {
        let below = self.below(path);
        for child in &below {
            self.end(child, grace);
        }
        if below.iter().any(|child| self.members[child].is_busy()) {
            return;
        }
        let deadline = Instant::now() + grace;
        let Some(member) = self.members.get_mut(path) else { return };
        let hook = member.plan.container.lifecycle.pre_stop.clone();
        match &mut member.phase {
            Phase::Waiting | Phase::BackOff(_) => {
                member.phase = Phase::Over;
                member.life.done = true;
            }
            Phase::Pulling(job) | Phase::Launching(job) => job.kill(),
            Phase::Running(running) => match (running.end, hook) {
                (_, _) if grace.is_zero() => {
                    kill(running);
                    self.thaw_to_die(path);
                }
                (End::No, Some(hook)) => {
                    running.end = End::Hook(deadline);
                    self.run_hook(path, &hook, Purpose::PreStop(path.clone()), Some(grace));
                }
                (End::No, None) => ask_to_end(running, deadline),
                // It is asked but once, and may be given less time than before.
                (End::Hook(before), _) => running.end = End::Hook(before.min(deadline)),
                (End::Asked(before), _) => running.end = End::Asked(before.min(deadline)),
                (End::Killed, _) => {}
            },
            _ => {}
        }
    }

    /// What was to be over by now.
    pub(super) fn expire(&mut self, now: Instant) {
        if self.record.wish == Wish::Run && self.plan.deadline.is_some_and(|most| self.started + most <= now)
        {
            for member in self.members.values_mut().filter(|member| member.is_busy()) {
                member.cause = Some("DeadlineExceeded".to_owned());
            }
            self.stop(self.plan.grace, "the pod ran for longer than activeDeadlineSeconds");
        }
        let mut killed = Vec::new();
        for (path, member) in &mut self.members {
            match &mut member.phase {
                Phase::Launching(job) | Phase::Removing(job, _) if job.is_late(now) => job.kill(),
                Phase::Running(running) => match running.end {
                    End::Hook(at) if at <= now => ask_to_end(running, now + LAST_MOMENT),
                    End::Asked(at) if at <= now => {
                        kill(running);
                        killed.push(path.clone());
                    }
                    _ => {}
                },
                _ => {}
            }
            if member.attached.deadline().is_some_and(|at| at <= now) {
                member.attached.give();
            }
            member.pipes.hung_up.take_if(|at| *at <= now);
        }
        killed.iter().for_each(|path| self.thaw_to_die(path));
        self.listener.expire(now);
        if self.again.take_if(|at| *at <= now).is_some() && self.record.wish != Wish::Run {
            self.tear_down();
        }
        self.jobs().filter(|job| job.is_late(now)).for_each(Job::kill);
        self.expire_errands(now);
        self.probe(now);
    }

    /// Lets a container that was killed die, though somebody has frozen it, or the whole pod that is to end.
    pub(super) fn thaw_to_die(&self, path: &Path) {
        let (states, name) = self.dir.states(path);
        let record = State::open_unlocked(&states, &name).and_then(|state| state.record());
        let own = record.ok().flatten().and_then(|record| record.cgroup);
        let pods = self.record.cgroup.iter().filter(|_| self.record.wish == Wish::Stop);
        for tree in own.iter().chain(pods).filter_map(|place| place.open().ok()) {
            tree.thaw_to_die();
        }
    }
}

/// Passes on that the first process is to end.
pub(super) fn ask_to_end(running: &mut Running, deadline: Instant) {
    running.end = End::Asked(deadline);
    let _ = process::signal(running.pidfd.as_fd(), running.stop_signal);
}

fn kill(running: &mut Running) {
    running.end = End::Killed;
    let _ = process::signal(running.pidfd.as_fd(), libc::SIGKILL);
}
