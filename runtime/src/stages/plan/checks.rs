//! The checks of a configuration: a list, each with a name, each telling the field.

use std::path::Path;

use oci_spec::runtime::{Process, Spec};

use super::process::{KEEP_GROUPS, keeps_groups};
use super::{linux, namespace_checks, scheduling};
use crate::error::{Code, Error, Result};

pub(super) type Check = fn(&Spec) -> Result<()>;

const CHECKS: &[Check] = &[
    version_is_known,
    root_is_named,
    process_is_runnable,
    users_are_possible,
    exec_affinity_is_a_list,
    mount_destinations_are_named,
    no_machine_is_asked_for,
    mask_paths_are_absolute,
    hooks_are_runnable,
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

fn version_is_known(spec: &Spec) -> Result<()> {
    let version = spec.version();
    let mut numbers = version.split(['.', '-', '+']).map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(1)), Some(Ok(_))) => Ok(()),
        _ => Err(invalid(format!("/ociVersion is {version:?}")).hint("this runtime follows versions 1.x")),
    }
}

fn root_is_named(spec: &Spec) -> Result<()> {
    let named = spec.root().as_ref().is_some_and(|r| !r.path().as_os_str().is_empty());
    if named {
        return Ok(());
    }
    Err(invalid("/root/path is missing").hint("name the directory of the root file system"))
}

fn process_is_runnable(spec: &Spec) -> Result<()> {
    spec.process().as_ref().map_or_else(|| Err(invalid("/process is missing")), runnable)
}

fn runnable(process: &Process) -> Result<()> {
    if process.args().as_ref().is_none_or(Vec::is_empty) {
        return Err(invalid("/process/args is empty").hint("name the program"));
    }
    let mut env = process.env().iter().flatten().enumerate();
    if let Some((at, odd)) = env.find(|(_, variable)| !variable.contains('=')) {
        return Err(invalid(format!("/process/env/{at} is {odd:?}")).hint("write NAME=value"));
    }
    absolute(process.cwd(), || "/process/cwd".to_owned())
}

fn absolute(path: &Path, field: impl FnOnce() -> String) -> Result<()> {
    if path.is_absolute() {
        return Ok(());
    }
    Err(invalid(format!("{} is {path:?}, not an absolute path", field())))
}

fn users_are_possible(spec: &Spec) -> Result<()> {
    let Some(process) = spec.process() else { return Ok(()) };
    let names_groups = process.user().additional_gids().as_ref().is_some_and(|groups| !groups.is_empty());
    if names_groups && keeps_groups(spec) {
        let why = format!("/process/user/additionalGids is set, and so is /annotations/{KEEP_GROUPS}");
        return Err(invalid(why).hint("groups are named, or kept"));
    }
    possible_users(process)
}

/// The ID -1 means "unchanged" to the kernel: asked for, it would leave the process root.
fn possible_users(process: &Process) -> Result<()> {
    let user = process.user();
    let groups = user.additional_gids().iter().flatten().enumerate();
    let groups = groups.map(|(index, gid)| (format!("additionalGids/{index}"), *gid));
    let ids = [("uid".to_owned(), user.uid()), ("gid".to_owned(), user.gid())];
    if let Some((field, _)) = ids.into_iter().chain(groups).find(|(_, id)| *id == u32::MAX) {
        let why = format!("/process/user/{field} is 4294967295, which is no user or group");
        return Err(invalid(why).hint("the kernel takes it for \"unchanged\""));
    }
    if let Some(umask) = user.umask().filter(|umask| *umask > 0o777) {
        return Err(invalid(format!("/process/user/umask is {umask}")).hint("at most 511, which is 0777"));
    }
    Ok(())
}

fn exec_affinity_is_a_list(spec: &Spec) -> Result<()> {
    spec.process().as_ref().map_or(Ok(()), |process| scheduling::affinity(process).map(drop))
}

fn mount_destinations_are_named(spec: &Spec) -> Result<()> {
    for (index, mount) in spec.mounts().iter().flatten().enumerate() {
        if mount.destination().as_os_str().is_empty() {
            return Err(invalid(format!("/mounts/{index}/destination is empty")));
        }
    }
    Ok(())
}

fn no_machine_is_asked_for(spec: &Spec) -> Result<()> {
    match spec.vm() {
        Some(_) => Err(Error::new(Code::Unsupported, "/vm is not supported yet").hint("leave it out")),
        None => Ok(()),
    }
}

fn mask_paths_are_absolute(spec: &Spec) -> Result<()> {
    let linux = linux(spec)?;
    for (list, paths) in [("maskedPaths", linux.masked_paths()), ("readonlyPaths", linux.readonly_paths())] {
        for (index, path) in paths.iter().flatten().enumerate() {
            absolute(Path::new(path), || format!("/linux/{list}/{index}"))?;
        }
    }
    Ok(())
}

fn hooks_are_runnable(spec: &Spec) -> Result<()> {
    for (stage, hooks) in crate::hooks::all(spec) {
        for (index, hook) in hooks.iter().enumerate() {
            let field = format!("/hooks/{stage}/{index}");
            absolute(hook.path(), || format!("{field}/path"))?;
            if let Some(timeout) = hook.timeout().filter(|timeout| *timeout <= 0) {
                return Err(
                    invalid(format!("{field}/timeout is {timeout}")).hint("a positive number of seconds")
                );
            }
            let mut env = hook.env().iter().flatten().enumerate();
            if let Some((at, odd)) = env.find(|(_, variable)| !variable.contains('=')) {
                return Err(invalid(format!("{field}/env/{at} is {odd:?}")).hint("write NAME=value"));
            }
        }
    }
    Ok(())
}
