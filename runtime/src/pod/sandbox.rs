//! What the containers of a pod share: its cgroup with its limits, and its namespaces, which the keeper holds.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use coracle_isolator::{Cgroup, CgroupVersion, Config, Handles};
use coracle_isolator_host::Registry;
use coracle_sys::file::{self, Resolve};
use coracle_sys::{Errno, process};
use oci_spec::runtime::{LinuxResources, Spec};
use serde_json::{Value, json};

use super::document;
use super::keeper::{self, Keeper};
use super::plan::{Kind, Plan, Shared};
use super::record::{Directory, Record};
use crate::cgroup::{Holder, Place, Wanted};
use crate::error::{Code, Context, Error, Result};
use crate::stages::spawn::users;
use crate::stages::spec::{self, SPEC_VERSION};
use crate::state::record::Process;

/// What the containers of a pod share, open.
#[derive(Debug)]
pub struct Sandbox {
    /// The way to the keeper.
    pub keeper: Keeper,
    /// The keeper: becomes readable when it has died.
    pub pidfd: OwnedFd,
    namespaces: Vec<(Kind, OwnedFd)>,
}

impl Sandbox {
    /// Makes the cgroup and the namespaces of the pod, and records them.
    ///
    /// # Errors
    /// Whatever the kernel refuses. What was made is on record.
    pub fn make(dir: &Directory, record: &mut Record, plan: &Plan, isolators: &Registry) -> Result<Self> {
        // What a start that was cut off has left.
        remove(record)?;
        let _ = file::unlink(dir.fd(), keeper::SOCKET);
        (record.keeper, record.cgroup) = (None, plan.cgroup.clone());
        dir.write(record)?;
        let holder = make_cgroup(record, plan, isolators).context(|| "making the pod's cgroup")?;
        let users = record.users;
        let map = |pid| users.map_or(Ok(()), |users| users::map(pid, &users.namespaces()));
        let sysctls = sysctls(plan, isolators).context(|| "/spec/securityContext/sysctls")?;
        let keeper = keeper::start(dir.fd(), &Shared { sysctls, ..plan.sandbox.clone() }, map, |pid| {
            record.keeper = Some(Process::now(pid)?);
            dir.write(record)
        })?;
        if let (Some(_), Some(place)) = (&holder, &record.cgroup) {
            place.take_in(keeper.pid)?;
        }
        Self::open(dir, keeper.pid, keeper.pidfd, plan)
    }

    /// Takes the sandbox over that a former supervisor has made; `None` where its keeper is gone.
    ///
    /// # Errors
    /// Whatever opening it says, but that.
    pub fn adopt(dir: &Directory, record: &Record, plan: &Plan) -> Result<Option<Self>> {
        let Some(keeper) = record.keeper else { return Ok(None) };
        let Some(pidfd) = keeper.find()? else { return Ok(None) };
        match Self::open(dir, keeper.pid, pidfd, plan) {
            Err(error) if is_gone(&error) => Ok(None),
            opened => opened.map(Some),
        }
    }

    /// The namespaces of the keeper `pid`, which can't have been awaited or has just been found by its start time.
    fn open(dir: &Directory, pid: i32, pidfd: OwnedFd, plan: &Plan) -> Result<Self> {
        let open = |kind: &Kind| -> Result<(Kind, OwnedFd)> {
            let path = format!("/proc/{pid}/ns/{}", kind.file());
            Ok((*kind, file::open(file::CWD, path, libc::O_RDONLY, 0, Resolve::Host)?))
        };
        let namespaces = plan.sandbox.namespaces.iter().map(open).collect::<Result<_>>();
        let namespaces = namespaces.context(|| "opening the pod's namespaces")?;
        Ok(Self { keeper: Keeper::connect(dir.fd())?, pidfd, namespaces })
    }

    /// The namespaces, for whoever joins them.
    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.namespaces.iter().map(|(_, fd)| fd.as_fd())
    }

    /// The namespace of kind `kind`, where the pod has one.
    pub fn namespace(&self, kind: Kind) -> Option<BorrowedFd<'_>> {
        self.namespaces.iter().find(|(found, _)| *found == kind).map(|(_, fd)| fd.as_fd())
    }

    /// `linux.namespaces` of a container: those of the pod by descriptor, those of the host not at all, and its own.
    pub fn in_spec(&self, plan: &Plan) -> Value {
        let joined = self.namespaces.iter().map(
            |(kind, fd)| json!({"type": kind.in_spec(), "path": format!("/proc/self/fd/{}", fd.as_raw_fd())}),
        );
        let is_taken =
            |kind: Kind| plan.sandbox.namespaces.contains(&kind) || plan.sandbox.of_host.contains(&kind);
        let mut all: Vec<Value> = joined.collect();
        all.extend(["mount", "cgroup"].map(|kind| json!({"type": kind})));
        if !is_taken(Kind::Pid) {
            all.push(json!({"type": "pid"}));
        }
        Value::Array(all)
    }
}

