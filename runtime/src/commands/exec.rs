//! `exec`: runs one more process in a container.

use std::os::fd::AsFd;

use coracle_isolator::{CgroupVersion, Config, Handles};
use coracle_isolator_host::Registry;
use oci_spec::runtime::{Capability, LinuxCapabilities, Process, Spec, User};

use crate::cli::{self, Global};
use crate::error::{Code, Context, Error, Result};
use crate::stages::plan::Launch;
use crate::stages::plan::namespaces::{self, Namespaces};
use crate::stages::plan::process::ProcessPlan;
use crate::stages::plan::scheduling;
use crate::stages::spawn::Target;
use crate::stages::watch::{Limits, Watch};
use crate::stages::{isolate, plan, prepare, release, spawn, spec};
use crate::state::{Record, State, Status};
use crate::{isolators, seccomp_agent, self_image};

/// Runs the process and returns its exit code.
///
/// # Errors
/// `IllegalState` where the container has stopped.
pub fn exec(global: &Global, options: &cli::Exec) -> Result<u8> {
    self_image::protect(&options.launch.preserve_fds, options.process.as_deref(), &[])?;
    let id = &options.id;
    let watch = (!options.launch.detach).then(Watch::begin).transpose()?;
    // Looked at only: a long `start` of one process must not keep others out.
    let running = State::open_unlocked(&global.root, id).and_then(|state| launch(global, &state, options));
    let running = running.context(|| format!("executing in container {id:?}"))?;
    let Some(watch) = watch else { return Ok(0) };
    Ok(watch.watch(running, Limits::none())?.code())
}

/// Launches the process in the container of `state`.
///
/// # Errors
/// `IllegalState` where the container has stopped.
pub fn launch(global: &Global, state: &State, options: &cli::Exec) -> Result<release::Running> {
    let record = state.record()?.ok_or_else(|| not_running(Status::Creating))?;
    let (status, first) = (record.status(), record.process);
    let first = first.and_then(|first| first.open()).filter(|_| status != Status::Creating);
    let first = first.ok_or_else(|| not_running(status))?;
    if status == Status::Paused && !options.ignore_paused {
        return Err(not_running(status).hint("resume it, or use --ignore-paused to wait until somebody does"));
    }
    let mut spec = spec::kept(state)?;
    let (process, warnings) = match &options.process {
        Some(path) => {
            let (process, warnings) = spec::load_process(path)?;
            (completed(process, &spec), warnings)
        }
        None => process(options, &spec)?,
    };
    global.warn(warnings);
    plan::checks::check_process(&process)?;
    spec.set_process(Some(process));
    plan::namespace_checks::ids_are_mapped(&spec)?;
    let cgroups = match (record.process, &record.cgroup) {
        (Some(process), Some(place)) if options.cgroups.is_empty() => {
            record.cgroups()?.with(process.pid, place)?
        }
        _ => record.cgroups()?.below(&options.cgroups).context(|| "--cgroup")?,
    };
    // Whoever may freeze it, the container's own root among them, does not ask the runtime.
    if !options.ignore_paused && cgroups.is_freezing()? {
        let hint = "its cgroup is frozen: thaw it, or use --ignore-paused to wait until somebody does";
        return Err(not_running(Status::Paused).hint(hint));
    }
    let isolators = isolators::all(global)?;
    let launch = prepare(global, &record, &spec, &isolators)?;
    let target = Target { bundle: &record.bundle, first, kinds: namespaces::kinds(&spec)?, cgroups };
    if let Some(processors) = &launch.process.scheduling.affinity.before_cgroup {
        global.debug(|| format!("nsexec: affinity: {}", processors.to_hex()));
    }
    super::debug_filter(global, &launch);
    global.debug(|| "nsexec container setup: cloning a process into cgroups and namespaces".to_owned());
    let (born, cgroup) = spawn::spawn_into(&launch, target, &options.launch)?;
    let pidfd = Some(born.child.pidfd.as_fd());
    let joined = isolators.join(&Handles { id: &record.id, pidfd, cgroup: &cgroup, spec: &spec });
    global.warn(isolators.take_warnings());
    joined?;
    let ready = isolate::go(born)?;
    global.debug(|| format!("child process in init(): PID {} is in the container", ready.child.pid));
    super::announce(&options.launch, &ready.child, "setns")?;
    global.debug(|| "setns_init: about to exec the program".to_owned());
    release::release_process(ready, &record, &spec)
}

fn not_running(status: Status) -> Error {
    Error::new(Code::IllegalState, format!("cannot exec in a {status} container"))
}

fn prepare(global: &Global, record: &Record, spec: &Spec, isolators: &Registry) -> Result<Launch> {
    let version = record.cgroup.as_ref().map_or(CgroupVersion::V1, |place| place.version.into());
    let config =
        Config { id: &record.id, kind: record.kind(), bundle: &record.bundle, spec, cgroup: version };
    let mut adjusted = isolators.process(&config)?;
    global.warn(adjusted.warnings.drain(..).chain(isolators.take_warnings()));
    let process = adjusted.spec.process().as_ref();
    let process = process.ok_or_else(|| Error::new(Code::InvalidSpec, "/process is missing"))?;
    plan::checks::check_process(process).context(|| prepare::ADJUSTED)?;
    let affinity = scheduling::affinity(process)?;
    let mut process = ProcessPlan::new(&adjusted.spec)?;
    process.scheduling.affinity = affinity;
    process.adjust(&mut adjusted);
    seccomp_agent::check(spec, &process)?;
    Ok(Launch { namespaces: Namespaces::default(), inside: None, process })
}

