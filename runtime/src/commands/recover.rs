//! `recover`: gives pods new supervisors, removes what launches left that were cut off, and debug containers whose session is over.

use coracle_isolator::{State as Told, States};

use crate::cli::Global;
use crate::error::Result;
use crate::pod::{host, network};
use crate::stages::cleanup;
use crate::state::{self, Record, State};
use crate::{image, isolators, self_image};

/// Gives each pod whose supervisor is gone another one, and prints its name. Tells the isolators which containers there are, removes each whose launch was cut off or whose session is over, and
/// prints its ID. A container that somebody is at work on is left alone.
///
/// # Errors
/// The first container that can't be removed; the others are, and each that can't is tried again by the next `recover`.
pub fn recover(global: &Global) -> Result<u8> {
    // New supervisors are forks of this process.
    self_image::protect(&[], None, &[])?;
    let (pods, mut failures) = host::recover(global)?;
    crate::print(&pods.iter().map(|name| format!("{name}\n")).collect::<String>());
    let isolators = isolators::all(global)?;
    let members = host::members(&global.root)?;
    let (mut found, mut cut_off) = (States::default(), Vec::new());
    for id in state::ids(&global.root)? {
        let Some(state) = State::open_idle(&global.root, &id)? else { continue };
        match state.record() {
            Ok(Some(record)) if !record.is_orphan() => found.states.push(told(&record)),
            Ok(_) => {
                found.orphans.push(id);
                cut_off.push(state);
            }
            Err(unreadable) => global.warn([unreadable.to_string()]),
        }
    }
    found.states.extend(members.iter().map(told));
    global.warn(isolators.recover(&found).iter().map(ToString::to_string));
    network::tidy(&global.root);
    match image::remove_forgotten(&coracle_image::store::default_root()) {
        Ok(ids) => crate::print(&ids.iter().map(|id| format!("{id}\n")).collect::<String>()),
        Err(error) => failures.push(error.doing("removing snapshots that nobody knows")),
    }
    for state in cut_off {
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

fn told(record: &Record) -> Told {
    Told {
        id: record.id.clone(),
        kind: record.kind(),
        bundle: record.bundle.clone(),
        pid: record.process.filter(|first| first.is_alive()).map(|first| first.pid),
    }
}
