//! From fields of `linux.resources` to writes into a control group.

use std::borrow::Cow;
use std::os::fd::OwnedFd;

use coracle_isolator::{
    Adjustment, Cgroup, CgroupVersion, Config, Errno, Error, Handles, Isolator, Limitation, Result, Usage,
};
use oci_spec::runtime::{LinuxResources, Spec};

/// One value for one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Setting {
    pub(crate) controller: &'static str,
    pub(crate) file: Cow<'static, str>,
    pub(crate) value: String,
    /// The field it comes from, below `linux.resources`.
    pub(crate) field: Cow<'static, str>,
    pub(crate) where_missing: WhereMissing,
}

/// What to do where the kernel has no such file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum WhereMissing {
    /// The field can't be honoured.
    Fail,
    /// Without the file there is nothing to limit.
    Skip,
    /// An older or newer kernel has this file, which takes that value.
    Write(&'static str, String),
}

impl Setting {
    #[expect(clippy::needless_pass_by_value, reason = "numbers and texts alike are made in the call")]
    pub(crate) fn new(
        controller: &'static str,
        file: impl Into<Cow<'static, str>>,
        value: impl ToString,
        field: impl Into<Cow<'static, str>>,
    ) -> Self {
        let (file, field) = (file.into(), field.into());
        Self { controller, file, value: value.to_string(), field, where_missing: WhereMissing::Fail }
    }

    pub(crate) fn where_missing(mut self, what: WhereMissing) -> Self {
        self.where_missing = what;
        self
    }

    fn write(&self, group: &Cgroup) -> Result<()> {
        let written = match group.write(self.controller, &self.file, &self.value) {
            Err(e) if e.errno() == Some(Errno::ENOENT) => match &self.where_missing {
                WhereMissing::Fail => Err(e.with_hint("this kernel does not offer it")),
                WhereMissing::Skip => Ok(()),
                WhereMissing::Write(file, value) => group.write(self.controller, file, value),
            },
            other => other,
        };
        written.map_err(|e| e.at(pointer(&self.field)))
    }
}

/// A controller's limits.
pub(crate) trait Controller {
    /// The isolator's name.
    const NAME: &'static str;

    /// Refuses what this version of cgroups does not have, and warns of what has no effect.
    ///
    /// # Errors
    /// Naming the field.
    fn check(&self, version: CgroupVersion, resources: &LinuxResources) -> Result<Vec<String>> {
        let _ = (version, resources);
        Ok(Vec::new())
    }

    /// What to write for the fields that are set, in this order. Reads the group only where a value depends on
    /// one that is not set.
    ///
    /// # Errors
    /// Naming the field.
    fn settings(&self, group: &Cgroup, resources: &LinuxResources) -> Result<Vec<Setting>>;

    /// What may help against `error`, which a write gave.
    fn hint(&self, error: &Error) -> Option<&'static str> {
        let _ = error;
        None
    }

    /// A descriptor that becomes readable when the group may have run into a limit.
    ///
    /// # Errors
    /// Where the kernel gives none.
    fn watch(&self, group: &Cgroup) -> Result<Option<OwnedFd>> {
        let _ = group;
        Ok(None)
    }

    /// The limit that the group has run into.
    ///
    /// # Errors
    /// Where the kernel's file can't be read.
    fn limitation(&self, group: &Cgroup) -> Result<Option<Limitation>> {
        let _ = group;
        Ok(None)
    }

    /// What the group uses.
    ///
    /// # Errors
    /// Where the kernel's file can't be read.
    fn usage(&self, group: &Cgroup) -> Result<Usage> {
        let _ = group;
        Ok(Usage::default())
    }
}

/// A controller as an isolator.
#[derive(Debug)]
pub(crate) struct Limits<C>(pub(crate) C);

impl<C: Controller> Limits<C> {
    fn apply(&self, group: &Cgroup, resources: &LinuxResources) -> Result<()> {
        let settings = self.0.settings(group, resources)?;
        write_all(group, &settings).map_err(|e| match self.0.hint(&e) {
            Some(hint) => e.with_hint(hint),
            None => e,
        })
    }
}

impl<C: Controller> Isolator for Limits<C> {
    fn name(&self) -> &str {
        C::NAME
    }

    fn prepare(&self, config: &Config<'_>) -> Result<Adjustment> {
        let mut adjustment = Adjustment::default();
        if let Some(resources) = resources(config.spec) {
            adjustment.warnings = self.0.check(config.cgroup, resources)?;
        }
        Ok(adjustment)
    }

    fn isolate(&self, container: &Handles<'_>) -> Result<()> {
        resources(container.spec).map_or(Ok(()), |resources| self.apply(container.cgroup, resources))
    }

    fn update(&self, container: &Handles<'_>, resources: &LinuxResources) -> Result<()> {
        self.0.check(container.cgroup.version(), resources)?;
        self.apply(container.cgroup, resources)
    }

    fn watch(&self, container: &Handles<'_>) -> Result<Option<OwnedFd>> {
        self.0.watch(container.cgroup)
    }

    fn limitation(&self, container: &Handles<'_>) -> Result<Option<Limitation>> {
        self.0.limitation(container.cgroup)
    }

    fn usage(&self, container: &Handles<'_>) -> Result<Usage> {
        self.0.usage(container.cgroup)
    }
}

/// `linux.resources`.
pub(crate) fn resources(spec: &Spec) -> Option<&LinuxResources> {
    spec.linux().as_ref().and_then(|linux| linux.resources().as_ref())
}

/// Writes the settings in order. Limits that bound each other (quota and period, memory and swap) are refused
/// with `EINVAL` in one order or the other, depending on what stands in the files; such a write is tried again
/// after the others.
fn write_all(group: &Cgroup, settings: &[Setting]) -> Result<()> {
    let mut again = Vec::new();
    for setting in settings {
        match setting.write(group) {
            Err(e) if e.errno() == Some(Errno::EINVAL) && settings.len() > 1 => again.push(setting),
            other => other?,
        }
    }
    again.into_iter().try_for_each(|setting| setting.write(group))
}

/// The JSON pointer of a field: `memory.limit`, or `unified.memory.max`, whose key has a dot of its own.
fn pointer(field: &str) -> String {
    format!("/linux/resources/{}", field.replacen('.', "/", 1))
}

/// The error for a field that this version of cgroups does not have.
pub(crate) fn not_on(version: CgroupVersion, field: &str) -> Error {
    let number = if version == CgroupVersion::V1 { 1 } else { 2 };
    Error::new(format!("cgroup version {number}, which this machine runs, has no such limit"))
        .at(pointer(field))
}
