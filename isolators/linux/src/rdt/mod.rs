//! `linux/rdt`: a share of the processor's cache and of the memory's bandwidth, through the kernel's resctrl file
//! system (Documentation/filesystems/resctrl.rst; Intel RDT, and its like of other makers).

mod schema;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use coracle_isolator::{Adjustment, Config, Errno, Error, Handles, Isolator, Result, known};
use coracle_sys::file::{self, Resolve};
use coracle_sys::process;
use oci_spec::runtime::{LinuxIntelRdt, Spec};
use schema::{Asked, ROOT_CLASS};

use crate::failed;

/// Looks after `linux.intelRdt`. A container without a `closID` gets a class of service of its own, which goes with
/// it. A class that `closID` names is made where it is missing, and goes with the container that made it unless others
/// are in it by then; one that stands must be as the container wants it.
///
/// What is about to be made is written down first, in a file beside other runtime state, so that `cleanup` never takes
/// a directory away that an administrator made under a container's name, or that is another's of the same name, whose
/// state lies in another directory: the name is all of a container that runtime-spec lets a class be called by.
#[derive(Debug)]
pub struct Rdt {
    /// The directory of the containers' states.
    states: PathBuf,
    resctrl: PathBuf,
    /// Where the records of what was made go.
    records: PathBuf,
    magic: file::FsType,
}

impl Default for Rdt {
    fn default() -> Self {
        const RDTGROUP_SUPER_MAGIC: file::FsType = file::FsType(0x0765_5821);
        let [states, resctrl, records] = ["", "/sys/fs/resctrl", "/run"].map(PathBuf::from);
        Self { states, resctrl, records, magic: RDTGROUP_SUPER_MAGIC }
    }
}

impl Isolator for Rdt {
    fn name(&self) -> &str {
        "linux/rdt"
    }

    fn prepare(&self, config: &Config<'_>) -> Result<Adjustment> {
        let Some(asked) = asked(config.spec)? else { return Ok(Adjustment::default()) };
        let root = self.open()?;
        for (resource, field) in
            [("L3", "/linux/intelRdt/l3CacheSchema"), ("MB", "/linux/intelRdt/memBwSchema")]
        {
            if asked.limits(resource) && !self.has(root.as_fd(), resource)? {
                return Err(
                    Error::new(format!("this processor or kernel does not share out {resource}")).at(field)
                );
            }
        }
        if asked.monitored && open(root.as_fd(), "mon_groups").is_err() {
            let what = "this processor or kernel does not monitor";
            return Err(Error::new(what).at("/linux/intelRdt/enableMonitoring"));
        }
        Ok(Adjustment::default())
    }

    fn isolate(&self, container: &Handles<'_>) -> Result<()> {
        let Some(asked) = asked(container.spec)? else { return Ok(()) };
        let root = self.open()?;
        let own = name(container.id);
        let class = self.class(root.as_fd(), &own, &asked)?;
        if asked.monitored {
            let line = format!("monitor {}", asked.class.as_deref().unwrap_or(&own));
            open(class.as_fd(), "mon_groups")
                .and_then(|groups| {
                    self.record(&own, &line, (groups.as_fd(), &own))?;
                    make(groups.as_fd(), &own)
                })
                .map_err(|e| e.at("/linux/intelRdt/enableMonitoring"))?;
        }
        enter(class.as_fd(), &own, container)
    }

    fn join(&self, container: &Handles<'_>) -> Result<()> {
        let Some(asked) = asked(container.spec)? else { return Ok(()) };
        let own = name(container.id);
        let class = open_class(self.open()?.as_fd(), asked.class.as_deref().unwrap_or(&own))?;
        enter(class.as_fd(), &own, container)
    }

    fn update_intel_rdt(&self, container: &Handles<'_>, rdt: &LinuxIntelRdt) -> Result<()> {
        let lines = Asked::new(rdt)?.lines;
        let root = self.open()?;
        let Some(asked) = asked(container.spec)? else {
            return Err(Error::new("the container has no class of service")
                .at("/linux/intelRdt")
                .with_hint("create it with one"));
        };
        let own = name(container.id);
        let class = asked.class.as_deref().unwrap_or(&own);
        if !self.made(&own)?.lines().any(|line| line.strip_prefix("class ") == Some(class)) {
            return Err(Error::new(format!("class of service {class:?} is not the container's alone"))
                .at("/linux/intelRdt/closID")
                .with_hint("change the class itself"));
        }
        let class = open_class(root.as_fd(), class)?;
        let old =
            file::read(class.as_fd(), "schemata", 64 * 1024, Resolve::BeneathNoLinks).map_err(failed)?;
        write_schemata(root.as_fd(), class.as_fd(), &lines).inspect_err(|_| {
            // The kernel takes line by line. What it has just told, it takes back.
            let _ = file::write_to(class.as_fd(), "schemata", &old, Resolve::BeneathNoLinks);
        })
    }

