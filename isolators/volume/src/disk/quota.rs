//! `disk/quota`: limits that the file system keeps, by project quotas.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use coracle_isolator::{Adjustment, Config, Error, Handles, Isolator, Limitation, Result, States, Usage};
use coracle_sys::{Errno, event, file, quota};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::record::{Limit, Records};
use super::{directories, walk, wanted};
use crate::{failed, known_by};

/// Gives each limited directory a project of its own, and that a limit, on file systems that keep projects to theirs (ext4
/// and XFS, mounted with `prjquota`). A writer who would go beyond gets `EDQUOT`, of XFS
/// `ENOSPC`; `events` tells of it.
#[derive(Debug)]
pub(crate) struct DiskQuota {
    records: Records,
    settings: Settings,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Settings {
    /// Where is kept who has which limit. On a disk: the file systems keep them, too.
    state: PathBuf,
    /// The numbers of projects that may be used: the first, and the last.
    projects: (u32, u32),
    /// How often it is looked at whether a limit is reached, in seconds.
    interval: f64,
    /// How long it may take to give the files of a directory to a project, in seconds.
    deadline: f64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { state: super::STATE.into(), projects: (5000, 1_000_000), interval: 15.0, deadline: 60.0 }
    }
}

impl DiskQuota {
    pub(crate) fn new(root: &Path) -> Self {
        Self { records: Records::new(root, "quota"), settings: Settings::default() }
    }

    /// The project for the directories of `limit`: the one that they have, or a new one.
    fn project(&self, limit: &Limit, taken: &BTreeSet<u32>) -> Result<u32> {
        let top = limit.paths.first().ok_or_else(|| Error::new("there is no directory to limit"))?;
        let top = file::open_dir(top).map_err(failed)?;
        let own = quota::project(top.as_fd()).map_err(failed)?;
        let (first, last) = self.settings.projects;
        if (first..=last).contains(&own) {
            return Ok(own);
        }
        let is_free =
            |id: &u32| !taken.contains(id) && quota::of(top.as_fd(), *id).is_ok_and(|quota| quota.files == 0);
        (first..=last).find(is_free).ok_or_else(|| {
            Error::new(format!("no project from {first} to {last} is free"))
                .with_hint("the option projects says which there are")
        })
    }

    /// Has the file system keep `limit`.
    fn enforce(&self, limit: &Limit) -> Result<()> {
        let Some(id) = limit.project else { return Ok(()) };
        let deadline = Duration::from_secs_f64(self.settings.deadline);
        for path in &limit.paths {
            let top = file::open_dir(path).map_err(failed)?;
            if quota::project(top.as_fd()).map_err(failed)? != id {
                walk::assign(path, id, deadline).map_err(|e| failed(e).on_path(path.to_string_lossy()))?;
            }
            quota::limit(top.as_fd(), id, Some(limit.bytes)).map_err(failed)?;
        }
        Ok(())
    }

    /// Takes the limits of the record `name` away. Its files stay in their projects until somebody removes them.
    fn end(&self, name: &str) -> Result<()> {
        let _lock = self.records.lock()?;
        let all = self.records.all()?;
        let (own, others): (Vec<_>, Vec<_>) = all.iter().partition(|(known, _)| known == name);
        let is_shared =
            |id: u32| others.iter().any(|(_, r)| r.limits.iter().any(|limit| limit.project == Some(id)));
        for limit in own.iter().flat_map(|(_, record)| &record.limits) {
            let Some(id) = limit.project.filter(|id| !is_shared(*id)) else { continue };
            for path in &limit.paths {
                // A directory that is gone has no file system to ask: nor are there files that count.
                let Ok(top) = nearest(path) else { continue };
                match quota::limit(top.as_fd(), id, None) {
                    Err(e)
                        if !matches!(
                            e.errno(),
                            Errno::ESRCH | Errno::ENOSYS | Errno::EINVAL | Errno::ENOTBLK
                        ) =>
                    {
                        return Err(failed(e));
                    }
                    _ => {}
                }
            }
        }
        self.records.forget(name)
    }

    /// What each limited destination takes.
    fn used(&self, id: &str) -> Result<Vec<(Limit, u64)>> {
        let mut used = Vec::new();
        for limit in self.records.of(id)? {
            let (Some(project), Some(path)) = (limit.project, limit.paths.first()) else { continue };
            let top = file::open_dir(path).map_err(failed)?;
            let told = quota::of(top.as_fd(), project).map_err(failed)?;
            used.push((limit, told.used));
        }
        Ok(used)
    }
}

