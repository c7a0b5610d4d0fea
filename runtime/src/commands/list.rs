//! `list`: prints all containers.

use std::fmt::Write;

use crate::cli::{Global, List};
use crate::error::Result;
use crate::state::{self, Record, State};

/// Prints the containers as a table, as JSON, or their IDs alone.
///
/// # Errors
/// Where the directory of states can't be read.
pub fn list(global: &Global, options: &List) -> Result<u8> {
    let mut states = Vec::new();
    for id in state::ids(&global.root)? {
        // One that is removed meanwhile is not listed.
        let Ok(state) = State::open_unlocked(&global.root, &id) else { continue };
        let record = state.record().ok().flatten().unwrap_or_else(|| Record::new(&id, None));
        states.push(record.to_state());
    }
    let text = |state: &serde_json::Value, key: &str| {
        state[key].as_str().map_or_else(|| state[key].to_string(), str::to_owned)
    };
    let mut out = String::new();
    if options.quiet {
        states.iter().for_each(|state| out.push_str(&(text(state, "id") + "\n")));
    } else if options.json {
        out = format!("{}\n", serde_json::Value::Array(states));
    } else {
        let rows =
            states.iter().map(|s| ["id", "pid", "status", "bundle", "created"].map(|key| text(s, key)));
        for [id, pid, status, bundle, created] in
            std::iter::once(["ID", "PID", "STATUS", "BUNDLE", "CREATED"].map(str::to_owned)).chain(rows)
        {
            let _ = writeln!(out, "{id:<24} {pid:<8} {status:<9} {bundle:<40} {created}");
        }
    }
    crate::print(&out);
    Ok(0)
}
