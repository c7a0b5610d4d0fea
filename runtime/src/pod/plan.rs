//! What will be made of a pod's document: decided before anything is touched.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use coracle_image::bundle::{Network, Options, Seccomp, host_name};
use serde::Serialize;
use serde_json::{Value, json};

use super::document::{
    Container, LOG_FILES, LOG_SIZE, MOST_LOGGED, MOST_LOGS, Pod, Resources, RestartPolicy, SeccompKind,
    SeccompProfile, seconds,
};
use super::variables;
use crate::cgroup::{self, Management, Manager, Place};
use crate::error::{Code, Error, Result};

/// The cgroup below which pods have theirs.
pub const CGROUPS: &str = "coracle";

/// How long a container may take to end where the document does not say.
const GRACE: u64 = 30;

/// A pod that can be made, as far as can be told without making it.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    /// The pod's name.
    pub name: String,
    /// What its containers share.
    pub sandbox: Shared,
    /// Its containers: init containers and sidecars in their order, then the others.
    pub members: Vec<Member>,
    /// How long a container may take to end.
    pub grace: Duration,
    /// How long the pod may run.
    pub deadline: Option<Duration>,
    /// How long to wait before a container is started again: after its second end, and at most.
    pub back_off: (Duration, Duration),
    /// Whether one failure ends the pod.
    pub kill_on_failure: bool,
    /// How large a log grows, in bytes, and how many are kept.
    pub logs: (u64, u32),
    /// Where its cgroups go; `None` where it gets none.
    pub cgroup: Option<Place>,
    /// Its own limits, as a runtime specification has them.
    pub resources: Value,
}

/// What the containers of a pod share.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Shared {
    /// The kinds of namespaces that are made for the pod (`net`, `ipc`, `uts`, `pid`, `user`).
    pub namespaces: Vec<Kind>,
    /// The kinds that are the host's.
    pub of_host: Vec<Kind>,
    /// Its host name.
    pub hostname: String,
    /// Kernel parameters, by name.
    pub sysctls: Vec<(String, String)>,
}

/// A kind of namespaces that a pod can share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Users.
    User,
    /// The network.
    Net,
    /// IPC.
    Ipc,
    /// The host name.
    Uts,
    /// Processes.
    Pid,
}

impl Kind {
    /// Its flag (`CLONE_NEW*`).
    pub fn flag(self) -> i32 {
        match self {
            Self::User => libc::CLONE_NEWUSER,
            Self::Net => libc::CLONE_NEWNET,
            Self::Ipc => libc::CLONE_NEWIPC,
            Self::Uts => libc::CLONE_NEWUTS,
            Self::Pid => libc::CLONE_NEWPID,
        }
    }

    /// Its file in `/proc/PID/ns`.
    pub fn file(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Net => "net",
            Self::Ipc => "ipc",
            Self::Uts => "uts",
            Self::Pid => "pid",
        }
    }

    /// Its name in a runtime specification.
    pub fn in_spec(self) -> &'static str {
        if self == Self::Net { "network" } else { self.file() }
    }
}

/// When a container runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// To its end, before the next one.
    Init,
    /// From its turn among the init containers to the end of the pod.
    Sidecar,
    /// With the others.
    Main,
    /// Below another container, from when it is asked for.
    Nested,
}

/// A container of the pod.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Member {
    /// Its path in the pod: `nginx`, and below it `nginx/child`.
    pub path: String,
    /// When it runs.
    pub role: Role,
    /// When it is started again.
    pub restart: RestartPolicy,
    /// The document's.
    pub container: Container,
    /// Its limits, as a runtime specification has them.
    pub resources: Value,
}

/// What the caller says beside the document.
#[derive(Debug, Clone)]
pub struct Wish<'a> {
    /// Who makes cgroups.
    pub cgroups: Management,
    /// The node of the tree below which the pod stands: `org/team`.
    pub parent: Option<&'a str>,
}

