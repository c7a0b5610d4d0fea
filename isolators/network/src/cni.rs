//! Attaching to networks, and detaching: for whoever has a network namespace.
//!
//! [`reserve`](Cni::reserve) comes first and makes the files of `/etc`, [`attach`](Cni::attach) follows when there is a
//! namespace. Whatever comes of both, [`detach`](Cni::detach) undoes it: after a failure, after a crash, after the machine
//! has started anew, when the namespace is gone, and again.

use std::net::IpAddr;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use coracle_isolator::{Errno, Error, Result};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::answer::Answer;
use crate::conflist::{self, Conflist, Found};
use crate::plugin::{Call, Plugins};
use crate::records::{self, Attachment, Record, Records};
use crate::wanted::Wanted;
use crate::{list, names, ports_of_host};

/// The options of `network/cni`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Where networks are configured.
    pub config: PathBuf,
    /// Where plugins are, in this order.
    pub plugins: Vec<PathBuf>,
    /// Where is kept who is on which network. On a disk: what plugins keep themselves outlives the machine's next start.
    pub state: PathBuf,
    /// How long a plugin may take, in seconds.
    pub deadline: f64,
    /// The networks of a pod that names none, as its annotation would say.
    pub pods: Option<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            config: "/etc/cni/net.d".into(),
            plugins: ["/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni"].map(PathBuf::from).into(),
            state: "/var/lib/coracle/network".into(),
            deadline: 30.0,
            pods: None,
        }
    }
}

/// Who is to be attached.
#[derive(Debug, Clone, Copy)]
pub struct Sandbox<'a> {
    /// What it is known by, here and to plugins: letters, digits, `_`, `.` and `-`.
    pub id: &'a str,
    /// A path that is there as long as somebody knows of it. When it is gone, `coracle recover` detaches.
    pub owner: &'a Path,
    /// Where its network namespace is to be held by a mount; in a directory that is the runtime's alone.
    pub namespace: &'a Path,
    /// What others on its networks call it. The first is its host name.
    pub names: &'a [&'a str],
}

/// What came of it: an item for each network, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attached {
    /// The network's name.
    pub network: String,
    /// The interface.
    pub interface: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
}

/// What collecting came to.
#[derive(Debug, Default)]
pub struct Collected {
    /// Who was detached.
    pub detached: Vec<String>,
    /// What could not be done.
    pub failures: Vec<Error>,
}

/// Networks by CNI's plugins.
#[derive(Debug, Default)]
pub struct Cni(Settings);

impl Cni {
    /// With these settings.
    ///
    /// # Errors
    /// Where the deadline makes no sense.
    pub fn new(settings: Settings) -> Result<Self> {
        match settings.deadline {
            seconds if (0.001..=3600.0).contains(&seconds) => Ok(Self(settings)),
            seconds => Err(Error::new(format!("a deadline of {seconds} s is not between 0.001 and 3600"))),
        }
    }

    /// Whether all that `wanted` asks for is configured. Without side effects.
    ///
    /// # Errors
    /// Naming what is not.
    pub fn plan(&self, wanted: &Wanted) -> Result<()> {
        self.attachments(wanted).map(drop)
    }

    /// The networks of a pod that names none.
    pub fn for_pods(&self) -> Option<&str> {
        self.0.pods.as_deref()
    }

