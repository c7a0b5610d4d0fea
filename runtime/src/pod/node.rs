//! The nodes of the tree below which pods stand: tenants, each with limits for all that is below it.
//!
//! `ROOT/.pods/.nodes/org~team.json` tells of one; no pod's name begins with a dot. Its cgroup is `/coracle/org/team`.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use coracle_isolator::Handles;
use coracle_isolator_host::Registry;
use coracle_sys::Errno;
use coracle_sys::file::{self, Resolve};
use oci_spec::runtime::Spec;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::document::{self, Resources};
use super::plan::{self, CGROUPS};
use super::record::{self, Directory, PODS};
use super::sandbox;
use crate::cgroup::{self, Manager, Place, Wanted};
use crate::cli::Global;
use crate::error::{Code, Context, Error, Result};
use crate::state;

/// The directory of nodes in that of pods.
const NODES: &str = ".nodes";

/// The longest record, in bytes.
const LONGEST: u64 = 1 << 20;

/// A node.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Node {
    /// Its path: `org/team`.
    pub name: String,
    /// Limits of all that is below it.
    #[serde(default)]
    pub resources: Resources,
    /// Whether pods below it get users of their own.
    #[serde(default)]
    pub own_users: bool,
}

/// What is on disk of one.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Record {
    node: Node,
    /// Its cgroups. Written before they are made.
    cgroup: Option<Place>,
}

