//! The tree of control groups: where a container's cgroups are, how they are made, entered, emptied, removed.
//!
//! Three layouts are known (cgroups(7)): the unified tree of version 2; the hierarchies of version 1; and the
//! hybrid of both, where some controllers have hierarchies of their own and a unified tree, with the rest or
//! with none, stands beside them. What is written into the directories is the isolators' business.
//!
//! A process enters version 1 hierarchies by writing itself to `tasks`, not to `cgroup.procs`: for a lone
//! thread that moves itself the kernel takes no write lock on all forks (Linux 5.15, `cgroup: Optimize single
//! thread migration`), which spares the start a grace period of RCU, ten milliseconds on the machines measured.
//! Into the unified tree it is cloned (`CLONE_INTO_CGROUP`), which takes none either.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, Instant};

use coracle_isolator::{Cgroup, CgroupVersion};
use coracle_sys::file::{self, Resolve};
use coracle_sys::{Errno, process};
use serde::{Deserialize, Serialize};

use crate::error::{Code, Context, Error, Result};

/// Where the kernel's cgroup file systems are mounted, by convention of every distribution.
const MOUNT_POINT: &str = "/sys/fs/cgroup";

/// The longest file of a cgroup that is read: the list of its processes.
const LONGEST: u64 = 16 << 20;

/// One hierarchy: a directory of [`MOUNT_POINT`], or (with an empty name) that directory itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hierarchy {
    /// The directory's name: `memory`, `cpu,cpuacct`, `unified`, or empty for the unified tree of version 2.
    pub name: String,
    /// Whether it is a unified (version 2) tree.
    pub unified: bool,
}

impl Hierarchy {
    /// The controllers of a version 1 hierarchy; `systemd` has none but a name.
    pub fn controllers(&self) -> Vec<String> {
        match self.name.as_str() {
            "" | "unified" => vec!["unified".to_owned()],
            "systemd" => vec!["name=systemd".to_owned()],
            names => names.split(',').map(str::to_owned).collect(),
        }
    }
}

/// A container's own cgroup in each hierarchy: decided, perhaps not yet made. This is what the state records.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// What the machine's limits are written to.
    pub version: Version,
    /// The hierarchies, each with the container's path below it.
    pub at: Vec<(Hierarchy, PathBuf)>,
    /// How many leading components of every path must stay when the container goes: they were there before.
    pub keep: usize,
}

/// Which version of cgroups holds the controllers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Version {
    /// Hierarchies by controller, with or without a unified tree beside them.
    V1,
    /// One unified tree.
    V2,
}

impl From<Version> for CgroupVersion {
    fn from(version: Version) -> Self {
        match version {
            Version::V1 => Self::V1,
            Version::V2 => Self::V2,
        }
    }
}

