//! A pod's document: a Kubernetes `v1.Pod`, as YAML or as JSON.
//!
//! The types have the fields that are honoured, by the names that Kubernetes gives them. Any other field is refused by its
//! JSON pointer.

mod pod;
mod container;
mod resources;
mod volumes;
mod handlers;
mod security;
mod sysctls;
mod checks;

use std::time::Duration;

use crate::error::{Code, Error, Result};
use crate::stages::spec::json;

pub(crate) use checks::is_label;
pub use container::{Container, EnvVar, Port, PullPolicy};
pub use handlers::{ExecAction, Handler, HttpGet, Lifecycle, PortRef, Probe, Sleep, TcpSocket};
pub use pod::{HostAlias, Metadata, Pod, PodSpec, RestartPolicy};
pub use resources::{Amounts, Quantity, Resources};
pub use security::{Capabilities, PodSecurity, SeccompKind, SeccompProfile, Security};
pub use sysctls::check_sysctls;
pub use volumes::{
    Claim, EmptyDir, HostPath, ImageVolume, SandboxVolume, SecretVolume, Volume, VolumeMount, Whose,
};

/// The largest document that is read, in bytes.
pub const LARGEST: u64 = 1 << 20;

/// The longest time that a document may name, in seconds: 68 years. Moments can be reckoned with that lie so far ahead.
const LONGEST: u64 = (1 << 31) - 1;

/// The most files of a log: as many as one answer of the API can carry, and a few fewer.
pub const MOST_LOGS: u32 = 60;

/// How many files of a log are kept where the document does not say.
pub const LOG_FILES: u64 = 4;

/// How large each of them grows, in bytes, where it does not say.
pub const LOG_SIZE: u64 = 1 << 20;

/// The most that the files of a log may hold together, in bytes: they lie in memory, most often, with the states of all pods.
pub const MOST_LOGGED: u64 = 64 << 20;

/// So many seconds, or the longest time that a document may name.
pub fn seconds(count: u64) -> Duration {
    Duration::from_secs(count.min(LONGEST))
}

/// The pod that `text` describes.
///
/// # Errors
/// `InvalidSpec` with the JSON pointer of what is wrong, unknown or not supported.
pub fn parse(text: &[u8]) -> Result<Pod> {
    let pod: Pod = read(text)?;
    checks::check(&pod)?;
    Ok(pod)
}

/// Whether `pod` keeps to what a document must.
///
/// # Errors
/// `InvalidSpec` with the JSON pointer of what does not.
pub fn check(pod: &Pod) -> Result<()> {
    checks::check(pod)
}

/// Whether `resources` can be understood.
///
/// # Errors
/// `InvalidSpec`.
pub fn check_resources(resources: &Resources) -> Result<()> {
    checks::check_amounts(resources, "/resources")
}

impl Pod {
    /// Gives the pod users of its own, which are not the host's.
    ///
    /// # Errors
    /// `InvalidSpec` where it says otherwise, or uses what is the host's.
    pub fn give_own_users(&mut self) -> Result<()> {
        if self.spec.host_users == Some(true) {
            let why = "/spec/hostUsers: it is true, and who makes the pod wants users of its own for it";
            return Err(Error::new(Code::InvalidSpec, why));
        }
        self.spec.host_users = Some(false);
        check(self)
    }
}

/// The one container below another that `text` describes, as an entry of a pod's `containers`, with mounts of the volumes of `pod` where that
/// is known.
///
/// # Errors
/// As [`parse`].
pub fn parse_container(text: &[u8], pod: Option<&Pod>) -> Result<Container> {
    let container: Container = read(text)?;
    checks::check_container(&container, "", pod.map(|pod| &*pod.spec.volumes))?;
    checks::check_below(&container)?;
    Ok(container)
}