/// What will be made of `pod`.
///
/// # Errors
/// `InvalidSpec`, `Unsupported`.
pub fn plan(pod: &Pod, wish: &Wish<'_>) -> Result<Plan> {
    let spec = &pod.spec;
    let of_pod = |container: &Container| Ok((container.clone(), role_of_init(container)));
    let init = spec.init_containers.iter().map(of_pod);
    let main = spec.containers.iter().map(|container| Ok((container.clone(), Role::Main)));
    let members = init
        .chain(main)
        .map(|found: Result<_>| found.map(|(container, role)| member(container, role, spec.restart_policy)))
        .collect::<Result<_>>()?;
    let name = &pod.metadata.name;
    check_parent(wish.parent)?;
    let path = match wish.cgroups.by {
        Manager::Systemd => scope(name, wish.parent),
        _ => cgroup_path(name, wish.parent),
    };
    let annotation =
        |key: &str| pod.metadata.annotations.get(&format!("io.coracle/{key}")).map(String::as_str);
    let mut cgroup = cgroup::place(name, Some(Path::new(&path)), wish.cgroups)?;
    for site in own_sites(&mut cgroup) {
        site.keep = if wish.parent.is_some() && site.keep > 1 { site.keep } else { 0 };
    }
    Ok(Plan {
        name: name.clone(),
        sandbox: shared(pod),
        members,
        grace: seconds(spec.termination_grace_period_seconds.unwrap_or(GRACE)),
        deadline: spec.active_deadline_seconds.map(seconds),
        back_off: back_off(annotation("back-off"))?,
        kill_on_failure: kill_on_failure(annotation("termination-policy"))?,
        logs: logs(annotation("log-size"), annotation("log-files"))?,
        cgroup,
        resources: resources(&spec.resources),
    })
}

fn role_of_init(container: &Container) -> Role {
    if container.restart_policy == Some(RestartPolicy::Always) { Role::Sidecar } else { Role::Init }
}

/// What is made and removed by ourselves.
fn own_sites(cgroup: &mut Option<Place>) -> impl Iterator<Item = &mut cgroup::Site> {
    cgroup.iter_mut().filter(|place| place.unit.is_none()).flat_map(|place| &mut place.at)
}

impl Plan {
    /// How many nodes above the pod were there when this was planned.
    pub fn nodes_there(&self) -> usize {
        let sites = self.cgroup.iter().flat_map(|place| &place.at);
        sites.map(|site| site.keep.saturating_sub(1)).min().unwrap_or(0)
    }

    /// Has so many of them stay when the pod goes; what leads to the others goes with the last pod.
    pub fn keep_nodes(&mut self, count: usize) {
        own_sites(&mut self.cgroup).for_each(|site| site.keep = if count > 0 { 1 + count } else { 0 });
    }
}

/// The plan of one container.
pub fn member(container: Container, role: Role, policy: RestartPolicy) -> Member {
    let restart = match (role, policy) {
        (Role::Sidecar, _) => RestartPolicy::Always,
        (Role::Nested, _) => RestartPolicy::Never,
        // An init container has done its work when it has succeeded.
        (Role::Init, RestartPolicy::Always) => RestartPolicy::OnFailure,
        (_, policy) => policy,
    };
    Member {
        path: container.name.clone(),
        role,
        restart,
        resources: resources(&container.resources),
        container,
    }
}

/// The path of a pod's cgroup. A dot keeps pods and nodes of the tree apart: nodes have none in their names.
pub fn cgroup_path(name: &str, parent: Option<&str>) -> String {
    let node = parent.map(|parent| format!("{parent}/")).unwrap_or_default();
    format!("/{CGROUPS}/{node}{name}.pod")
}

/// The scope of a pod, as a `linux.cgroupsPath` for systemd: a node of the tree is a slice.
fn scope(name: &str, parent: Option<&str>) -> String {
    // A hyphen leads from a slice to one in it (systemd.unit(5), "String Escaping for Inclusion in Unit Names").
    let nodes = parent.into_iter().flat_map(|parent| parent.split('/'));
    let nodes: String = nodes.map(|node| format!("-{}", node.replace('-', "\\x2d"))).collect();
    format!("{CGROUPS}{nodes}.slice::{name}.pod")
}

/// Names of nodes are labels, so that none can be taken for a pod's cgroup or lead out of the tree.
///
/// # Errors
/// `Usage`.
pub fn check_parent(parent: Option<&str>) -> Result<()> {
    let bad =
        parent.into_iter().flat_map(|path| path.split('/')).find(|node| !super::document::is_label(node));
    bad.map_or(Ok(()), |node| {
        Err(Error::new(Code::Usage, format!("--parent: {node:?} is no name of a node"))
            .hint("use lower-case letters, digits and -, and / between nodes: org/team"))
    })
}

