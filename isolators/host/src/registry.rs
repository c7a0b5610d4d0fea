//! All the isolators of a runtime, called as one.

mod watched;

use std::cell::{Cell, RefCell};
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::rc::Rc;

use coracle_isolator::{
    Adjustment, CapabilitySets, Config, Error, Handles, Isolator, Landlock, Result, SeccompProgram, States,
    Status, Usage,
};
use coracle_isolator_abi::Verb;
use oci_spec::runtime::{LinuxIntelRdt, LinuxResources, Spec};

use crate::about::About;
use crate::config::Settings;
use crate::entry::Entry;
use crate::owners::Owners;
use crate::plugin::{Host, Plugin};
use crate::{apply, order};

pub use watched::Watched;

/// The configured isolators, in the order of their calls.
pub struct Registry {
    entries: Vec<Entry>,
    /// What optional plugins failed with.
    warnings: RefCell<Vec<String>>,
    /// Whether a built-in isolator ends the container whose plan was made last.
    is_enforced: Cell<bool>,
}

/// A plan after all isolators have had their say.
#[derive(Debug)]
pub struct Adjusted {
    /// The final specification.
    pub spec: Spec,
    /// The capabilities of the process; none where no isolator says otherwise.
    pub capabilities: CapabilitySets,
    /// The system call filter of the process.
    pub seccomp: Option<SeccompProgram>,
    /// The rules of Landlock for the process.
    pub landlock: Option<Landlock>,
    /// What could not be done and did not stop the plan, each with its isolator's name.
    pub warnings: Vec<String>,
}

/// An isolator, as it is shown to the operator.
#[derive(Debug)]
pub struct Listed<'a> {
    /// Its name.
    pub name: &'a str,
    /// How a plugin is configured.
    pub settings: Option<&'a Settings>,
    /// What a plugin tells of itself, and its file.
    pub plugin: Option<&'a (About, PathBuf)>,
    /// Why a plugin can't be called.
    pub broken: Option<&'a Error>,
}

impl Registry {
    /// The isolators `isolators`, put in order.
    ///
    /// # Errors
    /// Where two have one name, or wait for each other; the error names them.
    pub fn new(isolators: Vec<Box<dyn Isolator>>) -> Result<Self> {
        Self::with_plugins(isolators, Vec::new())
    }