/// The document `text`: JSON where it can be read as that, else YAML.
///
/// # Errors
/// As [`parse`].
pub fn read<T: serde::de::DeserializeOwned>(text: &[u8]) -> Result<T> {
    if serde_json::from_slice::<serde::de::IgnoredAny>(text).is_ok() {
        return json::exactly(text, "");
    }
    let text = std::str::from_utf8(text)
        .map_err(|e| Error::new(Code::InvalidSpec, format!("byte {} is no UTF-8", e.valid_up_to())))?;
    let value = coracle_yaml::read(text).map_err(|e| {
        let error = Error::new(Code::InvalidSpec, e.why);
        e.hint.map_or(error.clone(), |hint| error.hint(hint))
    })?;
    json::from_value(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::plan::Role;

    const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec:\n  containers:\n";

    fn error(containers: &str) -> String {
        parse(format!("{POD}{containers}").as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn yaml_and_json_say_the_same() {
        let yaml = format!("{POD}  - {{name: a, image: i, tty: true}}\n");
        let json = r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web"},
            "spec": {"containers": [{"name": "a", "image": "i", "tty": true}]}}"#;
        assert_eq!(parse(yaml.as_bytes()).unwrap(), parse(json.as_bytes()).unwrap());
    }

    #[test]
    fn what_is_not_honoured_is_refused_by_its_pointer() {
        for (text, words) in [
            (
                "  - {name: a, image: i, envFrom: []}",
                "/spec/containers/0/envFrom: it is unknown or not supported",
            ),
            ("  - {name: a, image: i}\n  affinity: {}", "/spec/affinity: it is unknown or not supported"),
            ("  - {name: a, image: 7}", "/spec/containers/0/image: invalid type"),
            ("  - {name: A, image: i}", "/spec/containers/0/name: \"A\" is no name"),
            (
                "  - {name: a, image: i}\n  - {name: a, image: i}",
                "/spec/containers/1/name: \"a\" stands twice",
            ),
            ("  - {name: a}", "/spec/containers/0/image: it is missing"),
            ("    []", "/spec/containers: there must be one"),
            (
                "  - {name: a, image: i, volumeMounts: [{name: v, mountPath: /v}]}",
                "/spec/containers/0/volumeMounts/0/name: there is no volume \"v\"",
            ),
            (
                "  - {name: a, image: i, livenessProbe: {periodSeconds: 1}}",
                "/spec/containers/0/livenessProbe: one of exec, httpGet and tcpSocket",
            ),
            (
                "  - {name: a, image: i, resources: {limits: {memory: 1Xi}}}",
                "/spec/containers/0/resources/limits/memory: \"1Xi\" is no quantity",
            ),
            (
                "  - {name: a, image: i, livenessProbe: {exec: {command: [a]}, periodSeconds: 2147483648}}",
                "/spec/containers/0/livenessProbe/periodSeconds: it must be at most 2147483647",
            ),
            (
                "  - {name: a, image: i, lifecycle: {preStop: {sleep: {seconds: 9223372036854775807}}}}",
                "/spec/containers/0/lifecycle/preStop/sleep/seconds: it must be at most",
            ),
            (
                "  - {name: a, image: i}\n  activeDeadlineSeconds: 9223372036854775807",
                "/spec/activeDeadlineSeconds: it must be at most",
            ),
            (
                "  - {name: a, image: i}\n  terminationGracePeriodSeconds: 9223372036854775807",
                "/spec/terminationGracePeriodSeconds: it must be at most",
            ),
            (
                "  - {name: a, image: i}\n  volumes: [{name: v, secret: {secretName: s, defaultMode: 0o1777}}]",
                "/spec/volumes/0/secret/defaultMode: it must be at most 511 (0777)",
            ),
            (
                "  - {name: a, image: i}\n  volumes: [{name: v, sandbox: {path: a/b, of: parent}}, {name: w, sandbox: {path: a}}]",
                "/spec/volumes/0/sandbox/path: it lies in that of volume \"w\"",
            ),
            (
                "  - {name: a, image: i, restartPolicy: Always}",
                "/spec/containers/0/restartPolicy: is for init containers",
            ),
        ] {
            let error = error(text);
            assert!(error.contains(words), "{text}: {error}");
        }
    }

    #[test]
    fn what_no_host_could_have_is_refused_by_its_pointer() {
        const ONE: &str = "  - {name: a, image: i}\n";
        for (text, words) in [
            ("  hostname: \"a b\\nc\"", "/spec/hostname: \"a b\\nc\" is no name of a host"),
            (&*format!("  hostname: {0}.{0}", "x".repeat(32)), "/spec/hostname: it has more than 63 letters"),
            (
                "  hostAliases: [{ip: nope, hostnames: [db]}]",
                "/spec/hostAliases/0/ip: \"nope\" is no address",
            ),
            (
                "  hostAliases: [{ip: '::1', hostnames: [db.local, \"x\\n5.6.7.8 evil\"]}]",
                "/spec/hostAliases/0/hostnames/1: \"x\\n5.6.7.8 evil\" is no name of a host",
            ),
            (
                "  hostNetwork: true\n  hostAliases: [{ip: 10.0.0.7, hostnames: [db]}]",
                "/spec/hostAliases: hostNetwork excludes them",
            ),
            (
                "  volumes: [{name: v, hostPath: {path: /x, type: CharDevice}}]",
                "/spec/volumes/0/hostPath/type: \"CharDevice\" is unknown or not supported",
            ),
            (
                "  volumes: [{name: v, persistentVolumeClaim: {claimName: ../../x}}]",
                "/spec/volumes/0/persistentVolumeClaim/claimName: \"../../x\" is no name of a volume",
            ),
        ] {
            let error = error(&format!("{ONE}{text}"));
            assert!(error.starts_with(words), "{text}: {error}");
        }
        let good = "  hostname: web.example\n  hostAliases: [{ip: '::1', hostnames: [db, db.local]}]";
        parse(format!("{POD}{ONE}{good}").as_bytes()).unwrap();
    }

    #[test]
    fn what_could_never_be_launched_is_refused_by_its_pointer() {
        for (text, words) in [
            (
                "  - {name: a, image: i, workingDir: tmp}",
                "/spec/containers/0/workingDir: it is not an absolute",
            ),
            (
                "  - {name: a, image: i, securityContext: {capabilities: {add: [chown, NOPE]}}}",
                "/spec/containers/0/securityContext/capabilities/add/1: no capability is named \"NOPE\"",
            ),
            (
                "  - {name: a, image: i, securityContext: {privileged: true, allowPrivilegeEscalation: false}}",
                "/spec/containers/0/securityContext/allowPrivilegeEscalation: privileged excludes false",
            ),
            (
                "  - {name: a, image: i, resources: {limits: {cpu: 500m}, requests: {cpu: 1}}}",
                "/spec/containers/0/resources/requests/cpu: it is more than the limit",
            ),
            (
                "  - {name: a, image: i, livenessProbe: {exec: {command: [a]}, successThreshold: 2}}",
                "/spec/containers/0/livenessProbe/successThreshold: it must be 1 but for readiness",
            ),
        ] {
            let error = error(text);
            assert!(error.contains(words), "{text}: {error}");
        }
    }

    #[test]
    fn what_would_end_a_line_of_a_request_is_refused_by_its_pointer() {
        for (text, words) in [
            (
                "  - {name: a, image: i, livenessProbe: {httpGet: {port: 80, path: \"/a HTTP/1.1\\r\\nX: y\"}}}",
                "/spec/containers/0/livenessProbe/httpGet/path: it has more than one line",
            ),
            (
                "  - {name: a, image: i, lifecycle: {preStop: {httpGet: {port: 80, httpHeaders: [{name: a, value: \"b\\nc: d\"}]}}}}",
                "/spec/containers/0/lifecycle/preStop/httpGet/httpHeaders/0/value: it has more than one line",
            ),
        ] {
            let error = error(text);
            assert!(error.contains(words), "{text}: {error}");
        }
    }

    #[test]
    fn what_containers_below_others_do_not_have_is_refused_by_its_pointer() {
        for (rest, words) in [
            ("restartPolicy: Always", "/restartPolicy: a container below another"),
            ("ports: [{containerPort: 80, hostPort: 80}]", "/ports/0/hostPort: ports are published"),
        ] {
            let text = format!("name: a\nimage: i\n{rest}\n");
            let error = parse_container(text.as_bytes(), None).unwrap_err().to_string();
            assert!(error.starts_with(words), "{error}");
        }
    }

    #[test]
    fn the_hosts_socket_is_no_name_of_a_pod() {
        let text = POD.replace("name: web", "name: host.sock") + "  - {name: a, image: i}";
        let error = parse(text.as_bytes()).unwrap_err().to_string();
        assert!(error.starts_with("/metadata/name: \"host.sock\" is no name"), "{error}");
    }

    #[test]
    fn annotations_of_isolators_are_known_ones_of_containers_that_are_there() {
        let parsed = |annotation: &str| {
            let metadata = format!("metadata: {{name: web, annotations: {{{annotation}}}}}");
            let text = POD.replace("metadata: {name: web}", &metadata) + "  - {name: a, image: i}";
            parse(text.as_bytes()).map_err(|e| e.to_string())
        };
        let pod = parsed("io.coracle.ports: '80', io.coracle.ports/a: '90', other: x").unwrap();
        let options =
            crate::pod::plan::member(pod.spec.containers[0].clone(), Role::Main, RestartPolicy::Never)
                .options(&pod);
        let wanted = [("io.coracle.ports", "90"), ("other", "x")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        assert_eq!(options.annotations, wanted.into());
        for (annotation, words) in [
            ("io.coracle.port: '80'", "\"io.coracle.port\" is unknown or not supported"),
            ("io.coracle.network: front", "\"io.coracle.network\" is unknown or not supported"),
            ("io.coracle.ports/b: '80'", "names the container \"b\", which is not there"),
        ] {
            let error = parsed(annotation).unwrap_err();
            assert!(error.starts_with("/metadata/annotations: ") && error.contains(words), "{error}");
        }
        let error = parsed("io.coracle/log-files: '61'").unwrap_err();
        assert_eq!(error, "/metadata/annotations/io.coracle~1log-files: it must be at most 60");
        parsed("io.coracle/log-size: '10485760', io.coracle/log-files: '5'").unwrap();
        let at = "/metadata/annotations/io.coracle~1log-size: ";
        for many in ["io.coracle/log-size: '1099511627776'", "io.coracle/log-size: '20000000'"] {
            let error = parsed(many).unwrap_err();
            assert!(error.starts_with(at) && error.contains("67108864"), "{error}");
        }
    }
}
