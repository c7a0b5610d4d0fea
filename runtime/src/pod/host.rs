//! The pods of a host, all together: who lists them, makes them, finds them again after a crash, and ends them for
//! maintenance. It keeps nothing of its own: whoever serves this can be killed at any moment.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use coracle_sys::file::{self, Resolve};
use coracle_sys::{Errno, event};
use serde::Deserialize;
use serde_json::{Value, json};

use super::disk;
use super::document;
use super::document::Resources;
use super::node::{self, Node};
use super::record::{self, BELOW, Directory, PODS, SOCKET};
use super::supervisor::{self, Beside};
use super::varlink::client;
use crate::cli::Global;
use crate::error::{Code, Context, Error, Result};
use crate::stages::spec::json::from_value;
use crate::state;
use crate::{image, isolators};

/// The interface of a host.
pub(super) const INTERFACE: &str = "io.coracle.Host";

/// Its socket, in the directory of pods.
pub const HOST_SOCKET: &str = "host.sock";

/// The file that says that the host takes no pods.
const DRAINING: &str = ".draining";

/// Within which time pods are ended where nobody says.
pub const DRAINED_WITHIN: Duration = Duration::from_secs(60);

/// How long a pod may take to say whether it is over that has not said so in time.
const ANSWERED_WITHIN: Duration = Duration::from_secs(1);

/// Gives each pod without a supervisor a new one. Returns their names, and what kept others from it.
///
/// # Errors
/// Whatever reading says.
pub fn recover(global: &Global) -> Result<(Vec<String>, Vec<Error>)> {
    let (mut recovered, mut failures) = (Vec::new(), Vec::new());
    for name in record::names(&global.root)? {
        let adopted = Directory::open(&global.root, &name).and_then(|dir| supervisor::adopt(global, dir));
        match adopted.context(|| format!("recovering pod {name:?}")) {
            Ok(true) => recovered.push(name),
            Err(e) if e.code() != Code::NotFound => failures.push(e),
            _ => {}
        }
    }
    failures.extend(disk::recover().err());
    Ok((recovered, failures))
}

/// The containers of all pods: the directory of states of each, and its name there.
///
/// # Errors
/// Whatever reading the directory of pods says.
pub fn members(root: &Path) -> Result<Vec<(PathBuf, String)>> {
    let mut found = Vec::new();
    for name in record::names(root)? {
        let mut below = vec![root.join(PODS).join(name).join(BELOW)];
        while let Some(states) = below.pop() {
            for id in state::ids(&states).unwrap_or_default() {
                below.push(states.join(&id).join(BELOW));
                found.push((states.clone(), id));
            }
        }
    }
    Ok(found)
}

/// Whether the host takes pods.
///
/// # Errors
/// `IllegalState` where it doesn't.
pub fn check_open(root: &Path) -> Result<()> {
    match file::open(file::CWD, root.join(PODS).join(DRAINING), libc::O_PATH, 0, Resolve::Host) {
        Ok(_) => Err(Error::new(Code::IllegalState, "the host is being drained, and takes no pods")
            .hint("coracle drain --off ends this")),
        Err(_) => Ok(()),
    }
}

/// Takes pods again.
///
/// # Errors
/// Whatever unlinking says but that it did.
fn reopen(root: &Path) -> Result<()> {
    let Ok(pods) = file::open_dir(root.join(PODS)) else { return Ok(()) };
    match file::unlink(pods.as_fd(), DRAINING) {
        Err(e) if e.errno() != Errno::ENOENT => Err(e.into()),
        _ => {
            let _ = file::rmdir(file::CWD, root.join(PODS));
            Ok(())
        }
    }
}

