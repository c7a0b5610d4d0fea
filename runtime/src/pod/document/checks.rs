//! What a document must keep to beside the shape of its fields.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Component, Path};

use coracle_isolator_volume::is_name;

use super::{
    Capabilities, Container, EmptyDir, ExecAction, Handler, HostPath, HttpGet, LOG_FILES, LOG_SIZE, LONGEST,
    Lifecycle, MOST_LOGGED, MOST_LOGS, Pod, PodSpec, Port, PortRef, Probe, Quantity, Resources,
    RestartPolicy, Security, Volume, VolumeMount, Whose,
};
use crate::error::{Code, Error, Result};
use crate::pod::host::HOST_SOCKET;
use crate::pod::{network, plan};

/// The annotations that steer a pod.
const STEERING: [&str; 5] = [
    "io.coracle/termination-policy",
    "io.coracle/back-off",
    "io.coracle/log-size",
    "io.coracle/log-files",
    network::ANNOTATION,
];

/// The annotations of containers by which isolators of ours are asked for something. That of networks is not among them:
/// they are the pod's.
const ISOLATORS: [&str; 5] =
    ["io.coracle.disk", "io.coracle.landlock", "io.coracle.perf", "io.coracle.ports", "io.coracle.statsd"];

/// The longest host name, in bytes: a longer one, as a pod's name can be, is cut.
const LONGEST_HOST_NAME: usize = 63;

fn invalid(at: &str, why: impl AsRef<str>) -> Error {
    Error::new(Code::InvalidSpec, format!("{at}: {}", why.as_ref()))
}

pub(super) fn check(pod: &Pod) -> Result<()> {
    if (pod.api_version.as_str(), pod.kind.as_str()) != ("v1", "Pod") {
        return Err(invalid("/kind", "it is no v1 Pod"));
    }
    check_pod_name(&pod.metadata.name)?;
    check_annotations(pod)?;
    let spec = &pod.spec;
    if spec.containers.is_empty() {
        return Err(invalid("/spec/containers", "there must be one"));
    }
    let mut names = BTreeSet::new();
    for (index, volume) in spec.volumes.iter().enumerate() {
        check_volume(volume, &format!("/spec/volumes/{index}"), &mut names)?;
    }
    check_sandboxes(&spec.volumes)?;
    let mut names = BTreeSet::new();
    for (list, containers) in [("initContainers", &spec.init_containers), ("containers", &spec.containers)] {
        for (index, container) in containers.iter().enumerate() {
            let at = format!("/spec/{list}/{index}");
            check_container(container, &at, Some(&spec.volumes))?;
            check_above(container, &at, &spec.volumes)?;
            if !names.insert(&container.name) {
                return Err(invalid(&format!("{at}/name"), format!("{:?} stands twice", container.name)));
            }
            check_place(container, list == "initContainers", &at)?;
        }
    }
    check_hosts(spec)?;
    super::check_sysctls(&plan::shared(pod))?;
    check_amounts(&spec.resources, "/spec/resources")?;
    check_seconds(spec.termination_grace_period_seconds, "/spec/terminationGracePeriodSeconds")?;
    check_seconds(spec.active_deadline_seconds, "/spec/activeDeadlineSeconds")?;
    let of_host =
        [("hostNetwork", spec.host_network), ("hostPID", spec.host_pid), ("hostIPC", spec.host_ipc)];
    if let (Some(false), Some((name, _))) = (spec.host_users, of_host.iter().find(|(_, is)| *is)) {
        return Err(invalid("/spec/hostUsers", format!("users of the pod's own exclude {name}")));
    }
    if spec.share_process_namespace && spec.host_pid {
        return Err(invalid("/spec/shareProcessNamespace", "it excludes hostPID"));
    }
    Ok(())
}

/// A name as the labels of DNS are (RFC 1123).
pub(crate) fn is_label(name: &str) -> bool {
    let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    (1..=63).contains(&name.len()) && name.chars().all(good) && !name.starts_with('-') && !name.ends_with('-')
}

