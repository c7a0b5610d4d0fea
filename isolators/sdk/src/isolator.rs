//! The contract.

use std::os::fd::OwnedFd;
use std::path::Path;

use oci_spec::runtime::{LinuxIntelRdt, LinuxResources, Spec};
use serde_json::{Map, Value};

use crate::{Adjustment, Config, Error, Handles, Kind, Limitation, Result, States, Status, Usage};

/// One part of what keeps a container to itself.
///
/// **Where**: every call is made on the host, never in the container: for an isolator that is built in, in the runtime's
/// own process; for a plugin, in a process that it has to itself, confined to what the configuration grants it. Calls
/// come one after the other, from one thread.
/// **When and how often**: stands on each method, and the methods stand in the order of a container's life.
/// **Order**: of two isolators, the one that another names in [`after`](Self::after), or that names the other in
/// [`before`](Self::before), goes first; else the order of registration holds: the built-in ones, then plugins by name.
/// `cleanup` goes the other way round.
/// **Failure**: an error of `configure`, `prepare`, `process`, `validate`, `provide`, `isolate` or `join` ends the launch, and
/// `cleanup` is called for every isolator. The host names the isolator and the call; the error says the rest, once. A
/// plugin's call that crashes, or that takes longer than its deadline, has failed, and its process is killed. Of a
/// plugin that the configuration calls optional, a failure is a warning, and it is left out of this launch.
/// **State**: an isolator keeps none in memory between calls, since they may come from different processes of the
/// runtime: what it must remember about a container it reads back from the kernel or keeps in files of its own.
pub trait Isolator {
    /// A name that never changes, `family/subject`: `cgroups/memory`.
    fn name(&self) -> &str;

    /// Whether it does its work for this kind of container. A launch of a kind that one of the configured
    /// isolators does not support is refused: nothing is skipped silently.
    fn supports(&self, kind: Kind) -> bool {
        let _ = kind;
        true
    }

    /// Names of isolators whose calls come before this one's; those that are not configured are ignored.
    fn after(&self) -> Vec<&str> {
        Vec::new()
    }

    /// Names of isolators whose calls come after this one's; those that are not configured are ignored.
    fn before(&self) -> Vec<&str> {
        Vec::new()
    }

    /// Called before [`configure`](Self::configure) where it is a plugin, which can't be made with it: the directory of the
    /// containers' states. There may be another container of the same ID in another one.
    fn states_are_in(&mut self, directory: &Path) {
        let _ = directory;
    }

    /// Called once in each process, before all calls that follow: the options that the configuration has for this
    /// isolator. Without side effects.
    ///
    /// # Errors
    /// Where an option is unknown or makes no sense; where the isolator has none, for any.
    fn configure(&mut self, options: &Map<String, Value>) -> Result<()> {
        match options.keys().next() {
            None => Ok(()),
            Some(first) => Err(Error::new(format!("it takes no options, and is given {first:?}"))),
        }
    }

    /// Called once when a runtime looks after what an earlier one left (`coracle recover`): the containers that are
    /// known, and the IDs of others that have left something behind. `cleanup` follows for each of these.
    ///
    /// # Errors
    /// Where what an earlier runtime left can't be read. The runtime reports it and goes on.
    fn recover(&self, found: &States) -> Result<()> {
        let _ = found;
        Ok(())
    }

    /// Whether the isolator will have something beside the container of the final plan `config` that may have to be started
    /// [again](Self::resume). Built-in isolators alone are asked.
    fn has_beside(&self, config: &Config<'_>) -> bool {
        let _ = config;
        false
    }

    /// Called after `recover` for each container that lives and has something [beside](Self::has_beside) it, and for one that
    /// was restored from a checkpoint: the isolator starts again what it has there, where that is gone. Built-in isolators
    /// alone are asked: plugins are told of the containers by `recover`.
    ///
    /// # Errors
    /// Where it can't. The runtime reports it and goes on.
    fn resume(&self, container: &Handles<'_>) -> Result<()> {
        let _ = container;
        Ok(())
    }

    /// Called once a launch, before the container's process exists: what the isolator wants changed in the plan.
    /// Without side effects, since the plan may still be refused or only printed. A field has one owner: two
    /// isolators that set the same one are an error that names both.
    ///
    /// # Errors
    /// Where the container asks for something that the isolator can't do on this machine.
    fn prepare(&self, config: &Config<'_>) -> Result<Adjustment> {
        let _ = config;
        Ok(Adjustment::default())
    }

    /// Called for each process before it is started in the container: the first one, after `prepare`, and each
    /// `exec` later. May set the fields of `process`, `linux.seccomp` and `linux.landlock` alone. Without side
    /// effects.
    ///
    /// # Errors
    /// As `prepare`.
    fn process(&self, config: &Config<'_>) -> Result<Adjustment> {
        let _ = config;
        Ok(Adjustment::default())
    }

