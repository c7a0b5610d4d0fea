//! Launching a container of a pod: the stages, once, in a job of the supervisor.

use std::cell::Cell;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use coracle_image::bundle::{Bundle, STOP_SIGNAL};
use coracle_isolator::Kind;
use coracle_isolator_host::Registry;
use coracle_sys::{descriptor, signal};
use oci_spec::runtime::Spec;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::document::{Pod, PodSecurity, PullPolicy, Security};
use super::fs_group;
use super::job::{Job, Mouth};
use super::network::Networks;
use super::plan::{self as pods, Member, Plan};
use super::pull::may_be_pulled;
use super::record::Directory;
use super::sandbox::Sandbox;
use super::users::Range;
use super::volume;
use crate::cgroup::Management;
use crate::cli::{self, ImageRun};
use crate::error::{Code, Error, Result};
use crate::image::{self, Known};
use crate::stages::plan::Wish;
use crate::stages::spec::Loaded;
use crate::stages::watch::warden;
use crate::stages::{cleanup, isolate, plan, prepare, release, spawn};
use crate::state::{self, Record, State};

/// How long a launch may take, with the unpacking of an image that is in the store.
const WITHIN: Duration = Duration::from_secs(300);

/// How long the removal of a container may take.
const REMOVED_WITHIN: Duration = Duration::from_secs(60);

/// What a launch needs to know.
#[derive(Debug, Clone, Copy)]
pub struct Order<'a> {
    /// The pod's document.
    pub pod: &'a Pod,
    /// The pod's plan.
    pub plan: &'a Plan,
    /// The pod's directory.
    pub dir: &'a Directory,
    /// Where images are.
    pub store: &'a Path,
    /// What the container joins.
    pub sandbox: &'a Sandbox,
    /// Who makes its cgroups.
    pub cgroups: Management,
    /// The directory of the configuration.
    pub config: &'a Path,
    /// The pod's users, where they are not the host's.
    pub users: Option<Range>,
    /// Where the files of `/etc` are that its networks give.
    pub networks: &'a Networks,
}

impl<'a> Order<'a> {
    fn volumes(self) -> volume::From<'a> {
        let Self { dir, pod, store, config, users, networks, .. } = self;
        volume::From { dir, pod, store, config, users, networks }
    }
}

/// A container, or a program in one, that was launched.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Launched {
    /// The PID of its first process; 0 for what was done without leaving one.
    pub pid: i32,
    /// What came of that.
    pub exit: u8,
    /// What could not be done and did not stop the launch.
    pub warnings: Vec<String>,
    /// The signal by which its image wants it to be asked to end.
    #[serde(default)]
    pub stop_signal: Option<i32>,
    /// Whether nothing was launched, since the image is still to be pulled.
    #[serde(default)]
    pub lacks_image: bool,
}

/// The standard streams of a process: what it gets.
#[derive(Debug)]
pub struct Streams {
    /// Input, output, errors.
    pub fds: [OwnedFd; 3],
}

/// A container to be launched.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// What it is.
    pub member: &'a Member,
    /// Whether its image was just pulled for it.
    pub is_pulled: bool,
}

/// Starts the launch of a container with these streams.
///
/// # Errors
/// `EAGAIN` where there are too many processes.
pub fn start(order: Order<'_>, wanted: Wanted<'_>, streams: Streams, isolators: &Registry) -> Result<Job> {
    let mut keep: Vec<BorrowedFd<'_>> = streams.fds.iter().map(AsFd::as_fd).collect();
    keep.extend(order.sandbox.descriptors());
    Job::start(WITHIN, &keep, Some(isolators), |mouth| {
        signal::unblock()?;
        for (number, fd) in (0..).zip(&streams.fds) {
            descriptor::set_stream(fd.as_fd(), number)?;
        }
        launch_if_had(order, wanted, isolators, mouth)
    })
}