    /// The isolators `built_in`, and the plugins `plugins` after them, put in order. A plugin takes the place of a
    /// built-in isolator that has its name.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_plugins(
        built_in: Vec<Box<dyn Isolator>>,
        plugins: Vec<(String, Settings, Result<Plugin>)>,
    ) -> Result<Self> {
        let is_replaced = |name: &str| plugins.iter().any(|(plugin, ..)| plugin == name);
        let mut entries: Vec<Entry> = built_in
            .into_iter()
            .filter(|isolator| !is_replaced(isolator.name()))
            .map(Entry::built_in)
            .collect();
        entries.extend(
            plugins.into_iter().map(|(name, settings, plugin)| Entry::plugin(name, settings, plugin)),
        );
        Ok(Self {
            entries: order::sort(entries)?,
            warnings: RefCell::default(),
            is_enforced: Cell::default(),
        })
    }

    /// The same, to launch a container with: every plugin is there.
    ///
    /// # Errors
    /// What keeps one from being loaded that is not optional.
    pub fn ready(self) -> Result<Self> {
        for entry in &self.entries {
            self.settle(entry, entry.broken.clone().map_or(Ok(()), Err))?;
        }
        Ok(self)
    }

    /// The isolators' names, in the order of their calls.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().filter(|entry| !entry.is_out()).map(Entry::name)
    }

    /// What optional plugins failed with since this was last asked.
    pub fn take_warnings(&self) -> Vec<String> {
        self.warnings.take()
    }

    /// Makes the plan of a new container: asks each isolator whether it supports the kind, then what it adjusts
    /// in the container (`prepare`), then in its first process (`process`), applies that, and lets each see the
    /// final specification (`validate`). No side effects.
    ///
    /// Once it was called, [`cleanup`](Self::cleanup) is owed, whatever came of it.
    ///
    /// # Errors
    /// Where an isolator refuses or two set one field; the error names them.
    pub fn prepare(&self, config: &Config<'_>) -> Result<Adjusted> {
        for entry in self.entries.iter().filter(|entry| !entry.is_out()) {
            let supports = match entry.isolator.supports(config.kind) {
                true => Ok(()),
                false => Err(Error::new(format!(
                    "isolator {} does not support {} containers",
                    entry.name(),
                    config.kind
                ))),
            };
            self.settle(entry, supports)?;
        }
        let mut owners = Owners::default();
        let mut adjusted = Adjusted::of(config);
        self.each("prepare", |isolator| {
            let adjustment = isolator.prepare(config)?;
            owners.claim(isolator.name(), &adjustment)?;
            adjusted.apply(isolator.name(), adjustment);
            Ok(())
        })?;
        self.adjust_process(config, &mut owners, &mut adjusted)?;
        self.each("validate", |isolator| isolator.validate(&adjusted.spec))?;
        self.is_enforced.set(self.is_enforced_in(&adjusted.spec));
        Ok(adjusted)
    }

    /// Makes the plan of another process in a container that exists: `config.spec.process` is that process.
    /// Asks each isolator what it adjusts in it (`process`) and applies that. No side effects.
    ///
    /// # Errors
    /// Where an isolator refuses or two set one field; the error names them.
    pub fn process(&self, config: &Config<'_>) -> Result<Adjusted> {
        let mut adjusted = Adjusted::of(config);
        self.adjust_process(config, &mut Owners::default(), &mut adjusted)?;
        Ok(adjusted)
    }

    fn adjust_process<'a>(
        &'a self,
        config: &Config<'_>,
        owners: &mut Owners<'a>,
        adjusted: &mut Adjusted,
    ) -> Result<()> {
        self.each("process", |isolator| {
            let adjustment = isolator.process(config)?;
            if let Some(field) = adjustment.container_fields().first() {
                return Err(Error::new(format!("{field} is not a field of a process")));
            }
            owners.claim(isolator.name(), &adjustment)?;
            adjusted.apply(isolator.name(), adjustment);
            Ok(())
        })
    }

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
    /// whatever the others did, and returns what is lost.
    pub fn give_back(&self, id: &str) -> Vec<Error> {
        let mut lost = Vec::new();
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

    /// What a process forked from the caller must keep open to call isolators.
    pub fn files(&self) -> Vec<RawFd> {
        self.hosts().flat_map(|host| host.borrow().files().collect::<Vec<_>>()).collect()
    }

    /// To be called in a process forked from the one that made this: plugins get processes of its own when they are next
    /// called.
    pub fn after_fork(&self) {
        self.hosts().for_each(|host| host.borrow_mut().forget_process());
    }

    fn hosts(&self) -> impl Iterator<Item = &Rc<RefCell<Host>>> {
        self.entries.iter().filter_map(|entry| entry.host.as_ref())
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

    /// Makes `call` on each isolator in order, to the first that fails, whose name goes into the error.
    fn each<'a>(
        &'a self,
        call: &'static str,
        mut make: impl FnMut(&'a dyn Isolator) -> Result<()>,
    ) -> Result<()> {
        let mut called = self.entries.iter().filter(|entry| !entry.is_out());
        called.try_for_each(|entry| self.settle(entry, entry.call(call, &mut make)))
    }

    /// Keeps the warning that the failure of an optional plugin is.
    fn settle(&self, entry: &Entry, made: Result<()>) -> Result<()> {
        self.warnings.borrow_mut().extend(entry.settle(made)?);
        Ok(())
    }

    /// All isolators in the order of their calls.
    pub fn list(&self) -> impl Iterator<Item = Listed<'_>> {
        self.entries.iter().map(|entry| Listed {
            name: entry.name(),
            settings: entry.settings.as_ref(),
            plugin: entry.about.as_ref(),
            broken: entry.broken.as_ref(),
        })
    }
}

impl Adjusted {
    /// The plan as the specification has it.
    fn of(config: &Config<'_>) -> Self {
        Self {
            spec: config.spec.clone(),
            capabilities: CapabilitySets::default(),
            seccomp: None,
            landlock: None,
            warnings: Vec::new(),
        }
    }

