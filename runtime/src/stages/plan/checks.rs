//! The checks of a configuration: a list, each with a name, each telling the field.

use std::path::Path;

use oci_spec::runtime::{Linux, LinuxNamespaceType, Process, Spec};

use super::{linux, scheduling};
use crate::error::{Code, Error, Result};

type Check = fn(&Spec) -> Result<()>;

const CHECKS: &[Check] = &[
    version_is_known,
    root_is_named,
    process_is_runnable,
    users_are_possible,
    exec_affinity_is_a_list,
    mount_destinations_are_absolute,
    linux_fields_are_honoured,
    a_mount_namespace_is_new,
    namespaces_are_named_once,
    host_name_has_its_namespace,
    id_mappings_have_their_namespace,
    sysctls_have_their_namespace,
    mask_paths_are_absolute,
    hooks_are_absolute,
];

/// Runs every check on `spec`.
///
/// # Errors
/// The first failure.
pub fn check(spec: &Spec) -> Result<()> {
    CHECKS.iter().try_for_each(|check| check(spec))
}

/// Checks the process of an `exec` alone.
///
/// # Errors
/// The first failure.
pub fn check_process(process: &Process) -> Result<()> {
    runnable(process)?;
    possible_users(process)
}

fn invalid(why: impl Into<String>) -> Error {
    Error::new(Code::InvalidSpec, why)
}

fn refuse(fields: &[(&str, bool)]) -> Result<()> {
    match fields.iter().find(|(_, is_set)| *is_set) {
        Some((field, _)) => {
            Err(Error::new(Code::Unsupported, format!("{field} is not supported yet")).hint("leave it out"))
        }
        None => Ok(()),
    }
}

fn version_is_known(spec: &Spec) -> Result<()> {
    let version = spec.version();
    let mut numbers = version.split(['.', '-', '+']).map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(1)), Some(Ok(_))) => Ok(()),
        _ => Err(invalid(format!("ociVersion is {version:?}")).hint("this runtime follows versions 1.x")),
    }
}

fn root_is_named(spec: &Spec) -> Result<()> {
    let named = spec.root().as_ref().is_some_and(|r| !r.path().as_os_str().is_empty());
    if named { Ok(()) } else { Err(invalid("root.path is missing")) }
}

fn process_is_runnable(spec: &Spec) -> Result<()> {
    spec.process().as_ref().map_or_else(|| Err(invalid("process is missing")), runnable)
}

fn runnable(process: &Process) -> Result<()> {
    if process.args().as_ref().is_none_or(Vec::is_empty) {
        return Err(invalid("process.args is empty"));
    }
    let strings = process.args().iter().chain(process.env()).flatten();
    if strings.into_iter().any(|s| s.contains('\0')) {
        return Err(invalid("process.args or process.env holds a NUL byte"));
    }
    if !process.cwd().is_absolute() {
        return Err(invalid(format!("process.cwd is {:?}, not an absolute path", process.cwd())));
    }
    Ok(())
}

fn users_are_possible(spec: &Spec) -> Result<()> {
    spec.process().as_ref().map_or(Ok(()), possible_users)
}

/// The ID -1 means "unchanged" to the kernel: asked for, it would leave the process root.
fn possible_users(process: &Process) -> Result<()> {
    let user = process.user();
    let groups = user.additional_gids().iter().flatten().copied();
    if user.uid() == u32::MAX || user.gid() == u32::MAX || groups.into_iter().any(|g| g == u32::MAX) {
        return Err(invalid("process.user holds the ID 4294967295, which is no user or group"));
    }
    if let Some(umask) = user.umask().filter(|umask| *umask > 0o777) {
        return Err(invalid(format!("process.user.umask is {umask}")).hint("at most 511, which is 0777"));
    }
    Ok(())
}

fn exec_affinity_is_a_list(spec: &Spec) -> Result<()> {
    spec.process().as_ref().map_or(Ok(()), |process| scheduling::affinity(process).map(drop))
}

fn mount_destinations_are_absolute(spec: &Spec) -> Result<()> {
    for (index, mount) in spec.mounts().iter().flatten().enumerate() {
        if mount.destination().as_os_str().is_empty() {
            return Err(invalid(format!("mounts[{index}].destination is empty")));
        }
    }
    Ok(())
}

fn linux_fields_are_honoured(spec: &Spec) -> Result<()> {
    let linux: &Linux = linux(spec)?;
    refuse(&[
        ("linux.netDevices", linux.net_devices().as_ref().is_some_and(|d| !d.is_empty())),
        ("vm", spec.vm().is_some()),
    ])
}