/// The ID of a container by its path in the pod `pod`.
pub fn id(pod: &str, path: &str) -> String {
    format!("{pod}/{path}")
}

/// Launches the container, where its image is in the store or can't be pulled: that is another job, since it may take any time
/// and can be tried again.
fn launch_if_had(
    order: Order<'_>,
    wanted: Wanted<'_>,
    isolators: &Registry,
    mouth: &Mouth,
) -> Result<Launched> {
    let policy = wanted.member.container.image_pull_policy.unwrap_or(PullPolicy::IfNotPresent);
    let lacks_image = Cell::new(false);
    let launched = launch(order, wanted, isolators, mouth, |error| {
        lacks_image.set(!wanted.is_pulled && may_be_pulled(error, policy));
    });
    match launched {
        Err(_) if lacks_image.get() => Ok(Launched { lacks_image: true, ..Launched::default() }),
        launched => launched,
    }
}

fn launch(
    order: Order<'_>,
    wanted: Wanted<'_>,
    isolators: &Registry,
    mouth: &Mouth,
    has_no_bundle: impl Fn(&Error),
) -> Result<Launched> {
    let member = wanted.member;
    let id = &id(&order.plan.name, &member.path);
    let (states, name) = order.dir.states(&member.path);
    if let Some((parent, _)) = member.path.rsplit_once('/') {
        make_room(order.dir, parent)?;
    }
    let state = State::create(&states, &name)?;
    cleanup::undo_on_failure(state, isolators, |state| {
        state.write(&Record { is_nested: true, ..Record::new(id, Some(order.store)) })?;
        let known = Known { id, by: &state::path(&states, &name) };
        let bundle = bundle(order, wanted, known).inspect_err(has_no_bundle)?;
        let volume::Mounts { list, open: _open } = volume::mounts(order.volumes(), member)?;
        let stop_signal = stop_signal(&bundle.spec);
        let loaded = shape(bundle, order, (member, list))?;
        let mut plan = plan::plan(loaded, Wish { id, cgroups: order.cgroups })?;
        plan.kind = Kind::Nested;
        let claimed = prepare::claim(plan, state, isolators, Some(order.store))?;
        let mut prepared = prepare::prepare(claimed, isolators)?;
        fs_group::own(order.pod, member, &prepared.container.spec)?;
        let mut warnings = std::mem::take(&mut prepared.warnings);
        let options = cli::Launch { hands_terminal_on: true, ..cli::Launch::default() };
        let waiting = spawn::spawn(prepared, &options, false)?;
        let mut isolated = isolate::isolate(waiting, isolators)?;
        warnings.append(&mut isolated.warnings);
        warden::start(&isolated.container, isolated.ready.child.pidfd.as_fd(), isolators, &|_| {})?;
        let running = release::release(isolated)?;
        if let Some(socket) = running.console {
            let received = coracle_sys::socket::receive(socket.as_fd(), 64)?.and_then(|(_, fd)| fd);
            let master = received.ok_or_else(|| Error::new(Code::System, "the terminal did not come"))?;
            mouth.send(master.as_fd())?;
        }
        Ok(Launched { pid: running.child.pid, warnings, stop_signal, ..Launched::default() })
    })
}

/// The signal by which the image of a container with this specification wants it to be asked to end.
pub fn stop_signal(spec: &Spec) -> Option<i32> {
    let text = spec.annotations().as_ref()?.get(STOP_SIGNAL)?;
    cli::signal(text).ok().filter(|signal| *signal > 0)
}

fn make_room(dir: &Directory, parent: &str) -> Result<()> {
    let (states, name) = dir.states(parent);
    let record = State::open_unlocked(&states, &name)?.record()?;
    record.and_then(|record| record.cgroup).map_or(Ok(()), |place| place.make_room())
}