/// Labels with dots between them (RFC 1123).
fn is_domain(name: &str) -> bool {
    name.len() <= 253 && name.split('.').all(is_label)
}

/// What is written into `/etc/hosts`, and the host name.
fn check_hosts(spec: &PodSpec) -> Result<()> {
    let no_name = |at: &str, name: &str| {
        Err(invalid(at, format!("{name:?} is no name of a host"))
            .hint("use lower-case letters, digits and - (not first or last), and . between such words"))
    };
    if let Some(name) = spec.hostname.as_ref().filter(|name| !is_domain(name)) {
        return no_name("/spec/hostname", name);
    }
    if spec.hostname.as_ref().is_some_and(|name| name.len() > LONGEST_HOST_NAME) {
        return Err(invalid("/spec/hostname", format!("it has more than {LONGEST_HOST_NAME} letters")));
    }
    if spec.host_network && !spec.host_aliases.is_empty() {
        return Err(invalid("/spec/hostAliases", "hostNetwork excludes them"));
    }
    for (index, alias) in spec.host_aliases.iter().enumerate() {
        let at = format!("/spec/hostAliases/{index}");
        if alias.ip.parse::<IpAddr>().is_err() {
            return Err(invalid(&format!("{at}/ip"), format!("{:?} is no address", alias.ip)));
        }
        if let Some(wrong) = alias.hostnames.iter().position(|name| !is_domain(name)) {
            return no_name(&format!("{at}/hostnames/{wrong}"), &alias.hostnames[wrong]);
        }
    }
    Ok(())
}

/// Whether `name` can be a pod's.
///
/// # Errors
/// `InvalidSpec`.
pub(super) fn check_pod_name(name: &str) -> Result<()> {
    // Beside the directories of pods lies the host's socket.
    if name.len() <= 200 && name.split('.').all(is_label) && name != HOST_SOCKET {
        return Ok(());
    }
    Err(invalid("/metadata/name", format!("{name:?} is no name"))
        .hint("use lower-case letters, digits and - (not first or last), and . between such words"))
}

fn check_annotations(pod: &Pod) -> Result<()> {
    let all = || pod.spec.init_containers.iter().chain(&pod.spec.containers);
    for key in pod.metadata.annotations.keys() {
        let wrong = |why: String| Err(invalid("/metadata/annotations", why));
        let (base, container) = plan::own(key).map_or((&**key, None), |(base, name)| (base, Some(name)));
        let is_known = match key.strip_prefix("io.coracle/") {
            Some(_) => STEERING.contains(&key.as_str()),
            None => !base.starts_with("io.coracle.") || ISOLATORS.contains(&base),
        };
        if !is_known {
            return wrong(format!("{key:?} is unknown or not supported"));
        }
        if let Some(name) = container.filter(|name| !all().any(|container| container.name == *name)) {
            return wrong(format!("{key:?} names the container {name:?}, which is not there"));
        }
    }
    check_logs(pod)
}

fn check_logs(pod: &Pod) -> Result<()> {
    // What is no number is found where a plan is made.
    let number = |key: &str, otherwise: u64| {
        let text = pod.metadata.annotations.get(&format!("io.coracle/{key}"));
        text.and_then(|text| text.parse().ok()).unwrap_or(otherwise)
    };
    let (size, files) = (number("log-size", LOG_SIZE), number("log-files", LOG_FILES));
    if files > MOST_LOGS.into() {
        let at = "/metadata/annotations/io.coracle~1log-files";
        return Err(invalid(at, format!("it must be at most {MOST_LOGS}")));
    }
    if size.saturating_mul(files) > MOST_LOGGED {
        let why =
            format!("{files} files of {size} bytes are more than the {MOST_LOGGED} that a log may have");
        return Err(invalid("/metadata/annotations/io.coracle~1log-size", why)
            .hint("logs lie beside the states of all pods, in memory: take what is to be kept from there"));
    }
    Ok(())
}