    /// The files of `/etc` of the container `id`, each with its name there.
    pub fn files(&self, id: &str) -> [(PathBuf, &'static str); 3] {
        ["hosts", "hostname", "resolv.conf"].map(|name| (self.0.state.join(id).join(name), name))
    }

    /// Records that `sandbox` is about to be attached to what is `wanted`, and makes its files.
    ///
    /// # Errors
    /// As [`plan`](Self::plan); where a port of the host is another's; where nothing can be written.
    pub fn reserve(&self, sandbox: &Sandbox<'_>, wanted: &Wanted) -> Result<()> {
        let attachments = self.attachments(wanted)?;
        let records = Records::make(&self.0.state)?;
        // Who had the name before and was lost, by a start of the machine.
        match records.read(sandbox.id) {
            Ok(left) => left.map_or(Ok(()), |left| self.end(&records, left))?,
            Err(unreadable) => self.give_up(&records, sandbox.id, unreadable).map(drop)?,
        }
        let record = Record {
            id: sandbox.id.to_owned(),
            owner: sandbox.owner.to_owned(),
            namespace: sandbox.namespace.to_owned(),
            boot: records::boot()?,
            names: names::known_as(sandbox.names),
            wanted: wanted.clone(),
            attachments,
            is_leaving: false,
        };
        if wanted.ports.is_empty() {
            records.begin(&record)?;
        } else {
            // Whoever chooses ports does it alone.
            let _alone = records.networks()?;
            ports_of_host::check_free(&records, &record)?;
            records.begin(&record)?;
        }
        names::begin(&records, &record)
    }

    /// Holds the network namespace `namespace` by a mount, and attaches it to what was asked for by
    /// [`reserve`](Self::reserve). After a failure, [`detach`](Self::detach) is due.
    ///
    /// # Errors
    /// Naming the network, the plugin and the verb.
    pub fn attach(&self, id: &str, namespace: BorrowedFd<'_>) -> Result<Vec<Attached>> {
        let records = Records::make(&self.0.state)?;
        let reserved = records.read(id)?;
        let mut record = reserved.ok_or_else(|| Error::new(format!("{id:?} has reserved no network")))?;
        record.hold(namespace)?;
        for index in 0..record.attachments.len() {
            record.attachments[index].begun = true;
            records.write(&record)?;
            self.add(&records, &mut record, index)?;
        }
        records.write_synced(&record)?;
        names::join(&records, &record)?;
        Ok(attached(&record))
    }

    /// Takes `id` off all of its networks, and forgets it. One that is not known is no failure.
    ///
    /// # Errors
    /// The first that fails; the plugins are called all the same, and what failed is tried again next time. Where its
    /// record can't be read, that is told once.
    pub fn detach(&self, id: &str) -> Result<()> {
        let Some(records) = Records::open(&self.0.state)? else { return Ok(()) };
        match records.read(id) {
            Ok(Some(record)) => self.end(&records, record),
            Ok(None) => records.remove(id),
            Err(unreadable) => Err(self.give_up(&records, id, unreadable)?),
        }
    }

    /// Asks the plugins whether all that `id` has is as it should be.
    ///
    /// # Errors
    /// Where it is not, or `id` is on no network.
    pub fn check(&self, id: &str) -> Result<()> {
        let record = self.record(id)?.ok_or_else(|| Error::new(format!("{id:?} is on no network")))?;
        for attachment in &record.attachments {
            let call = Call { verb: "CHECK", ..call(&record, attachment) };
            let cached = (&attachment.runtime, attachment.result.as_ref().unwrap_or(&Value::Null));
            let checked = list::check(&self.plugins(), &attachment.network, &call, cached);
            checked.map_err(|e| on(attachment, &e))?;
        }
        Ok(())
    }

    /// The networks that `id` is on.
    ///
    /// # Errors
    /// Where the record can't be read.
    pub fn attached(&self, id: &str) -> Result<Vec<Attached>> {
        Ok(self.record(id)?.map(|record| attached(&record)).unwrap_or_default())
    }

    /// All networks that are configured, and our own.
    ///
    /// # Errors
    /// Where the directory can't be read.
    pub fn networks(&self) -> Result<Vec<Found>> {
        let mut all = conflist::all(&self.0.config)?;
        let is_bridge = |(_, list): &Found| list.as_ref().is_ok_and(|list| list.name == conflist::BRIDGE);
        if !all.iter().any(is_bridge) {
            let own = conflist::find(&self.0.config, conflist::BRIDGE, &Wanted::default());
            all.push(("(built in)".to_owned(), own));
        }
        Ok(all)
    }

    /// Whether the plugins of a network can take containers.
    ///
    /// # Errors
    /// The first plugin's that can't.
    pub fn status(&self, network: &Conflist) -> Result<()> {
        list::status(&self.plugins(), network)
    }

    /// Detaches all whose owners are gone, and those who could not be detached as a whole before. With
    /// `tell_plugins`, those of each network are told which attachments there are, so that they can give up what else they have (GC). Nobody else attaches or detaches meanwhile.
    ///
    /// # Errors
    /// Where the records can't be read.
    pub fn collect(&self, tell_plugins: bool) -> Result<Collected> {
        let mut collected = Collected::default();
        let Some(records) = Records::open_alone(&self.0.state)? else { return Ok(collected) };
        let (mut alive, mut all_are_known): (Vec<Record>, bool) = (Vec::new(), true);
        for id in records.ids()? {
            match records.read(&id) {
                Ok(Some(record)) if record.is_owned() && !record.is_leaving => alive.push(record),
                Ok(Some(record)) => match self.end(&records, record) {
                    Ok(()) => collected.detached.push(id),
                    Err(error) => collected.failures.push(error),
                },
                Ok(None) => collected.failures.extend(records.remove(&id).err()),
                Err(unreadable) if records.remains(&id).is_some_and(|remains| !remains.is_owned()) => {
                    collected
                        .failures
                        .push(self.give_up(&records, &id, unreadable).unwrap_or_else(|failure| failure));
                }
                Err(error) => {
                    collected.failures.push(error);
                    all_are_known = false;
                }
            }
        }
        // An attachment that plugins are not told of they would take from whoever lives with it.
        if tell_plugins && all_are_known {
            for network in self.networks()?.into_iter().filter_map(|(_, list)| list.ok()) {
                let valid = valid(&alive, &network.name);
                let told = list::collect(&self.plugins(), &network, &valid);
                collected
                    .failures
                    .extend(told.map_err(|e| Error::new(format!("network {:?}: {e}", network.name))).err());
            }
        }
        Ok(collected)
    }

    fn record(&self, id: &str) -> Result<Option<Record>> {
        Records::open(&self.0.state)?.map_or(Ok(None), |records| records.read(id))
    }

    fn plugins(&self) -> Plugins {
        let deadline = Duration::from_secs_f64(self.0.deadline);
        Plugins { directories: self.0.plugins.clone(), deadline }
    }

    /// What is to be done for `wanted`.
    fn attachments(&self, wanted: &Wanted) -> Result<Vec<Attachment>> {
        let mut attachments = Vec::new();
        for (index, network) in wanted.networks.iter().enumerate() {
            let list = conflist::find(&self.0.config, &network.name, wanted)?;
            if let Some(name) = network.runtime.keys().find(|name| !list::takes(&list, name)) {
                return Err(Error::new(format!("no plugin of network {:?} takes {name:?}", network.name))
                    .with_hint("what its plugins take stands in their \"capabilities\""));
            }
            attachments.push(Attachment {
                network: list,
                interface: wanted.interface(index),
                runtime: network.runtime.clone(),
                begun: false,
                result: None,
            });
        }
        if !wanted.ports.is_empty() {
            let able = attachments.iter_mut().find(|attachment| list::takes(&attachment.network, PORTS));
            let able =
                able.ok_or_else(|| Error::new("no plugin of these networks takes \"portMappings\""))?;
            able.runtime.insert(PORTS.to_owned(), json!(wanted.ports));
        }
        Ok(attachments)
    }

    /// Attaches number `index` of `record`, which has on disk what came of each plugin before the next one begins.
    fn add(&self, records: &Records, record: &mut Record, index: usize) -> Result<()> {
        let begun = record.clone();
        let attachment = &begun.attachments[index];
        let call = Call { verb: "ADD", namespace: Some(&begun.namespace), ..call(&begun, attachment) };
        let keep = |result: &Value| {
            record.attachments[index].result = Some(result.clone());
            records.write(record)
        };
        let added = list::add(&self.plugins(), &attachment.network, &call, (&attachment.runtime, keep));
        added.map_err(|e| on(attachment, &e))
    }

    /// Undoes what `record` tells of, each whatever became of the others. What fails stays on record.
    fn end(&self, records: &Records, mut record: Record) -> Result<()> {
        let forgotten = names::leave(records, &record);
        let (mut left, mut done) = (Vec::new(), Ok(()));
        for attachment in record.attachments.iter().rev() {
            let deleted = if attachment.begun { self.delete(&record, attachment) } else { Ok(()) };
            // A list that its name still stands in is to be written next time.
            if deleted.is_err() || forgotten.is_err() {
                left.insert(0, Attachment { begun: deleted.is_err(), ..attachment.clone() });
            }
            done = done.and(deleted.map_err(|e| on(attachment, &e)));
        }
        // Plugins that are called again are called for the namespace, too.
        done = done.and_then(|()| record.let_go()).and(forgotten);
        if let Err(first) = done {
            record.attachments = left;
            record.is_leaving = true;
            // Where even this can't be written, plugins are called once more, which does no harm.
            let _ = records.write(&record);
            return Err(first);
        }
        records.remove(&record.id)
    }

    /// Gets past a record that can't be read, and returns what there is to tell. Which plugins the container has had can't
    /// be told any more; all else of it goes.
    ///
    /// # Errors
    /// What keeps the record where it is.
    fn give_up(&self, records: &Records, id: &str, unreadable: Error) -> Result<Error> {
        // It may well be read next time.
        if !matches!(unreadable.errno(), None | Some(Errno::EIO | Errno::EFBIG)) {
            return Err(unreadable);
        }
        names::leave_all(records, id)?;
        records.remains(id).map_or(Ok(()), |remains| remains.let_go())?;
        let aside = self.0.state.join(records.set_aside(id)?);
        let hint = "coracle network gc has plugins of CNI 1.1 give back what they hold for it";
        Ok(unreadable.with_hint(format!("it is now {}; {hint}", aside.display())))
    }

    fn delete(&self, record: &Record, attachment: &Attachment) -> Result<()> {
        let call = Call { verb: "DEL", ..call(record, attachment) };
        let cached: (&Map<String, Value>, _) = (&attachment.runtime, attachment.result.as_ref());
        list::del(&self.plugins(), &attachment.network, &call, cached)
    }
}

/// CNI's name for mappings of ports.
const PORTS: &str = "portMappings";

fn call<'a>(record: &'a Record, attachment: &'a Attachment) -> Call<'a> {
    let namespace = record.living_namespace();
    Call { verb: "", container: &record.id, namespace, interface: &attachment.interface }
}

fn on(attachment: &Attachment, error: &Error) -> Error {
    Error::new(format!("network {:?}: {error}", attachment.network.name))
}

fn attached(record: &Record) -> Vec<Attached> {
    let of = |attachment: &Attachment| Attached {
        network: attachment.network.name.clone(),
        interface: attachment.interface.clone(),
        addresses: attachment
            .result
            .as_ref()
            .map(|result| Answer::of(result).addresses())
            .unwrap_or_default(),
    };
    record.attachments.iter().map(of).collect()
}

/// The attachments of the network `name`, as pairs of container and interface.
fn valid(alive: &[Record], name: &str) -> Vec<(String, String)> {
    let of = |record: &Record| {
        let on_it = record.attachments.iter().filter(|attachment| attachment.network.name == name);
        on_it.map(|attachment| (record.id.clone(), attachment.interface.clone())).collect::<Vec<_>>()
    };
    alive.iter().flat_map(of).collect()
}