    fn apply(&mut self, isolator: &str, mut adjustment: Adjustment) {
        self.capabilities = adjustment.process.capabilities.take().unwrap_or(self.capabilities);
        self.seccomp = adjustment.linux.seccomp.take().or_else(|| self.seccomp.take());
        self.landlock = adjustment.linux.landlock.take().or_else(|| self.landlock.take());
        if let Some(process) = self.spec.process_mut() {
            apply::process(process, adjustment.process);
        }
        apply::mounts(&mut self.spec, adjustment.mounts);
        apply::linux(&mut self.spec, adjustment.linux);
        apply::hooks(&mut self.spec, adjustment.hooks);
        self.warnings.extend(adjustment.warnings.iter().map(|warning| format!("{isolator}: {warning}")));
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::rc::Rc;

    use coracle_isolator::{Cgroup, CgroupVersion, Kind};

    use super::*;

    /// Writes down each call, and fails in those it is told to.
    struct Recorder {
        name: &'static str,
        calls: Rc<RefCell<Vec<String>>>,
        fails_in: &'static str,
        adjustment: Adjustment,
    }

    impl Recorder {
        fn record(&self, call: &str) -> Result<()> {
            self.calls.borrow_mut().push(format!("{} {call}", self.name));
            if call == self.fails_in { Err(Error::new("as told")) } else { Ok(()) }
        }
    }

    impl Isolator for Recorder {
        fn name(&self) -> &str {
            self.name
        }
        fn supports(&self, kind: Kind) -> bool {
            kind == Kind::Oci
        }
        fn prepare(&self, _: &Config<'_>) -> Result<Adjustment> {
            self.record("prepare").map(|()| self.adjustment.clone())
        }
        fn process(&self, _: &Config<'_>) -> Result<Adjustment> {
            self.record("process").map(|()| Adjustment::default())
        }
        fn validate(&self, spec: &Spec) -> Result<()> {
            assert_eq!(spec.process().as_ref().unwrap().no_new_privileges(), Some(false));
            self.record("validate")
        }
        fn isolate(&self, _: &Handles<'_>) -> Result<()> {
            self.record("isolate")
        }
        fn cleanup(&self, _: &str) -> Result<()> {
            self.record("cleanup")
        }
    }

    type Calls = Rc<RefCell<Vec<String>>>;

    /// Isolators `a` and `b`, of which `a` sets `noNewPrivileges`.
    fn registry(a_fails_in: &'static str, b: Adjustment) -> (Registry, Calls) {
        let calls = Calls::default();
        let mut a = Adjustment::default();
        a.process.no_new_privileges = Some(false);
        let recorder = |name, fails_in, adjustment| {
            Box::new(Recorder { name, calls: Rc::clone(&calls), fails_in, adjustment }) as Box<dyn Isolator>
        };
        (Registry::new(vec![recorder("a", a_fails_in, a), recorder("b", "", b)]).unwrap(), calls)
    }

    fn config(spec: &Spec, kind: Kind) -> Config<'_> {
        Config { id: "c", kind, bundle: Path::new("/bundle"), spec, cgroup: CgroupVersion::V1 }
    }

    #[test]
    fn a_plan_is_prepared_then_its_process_then_validated_with_all_applied() {
        let (registry, calls) = registry("", Adjustment::default());
        let adjusted = registry.prepare(&config(&Spec::default(), Kind::Oci)).unwrap();
        assert_eq!(adjusted.spec.process().as_ref().unwrap().no_new_privileges(), Some(false));
        let wanted = ["a prepare", "b prepare", "a process", "b process", "a validate", "b validate"];
        assert_eq!(*calls.borrow(), wanted);
    }

    #[test]
    fn another_process_is_neither_prepared_nor_validated() {
        let (registry, calls) = registry("", Adjustment::default());
        registry.process(&config(&Spec::default(), Kind::Oci)).unwrap();
        assert_eq!(*calls.borrow(), ["a process", "b process"]);
    }

    #[test]
    fn a_kind_that_an_isolator_does_not_support_is_refused_before_any_call() {
        let (registry, calls) = registry("", Adjustment::default());
        let error = registry.prepare(&config(&Spec::default(), Kind::Nested)).unwrap_err();
        assert_eq!(error.to_string(), "isolator a does not support nested containers");
        assert!(calls.borrow().is_empty());
    }

    #[test]
    fn two_owners_of_a_field_are_both_named() {
        let mut b = Adjustment::default();
        b.process.no_new_privileges = Some(true);
        let (registry, _) = registry("", b);
        let error = registry.prepare(&config(&Spec::default(), Kind::Oci)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "isolator b could not prepare: isolators a and b both set /process/noNewPrivileges"
        );
    }

    #[test]
    fn a_process_call_that_changes_the_container_is_refused() {
        struct Bad;
        impl Isolator for Bad {
            fn name(&self) -> &str {
                "bad"
            }
            fn process(&self, _: &Config<'_>) -> Result<Adjustment> {
                let mut adjustment = Adjustment::default();
                adjustment.linux.sysctl.insert("net.x".to_owned(), "1".to_owned());
                Ok(adjustment)
            }
        }
        let registry = Registry::new(vec![Box::new(Bad)]).unwrap();
        let error = registry.process(&config(&Spec::default(), Kind::Oci)).unwrap_err();
        let wanted = "isolator bad could not process: /linux/sysctl/net.x is not a field of a process";
        assert_eq!(error.to_string(), wanted);
    }

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
    fn cleanup_goes_backwards_and_on_after_a_failure() {
        let (registry, calls) = registry("cleanup", Adjustment::default());
        let errors = registry.cleanup("c", &[]);
        assert_eq!(*calls.borrow(), ["b cleanup", "a cleanup"]);
        assert_eq!(errors.len(), 1);
        assert_eq!(errors[0].to_string(), "isolator a could not clean up: as told");
    }

    #[test]
    fn warnings_name_their_isolator() {
        let b = Adjustment { warnings: vec!["half of it".to_owned()], ..Adjustment::default() };
        let (registry, _) = registry("", b);
        let adjusted = registry.prepare(&config(&Spec::default(), Kind::Oci)).unwrap();
        assert_eq!(adjusted.warnings, ["b: half of it"]);
    }
}
