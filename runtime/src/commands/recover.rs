//! `recover`: gives pods new supervisors, starts again what was beside containers, removes what launches left that were cut
//! off, and debug containers whose session is over.

use std::os::fd::AsFd;
use std::path::Path;

use coracle_isolator::{Handles, State as Told, States};
use coracle_isolator_host::Registry;

use crate::cli::Global;
use crate::error::{Context, Result};
use crate::pod::{host, network};
use crate::stages::prepare::Container;
use crate::stages::watch::warden;
use crate::stages::{cleanup, spec};
use crate::state::{self, Record, State};
use crate::{image, isolators, self_image};

/// Gives each pod whose supervisor is gone another one, and prints its name. Tells the isolators which containers there are, starts again
/// what they and the runtime had beside these, removes each whose launch was cut off or whose session is over, and prints its ID. A container that somebody is at work on is left alone.
///
/// # Errors
/// The first container that can't be removed; the others are, and each that can't is tried again by the next `recover`.
pub fn recover(global: &Global) -> Result<u8> {
    // New supervisors are forks of this process, and pull.
    self_image::protect(&[], None, &image::variables(&[]))?;
    let (pods, mut failures) = host::recover(global)?;
    crate::print(&pods.iter().map(|name| format!("{name}\n")).collect::<String>());
    let isolators = isolators::all(global)?;
    let members = host::members(&global.root)?;
    // What the record tells decides, so that the configuration of a container that has nothing beside it is not read.
    let may_resume = |record: &Record| record.has_beside || isolators.has_watching_plugin();
    let (mut found, mut watched, mut cut_off) = (States::default(), Vec::new(), Vec::new());
    for id in state::ids(&global.root)? {
        let Some(state) = State::open_idle(&global.root, &id)? else { continue };
        match state.record() {
            Ok(Some(record)) if !record.is_orphan() => {
                found.states.push(told(&record));
                watched.extend(may_resume(&record).then(|| (global.root.clone(), id)));
            }
            Ok(_) => {
                found.orphans.push(id);
                cut_off.push(state);
            }
            Err(unreadable) => global.warn([unreadable.to_string()]),
        }
    }
    for (states, name) in members {
        let record = State::open_unlocked(&states, &name).and_then(|state| state.record());
        let Ok(Some(record)) = record else { continue };
        found.states.push(told(&record));
        watched.extend(may_resume(&record).then_some((states, name)));
    }
    global.warn(isolators.recover(&found).iter().map(ToString::to_string));
    for (states, name) in watched {
        let resumed = resume(global, (&states, &name), &isolators);
        failures.extend(resumed.context(|| format!("looking after container {name:?}")).err());
    }
    network::tidy(&global.root);
    match image::remove_forgotten(&image::store(None)) {
        Ok(ids) => drop(crate::print(&ids.iter().map(|id| format!("{id}\n")).collect::<String>())),
        Err(error) => failures.push(error.doing("removing snapshots that nobody knows")),
    }
    // Those below others come before these, which would wait for them.
    for state in cut_off.into_iter().rev() {
        let id = state.id().to_owned();
        match cleanup::remove(state, &isolators, false) {
            Ok(warnings) => {
                global.warn(warnings);
                crate::print(&format!("{id}\n"));
            }
            Err(error) => failures.push(error),
        }
    }
    failures.into_iter().next().map_or(Ok(0), Err)
}

/// Starts again what was beside a container that lives, where it was killed: what its isolators have there, and who ends it at
/// a limit.
fn resume(global: &Global, (states, name): (&Path, &str), isolators: &Registry) -> Result<()> {
    let Some(state) = State::open_idle(states, name)? else { return Ok(()) };
    let Some(record) = state.record()?.filter(|record| !record.is_orphan()) else { return Ok(()) };
    if !record.has_beside && warden::take_place(&state)?.is_none() {
        return Ok(());
    }
    let Some(first) = record.process.and_then(|first| first.open()) else { return Ok(()) };
    let container = Container { spec: spec::kept(&state)?, state, record };
    let cgroup = container.record.cgroups()?.into_handles();
    let (id, first) = (&*container.record.id, first.as_fd());
    let beside =
        isolators.resume(&Handles { id, pidfd: Some(first), cgroup: &cgroup, spec: &container.spec });
    global.warn(beside.iter().map(ToString::to_string));
    warden::start(&container, first, isolators, &|words| global.warn([words]))
}

fn told(record: &Record) -> Told {
    Told {
        id: record.id.clone(),
        kind: record.kind(),
        bundle: record.bundle.clone(),
        pid: record.process.filter(|first| first.is_alive()).map(|first| first.pid),
    }
}
