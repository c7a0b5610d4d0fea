//! Undoes what a container's record tells of: processes, isolators, cgroups, snapshot, state. Every step can be
//! done again, and each is attempted whatever became of the others; the record goes last, and only when nothing
//! is left.

use std::os::fd::AsFd;

use coracle_isolator_host::Registry;
use coracle_sys::{Errno, file, identity, mount, process};

use crate::cgroup::{self, Management, Manager, Place, Rootless};
use crate::error::{Context, Error, Result};
use crate::hooks;
use crate::stages::spec;
use crate::state::{Phase, Record, State};

/// Runs `launch`, and where it fails undoes what it did of the container of `state`.
///
/// # Errors
/// What `launch` failed with.
pub fn undo_on_failure<T>(
    state: State,
    isolators: &Registry,
    launch: impl FnOnce(State) -> Result<T>,
) -> Result<T> {
    let kept = state.clone();
    let id = kept.id().to_owned();
    launch(state).map_err(|failure| {
        if failure.errno() == Some(Errno::EMFILE) {
            let _ = identity::raise_to_hard_limit("RLIMIT_NOFILE"); // undoing needs descriptors, too
        }
        let lost = isolators.give_back(&id);
        let failure = lost.iter().fold(failure, |failure, lost| failure.hint(lost.to_string()));
        match remove_own(kept, isolators, false) {
            Ok(_) => failure,
            Err(left) => {
                let hint = format!("something is left ({left}): run coracle delete --force {id}");
                failure.hint(hint)
            }
        }
    })
}

/// Removes a container that the caller has launched, once nobody else is at work on it. Where another has removed it, nothing is
/// left to do: whoever goes by its ID now is another's.
///
/// # Errors
/// As [`remove`].
pub fn remove_own(state: State, isolators: &Registry, force: bool) -> Result<Vec<String>> {
    state.locked()?.map_or_else(|| Ok(Vec::new()), |state| remove(state, isolators, force))
}

/// Removes the container, those below it first: kills what is left of it, lets the isolators clean up, removes cgroups, snapshot and
/// state, and runs the poststop hooks. A poststop hook that fails keeps neither the container nor the hooks after it; what it says is
/// returned (runtime-spec 1.3, runtime.md, "Lifecycle", step 13). With `force`, a record that can't be read doesn't
/// keep it either: what such a container must have made is removed. Nor does an isolator that can't clean up: that is
/// returned, too.
///
/// # Errors
/// The first failure; what could be undone is undone, and the record stays for the next attempt.
pub fn remove(state: State, isolators: &Registry, force: bool) -> Result<Vec<String>> {
    let record = match state.record() {
        Err(unreadable) if force => Some(guess(&state, unreadable)?),
        record => record?,
    };
    let Some(record) = record else {
        state.remove()?;
        return Ok(Vec::new());
    };
    remove_recorded(state, record, isolators, force)
}

/// The same for a container of which this is known.
///
/// # Errors
/// As [`remove`].
pub fn remove_recorded(
    state: State,
    record: Record,
    isolators: &Registry,
    force: bool,
) -> Result<Vec<String>> {
    let mut failures: Vec<Error> = Vec::new();
    let mut warnings = Vec::new();
    let children = if record.has_children { state.children() } else { Ok(Vec::new()) };
    for child in children.unwrap_or_else(|failure| {
        failures.push(failure);
        Vec::new()
    }) {
        match remove(child, isolators, force) {
            Ok(said) => warnings.extend(said),
            Err(failure) => failures.push(failure),
        }
    }
    failures.extend(kill(&record).err());
    let left = isolators.cleanup(&record.id, &record.isolators);
    warnings.extend(isolators.take_warnings());
    match force {
        true => warnings.extend(left.iter().map(ToString::to_string)),
        false => failures.extend(left.into_iter().map(Error::from)),
    }
    if let Some(cgroup) = &record.cgroup {
        failures.extend(cgroup.remove().err());
    }
    failures.extend(unmount(&record).err());
    if let Some(store) = &record.store {
        failures.extend(crate::image::remove_bundle(store, &record.id).err());
    }
    if let Some(first) = failures.into_iter().next() {
        return Err(first).context(|| format!("removing container {:?}", record.id));
    }
    warnings.extend(run_poststop(&state, &record).iter().map(ToString::to_string));
    match state.remove() {
        Ok(()) => Ok(warnings),
        Err(failure) => Err(warnings.into_iter().fold(failure, Error::hint)),
    }
}