/// The machine's hierarchies.
///
/// # Errors
/// `Unsupported` where no cgroup file system is mounted.
pub fn hierarchies() -> Result<(Version, Vec<Hierarchy>)> {
    let root = mount_point()?;
    if file::file_system(root.as_fd())? == nix::sys::statfs::CGROUP2_SUPER_MAGIC.0 {
        return Ok((Version::V2, vec![Hierarchy { name: String::new(), unified: true }]));
    }
    let mut found = Vec::new();
    for name in file::list(root.as_fd())? {
        // Links (`cpu` beside `cpu,cpuacct`) are other names of what is found anyway.
        let flags = libc::O_DIRECTORY | libc::O_NOFOLLOW;
        let Ok(dir) = file::open(root.as_fd(), &name, flags, 0, Resolve::BeneathNoLinks) else { continue };
        let kind = file::file_system(dir.as_fd())?;
        let unified = kind == nix::sys::statfs::CGROUP2_SUPER_MAGIC.0;
        if unified || kind == nix::sys::statfs::CGROUP_SUPER_MAGIC.0 {
            found.push(Hierarchy { name: name.to_string_lossy().into_owned(), unified });
        }
    }
    if found.is_empty() {
        return Err(Error::new(
            Code::Unsupported,
            format!("no cgroup hierarchy is mounted in {MOUNT_POINT}"),
        )
        .hint("mount one, or use --cgroup-manager disabled"));
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok((Version::V1, found))
}

fn mount_point() -> Result<OwnedFd> {
    file::open_dir(MOUNT_POINT).context(|| "looking for cgroups")
}

/// Where the cgroups of container `id` go: at `wanted` (the spec's `linux.cgroupsPath`) from the root of each
/// hierarchy where that is absolute, from the runtime's own cgroup where it is relative, and at `/coracle-ID`
/// where it is absent. Reads, and changes nothing.
///
/// # Errors
/// `InvalidSpec` where the path holds `..`.
pub fn place(id: &str, wanted: Option<&Path>) -> Result<Place> {
    let (version, hierarchies) = hierarchies()?;
    let default = PathBuf::from(format!("/coracle-{id}"));
    let wanted = wanted.filter(|p| !p.as_os_str().is_empty()).unwrap_or(&default);
    let bad = wanted.components().any(|c| matches!(c, Component::ParentDir))
        || wanted.as_os_str().to_string_lossy().contains(['\n', '\0'])
        || wanted.components().all(|c| c == Component::RootDir);
    if bad {
        return Err(Error::new(Code::InvalidSpec, format!("linux.cgroupsPath is {wanted:?}"))
            .hint("name a cgroup below the root, without \"..\""));
    }
    let own = if wanted.is_absolute() { String::new() } else { own_cgroups()? };
    let at: Vec<_> = hierarchies
        .into_iter()
        .map(|hierarchy| {
            let base = own_path(&own, &hierarchy);
            let path = base.join(wanted).components().filter(|c| *c != Component::RootDir).collect();
            (hierarchy, path)
        })
        .collect();
    let mut place = Place { version, at, keep: 0 };
    place.keep = place.existing()?;
    Ok(place)
}

fn own_cgroups() -> Result<String> {
    let text = file::read(file::CWD, "/proc/self/cgroup", LONGEST, Resolve::Host)
        .context(|| "reading the runtime's own cgroups")?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// The path of the caller's own cgroup in `hierarchy`, from the text of `/proc/self/cgroup`.
fn own_path(text: &str, hierarchy: &Hierarchy) -> PathBuf {
    let controllers = if hierarchy.unified { String::new() } else { hierarchy.controllers().join(",") };
    text.lines()
        .filter_map(|line| line.split_once(':')?.1.split_once(':'))
        .find(|(names, _)| *names == controllers)
        .map_or_else(|| PathBuf::from("/"), |(_, path)| path.into())
}

impl Place {
    /// How many leading components exist in every hierarchy already.
    fn existing(&self) -> Result<usize> {
        let root = mount_point()?;
        let mut least = usize::MAX;
        for (hierarchy, path) in &self.at {
            let mut here = PathBuf::from(&hierarchy.name);
            let mut count = 0;
            for component in path.components() {
                here.push(component);
                if file::stat_at(root.as_fd(), &here).is_err() {
                    break;
                }
                count += 1;
            }
            least = least.min(count);
        }
        Ok(least)
    }

    /// The same, of which only the last component is the container's own: for a container whose record is lost.
    #[must_use]
    pub fn own_only(mut self) -> Self {
        self.keep =
            self.at.iter().map(|(_, path)| path.components().count()).min().unwrap_or(1).saturating_sub(1);
        self
    }

    /// Makes the cgroups and opens them.
    ///
    /// # Errors
    /// `Exists` where one is there and holds processes: two containers must not share one, because the end
    /// of the first would be the end of the second.
    pub fn make(&self) -> Result<Tree> {
        let root = mount_point()?;
        let mut dirs = Vec::with_capacity(self.at.len());
        for (hierarchy, path) in &self.at {
            let dir = make_one(root.as_fd(), hierarchy, path)
                .context(|| format!("making cgroup {path:?} in hierarchy {:?}", hierarchy.name))?;
            dirs.push((hierarchy.clone(), dir));
        }
        Ok(Tree { version: self.version, dirs })
    }

    /// The host's paths of the cgroups, each with its hierarchy.
    pub fn paths(&self) -> impl Iterator<Item = (&Hierarchy, PathBuf)> {
        self.at.iter().map(|(h, path)| (h, Path::new(MOUNT_POINT).join(&h.name).join(path)))
    }

    /// Opens the cgroups, as far as they are there.
    ///
    /// # Errors
    /// Whatever opening says but that there is none.
    pub fn open(&self) -> Result<Tree> {
        let root = mount_point()?;
        let mut dirs = Vec::with_capacity(self.at.len());
        for (hierarchy, path) in &self.at {
            let path = Path::new(&hierarchy.name).join(path);
            match file::open(root.as_fd(), &path, libc::O_DIRECTORY, 0, Resolve::BeneathNoLinks) {
                Ok(dir) => dirs.push((hierarchy.clone(), dir)),
                Err(e) if e.errno() == Errno::ENOENT => {}
                Err(e) => return Err(e).context(|| "opening the container's cgroups"),
            }
        }
        Ok(Tree { version: self.version, dirs })
    }

    /// Kills every process in the cgroups and below, and waits until all are gone.
    ///
    /// # Errors
    /// `System` where some are left after ten seconds, as a process in an uninterruptible wait would be.
    pub fn kill(&self) -> Result<()> {
        let tree = self.open()?;
        let deadline = Instant::now() + Duration::from_secs(10);
        let mut pause = Duration::from_micros(200);
        while tree.is_populated()? {
            tree.signal_all(libc::SIGKILL)?;
            process::reap_all();
            if Instant::now() > deadline {
                let left = tree.processes()?;
                return Err(Error::new(Code::System, format!("processes {left:?} can't be killed"))
                    .hint("they wait for the kernel; try again when what they wait for has come"));
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(50));
        }
        Ok(())
    }

    /// Removes the cgroups, what the container made below them, and the parents that were made for it and
    /// that nobody else uses; processes that are still in them are killed. What is gone already is no error.
    ///
    /// # Errors
    /// `System` where a process can't be killed, `EBUSY` where one stays in a cgroup for two seconds.
    pub fn remove(&self) -> Result<()> {
        let root = mount_point()?;
        // Most often nothing is left in them, and nothing has to be looked for.
        let mut busy = false;
        for (hierarchy, path) in self.at.iter().filter(|(_, path)| path.components().count() > self.keep) {
            let gone = file::rmdir(root.as_fd(), Path::new(&hierarchy.name).join(path));
            busy |= gone.is_err_and(|e| e.errno() != Errno::ENOENT);
        }
        if busy {
            self.kill()?;
        }
        let mut first_failure = Ok(());
        for (hierarchy, path) in &self.at {
            let removed = remove_one(root.as_fd(), hierarchy, path, self.keep)
                .context(|| format!("removing cgroup {path:?} in hierarchy {:?}", hierarchy.name));
            first_failure = first_failure.and(removed);
        }
        first_failure
    }
}

fn make_one(root: BorrowedFd<'_>, hierarchy: &Hierarchy, path: &Path) -> Result<OwnedFd> {
    let full = Path::new(&hierarchy.name).join(path);
    // A parent that another container's end removes in between is made once more.
    for _ in 0..8 {
        match file::mkdir(root, &full, 0o755) {
            Ok(()) => {}
            Err(e) if e.errno() == Errno::ENOENT => {
                make_parents(root, hierarchy, path)?;
                continue;
            }
            Err(e) if e.errno() == Errno::EEXIST => {
                let dir = file::open(root, &full, libc::O_DIRECTORY, 0, Resolve::BeneathNoLinks)?;
                if !processes_below(dir.as_fd())?.is_empty() {
                    return Err(Error::new(Code::Exists, "it is there already and holds processes")
                        .hint("give the container a linux.cgroupsPath of its own"));
                }
            }
            Err(e) => return Err(e.into()),
        }
        match file::open(root, &full, libc::O_DIRECTORY, 0, Resolve::BeneathNoLinks) {
            Err(e) if e.errno() == Errno::ENOENT => {}
            other => {
                let dir = other?;
                inherit_cpuset(root, hierarchy, &full, dir.as_fd())?;
                if hierarchy.name.is_empty() {
                    pass_controllers_down(root, &full)?;
                }
                return Ok(dir);
            }
        }
    }
    Err(Error::new(Code::System, "its parent is being removed again and again"))
}

/// Makes what leads to the container's own cgroup.
fn make_parents(root: BorrowedFd<'_>, hierarchy: &Hierarchy, path: &Path) -> Result<()> {
    let mut here = PathBuf::from(&hierarchy.name);
    for component in path.parent().into_iter().flat_map(Path::components) {
        here.push(component);
        match file::mkdir(root, &here, 0o755) {
            Err(e) if e.errno() != Errno::EEXIST => return Err(e.into()),
            _ => {}
        }
        let dir = file::open(root, &here, libc::O_DIRECTORY, 0, Resolve::BeneathNoLinks)?;
        inherit_cpuset(root, hierarchy, &here, dir.as_fd())?;
    }
    Ok(())
}

/// A version 1 cpuset starts without CPUs and memory nodes, and nothing can run in it before it has some: it gets
/// its parent's, and the parent its own parent's where it has none either.
fn inherit_cpuset(
    root: BorrowedFd<'_>,
    hierarchy: &Hierarchy,
    full: &Path,
    dir: BorrowedFd<'_>,
) -> Result<()> {
    if hierarchy.unified || !hierarchy.controllers().iter().any(|c| c == "cpuset") {
        return Ok(());
    }
    for name in ["cpuset.cpus", "cpuset.mems"] {
        let own = file::read(dir, name, LONGEST, Resolve::Beneath)?;
        if own.trim_ascii().is_empty() {
            fill_cpuset(root, full, name)?;
        }
    }
    Ok(())
}

fn fill_cpuset(root: BorrowedFd<'_>, full: &Path, name: &str) -> Result<Vec<u8>> {
    let file = full.join(name);
    let own = file::read(root, &file, LONGEST, Resolve::BeneathNoLinks)?;
    let Some(parent) = full.parent().filter(|_| own.trim_ascii().is_empty()) else { return Ok(own) };
    let inherited = fill_cpuset(root, parent, name)?;
    file::write_to(root, &file, inherited.trim_ascii(), Resolve::BeneathNoLinks)?;
    Ok(inherited)
}

/// On version 2 a cgroup has the controllers that its parent passes down (`cgroup.subtree_control`): those that
/// are missing on the way to `full` are added.
fn pass_controllers_down(root: BorrowedFd<'_>, full: &Path) -> Result<()> {
    let mut here = PathBuf::new();
    for component in full.components() {
        let read = |name: &str| file::read(root, here.join(name), LONGEST, Resolve::BeneathNoLinks);
        let passed = String::from_utf8_lossy(&read("cgroup.subtree_control")?).into_owned();
        let available = String::from_utf8_lossy(&read("cgroup.controllers")?).into_owned();
        let is_passed = |name: &str| passed.split_whitespace().any(|p| p == name);
        for controller in available.split_whitespace().filter(|c| !is_passed(c)) {
            // One that can't be passed down (processes are in this very cgroup, or it is threaded) is missed by
            // the isolator that needs it, which can say what for.
            let file = here.join("cgroup.subtree_control");
            let _ = file::write_to(root, file, format!("+{controller}").as_bytes(), Resolve::BeneathNoLinks);
        }
        here.push(component);
    }
    Ok(())
}

fn remove_one(root: BorrowedFd<'_>, hierarchy: &Hierarchy, path: &Path, keep: usize) -> Result<()> {
    let full = Path::new(&hierarchy.name).join(path);
    let depth = path.components().count();
    if depth > keep {
        remove_tree(root, &full)?;
    }
    let mut parent = path.parent();
    for _ in keep + 1..depth {
        let Some(made) = parent else { break };
        if file::rmdir(root, Path::new(&hierarchy.name).join(made)).is_err() {
            break; // another container is in it
        }
        parent = made.parent();
    }
    Ok(())
}

/// Removes a cgroup and all below it. A process that has been killed is gone from its cgroup a moment after
/// it is reaped, so a busy one is tried again.
fn remove_tree(root: BorrowedFd<'_>, path: &Path) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(2);
    loop {
        let failure = match file::rmdir(root, path) {
            Ok(()) => return Ok(()),
            Err(e) if e.errno() == Errno::ENOENT => return Ok(()),
            Err(e) if e.errno() == Errno::EBUSY => e,
            Err(e) => return Err(e.into()),
        };
        let dir = file::open(root, path, libc::O_DIRECTORY, 0, Resolve::BeneathNoLinks)?;
        for child in children(dir.as_fd())? {
            remove_tree(dir.as_fd(), Path::new(&child))?;
        }
        if Instant::now() > deadline {
            return Err(failure.into());
        }
        std::thread::sleep(Duration::from_micros(500));
    }
}

/// The cgroups in the cgroup `dir`: its entries that are directories.
fn children(dir: BorrowedFd<'_>) -> Result<Vec<std::ffi::OsString>> {
    let mut found = Vec::new();
    for name in file::list(dir)? {
        if file::stat_at(dir, &name).is_ok_and(|s| s.st_mode & libc::S_IFMT == libc::S_IFDIR) {
            found.push(name);
        }
    }
    Ok(found)
}

fn processes_below(dir: BorrowedFd<'_>) -> Result<Vec<i32>> {
    let text = match file::read(dir, "cgroup.procs", LONGEST, Resolve::Beneath) {
        Err(e) if e.errno() == Errno::ENODEV => return Ok(Vec::new()),
        other => other?,
    };
    let mut found: Vec<i32> =
        String::from_utf8_lossy(&text).lines().filter_map(|line| line.parse().ok()).collect();
    for child in children(dir)? {
        if let Ok(child) = file::open(dir, &child, libc::O_DIRECTORY, 0, Resolve::BeneathNoLinks) {
            found.extend(processes_below(child.as_fd())?);
        }
    }
    Ok(found)
}

/// A container's cgroups, open.
#[derive(Debug)]
pub struct Tree {
    version: Version,
    dirs: Vec<(Hierarchy, OwnedFd)>,
}

impl Tree {
    /// No cgroups at all, for a machine or a user that has none.
    pub fn none() -> Self {
        Self { version: Version::V1, dirs: Vec::new() }
    }

    /// The unified directory, which a child is cloned into.
    pub fn unified(&self) -> Option<BorrowedFd<'_>> {
        self.dirs.iter().find(|(h, _)| h.unified).map(|(_, dir)| dir.as_fd())
    }

    /// Moves the calling process, which must have one thread, into the version 1 hierarchies.
    ///
    /// # Errors
    /// `ENOSPC` where a cpuset has no CPU, `EPERM`.
    pub fn enter(&self) -> Result<()> {
        for (hierarchy, dir) in self.dirs.iter().filter(|(h, _)| !h.unified) {
            file::write_to(dir.as_fd(), "tasks", b"0", Resolve::Beneath)
                .context(|| format!("entering the container's cgroup in hierarchy {:?}", hierarchy.name))?;
        }
        Ok(())
    }

    /// The numbers of the open directories: what a child must not close before it has entered them.
    pub fn descriptors(&self) -> impl Iterator<Item = i32> {
        self.dirs.iter().map(|(_, dir)| dir.as_raw_fd())
    }

    /// The same directories, as the isolators get them.
    pub fn into_handles(self) -> Cgroup {
        let dirs = self.dirs.into_iter().map(|(hierarchy, dir)| (hierarchy.controllers(), dir)).collect();
        Cgroup::new(self.version.into(), dirs)
    }

    /// Whether a process lives in the cgroups or below: asked of the unified tree where there is one, which
    /// knows (`cgroup.events`), else of every hierarchy.
    fn is_populated(&self) -> Result<bool> {
        let Some(dir) = self.unified() else { return Ok(!self.processes()?.is_empty()) };
        let events = file::read(dir, "cgroup.events", LONGEST, Resolve::Beneath)?;
        Ok(String::from_utf8_lossy(&events).lines().any(|line| line == "populated 1"))
    }

    /// The PIDs of all processes in the cgroups and below, each once.
    ///
    /// # Errors
    /// Whatever reading says.
    pub fn processes(&self) -> Result<Vec<i32>> {
        let mut found = Vec::new();
        for (_, dir) in &self.dirs {
            found.extend(processes_below(dir.as_fd())?);
        }
        found.sort_unstable();
        found.dedup();
        Ok(found)
    }

    /// Sends `signal` to every process: by `cgroup.kill` where the kernel has it (Linux 5.14, version 2) and
    /// the signal is `SIGKILL`, else one by one.
    ///
    /// # Errors
    /// Whatever reading says; a process that is gone is no error.
    pub fn signal_all(&self, signal: i32) -> Result<()> {
        if signal == libc::SIGKILL {
            self.thaw();
            if let Some(dir) = self.unified() {
                let _ = file::write_to(dir, "cgroup.kill", b"1", Resolve::Beneath);
            }
        }
        for pid in self.processes()? {
            match process::kill(pid, signal) {
                Err(e) if e.errno() != Errno::ESRCH => return Err(e.into()),
                _ => {}
            }
        }
        Ok(())
    }

    /// A frozen process does not die of a signal on version 1 before it is thawed.
    fn thaw(&self) {
        for (hierarchy, dir) in &self.dirs {
            if hierarchy.controllers().iter().any(|c| c == "freezer") {
                let _ = file::write_to(dir.as_fd(), "freezer.state", b"THAWED", Resolve::Beneath);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_climbs_is_refused() {
        for bad in ["/a/../../b", "../x", "/", "/a\nb"] {
            let error = place("x", Some(Path::new(bad))).unwrap_err().to_string();
            assert!(error.contains("linux.cgroupsPath"), "{error}");
        }
    }

    #[test]
    fn the_own_cgroup_is_found_by_controller_and_for_the_unified_tree() {
        let text = "4:memory:/a/b\n2:cpu,cpuacct:/c\n9:name=systemd:/d\n0::/e\n";
        let of = |name: &str, unified| own_path(text, &Hierarchy { name: name.into(), unified });
        assert_eq!(of("memory", false), Path::new("/a/b"));
        assert_eq!(of("cpu,cpuacct", false), Path::new("/c"));
        assert_eq!(of("systemd", false), Path::new("/d"));
        assert_eq!(of("unified", true), Path::new("/e"));
        assert_eq!(of("pids", false), Path::new("/"));
    }
}
