//! The checks of a configuration: a list, each with a name, each telling the field.

use std::path::Path;

use oci_spec::runtime::{Linux, Process, Spec};

use super::{linux, namespace_checks, scheduling};
use crate::error::{Code, Error, Result};

pub(super) type Check = fn(&Spec) -> Result<()>;

const CHECKS: &[Check] = &[
    version_is_known,
    root_is_named,
    process_is_runnable,
    users_are_possible,
    exec_affinity_is_a_list,
    mount_destinations_are_absolute,
    linux_fields_are_honoured,
    mask_paths_are_absolute,
    hooks_are_absolute,
];

/// Runs every check on `spec`.
///
/// # Errors
/// The first failure.
pub fn check(spec: &Spec) -> Result<()> {
    CHECKS.iter().chain(namespace_checks::CHECKS).try_for_each(|check| check(spec))
}

/// Checks the process of an `exec` alone.
///
/// # Errors
/// The first failure.
pub fn check_process(process: &Process) -> Result<()> {
    runnable(process)?;
    possible_users(process)
}

pub(super) fn invalid(why: impl Into<String>) -> Error {
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
    if named { Ok(()) } else { Err(invalid("/root/path is missing")) }
}

fn process_is_runnable(spec: &Spec) -> Result<()> {
    spec.process().as_ref().map_or_else(|| Err(invalid("process is missing")), runnable)
}

fn runnable(process: &Process) -> Result<()> {
    if process.args().as_ref().is_none_or(Vec::is_empty) {
        return Err(invalid("/process/args is empty"));
    }
    let strings = process.args().iter().chain(process.env()).flatten();
    if strings.into_iter().any(|s| s.contains('\0')) {
        return Err(invalid("/process/args or /process/env holds a NUL byte"));
    }
    if !process.cwd().is_absolute() {
        return Err(invalid(format!("/process/cwd is {:?}, not an absolute path", process.cwd())));
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
        return Err(invalid("/process/user holds the ID 4294967295, which is no user or group"));
    }
    if let Some(umask) = user.umask().filter(|umask| *umask > 0o777) {
        return Err(invalid(format!("/process/user/umask is {umask}")).hint("at most 511, which is 0777"));
    }
    Ok(())
}

fn exec_affinity_is_a_list(spec: &Spec) -> Result<()> {
    spec.process().as_ref().map_or(Ok(()), |process| scheduling::affinity(process).map(drop))
}

fn mount_destinations_are_absolute(spec: &Spec) -> Result<()> {
    for (index, mount) in spec.mounts().iter().flatten().enumerate() {
        if mount.destination().as_os_str().is_empty() {
            return Err(invalid(format!("/mounts/{index}/destination is empty")));
        }
    }
    Ok(())
}

fn linux_fields_are_honoured(spec: &Spec) -> Result<()> {
    let linux: &Linux = linux(spec)?;
    refuse(&[
        ("/linux/netDevices", linux.net_devices().as_ref().is_some_and(|d| !d.is_empty())),
        ("vm", spec.vm().is_some()),
    ])
}

fn mask_paths_are_absolute(spec: &Spec) -> Result<()> {
    let linux = linux(spec)?;
    let paths = linux.masked_paths().iter().chain(linux.readonly_paths()).flatten();
    match paths.into_iter().find(|p| !Path::new(p).is_absolute()) {
        Some(path) => Err(invalid(format!("/linux/maskedPaths or readonlyPaths: {path:?} is not absolute"))),
        None => Ok(()),
    }
}

fn hooks_are_absolute(spec: &Spec) -> Result<()> {
    for (stage, hooks) in crate::hooks::all(spec) {
        for (index, hook) in hooks.iter().enumerate() {
            if !hook.path().is_absolute() {
                let field = format!("/hooks/{stage}/{index}/path");
                return Err(invalid(format!("{field} is {:?}, not an absolute path", hook.path())));
            }
            if hook.timeout().is_some_and(|t| t <= 0) {
                return Err(invalid(format!("/hooks/{stage}/{index}/timeout is not positive")));
            }
            if let Some(odd) = hook.env().iter().flatten().find(|v| !v.contains('=')) {
                return Err(invalid(format!(
                    "/hooks/{stage}/{index}/env holds {odd:?}, which is not NAME=value"
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
            ("/root/path", json!(""), "/root/path is missing"),
            ("/process/args", json!([]), "/process/args is empty"),
            ("/process/cwd", json!("tmp"), "/process/cwd is \"tmp\", not an absolute path"),
            ("/process/user/uid", json!(u32::MAX), "/process/user holds the ID 4294967295"),
            (
                "/process/execCPUAffinity",
                json!({"final": "3-1"}),
                "/process/execCPUAffinity/final is \"3-1\"",
            ),
            ("/process/user", json!({"uid": 0, "gid": 0, "umask": 512}), "/process/user/umask is 512"),
            ("/linux/netDevices", json!({"eth0": {}}), "/linux/netDevices is not supported"),
            (
                "/linux/namespaces",
                json!([{"type": "mount"}, {"type": "pid"}, {"type": "pid"}]),
                "/linux/namespaces names pid twice",
            ),
            ("/linux/uidMappings", json!([{"containerID": 0, "hostID": 1, "size": 1}]), "no \"user\""),
            ("/linux/sysctl", json!({"kernel.core_pattern": "x"}), "belongs to no namespace"),
            ("/linux/sysctl", json!({"kernel.shmmax": "1"}), "has no \"ipc\""),
            ("/linux/sysctl", json!({"net.a/../../b": "1"}), "is malformed"),
            ("/linux/sysctl", json!({"net.a": "1\n2"}), "is malformed"),
            ("/linux/maskedPaths", json!(["proc/kcore"]), "\"proc/kcore\" is not absolute"),
            ("/hooks", json!({"poststart": [{"path": "x"}]}), "/hooks/poststart/0/path is \"x\""),
            (
                "/hooks",
                json!({"prestart": [{"path": "/x", "env": ["A"]}]}),
                "/hooks/prestart/0/env holds \"A\"",
            ),
        ] {
            let error = check(&spec_with(pointer, value)).unwrap_err().to_string();
            assert!(error.contains(words), "{pointer}: {error}");
        }
    }
}
