//! `update`: new limits for a container.

use std::path::PathBuf;

use lexopt::prelude::*;
use serde_json::{Map, Value as Json};

use super::words::{self, need_id, parsed, size, text};
use crate::error::Result;

/// The options of `update`.
#[derive(Debug, Clone, Default)]
pub struct Update {
    /// The container.
    pub id: String,
    /// A file with limits as `linux.resources` has them; `-` is the standard input.
    pub file: Option<PathBuf>,
    /// The limits of the other options, in the same form. They go before the file's.
    pub limits: Json,
    /// What the other options say of `linux.intelRdt`.
    pub rdt: Json,
}

/// What an option's value is.
#[derive(Clone, Copy)]
enum Is {
    Number,
    Size,
    Text,
    /// Without effect since Linux 5.4 and 6.12; runc takes it and ignores it.
    Ignored,
}

/// Each option with the field that it sets, below `linux.resources` (or `linux.intelRdt`).
const OPTIONS: &[(&str, &str, Is)] = &[
    ("memory", "memory.limit", Is::Size),
    ("memory-reservation", "memory.reservation", Is::Size),
    ("memory-swap", "memory.swap", Is::Size),
    ("kernel-memory", "", Is::Ignored),
    ("kernel-memory-tcp", "", Is::Ignored),
    ("cpu-share", "cpu.shares", Is::Number),
    ("cpu-shares", "cpu.shares", Is::Number),
    ("cpu-quota", "cpu.quota", Is::Number),
    ("cpu-period", "cpu.period", Is::Number),
    ("cpu-burst", "cpu.burst", Is::Number),
    ("cpu-rt-period", "cpu.realtimePeriod", Is::Number),
    ("cpu-rt-runtime", "cpu.realtimeRuntime", Is::Number),
    ("cpu-idle", "cpu.idle", Is::Number),
    ("cpuset-cpus", "cpu.cpus", Is::Text),
    ("cpuset-mems", "cpu.mems", Is::Text),
    ("pids-limit", "pids.limit", Is::Number),
    ("blkio-weight", "blockIO.weight", Is::Number),
    ("l3-cache-schema", "intelRdt.l3CacheSchema", Is::Text),
    ("mem-bw-schema", "intelRdt.memBwSchema", Is::Text),
];

/// The options of `update`.
pub(super) fn parse(parser: &mut lexopt::Parser) -> Result<Update> {
    let mut update = Update::default();
    let mut all = Map::new();
    while let Some(arg) = parser.next()? {
        match arg {
            Short('r') | Long("resources") => update.file = Some(parser.value()?.into()),
            Long(name) => {
                let option = OPTIONS.iter().find(|(option, ..)| *option == name);
                let Some((name, field, is)) = option else { return Err(Long(name).unexpected().into()) };
                let value = text(parser)?;
                let (section, key) = field.split_once('.').unwrap_or_default();
                if let Some(value) = read(name, &value, *is)? {
                    all.entry(section).or_insert_with(|| Map::new().into())[key] = value;
                }
            }
            Value(id) if update.id.is_empty() => update.id = words::id(id)?,
            other => return Err(other.unexpected().into()),
        }
    }
    need_id(&update.id, "update")?;
    update.rdt = all.remove("intelRdt").unwrap_or_default();
    update.limits = all.into();
    Ok(update)
}

fn read(name: &str, value: &str, is: Is) -> Result<Option<Json>> {
    Ok(match is {
        Is::Number => Some(parsed::<i64>(name, value)?.into()),
        Is::Size if value == "-1" => Some((-1).into()),
        Is::Size => Some(size(name, value)?.into()),
        Is::Text => Some(value.into()),
        Is::Ignored => None,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn update(line: &str) -> Result<Update> {
        parse(&mut lexopt::Parser::from_args(line.split(' ')))
    }

    #[test]
    fn options_are_fields_of_the_specification() {
        let line = "--memory 64m --memory-swap -1 --cpu-quota -1 --cpuset-cpus 0-1 --pids-limit 7 --kernel-memory 1m web";
        let update = update(line).unwrap();
        let limits = json!({
            "memory": {"limit": 64 << 20, "swap": -1},
            "cpu": {"quota": -1, "cpus": "0-1"},
            "pids": {"limit": 7},
        });
        assert_eq!((update.id.as_str(), update.limits, update.rdt), ("web", limits, Json::Null));
    }

    #[test]
    fn what_is_no_number_is_named() {
        for (line, words) in [
            ("--memory lots web", "--memory \"lots\" is no size"),
            ("--pids-limit x web", "--pids-limit \"x\": invalid digit"),
            ("--no-such 1 web", "--no-such"),
            ("--memory 1g", "update needs a container's ID"),
        ] {
            let error = update(line).unwrap_err().to_string();
            assert!(error.contains(words), "{line}: {error}");
        }
    }
}