/// The process of a document, which has from the container's own what runc gives it where the document says nothing.
fn completed(mut process: Process, spec: &Spec) -> Process {
    let Some(own) = spec.process() else { return process };
    if process.capabilities().is_none() {
        process.set_capabilities(own.capabilities().clone());
    }
    if process.apparmor_profile().is_none() {
        process.set_apparmor_profile(own.apparmor_profile().clone());
    }
    if process.selinux_label().is_none() {
        process.set_selinux_label(own.selinux_label().clone());
    }
    if process.oom_score_adj().is_none() {
        process.set_oom_score_adj(own.oom_score_adj());
    }
    if process.rlimits().as_ref().is_none_or(Vec::is_empty) {
        process.set_rlimits(own.rlimits().clone());
    }
    process
}

/// The process to run, the container's own with what the options change; and what of these is passed over.
fn process(options: &cli::Exec, spec: &Spec) -> Result<(Process, Vec<String>)> {
    let own = spec.process().clone();
    let mut process = own.ok_or_else(|| Error::new(Code::InvalidSpec, "/process is missing"))?;
    process.set_args(Some(options.args.clone()));
    process.set_terminal(Some(options.tty));
    let mut env = process.env().clone().unwrap_or_default();
    env.extend(options.env.iter().cloned());
    process.set_env(Some(env));
    if let Some(cwd) = &options.cwd {
        process.set_cwd(cwd.clone());
    }
    if let Some(user) = &options.user {
        process.set_user(parse_user(user, process.user())?);
    }
    if !options.additional_gids.is_empty() {
        let mut user = process.user().clone();
        let mut groups = user.additional_gids().clone().unwrap_or_default();
        groups.extend(&options.additional_gids);
        user.set_additional_gids(Some(groups));
        process.set_user(user);
    }
    if options.no_new_privileges {
        process.set_no_new_privileges(Some(true));
    }
    if let Some(profile) = &options.apparmor {
        process.set_apparmor_profile(Some(profile.clone()));
    }
    if let Some(label) = &options.label {
        process.set_selinux_label(Some(label.clone()));
    }
    let warnings = add_capabilities(&mut process, &options.capabilities);
    Ok((process, warnings))
}

/// `UID[:GID]`, in decimal digits and nothing else: what a shell, or an image, would make of `0x3e8` or ` 1000`
/// must not end as root (CVE-2026-30892).
pub(super) fn parse_user(text: &str, own: &User) -> Result<User> {
    let number = |digits: &str| {
        let is_plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
        digits.parse::<u32>().ok().filter(|n| is_plain && *n != u32::MAX).ok_or_else(|| {
            Error::new(Code::Usage, format!("--user {text:?} is not UID[:GID]")).hint("use numbers")
        })
    };
    let (uid, gid) = text.split_once(':').map_or((text, None), |(uid, gid)| (uid, Some(gid)));
    let mut user = own.clone();
    user.set_uid(number(uid)?);
    if let Some(gid) = gid {
        user.set_gid(number(gid)?);
    }
    Ok(user)
}

/// Adds capabilities to every set but inheritable (CVE-2022-29162), and to the ambient one only where the
/// configuration has an inheritable one, without which it means nothing. Returns what it warns of: names that nobody
/// knows.
fn add_capabilities(process: &mut Process, names: &[String]) -> Vec<String> {
    if names.is_empty() {
        return Vec::new();
    }
    let own = process.capabilities().clone();
    let mut sets = own.unwrap_or_else(no_capabilities);
    let mut warnings = Vec::new();
    for name in names {
        match serde_json::from_value::<Capability>(name.clone().into()) {
            Ok(capability) => add(&mut sets, capability),
            Err(_) => warnings.push(format!("ignoring unknown or unavailable capabilities: [{name}]")),
        }
    }
    process.set_capabilities(Some(sets));
    warnings
}

/// No sets at all; oci-spec's default has three capabilities in each.
fn no_capabilities() -> LinuxCapabilities {
    let mut none = LinuxCapabilities::default();
    none.set_bounding(None);
    none.set_effective(None);
    none.set_inheritable(None);
    none.set_permitted(None);
    none.set_ambient(None);
    none
}

fn add(sets: &mut LinuxCapabilities, capability: Capability) {
    let with = |set: &Option<_>| {
        let mut set: std::collections::HashSet<Capability> = set.clone().unwrap_or_default();
        set.insert(capability);
        Some(set)
    };
    let (bounding, effective, permitted) =
        (with(sets.bounding()), with(sets.effective()), with(sets.permitted()));
    sets.set_bounding(bounding);
    sets.set_effective(effective);
    sets.set_permitted(permitted);
    if sets.inheritable().is_some() {
        let ambient = with(sets.ambient());
        sets.set_ambient(ambient);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_capability_comes_alone_where_the_container_has_none() {
        let mut process = Process::default();
        process.set_capabilities(None);
        let warnings = add_capabilities(&mut process, &["CAP_KILL", "CAP_FLY"].map(str::to_owned));
        assert_eq!(warnings, ["ignoring unknown or unavailable capabilities: [CAP_FLY]"]);
        let sets = process.capabilities().clone().unwrap();
        assert_eq!(sets.effective().as_ref().unwrap().len(), 1);
        assert_eq!((sets.inheritable(), sets.ambient()), (&None, &None));
    }

    #[test]
    fn only_plain_numbers_are_users() {
        let own = User::default();
        for bad in
            ["", "root", "-1", "0x3e8", " 1000", "1000 ", "1000:", ":0", "4294967295", "4294967296", "٠"]
        {
            let error = parse_user(bad, &own).unwrap_err().to_string();
            assert!(error.contains("is not UID[:GID]"), "{bad}: {error}");
        }
        let user = parse_user("1000:50", &own).unwrap();
        assert_eq!((user.uid(), user.gid()), (1000, 50));
    }
}
