//! systemd as the one who makes cgroups: each container is a transient scope (org.freedesktop.systemd1(5)).
//!
//! A scope begins with a process in it. That is a holder of our own, so that the container's first process is cloned
//! straight into the scope's cgroup, as into any other; the holder goes when that process is there.

mod annotations;
mod bus;
mod message;
mod properties;

use std::borrow::Cow;
use std::collections::HashMap;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use coracle_sys::process;
use oci_spec::runtime::{LinuxDeviceCgroup, LinuxResources};
use serde::{Deserialize, Serialize};

use self::bus::Bus;
use self::message::{Value, Writer};
use super::Version;
use crate::error::{Code, Context, Error, Result};

/// The property that says what follows when the kernel kills a process of a unit for want of memory.
const OOM_POLICY: &str = "OOMPolicy";

/// A container's scope.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unit {
    /// Its name, `PREFIX-NAME.scope`.
    name: String,
    /// The slice that it is in.
    slice: String,
    /// Whose systemd makes it: the calling user's, or with `None` the machine's.
    user: Option<u32>,
}

/// What the specification wants of a cgroup, that systemd must know
#[derive(Debug, Default)]
pub struct Wanted<'a> {
    /// The container's limits.
    pub resources: Option<&'a LinuxResources>,
    /// The rules about devices that hold in it; none where anything may be opened.
    pub devices: Option<&'a [LinuxDeviceCgroup]>,
    /// The container's annotations: `org.systemd.property.NAME` sets the property of that name.
    pub annotations: Option<&'a HashMap<String, String>>,
}

/// A process that keeps a new scope from ending before the container's own is in it.
#[derive(Debug)]
pub struct Holder(process::Child);

impl Drop for Holder {
    fn drop(&mut self) {
        self.0.kill();
        let _ = process::wait(self.0.pidfd.as_fd());
    }
}

impl Unit {
    /// The scope of container `id` where `wanted` is the specification's `linux.cgroupsPath`.
    ///
    /// # Errors
    /// `InvalidSpec` for one that is not of the form `SLICE:PREFIX:NAME`.
    pub fn new(id: &str, wanted: Option<&Path>) -> Result<Self> {
        let user = bus::user()?;
        let wanted = wanted.map(Path::to_string_lossy).unwrap_or_default();
        let mut parts = wanted.split(':');
        let (slice, prefix, name) = match [parts.next(), parts.next(), parts.next(), parts.next()] {
            [Some(""), None, ..] => ("", "coracle", id),
            [Some(slice), Some(prefix), Some(name), None] if !name.is_empty() => (slice, prefix, name),
            _ => return Err(invalid(&wanted, "for systemd, write it like SLICE:PREFIX:NAME")),
        };
        let slice = match (slice, user) {
            ("", None) => "system.slice",
            ("", Some(_)) => "user.slice",
            (slice, _) => slice,
        };
        let is_name = |c: char| c.is_ascii_alphanumeric() || ":_.-@\\".contains(c);
        if expanded(slice).is_none() || !name.chars().chain(prefix.chars()).all(is_name) {
            return Err(invalid(
                &wanted,
                "systemd takes letters, digits and :_.-@\\ for names, and X.slice for slices",
            ));
        }
        if name.ends_with(".slice") {
            return Err(invalid(&wanted, "a container is in a scope of its own; a slice can't be one"));
        }
        let name = if prefix.is_empty() { format!("{name}.scope") } else { format!("{prefix}-{name}.scope") };
        Ok(Self { name, slice: slice.to_owned(), user })
    }

    /// What asks for a scope in the same slice, named after this one and `name`.
    pub fn beside(&self, name: &str) -> String {
        format!("{}::{}.{name}", self.slice, self.name.trim_end_matches(".scope"))
    }

    /// Its cgroup's path below a hierarchy's root.
    pub fn path(&self) -> PathBuf {
        let base = self.user.map_or_else(PathBuf::new, |user| {
            PathBuf::from(format!("user.slice/user-{user}.slice/user@{user}.service"))
        });
        base.join(expanded(&self.slice).unwrap_or_default()).join(&self.name)
    }

