//! `disk/du`: limits on file systems without project quotas, by adding up what there is.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use coracle_isolator::{Adjustment, Config, Error, Handles, Isolator, Limitation, Result, States, Usage};
use coracle_sys::{Errno, event};
use oci_spec::runtime::Spec;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::record::{Limit, Records};
use super::{directories, quota, walk, wanted};
use crate::{failed, known_by};

/// Looks again and again how much limited directories take that no quota holds; a container beyond its limit is ended.
#[derive(Debug)]
pub(crate) struct DiskUsage {
    records: Records,
    settings: Settings,
    /// How many looks in a row took too long, or found nothing to look at.
    late: Cell<u32>,
}

/// How many looks in a row may come to nothing: whoever makes them so slow must not have no limit by that.
const MOST_LATE: u32 = 4;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Settings {
    /// Where is kept who has which limit.
    state: PathBuf,
    /// How often it looks, in seconds.
    interval: f64,
    /// How long a look may take, in seconds.
    deadline: f64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { state: super::STATE.into(), interval: 15.0, deadline: 30.0 }
    }
}

impl DiskUsage {
    pub(crate) fn new(root: &Path) -> Self {
        Self { records: Records::new(root, "du"), settings: Settings::default(), late: Cell::new(0) }
    }

    /// What each limited destination takes; `None` where that could not be told in time, or is not where it was. What nobody can go
    /// through is beyond any limit.
    fn used(&self, id: &str) -> Result<Vec<(Limit, Option<u64>)>> {
        let deadline = Duration::from_secs_f64(self.settings.deadline);
        let mut used = Vec::new();
        for limit in self.records.of(id)? {
            match walk::usage(&limit.paths, &limit.inodes, deadline) {
                // Who moves it must not have no limit by that.
                Err(e) if [Errno::ETIMEDOUT, Errno::ENOENT, Errno::ESTALE].contains(&e.errno()) => {
                    used.push((limit, None));
                }
                Err(e) if e.errno() == Errno::ELOOP => used.push((limit, Some(u64::MAX))),
                bytes => used.push((limit, Some(bytes.map_err(failed)?))),
            }
        }
        Ok(used)
    }

    /// Tells of `limit`, which could not be looked at, when that was so too often.
    fn too_late(&self, limit: Option<&Limit>) -> Option<Limitation> {
        self.late.set(limit.map_or(0, |_| self.late.get() + 1));
        let (limit, often) = (limit?, self.late.get());
        let message = format!(
            "its files in {} could not be found and counted in {} seconds, {often} times",
            limit.destination, self.settings.deadline
        );
        let told = Limitation { message, reason: "disk".to_owned(), resources: None };
        (often >= MOST_LATE).then_some(told)
    }
}

/// Tells of a limit that is reached.
pub(super) fn limitation(limit: &Limit, used: u64) -> Limitation {
    let takes = match used {
        u64::MAX => "are in directories too deep to be counted".to_owned(),
        used => format!("take {used} bytes"),
    };
    let message = format!("its files in {} {takes}, and may take {} bytes", limit.destination, limit.bytes);
    Limitation { message, reason: "disk".to_owned(), resources: None }
}

/// What the isolator `name` measures.
pub(super) fn told(name: &str, used: &[(Limit, u64)]) -> BTreeMap<String, f64> {
    let one = |(limit, used): &(Limit, u64)| {
        let destination = &limit.destination;
        [
            (format!("{name}/used{destination}"), *used as f64),
            (format!("{name}/limit{destination}"), limit.bytes as f64),
        ]
    };
    used.iter().flat_map(one).collect()
}

impl Isolator for DiskUsage {
    fn name(&self) -> &str {
        "disk/du"
    }

    fn after(&self) -> Vec<&str> {
        vec!["disk/quota", "volume/host-path", "volume/persistent", "volume/sandbox-path"]
    }

    fn configure(&mut self, options: &Map<String, Value>) -> Result<()> {
        let settings: Settings =
            serde_json::from_value(Value::Object(options.clone())).map_err(|e| Error::new(e.to_string()))?;
        if !(0.01..=3600.0).contains(&settings.interval) || !(0.01..=3600.0).contains(&settings.deadline) {
            return Err(Error::new("interval and deadline are seconds, from 0.01 to 3600"));
        }
        self.records.state = settings.state.join("du");
        self.settings = settings;
        Ok(())
    }

    fn recover(&self, _: &States) -> Result<()> {
        self.records.left()?.iter().try_for_each(|name| self.records.forget(name))
    }

    fn prepare(&self, config: &Config<'_>) -> Result<Adjustment> {
        wanted(config.spec).map(|_| Adjustment::default())
    }

    fn provide(&self, config: &Config<'_>) -> Result<()> {
        let mut left = Vec::new();
        for (destination, bytes) in wanted(config.spec)? {
            let paths = directories(config.spec, config.bundle, &destination)?;
            if !quota::is_kept(&paths)? {
                let inodes = walk::inodes(&paths).map_err(failed)?;
                left.push(Limit { destination, bytes, paths, inodes, project: None });
            }
        }
        if left.is_empty() { Ok(()) } else { self.records.write(config.id, &left) }
    }

    fn enforces(&self, spec: &Spec) -> bool {
        wanted(spec).is_ok_and(|wanted| !wanted.is_empty())
    }

    fn watch(&self, container: &Handles<'_>) -> Result<Option<OwnedFd>> {
        if !self.enforces(container.spec) || self.records.of(container.id)?.is_empty() {
            return Ok(None);
        }
        let timer = event::timer(Duration::from_secs_f64(self.settings.interval));
        timer.map(Some).map_err(failed)
    }

    fn limitation(&self, container: &Handles<'_>) -> Result<Option<Limitation>> {
        if !self.enforces(container.spec) {
            return Ok(None);
        }
        let used = self.used(container.id)?;
        let late = used.iter().find(|(_, used)| used.is_none());
        let late = self.too_late(late.map(|(limit, _)| limit));
        let mut counted = used.iter().filter_map(|(limit, used)| Some((limit, (*used)?)));
        let beyond = counted.find(|(limit, used)| *used > limit.bytes);
        Ok(beyond.map(|(limit, used)| limitation(limit, used)).or(late))
    }

    fn usage(&self, container: &Handles<'_>) -> Result<Usage> {
        if !self.enforces(container.spec) {
            return Ok(Usage::default());
        }
        let used = self.used(container.id)?.into_iter();
        let used: Vec<_> = used.filter_map(|(limit, used)| Some((limit, used?))).collect();
        Ok(Usage { other: told(self.name(), &used), ..Usage::default() })
    }

    fn cleanup(&self, id: &str) -> Result<()> {
        self.records.forget(&known_by(&self.records.root, id))
    }
}