/// The directory `path`, or the first above it that is there.
fn nearest(path: &Path) -> coracle_sys::Result<OwnedFd> {
    path.ancestors().find_map(|path| file::open_dir(path).ok()).map_or_else(|| file::open_dir("/"), Ok)
}

/// Whether the file systems of all of `paths` keep projects to their limits.
pub(super) fn is_kept(paths: &[PathBuf]) -> Result<bool> {
    for path in paths {
        let is_enforced = file::open_dir(path).and_then(|dir| quota::is_enforced(dir.as_fd()));
        if !is_enforced.map_err(|e| failed(e).on_path(path.to_string_lossy()))? {
            return Ok(false);
        }
    }
    Ok(true)
}

impl Isolator for DiskQuota {
    fn name(&self) -> &str {
        "disk/quota"
    }

    fn after(&self) -> Vec<&str> {
        vec!["volume/host-path", "volume/persistent", "volume/sandbox-path"]
    }

    fn configure(&mut self, options: &Map<String, Value>) -> Result<()> {
        let settings: Settings =
            serde_json::from_value(Value::Object(options.clone())).map_err(|e| Error::new(e.to_string()))?;
        if settings.projects.0 == 0 || settings.projects.0 > settings.projects.1 {
            return Err(Error::new(
                "projects: it takes the first number, at least 1, and the last: [5000, 1000000]",
            ));
        }
        if !(0.01..=3600.0).contains(&settings.interval) || !(0.01..=3600.0).contains(&settings.deadline) {
            return Err(Error::new("interval and deadline are seconds, from 0.01 to 3600"));
        }
        self.records.state = settings.state.join("quota");
        self.settings = settings;
        Ok(())
    }

    fn recover(&self, _: &States) -> Result<()> {
        self.records.left()?.iter().try_for_each(|name| self.end(name))
    }

    fn prepare(&self, config: &Config<'_>) -> Result<Adjustment> {
        wanted(config.spec).map(|_| Adjustment::default())
    }

    fn provide(&self, config: &Config<'_>) -> Result<()> {
        let wanted = wanted(config.spec)?;
        if wanted.is_empty() {
            return Ok(());
        }
        let mut kept = Vec::new();
        for (destination, bytes) in wanted {
            let paths = directories(config.spec, config.bundle, &destination)?;
            if is_kept(&paths)? {
                kept.push(Limit { destination, bytes, paths, inodes: Vec::new(), project: None });
            }
        }
        if kept.is_empty() {
            return Ok(());
        }
        let _lock = self.records.lock()?;
        let mut taken = self.records.projects()?;
        for limit in &mut kept {
            let id = self.project(limit, &taken)?;
            taken.insert(id);
            limit.project = Some(id);
        }
        self.records.write(config.id, &kept)?;
        kept.iter().try_for_each(|limit| self.enforce(limit))
    }

    fn watch(&self, container: &Handles<'_>) -> Result<Option<OwnedFd>> {
        if wanted(container.spec)?.is_empty() || self.records.of(container.id)?.is_empty() {
            return Ok(None);
        }
        let timer = event::timer(Duration::from_secs_f64(self.settings.interval));
        timer.map(Some).map_err(failed)
    }

    fn limitation(&self, container: &Handles<'_>) -> Result<Option<Limitation>> {
        if wanted(container.spec)?.is_empty() {
            return Ok(None);
        }
        // What is refused was more than the last block.
        const BLOCK: u64 = 4096;
        let full = self.used(container.id)?.into_iter().find(|(limit, used)| used + BLOCK > limit.bytes);
        Ok(full.map(|(limit, used)| super::du::limitation(&limit, used)))
    }

    fn usage(&self, container: &Handles<'_>) -> Result<Usage> {
        if wanted(container.spec)?.is_empty() {
            return Ok(Usage::default());
        }
        let used = self.used(container.id)?;
        Ok(Usage { other: super::du::told(self.name(), &used), ..Usage::default() })
    }

    fn cleanup(&self, id: &str) -> Result<()> {
        match crate::opened(&self.records.state)? {
            Some(_) if !self.records.of(id)?.is_empty() => self.end(&known_by(&self.records.root, id)),
            _ => Ok(()),
        }
    }
}
