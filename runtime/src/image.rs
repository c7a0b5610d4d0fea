//! Containers from images: what the runtime asks of the image store.

use std::path::{Path, PathBuf};
use std::process::Command;

use coracle_image::bundle::{self, Bundle};
use coracle_image::snapshot::{self, Access, Owners};
use coracle_image::store::Store;

use crate::cli::{ImageRun, Pull};
use crate::error::{Code, Context, Error, Result};
use crate::{self_image, state};

/// The image tool, beside the runtime.
pub const PROGRAM: &str = "coracle-image";

/// Makes the bundle of container `id` from an image; pulls the image first where it is missing and may be pulled, and
/// unpacks it where it isn't unpacked.
///
/// # Errors
/// `NotFound` where the store has no such image.
pub fn make_bundle(store: &Path, id: &str, wanted: &ImageRun) -> Result<PathBuf> {
    make_bundle_for(store, id, wanted, None)
}

/// The same, with other owners of its files on the host, if any are given, than the image has.
///
/// # Errors
/// As [`make_bundle`].
pub fn make_bundle_for(
    store: &Path,
    id: &str,
    wanted: &ImageRun,
    owners: Option<Owners<'_>>,
) -> Result<PathBuf> {
    let attempt = || -> coracle_image::Result<Bundle> {
        let options = (&wanted.options, owners);
        bundle::make_for(&Store::open(store)?, &wanted.reference, &state::name(id), options)
    };
    if wanted.pull == Pull::Always {
        pull(store, &wanted.reference)?;
    }
    let made = match attempt() {
        Err(e) if e.kind() == coracle_image::Kind::NotUnpacked => {
            unpack(store, &wanted.reference)?;
            attempt()
        }
        Err(e) if e.kind() == coracle_image::Kind::NoImage && wanted.pull == Pull::Missing => {
            pull(store, &wanted.reference)?;
            attempt()
        }
        other => other,
    };
    Ok(made.context(|| format!("making a bundle of image {:?}", wanted.reference))?.path)
}

/// Removes what [`make_bundle`] made. What is gone already is no error.
///
/// # Errors
/// `EBUSY` where the snapshot's files are in use.
pub fn remove_bundle(store: &Path, id: &str) -> Result<()> {
    let removed = Store::open(store).and_then(|store| bundle::remove(&store, &state::name(id)));
    removed.context(|| format!("removing the snapshot of container {id:?}"))
}

/// Mounts the files of an image, read-only, as the snapshot of `id`, with other owners if any are given; one that is mounted
/// already stays.
///
/// # Errors
/// `NotFound` where the store has no such image.
pub fn mount_volume(store: &Path, id: &str, reference: &str, owners: Option<Owners<'_>>) -> Result<()> {
    let attempt = || -> coracle_image::Result<PathBuf> {
        let store = Store::open(store)?;
        let image = store.image(reference)?;
        snapshot::mount_for(&store, &state::name(id), &image, (Access::ReadOnly, owners))
    };
    let mounted = match attempt() {
        Err(e) if e.kind() == coracle_image::Kind::NotUnpacked => {
            unpack(store, reference)?;
            attempt()
        }
        other => other,
    };
    match mounted {
        Err(e) if e.kind() == coracle_image::Kind::Exists => Ok(()),
        other => other.map(drop).context(|| format!("mounting image {reference:?}")),
    }
}

/// Where [`mount_volume`] mounts them.
pub fn volume_path(store: &Path, id: &str) -> PathBuf {
    store.join("snapshots").join(state::name(id)).join("rootfs")
}

/// Fetches an image into the store.
///
/// # Errors
/// `System` with what the image tool ended with; it has told why.
pub fn pull(store: &Path, reference: &str) -> Result<()> {
    tool(store, "pull", reference)
}

fn unpack(store: &Path, reference: &str) -> Result<()> {
    tool(store, "unpack", reference)
}

/// Unpacking takes threads and decompressors, and fetching a network client, which the runtime doesn't link: the image
/// tool does both.
fn tool(store: &Path, verb: &str, reference: &str) -> Result<()> {
    let program = self_image::origin()?.with_file_name(PROGRAM);
    #[expect(clippy::disallowed_methods, reason = "the runtime's own helper, before any container exists")]
    let mut command = Command::new(&program);
    // Its report is not the container's output.
    command.stdout(std::io::stderr());
    coracle_sys::signal::bind_to_runtime(&mut command);
    let status = command.arg("--store").arg(store).arg(verb).arg(reference).status();
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => {
            Err(Error::new(Code::System, format!("coracle-image {verb} {reference:?} failed with {status}")))
        }
        Err(e) => Err(Error::new(Code::System, format!("{program:?} can't be run: {e}"))),
    }
}