/// Takes no pods any more, and ends all that there are, each in its order. Returns the names of those that are not over
/// within the time.
///
/// # Errors
/// Whatever reading says.
pub fn drain(global: &Global, within: Duration) -> Result<Vec<String>> {
    let base = file::open_dir(if global.root.is_absolute() { "/" } else { "." })?;
    let pods = file::mkdir_all(base.as_fd(), global.root.join(PODS), 0o700)?;
    file::replace(pods.as_fd(), DRAINING, b"", 0o600).context(|| "closing the host for pods")?;
    let now = Instant::now();
    // Each has the time that its document gives it, and what is left then is killed.
    let (patience, deadline) = (now + within.mul_f64(0.8), now + within);
    let names = record::names(&global.root)?;
    let ending: Vec<_> = names.into_iter().map(|name| (end(global, &name, json!({})), name)).collect();
    let left = not_over(ending, patience).into_iter();
    // All of them are asked before one is waited for: another may never end.
    let killed: Vec<_> = left.map(|name| (end(global, &name, json!({ "graceSeconds": 0 })), name)).collect();
    let left = not_over(killed, deadline);
    // Who was over long before says so at once, but needs a moment for it.
    let asked: Vec<_> = left.into_iter().map(|name| (inspect(global, &name), name)).collect();
    Ok(asked.into_iter().filter_map(|(pod, name)| (!has_ended(pod)).then_some(name)).collect())
}

/// The names of those among `ending` that are not over at `moment`.
fn not_over(ending: Vec<(Option<client::Client>, String)>, moment: Instant) -> Vec<String> {
    let is_over = |pod: Option<client::Client>| pod.is_some_and(|mut pod| is_over_by(&mut pod, moment));
    ending.into_iter().filter_map(|(pod, name)| (!is_over(pod)).then_some(name)).collect()
}

/// Asks the pod `name` to end.
fn end(global: &Global, name: &str, how: Value) -> Option<client::Client> {
    let dir = Directory::open(&global.root, name).ok()?;
    let mut pod = client::connect(dir.fd(), SOCKET).ok()?;
    pod.begin("io.coracle.Pod.Stop", how, &[], false).map(|()| pod).ok()
}

/// Asks the pod `name` how far it is.
fn inspect(global: &Global, name: &str) -> Option<client::Client> {
    let dir = Directory::open(&global.root, name).ok()?;
    let mut pod = client::connect_within(dir.fd(), SOCKET, ANSWERED_WITHIN).ok()?;
    pod.begin("io.coracle.Pod.Inspect", json!({}), &[], false).map(|()| pod).ok()
}

/// Whether the pod answers that it is over.
fn has_ended(pod: Option<client::Client>) -> bool {
    let told = pod.and_then(|mut pod| pod.reply().ok());
    let is_over = |phase: &Value| phase == "Succeeded" || phase == "Failed";
    told.is_some_and(|(reply, _)| is_over(&reply.parameters["pod"]["phase"]))
}

fn is_over_by(pod: &mut client::Client, moment: Instant) -> bool {
    let time = moment.saturating_duration_since(Instant::now());
    matches!(event::readable(&[pod.fd()], Some(time)).as_deref(), Ok([true])) && pod.reply().is_ok()
}

/// What the method `method` of `io.coracle.Host` replies, asked by who is on the host itself.
///
/// # Errors
/// What it fails with.
pub fn call(global: &Global, method: &str, given: Value) -> Result<Value> {
    let service = Service::new(global);
    let unknown = || Error::new(Code::Usage, format!("{INTERFACE} has no {method:?}"));
    service.perform(method, given)?.ok_or_else(unknown)
}

