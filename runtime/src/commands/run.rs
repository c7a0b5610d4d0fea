//! `run`: a container's whole life.

use std::os::fd::AsFd;
use std::path::Path;

use coracle_isolator::Handles;
use coracle_isolator_host::Registry;
use coracle_sys::process::{self, Exit};
use coracle_sys::{descriptor, identity};

use crate::cgroup::Tree;
use crate::cli::{self, Global, ImageRun};
use crate::error::{Code, Context, Error, Result};
use crate::image::{self, Known};
use crate::notify::{self, Notify};
use crate::stages::plan::{Plan, Wish};
use crate::stages::release::Running;
use crate::stages::spec::Loaded;
use crate::stages::watch::{Limits, Watch, warden};
use crate::stages::{cleanup, isolate, plan, prepare, release, spawn, spec};
use crate::state::{self, Record, State};
use crate::{isolators, self_image};

/// Runs the container of a bundle, or of an image, and returns the exit code of its first process.
///
/// # Errors
/// Whatever a stage fails with; then nothing is left of the container.
pub fn run(global: &Global, options: &cli::Launch, from: Option<&ImageRun>) -> Result<u8> {
    let variables = from.map_or_else(Vec::new, |wanted| image::variables(&wanted.options.env));
    self_image::protect(&options.preserve_fds, options.config.as_deref(), &variables)?;
    let id = &options.id;
    let doing = || format!("running container {id:?}");
    let isolators = isolators::for_launch(global).context(doing)?;
    let watch = (!options.detach).then(Watch::begin).transpose()?;
    let running = match from {
        None => from_bundle(global, options, &isolators),
        Some(wanted) => from_image(global, options, wanted, &isolators),
    };
    let (state, running) = running.context(doing)?;
    let Some(watch) = watch else { return Ok(0) };
    state.unlock();
    let exit = wait(global, &state, &isolators, (watch, running));
    if !options.keep {
        global.warn(cleanup::remove_own(state, &isolators, false).context(doing)?);
    }
    Ok(exit.context(doing)?.code())
}

/// Waits for the container's end, and meanwhile for what isolators find it to run into. One that should watch and can't
/// ends the container.
pub(super) fn wait(
    global: &Global,
    state: &State,
    isolators: &Registry,
    (watch, running): (Watch, Running),
) -> Result<Exit> {
    if !running.has_beside && !isolators.has_watching_plugin() {
        return watch.watch(running, Limits::none());
    }
    let alone = warden::take_place(state)?;
    let record = state.record()?;
    let cgroup = record.map_or_else(|| Ok(Tree::none()), |record| record.cgroups())?.into_handles();
    let spec = spec::kept(state)?;
    let pidfd = descriptor::duplicate(running.child.pidfd.as_fd())?;
    let container = Handles { id: state.id(), pidfd: Some(pidfd.as_fd()), cgroup: &cgroup, spec: &spec };
    let tell = |words| global.warn([words]);
    let limits = isolators.watch_to_end(&container).map_err(Error::from);
    global.warn(isolators.take_warnings());
    match limits {
        Ok(watched) => {
            let limits = Limits::new(&container, watched, &tell);
            watch.watch(running, limits.noting(alone.as_ref().map(AsFd::as_fd)))
        }
        Err(error) => {
            let _ = process::signal(pidfd.as_fd(), libc::SIGKILL);
            watch.watch(running, Limits::none()).and(Err(error))
        }
    }
}

fn from_bundle(global: &Global, options: &cli::Launch, isolators: &Registry) -> Result<(State, Running)> {
    let id = &options.id;
    let mut loaded = spec::load(&options.bundle, options.config.as_deref())?;
    notify::share(&mut loaded.spec, &global.root, id)?;
    let plan = plan::plan(loaded, Wish { id, cgroups: global.cgroups })?;
    let state = State::create(&global.root, id)?;
    let running = cleanup::undo_on_failure(state.clone(), isolators, |state| {
        launch(plan, state, &With { global, options, isolators, store: None })
    })?;
    Ok((state, running))
}

/// The bundle of an image is a side effect itself, so the container's record stands before it.
fn from_image(
    global: &Global,
    options: &cli::Launch,
    wanted: &ImageRun,
    isolators: &Registry,
) -> Result<(State, Running)> {
    let id = &options.id;
    if identity::caller() != 0 {
        let why = "--image is for root: the layers of an image are mounted with overlayfs, where the host sees them";
        return Err(Error::new(Code::Unsupported, why)
            .hint("make a bundle of it, with coracle image unpack --rootless"));
    }
    let store = image::store(wanted.store.as_deref());
    let state = State::create(&global.root, id)?;
    let running = cleanup::undo_on_failure(state.clone(), isolators, |state| {
        state.write(&Record::new(id, Some(&store)))?;
        let known = Known { id, by: &state::path(&global.root, id) };
        let bundle = image::make_bundle(&store, known, wanted)?;
        let mut loaded = Loaded::composed(bundle.path, &bundle.spec)?;
        notify::share(&mut loaded.spec, &global.root, id)?;
        let plan = plan::plan(loaded, Wish { id, cgroups: global.cgroups })?;
        launch(plan, state, &With { global, options, isolators, store: Some(&store) })
    })?;
    Ok((state, running))
}

/// What a launch needs beside the plan.
struct With<'a> {
    global: &'a Global,
    options: &'a cli::Launch,
    isolators: &'a Registry,
    /// The store of a bundle that is an image's.
    store: Option<&'a Path>,
}

fn launch(plan: Plan, state: State, with: &With<'_>) -> Result<Running> {
    let With { global, options, isolators, store } = *with;
    notify::make_directory(&state)?;
    let claimed = prepare::claim(plan, state, isolators, store)?;
    let mut prepared = prepare::prepare(claimed, isolators)?;
    global.warn(prepared.warnings.drain(..));
    super::debug_filter(global, &prepared.launch);
    global.debug(|| "nsexec container setup: cloning its process into cgroups and namespaces".to_owned());
    let waiting = spawn::spawn(prepared, options, false)?;
    let mut isolated = isolate::isolate(waiting, isolators)?;
    global.warn(isolated.warnings.drain(..));
    let child = &isolated.ready.child;
    global.debug(|| format!("child process in init(): PID {} has built the container", child.pid));
    super::announce(options, child, "standard")?;
    if options.detach {
        let tell = |words| global.warn([words]);
        warden::start(&isolated.container, child.pidfd.as_fd(), isolators, &tell)?;
    }
    let notify = Notify::begin(&isolated.container.state)?;
    let state = isolated.container.state.clone();
    let running = release::release(isolated)?;
    global.debug(|| "init: closing the pipe to signal completion".to_owned());
    match notify {
        Some(notify) if options.detach => {
            state.unlock(); // whoever waits for its program does not keep others from it
            global.warn(notify.wait(&running.child).err().map(|e| e.to_string()));
        }
        notify => return Ok(Running { notify, ..running }),
    }
    Ok(running)
}
