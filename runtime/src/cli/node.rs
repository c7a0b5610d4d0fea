//! `pod node`: the tree of tenants.

use std::path::PathBuf;

use lexopt::prelude::*;

use super::words::{self, usage};
use crate::error::Result;

/// A verb of `pod node`.
#[derive(Debug, Clone)]
pub enum NodeVerb {
    /// Makes a node.
    Create {
        /// Its path: `org/team`.
        name: String,
        /// Whether pods below it get users of their own.
        own_users: bool,
        /// The file of its limits.
        file: Option<PathBuf>,
    },
    /// Sets limits of one.
    Update(String, PathBuf),
    /// Prints what all below one use.
    Usage(String),
    /// Removes one.
    Remove(String),
    /// Prints all, or those below one.
    List(Option<String>),
}

/// The verb of `pod node` that comes next.
pub(super) fn parse(parser: &mut lexopt::Parser) -> Result<NodeVerb> {
    let wrong = || usage("pod node needs create, update, usage, ls or rm").hint("see coracle help pod");
    let Some(Value(verb)) = parser.next()? else { return Err(wrong()) };
    let (mut name, mut file, mut own_users) = (None, None, false);
    while let Some(arg) = parser.next()? {
        match arg {
            Short('f') | Long("file") => file = Some(PathBuf::from(parser.value()?)),
            Long("own-users") => own_users = words::switch(parser, "own-users")?,
            Value(value) if name.is_none() => name = Some(value.string()?),
            other => return Err(other.unexpected().into()),
        }
    }
    let named = || name.clone().ok_or_else(|| super::pod::missing("the node's name"));
    Ok(match verb.to_str() {
        Some("create") => NodeVerb::Create { name: named()?, own_users, file },
        Some("update") => NodeVerb::Update(named()?, file.ok_or_else(|| super::pod::missing("-f FILE"))?),
        Some("usage") => NodeVerb::Usage(named()?),
        Some("rm") => NodeVerb::Remove(named()?),
        Some("ls" | "list") => NodeVerb::List(name),
        _ => return Err(wrong()),
    })
}
