//! `volume/csi`: volumes of drivers that speak the Container Storage Interface (CSI 1.12,
//! github.com/container-storage-interface/spec/blob/v1.12.0/spec.md), its node service.
//!
//! It is a plugin, so that gRPC stays out of the runtime. What a volume is stands in a document of the operator's; a
//! container mounts it by name. A driver makes a volume ready once (stage), and shows it to each container (publish). What
//! is about to be done is on record before the driver is asked, so that whoever is killed leaves what can be undone: all of
//! a driver's calls may be made again.

#![forbid(unsafe_code)]

mod client;
#[expect(unreachable_pub, reason = "the driver of the tests has the same file")]
mod messages;
mod node;
mod volume;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use coracle_isolator::{
    Adjustment, Config, Error, Handles, Isolator, Result, States, Usage, adjusted, export_isolator, known,
};
use oci_spec::runtime::Mount;
use serde::Deserialize;
use serde_json::{Map, Value};

use node::Node;
use volume::{Definition, Volume};

/// The type of a mount whose source is the name of a volume.
const TYPE: &str = "csi";

/// The isolator.
#[derive(Debug, Default)]
struct Csi {
    settings: Settings,
    /// The directory of the containers' states.
    states: PathBuf,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Settings {
    /// The sockets of drivers, by their names.
    drivers: BTreeMap<String, PathBuf>,
    /// Where the documents are that say what a volume is: `NAME.json`.
    definitions: PathBuf,
    /// Where secrets are: a directory of files for each.
    secrets: PathBuf,
    /// Where volumes are shown, and what is on record of them. On a disk: drivers keep what they did, too.
    state: PathBuf,
    /// How long a driver may take for all that is asked of it at a time, in seconds.
    deadline: f64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            drivers: BTreeMap::new(),
            definitions: "/etc/coracle/csi".into(),
            secrets: "/etc/coracle/secrets".into(),
            state: "/var/lib/coracle/csi".into(),
            deadline: 4.0,
        }
    }
}

impl Csi {
    /// What the container `id` is called in names of files: there may be another one of its name in another directory
    /// of states.
    fn known_by(&self, id: &str) -> String {
        known::file_name(&self.states, id)
    }

    fn definition(&self, name: &str) -> Result<Definition> {
        Definition::read(&self.settings.definitions, name)
    }

    /// The driver `name`, which has as long as one call of this isolator's may take.
    fn node(&self, name: &str) -> Result<Node> {
        let socket = self.settings.drivers.get(name).ok_or_else(|| {
            Error::new(format!("no driver {name:?} is configured"))
                .with_hint("the option drivers names their sockets")
        })?;
        Node::new(name, socket, self.settings.deadline)
    }

    /// Takes the volume `name` from the container `user`, where it has it.
    fn end(&self, name: &str, user: &str) -> Result<()> {
        // Others may be at work on a volume for long, which is no reason to wait.
        if !Volume::is_used(&self.settings.state, name, user)? {
            return Ok(());
        }
        match Volume::open(&self.settings.state, name, true)? {
            Some(mut volume) if volume.is_used_by(user) => {
                volume.unpublish(&self.node(volume.driver())?, user)
            }
            _ => Ok(()),
        }
    }

    /// Takes the volume `name` from the containers that had it before the machine's start.
    fn end_left(&self, name: &str) -> Result<()> {
        if !Volume::is_left(&self.settings.state, name)? {
            return Ok(());
        }
        match Volume::open(&self.settings.state, name, true)? {
            Some(mut volume) => volume.end_left(&self.node(volume.driver())?),
            None => Ok(()),
        }
    }

    /// Does this to every volume that is on record, whatever comes of the others; the first failure.
    fn each(&self, act: impl Fn(&str) -> Result<()>) -> Result<()> {
        let mut first = Ok(());
        for name in Volume::names(&self.settings.state)? {
            let done = act(&name);
            first = first.and(done.map_err(|e| Error::relayed(format!("volume {name:?}: {e}"), e.errno())));
        }
        first
    }

