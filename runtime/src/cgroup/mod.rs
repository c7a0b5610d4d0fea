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

mod make;
mod tree;
mod below;
mod freeze;
mod remove;
mod room;
mod systemd;

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use coracle_isolator::CgroupVersion;
use coracle_sys::Errno;
use coracle_sys::file::{self, Resolve};
use coracle_sys::identity;
use oci_spec::runtime::LinuxResources;
use serde::{Deserialize, Serialize};

pub use systemd::{Holder, Wanted};
pub use tree::Tree;

use crate::error::{Code, Context, Error, Result};

/// Where the kernel's cgroup file systems are mounted, by convention of every distribution.
const MOUNT_POINT: &str = "/sys/fs/cgroup";

/// The longest file of a cgroup that is read: the list of its processes.
const LONGEST: u64 = 16 << 20;

/// The longest name of a directory that Linux takes (`NAME_MAX`).
const LONGEST_NAME: usize = 255;

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

/// Who makes a container's cgroups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manager {
    /// The runtime itself, as directories of the cgroup file systems.
    Cgroupfs,
    /// systemd, as a scope.
    Systemd,
    /// Nobody: the container gets none.
    Disabled,
}

/// Whether the caller lacks the rights of the host's root, so that a container may have to go without cgroups.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Rootless {
    /// It does.
    Yes,
    /// It has them, or should fail.
    #[default]
    No,
    /// The kernel is asked.
    Auto,
}

impl Rootless {
    fn holds(self) -> bool {
        match self {
            Self::Yes => true,
            Self::No => false,
            Self::Auto => identity::is_rootless(),
        }
    }
}

/// How cgroups are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Management {
    /// By whom.
    pub by: Manager,
    /// With which rights.
    pub rootless: Rootless,
}

impl Management {
    /// For what goes below a cgroup that is there: in a scope of systemd, too, whoever it was made for makes cgroups.
    #[must_use]
    pub fn below(self) -> Self {
        let by = if self.by == Manager::Systemd { Manager::Cgroupfs } else { self.by };
        Self { by, ..self }
    }
}

/// Which cgroups a launch can do without, where its caller may not make them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Optional {
    /// None of a caller with rights.
    pub rootless: Rootless,
    /// Where they were asked for by name, that of the unified tree beside version 1: nothing is limited by it.
    pub is_asked: bool,
}

/// A container's own cgroup in each hierarchy: decided, perhaps not yet made. This is what the state records.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// What the machine's limits are written to.
    pub version: Version,
    /// One cgroup a hierarchy.
    pub at: Vec<Site>,
    /// The scope that systemd makes it as, where it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<systemd::Unit>,
    /// Whether those that the caller may not make can be left out.
    #[serde(skip)]
    pub optional: Optional,
}

/// A container's own cgroup in one hierarchy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Site {
    /// The hierarchy.
    pub hierarchy: Hierarchy,
    /// The cgroup's path below the hierarchy's root, without a leading slash.
    pub path: PathBuf,
    /// How many leading components of the path must stay when the container goes: they were there before.
    pub keep: usize,
}

impl Site {
    /// The path below [`MOUNT_POINT`].
    fn full(&self) -> PathBuf {
        Path::new(&self.hierarchy.name).join(&self.path)
    }

    fn depth(&self) -> usize {
        self.path.components().count()
    }

