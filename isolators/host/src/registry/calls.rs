//! What isolators do for a container that is made, lives and goes.

use coracle_isolator::{Config, Error, Handles, Result, States, Status, Usage};
use coracle_isolator_abi::Verb;
use oci_spec::runtime::{LinuxIntelRdt, LinuxResources};

use super::Registry;
use crate::entry::Entry;

impl Registry {
    /// Lets each isolator make what the final plan needs of it, before anything of the container is made.
    ///
    /// # Errors
    /// Where one fails; those after it are not called.
    pub fn provide(&self, config: &Config<'_>) -> Result<()> {
        self.each("provide", |isolator| isolator.provide(config))
    }

    /// Lets each isolator act on the waiting container.
    ///
    /// # Errors
    /// Where one fails; those after it are not called.
    pub fn isolate(&self, container: &Handles<'_>) -> Result<()> {
        self.isolated.set(true);
        self.each("isolate", |isolator| isolator.isolate(container))
    }

    /// Lets each isolator act on a waiting process that is executed in a running container.
    ///
    /// # Errors
    /// Where one fails; those after it are not called.
    pub fn join(&self, container: &Handles<'_>) -> Result<()> {
        self.each("join", |isolator| isolator.join(container))
    }

    /// Lets each isolator give back what it took into a container whose launch has failed, in reverse order, each
    /// whatever the others did, and returns what is lost. One that failed before [`isolate`](Self::isolate) took nothing.
    pub fn give_back(&self, id: &str) -> Vec<Error> {
        let mut lost = Vec::new();
        if !self.isolated.get() {
            return lost;
        }
        for entry in self.entries.iter().rev().filter(|entry| entry.implements(Verb::GiveBack)) {
            lost.extend(entry.call("give back", |isolator| isolator.give_back(id)).err());
        }
        lost
    }

    /// Gives each isolator the new limits.
    ///
    /// # Errors
    /// Where one fails; those after it are not called, and what those before it wrote stays until the caller puts it
    /// back ([`coracle_isolator::Cgroup::put_back`]).
    pub fn update(&self, container: &Handles<'_>, resources: &LinuxResources) -> Result<()> {
        self.each("update", |isolator| isolator.update(container, resources))
    }

    /// Gives each isolator the new values of `linux.intelRdt`.
    ///
    /// # Errors
    /// Where one fails; then all is as it was.
    pub fn update_intel_rdt(&self, container: &Handles<'_>, rdt: &LinuxIntelRdt) -> Result<()> {
        self.each("update", |isolator| isolator.update_intel_rdt(container, rdt))
    }

    /// What the container uses, as one document.
    ///
    /// # Errors
    /// Where an isolator can't tell.
    pub fn usage(&self, container: &Handles<'_>) -> Result<Usage> {
        let mut usage = Usage::default();
        self.each("usage", |isolator| {
            usage.merge(isolator.usage(container)?);
            Ok(())
        })?;
        Ok(usage)
    }

    /// What others may know of the container, as one document.
    ///
    /// # Errors
    /// Where an isolator can't tell.
    pub fn status(&self, container: &Handles<'_>) -> Result<Status> {
        let mut status = Status::default();
        self.each("status", |isolator| {
            status.0.extend(isolator.status(container)?.0);
            Ok(())
        })?;
        Ok(status)
    }

    /// Tells each isolator what an earlier runtime left. Each is told, whatever the others answer.
    pub fn recover(&self, found: &States) -> Vec<Error> {
        let calls =
            self.entries.iter().map(|entry| entry.call("recover", |isolator| isolator.recover(found)));
        calls.filter_map(Result::err).collect()
    }

    /// Lets each built-in isolator start again what it had beside a container that lives, where that was killed. Each is
    /// asked, whatever the others answer.
    pub fn resume(&self, container: &Handles<'_>) -> Vec<Error> {
        let built_in = self.entries.iter().filter(|entry| !entry.is_plugin());
        let calls = built_in.map(|entry| entry.call("resume", |isolator| isolator.resume(container)));
        calls.filter_map(Result::err).collect()
    }

    /// Lets each isolator clean up, in reverse order, each whatever the others did, and returns what failed. Plugins
    /// are called if they are `owed` it, which those are whose `prepare` was called. Calling it again, or for a container
    /// that is not known, does no harm.
    pub fn cleanup(&self, id: &str, owed: &[String]) -> Vec<Error> {
        let is_owed = |entry: &&Entry| !entry.is_plugin() || owed.iter().any(|name| name == entry.name());
        let mut failures = Vec::new();
        for entry in self.entries.iter().rev().filter(is_owed) {
            let cleaned = entry.call("clean up", |isolator| isolator.cleanup(id));
            failures.extend(self.settle(entry, cleaned).err());
        }
        let is_gone = |name: &&String| !self.entries.iter().any(|entry| entry.name() == *name);
        failures.extend(owed.iter().filter(is_gone).map(|name| {
            Error::new(format!("isolator {name} is not configured any more, so that it can't clean up"))
                .with_hint("configure it again, or use delete --force")
        }));
        failures
    }
}

#[cfg(test)]
mod tests {
    use coracle_isolator::{Adjustment, Cgroup, CgroupVersion, Kind};
    use oci_spec::runtime::Spec;

    use super::*;
    use crate::registry::recorder::{config, registry};

    #[test]
    fn a_failed_isolate_names_isolator_and_call_and_stops() {
        let (registry, calls) = registry("isolate", Adjustment::default());
        let cgroup = Cgroup::new(CgroupVersion::V1, Vec::new());
        let spec = Spec::default();
        let handles = Handles { id: "c", pidfd: None, cgroup: &cgroup, spec: &spec };
        let error = registry.isolate(&handles).unwrap_err();
        assert_eq!(error.to_string(), "isolator a could not isolate: as told");
        assert_eq!(*calls.borrow(), ["a isolate"]);
    }

    #[test]
    fn what_was_taken_is_given_back_after_isolate_alone() {
        let (registry, calls) = registry("isolate", Adjustment::default());
        assert!(registry.give_back("c").is_empty() && calls.borrow().is_empty());
        let cgroup = Cgroup::new(CgroupVersion::V1, Vec::new());
        let spec = Spec::default();
        registry.isolate(&Handles { id: "c", pidfd: None, cgroup: &cgroup, spec: &spec }).unwrap_err();
        assert!(registry.give_back("c").is_empty());
        assert_eq!(*calls.borrow(), ["a isolate", "b give back", "a give back"]);
        calls.borrow_mut().clear();
        registry.prepare(&config(&spec, Kind::Oci)).unwrap();
        registry.give_back("c");
        assert!(
            !calls.borrow().iter().any(|call| call.ends_with("give back")),
            "another launch took nothing"
        );
    }

    #[test]
    fn cleanup_goes_backwards_and_on_after_a_failure() {
        let (registry, calls) = registry("cleanup", Adjustment::default());
        let errors = registry.cleanup("c", &[]);
        assert_eq!(*calls.borrow(), ["b cleanup", "a cleanup"]);
        assert_eq!(errors.len(), 1);
        assert_eq!(errors[0].to_string(), "isolator a could not clean up: as told");
    }
}