/// Whether the node `parent` is `node`, or below it.
pub fn is_below(parent: Option<&str>, node: &str) -> bool {
    let rest = parent.and_then(|parent| parent.strip_prefix(node));
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The paths of the nodes above `name`, and itself last.
fn ancestors(name: &str) -> impl Iterator<Item = &str> {
    name.match_indices('/').map(|(at, _)| &name[..at]).chain([name])
}

fn directory(root: &Path) -> Result<Option<OwnedFd>> {
    match file::open_dir(root.join(PODS).join(NODES)) {
        Err(e) if e.errno() == Errno::ENOENT => Ok(None),
        opened => Ok(Some(opened?)),
    }
}

fn file_name(name: &str) -> String {
    format!("{}.json", state::name(name))
}

fn read(root: &Path, name: &str) -> Result<Option<Record>> {
    let Some(dir) = directory(root)? else { return Ok(None) };
    let text = match file::read(dir.as_fd(), file_name(name), LONGEST, Resolve::BeneathNoLinks) {
        Err(e) if e.errno() == Errno::ENOENT => return Ok(None),
        text => text?,
    };
    let malformed = |e| Error::new(Code::System, format!("the record of node {name:?} is malformed: {e}"));
    serde_json::from_slice(&text).map(Some).map_err(malformed)
}

fn found(root: &Path, name: &str) -> Result<Record> {
    read(root, name)?.ok_or_else(|| Error::new(Code::NotFound, format!("there is no node {name:?}")))
}

fn write(root: &Path, record: &Record) -> Result<()> {
    let base = file::open_dir(if root.is_absolute() { "/" } else { "." })?;
    let dir = file::mkdir_all(base.as_fd(), root.join(PODS).join(NODES), 0o700)?;
    let text = serde_json::to_vec(record).map_err(Error::system)?;
    Ok(file::replace(dir.as_fd(), &file_name(&record.node.name), &text, 0o600)?)
}

/// All nodes, in order; with `below`, that one and those below it.
///
/// # Errors
/// Whatever reading says.
pub fn list(root: &Path, below: Option<&str>) -> Result<Vec<Node>> {
    let Some(dir) = directory(root)? else { return Ok(Vec::new()) };
    let names = file::list(dir.as_fd())?.into_iter().filter_map(|name| name.into_string().ok());
    let names = names.filter_map(|name| Some(name.strip_suffix(".json")?.replace('~', "/")));
    let mut names: Vec<String> =
        names.filter(|name| below.is_none_or(|node| is_below(Some(name), node))).collect();
    names.sort();
    let node = |name: String| Ok(read(root, &name)?.map(|record| record.node));
    names.into_iter().filter_map(|name| node(name).transpose()).collect()
}

/// Whether a pod below `parent` gets users of its own, whatever its document says.
///
/// # Errors
/// Whatever reading says.
pub fn wants_own_users(root: &Path, parent: Option<&str>) -> Result<bool> {
    for name in parent.into_iter().flat_map(ancestors) {
        if read(root, name)?.is_some_and(|record| record.node.own_users) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// How many of the nodes above a new pod below `parent` must stay when it goes: those on record, and those that were there
/// before any pod, of which `there` tells how many are there now.
///
/// # Errors
/// Whatever reading says.
pub fn kept(root: &Path, parent: &str, there: usize) -> Result<usize> {
    let records = record::names(root)?.into_iter().filter_map(|name| {
        let record = Directory::open(root, &name).and_then(|dir| dir.record());
        record.ok().flatten()
    });
    let others: Vec<(Option<String>, usize)> =
        records.map(|record| (record.parent, record.kept_nodes)).collect();
    let mut kept = 0;
    for (depth, name) in (1..).zip(ancestors(parent)) {
        let mut below = others.iter().filter(|(parent, _)| is_below(parent.as_deref(), name)).peekable();
        let is_old = depth <= there && (below.peek().is_none() || below.any(|(_, kept)| *kept >= depth));
        if is_old || read(root, name)?.is_some() {
            kept = depth;
        }
    }
    Ok(kept)
}

/// Makes a node, and those above it that are missing, which have no limits. The same again is the same.
///
/// # Errors
/// `Exists` for another of this name; `Unsupported` where systemd makes cgroups, whose slices have limits of their own.
pub fn create(global: &Global, wanted: &Node, isolators: &Registry) -> Result<()> {
    plan::check_parent(Some(&wanted.name))?;
    document::check_resources(&wanted.resources)?;
    for name in ancestors(&wanted.name) {
        let is_last = name == wanted.name;
        let plain = Node { name: name.to_owned(), resources: Resources::default(), own_users: false };
        let node = if is_last { wanted.clone() } else { plain };
        match read(&global.root, name)? {
            Some(there) if is_last && json!(there.node) != json!(node) => {
                return Err(Error::new(Code::Exists, format!("node {name:?} already exists"))
                    .hint("update it, or choose another name"));
            }
            Some(_) if !is_last => continue,
            _ => make(global, node, isolators).context(|| format!("making node {name:?}"))?,
        }
    }
    Ok(())
}

fn make(global: &Global, node: Node, isolators: &Registry) -> Result<()> {
    if global.cgroups.by == Manager::Systemd {
        return Err(Error::new(Code::Unsupported, "a node is a slice of systemd")
            .hint("systemctl set-property coracle-NODE.slice limits it"));
    }
    let path = format!("/{CGROUPS}/{}", node.name);
    let mut cgroup = cgroup::place("node", Some(Path::new(&path)), global.cgroups)?;
    let is_there = |place: &Place| place.at.iter().all(|site| site.keep == site.path.components().count());
    let was_there = cgroup.as_ref().is_some_and(is_there);
    for site in cgroup.iter_mut().flat_map(|place| &mut place.at) {
        // A node goes by itself, and the last of them with the cgroup of all.
        let depth = site.path.components().count();
        site.keep = if depth > 2 { depth - 1 } else { 0 };
    }
    let mut record = Record { node, cgroup };
    write(&global.root, &record)?;
    if let (false, Some(place)) = (was_there, &mut record.cgroup) {
        place.make(&Wanted::default())?;
    }
    limit(&record, isolators, || Ok(()))
}

/// Sets the limits of a node and has them kept: all, or none.
fn limit(record: &Record, isolators: &Registry, keep: impl FnOnce() -> Result<()>) -> Result<()> {
    let Some(place) = &record.cgroup else { return keep() };
    let limits = plan::resources(&record.node.resources);
    sandbox::limit(&record.node.name, place.open()?.into_handles(), &limits, isolators, keep)
}

/// Sets limits of a node, over those that it has.
///
/// # Errors
/// `NotFound`; what an isolator says, and then the limits are as they were.
pub fn update(global: &Global, name: &str, resources: Resources, isolators: &Registry) -> Result<()> {
    document::check_resources(&resources)?;
    let mut record = found(&global.root, name)?;
    record.node.resources = resources.over(&record.node.resources);
    limit(&record, isolators, || write(&global.root, &record)).context(|| format!("limiting node {name:?}"))
}

/// What all below a node use together.
///
/// # Errors
/// `NotFound`; what an isolator says.
pub fn usage(root: &Path, name: &str, isolators: &Registry) -> Result<Value> {
    let record = found(root, name)?;
    let none = || Error::new(Code::IllegalState, "there are no cgroups");
    let cgroup = record.cgroup.ok_or_else(none)?.open()?.into_handles();
    let spec = Spec::default();
    Ok(json!(isolators.usage(&Handles { id: name, pidfd: None, cgroup: &cgroup, spec: &spec })?))
}

/// Removes a node below which nothing stands. One that is not there is gone already.
///
/// # Errors
/// `IllegalState` where pods or nodes are below it.
pub fn remove(root: &Path, name: &str) -> Result<()> {
    let Some(record) = read(root, name)? else { return Ok(()) };
    let pod = record::names(root)?.into_iter().find(|pod| {
        let record = Directory::open(root, pod).and_then(|dir| dir.record()).ok().flatten();
        record.is_some_and(|record| is_below(record.parent.as_deref(), name))
    });
    let node = list(root, Some(name))?.into_iter().map(|node| node.name).find(|other| other != name);
    let below = pod.map(|pod| format!("pod {pod:?}")).or(node.map(|node| format!("node {node:?}")));
    if let Some(below) = below {
        return Err(Error::new(Code::IllegalState, format!("{below} is below node {name:?}")));
    }
    record.cgroup.as_ref().map_or(Ok(()), Place::remove).context(|| format!("removing node {name:?}"))?;
    if let Some(dir) = directory(root)? {
        file::unlink(dir.as_fd(), file_name(name))?;
        let _ = file::rmdir(file::CWD, root.join(PODS).join(NODES));
        super::network::tidy(root);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_below_another_by_whole_names() {
        assert!(is_below(Some("org/team"), "org"));
        assert!(is_below(Some("org"), "org"));
        assert!(!is_below(Some("organ"), "org"));
        assert!(!is_below(None, "org"));
        assert_eq!(ancestors("a/b/c").collect::<Vec<_>>(), ["a", "a/b", "a/b/c"]);
    }
}
