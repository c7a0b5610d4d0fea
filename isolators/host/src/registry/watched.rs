//! Who is asked, and when, whether a container has run into a limit.

use std::os::fd::OwnedFd;

use coracle_isolator::{Config, Handles, Isolator, Limitation, Result};
use coracle_isolator_abi::Verb;
use oci_spec::runtime::Spec;

use super::Registry;
use crate::entry::Entry;

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
        self.each("limitation", |isolator| {
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
        entry.call("limitation", |isolator| isolator.limitation(container))
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
            let watch = entry.call("watch", |isolator| isolator.watch(container)).map(|fd| {
                watched.extend(fd.map(|fd| Watched { fd, entry }));
            });
            self.settle(entry, watch)?;
        }
        Ok(watched)
    }
}

impl Watched<'_> {
    /// The limit that the container has run into, with the plugin's name.
    ///
    /// # Errors
    /// Where it can't tell.
    pub fn limitation(&self, container: &Handles<'_>) -> Result<Option<(&str, Limitation)>> {
        let found = self.entry.call("limitation", |isolator| isolator.limitation(container))?;
        Ok(found.map(|limitation| (self.entry.name(), limitation)))
    }

    /// Whether a container at its limit is to be ended.
    pub fn ends_container(&self) -> bool {
        self.entry.settings.as_ref().is_none_or(|settings| !settings.tell_only)
    }
}
