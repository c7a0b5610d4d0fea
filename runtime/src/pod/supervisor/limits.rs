//! Limits of containers and of the pod: new ones, what is used of them, who ran into one.

use std::os::fd::AsFd;
use std::time::Duration;

use coracle_isolator::{Handles, Usage};
use coracle_isolator_host::Registry;
use coracle_sys::signal;
use oci_spec::runtime::Spec;
use serde::Deserialize;
use serde_json::{Value, json};

use super::calls::{Answer, Wait, now};
use super::member::Phase;
use super::pending::Pending;
use super::{Path, Supervisor};
use crate::error::{Code, Error, Result};
use crate::pod::job::Job;
use crate::pod::record::{Life, Record};
use crate::pod::{document, plan, sandbox};
use crate::stages::spec;
use crate::stages::watch::Note;
use crate::state::State;

/// How long isolators may take to tell what is used.
const MEASURED_WITHIN: Duration = Duration::from_secs(60);

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Update {
    #[serde(default)]
    container: Option<String>,
    resources: Value,
}

impl Supervisor {
    /// New limits of a container, or of the pod: all that are named, or none. Those that are not named stay, and a restart keeps
    /// them all. What does not run has them when it is started.
    pub(super) fn update(&mut self, given: &Update) -> Result<Answer> {
        let wanted: document::Resources = spec::json::from_value(given.resources.clone())?;
        document::check_resources(&wanted)?;
        let limits = plan::resources(&wanted);
        match &given.container {
            Some(path) => self.update_container(path, wanted, &limits)?,
            None => self.update_pod(wanted, &limits)?,
        }
        now(json!({}))
    }

    fn update_pod(&mut self, wanted: document::Resources, limits: &Value) -> Result<()> {
        let before = self.record.resources.as_ref().unwrap_or(&self.record.document.spec.resources);
        let old = spec::parse_resources(plan::resources(before).to_string().as_bytes())?;
        let resources = wanted.over(before);
        let planned = plan::resources(&resources);
        let record = Record { resources: Some(resources), ..self.record.clone() };
        match &self.record.cgroup {
            Some(place) => {
                let new = spec::parse_resources(limits.to_string().as_bytes())?;
                let keep = || {
                    place.tell(&new)?;
                    self.dir.write(&record).inspect_err(|_| drop(place.tell_back(&new, &old)))
                };
                let cgroup = place.open()?.into_handles();
                sandbox::limit(&self.plan.name, cgroup, limits, &self.isolators, keep)?;
            }
            None if self.plan.cgroup.is_none() => return Err(no_cgroups()),
            None => self.dir.write(&record)?,
        }
        (self.plan.resources, self.record) = (planned, record);
        Ok(())
    }

    fn update_container(&mut self, path: &str, wanted: document::Resources, limits: &Value) -> Result<()> {
        let (path, member) = self.found(path)?;
        let before = member.life.resources.as_ref().unwrap_or(&member.plan.container.resources);
        let resources = wanted.over(before);
        let planned = plan::resources(&resources);
        let life = Life { resources: Some(resources), ..member.life.clone() };
        let keep = || self.dir.write_life(&path, &life);
        match member.phase {
            Phase::Running(_) => {
                let limits = spec::parse_resources(limits.to_string().as_bytes())?;
                self.with_handles(&path, |all, handles| sandbox::set(handles, &limits, all, keep))?;
            }
            // Whoever launches it has the old ones, and may have set them already.
            Phase::Launching(_) => {
                let why = format!("container {path:?} is being launched");
                return Err(Error::new(Code::IllegalState, why).hint("try again when it runs"));
            }
            _ => keep()?,
        }
        if let Some(member) = self.members.get_mut(&path) {
            (member.plan.resources, member.life) = (planned, life);
        }
        Ok(())
    }

    /// Has a job ask the isolators what is used: some take their time.
    pub(super) fn usage(&mut self, id: u64, given: &Wait) -> Result<Answer> {
        let path = given.container.as_ref().map(|path| self.found(path).map(|(path, _)| path)).transpose()?;
        let job = Job::start(MEASURED_WITHIN, &[], Some(&self.isolators), |_| {
            signal::unblock()?;
            self.measure(path.as_ref()).map(|usage| json!({ "usage": usage }))
        })?;
        self.measures.insert(id, job);
        Ok(Answer::Later(Pending::Usage))
    }

    fn measure(&self, path: Option<&Path>) -> Result<Usage> {
        let Some(path) = path else {
            let cgroup = self.record.cgroup.as_ref().ok_or_else(no_cgroups)?.open()?.into_handles();
            let spec = Spec::default();
            let handles = Handles { id: &self.plan.name, pidfd: None, cgroup: &cgroup, spec: &spec };
            return Ok(self.isolators.usage(&handles)?);
        };
        self.with_handles(path, |all, handles| Ok(all.usage(handles)?))
    }

    /// The job that the caller `id` waits for has ended.
    pub(super) fn finish_measure(&mut self, id: u64) {
        if let Some(job) = self.measures.remove(&id) {
            self.finish_call(id, job.finish::<Value>().map(|(told, _)| told), Vec::new());
        }
    }

    /// Asks the isolators of the container at `path`, whose cgroup remembers what its files held.
    fn with_handles<T>(
        &self,
        path: &Path,
        ask: impl FnOnce(&Registry, &Handles<'_>) -> Result<T>,
    ) -> Result<T> {
        let (states, name) = self.dir.states(path);
        let state = State::open_unlocked(&states, &name)?;
        let record = state.record()?.ok_or_else(no_cgroups)?;
        let cgroup = record.cgroup.as_ref().ok_or_else(no_cgroups)?.open()?.into_handles().remembering();
        let first = record.process.and_then(|first| first.open());
        let spec = spec::kept(&state)?;
        let pidfd = first.as_ref().map(AsFd::as_fd);
        ask(&self.isolators, &Handles { id: &record.id, pidfd, cgroup: &cgroup, spec: &spec })
    }

    /// Whether the container ran into its memory limit. No other isolator is asked: some take their time.
    pub(super) fn limitation(&self, path: &Path) -> Option<String> {
        let found = self.with_handles(path, |all, handles| Ok(all.limitation_by("cgroups/memory", handles)?));
        found.ok()?.map(|limitation| limitation.message)
    }

    /// At which limit the container was killed by who watches over it, if it was.
    pub(super) fn eviction(&self, path: &Path) -> Option<String> {
        let (states, name) = self.dir.states(path);
        let note = Note::read(&State::open_unlocked(&states, &name).ok()?)?;
        Some(if note.message.is_empty() { note.reason } else { note.message })
    }
}

fn no_cgroups() -> Error {
    Error::new(Code::IllegalState, "there are no cgroups: nothing runs")
}
