//! Who is asked, and when, whether a container has run into a limit.

use std::os::fd::{AsFd, OwnedFd};

use coracle_isolator::{Config, Handles, Isolator, Limitation, Result};
use coracle_isolator_abi::Verb;
use coracle_sys::descriptor;
use oci_spec::runtime::Spec;

use super::Registry;
use crate::entry::Entry;
use crate::process::failed;

/// What the call `limitation` is for, in an error.
const TELL: &str = "tell of a limitation";

/// What is watched while a container is waited for.
pub struct Watched<'a> {
    /// Becomes readable when there may be a limitation.
    pub fd: OwnedFd,
    entry: &'a Entry,
}

impl Registry {
    /// The limits that the container has run into, each with the isolator that says so.
    ///
    /// # Errors
    /// Where an isolator can't tell.
    pub fn limitations(&self, container: &Handles<'_>) -> Result<Vec<(&str, Limitation)>> {
        let mut found = Vec::new();
        self.each(TELL, |isolator| {
            found.extend(isolator.limitation(container)?.map(|limitation| (isolator.name(), limitation)));
            Ok(())
        })?;
        Ok(found)
    }

    /// The limit that the container has run into, of which the isolator `name` knows; no other is asked.
    ///
    /// # Errors
    /// Where it can't tell.
    pub fn limitation_by(&self, name: &str, container: &Handles<'_>) -> Result<Option<Limitation>> {
        let mut entries = self.entries.iter().filter(|entry| !entry.is_out());
        let Some(entry) = entries.find(|entry| entry.name() == name) else { return Ok(None) };
        entry.call(TELL, |isolator| isolator.limitation(container))
    }

    /// The descriptors that become readable when there may be a limitation.
    ///
    /// # Errors
    /// Where an isolator should have one and the kernel gives none.
    pub fn watch(&self, container: &Handles<'_>) -> Result<Vec<OwnedFd>> {
        let mut watched = Vec::new();
        self.each("watch", |isolator| {
            watched.extend(isolator.watch(container)?);
            Ok(())
        })?;
        Ok(watched)
    }

    /// Whether somebody is to be asked while a container with the specification `spec` is waited for: a plugin that
    /// watches, or a built-in isolator that ends the container at a limit.
    pub fn is_watched(&self, spec: &Spec) -> bool {
        self.has_watching_plugin() || self.built_in().any(|isolator| isolator.enforces(spec))
    }

    /// Whether there is a plugin that watches, which it does all containers.
    pub fn has_watching_plugin(&self) -> bool {
        self.entries.iter().any(|entry| entry.is_plugin() && entry.implements(Verb::Watch))
    }

    /// Whether a built-in isolator will have something beside the container of the final plan `config`, or end it at a
    /// limit: what `recover` may have to start again.
    pub fn has_beside(&self, config: &Config<'_>) -> bool {
        self.built_in().any(|isolator| isolator.has_beside(config) || isolator.enforces(config.spec))
    }

    fn built_in(&self) -> impl Iterator<Item = &dyn Isolator> {
        self.entries.iter().filter(|entry| !entry.is_plugin()).map(|entry| &*entry.isolator)
    }

    /// What plugins watch of a container, and the built-in isolators that end it at a limit.
    ///
    /// # Errors
    /// Where one fails.
    pub fn watch_to_end(&self, container: &Handles<'_>) -> Result<Vec<Watched<'_>>> {
        let mut watched = Vec::new();
        let is_asked = |entry: &Entry| entry.is_plugin() || entry.isolator.enforces(container.spec);
        for entry in self.entries.iter().filter(|entry| !entry.is_out() && is_asked(entry)) {
            let watch = Watched::begin(entry, container).map(|one| watched.extend(one));
            self.settle(entry, watch)?;
        }
        Ok(watched)
    }
}

impl<'a> Watched<'a> {
    fn begin(entry: &'a Entry, container: &Handles<'_>) -> Result<Option<Self>> {
        entry.call("watch", |isolator| {
            let Some(fd) = isolator.watch(container)? else { return Ok(None) };
            // A plugin's descriptor must not keep the runtime waiting.
            descriptor::set_nonblocking(fd.as_fd()).map_err(failed)?;
            Ok(Some(Watched { fd, entry }))
        })
    }

    /// Whether the plugin's process is gone, and with it whatever was at the other end of the descriptor.
    pub fn is_lost(&self) -> bool {
        self.entry.host.as_ref().is_some_and(|host| host.borrow().is_gone())
    }

    /// Has the plugin, which is lost, watch in a new process.
    ///
    /// # Errors
    /// Where it can't.
    pub fn again(&self, container: &Handles<'_>) -> Result<Option<Self>> {
        if let Some(host) = &self.entry.host {
            host.borrow_mut().bury();
        }
        Self::begin(self.entry, container)
    }

    /// Whether a container that it can't watch any more is to be ended.
    pub fn must_watch(&self) -> bool {
        self.entry.settings.as_ref().is_some_and(|settings| !settings.optional && !settings.tell_only)
    }

    /// The limit that the container has run into, with the plugin's name.
    ///
    /// # Errors
    /// Where it can't tell.
    pub fn limitation(&self, container: &Handles<'_>) -> Result<Option<(&str, Limitation)>> {
        let found = self.entry.call(TELL, |isolator| isolator.limitation(container))?;
        Ok(found.map(|limitation| (self.entry.name(), limitation)))
    }

    /// Whether a container at its limit is to be ended.
    pub fn ends_container(&self) -> bool {
        self.entry.settings.as_ref().is_none_or(|settings| !settings.tell_only)
    }
}
