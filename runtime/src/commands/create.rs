//! `create`: builds a container whose first process waits for `start`.

use std::os::fd::AsFd;

use crate::cli::{self, Global};
use crate::error::{Context, Result};
use crate::isolators;
use crate::notify;
use crate::self_image;
use crate::stages::plan::Wish;
use crate::stages::watch::warden;
use crate::stages::{cleanup, isolate, plan, prepare, spawn, spec};
use crate::state::{Phase, State};

/// Creates the container.
///
/// # Errors
/// Whatever a stage fails with; then nothing is left of the container.
pub fn create(global: &Global, options: &cli::Launch) -> Result<u8> {
    self_image::protect(&options.preserve_fds, options.config.as_deref(), &[])?;
    // Whoever creates does not stay: the terminal needs another holder.
    let options = &cli::Launch { detach: true, ..options.clone() };
    let id = &options.id;
    let attempt = || -> Result<()> {
        let isolators = isolators::for_launch(global)?;
        let mut loaded = spec::load(&options.bundle, options.config.as_deref())?;
        notify::share(&mut loaded.spec, &global.root, id)?;
        let plan = plan::plan(loaded, Wish { id, cgroups: global.cgroups })?;
        let state = State::create(&global.root, id)?;
        cleanup::undo_on_failure(state, &isolators, |state| {
            notify::make_directory(&state)?;
            let claimed = prepare::claim(plan, state, &isolators, None)?;
            let mut prepared = prepare::prepare(claimed, &isolators)?;
            global.warn(prepared.warnings.drain(..));
            super::debug_filter(global, &prepared.launch);
            global.debug(|| {
                "nsexec container setup: cloning its process into cgroups and namespaces".to_owned()
            });
            let waiting = spawn::spawn(prepared, options, true)?;
            let mut isolated = isolate::isolate(waiting, &isolators)?;
            global.warn(isolated.warnings.drain(..));
            isolated.container.record.phase = Phase::Created;
            isolated.container.save()?;
            let child = &isolated.ready.child;
            let tell = |words| global.warn([words]);
            warden::start(&isolated.container, child.pidfd.as_fd(), &isolators, &tell)?;
            global.debug(|| format!("child process in init(): PID {} has built the container", child.pid));
            super::announce(options, child, "standard")
        })
    };
    attempt().context(|| format!("creating container {id:?}"))?;
    Ok(0)
}
