//! A bundle: the root file system of an image, and the `config.json` that a runtime reads beside it.

#[cfg(feature = "unpack")]
mod directory;
mod options;
mod process;
mod rootless;
mod seccomp;
mod spec;
mod user;
mod volumes;

use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use coracle_sys::{file, quota};
use oci_spec::runtime::Spec;

use crate::error::{Context, Error, Kind, Result};
use crate::snapshot::{self, Access, Owners, Purpose};
use crate::store::Store;

#[cfg(feature = "unpack")]
pub use directory::unpack;
pub use options::{Network, Options, Seccomp, host_name};
pub use rootless::rootless;
pub use seccomp::default_seccomp;
pub use spec::{SPEC_VERSION, STOP_SIGNAL, by_depth, default_spec, spec};

/// A bundle, ready for a runtime.
#[derive(Debug, Clone)]
pub struct Bundle {
    /// The absolute path of the directory that holds `rootfs`, and `config.json` where that was written.
    pub path: PathBuf,
    /// What `config.json` says, or would say.
    pub spec: Spec,
}

/// Makes the bundle `id` of the image that `reference` names: mounts its layers, and writes `config.json`.
///
/// # Errors
/// [`Kind::NotFound`], [`Kind::NotUnpacked`], [`Kind::Exists`], and [`Kind::Usage`] where an option can't be
/// understood. What was begun is undone.
pub fn make(store: &Store, reference: &str, id: &str, options: &Options) -> Result<Bundle> {
    make_for(store, reference, (id, None), options)
}

/// The same for `id` of whom somebody knows as long as there is a path.
///
/// # Errors
/// As [`make`].
pub fn make_for(
    store: &Store,
    reference: &str,
    (id, known_by): (&str, Option<&Path>),
    options: &Options,
) -> Result<Bundle> {
    let bundle = compose(store, reference, (id, known_by), (options, None))?;
    let write = || -> Result<()> { write_config(file::open_dir(&bundle.path)?.as_fd(), &bundle.spec) };
    write().context(|| format!("making a bundle of {reference:?}")).inspect_err(|_| {
        let _ = remove(store, id);
    })?;
    Ok(bundle)
}

fn write_config(directory: BorrowedFd<'_>, spec: &Spec) -> Result<()> {
    let text = serde_json::to_vec_pretty(spec)
        .map_err(|e| Error::new(Kind::Malformed, format!("writing config.json: {e}")))?;
    Ok(file::replace(directory, "config.json", &text, 0o600)?)
}