    /// How many leading components of the path are there, in the directory `root` of all hierarchies.
    fn existing(&self, root: BorrowedFd<'_>) -> usize {
        let mut here = PathBuf::from(&self.hierarchy.name);
        let is_there = |component: &Component<'_>| {
            here.push(component);
            file::stat_at(root, &here).is_ok()
        };
        self.path.components().take_while(is_there).count()
    }
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
    if file::file_system(root.as_fd())? == nix::sys::statfs::CGROUP2_SUPER_MAGIC {
        return Ok((Version::V2, vec![Hierarchy { name: String::new(), unified: true }]));
    }
    let mut found = Vec::new();
    for name in file::list(root.as_fd())? {
        let flags = libc::O_DIRECTORY | libc::O_NOFOLLOW;
        let dir = match file::open(root.as_fd(), &name, flags, 0, Resolve::BeneathNoLinks) {
            Ok(dir) => dir,
            // Links (`cpu` beside `cpu,cpuacct`) are other names of what is found anyway.
            Err(e) if matches!(e.errno(), Errno::ELOOP | Errno::ENOTDIR) => continue,
            Err(e) => return Err(e).context(|| "looking for cgroups"),
        };
        let kind = file::file_system(dir.as_fd())?;
        let unified = kind == nix::sys::statfs::CGROUP2_SUPER_MAGIC;
        if unified || kind == nix::sys::statfs::CGROUP_SUPER_MAGIC {
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

/// Whether the machine has version 2 alone.
///
/// # Errors
/// `ENOENT` where no cgroup file system is mounted.
pub fn is_unified() -> Result<bool> {
    Ok(file::file_system(mount_point()?.as_fd())? == nix::sys::statfs::CGROUP2_SUPER_MAGIC)
}

fn mount_point() -> Result<OwnedFd> {
    file::open_dir(MOUNT_POINT).context(|| "looking for cgroups")
}

/// Where `manager` puts the cgroups of container `id`, which wants them at `wanted` (the spec's
/// `linux.cgroupsPath`). Reads, and changes nothing.
///
/// systemd's are a scope, `SLICE:PREFIX:NAME`. Otherwise the path counts from the root of each hierarchy where it is
/// absolute, and from the runtime's own cgroup where it is relative. Where it is absent, it is `/ID`; for a
/// caller who is not root, `coracle-ID` beside its own cgroup on version 2 (one with processes in it could pass no
/// controller down) and below it on version 1.
///
/// # Errors
/// `InvalidSpec` where the path holds `..`, names no cgroup at all, or one that the kernel would not make.
pub fn place(id: &str, wanted: Option<&Path>, management: Management) -> Result<Option<Place>> {
    match management.by {
        Manager::Cgroupfs => place_directory(id, wanted, management.rootless).map(Some),
        Manager::Systemd => place_scope(id, wanted).map(Some),
        Manager::Disabled => Ok(None),
    }
}

/// systemd makes and removes what leads to the scope.
fn place_scope(id: &str, wanted: Option<&Path>) -> Result<Place> {
    let unit = systemd::Unit::new(id, wanted)?;
    let (version, hierarchies) = hierarchies()?;
    let site = |hierarchy| {
        let site = Site { hierarchy, path: unit.path(), keep: 0 };
        Site { keep: site.depth() - 1, ..site }
    };
    Ok(Place {
        version,
        at: hierarchies.into_iter().map(site).collect(),
        unit: Some(unit),
        optional: Optional::default(),
    })
}

fn place_directory(id: &str, wanted: Option<&Path>, rootless: Rootless) -> Result<Place> {
    let (version, hierarchies) = hierarchies()?;
    let asked = wanted.filter(|p| !p.as_os_str().is_empty());
    let is_user = asked.is_none() && identity::caller() != 0;
    let default = PathBuf::from(if is_user { format!("coracle-{id}") } else { format!("/{id}") });
    let wanted = asked.unwrap_or(&default);
    let is_name = |c: &Component<'_>| matches!(c, Component::Normal(_));
    let bad = wanted.components().any(|c| match c {
        Component::Normal(name) => name.len() > LONGEST_NAME || name.as_bytes().contains(&b'\n'),
        other => other == Component::ParentDir,
    }) || !wanted.components().any(|c| is_name(&c));
    if bad {
        return Err(Error::new(Code::InvalidSpec, format!("/linux/cgroupsPath is {wanted:?}"))
            .hint("name a cgroup below the root, without \"..\" and in components of at most 255 bytes"));
    }
    let own = if wanted.is_absolute() { Vec::new() } else { own_cgroups()? };
    let root = mount_point()?;
    let site = |hierarchy: Hierarchy| {
        let own = own_path(&own, &hierarchy);
        let base = if is_user && hierarchy.unified { own.parent().unwrap_or(&own) } else { &own };
        let path = base.join(wanted).components().filter(is_name).collect();
        let mut site = Site { hierarchy, path, keep: 0 };
        site.keep = site.existing(root.as_fd());
        site
    };
    let optional = Optional { rootless, is_asked: asked.is_some() };
    Ok(Place { version, at: hierarchies.into_iter().map(site).collect(), unit: None, optional })
}

fn own_cgroups() -> Result<Vec<u8>> {
    file::read(file::CWD, "/proc/self/cgroup", LONGEST, Resolve::Host)
        .context(|| "reading the runtime's own cgroups")
}

/// The path of the caller's own cgroup in `hierarchy`, from the text of `/proc/self/cgroup`.
fn own_path(text: &[u8], hierarchy: &Hierarchy) -> PathBuf {
    let controllers = if hierarchy.unified { String::new() } else { hierarchy.controllers().join(",") };
    // `NUMBER:CONTROLLERS:PATH`: a path is bytes, and may hold colons.
    text.split(|byte| *byte == b'\n')
        .map(|line| line.splitn(3, |byte| *byte == b':').skip(1))
        .find_map(|mut fields| (fields.next()? == controllers.as_bytes()).then(|| fields.next())?)
        .map_or_else(|| PathBuf::from("/"), |path| OsStr::from_bytes(path).into())
}

impl Place {
    /// The cgroups that the caller is in.
    ///
    /// # Errors
    /// `Unsupported` where no cgroup file system is mounted.
    pub fn callers() -> Result<Self> {
        let own = own_cgroups()?;
        let (version, hierarchies) = hierarchies()?;
        let site = |hierarchy: Hierarchy| {
            let path: PathBuf = own_path(&own, &hierarchy).components().skip(1).collect();
            Site { keep: path.components().count(), hierarchy, path }
        };
        let at = hierarchies.into_iter().map(site).collect();
        Ok(Self { version, at, unit: None, optional: Optional::default() })
    }

    /// Whether a caller who may not make the cgroup of `hierarchy` goes without.
    fn can_lack(&self, hierarchy: &Hierarchy) -> bool {
        let limits_nothing = hierarchy.unified && self.version == Version::V1;
        (limits_nothing || !self.optional.is_asked) && self.optional.rootless.holds()
    }

    /// Tells systemd of the new limits `resources`, where it made the cgroups.
    ///
    /// # Errors
    /// `System` where it refuses.
    pub fn tell(&self, resources: &LinuxResources) -> Result<()> {
        self.unit.as_ref().map_or(Ok(()), |unit| unit.set(resources, self.version))
    }

    /// Tells it of the old limits `old` again, where it was told of `new`.
    ///
    /// # Errors
    /// `System` where it refuses.
    pub fn tell_back(&self, new: &LinuxResources, old: &LinuxResources) -> Result<()> {
        self.unit.as_ref().map_or(Ok(()), |unit| unit.set_back(new, old, self.version))
    }

    /// The same, of which only the last component is the container's own: for a container whose record is lost.
    #[must_use]
    pub fn own_only(mut self) -> Self {
        for site in &mut self.at {
            site.keep = site.depth().saturating_sub(1);
        }
        self
    }

    /// Whether any of the cgroups is there.
    pub fn is_made(&self) -> bool {
        let Ok(root) = mount_point() else { return false };
        self.at.iter().any(|site| site.existing(root.as_fd()) == site.depth())
    }

    /// The host's paths of the cgroups, each with its hierarchy.
    pub fn paths(&self) -> impl Iterator<Item = (&Hierarchy, PathBuf)> {
        self.at.iter().map(|site| (&site.hierarchy, Path::new(MOUNT_POINT).join(site.full())))
    }

    /// Opens the cgroups, as far as they are there.
    ///
    /// # Errors
    /// Whatever opening says but that there is none.
    pub fn open(&self) -> Result<Tree> {
        let root = mount_point()?;
        let mut dirs = Vec::with_capacity(self.at.len());
        for site in &self.at {
            match file::open(root.as_fd(), site.full(), libc::O_DIRECTORY, 0, Resolve::BeneathNoLinks) {
                Ok(dir) => dirs.push((site.hierarchy.clone(), dir)),
                Err(e) if is_absent(e.errno()) => {}
                Err(e) => return Err(e).context(|| "opening the container's cgroups"),
            }
        }
        Ok(Tree { version: self.version, dirs, refused: None })
    }
}

/// Whether a failed call says that there is no such cgroup: a file of its parent may have its name.
fn is_absent(errno: Errno) -> bool {
    matches!(errno, Errno::ENOENT | Errno::ENOTDIR)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_names_no_cgroup_below_the_root_is_refused() {
        let long = format!("/{}", "y".repeat(256));
        for bad in ["/a/../../b", "../x", "/", ".", "./", "/.", "/a\nb", &long] {
            let error = place_directory("x", Some(Path::new(bad)), Rootless::Auto).unwrap_err().to_string();
            assert!(error.contains("/linux/cgroupsPath"), "{error}");
        }
    }

    #[test]
    fn the_own_cgroup_is_found_by_controller_and_for_the_unified_tree() {
        let text = b"4:memory:/a/b\n2:cpu,cpuacct:/c\n9:name=systemd:/d\n0::/e:\xff\n";
        let of = |name: &str, unified| own_path(text, &Hierarchy { name: name.into(), unified });
        assert_eq!(of("memory", false), Path::new("/a/b"));
        assert_eq!(of("cpu,cpuacct", false), Path::new("/c"));
        assert_eq!(of("systemd", false), Path::new("/d"));
        assert_eq!(of("unified", true), Path::new(OsStr::from_bytes(b"/e:\xff")));
        assert_eq!(of("pids", false), Path::new("/"));
    }
}