fn check_volume<'v>(volume: &'v Volume, at: &str, names: &mut BTreeSet<&'v str>) -> Result<()> {
    if !is_label(&volume.name) {
        return Err(invalid(&format!("{at}/name"), format!("{:?} is no name", volume.name)));
    }
    if !names.insert(&volume.name) {
        return Err(invalid(&format!("{at}/name"), format!("{:?} stands twice", volume.name)));
    }
    let sources = [
        volume.empty_dir.is_some(),
        volume.host_path.is_some(),
        volume.image.is_some(),
        volume.secret.is_some(),
        volume.persistent_volume_claim.is_some(),
        volume.sandbox.is_some(),
    ];
    if sources.iter().filter(|is_there| **is_there).count() != 1 {
        let all = "emptyDir, hostPath, image, persistentVolumeClaim, sandbox and secret";
        return Err(invalid(at, format!("one of {all} must stand here")));
    }
    if let Some(empty) = &volume.empty_dir {
        check_empty_dir(empty, &format!("{at}/emptyDir"))?;
    }
    if let Some(host) = &volume.host_path {
        check_host_path(host, &format!("{at}/hostPath"))?;
    }
    if let Some(claim) = volume.persistent_volume_claim.as_ref().filter(|claim| !is_name(&claim.claim_name)) {
        let why = format!("{:?} is no name of a volume", claim.claim_name);
        return Err(invalid(&format!("{at}/persistentVolumeClaim/claimName"), why));
    }
    if let Some(sandbox) = &volume.sandbox
        && (sandbox.path.as_os_str().is_empty() || !is_inside(&sandbox.path))
    {
        return Err(invalid(&format!("{at}/sandbox/path"), NO_PART));
    }
    let Some(secret) = &volume.secret else { return Ok(()) };
    if !secret.secret_name.split('.').all(is_label) {
        return Err(invalid(&format!("{at}/secret/secretName"), "it is no name"));
    }
    match secret.default_mode {
        Some(0o1000..) => Err(invalid(&format!("{at}/secret/defaultMode"), "it must be at most 511 (0777)")),
        _ => Ok(()),
    }
}

/// No directory of a container's lies in another: who can write to the one above could put a link in the place of that below,
/// before that is mounted in a container.
fn check_sandboxes(volumes: &[Volume]) -> Result<()> {
    let all =
        volumes.iter().enumerate().filter_map(|(i, volume)| Some((i, volume, volume.sandbox.as_ref()?)));
    for (index, _, sandbox) in all.clone() {
        let is_above = |other: &Path| sandbox.path != other && sandbox.path.starts_with(other);
        if let Some((_, other, _)) = all.clone().find(|(_, _, other)| is_above(&other.path)) {
            let why = format!("it lies in that of volume {:?}", other.name);
            return Err(invalid(&format!("/spec/volumes/{index}/sandbox/path"), why)
                .hint("give them paths that are not below each other"));
        }
    }
    Ok(())
}

fn check_host_path(host: &HostPath, at: &str) -> Result<()> {
    if !host.path.is_absolute() {
        return Err(invalid(&format!("{at}/path"), "it is not an absolute path"));
    }
    match host.kind.as_str() {
        "" | "Directory" | "DirectoryOrCreate" | "File" | "Socket" => Ok(()),
        kind => Err(invalid(&format!("{at}/type"), format!("{kind:?} is unknown or not supported"))
            .hint("use Directory, DirectoryOrCreate, File, Socket, or leave it out")),
    }
}

fn check_empty_dir(empty: &EmptyDir, at: &str) -> Result<()> {
    if !["", "Memory"].contains(&empty.medium.as_str()) {
        return Err(invalid(&format!("{at}/medium"), "it is neither empty nor Memory"));
    }
    match &empty.size_limit {
        Some(_) if empty.medium.is_empty() => {
            Err(invalid(&format!("{at}/sizeLimit"), "only medium Memory has one"))
        }
        Some(limit) if limit.whole().is_none() => {
            Err(invalid(&format!("{at}/sizeLimit"), "it is no quantity"))
        }
        _ => Ok(()),
    }
}

