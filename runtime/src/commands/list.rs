//! `list`: prints all containers.

use std::collections::BTreeMap;

use coracle_sys::users;
use serde_json::Value;

use crate::cli::{Global, List};
use crate::error::Error;
use crate::state::record::Told;
use crate::state::{self, Record, State};

const COLUMNS: [&str; 6] = ["id", "pid", "status", "bundle", "created", "owner"];

/// Prints the containers as a table, as JSON, or their IDs alone.
///
/// # Errors
/// Where the directory of states can't be read.
pub fn list(global: &Global, options: &List) -> crate::error::Result<u8> {
    let (mut found, mut names) = (Vec::new(), BTreeMap::new());
    for id in state::ids(&global.root)? {
        // One that is removed meanwhile is not listed.
        let Ok(state) = State::open_unlocked(&global.root, &id) else { continue };
        let record = state.record().ok().flatten().unwrap_or_else(|| Record::new(&id, None));
        let name = |uid| names.entry(uid).or_insert_with(|| user_name(uid)).clone();
        found.push((record, state.owner().map_or_else(|_| String::new(), name)));
    }
    let mut told: Vec<Told<'_>> = found.iter().map(|(record, _)| record.told()).collect();
    for (told, (_, owner)) in told.iter_mut().zip(&found) {
        told.owner.clone_from(owner);
    }
    crate::print(&match (options.quiet, options.json) {
        (true, _) => found.iter().map(|(record, _)| record.id.clone() + "\n").collect(),
        (_, true) => serde_json::to_string(&told).map_err(Error::system)? + "\n",
        _ => {
            let states = told.iter().map(serde_json::to_value).collect::<Result<Vec<Value>, _>>();
            table(&states.map_err(Error::system)?)
        }
    });
    Ok(0)
}

fn text(state: &Value, key: &str) -> String {
    state[key].as_str().map_or_else(|| state[key].to_string(), str::to_owned)
}

/// Columns as wide as what is in them and three blanks, at least twelve, as runc's users cut them.
fn table(states: &[Value]) -> String {
    let titles = COLUMNS.map(str::to_uppercase).to_vec();
    let rows = states.iter().map(|state| COLUMNS.map(|key| text(state, key)).to_vec());
    let rows: Vec<Vec<String>> = std::iter::once(titles).chain(rows).collect();
    let width =
        |column: usize| rows.iter().map(|row| row[column].chars().count() + 3).max().unwrap_or(0).max(12);
    let widths: Vec<usize> = (0..COLUMNS.len()).map(width).collect();
    let line = |row: &Vec<String>| -> String {
        let cells: String = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        cells.trim_end().to_owned() + "\n"
    };
    rows.iter().map(line).collect()
}

/// The name of user `uid`, or `#uid` where the host has none for it.
fn user_name(uid: u32) -> String {
    users::name(uid).unwrap_or_else(|| format!("#{uid}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn columns_are_at_least_twelve_wide_and_three_apart() {
        let state = json!({
            "id": "web", "pid": 7, "status": "running", "bundle": "/a/long/bundle", "created": "then", "owner": "root",
        });
        let wanted = "ID          PID         STATUS      BUNDLE           CREATED     OWNER\n\
                      web         7           running     /a/long/bundle   then        root\n";
        assert_eq!(table(&[state]), wanted);
    }

    #[test]
    fn a_user_without_a_name_is_a_number() {
        assert_eq!([0, u32::MAX - 7].map(user_name), ["root", "#4294967288"]);
    }
}
