//! `exec`.

use std::path::PathBuf;

use lexopt::prelude::*;

use super::Launch;
use super::launch::{is_shared, shared};
use super::words::{self, need_id, rest, text, usage};
use crate::error::Result;

/// The options of `exec`.
#[derive(Debug, Clone, Default)]
pub struct Exec {
    /// The container.
    pub id: String,
    /// The program and its arguments.
    pub args: Vec<String>,
    /// A file with the whole process as JSON.
    pub process: Option<PathBuf>,
    /// The working directory.
    pub cwd: Option<PathBuf>,
    /// More environment variables.
    pub env: Vec<String>,
    /// `UID[:GID]`.
    pub user: Option<String>,
    /// Supplementary groups.
    pub additional_gids: Vec<u32>,
    /// Capabilities to add to every set but ambient.
    pub capabilities: Vec<String>,
    /// Forbid new privileges.
    pub no_new_privileges: bool,
    /// Give the process a terminal.
    pub tty: bool,
    /// The AppArmor profile.
    pub apparmor: Option<String>,
    /// The SELinux label.
    pub label: Option<String>,
    /// Cgroups below the container's own to put the process in: `PATH`, or `CONTROLLER[,...]:PATH` on version 1.
    pub cgroups: Vec<String>,
    /// Also in a paused container, in which the process waits until it is resumed.
    pub ignore_paused: bool,
    /// As for `create`.
    pub launch: Launch,
}

/// The options of `exec`.
pub(super) fn parse(parser: &mut lexopt::Parser) -> Result<Exec> {
    let mut exec = Exec { launch: Launch::listening()?, ..Exec::default() };
    while let Some(arg) = parser.next()? {
        match arg {
            Short('p') | Long("process") => exec.process = Some(parser.value()?.into()),
            Long("cwd") => exec.cwd = Some(parser.value()?.into()),
            Short('e') | Long("env") => exec.env.push(text(parser)?),
            Short('u') | Long("user") => exec.user = Some(text(parser)?),
            Short('g') | Long("additional-gids") => exec.additional_gids.push(parser.value()?.parse()?),
            Short('c') | Long("cap") => exec.capabilities.push(text(parser)?),
            Long("no-new-privs") => exec.no_new_privileges = words::switch(parser, "no-new-privs")?,
            Short('t') => exec.tty = true,
            Long("tty") => exec.tty = words::switch(parser, "tty")?,
            Short('d') => exec.launch.detach = true,
            Long("detach") => exec.launch.detach = words::switch(parser, "detach")?,
            Long("apparmor") => exec.apparmor = Some(text(parser)?),
            Long("process-label") => exec.label = Some(text(parser)?),
            Long("cgroup") => exec.cgroups.push(text(parser)?),
            Long("ignore-paused") => exec.ignore_paused = words::switch(parser, "ignore-paused")?,
            // Its root is the container's.
            Long("no-pivot") => return Err(Long("no-pivot").unexpected().into()),
            Long(name) if is_shared(name) => shared(name.to_owned().as_str(), parser, &mut exec.launch)?,
            Value(id) => {
                exec.id = words::id(id)?;
                exec.args = rest(parser)?;
            }
            other => return Err(other.unexpected().into()),
        }
    }
    need_id(&exec.id, "exec")?;
    if exec.args.is_empty() && exec.process.is_none() {
        return Err(usage("exec needs a program to run").hint("coracle exec ID PROGRAM [ARG...]"));
    }
    Ok(exec)
}
