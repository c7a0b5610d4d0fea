//! `mounts`: mounts more in a container that runs, or unmounts what is there.

use std::os::fd::AsFd;
use std::path::Path;

use coracle_sys::file;
use oci_spec::runtime::{Mount, Spec};

use crate::cli::{self, Global};
use crate::error::{Code, Context, Error, Result};
use crate::init::remount::{Change, Removal, at};
use crate::self_image;
use crate::stages::plan::mounts::{Link, MountPlan, Source};
use crate::stages::plan::{self, namespaces};
use crate::stages::{remount, spec};
use crate::state::record::Added;
use crate::state::{Record, State, Status};

/// Adds the mounts that a file lists, or removes those at their destinations. The container's configuration stays as
/// it was.
///
/// # Errors
/// `IllegalState` where the container does not run, `Unsupported` for what only a new container can have.
pub fn mounts(global: &Global, options: &cli::Mounts) -> Result<u8> {
    self_image::protect(&[], Some(&options.file), &[])?;
    let id = &options.id;
    let attempt = || -> Result<()> {
        let text = file::read_given(&options.file, spec::LARGEST)?;
        let wanted = spec::parse_mounts(&text).context(|| format!("reading {:?}", options.file))?;
        let state = State::open(&global.root, id)?;
        let mut record =
            state.record()?.filter(|r| r.status() != Status::Creating).ok_or_else(Error::not_running)?;
        let first = record.process.and_then(|first| first.open()).ok_or_else(Error::not_running)?;
        let spec = spec::kept(&state)?;
        let kinds = namespaces::kinds(&spec)?;
        if kinds & libc::CLONE_NEWNS == 0 {
            return Err(Error::new(Code::Unsupported, "it has no mount namespace of its own"));
        }
        let change = if options.add {
            Change::Add(to_add(&wanted, &spec, &record.bundle)?)
        } else {
            Change::Remove(to_remove(&wanted, &record)?)
        };
        let mut changed = Vec::new();
        let done = remount::remount(&change, first.as_fd(), kinds, &mut changed);
        if !changed.is_empty() {
            note(&mut record, &change, &changed);
            state.write(&record)?;
        }
        done
    };
    attempt().context(|| format!("changing the mounts of container {id:?}"))?;
    Ok(0)
}

fn to_add(wanted: &[Mount], spec: &Spec, bundle: &Path) -> Result<Vec<MountPlan>> {
    let linux = plan::linux(spec)?;
    let planned = wanted.iter().enumerate().map(|(index, mount)| {
        let label = linux.mount_label().clone().filter(|label| !label.is_empty());
        let mut plan = MountPlan { label, ..plan::mounts::plan(index, mount, linux)? };
        let is_known = plan.is_new("tmpfs");
        if plan.id_map.is_some() {
            let why = format!("{}: owners can't be mapped in a running container", plan.field);
            return Err(Error::new(Code::Unsupported, why));
        }
        match &mut plan.source {
            Source::Bind { path, link: Link::Followed | Link::Mounted, .. } => *path = bundle.join(&*path),
            Source::New { .. } if is_known => {}
            _ => {
                let why = format!("{} is neither a bind mount nor a tmpfs", plan.field);
                return Err(Error::new(Code::Unsupported, why).hint("a running container gets no others"));
            }
        }
        Ok(plan)
    });
    planned.collect()
}

/// Has the record tell which mounts were added, and are there still.
fn note(record: &mut Record, change: &Change, changed: &[u64]) {
    match change {
        Change::Add(plans) => {
            let added = plans.iter().zip(changed);
            record
                .added
                .extend(added.map(|(plan, mount)| Added { path: plan.target.clone(), mount: *mount }));
        }
        Change::Remove(_) => record.added.retain(|added| !changed.contains(&added.mount)),
    }
}

/// Of several that were mounted at one place the last goes first.
fn to_remove(wanted: &[Mount], record: &Record) -> Result<Vec<Removal>> {
    let mut added = record.added.clone();
    let named = wanted.iter().enumerate().map(|(index, mount)| {
        let field = format!("/mounts/{index}");
        let path = plan::below_root(mount.destination());
        if path == Path::new("") {
            return Err(Error::new(
                Code::InvalidSpec,
                format!("{field}/destination is the container's root"),
            ));
        }
        let last = added.iter().rposition(|added| added.path == path).ok_or_else(|| {
            Error::new(
                Code::NotFound,
                format!("{}: nothing is mounted there by `mounts add`", at(&field, &path)),
            )
        })?;
        Ok(Removal { field, mount: added.remove(last).mount, path })
    });
    named.collect()
}