fn check_place(container: &Container, is_init: bool, at: &str) -> Result<()> {
    match container.restart_policy {
        None => {}
        Some(_) if !is_init => return Err(invalid(&format!("{at}/restartPolicy"), "is for init containers")),
        Some(RestartPolicy::Always) => return Ok(()),
        Some(_) => return Err(invalid(&format!("{at}/restartPolicy"), "it is not Always")),
    }
    let probes = [&container.liveness_probe, &container.readiness_probe, &container.startup_probe];
    let has_hooks = container.lifecycle != Lifecycle::default();
    if is_init && (probes.iter().any(|probe| probe.is_some()) || has_hooks) {
        return Err(invalid(at, "an init container that is no sidecar has neither probes nor hooks"));
    }
    Ok(())
}

/// What a container below another does not have: it is launched once, into a pod whose networks are made.
pub(super) fn check_below(container: &Container) -> Result<()> {
    if container.restart_policy.is_some() {
        return Err(invalid("/restartPolicy", "a container below another is not started again"));
    }
    match container.ports.iter().position(|port| port.host_port.is_some()) {
        Some(index) => Err(invalid(&format!("/ports/{index}/hostPort"), "ports are published with the pod")),
        None => Ok(()),
    }
}

/// Which volumes there are may not be known: then whoever knows checks again.
pub(super) fn check_container(container: &Container, at: &str, volumes: Option<&[Volume]>) -> Result<()> {
    if !is_label(&container.name) {
        return Err(invalid(&format!("{at}/name"), format!("{:?} is no name", container.name))
            .hint("use lower-case letters, digits and - (not first or last), at most 63"));
    }
    if container.image.is_empty() {
        return Err(invalid(&format!("{at}/image"), "it is missing"));
    }
    if container.working_dir.as_ref().is_some_and(|dir| !dir.is_empty() && !dir.starts_with('/')) {
        return Err(invalid(&format!("{at}/workingDir"), "it is not an absolute path"));
    }
    check_security(&container.security_context, &format!("{at}/securityContext"))?;
    check_amounts(&container.resources, &format!("{at}/resources"))?;
    for (index, variable) in container.env.iter().enumerate() {
        if variable.name.is_empty() || variable.name.contains('=') {
            return Err(invalid(&format!("{at}/env/{index}/name"), "it is no variable's name"));
        }
    }
    for (index, mount) in container.volume_mounts.iter().enumerate() {
        check_mount(mount, &format!("{at}/volumeMounts/{index}"), volumes)?;
    }
    for (index, port) in container.ports.iter().enumerate() {
        check_own_port(port, &format!("{at}/ports/{index}"))?;
    }
    for (name, probe) in [
        ("livenessProbe", &container.liveness_probe),
        ("readinessProbe", &container.readiness_probe),
        ("startupProbe", &container.startup_probe),
    ] {
        probe.as_ref().map_or(Ok(()), |probe| check_probe(probe, &format!("{at}/{name}"), container))?;
    }
    for (name, handler) in
        [("postStart", &container.lifecycle.post_start), ("preStop", &container.lifecycle.pre_stop)]
    {
        let at = format!("{at}/lifecycle/{name}");
        handler.as_ref().map_or(Ok(()), |handler| check_handler(handler, &at, container))?;
    }
    Ok(())
}

fn check_security(security: &Security, at: &str) -> Result<()> {
    let Capabilities { add, drop } = &security.capabilities;
    for (list, names) in [("add", add), ("drop", drop)] {
        let is_known = |name: &str| {
            name.eq_ignore_ascii_case("all") || caps::to_canonical(name).parse::<caps::Capability>().is_ok()
        };
        if let Some(index) = names.iter().position(|name| !is_known(name)) {
            let why = format!("no capability is named {:?}", names[index]);
            return Err(invalid(&format!("{at}/capabilities/{list}/{index}"), why));
        }
    }
    match security.allow_privilege_escalation {
        Some(false) if security.privileged => {
            Err(invalid(&format!("{at}/allowPrivilegeEscalation"), "privileged excludes false"))
        }
        _ => Ok(()),
    }
}

