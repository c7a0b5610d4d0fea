//! The mounts of the configuration (runtime-spec 1.3, config.md, "Mounts").

use std::path::{Path, PathBuf};

use coracle_isolator_volume::host_path;
use coracle_sys::mount::{Attributes, Propagation, attr};
use oci_spec::runtime::{Linux, Mount};
use serde::Serialize;

use super::below_root;
use super::id_maps::{self, IdMap};
use super::mount_options::{self, Options};
use crate::error::{Code, Error, Result};

/// One mount, as the child makes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MountPlan {
    /// Where the configuration has it, for errors: `/mounts/3`.
    pub field: String,
    /// Where it goes, below the root.
    pub target: PathBuf,
    /// Whether a symbolic link there is covered itself, not what it leads to.
    pub on_link: bool,
    /// What is mounted.
    pub source: Source,
    /// The attributes of the mount itself.
    #[serde(skip)]
    pub attributes: Attributes,
    /// The attributes of the mount and of all below it.
    #[serde(skip)]
    pub recursive: Attributes,
    /// Whether what it covers is copied into it.
    pub copy_up: bool,
    /// How the owners of its files are mapped.
    pub id_map: Option<IdMap>,
    /// The attributes of its source (of [`attr`]) that a bind mount loses where the kernel lets it.
    #[serde(skip)]
    pub loses: u64,
    /// The attributes of its source (of [`attr`]) that it was asked to lose, and may not.
    #[serde(skip)]
    pub locked: u64,
    /// The SELinux label of its files, where it is a new file system (`linux.mountLabel`).
    pub label: Option<String>,
    /// The options as the configuration has them.
    pub options: Vec<String>,
}

impl MountPlan {
    /// Whether it is a procfs or sysfs, or is mounted where these belong.
    pub fn shows_kernel(&self) -> bool {
        self.is_new("proc")
            || self.is_new("sysfs")
            || self.target == Path::new("proc")
            || self.target == Path::new("sys")
    }

    /// Whether it is read-only, but only once the mount points and devices in it are made.
    pub fn is_filled_later(&self) -> bool {
        let is_read_only = (self.attributes.set | self.recursive.set) & attr::RDONLY != 0;
        let is_new = matches!(self.source, Source::New { .. });
        let is_filled = self.is_new("tmpfs") || is_new && self.target == Path::new("dev");
        is_read_only && (is_filled || matches!(self.source, Source::Cgroups { .. }))
    }

    /// The same mount after the mounts `earlier`, in a container whose root is at `rootfs`.
    pub fn placed(mut self, earlier: &[Mount], rootfs: &Path) -> Self {
        self.target = below_root(host_path::target(&Path::new("/").join(&self.target), rootfs));
        if let Source::Bind { path, recursive, link: Link::Followed } = &self.source
            && let Some(path) = host_path::inside(earlier, path, rootfs)
        {
            self.source = Source::Inside { path, recursive: *recursive };
        }
        self
    }

    /// The same mount, which loses the attributes of its source as soon as any attribute is named, as with runc and crun: in
    /// a user namespace (`in_user`) but for those that the kernel locks there (mount_namespaces(7)): who asks for such a one
    /// by name is refused. It is the runtime that opens the source, so the kernel would not.
    pub fn forgetful(mut self, in_user: bool) -> Self {
        const LOCKED: u64 = attr::RDONLY | attr::NOSUID | attr::NODEV | attr::NOEXEC;
        let is_bound = matches!(self.source, Source::Bind { .. } | Source::Inside { .. });
        if is_bound && (self.attributes.set | self.attributes.clear) != 0 {
            let all = if in_user { attr::NOSYMFOLLOW } else { LOCKED | attr::NOSYMFOLLOW };
            self.loses = all & !self.attributes.set;
            self.locked = if in_user { self.attributes.clear & LOCKED } else { 0 };
        }
        self
    }

    /// Whether it is a tmpfs that takes the permissions of the directory it covers, as runc's does.
    pub fn takes_mode(&self) -> bool {
        self.is_new("tmpfs") && !self.has_parameter("mode")
    }

    /// Whether it is a new file system with the parameter `name`.
    pub fn has_parameter(&self, name: &str) -> bool {
        matches!(&self.source, Source::New { parameters, .. } if parameters.iter().any(|(own, _)| own == name))
    }

