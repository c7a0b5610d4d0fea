//! `isolator` and `stats`.

use std::path::PathBuf;

use lexopt::prelude::*;
use serde_json::{Map, Value};

use super::words::{self, need_id, nothing, only_id, text, usage};
use crate::error::Result;

/// What `isolator` is to do.
#[derive(Debug, Clone)]
pub enum Isolators {
    /// Prints all isolators in the order of their calls.
    List {
        /// As JSON.
        json: bool,
    },
    /// Prints what is known of one.
    Inspect(String),
    /// Prints what all of them tell of a container.
    Status(String),
    /// Looks for all that is wrong with a plugin.
    Check {
        /// Its file.
        file: PathBuf,
        /// What it is configured with.
        options: Map<String, Value>,
    },
}

/// The options of `stats`.
#[derive(Debug, Clone, Default)]
pub struct Stats {
    /// The container.
    pub id: String,
    /// In Prometheus's text format.
    pub prometheus: bool,
}

/// The options of `isolator`.
pub(super) fn isolator(parser: &mut lexopt::Parser) -> Result<Isolators> {
    let wrong = |why: &str| usage(why).hint("coracle isolator ls | inspect NAME | status ID | check FILE.so");
    let Some(verb) = parser.next()? else { return Err(wrong("isolator needs ls, inspect, status or check")) };
    let Value(verb) = verb else { return Err(verb.unexpected().into()) };
    match verb.to_str() {
        Some("ls" | "list") => list(parser),
        Some("inspect") => {
            let name = parser.value().map_err(|_| wrong("isolator inspect needs an isolator's name"))?;
            nothing(parser)?;
            Ok(Isolators::Inspect(name.string()?))
        }
        Some("status") => Ok(Isolators::Status(only_id(parser, "isolator status")?)),
        Some("check") => check(parser),
        _ => Err(wrong("isolator does nothing but ls, inspect, status and check")),
    }
}

fn list(parser: &mut lexopt::Parser) -> Result<Isolators> {
    let mut json = false;
    while let Some(arg) = parser.next()? {
        match arg {
            Short('f') | Long("format") => json = words::is_json(parser)?,
            other => return Err(other.unexpected().into()),
        }
    }
    Ok(Isolators::List { json })
}

fn check(parser: &mut lexopt::Parser) -> Result<Isolators> {
    let (mut file, mut options) = (None, Map::new());
    while let Some(arg) = parser.next()? {
        match arg {
            Long("options") => {
                let text = text(parser)?;
                let parsed = serde_json::from_str(&text);
                options = parsed.map_err(|e| usage(format!("--options {text:?} is no JSON object: {e}")))?;
            }
            Value(value) if file.is_none() => file = Some(PathBuf::from(value)),
            other => return Err(other.unexpected().into()),
        }
    }
    let file = file.ok_or_else(|| usage("isolator check needs a plugin's file"))?;
    Ok(Isolators::Check { file, options })
}

/// The options of `stats`.
pub(super) fn stats(parser: &mut lexopt::Parser) -> Result<Stats> {
    let mut stats = Stats::default();
    while let Some(arg) = parser.next()? {
        match arg {
            Short('f') | Long("format") => match text(parser)?.as_str() {
                "json" => stats.prometheus = false,
                "prometheus" => stats.prometheus = true,
                other => return Err(usage(format!("--format {other:?} is neither json nor prometheus"))),
            },
            Value(id) if stats.id.is_empty() => stats.id = words::id(id)?,
            other => return Err(other.unexpected().into()),
        }
    }
    need_id(&stats.id, "stats")?;
    Ok(stats)
}