/// What the containers of `pod` share.
pub(super) fn shared(pod: &Pod) -> Shared {
    let spec = &pod.spec;
    let wanted = [
        (Kind::User, spec.host_users == Some(false)),
        (Kind::Net, !spec.host_network),
        (Kind::Ipc, !spec.host_ipc),
        (Kind::Uts, !spec.host_network),
        (Kind::Pid, spec.share_process_namespace),
    ];
    let of_host = [
        (Kind::Net, spec.host_network),
        (Kind::Uts, spec.host_network),
        (Kind::Ipc, spec.host_ipc),
        (Kind::Pid, spec.host_pid),
    ];
    let those = |list: &[(Kind, bool)]| list.iter().filter(|(_, is)| *is).map(|(kind, _)| *kind).collect();
    let sysctls = spec.security_context.sysctls.iter();
    Shared {
        namespaces: those(&wanted),
        of_host: those(&of_host),
        hostname: host_name(spec.hostname.as_ref().unwrap_or(&pod.metadata.name)),
        sysctls: sysctls.map(|one| (one.name.clone(), one.value.clone())).collect(),
    }
}

/// Requests become weights and protected memory, limits become limits. No processors and no memory are none of these, as for
/// Kubernetes: that is said, since a container may have had a limit before.
pub fn resources(wanted: &Resources) -> Value {
    const PERIOD: f64 = 100_000.0;
    const NONE: i64 = -1;
    let mut resources = json!({});
    if let Some(cpus) = wanted.limits.cpu.as_ref().and_then(super::document::Quantity::amount) {
        // The kernel takes no quota below one millisecond.
        let quota = if cpus > 0.0 { ((cpus * PERIOD).round() as i64).max(1000) } else { NONE };
        resources["cpu"]["quota"] = quota.into();
        resources["cpu"]["period"] = (PERIOD as u64).into();
    }
    if let Some(cpus) = wanted.requests.cpu.as_ref().and_then(super::document::Quantity::amount) {
        resources["cpu"]["shares"] = ((cpus * 1024.0).round() as u64).clamp(2, 262_144).into();
    }
    if let Some(bytes) = wanted.limits.memory.as_ref().and_then(super::document::Quantity::whole) {
        resources["memory"]["limit"] = if bytes > 0 { bytes } else { NONE }.into();
    }
    if let Some(bytes) = wanted.requests.memory.as_ref().and_then(super::document::Quantity::whole) {
        resources["memory"]["reservation"] = bytes.into();
    }
    if let Some(most) = wanted.limits.pids.as_ref().and_then(super::document::Quantity::whole) {
        resources["pids"]["limit"] = most.into();
    }
    resources
}

fn wrong(key: &str, value: &str, why: &str) -> Error {
    Error::new(Code::InvalidSpec, format!("/metadata/annotations/io.coracle~1{key}: {value:?} {why}"))
}

fn number(key: &str, value: Option<&str>, otherwise: u64) -> Result<u64> {
    let Some(text) = value else { return Ok(otherwise) };
    text.parse().ok().filter(|n| *n > 0).ok_or_else(|| wrong(key, text, "is no number above 0"))
}

/// How large a log grows, and how many are kept: no more than [`MOST_LOGGED`] together, also where an older runtime has let the
/// document in.
fn logs(size: Option<&str>, files: Option<&str>) -> Result<(u64, u32)> {
    let files = u32::try_from(number("log-files", files, LOG_FILES)?).map_or(MOST_LOGS, |n| n.min(MOST_LOGS));
    Ok((number("log-size", size, LOG_SIZE)?.min(MOST_LOGGED / u64::from(files)), files))
}

/// `10s,5m`: after the second end, and at most.
fn back_off(value: Option<&str>) -> Result<(Duration, Duration)> {
    let Some(text) = value else { return Ok((Duration::from_secs(10), Duration::from_secs(300))) };
    let parsed = text.split_once(',').and_then(|(first, most)| Some((duration(first)?, duration(most)?)));
    parsed.ok_or_else(|| wrong("back-off", text, "is no pair of times like 10s,5m"))
}

fn duration(text: &str) -> Option<Duration> {
    let units = [("ms", 1), ("s", 1000), ("m", 60_000)];
    let (digits, unit) = units.iter().find_map(|(end, unit)| Some((text.strip_suffix(end)?, unit)))?;
    digits.parse::<u64>().ok()?.checked_mul(*unit).map(Duration::from_millis)
}

fn kill_on_failure(value: Option<&str>) -> Result<bool> {
    match value {
        None | Some("restart") => Ok(false),
        Some("kill-on-failure") => Ok(true),
        Some(other) => Err(wrong("termination-policy", other, "is neither restart nor kill-on-failure")),
    }
}