    /// Whether it is a new file system of the type `fstype`.
    pub fn is_new(&self, fstype: &str) -> bool {
        matches!(&self.source, Source::New { fstype: own, .. } if own == fstype)
    }
}

/// What is mounted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Source {
    /// A file or directory of the host.
    Bind {
        /// Its absolute path.
        path: PathBuf,
        /// With what is mounted below it.
        recursive: bool,
        /// What is done where it is a symbolic link.
        link: Link,
    },
    /// What an earlier mount shows in the container itself.
    Inside {
        /// Its path below the container's root.
        path: PathBuf,
        /// With what is mounted below it.
        recursive: bool,
    },
    /// A new file system.
    New {
        /// Its type, such as `tmpfs`.
        fstype: String,
        /// What mountinfo shows as its source.
        source: Option<String>,
        /// Its parameters: a name, and a value where the parameter is no flag.
        parameters: Vec<(String, Option<String>)>,
    },
    /// The container's own view of the cgroup hierarchies.
    Cgroups {
        /// Of the unified one alone.
        unified: bool,
    },
    /// What is mounted there already: only its attributes change.
    Present,
}

/// What is done with a source that is a symbolic link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Link {
    /// What it leads to on the host is mounted.
    Followed,
    /// The link itself is mounted (`src-nofollow`).
    Mounted,
    /// A link like it is made in the container (`copy-symlink`).
    Copied,
    /// It is refused, and so is one anywhere on the way (`src-nolinks`).
    Refused,
}

/// The plan of the mount `mount`, number `index` of the configuration.
///
/// # Errors
/// `InvalidSpec`, naming the option.
pub fn plan(index: usize, mount: &Mount, linux: &Linux) -> Result<MountPlan> {
    let field = format!("/mounts/{index}");
    let words = mount.options().clone().unwrap_or_default();
    let mut options = Options::parse(&words);
    if mount.typ().as_deref() == Some("bind") {
        options.bind.get_or_insert(false);
    }
    let id_map = id_maps::plan(&field, mount, options.id_map.take(), linux)?;
    let plan = MountPlan {
        target: below_root(mount.destination()),
        on_link: options.on_link,
        source: source(&field, mount, &options)?,
        attributes: options.attributes,
        recursive: options.recursive,
        copy_up: options.copy_up,
        id_map,
        loses: 0,
        locked: 0,
        label: None,
        options: words,
        field,
    };
    refuse_combinations(&plan, &options)?;
    Ok(plan)
}

/// Options that mean nothing for what is mounted are refused, not dropped.
fn refuse_combinations(plan: &MountPlan, options: &Options) -> Result<()> {
    let is_bind = matches!(plan.source, Source::Bind { .. });
    let is_mapped = plan.id_map.is_some();
    for (is_wrong, option, why) in [
        (plan.copy_up && !plan.is_new("tmpfs"), "tmpcopyup", "is for a tmpfs only"),
        (plan.copy_up && is_mapped, "tmpcopyup", "and mapped owners exclude each other"),
        (options.copy_link && !is_bind, "copy-symlink", "is for bind mounts only"),
        (options.link_itself && !is_bind, "src-nofollow", "is for bind mounts only"),
        (options.copy_link && options.link_itself, "copy-symlink", "and \"src-nofollow\" exclude each other"),
        (options.no_links && !is_bind, "src-nolinks", "is for bind mounts only"),
        (
            options.no_links && (options.copy_link || options.link_itself),
            "src-nolinks",
            "leaves no link to be copied or mounted",
        ),
    ] {
        if is_wrong {
            let at = mount_options::pointer(&plan.field, &plan.options, option);
            return Err(Error::new(Code::InvalidSpec, format!("{at}: {option:?} {why}")));
        }
    }
    if is_mapped && matches!(plan.source, Source::Cgroups { .. } | Source::Present) {
        let why = format!("{}: owners can't be mapped in a mount of this kind", plan.field);
        return Err(Error::new(Code::InvalidSpec, why));
    }
    Ok(())
}

