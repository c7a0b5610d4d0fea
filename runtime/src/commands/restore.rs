//! `restore`: has CRIU make a container again that `checkpoint` wrote to files.

use std::os::fd::AsFd;
use std::path::Path;

use coracle_isolator::Handles;
use coracle_isolator_host::Registry;
use coracle_sys::file::{self, Resolve};
use coracle_sys::process::{self, Child};

use super::checkpoint::directory;
use crate::cgroup::Place;
use crate::cli::{self, Global};
use crate::criu::{self, Call};
use crate::error::{Code, Context, Error, Result};
use crate::stages::plan::{self, Wish};
use crate::stages::release::Running;
use crate::stages::watch::{Watch, warden};
use crate::stages::{cleanup, prepare, spawn, spec};
use crate::state::record::Process;
use crate::state::{Phase, State};
use crate::{isolators, self_image};

/// Makes the container again, with the limits of its bundle, and unless detached waits for its end and removes it, as
/// `run` does. Its hooks do not run: it goes on where it was.
///
/// # Errors
/// `Unsupported` where there is no CRIU, `System` with CRIU's words; then nothing is left of the container.
pub fn restore(global: &Global, options: &cli::Launch, from: &cli::Checkpoint) -> Result<u8> {
    self_image::protect(&options.preserve_fds, options.config.as_deref(), &[])?;
    let id = &options.id;
    let doing = || format!("restoring container {id:?}");
    let isolators = isolators::for_launch(global).context(doing)?;
    let watch = (!options.detach).then(Watch::begin).transpose()?;
    let (state, running) = begin(global, options, from, &isolators).context(doing)?;
    let Some(watch) = watch else { return Ok(0) };
    state.unlock();
    let exit = super::run::wait(global, &state, &isolators, (watch, running));
    global.warn(cleanup::remove_own(state, &isolators, false).context(doing)?);
    Ok(exit.context(doing)?.code())
}

fn begin(
    global: &Global,
    options: &cli::Launch,
    from: &cli::Checkpoint,
    isolators: &Registry,
) -> Result<(State, Running)> {
    let id = &options.id;
    let plan = plan::plan(
        spec::load(&options.bundle, options.config.as_deref())?,
        Wish { id, cgroups: global.cgroups },
    )?;
    let state = State::create(&global.root, id)?;
    let running = cleanup::undo_on_failure(state.clone(), isolators, |state| {
        let rootfs = plan.rootfs.clone();
        let claimed = prepare::claim(plan, state, isolators, None)?;
        let prepare::Prepared { mut container, launch, mut warnings } = prepare::prepare(claimed, isolators)?;
        global.warn(warnings.drain(..));
        if launch.process.terminal {
            return Err(Error::new(Code::Unsupported, "a container with a terminal can't be restored"));
        }
        let (tree, holder) = spawn::make_cgroups(&mut container)?;
        let cgroup = tree.into_handles();
        let handles = Handles { id, pidfd: None, cgroup: &cgroup, spec: &container.spec };
        let isolated = isolators.isolate(&handles);
        let said = isolators.take_warnings();
        global.warn(said.iter().cloned());
        isolated?;
        container.record.warnings.extend(said);
        let cgroups = container.record.cgroup.as_ref();
        // CRIU makes processes of which nobody knows before it is done.
        container.record.phase = Phase::Restoring;
        container.save()?;
        let child = call(global, from, &criu::external_mounts(&launch), &rootfs, cgroups)?;
        drop(holder);
        let first = child.pidfd.as_fd();
        let beside = isolators.resume(&Handles { pidfd: Some(first), ..handles });
        global.warn(beside.iter().map(ToString::to_string));
        container.record.process = Some(Process::now(child.pid)?);
        container.record.phase = Phase::Running;
        container.save()?;
        super::announce(options, &child, "standard")?;
        if options.detach {
            warden::start(&container, first, isolators, &|words| global.warn([words]))?;
        }
        Ok(Running { child, console: None, notify: None, has_beside: container.record.has_beside })
    })?;
    Ok((state, running))
}

/// Has CRIU restore the processes below `root`; the first becomes a child of the caller.
fn call(
    global: &Global,
    from: &cli::Checkpoint,
    external: &[(std::path::PathBuf, std::path::PathBuf)],
    root: &Path,
    cgroups: Option<&Place>,
) -> Result<Child> {
    const PID_FILE: &str = "restored.pid";
    let (images, opened) = directory(&from.images)?;
    let mut passed = criu::streams(&opened).context(|| format!("reading the checkpoint {images:?}"))?;
    let (work, logs) = directory(from.work.as_deref().unwrap_or(&from.images))?;
    let _ = file::unlink(logs.as_fd(), PID_FILE);
    passed.extend(["--restore-detached", "--restore-sibling", "--manage-cgroups=soft"].map(str::to_owned));
    passed.extend(["--pidfile".to_owned(), criu::text(&work.join(PID_FILE))?]);
    passed.extend(["--root".to_owned(), criu::text(root)?]);
    for (place, source) in external {
        let external = format!("mnt[{}]:{}", criu::text(place)?, criu::text(source)?);
        passed.extend(["--external".to_owned(), external]);
    }
    passed.extend(from.passed.iter().cloned());
    if let Some(place) = cgroups {
        passed.extend(cgroup_roots(place)?);
    }
    // Told to ignore cgroups it leaves the processes in its own.
    let is_ignoring = from.passed.iter().any(|option| option == "--manage-cgroups=ignore");
    let entered = cgroups.filter(|_| is_ignoring).map(Place::open).transpose()?;
    Call { program: &global.criu, images: &images, work: &work, verb: "restore", options: passed }
        .run(Some(root), entered.as_ref())?;
    let text = file::read(logs.as_fd(), PID_FILE, 64, Resolve::BeneathNoLinks)?;
    let pid = String::from_utf8_lossy(&text).trim().parse().ok();
    let pid: i32 = pid.ok_or_else(|| Error::new(Code::System, "criu did not tell the PID"))?;
    Ok(Child { pid, pidfd: process::pidfd(pid)? })
}

/// The options that put what is restored into the cgroups at `place`: the checkpoint tells of those it came from, which another
/// container may have now.
fn cgroup_roots(place: &Place) -> Result<Vec<String>> {
    let mut options = Vec::new();
    for site in &place.at {
        let path = criu::text(&Path::new("/").join(&site.path))?;
        let roots = match site.hierarchy.unified {
            true => vec![path],
            false => site.hierarchy.controllers().iter().map(|name| format!("{name}:{path}")).collect(),
        };
        options.extend(roots.into_iter().flat_map(|root| ["--cgroup-root".to_owned(), root]));
    }
    Ok(options)
}