    fn cleanup(&self, id: &str) -> Result<()> {
        let (own, record) = (name(id), self.record_name(&name(id)));
        let records = file::open_dir(&self.records).map_err(failed)?;
        let made = match file::read(records.as_fd(), &record, 64 * 1024, Resolve::BeneathNoLinks) {
            Err(e) if e.errno() == Errno::ENOENT => return Ok(()),
            other => other.map_err(failed)?,
        };
        if let Ok(root) = self.open() {
            // Monitoring groups lie in classes, and were made after them.
            for line in String::from_utf8_lossy(&made).lines().rev() {
                remove(root.as_fd(), &own, line)?;
            }
        }
        file::unlink(records.as_fd(), &record).map_err(failed)
    }
}

impl Rdt {
    /// For containers whose states lie in `root`.
    pub fn new(root: &Path) -> Self {
        Self { states: root.to_owned(), ..Self::default() }
    }

    /// Whether this kernel shares out cache or bandwidth, and says so where it is looked for.
    pub fn is_mounted(&self) -> bool {
        self.open().is_ok()
    }

    /// The root of resctrl, which is verified to be one.
    fn open(&self) -> Result<OwnedFd> {
        let root = file::open_dir(&self.resctrl).ok();
        let is_resctrl =
            |root: &OwnedFd| file::file_system(root.as_fd()).is_ok_and(|magic| magic == self.magic);
        root.filter(is_resctrl).ok_or_else(|| {
            Error::new("intelRdt is specified in config, but Intel RDT is not supported or enabled")
                .at("/linux/intelRdt")
                .with_hint("is resctrl mounted? mount -t resctrl resctrl /sys/fs/resctrl")
        })
    }

    /// Whether there is a resource whose name starts with `resource`: with code and data apart, L3 is L3CODE and
    /// L3DATA.
    fn has(&self, root: BorrowedFd<'_>, resource: &str) -> Result<bool> {
        let info = open(root, "info")?;
        let names = file::list(info.as_fd()).map_err(failed)?;
        Ok(names.iter().any(|name| {
            let name = name.to_string_lossy();
            name.starts_with(resource) && !name.ends_with("_MON")
        }))
    }

    /// The container's class of service, with its schemata.
    fn class(&self, root: BorrowedFd<'_>, own: &str, asked: &Asked) -> Result<OwnedFd> {
        if let Some(named) = &asked.class {
            match open_class(root, named) {
                Ok(class) => return stands(class, named, asked),
                Err(e) if asked.lines.is_empty() || e.errno() != Some(Errno::ENOENT) => {
                    return Err(e.with_hint("make it, or give it a schema").at("/linux/intelRdt/closID"));
                }
                Err(_) => {}
            }
        }
        let class = asked.class.as_deref().unwrap_or(own);
        self.record(own, &format!("class {class}"), (root, class)).map_err(|e| e.at("/linux/intelRdt"))?;
        make(root, class)
            .map_err(|e| match e.errno() {
                Some(Errno::ENOSPC) => e.with_hint("the processor has no class of service left"),
                _ => e,
            })
            .map_err(|e| e.at("/linux/intelRdt/closID"))?;
        let class = open_class(root, class)?;
        write_schemata(root, class.as_fd(), &asked.lines)?;
        Ok(class)
    }

    /// What the record of a container says that was made for it.
    fn made(&self, own: &str) -> Result<String> {
        let records = file::open_dir(&self.records).map_err(failed)?;
        match file::read(records.as_fd(), self.record_name(own), 64 * 1024, Resolve::BeneathNoLinks) {
            Err(e) if e.errno() == Errno::ENOENT => Ok(String::new()),
            made => made.map(|made| String::from_utf8_lossy(&made).into_owned()).map_err(failed),
        }
    }

