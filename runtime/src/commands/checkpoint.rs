//! `checkpoint`: has CRIU write a container's processes to files.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use coracle_sys::file;

use crate::cli::{self, Global};
use crate::criu::{self, Call};
use crate::error::{Code, Context, Error, Result};
use crate::isolators;
use crate::stages::plan::{self, Launch, Wish};
use crate::stages::{cleanup, prepare, spec};
use crate::state::{State, Status};

/// Writes the container to files, and removes it unless it is to run on.
///
/// # Errors
/// `IllegalState` where it does not run, `Unsupported` where there is no CRIU, `System` with CRIU's words.
pub fn checkpoint(global: &Global, options: &cli::Checkpoint) -> Result<u8> {
    let id = &options.id;
    let attempt = || -> Result<()> {
        check_parent(options)?;
        let state = State::open(&global.root, id)?;
        let record =
            state.record()?.filter(|r| r.status() == Status::Running).ok_or_else(Error::not_running)?;
        let first = record.process.ok_or_else(Error::not_running)?;
        let config = spec::Loaded {
            bundle: record.bundle.clone(),
            spec: spec::kept(&state)?,
            text: Vec::new(),
            warnings: Vec::new(),
        };
        let launch = planned(global, id, config)?;
        let (images, opened) = directory(&options.images)?;
        criu::keep_streams(&opened, first.pid)?;
        let mut passed = vec![format!("--tree={}", first.pid), "--manage-cgroups=soft".to_owned()];
        for (place, _) in criu::present(criu::external_mounts(&launch), first.pid)? {
            let place = criu::text(&place)?;
            passed.extend(["--external".to_owned(), format!("mnt[{place}]:{place}")]);
        }
        if let Some(parent) = &options.parent {
            passed.extend(["--prev-images-dir".to_owned(), criu::text(parent)?]);
        }
        if options.pre_dump {
            passed.push("--track-mem".to_owned());
        } else if options.leave_running {
            passed.push("--leave-running".to_owned());
        }
        passed.extend(options.passed.iter().cloned());
        let work =
            options.work.as_deref().map_or_else(|| Ok(images.clone()), |p| directory(p).map(|(p, _)| p))?;
        let verb = if options.pre_dump { "pre-dump" } else { "dump" };
        Call { program: &global.criu, images: &images, work: &work, verb, options: passed }
            .run(None, None)?;
        if !options.leave_running && !options.pre_dump {
            global.warn(cleanup::remove(state, &isolators::all(global)?, false)?);
        }
        Ok(())
    };
    attempt().context(|| format!("checkpointing container {id:?}"))?;
    Ok(0)
}

/// CRIU looks for earlier images from the new ones on, so that both can be moved together.
fn check_parent(options: &cli::Checkpoint) -> Result<()> {
    let Some(parent) = &options.parent else { return Ok(()) };
    if parent.is_absolute() {
        let why = format!("--parent-path is {parent:?}, and must be relative to --image-path");
        return Err(Error::new(Code::Usage, why));
    }
    file::open_dir(options.images.join(parent)).map(drop).context(|| format!("--parent-path is {parent:?}"))
}

/// The launch plan of a configuration that CRIU is to handle.
///
/// # Errors
/// `Unsupported` for a container with a terminal.
pub(super) fn planned(global: &Global, id: &str, loaded: spec::Loaded) -> Result<Launch> {
    let plan = plan::plan(loaded, Wish { id, cgroups: global.cgroups })?;
    let (launch, ..) = prepare::adjust(&plan, &isolators::all(global)?)?;
    if launch.process.terminal {
        let why = "a container with a terminal (/process/terminal) can't be checkpointed";
        return Err(Error::new(Code::Unsupported, why));
    }
    Ok(launch)
}

/// The directory `path`, made where it is missing: its absolute path, and open.
pub(super) fn directory(path: &Path) -> Result<(PathBuf, OwnedFd)> {
    let absolute =
        std::path::absolute(path).map_err(|e| Error::new(Code::Usage, format!("{path:?}: {e}")))?;
    let top = file::open_dir("/")?;
    let below = plan::below_root(&absolute);
    let opened = file::mkdir_all(top.as_fd(), below, 0o700).context(|| format!("making {absolute:?}"))?;
    Ok((absolute, opened))
}