fn check_mount(mount: &VolumeMount, at: &str, volumes: Option<&[Volume]>) -> Result<()> {
    let of = volumes.unwrap_or_default().iter().find(|volume| volume.name == mount.name);
    if volumes.is_some() && of.is_none() {
        return Err(invalid(&format!("{at}/name"), format!("there is no volume {:?}", mount.name)));
    }
    if !mount.mount_path.is_absolute() {
        return Err(invalid(&format!("{at}/mountPath"), "it is not an absolute path"));
    }
    if !is_inside(&mount.sub_path) {
        return Err(invalid(&format!("{at}/subPath"), NO_PART));
    }
    let is_isolators = of.is_some_and(|v| v.sandbox.is_some() || v.persistent_volume_claim.is_some());
    if is_isolators && !mount.sub_path.as_os_str().is_empty() {
        return Err(invalid(&format!("{at}/subPath"), format!("volume {:?} has no parts", mount.name)));
    }
    Ok(())
}

const NO_PART: &str = "it is not a relative path without ..";

fn is_inside(path: &Path) -> bool {
    path.components().all(|part| matches!(part, Component::Normal(_)))
}

/// What belongs to the container above is mounted in containers below others alone.
fn check_above(container: &Container, at: &str, volumes: &[Volume]) -> Result<()> {
    for (index, mount) in container.volume_mounts.iter().enumerate() {
        let of = volumes.iter().find(|volume| volume.name == mount.name);
        if of.and_then(|volume| volume.sandbox.as_ref()).is_some_and(|sandbox| sandbox.of == Whose::Parent) {
            let why = format!("volume {:?} is of the container above, and there is none", mount.name);
            return Err(invalid(&format!("{at}/volumeMounts/{index}/name"), why)
                .hint("containers below others can mount it; those of a pod share an emptyDir"));
        }
    }
    Ok(())
}

fn check_own_port(port: &Port, at: &str) -> Result<()> {
    if port.container_port == 0 {
        return Err(invalid(&format!("{at}/containerPort"), "it is no port"));
    }
    if !["TCP", "UDP", "SCTP"].contains(&port.protocol.as_deref().unwrap_or("TCP")) {
        return Err(invalid(&format!("{at}/protocol"), "it is none of TCP, UDP and SCTP"));
    }
    if !port.host_ip.is_empty() && port.host_ip.parse::<IpAddr>().is_err() {
        return Err(invalid(&format!("{at}/hostIP"), format!("{:?} is no address", port.host_ip)));
    }
    Ok(())
}

pub(super) fn check_amounts(resources: &Resources, at: &str) -> Result<()> {
    for (list, amounts) in [("limits", &resources.limits), ("requests", &resources.requests)] {
        for (name, quantity) in [("cpu", &amounts.cpu), ("memory", &amounts.memory), ("pids", &amounts.pids)]
        {
            let Some(quantity) = quantity else { continue };
            if quantity.whole().is_none() {
                let shown = serde_json::to_string(quantity).unwrap_or_default();
                let why = format!("{shown} is no quantity");
                return Err(invalid(&format!("{at}/{list}/{name}"), why).hint("write it like 500m or 64Mi"));
            }
        }
    }
    let Resources { limits, requests } = resources;
    let amount = |quantity: &Option<Quantity>| quantity.as_ref().and_then(Quantity::amount);
    for (name, limit, request) in
        [("cpu", &limits.cpu, &requests.cpu), ("memory", &limits.memory, &requests.memory)]
    {
        // A limit of zero is none.
        let limit = amount(limit).filter(|limit| *limit > 0.0);
        if limit.zip(amount(request)).is_some_and(|(limit, request)| request > limit) {
            return Err(invalid(&format!("{at}/requests/{name}"), "it is more than the limit"));
        }
    }
    Ok(())
}

