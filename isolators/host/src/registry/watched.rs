//! Who is asked, and when, whether a container has run into a limit.

use std::os::fd::OwnedFd;

use coracle_isolator::{Handles, Limitation, Result};
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

    /// Whether somebody is to be asked while a container is waited for: a plugin that watches, or a built-in isolator
    /// that ends the container whose plan was made last.
    pub fn is_watched(&self) -> bool {
        self.is_enforced.get() || self.has_watching_plugin()
    }

    /// The same for a container with the specification `spec`, whoever has made its plan.
    pub fn is_watched_with(&self, spec: &Spec) -> bool {
        self.is_enforced_in(spec) || self.has_watching_plugin()
    }

    pub(super) fn is_enforced_in(&self, spec: &Spec) -> bool {
        self.entries.iter().any(|entry| !entry.is_plugin() && entry.isolator.enforces(spec))
    }

    fn has_watching_plugin(&self) -> bool {
        self.entries.iter().any(|entry| entry.is_plugin() && entry.implements(Verb::Watch))
    }

    /// What plugins watch of a container, and the built-in isolators that end it at a limit.
    ///
    /// # Errors
    /// Where one fails.
    pub fn watch_to_end(&self, container: &Handles<'_>) -> Result<Vec<Watched<'_>>> {
        self.watched_by(container, |entry| entry.is_plugin() || entry.isolator.enforces(container.spec))
    }

    fn watched_by(
        &self,
        container: &Handles<'_>,
        is_asked: impl Fn(&Entry) -> bool,
    ) -> Result<Vec<Watched<'_>>> {
        let mut watched = Vec::new();
        for entry in self.entries.iter().filter(|entry| is_asked(entry) && !entry.is_out()) {
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