    /// Called once a launch with the final specification, all adjustments applied. Without side effects.
    ///
    /// # Errors
    /// Where the container must not be started as it stands.
    fn validate(&self, spec: &Spec) -> Result<()> {
        let _ = spec;
        Ok(())
    }

    /// Called once a launch with the final specification, when the launch is on record and before its cgroups and its
    /// process are made: the isolator makes what the mounts of its adjustment come from. What it makes must be undone
    /// by `cleanup`.
    ///
    /// # Errors
    /// Where it can't. Nothing of the container is made then.
    fn provide(&self, config: &Config<'_>) -> Result<()> {
        let _ = config;
        Ok(())
    }

    /// Called once a launch: the container's process exists and waits, its cgroup is made and the process is in
    /// it; the isolator acts from the host on the handles. What it changes outside the container's own cgroup
    /// and namespaces must be undone by `cleanup`.
    ///
    /// # Errors
    /// Where the kernel refuses. The process never runs then.
    fn isolate(&self, container: &Handles<'_>) -> Result<()> {
        let _ = container;
        Ok(())
    }

    /// Called for each process that is executed in the running container, and waits in the container's cgroup: the
    /// isolator does for it what can't be done for the container as a whole. Of the handles, `pidfd` is that of the
    /// new process.
    ///
    /// # Errors
    /// Where the kernel refuses. The process never runs then.
    fn join(&self, container: &Handles<'_>) -> Result<()> {
        let _ = container;
        Ok(())
    }

    /// Called when somebody begins to watch the container: a descriptor that becomes readable, or has something
    /// urgent (`POLLPRI`), when there may be a [`limitation`](Self::limitation) to tell. The runtime polls it, reads it empty, and closes it.
    ///
    /// # Errors
    /// Where the kernel gives no such descriptor.
    fn watch(&self, container: &Handles<'_>) -> Result<Option<OwnedFd>> {
        let _ = container;
        Ok(None)
    }

    /// Whether a container with the specification `spec` that is at a limit of this isolator's is to be ended by whoever
    /// waits for it, or by its warden. Built-in isolators alone are asked: for plugins, the configuration says so.
    fn enforces(&self, spec: &Spec) -> bool {
        let _ = spec;
        false
    }

    /// Called when the descriptor of `watch` is readable: the limit that the container has run into, if any. `events`
    /// tells of it; whoever waits for the container, or its warden where nobody does, kills one that a plugin finds at its
    /// limit, unless the configuration wants it told only.
    ///
    /// # Errors
    /// Where it can't be told.
    fn limitation(&self, container: &Handles<'_>) -> Result<Option<Limitation>> {
        let _ = container;
        Ok(None)
    }

    /// Called any number of times while the container is alive: new requests (such as `memory.reservation`) and limits,
    /// in which an absent field stays as it is.
    ///
    /// # Errors
    /// Where the kernel refuses. The runtime writes back what the control group's files held before.
    fn update(&self, container: &Handles<'_>, resources: &LinuxResources) -> Result<()> {
        let _ = (container, resources);
        Ok(())
    }

    /// Called any number of times while the container is alive: new values of `linux.intelRdt`, in which an absent field
    /// stays as it is.
    ///
    /// # Errors
    /// Where the kernel refuses; then the isolator has put back what it changed.
    fn update_intel_rdt(&self, container: &Handles<'_>, rdt: &LinuxIntelRdt) -> Result<()> {
        let _ = (container, rdt);
        Ok(())
    }

    /// Called any number of times: what the container uses. Only the fields that the isolator looks after are set.
    ///
    /// # Errors
    /// Where it can't be told.
    fn usage(&self, container: &Handles<'_>) -> Result<Usage> {
        let _ = container;
        Ok(Usage::default())
    }

    /// Called any number of times: what others may know of the container (its addresses, its volumes …).
    ///
    /// # Errors
    /// Where it can't be told.
    fn status(&self, container: &Handles<'_>) -> Result<Status> {
        let _ = container;
        Ok(Status::default())
    }

    /// Called when a launch fails after `isolate`, on the isolator that made that call, whether or not the container's
    /// process is still there: gives back what would go with its namespaces. `cleanup` follows in any case.
    ///
    /// # Errors
    /// Where something is lost. The others give back all the same.
    fn give_back(&self, id: &str) -> Result<()> {
        let _ = id;
        Ok(())
    }

    /// Called after the container's last process is gone if `prepare` was called, whatever came of it; perhaps
    /// more than once, perhaps for a container that the isolator does not know. A second call does no harm.
    ///
    /// # Errors
    /// Where something is left. The other isolators are cleaned up all the same, and a later `delete` tries again.
    fn cleanup(&self, id: &str) -> Result<()> {
        let _ = id;
        Ok(())
    }
}