    /// The volumes that the final mounts `mounts` show, each with whether that is only to read.
    fn shown<'m>(&self, mounts: &'m [Mount]) -> BTreeMap<&'m str, bool> {
        let mut shown = BTreeMap::new();
        for mount in mounts {
            let path =
                mount.source().as_deref().and_then(|source| source.strip_prefix(&self.settings.state).ok());
            let name = path.and_then(|path| path.components().next()?.as_os_str().to_str());
            let Some(name) = name else { continue };
            let is_read = mount.options().iter().flatten().any(|option| option == "ro" || option == "rro");
            shown.entry(name).and_modify(|all: &mut bool| *all &= is_read).or_insert(is_read);
        }
        shown
    }
}

impl Isolator for Csi {
    fn name(&self) -> &str {
        "volume/csi"
    }

    fn states_are_in(&mut self, directory: &Path) {
        self.states = directory.to_owned();
    }

    fn configure(&mut self, options: &Map<String, Value>) -> Result<()> {
        let settings: Settings =
            serde_json::from_value(Value::Object(options.clone())).map_err(|e| Error::new(e.to_string()))?;
        if !(0.01..=3600.0).contains(&settings.deadline) {
            return Err(Error::new(format!(
                "a deadline of {} s is not between 0.01 and 3600",
                settings.deadline
            )));
        }
        self.settings = settings;
        Ok(())
    }

    fn recover(&self, _: &States) -> Result<()> {
        self.each(|name| self.end_left(name))
    }

    fn prepare(&self, config: &Config<'_>) -> Result<Adjustment> {
        let (mut adjustment, mut changed) = (Adjustment::default(), Vec::new());
        let mounts = config.spec.mounts().as_deref().unwrap_or_default();
        for (i, mount) in mounts.iter().enumerate().filter(|(_, mount)| mount.typ().as_deref() == Some(TYPE))
        {
            let at = |e: Error| e.below(&format!("/mounts/{i}/source"));
            let name = mount.source().as_deref().and_then(Path::to_str).unwrap_or_default();
            let definition = self.definition(name).map_err(at)?;
            self.node(&definition.driver).map_err(at)?;
            let mut options = mount.options().clone().unwrap_or_default();
            options.push("rbind".to_owned());
            let mut bind = mount.clone();
            bind.set_typ(Some("bind".to_owned())).set_options(Some(options));
            bind.set_source(Some(Volume::target(&self.settings.state, name, &self.known_by(config.id))));
            changed.push((i, bind));
        }
        adjustment.mounts = adjusted(mounts, &changed);
        Ok(adjustment)
    }

    fn provide(&self, config: &Config<'_>) -> Result<()> {
        for (name, is_read) in self.shown(config.spec.mounts().as_deref().unwrap_or_default()) {
            let definition = self.definition(name)?;
            let node = self.node(&definition.driver)?;
            let secrets = definition.secrets(&self.settings.secrets)?;
            let mut volume = Volume::begin(&self.settings.state, name, &definition)?;
            volume.publish(&node, (&definition, secrets), &self.known_by(config.id), is_read)?;
        }
        Ok(())
    }

    fn usage(&self, container: &Handles<'_>) -> Result<Usage> {
        let (user, mut usage) = (self.known_by(container.id), Usage::default());
        for name in Volume::names(&self.settings.state)? {
            if !Volume::is_used(&self.settings.state, &name, &user)? {
                continue;
            }
            // Who asks what a container uses doesn't wait for another's driver, nor make it do two things at once.
            let Some(volume) = Volume::open(&self.settings.state, &name, false)? else { continue };
            for (measure, value) in volume.count(&self.node(volume.driver())?, &user)? {
                usage.other.insert(format!("volume/csi/{measure}/{name}"), value);
            }
        }
        Ok(usage)
    }

    fn cleanup(&self, id: &str) -> Result<()> {
        let user = self.known_by(id);
        self.each(|name| self.end(name, &user))
    }
}

export_isolator!(Csi::default());
