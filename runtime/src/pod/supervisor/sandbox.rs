//! The sandbox of the pod while it comes and goes: its networks, the loss of its keeper, its removal. What takes long is a
//! job.

use std::time::{Duration, Instant};

use coracle_sys::{file, signal};

use super::Supervisor;
use crate::error::{Error, Result};
use crate::pod::job::Job;
use crate::pod::network::Attached;
use crate::pod::plan::Kind;
use crate::pod::record::Wish;
use crate::pod::{keeper, sandbox, volume};

/// How long the plugins of a pod's networks may take together.
const ATTACHED_WITHIN: Duration = Duration::from_secs(300);

/// How long the removal of a sandbox that is on no network may take.
const REMOVED_WITHIN: Duration = Duration::from_secs(30);

/// How long to wait before a removal that failed, or could not be begun, is tried again.
pub(super) const AGAIN: Duration = Duration::from_secs(1);

impl Supervisor {
    pub(super) fn lose_keeper(&mut self) {
        self.sandbox = None;
        self.stop(Duration::ZERO, "the holder of the pod's namespaces was killed");
        for member in self.members.values_mut() {
            member.cause.get_or_insert_with(|| "SandboxLost".to_owned());
        }
    }

    /// Whether the sandbox or any part of it is there, or is being made or removed.
    pub(super) fn has_sandbox(&self) -> bool {
        let record = &self.record;
        let is_recorded = record.keeper.is_some() || record.cgroup.is_some() || record.networks.is_some();
        is_recorded || self.sandbox.is_some() || self.preparing.is_some() || self.teardown.is_some()
    }

    /// Takes the sandbox away when nobody is left in it.
    pub(super) fn tear_down(&mut self) {
        let is_early = self.again.is_some_and(|at| at > Instant::now());
        if let Some(preparing) = &self.preparing {
            return preparing.kill();
        }
        if !self.has_sandbox() || self.teardown.is_some() || is_early {
            return;
        }
        (self.sandbox, self.again) = (None, None);
        let record = &self.record;
        let within = if record.networks.is_some() { ATTACHED_WITHIN } else { REMOVED_WITHIN };
        let job = Job::start(within, &[], None, |_| {
            signal::unblock()?;
            let left = record.networks.as_ref().and_then(|_| self.networks.detach(&self.plan.name).err());
            sandbox::remove(record).map(|()| left.map(|error| error.to_string()))
        });
        match job {
            Ok(job) => self.teardown = Some(job),
            Err(_) => self.again = Some(Instant::now() + AGAIN),
        }
    }

    /// Starts what the containers need of the sandbox and takes long, where it is still to be done: volumes of images are pulled
    /// and mounted, which may take any time; then the network namespace is attached to its networks.
    pub(super) fn prepare(&mut self) {
        if self.sandbox.is_none() || !volume::has_images(&self.record.document) {
            return self.attach_networks();
        }
        let job = Job::start(None::<Duration>, &[], None, |_| {
            signal::unblock()?;
            volume::make_images(self.volumes()).map(|()| None::<Vec<Attached>>)
        });
        self.is_prepared_by(job);
    }

    fn attach_networks(&mut self) {
        let (pod, hostname) = (&self.record.document, &self.plan.sandbox.hostname);
        let attaches = self.record.networks.as_ref().is_some_and(Vec::is_empty);
        let namespace = self.sandbox.as_ref().and_then(|sandbox| sandbox.namespace(Kind::Net));
        let Some(namespace) = namespace.filter(|_| attaches) else { return };
        let job = Job::start(ATTACHED_WITHIN, &[namespace], None, |_| {
            signal::unblock()?;
            self.networks.attach(pod, hostname, namespace).map(Some)
        });
        self.is_prepared_by(job);
    }

    fn is_prepared_by(&mut self, job: Result<Job>) {
        match job {
            Ok(job) => self.preparing = Some(job),
            Err(error) => self.fail(error),
        }
    }

    pub(super) fn finish_preparing(&mut self) {
        let Some(job) = self.preparing.take() else { return };
        match job.finish::<Option<Vec<Attached>>>() {
            Ok((None, _)) if self.record.wish == Wish::Run => self.attach_networks(),
            Ok((None, _)) => {}
            Ok((attached, _)) => {
                self.record.networks = attached;
                self.save();
            }
            Err(_) if self.record.wish == Wish::Stop => {}
            Err(error) => self.fail(error),
        }
    }

    /// The pod can't begin.
    pub(super) fn fail(&mut self, error: Error) {
        self.stop(Duration::ZERO, &error.to_string());
        self.failure = Some(error);
    }

    pub(super) fn finish_teardown(&mut self) {
        let Some(job) = self.teardown.take() else { return };
        match job.finish::<Option<String>>() {
            Ok((left, _)) => {
                self.trouble = left;
                (self.record.keeper, self.record.cgroup, self.record.networks) = (None, None, None);
                let _ = file::unlink(self.dir.fd(), keeper::SOCKET);
            }
            Err(error) => {
                let error = error.doing("removing the pod's namespaces and cgroup");
                self.trouble = Some(error.to_string());
                self.again = Some(Instant::now() + AGAIN);
                self.refuse_to_end(&error);
            }
        }
        self.save();
    }
}
