//! `stats`: prints what the isolators measured.

use std::os::fd::AsFd;
use std::path::Path;

use coracle_isolator::Handles;
use coracle_isolator_host::Registry;

use crate::cli::{self, Global};
use crate::error::{Code, Context, Error, Result};
use crate::isolators;
use crate::prometheus;
use crate::stages::spec;
use crate::state::State;

/// Prints the usage of a container as JSON, or in Prometheus's text format.
///
/// # Errors
/// `NotFound`; `Unsupported` where the container has no cgroups.
pub fn stats(global: &Global, options: &cli::Stats) -> Result<u8> {
    let id = &options.id;
    let usage = ask(global, id, Registry::usage)?;
    if options.prometheus {
        crate::print(&prometheus::text(id, &usage));
        return Ok(0);
    }
    let usage = serde_json::to_string_pretty(&usage).map_err(Error::system)?;
    crate::print(&format!("{usage}\n"));
    Ok(0)
}

/// What `call` of all isolators returns for container `id`.
pub(super) fn ask<T>(
    global: &Global,
    id: &str,
    call: impl FnOnce(&Registry, &Handles<'_>) -> coracle_isolator::Result<T>,
) -> Result<T> {
    let isolators = isolators::all(global)?;
    let told = ask_of(&global.root, id, |handles| call(&isolators, handles))?;
    global.warn(isolators.take_warnings());
    Ok(told)
}

/// What `call` returns, given the handles of container `id`, whose state lies in `root`.
pub(super) fn ask_of<T>(
    root: &Path,
    id: &str,
    call: impl FnOnce(&Handles<'_>) -> coracle_isolator::Result<T>,
) -> Result<T> {
    let state = State::open_unlocked(root, id)?;
    let no_cgroups = || Error::new(Code::Unsupported, format!("container {id:?} has no cgroups"));
    let record = state.record()?.ok_or_else(no_cgroups)?;
    let place = record.cgroup.as_ref().ok_or_else(no_cgroups)?;
    let spec = spec::kept(&state)?;
    let cgroup = place.open()?.into_handles();
    let first = record.process.and_then(|first| first.open());
    let handles = Handles { id, pidfd: first.as_ref().map(AsFd::as_fd), cgroup: &cgroup, spec: &spec };
    call(&handles).context(|| format!("asking isolators about container {id:?}"))
}
