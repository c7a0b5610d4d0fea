//! An isolator in the registry, and what is done when it fails.

use std::cell::{Cell, RefCell};
use std::path::PathBuf;
use std::rc::Rc;

use coracle_isolator::{Error, Isolator, Result};
use coracle_isolator_abi::Verb;

use crate::about::About;
use crate::config::Settings;
use crate::plugin::{Host, Plugin};

/// An isolator of a registry.
pub(crate) struct Entry {
    pub(crate) isolator: Box<dyn Isolator>,
    /// For a plugin, how it is configured.
    pub(crate) settings: Option<Settings>,
    /// What a plugin tells of itself, and its file.
    pub(crate) about: Option<(About, PathBuf)>,
    /// What holds a plugin's process.
    pub(crate) host: Option<Rc<RefCell<Host>>>,
    /// Why a plugin can't be called at all.
    pub(crate) broken: Option<Error>,
    /// Set when an optional plugin has failed: it is not called any more, but to clean up.
    is_out: Cell<bool>,
}

/// What stands for a plugin that could not be loaded.
struct Missing(String);

impl Isolator for Missing {
    fn name(&self) -> &str {
        &self.0
    }
}

impl Entry {
    /// An isolator that is built in.
    pub(crate) fn built_in(isolator: Box<dyn Isolator>) -> Self {
        Self { isolator, settings: None, about: None, host: None, broken: None, is_out: Cell::new(false) }
    }

    /// A plugin, or why there is none.
    pub(crate) fn plugin(name: String, settings: Settings, plugin: Result<Plugin>) -> Self {
        let about = plugin.as_ref().ok().map(|plugin| (plugin.about(), plugin.path()));
        let host = plugin.as_ref().ok().map(Plugin::host);
        let (isolator, broken): (Box<dyn Isolator>, _) = match plugin {
            Ok(plugin) => (Box::new(plugin), None),
            Err(error) => (Box::new(Missing(name)), Some(error)),
        };
        Self { isolator, settings: Some(settings), about, host, broken, is_out: Cell::new(false) }
    }

    pub(crate) fn name(&self) -> &str {
        self.isolator.name()
    }

    pub(crate) fn is_plugin(&self) -> bool {
        self.settings.is_some()
    }

    pub(crate) fn is_out(&self) -> bool {
        self.is_out.get()
    }

    /// Whether it is called at `verb`: every isolator that is built in, and a plugin that is in use and has the call.
    pub(crate) fn implements(&self, verb: Verb) -> bool {
        match &self.about {
            Some((about, _)) => !self.is_out() && about.implements(verb),
            None => !self.is_plugin(),
        }
    }

    /// What `make` makes of the isolator, its failure with its name and that of the call.
    pub(crate) fn call<'a, T>(
        &'a self,
        call: &'static str,
        make: impl FnOnce(&'a dyn Isolator) -> Result<T>,
    ) -> Result<T> {
        match &self.broken {
            Some(broken) => Err(broken.clone()),
            None => make(&*self.isolator).map_err(|e| e.in_call(self.name(), call)),
        }
    }

    /// Takes the failure of an optional plugin for a warning, which is returned; it is left out from then on.
    ///
    /// # Errors
    /// Any other failure.
    pub(crate) fn settle(&self, made: Result<()>) -> Result<Option<String>> {
        match made {
            Err(error) if self.settings.as_ref().is_some_and(|settings| settings.optional) => {
                self.is_out.set(true);
                Ok(Some(format!("{error}; it is optional, and left out")))
            }
            other => other.map(|()| None),
        }
    }
}