/// Whether a keeper that was just found has died: the first process of a PID namespace has neither namespaces nor a socket any
/// more, and is a process still until all others in there are gone.
fn is_gone(error: &Error) -> bool {
    matches!(error.errno(), Some(Errno::ENOENT | Errno::ESRCH | Errno::ECONNREFUSED))
}

/// The kernel parameters of the pod: what each new namespace gets on this host, and its own, as far as the operator allows.
/// The containers join its namespaces, and are asked for none.
fn sysctls(plan: &Plan, isolators: &Registry) -> Result<Vec<(String, String)>> {
    let own = &plan.sandbox;
    // An older runtime may have let the document in.
    document::check_sysctls(own)?;
    let namespaces: Vec<Value> = own.namespaces.iter().map(|kind| json!({"type": kind.in_spec()})).collect();
    let asked: BTreeMap<_, _> = own.sysctls.iter().cloned().collect();
    let spec = json!({"ociVersion": SPEC_VERSION, "linux": {"namespaces": namespaces, "sysctl": asked}});
    let spec: Spec = serde_json::from_value(spec).map_err(|e| Error::new(Code::System, e.to_string()))?;
    let cgroup = plan.cgroup.as_ref().map_or(CgroupVersion::V1, |place| place.version.into());
    let (id, kind, bundle) = (&*plan.name, coracle_isolator::Kind::Nested, Path::new("/"));
    let adjustment =
        isolators.prepare_by("linux/sysctl", &Config { id, kind, bundle, spec: &spec, cgroup })?;
    Ok(adjustment.linux.sysctl.into_iter().chain(own.sysctls.iter().cloned()).collect())
}

/// Makes the pod's cgroup with its limits. A scope of systemd stays as long as the holder that is returned, or another
/// process in it.
fn make_cgroup(record: &mut Record, plan: &Plan, isolators: &Registry) -> Result<Option<Holder>> {
    let Some(place) = &mut record.cgroup else { return Ok(None) };
    let limits = spec::parse_resources(plan.resources.to_string().as_bytes())?;
    let made = place.make(&Wanted { resources: Some(&limits), devices: None, annotations: None });
    let (tree, holder) = made.map_err(|failure| match failure.code() {
        Code::Exists => {
            failure.hint("a pod of this name below another --root has it: name this one otherwise")
        }
        _ => failure,
    })?;
    limit(&plan.name, tree.into_handles(), &plan.resources, isolators, || Ok(()))?;
    Ok(holder)
}

/// Sets the limits `resources` of the pod or node `id`, and has them kept: all, or none.
///
/// # Errors
/// As [`set`].
pub fn limit(
    id: &str,
    cgroup: Cgroup,
    resources: &Value,
    isolators: &Registry,
    keep: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let wanted = spec::parse_resources(resources.to_string().as_bytes())?;
    // The pod has no process of its own: what a container would have, without one.
    let spec = Spec::default();
    let cgroup = cgroup.remembering();
    set(&Handles { id, pidfd: None, cgroup: &cgroup, spec: &spec }, &wanted, isolators, keep)
}

/// Sets the limits `wanted` of who has these handles, whose cgroup is [`remembering`](Cgroup::remembering), and has them kept: all,
/// or none.
///
/// # Errors
/// What an isolator or `keep` says, and then the limits are as they were.
pub fn set(
    handles: &Handles<'_>,
    wanted: &LinuxResources,
    isolators: &Registry,
    keep: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let updated = isolators.update(handles, wanted).map_err(Error::from);
    updated.and_then(|()| keep()).map_err(|failure| match handles.cgroup.put_back() {
        Ok(()) => failure,
        Err(left) => {
            failure.hint(format!("and some limits are new, as the old could not be put back: {left}"))
        }
    })
}

/// Undoes what the record of a pod tells of: the keeper, the cgroups with whoever is in them. Without a keeper nobody of the
/// pod's can be in them: where they turned out to be another's, who uses them must not notice that it is undone.
///
/// # Errors
/// The first failure; the rest is tried.
pub fn remove(record: &Record) -> Result<()> {
    let keeper = record.keeper.map_or(Ok(()), |keeper| keeper.kill(|| {}));
    process::reap_all();
    let kill = |place: &Place| if record.keeper.is_some() { place.kill() } else { Ok(()) };
    let cgroup = record.cgroup.as_ref().map_or(Ok(()), |place| kill(place).and_then(|()| place.remove()));
    keeper.and(cgroup)
}
