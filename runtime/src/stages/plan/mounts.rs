//! What a mount's options mean (runtime-spec 1.3, config.md, "Mounts"; mount(8) for their names).

use std::path::{Path, PathBuf};

use coracle_sys::mount::{Attributes, Propagation, attr};
use oci_spec::runtime::Mount;
use serde::Serialize;

use super::below_root;
use crate::error::{Code, Error, Result};

/// One mount, as the child makes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MountPlan {
    /// Where the configuration has it, for errors: `mounts[3]`.
    pub field: String,
    /// Where it goes, below the root.
    pub target: PathBuf,
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
    /// The SELinux label of its files, where it is a new file system (`linux.mountLabel`).
    pub label: Option<String>,
    /// The options as the configuration has them.
    pub options: Vec<String>,
}

impl MountPlan {
    /// Whether it is a procfs or sysfs, or is mounted where these belong.
    pub fn shows_kernel(&self) -> bool {
        let is_kernel =
            matches!(&self.source, Source::New { fstype, .. } if fstype == "proc" || fstype == "sysfs");
        is_kernel || self.target == Path::new("proc") || self.target == Path::new("sys")
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
    Cgroups,
}

/// What one option does.
enum Meaning {
    Set(u64),
    Clear(u64),
    Propagate(Propagation, bool),
    Bind {
        recursive: bool,
    },
    CopyUp,
    Nothing,
    /// A parameter of the file system that the mount API knows as a flag of the same name.
    Flag,
}

/// The plan of the mount `mount`, number `index` of the configuration.
///
/// # Errors
/// `InvalidSpec` or `Unsupported`, naming the option.
pub fn plan(index: usize, mount: &Mount) -> Result<MountPlan> {
    let field = format!("mounts[{index}]");
    let options = mount.options().clone().unwrap_or_default();
    let mut attributes = Attributes::default();
    let mut recursive = Attributes::default();
    let mut bind = (mount.typ().as_deref() == Some("bind")).then_some(false);
    let mut copy_up = false;
    let mut parameters = Vec::new();
    for option in &options {
        let (name, is_recursive) = match meaning(option) {
            Some(_) => (option.as_str(), false),
            None => (option.strip_prefix('r').unwrap_or(option), true),
        };
        match meaning(name) {
            Some(Meaning::Set(bits)) => set(pick(is_recursive, &mut attributes, &mut recursive), bits),
            Some(Meaning::Clear(bits)) => pick(is_recursive, &mut attributes, &mut recursive).clear |= bits,
            Some(Meaning::Propagate(propagation, false)) if !is_recursive => {
                attributes.propagation = Some(propagation);
            }
            Some(Meaning::Propagate(propagation, true)) if !is_recursive => {
                recursive.propagation = Some(propagation);
            }
            Some(Meaning::Bind { recursive }) if !is_recursive => bind = Some(recursive),
            Some(Meaning::CopyUp) if !is_recursive => copy_up = true,
            Some(Meaning::Nothing) if !is_recursive => {}
            Some(Meaning::Flag) if !is_recursive => parameters.push((option.clone(), None)),
            _ => parameters.push(parameter(&field, option)?),
        }
    }
    let source = source(&field, mount, bind, parameters)?;
    if copy_up && !matches!(&source, Source::New { fstype, .. } if fstype == "tmpfs") {
        return Err(Error::new(
            Code::InvalidSpec,
            format!("{field}.options: \"tmpcopyup\" is for a tmpfs only"),
        ));
    }
    let target = below_root(mount.destination());
    Ok(MountPlan { field, target, source, attributes, recursive, copy_up, label: None, options })
}

fn pick<'a>(is_recursive: bool, one: &'a mut Attributes, tree: &'a mut Attributes) -> &'a mut Attributes {
    if is_recursive { tree } else { one }
}

fn source(
    field: &str,
    mount: &Mount,
    bind: Option<bool>,
    parameters: Vec<(String, Option<String>)>,
) -> Result<Source> {
    let fstype = mount.typ().clone().unwrap_or_default();
    if let Some(recursive) = bind {
        if let Some((name, _)) = parameters.first() {
            return Err(Error::new(
                Code::InvalidSpec,
                format!("{field}.options: a bind mount has no option {name:?}"),
            ));
        }
        let path = mount.source().clone().filter(|p| !p.as_os_str().is_empty());
        let path = path.ok_or_else(|| Error::new(Code::InvalidSpec, format!("{field}.source is missing")))?;
        return Ok(Source::Bind { path, recursive });
    }
    match fstype.as_str() {
        "" | "none" => Err(Error::new(Code::InvalidSpec, format!("{field}.type is missing"))
            .hint("name a file system, or add the option \"bind\"")),
        "cgroup" => Ok(Source::Cgroups),
        _ => {
            let source = mount.source().as_ref().map(|s| s.to_string_lossy().into_owned());
            Ok(Source::New { fstype, source, parameters })
        }
    }
}

fn parameter(field: &str, option: &str) -> Result<(String, Option<String>)> {
    if ["idmap", "ridmap", "remount", "copy-symlink", "src-nofollow", "dest-nofollow"].contains(&option) {
        return Err(Error::new(
            Code::Unsupported,
            format!("{field}.options: {option:?} is not supported yet"),
        )
        .hint("leave it out"));
    }
    Ok(match option.split_once('=') {
        Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
        None => (option.to_owned(), None),
    })
}

/// The ways to keep access times exclude each other, so each clears the others.
fn set(attributes: &mut Attributes, bits: u64) {
    if bits & attr::ATIME != 0 {
        attributes.set &= !attr::ATIME;
        attributes.clear |= attr::ATIME;
    }
    attributes.set |= bits;
}

fn meaning(option: &str) -> Option<Meaning> {
    use Meaning::{Clear, Flag, Nothing, Propagate, Set};
    Some(match option {
        "ro" => Set(attr::RDONLY),
        "rw" => Clear(attr::RDONLY),
        "nosuid" => Set(attr::NOSUID),
        "suid" => Clear(attr::NOSUID),
        "nodev" => Set(attr::NODEV),
        "dev" => Clear(attr::NODEV),
        "noexec" => Set(attr::NOEXEC),
        "exec" => Clear(attr::NOEXEC),
        "noatime" => Set(attr::NOATIME),
        "strictatime" => Set(attr::STRICTATIME),
        // What is neither `noatime` nor `strictatime` is `relatime`.
        "atime" | "relatime" | "norelatime" | "nostrictatime" => Clear(attr::ATIME),
        "nodiratime" => Set(attr::NODIRATIME),
        "diratime" => Clear(attr::NODIRATIME),
        "nosymfollow" => Set(attr::NOSYMFOLLOW),
        "symfollow" => Clear(attr::NOSYMFOLLOW),
        "shared" => Propagate(Propagation::Shared, false),
        "slave" => Propagate(Propagation::Slave, false),
        "private" => Propagate(Propagation::Private, false),
        "unbindable" => Propagate(Propagation::Unbindable, false),
        "rshared" => Propagate(Propagation::Shared, true),
        "rslave" => Propagate(Propagation::Slave, true),
        "rprivate" => Propagate(Propagation::Private, true),
        "runbindable" => Propagate(Propagation::Unbindable, true),
        "tmpcopyup" => Meaning::CopyUp,
        "bind" => Meaning::Bind { recursive: false },
        "rbind" => Meaning::Bind { recursive: true },
        "defaults" | "async" | "nomand" | "loud" | "nolazytime" => Nothing,
        "sync" | "dirsync" | "lazytime" | "mand" | "silent" => Flag,
        _ => return None,
    })
}

/// The propagation that `linux.rootfsPropagation` names, and whether it is for the whole tree.
///
/// # Errors
/// `InvalidSpec` for any other word.
pub fn propagation(word: &str) -> Result<(Propagation, bool)> {
    match meaning(word) {
        Some(Meaning::Propagate(propagation, recursive)) => Ok((propagation, recursive)),
        _ => Err(Error::new(Code::InvalidSpec, format!("linux.rootfsPropagation is {word:?}"))
            .hint("use shared, slave, private or unbindable, or one of them after r")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(json: serde_json::Value) -> Result<MountPlan> {
        plan(0, &serde_json::from_value(json).unwrap())
    }

    fn with_options(options: &[&str]) -> MountPlan {
        planned(serde_json::json!({"destination": "/d", "type": "tmpfs", "options": options})).unwrap()
    }

    #[test]
    fn words_become_attributes_and_the_rest_parameters() {
        let plan = with_options(&["nosuid", "ro", "size=64k", "mode=755"]);
        assert_eq!(plan.attributes.set, attr::NOSUID | attr::RDONLY);
        let Source::New { parameters, .. } = plan.source else { panic!() };
        assert_eq!(parameters, [("size".into(), Some("64k".into())), ("mode".into(), Some("755".into()))]);
    }

    #[test]
    fn the_last_way_to_keep_access_times_wins() {
        let plan = with_options(&["noatime", "strictatime"]);
        assert_eq!((plan.attributes.set, plan.attributes.clear), (attr::STRICTATIME, attr::ATIME));
    }

    #[test]
    fn a_leading_r_means_the_whole_tree() {
        let plan = with_options(&["rro", "rnosuid", "rslave"]);
        assert_eq!(plan.recursive.set, attr::RDONLY | attr::NOSUID);
        assert_eq!(plan.recursive.propagation, Some(Propagation::Slave));
        assert_eq!(plan.attributes, Attributes::default());
        assert_eq!(with_options(&["rrelatime"]).recursive.clear, attr::ATIME);
    }

    #[test]
    fn a_bind_mount_needs_a_source_and_takes_no_parameters() {
        let error = planned(serde_json::json!({"destination": "/d", "type": "bind"})).unwrap_err();
        assert_eq!(error.to_string(), "mounts[0].source is missing");
        let error =
            planned(serde_json::json!({"destination": "/d", "source": "/s", "options": ["rbind", "size=1"]}));
        assert!(error.unwrap_err().to_string().contains("a bind mount has no option \"size\""));
    }

    #[test]
    fn options_that_are_not_honoured_are_refused_by_name() {
        let error =
            planned(serde_json::json!({"destination": "/d", "type": "tmpfs", "options": ["remount"]}));
        assert!(error.unwrap_err().to_string().contains("\"remount\" is not supported yet"));
        let error =
            planned(serde_json::json!({"destination": "/d", "type": "ramfs", "options": ["tmpcopyup"]}));
        assert!(error.unwrap_err().to_string().contains("\"tmpcopyup\" is for a tmpfs only"));
    }

    #[test]
    fn the_root_of_the_container_is_where_a_destination_starts() {
        let plan = planned(serde_json::json!({"destination": "/a//b/./c", "type": "tmpfs"})).unwrap();
        assert_eq!(plan.target, PathBuf::from("a/b/c"));
    }
}
