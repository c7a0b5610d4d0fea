//! All the isolators of a runtime, called as one.

mod plan;
mod calls;
mod watched;
#[cfg(test)]
mod recorder;

use std::cell::{Cell, RefCell};
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::rc::Rc;

use coracle_isolator::{Error, Isolator, Result};

use crate::about::About;
use crate::config::Settings;
use crate::entry::Entry;
use crate::order;
use crate::plugin::{Host, Plugin};

pub use plan::Adjusted;
pub use watched::Watched;

/// The configured isolators, in the order of their calls.
pub struct Registry {
    entries: Vec<Entry>,
    /// What optional plugins failed with.
    warnings: RefCell<Vec<String>>,
    /// Whether `isolate` was called since the last `prepare`, on any.
    isolated: Cell<bool>,
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
        Ok(Self { entries: order::sort(entries)?, warnings: RefCell::default(), isolated: Cell::default() })
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

    /// All isolators in the order of their calls.
    pub fn list(&self) -> impl Iterator<Item = Listed<'_>> {
        self.entries.iter().map(|entry| Listed {
            name: entry.name(),
            settings: entry.settings.as_ref(),
            plugin: entry.about.as_ref(),
            broken: entry.broken.as_ref(),
        })
    }

    /// What optional plugins failed with since this was last asked.
    pub fn take_warnings(&self) -> Vec<String> {
        self.warnings.take()
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
}
