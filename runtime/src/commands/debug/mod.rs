//! `debug`: looks into a container of this runtime or of any other, and leaves nothing behind.
//!
//! A session is a container of its own, below the target's: it has files, cgroup and record of its own, and joins the
//! target's namespaces but for that of its mounts. So it goes through the stages of any other.

mod compose;
mod foreign;
mod target;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use coracle_image::bundle;
use coracle_isolator::Kind;
use coracle_isolator_host::Registry;
use coracle_sys::mount::{Attributes, attr};
use coracle_sys::{Errno, descriptor, file, identity};
use serde_json::json;

use self::compose::Session;
use self::target::{First, Target};
use super::run;
use crate::cgroup::Manager;
use crate::cli::{self, Debugging, Files, Global, ImageRun, Launch};
use crate::error::{Code, Context, Error, Result};
use crate::image::{self, Known};
use crate::stages::monitor::{Ends, Monitor};
use crate::stages::plan::mounts::{Link, MountPlan, Source};
use crate::stages::plan::{Plan, Wish};
use crate::stages::release::Running;
use crate::stages::spawn::Opened;
use crate::stages::spec::Loaded;
use crate::stages::watch::Watch;
use crate::stages::{cleanup, isolate, plan, prepare, release, spawn};
use crate::state::record::Process;
use crate::state::{self, Record, State};
use crate::{isolators, self_image};

/// Does what `wanted` says, and returns the exit code: of a session, the program's.
///
/// # Errors
/// `NotFound` where there is no such target; whatever a stage fails with, and then nothing is left.
pub fn debug(global: &Global, wanted: &Debugging) -> Result<u8> {
    match wanted {
        Debugging::Session(options) => session(global, options),
        Debugging::List => list(global),
        Debugging::RemoveAll => remove_all(global),
    }
}

fn session(global: &Global, options: &cli::Debug) -> Result<u8> {
    let variables = image::variables(&[&options.env[..], &["TERM".to_owned()]].concat());
    self_image::protect(&[], None, &variables)?;
    if identity::caller() != 0 {
        return Err(Error::new(Code::Unsupported, "debug is for root: it enters what others have made"));
    }
    let isolators = isolators::for_launch(global)?;
    let watch = Watch::begin()?;
    let target = Target::find(global, &options.target).context(|| "looking for the target")?;
    let client = Process::now(std::process::id().cast_signed())?;
    let state = claim(global, &target.name)?;
    let id = state.id().to_owned();
    let doing = || format!("debugging {:?} as {id:?}", target.name);
    let monitor = monitor(global, (&id, client), &target).context(doing)?;
    let launched = cleanup::undo_on_failure(state.clone(), &isolators, |state| {
        launch(state, &target, &With { global, options, isolators: &isolators, client })
    });
    let exit = launched.map_err(|e| missing(e, options)).and_then(|running| {
        state.unlock();
        let exit = run::wait(global, &state, &isolators, (watch, running));
        cleanup::remove_own(state, &isolators, true).map(|said| global.warn(said)).and(exit)
    });
    monitor.dismiss()?;
    let exit = exit.context(doing)?;
    if target.has_ended() {
        global.warn([format!("{} has ended, and the session with it", target.name)]);
    }
    Ok(exit.code())
}

/// Takes an ID for a session, and has the target's record tell of it, for `delete`. A target that another command is at
/// work on is not waited for: that may be what is to be looked into.
fn claim(global: &Global, target: &str) -> Result<State> {
    let above = match State::open_idle(&global.root, target) {
        Ok(Some(above)) => above.record()?.map(|record| (above, record)),
        _ => None,
    };
    if let Some((above, mut record)) = above.filter(|(_, record)| !record.has_children) {
        record.has_children = true;
        above.write(&record)?;
    }
    let mut number = 1;
    loop {
        match State::create_below(&global.root, &format!("{target}/debug-{number}")) {
            Err(e) if e.code() == Code::Exists => number += 1,
            other => return other,
        }
    }
}

/// The monitor of the session `id` of `client`. By the time that it acts, the ID may be that of another client's session.
fn monitor(global: &Global, (id, client): (&str, Process), target: &Target) -> Result<Monitor> {
    let open = || State::open_unlocked(&global.root, id).and_then(|state| state.record());
    let kill = || {
        if let Ok(Some(Record { cgroup: Some(cgroup), client: Some(its), .. })) = open()
            && its == client
        {
            let _ = cgroup.kill();
        }
    };
    let undo = || {
        if let Ok(isolators) = isolators::all(global) {
            let _ = remove(global, (id, client), &isolators);
        }
    };
    let target = target.first.as_ref().map(First::pidfd);
    Monitor::start(&Ends { target, kill: &kill, remove: &undo })
}