    /// Has systemd make the scope, with what it is to know.
    ///
    /// # Errors
    /// `InvalidSpec` where that is no property, or no value of one.
    /// `Exists` where there is such a unit, `Unsupported` where there is no systemd, `System` where it refuses.
    pub(super) fn start(&self, wanted: &Wanted<'_>, version: Version) -> Result<Holder> {
        let limits = wanted.resources.map(|r| properties::properties(r, version)).transpose()?;
        let devices = wanted.devices.map(|rules| self.devices(rules, version)).transpose()?;
        let asked = wanted.annotations.map(annotations::properties).transpose()?.unwrap_or_default();
        let mut bus = Bus::connect(self.user.is_some())?;
        let holder = Holder(process::spawn(0, None, hold).context(|| "starting the holder of a scope")?);
        let mut properties = vec![
            ("Description", Value::Text(format!("Container in {}", self.name))),
            ("Slice", Value::Text(self.slice.clone())),
            ("PIDs", Value::Pids(vec![holder.0.pid.cast_unsigned()])),
            ("DefaultDependencies", Value::Truth(false)),
            ("Delegate", Value::Truth(true)),
            ("CPUAccounting", Value::Truth(true)),
            ("MemoryAccounting", Value::Truth(true)),
            ("TasksAccounting", Value::Truth(true)),
            (if version == Version::V2 { "IOAccounting" } else { "BlockIOAccounting" }, Value::Truth(true)),
        ];
        properties.extend(limits.into_iter().chain(devices).flatten());
        let mut properties: Vec<(Cow<'_, str>, Value)> =
            properties.into_iter().map(|(name, value)| (Cow::Borrowed(name), value)).chain(asked).collect();
        // Else systemd ends the whole scope when the kernel kills one of its processes for want of memory.
        let is_ours = properties.iter().all(|(name, _)| name != OOM_POLICY);
        properties.extend(is_ours.then(|| (OOM_POLICY.into(), Value::Text("continue".to_owned()))));
        // One of this name that failed is still known until somebody has taken note.
        let mut started = self.start_transient(&mut bus, &properties);
        if is_ours && started.as_ref().is_err_and(|e| e.to_string().contains(OOM_POLICY)) {
            // Before it had the word for scopes it left them alone.
            properties.pop();
            started = self.start_transient(&mut bus, &properties);
        }
        if let Err(first) = started {
            if first.code() != Code::Exists || self.reset_failed(&mut bus).is_err() {
                return Err(first);
            }
            self.start_transient(&mut bus, &properties)?;
        }
        Ok(holder)
    }

    fn start_transient(&self, bus: &mut Bus, properties: &[(Cow<'_, str>, Value)]) -> Result<()> {
        let doing = || format!("starting unit {}", self.name);
        let mut arguments = Writer::default();
        arguments.text(&self.name).text("replace").properties(properties).nothing();
        let job = bus.call("StartTransientUnit", "ssa(sv)a(sa(sv))", arguments)?;
        let job = job.map_err(|refused| {
            let exists = refused.name.ends_with(".UnitExists");
            Error::new(if exists { Code::Exists } else { Code::System }, refused.text).doing(doing())
        })?;
        let path = job.arguments().text()?;
        match bus.await_job(&path).context(doing)?.as_str() {
            "done" => Ok(()),
            result => Err(Error::new(Code::System, format!("systemd says {result:?}")).doing(doing())),
        }
    }

    /// The properties that say what `rules` say about devices, where systemd would else write that there are none: on
    /// version 1, if it may. On version 2 the isolator's program stays beside systemd's.
    fn devices(&self, rules: &[LinuxDeviceCgroup], version: Version) -> Result<Vec<(&'static str, Value)>> {
        if version == Version::V2 || self.user.is_some() {
            return Ok(Vec::new());
        }
        properties::devices(rules)
    }

    /// Tells systemd of new limits.
    ///
    /// # Errors
    /// `System` where it refuses.
    pub fn set(&self, resources: &LinuxResources, version: Version) -> Result<()> {
        let mut properties = properties::properties(resources, version)?;
        if let Some(rules) = resources.devices() {
            properties.extend(self.devices(rules, version)?);
        }
        self.set_properties(&properties)
    }

    /// Tells systemd, which was told of the limits `new`, of the limits `old` again.
    ///
    /// # Errors
    /// `System` where it refuses.
    pub fn set_back(&self, new: &LinuxResources, old: &LinuxResources, version: Version) -> Result<()> {
        let mut properties = properties::reverted(new, old, version)?;
        if new.devices().is_some() {
            properties.extend(self.devices(old.devices().as_deref().unwrap_or_default(), version)?);
        }
        self.set_properties(&properties)
    }

    fn set_properties(&self, properties: &[(&str, Value)]) -> Result<()> {
        if properties.is_empty() {
            return Ok(());
        }
        let mut arguments = Writer::default();
        arguments.text(&self.name).truth(true).properties(properties);
        let answer = Bus::connect(self.user.is_some())?.call("SetUnitProperties", "sba(sv)", arguments)?;
        answer.map(drop).map_err(|refused| {
            Error::new(Code::System, refused.text).doing(format!("updating unit {}", self.name))
        })
    }

    /// Has systemd stop the scope and forget it. One that is gone is no error.
    ///
    /// # Errors
    /// `System` where it refuses.
    pub(super) fn stop(&self) -> Result<()> {
        let mut bus = Bus::connect(self.user.is_some())?;
        let mut arguments = Writer::default();
        arguments.text(&self.name).text("replace");
        match bus.call("StopUnit", "ss", arguments)? {
            Ok(job) => drop(bus.await_job(&job.arguments().text()?)?),
            Err(refused) if refused.name.ends_with(".NoSuchUnit") => {}
            Err(refused) => {
                let doing = format!("stopping unit {}", self.name);
                return Err(Error::new(Code::System, refused.text).doing(doing));
            }
        }
        // Where it did not fail there is nothing to reset.
        let _ = self.reset_failed(&mut bus)?;
        Ok(())
    }

    fn reset_failed(&self, bus: &mut Bus) -> Result<bool> {
        let mut arguments = Writer::default();
        arguments.text(&self.name);
        Ok(bus.call("ResetFailedUnit", "s", arguments)?.is_ok())
    }
}

/// What the holder does: nothing, and not for long.
fn hold() -> i32 {
    if process::die_with_parent(true).is_ok() {
        std::thread::sleep(Duration::from_secs(60));
    }
    0
}

/// The path of a slice: `a-b.slice` is in `a.slice` (systemd.slice(5)). `None` for what is no slice.
fn expanded(slice: &str) -> Option<PathBuf> {
    let name = slice.strip_suffix(".slice")?;
    if name == "-" {
        return Some(PathBuf::new());
    }
    let is_name = |c: char| c.is_ascii_alphanumeric() || ":_.@\\".contains(c);
    let mut path = PathBuf::new();
    let mut prefix = String::new();
    for part in name.split('-') {
        if part.is_empty() || !part.chars().all(is_name) {
            return None;
        }
        prefix += part;
        path.push(format!("{prefix}.slice"));
        prefix.push('-');
    }
    Some(path)
}

fn invalid(wanted: &str, hint: &str) -> Error {
    Error::new(Code::InvalidSpec, format!("/linux/cgroupsPath is {wanted:?}")).hint(hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_lie_in_those_that_their_names_begin_with() {
        for (slice, path) in [
            ("machine.slice", Some("machine.slice")),
            ("a-b-c.slice", Some("a.slice/a-b.slice/a-b-c.slice")),
            ("-.slice", Some("")),
            ("a--b.slice", None),
            ("-a.slice", None),
            ("a", None),
            ("../x.slice", None),
            (".slice", None),
        ] {
            assert_eq!(expanded(slice).as_deref(), path.map(Path::new), "{slice}");
        }
    }

    #[test]
    fn a_scope_has_its_name_from_the_path_or_from_the_id() {
        let unit = |wanted: &str| Unit::new("x", Some(Path::new(wanted))).unwrap();
        assert_eq!(unit("machine.slice:libpod:abc").name, "libpod-abc.scope");
        assert_eq!(unit("machine.slice::abc").name, "abc.scope");
        assert_eq!(Unit::new("x", None).unwrap().name, "coracle-x.scope");
        assert!(
            unit("machine-a.slice:libpod:abc")
                .path()
                .ends_with("machine.slice/machine-a.slice/libpod-abc.scope")
        );
    }

    #[test]
    fn what_names_no_scope_is_refused() {
        for bad in [
            "/a/b",
            "a.slice:b",
            "a.slice:b:c:d",
            "a.slice:b:",
            "a:b:c",
            "a.slice:b:../c",
            "a.slice:b:c.slice",
        ] {
            let error = Unit::new("x", Some(Path::new(bad))).unwrap_err().to_string();
            assert!(error.starts_with(&format!("/linux/cgroupsPath is {bad:?}")), "{error}");
        }
    }
}
