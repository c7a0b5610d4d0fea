//! Records what is about to be done, and asks the isolators.

use std::os::fd::AsFd;
use std::path::Path;

use coracle_isolator::{CgroupVersion, Config, Kind};
use coracle_isolator_host::Registry;
use coracle_sys::{file, identity};
use oci_spec::runtime::{LinuxDeviceCgroup, Spec};

use crate::error::{Code, Context, Error, Result};
use crate::seccomp_agent;
use crate::stages::plan::{Launch, Plan, checks, namespaces};
use crate::state::{Record, State};

/// A container of which a record stands: from here on there is something to undo.
#[derive(Debug)]
pub struct Claimed {
    plan: Plan,
    state: State,
    record: Record,
}

/// A container whose plan is final.
#[derive(Debug)]
pub struct Prepared {
    /// Who it is.
    pub container: Container,
    /// All that its child will do.
    pub launch: Launch,
    /// What could not be done and did not stop the launch.
    pub warnings: Vec<String>,
}

/// What every later stage knows of the container: its place on disk, its record, its final configuration.
#[derive(Debug)]
pub struct Container {
    /// Its state directory, locked.
    pub state: State,
    /// Its record, as it was last written.
    pub record: Record,
    /// Its configuration, as the isolators left it.
    pub spec: Spec,
}

/// Where an error is that no configuration had before.
pub const ADJUSTED: &str = "checking what the isolators made of the configuration";

impl Container {
    /// Writes the record.
    ///
    /// # Errors
    /// `ENOSPC`.
    pub fn save(&self) -> Result<()> {
        self.state.write(&self.record)
    }
}

/// Records the container of `plan` in `state`: its configuration, and the cgroups and isolators that are about to
/// be used. `store`: the image store that its bundle is a snapshot of, which goes when the container goes.
///
/// # Errors
/// `InvalidSpec` where the caller may make no such container, `ENOSPC`.
pub fn claim(plan: Plan, state: State, isolators: &Registry, store: Option<&Path>) -> Result<Claimed> {
    check_caller(&plan.spec)?;
    let record = Record {
        oci_version: plan.spec.version().clone(),
        bundle: plan.bundle.clone(),
        rootfs: plan.rootfs.clone(),
        annotations: plan.spec.annotations().clone().unwrap_or_default(),
        cgroup: plan.cgroup.clone(),
        mounts_over: mounts_over(&plan)?,
        isolators: isolators.names().map(str::to_owned).collect(),
        client: plan.client,
        is_nested: plan.kind == Kind::Nested,
        ..Record::new(&plan.id, store)
    };
    state.keep_config(&plan.text)?;
    state.write(&record)?;
    Ok(Claimed { plan, state, record })
}

/// A caller without privilege makes containers in user namespaces only.
fn check_caller(spec: &Spec) -> Result<()> {
    if identity::caller() == 0 || namespaces::kinds(spec)? & libc::CLONE_NEWUSER != 0 {
        return Ok(());
    }
    let why = "rootless container requires user namespaces: /linux/namespaces has no \"user\"";
    Err(Error::new(Code::InvalidSpec, why).hint("see coracle spec --rootless, or run as root"))
}

/// The mount over which the container's will be made, where they are made in the runtime's own mount namespace.
fn mounts_over(plan: &Plan) -> Result<Option<u64>> {
    if !namespaces::shares_mounts(&plan.spec)? {
        return Ok(None);
    }
    let id = file::open_dir(&plan.rootfs).and_then(|root| file::mount_id(root.as_fd()));
    Ok(Some(id.context(|| format!("opening the root file system {:?}", plan.rootfs))?))
}

/// Asks every isolator for its adjustments and makes the final plan of them.
///
/// # Errors
/// Where an isolator refuses, or two adjust one field.
pub fn prepare(claimed: Claimed, isolators: &Registry) -> Result<Prepared> {
    let Claimed { plan, state, mut record } = claimed;
    let (launch, spec, mut warnings) = adjust(&plan, isolators)?;
    seccomp_agent::check(&spec, &launch.process)?;
    isolators.provide(&config(&plan, &spec)).context(|| "providing what the container needs")?;
    record.device_rules = rules(&spec).into_iter().skip(rules(&plan.spec).len()).collect();
    record.has_beside = isolators.has_beside(&config(&plan, &spec));
    record.warnings = isolators.take_warnings();
    warnings.extend(record.warnings.iter().cloned());
    Ok(Prepared { container: Container { state, record, spec }, launch, warnings })
}

/// The rules of devices in `spec`, to which isolators add theirs.
fn rules(spec: &Spec) -> Vec<LinuxDeviceCgroup> {
    let resources = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
    resources.and_then(|resources| resources.devices().clone()).unwrap_or_default()
}

/// What the isolators are told of the container of `plan`, with `spec` for its specification.
fn config<'a>(plan: &'a Plan, spec: &'a Spec) -> Config<'a> {
    let cgroup = plan.cgroup.as_ref().map_or(CgroupVersion::V1, |place| place.version.into());
    Config { id: &plan.id, kind: plan.kind, bundle: &plan.bundle, spec, cgroup }
}

/// The final launch plan and configuration of `plan`, and what could not be done. No side effects.
///
/// # Errors
/// As [`prepare`].
pub fn adjust(plan: &Plan, isolators: &Registry) -> Result<(Launch, Spec, Vec<String>)> {
    let mut adjusted = isolators.prepare(&config(plan, &plan.spec)).context(|| "preparing the isolators")?;
    let mut warnings = plan.warnings.clone();
    warnings.append(&mut adjusted.warnings);
    // What a plugin sets is held to what a configuration is.
    checks::check(&adjusted.spec).context(|| ADJUSTED)?;
    let (launch, spec) = Launch::adjusted(adjusted, &plan.rootfs)?;
    Ok((launch, spec, warnings))
}