/// What `io.coracle.Host` does.
pub(super) struct Service {
    global: Global,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Create {
    document: Value,
    #[serde(default)]
    parent: Option<String>,
    #[serde(default)]
    store: Option<PathBuf>,
    #[serde(default)]
    own_users: bool,
    #[serde(default)]
    network: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Below {
    #[serde(default)]
    parent: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Named {
    name: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Limits {
    name: String,
    resources: Resources,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Prune {
    #[serde(default)]
    store: Option<PathBuf>,
    #[serde(default)]
    max_age_days: Option<u64>,
    #[serde(default)]
    keep_bytes: Option<u64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Drain {
    #[serde(default)]
    within_seconds: Option<u64>,
    #[serde(default)]
    off: bool,
}

fn prune(given: &Prune) -> Result<Value> {
    let store = image::store(given.store.as_deref());
    let gone = image::collect(&store, given.max_age_days, given.keep_bytes)?;
    Ok(json!({ "removed": gone }))
}

impl Service {
    /// The service of the pods below the root of `global`.
    pub(super) fn new(global: &Global) -> Self {
        Self { global: global.clone() }
    }

    /// What `method` says; `None` where there is no such method.
    ///
    /// # Errors
    /// What it fails with.
    pub(super) fn perform(&self, method: &str, given: Value) -> Result<Option<Value>> {
        let (global, root) = (&self.global, &self.global.root);
        let done = |()| json!({});
        match method {
            "List" => from_value(given).and_then(|given: Below| self.list(given.parent.as_deref())),
            "Create" => from_value(given).and_then(|given| self.create(given)),
            "Recover" => self.recover(),
            "Drain" => from_value(given).and_then(|given: Drain| self.drain(&given)),
            "PruneImages" => from_value(given).and_then(|given: Prune| prune(&given)),
            "Nodes" => from_value(given)
                .and_then(|given: Below| Ok(json!({ "nodes": node::list(root, given.parent.as_deref())? }))),
            "CreateNode" => from_value(given)
                .and_then(|given: Node| node::create(global, &given, &isolators::all(global)?).map(done)),
            "UpdateNode" => from_value(given).and_then(|given: Limits| {
                node::update(global, &given.name, given.resources, &isolators::all(global)?).map(done)
            }),
            "NodeUsage" => from_value(given).and_then(|given: Named| {
                Ok(json!({ "usage": node::usage(root, &given.name, &isolators::all(global)?)? }))
            }),
            "RemoveNode" => {
                from_value(given).and_then(|given: Named| node::remove(root, &given.name).map(done))
            }
            _ => return Ok(None),
        }
        .map(Some)
    }

    fn place(&self, name: &str, parent: Option<&str>) -> Value {
        let socket = self.global.root.join(PODS).join(name).join(SOCKET);
        json!({ "name": name, "socket": socket, "parent": parent })
    }

    fn list(&self, below: Option<&str>) -> Result<Value> {
        let mut pods = Vec::new();
        for name in record::names(&self.global.root)? {
            let record = Directory::open(&self.global.root, &name).and_then(|dir| dir.record());
            let parent = record.ok().flatten().and_then(|record| record.parent);
            if below.is_none_or(|node| node::is_below(parent.as_deref(), node)) {
                pods.push(self.place(&name, parent.as_deref()));
            }
        }
        Ok(json!({ "pods": pods }))
    }

    fn create(&self, given: Create) -> Result<Value> {
        let pod = document::parse(given.document.to_string().as_bytes())?;
        let name = pod.metadata.name.clone();
        let store = image::store(given.store.as_deref());
        let Create { parent, own_users, network, .. } = given;
        let place = self.place(&name, parent.as_deref());
        let beside = Beside { store, parent, own_users, network };
        supervisor::begin(&self.global, pod, beside).context(|| format!("making pod {name:?}"))?;
        Ok(json!({ "pod": place }))
    }

    fn recover(&self) -> Result<Value> {
        let (recovered, failures) = recover(&self.global)?;
        failures.into_iter().next().map_or(Ok(json!({ "pods": recovered })), Err)
    }

    fn drain(&self, given: &Drain) -> Result<Value> {
        if given.off {
            return reopen(&self.global.root).map(|()| json!({ "left": [] }));
        }
        let within = given.within_seconds.map_or(DRAINED_WITHIN, document::seconds);
        drain(&self.global, within).map(|left| json!({ "left": left }))
    }
}