fn source(field: &str, mount: &Mount, options: &Options) -> Result<Source> {
    let invalid = |why: String| Error::new(Code::InvalidSpec, format!("{field}/{why}"));
    let fstype = mount.typ().clone().unwrap_or_default();
    let takes_none_but = |what: &str, known: &[&str]| match options
        .parameters
        .iter()
        .find(|(name, _)| !known.contains(&name.as_str()))
    {
        Some((name, _)) => {
            let at = mount_options::pointer(field, mount.options().as_deref().unwrap_or_default(), name);
            Err(Error::new(Code::InvalidSpec, format!("{at}: {what} has no option {name:?}")))
        }
        None => Ok(()),
    };
    if options.remount {
        takes_none_but("a remount", &ACLS)?;
        return Ok(Source::Present);
    }
    if let Some(recursive) = options.bind {
        takes_none_but("a bind mount", &PASSED_OVER)?;
        let path = mount.source().clone().filter(|p| !p.as_os_str().is_empty());
        let path = path.ok_or_else(|| invalid("source is missing".into()))?;
        let link = match options {
            Options { no_links: true, .. } => Link::Refused,
            Options { copy_link: true, .. } => Link::Copied,
            Options { link_itself: true, .. } => Link::Mounted,
            _ => Link::Followed,
        };
        return Ok(Source::Bind { path, recursive, link });
    }
    match fstype.as_str() {
        "" | "none" => {
            Err(invalid("type is missing".into()).hint("name a file system, or add the option \"bind\""))
        }
        "cgroup" | "cgroup2" => {
            takes_none_but("a cgroup mount", &OF_HOST)?;
            Ok(Source::Cgroups { unified: fstype == "cgroup2" })
        }
        _ => {
            let source = mount.source().as_ref().map(|s| s.to_string_lossy().into_owned());
            let mut parameters = options.parameters.clone();
            parameters.retain(|(name, _)| fstype != "tmpfs" || !ACLS.contains(&name.as_str()));
            Ok(Source::New { fstype, source, parameters })
        }
    }
}

/// Parameters of file systems that can do with and without ACLs. runc's callers give them to any: a tmpfs always has ACLs,
/// and a bind mount those of its source.
const ACLS: [&str; 2] = ["acl", "noacl"];

/// The same, and a word that podman leaves in the options of its volumes.
const PASSED_OVER: [&str; 3] = ["acl", "noacl", "nocopy"];

/// The parameters of cgroup2 (Linux, cgroup-v2.rst). They are those of the whole host's hierarchy, and the kernel
/// takes them from nobody in a cgroup namespace: asking for them changes nothing.
const OF_HOST: [&str; 6] = [
    "nsdelegate",
    "favordynmods",
    "memory_localevents",
    "memory_recursiveprot",
    "memory_hugetlb_accounting",
    "pids_localevents",
];

/// The propagation that `linux.rootfsPropagation` names, and whether it is for the whole tree.
///
/// # Errors
/// `InvalidSpec` for any other word.
pub fn propagation(word: &str) -> Result<(Propagation, bool)> {
    mount_options::propagation(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(json: serde_json::Value) -> Result<MountPlan> {
        plan(0, &serde_json::from_value(json).unwrap(), &Linux::default())
    }

    /// runtime-spec 1.3, config.md, "Linux mount options", without those of whole trees.
    const OF_THE_SPECIFICATION: &str = "async atime bind defaults dev diratime dirsync exec iversion lazytime loud mand \
        noatime nodev nodiratime noexec noiversion nolazytime nomand norelatime nostrictatime nosuid nosymfollow private \
        relatime remount ro rw shared silent slave strictatime suid symfollow sync unbindable";

    #[test]
    fn a_bind_mount_takes_each_option_of_the_specification_but_those_of_a_file_system() {
        for option in OF_THE_SPECIFICATION.split_whitespace().chain(["acl", "noacl", "nocopy"]) {
            let mount = serde_json::json!({"destination": "/a", "source": "/b", "options": ["bind", option]});
            let is_file_systems = ["dirsync", "lazytime", "mand", "sync"].contains(&option);
            assert_eq!(planned(mount).is_err(), is_file_systems, "{option}");
        }
    }

    #[test]
    fn a_tmpfs_is_not_asked_for_the_acls_that_it_has() {
        let new = |fstype: &str| {
            let options = ["acl", "noacl", "size=4k"];
            let mount = serde_json::json!({"destination": "/a", "type": fstype, "options": options});
            match planned(mount).unwrap().source {
                Source::New { parameters, .. } => parameters.len(),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!((new("tmpfs"), new("ext4")), (1, 3));
    }

    #[test]
    fn the_root_of_the_container_is_where_a_destination_starts() {
        let plan = planned(serde_json::json!({"destination": "/a//b/./c", "type": "tmpfs"})).unwrap();
        assert_eq!(plan.target, PathBuf::from("a/b/c"));
    }
}