/// What the `unreadable` record of a container must have said: its cgroups follow from its ID and its configuration, and its
/// processes are in them. Where the configuration can't be read either, or there are no such cgroups, nothing can be told, and
/// that is said: what goes on somewhere must not be taken for gone.
///
/// # Errors
/// `unreadable`, with what to do.
pub fn guess(state: &State, unreadable: Error) -> Result<Record> {
    let Ok(spec) = spec::kept(state) else {
        return Err(unreadable.hint("nor can its configuration be read: look for its cgroup by hand"));
    };
    let wanted = spec.linux().as_ref().and_then(|linux| linux.cgroups_path().as_deref());
    // It may have been running: those in its cgroups are taken for its own.
    let mut record = Record { phase: Phase::Running, ..Record::new(state.id(), None) };
    for by in [Manager::Cgroupfs, Manager::Systemd] {
        let place = cgroup::place(state.id(), wanted, Management { by, rootless: Rootless::Auto });
        if let Some(place) = place.ok().flatten().filter(Place::is_made) {
            record.cgroup = Some(place.own_only());
            return Ok(record);
        }
    }
    Err(unreadable.hint(
        "nor are its cgroups where its configuration puts them: end its processes, then remove its directory below --root by hand",
    ))
}

/// The first process goes first: where it has a PID namespace of its own, the kernel takes the others with it.
/// Of a container that never had one nobody can be in its cgroups: where a launch found them in use, those who
/// use them must not notice that it is undone.
fn kill(record: &Record) -> Result<()> {
    let first = record.kill_first();
    process::reap_all();
    let others = match &record.cgroup {
        Some(cgroup) if record.process.is_some() || record.phase != Phase::Creating => cgroup.kill(),
        _ => Ok(()),
    };
    first.and(others)
}

/// Takes away what was mounted for a container in the runtime's own mount namespace; nothing for others, whose mounts
/// went with their namespace. What was mounted there since is the operator's.
fn unmount(record: &Record) -> Result<()> {
    let Some(below) = record.mounts_over else { return Ok(()) };
    loop {
        let is_there = match (&record.mounted, file::open_dir(&record.rootfs)) {
            (_, Err(e)) if e.errno() == Errno::ENOENT => false,
            (Some(made), _) => mount::is_there(made)?,
            // The launch was cut off before it was known which it is.
            (None, root) => file::mount_id(root?.as_fd())? != below,
        };
        if !is_there {
            return Ok(());
        }
        match mount::detach(&record.rootfs) {
            // Nothing is mounted there: the file system that it lies on has come and gone.
            Err(e) if e.errno() == Errno::EINVAL => return Ok(()),
            detached => detached.context(|| "unmounting the container's root file system")?,
        }
    }
}

/// Returns what could not be done of it.
fn run_poststop(state: &State, record: &Record) -> Vec<Error> {
    let spec = match spec::kept(state) {
        Ok(spec) => spec,
        Err(unreadable) => return vec![unreadable],
    };
    let hooks = hooks::of(&spec, "poststop");
    if hooks.is_empty() {
        return Vec::new();
    }
    match hooks::close_inherited() {
        Ok(()) => hooks::run_all("poststop", &hooks, &record.to_state(), &record.bundle),
        Err(refused) => vec![refused],
    }
}