impl Member {
    /// What the bundle of its image is made with.
    pub fn options(&self, pod: &Pod) -> Options {
        let container = &self.container;
        let (own, all) = (&container.security_context, &pod.spec.security_context);
        let user = own.run_as_user.or(all.run_as_user);
        let env = variables::defined(&container.env);
        let words =
            |list: &[String]| list.iter().map(|word| variables::expanded(word, &env)).collect::<Vec<_>>();
        Options {
            args: words(&container.args),
            entrypoint: Some(words(&container.command)).filter(|command| !command.is_empty()),
            env: env.iter().map(|(name, value)| format!("{name}={value}")).collect(),
            // Without the group, which is set where the user is known: the groups that the image gives it stay.
            user: user.map(|uid| uid.to_string()),
            working_dir: container.working_dir.clone().filter(|dir| !dir.is_empty()),
            hostname: Some(shared(pod).hostname),
            terminal: container.tty,
            read_only: own.read_only_root_filesystem,
            seccomp: seccomp(own.seccomp_profile.as_ref().or(all.seccomp_profile.as_ref()), own.privileged),
            cap_add: if own.privileged { vec!["ALL".to_owned()] } else { own.capabilities.add.clone() },
            cap_drop: own.capabilities.drop.clone(),
            network: if pod.spec.host_network { Network::Host } else { Network::None },
            annotations: annotations(pod, &container.name),
            ..Options::default()
        }
    }
}

/// What isolators and plugins are to find in the container `name`: the pod's annotations but those that steer the pod, and in
/// their places those that are for this container alone.
fn annotations(pod: &Pod, name: &str) -> BTreeMap<String, String> {
    let all = &pod.metadata.annotations;
    let common = all.iter().filter(|(key, _)| !key.starts_with("io.coracle/") && own(key).is_none());
    let own = all.iter().filter_map(|(key, value)| {
        own(key).filter(|(_, container)| *container == name).map(|(key, _)| (key.to_owned(), value.clone()))
    });
    common.map(|(key, value)| (key.clone(), value.clone())).chain(own).collect()
}

/// The annotation and the container that the key `key` names: `io.coracle.ports/nginx`.
pub(super) fn own(key: &str) -> Option<(&str, &str)> {
    key.split_once('/').filter(|(key, _)| key.starts_with("io.coracle."))
}

fn seccomp(profile: Option<&SeccompProfile>, privileged: bool) -> Seccomp {
    match profile.map(|profile| (profile.kind, &profile.localhost_profile)) {
        None if privileged => Seccomp::Unconfined,
        Some((SeccompKind::Unconfined, _)) => Seccomp::Unconfined,
        Some((SeccompKind::Localhost, file)) => Seccomp::File(file.clone().unwrap_or_else(PathBuf::new)),
        None | Some((SeccompKind::RuntimeDefault, _)) => Seccomp::Default,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(security: &str, container: &str) -> Pod {
        let container = format!("{{name: main, image: i, {container}}}");
        let spec = format!("spec: {{securityContext: {{{security}}}, containers: [{container}]}}");
        let text = format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: web}}\n{spec}\n");
        super::super::document::parse(text.as_bytes()).unwrap()
    }

    fn only(pod: &Pod) -> Member {
        member(pod.spec.containers[0].clone(), Role::Main, RestartPolicy::Never)
    }

    #[test]
    fn a_user_is_looked_up_with_the_groups_that_the_image_gives_it() {
        let pod = pod("runAsUser: 1000, runAsGroup: 2000", "");
        assert_eq!(only(&pod).options(&pod).user.as_deref(), Some("1000"));
    }

    #[test]
    fn no_amount_is_no_limit() {
        let none = pod("", "resources: {limits: {cpu: '0', memory: 0}}");
        let wanted = json!({"cpu": {"quota": -1, "period": 100_000}, "memory": {"limit": -1}});
        assert_eq!(only(&none).resources, wanted);
        let little = pod("", "resources: {limits: {cpu: 1m, memory: '1'}}");
        let wanted = json!({"cpu": {"quota": 1000, "period": 100_000}, "memory": {"limit": 1}});
        assert_eq!(only(&little).resources, wanted);
    }

    #[test]
    fn a_scope_lies_in_the_slices_of_its_nodes() {
        assert_eq!(scope("web", None), "coracle.slice::web.pod");
        assert_eq!(scope("web", Some("org/team-a")), "coracle-org-team\\x2da.slice::web.pod");
    }
}