    /// Writes down what is about to be made: the group `name` in `dir`, by its `line`. One that stands and is not on
    /// record never gets there: whoever fails takes away what is.
    fn record(&self, own: &str, line: &str, (dir, name): (BorrowedFd<'_>, &str)) -> Result<()> {
        let records = file::open_dir(&self.records).map_err(failed)?;
        let mut made = self.made(own)?;
        if made.lines().any(|old| old == line) {
            return Ok(());
        }
        if open(dir, name).is_ok() {
            let told = if line.starts_with("class ") {
                Error::new(format!("class of service {name:?} stands already, and not by this container"))
                    .with_hint("name it with closID to use it")
            } else {
                Error::new(format!("monitoring group {name:?} stands already, and not by this container"))
                    .with_hint("give the container another ID")
            };
            return Err(told);
        }
        made += &format!("{line}\n");
        file::replace(records.as_fd(), &self.record_name(own), made.as_bytes(), 0o600).map_err(failed)
    }

    fn record_name(&self, own: &str) -> String {
        format!("coracle-rdt-{}", known::file_name(&self.states, own))
    }
}

/// Writes lines of a class's `schemata`, if there are any.
fn write_schemata(root: BorrowedFd<'_>, class: BorrowedFd<'_>, lines: &[String]) -> Result<()> {
    if lines.is_empty() {
        return Ok(());
    }
    let text = format!("{}\n", lines.join("\n"));
    file::write_to(class, "schemata", text.as_bytes(), Resolve::BeneathNoLinks)
        .map_err(|e| explained(root, failed(e)).at("/linux/intelRdt/schemata"))
}

fn asked(spec: &Spec) -> Result<Option<Asked>> {
    let rdt = spec.linux().as_ref().and_then(|linux| linux.intel_rdt().as_ref());
    rdt.map(Asked::new).transpose()
}

/// A container's ID as the name of a directory: nested containers have slashes in theirs, and no ID has a `%`.
fn name(id: &str) -> String {
    id.replace('/', "%")
}

/// A class that stands is shared: it is what it is, and only that will do.
fn stands(class: OwnedFd, name: &str, asked: &Asked) -> Result<OwnedFd> {
    if asked.lines.is_empty() {
        return Ok(class);
    }
    let text = file::read(class.as_fd(), "schemata", 64 * 1024, Resolve::BeneathNoLinks).map_err(failed)?;
    match schema::missing(&asked.lines, &String::from_utf8_lossy(&text)) {
        None => Ok(class),
        Some(line) => {
            Err(Error::new(format!("class of service {name:?} stands, and its schemata is not {line:?}"))
                .at("/linux/intelRdt"))
        }
    }
}

/// Puts the waiting process into the class `class` and into the container's monitoring group there, if it has one.
fn enter(class: BorrowedFd<'_>, own: &str, container: &Handles<'_>) -> Result<()> {
    let pidfd =
        container.pidfd.ok_or_else(|| Error::new("there is no process to put into a class of service"))?;
    let pid = process::pid_of(pidfd).map_err(failed)?.to_string();
    let write = |group: BorrowedFd<'_>| {
        let written = file::write_to(group, "tasks", pid.as_bytes(), Resolve::BeneathNoLinks);
        written.map_err(|e| failed(e).at("/linux/intelRdt"))
    };
    write(class)?;
    match open(class, &format!("mon_groups/{own}")) {
        Err(e) if e.errno() == Some(Errno::ENOENT) => Ok(()),
        group => write(group?.as_fd()),
    }
}

/// Removes what `line` of a record tells of. The kernel lets the processes of a group that goes fall back into the
/// class around it, so one that others have come to use stays.
fn remove(root: BorrowedFd<'_>, own: &str, line: &str) -> Result<()> {
    let (dir, name) = match line.split_once(' ') {
        Some(("monitor", class)) => {
            (open_class(root, class).and_then(|class| open(class.as_fd(), "mon_groups")), own)
        }
        Some(("class", class)) => {
            if class != own && is_used(root, class) {
                return Ok(());
            }
            (open(root, "."), class)
        }
        // Cut short by a crash: what it would have told of was not made yet.
        _ => return Ok(()),
    };
    let Ok(dir) = dir else { return Ok(()) };
    match file::rmdir(dir.as_fd(), name) {
        Err(e) if e.errno() != Errno::ENOENT => Err(failed(e)),
        _ => Ok(()),
    }
}

/// Whether anybody is in the class `class`. Where that can't be read, somebody may be.
fn is_used(root: BorrowedFd<'_>, class: &str) -> bool {
    let tasks = open_class(root, class)
        .and_then(|dir| file::read(dir.as_fd(), "tasks", 1 << 20, Resolve::BeneathNoLinks).map_err(failed));
    match tasks {
        Ok(tasks) => !tasks.is_empty(),
        Err(e) => e.errno() != Some(Errno::ENOENT),
    }
}

/// Makes a group. One that stands under a container's name was left by a crash.
fn make(dir: BorrowedFd<'_>, name: &str) -> Result<()> {
    match file::mkdir(dir, name, 0o755) {
        Err(e) if e.errno() != Errno::EEXIST => Err(failed(e)),
        _ => Ok(()),
    }
}

fn open_class(root: BorrowedFd<'_>, class: &str) -> Result<OwnedFd> {
    open(root, if class == ROOT_CLASS { "." } else { class })
}

fn open(dir: BorrowedFd<'_>, path: &str) -> Result<OwnedFd> {
    use nix::libc::{O_DIRECTORY, O_RDONLY};
    file::open(dir, path, O_RDONLY | O_DIRECTORY, 0, Resolve::BeneathNoLinks).map_err(failed)
}

/// With what resctrl itself says of the last failure.
fn explained(root: BorrowedFd<'_>, error: Error) -> Error {
    match file::read(root, "info/last_cmd_status", 4096, Resolve::BeneathNoLinks) {
        Ok(status) => error.with_hint(format!("resctrl says: {}", String::from_utf8_lossy(&status).trim())),
        Err(_) => error,
    }
}

#[cfg(test)]
mod tests;