/// The same without a file `config.json`, for who goes on with what would stand in it; with other owners on the host, if any
/// are given, than the layers have.
///
/// # Errors
/// As [`make`], and [`snapshot::mount_for`]; [`Kind::Unsupported`] where quotas are needed and there are none.
pub fn compose(
    store: &Store,
    reference: &str,
    (id, known_by): (&str, Option<&Path>),
    (options, owners): (&Options, Option<Owners<'_>>),
) -> Result<Bundle> {
    let image = store.image(reference)?;
    if options.needs_quotas && !quota::is_enforced(store.snapshots())? {
        let path = store.path().join("snapshots");
        let why = format!("the file system of {path:?} keeps no project to a limit");
        return Err(Error::new(Kind::Unsupported, why).hint("ext4 and XFS do, mounted with prjquota"));
    }
    // Also where the container is not to write: its runtime makes the mount points that are missing, and the root read-only then.
    let purpose = Purpose { access: Access::Writable, owners, known_by };
    let rootfs = snapshot::mount_for(store, id, &image, purpose)?;
    let made = || -> Result<Bundle> {
        let root = file::open_dir(&rootfs)?;
        let config = image.config.config().clone().unwrap_or_default();
        volumes::make_missing(root.as_fd(), &config, owners)?;
        let spec = spec(&image.config, root.as_fd(), &options.for_id(id))?;
        Ok(Bundle { path: snapshot::directory_path(store, id), spec })
    };
    made().context(|| format!("making a bundle of {reference:?}")).inspect_err(|_| {
        // The first failure is the one to tell; what can't be undone now, the next `remove` finds.
        let _ = remove(store, id);
    })
}

/// Unmounts and removes the bundle `id` with all that its container wrote. One that is not there is no error.
///
/// # Errors
/// Where the kernel refuses.
pub fn remove(store: &Store, id: &str) -> Result<()> {
    snapshot::remove(store, id)
}

/// The home directory of the user with ID `uid`, as `/etc/passwd` in the root directory `root` has it; `/` where it
/// has none.
///
/// # Errors
/// [`Kind::Malformed`] and [`Kind::Limit`] where that is no file that can be read as one.
pub fn home(root: BorrowedFd<'_>, uid: u32) -> Result<String> {
    user::home(root, uid)
}

#[cfg(test)]
#[cfg(feature = "unpack")]
mod tests {
    #![expect(clippy::disallowed_methods, reason = "tests look at files on the host")]

    use super::*;
    use crate::fixture::{Scratch, Tar};

    fn scratch() -> Scratch {
        let scratch = Scratch::new();
        let passwd = b"root:x:0:0::/root:/bin/sh\nweb:x:33:33::/srv:/bin/sh\n";
        scratch.unpack(&[Tar::default().dir("etc/").file("etc/passwd", passwd).end()]).unwrap();
        scratch
    }

    #[test]
    fn a_bundle_has_a_config_that_a_runtime_can_load_and_goes_without_a_trace() {
        let scratch = scratch();
        let options = Options { user: Some("web".to_owned()), ..Options::default() };
        let bundle = make(&scratch.store, "image", "c1", &options).unwrap();
        let spec = Spec::load(bundle.path.join("config.json")).unwrap();
        assert_eq!(spec.process().as_ref().unwrap().user().uid(), 33);
        assert_eq!(spec.hostname().as_deref(), Some("c1"));
        assert!(bundle.path.join("rootfs/etc/passwd").exists());
        remove(&scratch.store, "c1").unwrap();
        remove(&scratch.store, "c1").unwrap();
        assert!(!bundle.path.exists());
    }

    #[test]
    fn the_runtime_can_make_mount_points_that_a_read_only_root_lacks() {
        let scratch = scratch();
        let options = Options { read_only: true, ..Options::default() };
        let bundle = make(&scratch.store, "image", "c1", &options).unwrap();
        assert_eq!(bundle.spec.root().as_ref().unwrap().readonly(), Some(true));
        let made = std::fs::create_dir(bundle.path.join("rootfs/proc"));
        remove(&scratch.store, "c1").unwrap();
        made.unwrap();
    }

    #[test]
    fn a_store_on_a_file_system_without_quotas_limits_nothing() {
        let scratch = scratch();
        if quota::is_enforced(scratch.store.snapshots()).unwrap() {
            return eprintln!(
                "skipped: the directory for temporary files is on a file system with project quotas"
            );
        }
        let options = Options { needs_quotas: true, ..Options::default() };
        let error = make(&scratch.store, "image", "c1", &options).unwrap_err().to_string();
        assert!(
            error.ends_with("keeps no project to a limit; ext4 and XFS do, mounted with prjquota"),
            "{error}"
        );
        assert!(file::list(scratch.store.snapshots()).unwrap().is_empty());
    }

    #[test]
    fn a_bundle_that_fails_is_undone() {
        let scratch = scratch();
        let options = Options { user: Some("nobody".to_owned()), ..Options::default() };
        let error = make(&scratch.store, "image", "c1", &options).unwrap_err();
        let expected = "making a bundle of \"image\": looking up user \"nobody\" in the image: \
                        the image's /etc/passwd has no user \"nobody\"";
        assert_eq!(error.to_string(), expected);
        assert!(file::list(scratch.store.snapshots()).unwrap().is_empty());
    }
}