/// Makes the bundle of the container's image.
fn bundle(order: Order<'_>, Wanted { member, is_pulled }: Wanted<'_>, id: Known<'_>) -> Result<Bundle> {
    let named = &member.container.image;
    let reference = if is_pulled { image::pulled_name(named) } else { named.clone() };
    let wanted =
        ImageRun { reference, pull: cli::Pull::Never, store: None, options: member.options(order.pod) };
    let namespace = order.sandbox.namespace(pods::Kind::User);
    let owners = order.users.zip(namespace.as_ref()).map(|(users, namespace)| users.owners(namespace));
    image::compose_bundle(order.store, id, &wanted, owners)
}

/// Makes a container of the pod of what the image and its options say.
fn shape(bundle: Bundle, order: Order<'_>, (member, mounts): (&Member, Vec<Value>)) -> Result<Loaded> {
    let mut spec = json!(bundle.spec);
    spec["linux"]["namespaces"] = order.sandbox.in_spec(order.plan);
    if let Some(all) = spec["mounts"].as_array_mut() {
        // In the places of the image's own.
        all.retain(|one| mounts.iter().all(|mount| mount["destination"] != one["destination"]));
        all.extend(mounts);
    }
    let groups = &order.pod.spec.security_context;
    let groups: Vec<u32> = groups.supplemental_groups.iter().chain(&groups.fs_group).copied().collect();
    if let (false, user) = (groups.is_empty(), &mut spec["process"]["user"]) {
        let own = user["additionalGids"].as_array().cloned().unwrap_or_default();
        user["additionalGids"] = own.into_iter().chain(groups.into_iter().map(Value::from)).collect();
    }
    if let Some(object) = spec.as_object_mut() {
        // The name of the host is the pod's.
        object.remove("hostname");
    }
    for (name, limits) in member.resources.as_object().into_iter().flatten() {
        spec["linux"]["resources"][name] = limits.clone();
    }
    let pod = pods::cgroup_path(&order.plan.name, None);
    let above = order.plan.cgroup.as_ref().and_then(|place| place.at.first()).map(|site| site.path.clone());
    let above = above.map_or(pod, |path| format!("/{}", path.display()));
    spec["linux"]["cgroupsPath"] = json!(format!("{above}/{}", member.path));
    secure(&mut spec, &member.container.security_context, &order.pod.spec.security_context);
    refuse_root(order.pod, member, &spec)?;
    Loaded::composed(bundle.path, &spec)
}

/// What the document says of rights beside what the bundle was made with.
fn secure(spec: &mut Value, own: &Security, all: &PodSecurity) {
    if let Some(group) = own.run_as_group.or(all.run_as_group) {
        // It may be said without a user, which is then the image's.
        spec["process"]["user"]["gid"] = group.into();
    }
    let escalates = own.allow_privilege_escalation.or(own.privileged.then_some(true));
    if let Some(escalates) = escalates {
        spec["process"]["noNewPrivileges"] = (!escalates).into();
    }
    if own.privileged {
        free(spec);
    }
}

/// Takes away what confines beside capabilities and the filter of system calls.
fn free(spec: &mut Value) {
    if let Some(linux) = spec["linux"].as_object_mut() {
        linux.retain(|field, _| !["maskedPaths", "readonlyPaths"].contains(&&**field));
    }
    spec["linux"]["resources"]["devices"] = json!([{"allow": true, "access": "rwm"}]);
    let mounts = spec["mounts"].as_array_mut().into_iter().flatten();
    for mount in mounts.filter(|mount| mount["type"] == "sysfs" || mount["type"] == "cgroup") {
        mount["options"].as_array_mut().into_iter().for_each(|options| options.retain(|one| one != "ro"));
    }
}

fn refuse_root(pod: &Pod, member: &Member, spec: &Value) -> Result<()> {
    let own = member.container.security_context.run_as_non_root;
    let refuses = own.or(pod.spec.security_context.run_as_non_root) == Some(true);
    if refuses && spec["process"]["user"]["uid"] == 0 {
        let why = format!("container {:?} would run as root, which runAsNonRoot forbids", member.path);
        return Err(Error::new(Code::InvalidSpec, why).hint("set runAsUser, or a user in the image"));
    }
    Ok(())
}