fn check_probe(probe: &Probe, at: &str, container: &Container) -> Result<()> {
    let actions = [probe.exec.is_some(), probe.http_get.is_some(), probe.tcp_socket.is_some()];
    if actions.iter().filter(|is_there| **is_there).count() != 1 {
        return Err(invalid(at, "one of exec, httpGet and tcpSocket must stand here"));
    }
    for (name, number) in [("periodSeconds", probe.period_seconds), ("timeoutSeconds", probe.timeout_seconds)]
    {
        if number == Some(0) {
            return Err(invalid(&format!("{at}/{name}"), "it must be at least 1"));
        }
        check_seconds(number, &format!("{at}/{name}"))?;
    }
    check_seconds(Some(probe.initial_delay_seconds), &format!("{at}/initialDelaySeconds"))?;
    if !at.ends_with("/readinessProbe") && probe.success_threshold.is_some_and(|times| times != 1) {
        return Err(invalid(&format!("{at}/successThreshold"), "it must be 1 but for readiness"));
    }
    let port = probe.http_get.as_ref().map(|get| &get.port);
    check_get(probe.http_get.as_ref(), at)?;
    check_port(port.or(probe.tcp_socket.as_ref().map(|tcp| &tcp.port)), at, container)?;
    check_command(probe.exec.as_ref(), at)
}

fn check_handler(handler: &Handler, at: &str, container: &Container) -> Result<()> {
    let actions = [handler.exec.is_some(), handler.http_get.is_some(), handler.sleep.is_some()];
    if actions.iter().filter(|is_there| **is_there).count() != 1 {
        return Err(invalid(at, "one of exec, httpGet and sleep must stand here"));
    }
    check_seconds(handler.sleep.as_ref().map(|sleep| sleep.seconds), &format!("{at}/sleep/seconds"))?;
    check_get(handler.http_get.as_ref(), at)?;
    check_port(handler.http_get.as_ref().map(|get| &get.port), at, container)?;
    check_command(handler.exec.as_ref(), at)
}

/// A request is lines: what ends one would begin another.
fn check_get(get: Option<&HttpGet>, at: &str) -> Result<()> {
    let Some(get) = get else { return Ok(()) };
    let ends_a_line = |text: &str| text.contains(['\r', '\n', '\0']);
    if get.path.as_deref().is_some_and(ends_a_line) {
        return Err(invalid(&format!("{at}/httpGet/path"), "it has more than one line"));
    }
    for (index, field) in get.http_headers.iter().enumerate() {
        let at = format!("{at}/httpGet/httpHeaders/{index}");
        let is_token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
        if field.name.is_empty() || !field.name.bytes().all(is_token) {
            return Err(invalid(&format!("{at}/name"), format!("{:?} is no name of a field", field.name)));
        }
        if ends_a_line(&field.value) {
            return Err(invalid(&format!("{at}/value"), "it has more than one line"));
        }
    }
    Ok(())
}

fn check_seconds(seconds: Option<u64>, at: &str) -> Result<()> {
    match seconds {
        Some(seconds) if seconds > LONGEST => Err(invalid(at, format!("it must be at most {LONGEST}"))),
        _ => Ok(()),
    }
}

fn check_command(exec: Option<&ExecAction>, at: &str) -> Result<()> {
    match exec {
        Some(exec) if exec.command.is_empty() => {
            Err(invalid(&format!("{at}/exec/command"), "it names no program"))
        }
        _ => Ok(()),
    }
}

fn check_port(port: Option<&PortRef>, at: &str, container: &Container) -> Result<()> {
    match port {
        Some(PortRef::Name(name)) if !container.ports.iter().any(|port| port.name == *name) => {
            Err(invalid(at, format!("the container has no port {name:?}")))
        }
        _ => Ok(()),
    }
}