/// Whether the configuration asks for a new namespace of kind `kind`, or joins one.
fn has(spec: &Spec, kind: LinuxNamespaceType) -> bool {
    linux(spec).is_ok_and(|l| l.namespaces().iter().flatten().any(|n| n.typ() == kind))
}

fn a_mount_namespace_is_new(spec: &Spec) -> Result<()> {
    let namespaces = linux(spec)?.namespaces();
    let mount = namespaces.iter().flatten().find(|n| n.typ() == LinuxNamespaceType::Mount);
    match mount {
        Some(namespace) => refuse(&[("linux.namespaces: a path for \"mount\"", namespace.path().is_some())]),
        None => Err(Error::new(Code::Unsupported, "linux.namespaces without \"mount\" is not supported yet")
            .hint("add {\"type\": \"mount\"}")),
    }
}

fn namespaces_are_named_once(spec: &Spec) -> Result<()> {
    let mut seen = Vec::new();
    for namespace in linux(spec)?.namespaces().iter().flatten() {
        if seen.contains(&namespace.typ()) {
            return Err(invalid(format!("linux.namespaces names {} twice", namespace.typ())));
        }
        if let Some(path) = namespace.path()
            && !path.is_absolute()
        {
            return Err(invalid(format!("linux.namespaces: the path {path:?} is not absolute")));
        }
        let joins_user = namespace.typ() == LinuxNamespaceType::User && namespace.path().is_some();
        refuse(&[("linux.namespaces: a path for \"user\"", joins_user)])?;
        seen.push(namespace.typ());
    }
    Ok(())
}

fn host_name_has_its_namespace(spec: &Spec) -> Result<()> {
    let is_set = |name: &Option<String>| name.as_ref().is_some_and(|name| !name.is_empty());
    let named = is_set(spec.hostname()) || is_set(spec.domainname());
    if named && !has(spec, LinuxNamespaceType::Uts) {
        return Err(invalid("hostname is set but linux.namespaces has no \"uts\"")
            .hint("add it, or the host would be renamed"));
    }
    Ok(())
}

fn id_mappings_have_their_namespace(spec: &Spec) -> Result<()> {
    let linux = linux(spec)?;
    let is_mapped = |m: &Option<Vec<_>>| m.as_ref().is_some_and(|m| !m.is_empty());
    let mapped = is_mapped(linux.uid_mappings()) || is_mapped(linux.gid_mappings());
    match (mapped, has(spec, LinuxNamespaceType::User)) {
        (true, false) => Err(invalid("linux.uidMappings is set but linux.namespaces has no \"user\"")),
        (false, true) => Err(invalid("linux.namespaces has \"user\" but linux.uidMappings is empty")),
        _ if has(spec, LinuxNamespaceType::Time) || linux.time_offsets().is_none() => Ok(()),
        _ => Err(invalid("linux.timeOffsets is set but linux.namespaces has no \"time\"")),
    }
}

/// A sysctl that no namespace of the container holds would be the host's.
fn sysctls_have_their_namespace(spec: &Spec) -> Result<()> {
    for (name, value) in linux(spec)?.sysctl().iter().flatten() {
        let field = format!("linux.sysctl[{name:?}]");
        if name.contains("..") || name.starts_with(['.', '/']) || value.contains(['\n', '\0']) {
            return Err(invalid(format!("{field} is malformed")));
        }
        let Some(kind) = namespace_of(&name.replace('/', ".")) else {
            return Err(invalid(format!("{field} belongs to no namespace")).hint("set it on the host"));
        };
        if !has(spec, kind) {
            return Err(invalid(format!(
                "{field} is set but linux.namespaces has no {:?}",
                kind.to_string()
            ))
            .hint("add it, or the host's would be set"));
        }
        if name == "kernel.hostname" {
            return Err(invalid(format!("{field}: use hostname instead")));
        }
    }
    Ok(())
}

fn namespace_of(name: &str) -> Option<LinuxNamespaceType> {
    const IPC: &[&str] = &[
        "kernel.msgmax",
        "kernel.msgmnb",
        "kernel.msgmni",
        "kernel.sem",
        "kernel.shmall",
        "kernel.shmmax",
        "kernel.shmmni",
        "kernel.shm_rmid_forced",
        "kernel.auto_msgmni",
        "kernel.msg_next_id",
        "kernel.sem_next_id",
        "kernel.shm_next_id",
    ];
    match name {
        _ if name.starts_with("net.") => Some(LinuxNamespaceType::Network),
        _ if name.starts_with("fs.mqueue.") || IPC.contains(&name) => Some(LinuxNamespaceType::Ipc),
        "kernel.domainname" | "kernel.hostname" => Some(LinuxNamespaceType::Uts),
        _ if name.starts_with("user.") => Some(LinuxNamespaceType::User),
        _ => None,
    }
}