/// Starts the removal of the container at `path`: whatever is left of it, and before that of those below it, whose records go
/// with its own.
///
/// # Errors
/// `EAGAIN` where there are too many processes.
pub fn remove(dir: &Directory, path: &str, store: &Path, isolators: &Registry) -> Result<Job> {
    Job::start(REMOVED_WITHIN, &[], Some(isolators), |_| {
        signal::unblock()?;
        remove_below(dir, path, (store, isolators))?;
        remove_one(dir, path, (store, isolators))
    })
}

/// Removes what is left of containers whose removal has failed, those below others first.
///
/// # Errors
/// The first that can't be removed.
pub fn remove_left(dir: &Directory, store: &Path, isolators: &Registry) -> Result<()> {
    remove_below(dir, "", (store, isolators))
}

fn remove_below(dir: &Directory, above: &str, known: (&Path, &Registry)) -> Result<()> {
    let child = |id: &str| if above.is_empty() { id.to_owned() } else { format!("{above}/{id}") };
    for id in state::ids(&dir.states(&child("")).0)? {
        remove_below(dir, &child(&id), known)?;
        remove_one(dir, &child(&id), known)?;
    }
    Ok(())
}

/// Removes a container. Of one whose record can't be read, what that must have said: else the pod could never go.
fn remove_one(dir: &Directory, path: &str, (store, isolators): (&Path, &Registry)) -> Result<Vec<String>> {
    let (states, name) = dir.states(path);
    let state = match State::open(&states, &name) {
        Err(e) if e.code() == Code::NotFound => return Ok(Vec::new()),
        state => state?,
    };
    let Err(unreadable) = state.record() else { return cleanup::remove(state, isolators, false) };
    let (id, store) = (id(dir.name(), path), Some(store.to_owned()));
    let record = Record { id, store, ..cleanup::guess(&state, unreadable)? };
    cleanup::remove_recorded(state, record, isolators, true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secured(own: Security) -> Value {
        let mut spec = json!({
            "process": {"user": {"uid": 5, "gid": 6}, "noNewPrivileges": true},
            "linux": {"maskedPaths": ["/proc/kcore"], "readonlyPaths": ["/proc/sys"], "resources": {}},
            "mounts": [
                {"destination": "/sys", "type": "sysfs", "options": ["nosuid", "ro"]},
                {"destination": "/v", "type": "bind", "options": ["ro"]},
            ],
        });
        secure(&mut spec, &own, &PodSecurity::default());
        spec
    }

    #[test]
    fn a_group_counts_without_a_user() {
        let spec = secured(Security { run_as_group: Some(7), ..Security::default() });
        assert_eq!(spec["process"]["user"], json!({"uid": 5, "gid": 7}));
    }

    #[test]
    fn privileges_escalate_where_the_document_says_so() {
        for (allowed, privileged, confined) in [
            (None, false, true),
            (Some(true), false, false),
            (Some(false), false, true),
            (None, true, false),
            (Some(false), true, true),
        ] {
            let own = Security { allow_privilege_escalation: allowed, privileged, ..Security::default() };
            assert_eq!(secured(own)["process"]["noNewPrivileges"], confined);
        }
    }

    #[test]
    fn nothing_is_hidden_from_the_privileged() {
        let spec = secured(Security { privileged: true, ..Security::default() });
        let devices = json!([{"allow": true, "access": "rwm"}]);
        assert_eq!(spec["linux"], json!({ "resources": { "devices": devices } }));
        assert_eq!(spec["mounts"][0]["options"], json!(["nosuid"]));
        assert_eq!(spec["mounts"][1]["options"], json!(["ro"]));
    }
}