/// Removes the session `id` of `client`. Whoever else did so already has done no wrong, and who goes by the ID now stays.
fn remove(global: &Global, (id, client): (&str, Process), isolators: &Registry) -> Result<()> {
    let state = match State::open(&global.root, id) {
        Err(e) if e.code() == Code::NotFound => return Ok(()),
        state => state?,
    };
    // Without a record, or with one that can't be read, nobody else is to be told from it.
    match state.record() {
        Ok(Some(record)) if record.client != Some(client) => Ok(()),
        _ => cleanup::remove(state, isolators, true).map(|warnings| global.warn(warnings)),
    }
}

/// What a launch needs beside the target.
struct With<'a> {
    global: &'a Global,
    options: &'a cli::Debug,
    isolators: &'a Registry,
    /// The calling process.
    client: Process,
}

fn launch(state: State, target: &Target, with: &With<'_>) -> Result<Running> {
    let With { global, options, isolators, client } = *with;
    let client = Some(client);
    let store = options.image.is_some().then(|| image::store(options.store.as_deref()));
    let id = state.id().to_owned();
    state.write(&Record { client, ..Record::new(&id, store.as_deref()) })?;
    let known = Known { id: &id, by: &state::path(&global.root, &id) };
    let image = store.as_deref().map(|store| image::make_bundle(store, known, &image_run(target, options)));
    let bundle = image.transpose()?;
    let cgroup = options
        .cgroup
        .clone()
        .unwrap_or_else(|| target::cgroup_beside(target, &id, global.cgroups.by == Manager::Systemd));
    let (bundle, config) = bundle.map_or((target.bundle.clone(), None), |b| (b.path, Some(json!(b.spec))));
    let config = Session { target, options, cgroup, image: config }.compose()?;
    let loaded = Loaded::composed(bundle, &config)?;
    let plan = plan::plan(loaded, Wish { id: &id, cgroups: global.cgroups })?;
    let plan = Plan { kind: Kind::Debug, client, ..plan };
    if plan.cgroup.is_none() {
        return Err(Error::new(Code::Unsupported, "a session needs a cgroup, to be found and ended by")
            .hint("leave --cgroup-manager disabled out"));
    }
    let mut prepared =
        prepare::prepare(prepare::claim(plan, state, isolators, store.as_deref())?, isolators)?;
    global.warn(prepared.warnings.drain(..));
    super::debug_filter(global, &prepared.launch);
    let opened = open(&mut prepared, target, options, known.by)?;
    let waiting = spawn::spawn_with(prepared, opened, &Launch::default(), false)?;
    let mut isolated = isolate::isolate(waiting, isolators)?;
    global.warn(isolated.warnings.drain(..));
    release::release(isolated)
}

/// A program that the target lacks can be brought along.
fn missing(error: Error, options: &cli::Debug) -> Error {
    if error.code() == Code::ProgramNotFound && options.image.is_none() {
        return error.hint("bring tools with --image REFERENCE");
    }
    error
}

/// How the bundle of the tools is made.
fn image_run(target: &Target, options: &cli::Debug) -> ImageRun {
    let hostname =
        target.config["hostname"].as_str().map_or_else(|| bundle::host_name(&target.name), str::to_owned);
    let term = std::env::var("TERM").ok().filter(|_| options.tty).map(|term| format!("TERM={term}"));
    ImageRun {
        reference: options.image.clone().unwrap_or_default(),
        store: None,
        pull: options.pull,
        options: bundle::Options {
            args: options.args.clone(),
            env: term.into_iter().chain(options.env.iter().cloned()).collect(),
            user: options.user.clone(),
            working_dir: options.cwd.as_ref().map(|cwd| cwd.to_string_lossy().into_owned()),
            hostname: Some(hostname),
            terminal: options.tty,
            ..Default::default()
        },
    }
}

