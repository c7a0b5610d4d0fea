//! The layers of a snapshot: directories and EROFS images, with the owners that they are to have, put one below the other.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use coracle_sys::archive::{self, Time};
use coracle_sys::{Errno, file, mount};

use super::open_directory;
use crate::error::{Error, Kind, Result};
use crate::metadata;
use crate::store::{IMAGE, Store};

/// Maps the owners of layers: of images by their mounts, of directories by a mount of the one that they are in, which is
/// returned. It is attached nowhere, and has no path.
pub(super) fn map_owners(
    store: &Store,
    layers: &mut [Unpacked<'_>],
    users: BorrowedFd<'_>,
) -> Result<OwnedFd> {
    let map =
        |mount: BorrowedFd<'_>| mount::set_idmap(mount, users, false).map_err(|e| Error::from(e).hint(OLD));
    let all = mount::clone_tree(store.layers(), std::path::Path::new(""), false)?;
    map(all.as_fd())?;
    for layer in layers {
        match &layer.by_descriptor {
            Some(image) => map(image.as_fd())?,
            None => layer.by_descriptor = Some(open_directory(all.as_fd(), OsStr::new(layer.name))?),
        }
    }
    Ok(all)
}

/// What may be wrong where a layer by descriptor is refused.
const OLD: &str = "Linux takes EROFS images as layers, and maps the owners of layers, since 6.15, and not on every file system";

/// Mounts layers read-only one over the other, attached nowhere: a view of them for whoever holds the
/// descriptor. `layers` are paths below the directory of layers, bottom first, `empty` is one that is hidden
/// below all of them, since overlayfs takes no single one.
///
/// # Errors
/// Where the kernel refuses.
#[cfg(feature = "unpack")]
pub(crate) fn view(store: &Store, layers: &[String], empty: &str) -> Result<OwnedFd> {
    let root = store.path().join("layers");
    let overlay = mount::Context::open("overlay")?;
    // Their mounts have to be there until the overlay's is.
    let (visible, _) = visible_layers(store, layers)?;
    visible.iter().rev().try_for_each(|layer| layer.put_into(store, &overlay))?;
    set_path(&overlay, "lowerdir+", &root.join(empty))?;
    overlay.mount(mount::attr::RDONLY).map_err(too_old)
}

/// An older overlayfs looks at its options only when it is made.
pub(super) fn too_old(error: coracle_sys::Error) -> Error {
    let is_refused = error.errno() == Errno::EINVAL;
    let error = Error::from(error);
    if is_refused {
        error.hint("images need Linux 6.5, whose overlayfs takes layers one by one")
    } else {
        error
    }
}

/// Sets a path of the overlay. fsconfig(2) takes no string longer than 255 bytes.
pub(super) fn set_path(overlay: &mount::Context, key: &str, path: &std::path::Path) -> Result<()> {
    let bytes = path.as_os_str().as_encoded_bytes();
    if bytes.len() > 255 {
        let why = format!("{path:?} is longer than the 255 bytes that overlayfs takes");
        return Err(Error::new(Kind::Limit, why).hint("keep the store at a shorter path"));
    }
    Ok(overlay.set(key, bytes)?)
}

/// An unpacked layer.
pub(super) struct Unpacked<'a> {
    name: &'a str,
    /// The mount, attached nowhere, of an EROFS image, or of a directory whose owners are mapped.
    by_descriptor: Option<OwnedFd>,
}

impl<'a> Unpacked<'a> {
    fn open(store: &Store, name: &'a str) -> Result<Self> {
        let by_descriptor = name.ends_with(IMAGE).then(|| mount_image(store, name)).transpose()?;
        Ok(Self { name, by_descriptor })
    }

    /// Its root directory.
    fn root(&self, store: &Store) -> Result<OwnedFd> {
        match &self.by_descriptor {
            Some(image) => open_directory(image.as_fd(), OsStr::new(".")),
            None => open_directory(store.layers(), OsStr::new(self.name)),
        }
    }

    /// Puts it below the layers that the overlay has already.
    pub(super) fn put_into(&self, store: &Store, overlay: &mount::Context) -> Result<()> {
        match &self.by_descriptor {
            Some(layer) => overlay.set_fd("lowerdir+", layer.as_fd()).map_err(|e| Error::from(e).hint(OLD)),
            None => set_path(overlay, "lowerdir+", &store.path().join("layers").join(self.name)),
        }
    }
}

/// Mounts a layer that is an EROFS image from its file, attached nowhere.
pub(crate) fn mount_image(store: &Store, name: &str) -> Result<OwnedFd> {
    let needs = |e| {
        let why = "mounting an EROFS image from its file needs Linux 6.12 with CONFIG_EROFS_FS_BACKED_BY_FILE, and a disk \
            below the file, no tmpfs; unpack with --snapshotter overlay";
        Error::from(e).hint(why)
    };
    let erofs = mount::Context::open("erofs").map_err(needs)?;
    set_path(&erofs, "source", &store.path().join("layers").join(name))?;
    erofs.set_flag("ro")?;
    erofs.mount(mount::attr::RDONLY).map_err(needs)
}

/// The layers that count, bottom first, and the topmost root directory that an archive described. A layer
/// whose root is opaque hides all below it, which overlayfs itself doesn't look at. Of one that is there twice,
/// the upper says again all that the lower did, and overlayfs takes no directory twice.
pub(super) fn visible_layers<'a>(
    store: &Store,
    layers: &'a [String],
) -> Result<(Vec<Unpacked<'a>>, Option<OwnedFd>)> {
    let (mut visible, mut described) = (Vec::<Unpacked<'_>>::new(), None);
    for name in layers.iter().rev() {
        if visible.iter().any(|above| above.name == name) {
            continue;
        }
        let layer = Unpacked::open(store, name)?;
        let root = layer.root(store)?;
        visible.push(layer);
        let opaque = archive::xattr(root.as_fd(), OsStr::new(metadata::OPAQUE))?;
        let implied = archive::xattr(root.as_fd(), OsStr::new(metadata::IMPLIED))?.is_some();
        if described.is_none() && !implied {
            described = Some(root);
        }
        if opaque.as_deref() == Some(b"y") {
            break;
        }
    }
    visible.reverse();
    Ok((visible, described))
}

/// Gives `upper` the metadata of the root directory `root`; where no layer says anything, those of a usual one.
pub(super) fn copy_root(root: Option<BorrowedFd<'_>>, upper: BorrowedFd<'_>) -> Result<()> {
    let [access, modification] = match root {
        Some(root) => metadata::copy(root, upper)?,
        None => {
            file::chmod(upper, 0o755)?;
            [Time::default(); 2]
        }
    };
    Ok(archive::set_times(upper, access, modification)?)
}