fn mask_paths_are_absolute(spec: &Spec) -> Result<()> {
    let linux = linux(spec)?;
    let paths = linux.masked_paths().iter().chain(linux.readonly_paths()).flatten();
    match paths.into_iter().find(|p| !Path::new(p).is_absolute()) {
        Some(path) => Err(invalid(format!("linux.maskedPaths or readonlyPaths: {path:?} is not absolute"))),
        None => Ok(()),
    }
}

fn hooks_are_absolute(spec: &Spec) -> Result<()> {
    for (stage, hooks) in crate::hooks::all(spec) {
        for (index, hook) in hooks.iter().enumerate() {
            if !hook.path().is_absolute() {
                let field = format!("hooks.{stage}[{index}].path");
                return Err(invalid(format!("{field} is {:?}, not an absolute path", hook.path())));
            }
            if hook.timeout().is_some_and(|t| t <= 0) {
                return Err(invalid(format!("hooks.{stage}[{index}].timeout is not positive")));
            }
            if let Some(odd) = hook.env().iter().flatten().find(|v| !v.contains('=')) {
                return Err(invalid(format!(
                    "hooks.{stage}[{index}].env holds {odd:?}, which is not NAME=value"
                )));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// A sound configuration with `value` at `pointer` instead.
    fn spec_with(pointer: &str, value: Value) -> Spec {
        let mut spec = json!({
            "ociVersion": "1.2.0",
            "root": {"path": "rootfs"},
            "process": {"user": {"uid": 0, "gid": 0}, "cwd": "/", "args": ["true"]},
            "linux": {"namespaces": [{"type": "mount"}, {"type": "uts"}, {"type": "network"}]},
        });
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        spec.pointer_mut(parent).unwrap()[key] = value;
        serde_json::from_value(spec).unwrap()
    }

    #[test]
    fn a_sound_configuration_passes() {
        check(&spec_with("/hostname", json!("box"))).unwrap();
    }

    #[test]
    fn each_failure_names_the_field() {
        for (pointer, value, words) in [
            ("/ociVersion", json!("2.0.0"), "ociVersion is \"2.0.0\""),
            ("/ociVersion", json!("one"), "ociVersion is \"one\""),
            ("/root/path", json!(""), "root.path is missing"),
            ("/process/args", json!([]), "process.args is empty"),
            ("/process/cwd", json!("tmp"), "process.cwd is \"tmp\", not an absolute path"),
            ("/process/user/uid", json!(u32::MAX), "process.user holds the ID 4294967295"),
            ("/process/execCPUAffinity", json!({"final": "3-1"}), "process.execCPUAffinity.final is \"3-1\""),
            ("/process/user", json!({"uid": 0, "gid": 0, "umask": 512}), "process.user.umask is 512"),
            ("/linux/netDevices", json!({"eth0": {}}), "linux.netDevices is not supported"),
            ("/linux/namespaces", json!([{"type": "pid"}]), "linux.namespaces without \"mount\""),
            (
                "/linux/namespaces",
                json!([{"type": "mount"}, {"type": "pid"}, {"type": "pid"}]),
                "linux.namespaces names pid twice",
            ),
            ("/linux/uidMappings", json!([{"containerID": 0, "hostID": 1, "size": 1}]), "no \"user\""),
            ("/linux/sysctl", json!({"kernel.core_pattern": "x"}), "belongs to no namespace"),
            ("/linux/sysctl", json!({"kernel.shmmax": "1"}), "has no \"ipc\""),
            ("/linux/sysctl", json!({"net.a/../../b": "1"}), "is malformed"),
            ("/linux/sysctl", json!({"net.a": "1\n2"}), "is malformed"),
            ("/linux/maskedPaths", json!(["proc/kcore"]), "\"proc/kcore\" is not absolute"),
            ("/hooks", json!({"poststart": [{"path": "x"}]}), "hooks.poststart[0].path is \"x\""),
            (
                "/hooks",
                json!({"prestart": [{"path": "/x", "env": ["A"]}]}),
                "hooks.prestart[0].env holds \"A\"",
            ),
        ] {
            let error = check(&spec_with(pointer, value)).unwrap_err().to_string();
            assert!(error.contains(words), "{pointer}: {error}");
        }
    }
}