/// Opens what the session joins and is shown: of a target that runs its namespaces, by its pidfd, and its files. `own` is the
/// session's directory.
fn open(
    prepared: &mut prepare::Prepared,
    target: &Target,
    options: &cli::Debug,
    own: &Path,
) -> Result<Opened> {
    let launch = &mut prepared.launch;
    let Some(first) = &target.first else { return Opened::by_plan(launch) };
    let joined = first.kinds & options.join;
    let root = descriptor::duplicate(first.reach.root.as_fd())?;
    if options.files == Files::Target {
        if let Some(inside) = &mut launch.inside {
            // Nothing is made in files that are the target's.
            inside.devices.clear();
            inside.console = false;
            // Where they are mounted: their own directory may be in the target's mount namespace only.
            own.clone_into(&mut inside.rootfs);
        }
        return Opened::in_root(root, first.pidfd(), joined);
    }
    let image = file::open_dir(&prepared.container.record.rootfs)?;
    make_places(image.as_fd(), &first.reach.files)?;
    let mut opened = Opened::by_process(launch, first.pidfd(), joined)?;
    if options.files == Files::Image {
        let place = Files::PLACE.trim_start_matches('/');
        file::mkdir_all(image.as_fd(), place, 0o755)?;
        opened.mount(launch, shown("the target's files", place, 0), root);
    }
    for (name, tree) in &first.reach.files {
        let plan = shown("a file of the target", &name.to_string_lossy(), attr::RDONLY);
        opened.mount(launch, plan, descriptor::duplicate(tree.as_fd())?);
    }
    Ok(opened)
}

/// Makes what is mounted on in the image's files, where it is missing: the root of the target's user namespace is nobody
/// to these files.
fn make_places(root: BorrowedFd<'_>, files: &[(PathBuf, OwnedFd)]) -> Result<()> {
    for name in ["proc", "sys", "dev", "tmp"] {
        file::mkdir_all(root, name, 0o755)?;
    }
    for (path, _) in files {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { continue };
        let parent = file::mkdir_all(root, parent, 0o755)?;
        match file::mknod(parent.as_fd(), name, libc::S_IFREG | 0o644, 0) {
            Err(e) if e.errno() != Errno::EEXIST => return Err(e.into()),
            _ => {}
        }
    }
    Ok(())
}

/// The plan of a mount whose source is open already.
fn shown(what: &str, place: &str, attributes: u64) -> MountPlan {
    MountPlan {
        field: what.to_owned(),
        target: place.into(),
        on_link: false,
        source: Source::Bind { path: "/".into(), recursive: true, link: Link::Followed },
        attributes: Attributes { set: attributes, ..Attributes::default() },
        recursive: Attributes::default(),
        copy_up: false,
        id_map: None,
        loses: 0,
        locked: 0,
        label: None,
        options: Vec::new(),
    }
}

/// Prints all sessions: their IDs, clients and programs.
fn list(global: &Global) -> Result<u8> {
    let mut lines = vec![["ID", "PID", "CLIENT", "STATUS", "CREATED"].map(str::to_owned)];
    for (state, record) in sessions(global)? {
        let told = json!(record.told());
        let client = record.client.map_or(0, |client| client.pid);
        let text = |key: &str| told[key].as_str().map_or_else(|| told[key].to_string(), str::to_owned);
        lines.push([state.id().to_owned(), text("pid"), client.to_string(), text("status"), text("created")]);
    }
    let width = |column: usize| lines.iter().map(|line| line[column].len() + 2).max().unwrap_or(0);
    let widths: Vec<usize> = (0..5).map(width).collect();
    for line in &lines {
        let cells: String = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        crate::print(&format!("{}\n", cells.trim_end()));
    }
    Ok(0)
}

/// Ends all sessions, and prints their IDs.
fn remove_all(global: &Global) -> Result<u8> {
    let isolators = isolators::all(global)?;
    let mut failures = Vec::new();
    for (id, client) in sessions(global)?.into_iter().filter_map(named) {
        match remove(global, (&id, client), &isolators) {
            Ok(()) => drop(crate::print(&format!("{id}\n"))),
            Err(failure) => failures.push(failure),
        }
    }
    failures.into_iter().next().map_or(Ok(0), Err)
}

/// The ID of a session and its client.
fn named((state, record): (State, Record)) -> Option<(String, Process)> {
    Some((state.id().to_owned(), record.client?))
}

fn sessions(global: &Global) -> Result<Vec<(State, Record)>> {
    let ids = state::ids(&global.root)?;
    let states = ids.iter().filter_map(|id| State::open_unlocked(&global.root, id).ok());
    let records = states.filter_map(|state| state.record().ok().flatten().map(|record| (state, record)));
    Ok(records.filter(|(_, record)| record.client.is_some()).collect())
}
