//! A snapshot: the layers of an image mounted one over the other with overlayfs.
//!
//! ```text
//! snapshots/ID/snapshot.json   the intent: which layers, written first
//! snapshots/ID/upper work      what is written goes here; read-only, `upper` is empty and the topmost layer
//! snapshots/ID/rootfs          where it is mounted
//! ```
//!
//! `upper` carries the metadata of the root directory, since overlayfs shows that of the topmost layer,
//! and few archives have an entry for it. Each undo may be repeated, and finds its way from any half.

mod layers;
mod removal;
#[cfg(test)]
#[cfg(feature = "unpack")]
mod tests;

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use coracle_sys::file::{self, Resolve};
use coracle_sys::{Errno, mount};
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::error::{Context, Error, Kind, Result};
use crate::image::Image;
use crate::store::{Store, check_id};
use layers::{copy_root, map_owners, set_path, too_old, visible_layers};

#[cfg(all(test, feature = "unpack"))]
pub(crate) use layers::mount_image;
#[cfg(feature = "unpack")]
pub(crate) use layers::view;
pub(crate) use removal::layers_in_use;
#[cfg(feature = "unpack")]
pub(crate) use removal::records;
pub use removal::{remove, remove_forgotten, remove_unused, unmount};

/// Whether a snapshot can be written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Access {
    /// Nothing changes.
    ReadOnly,
    /// Changes are kept in the snapshot, and go with it.
    Writable,
}

/// Whose the files of a snapshot are for containers whose users are not the host's.
#[derive(Debug, Clone, Copy)]
pub struct Owners<'a> {
    /// A user namespace that maps the IDs of the layers to those of the host.
    pub namespace: BorrowedFd<'a>,
    /// The ID of the host that 0 is mapped to, users and groups alike.
    pub first: u32,
    /// How many are mapped.
    pub count: u32,
}

impl Owners<'_> {
    /// Gives `upper` the owners that its files have on the host: overlayfs takes no upper directory whose owners are mapped
    /// where root is not.
    fn take(self, upper: BorrowedFd<'_>) -> Result<()> {
        let found = file::stat(upper)?;
        let [user, group] = [found.st_uid, found.st_gid]
            .map(|id| if id < self.count { self.first.saturating_add(id) } else { id });
        Ok(file::chown(upper, user, group)?)
    }
}

/// What layers are unpacked into. Snapshots take both, one over the other.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Snapshotter {
    /// A directory in overlay form.
    #[default]
    Overlay,
    /// An EROFS image, mounted from its file (Linux 6.12, and 6.15 to be a layer of overlayfs).
    Erofs,
}

impl std::str::FromStr for Snapshotter {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "overlay" => Ok(Self::Overlay),
            "erofs" => Ok(Self::Erofs),
            _ => Err(format!("a snapshotter is overlay or erofs, not {text:?}")),
        }
    }
}

/// What `snapshot.json` holds.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Record {
    reference: String,
    pub(crate) manifest: Digest,
    /// Names below `layers`, bottom first.
    layers: Vec<String>,
    access: Access,
    /// A path that is there as long as somebody knows of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    known_by: Option<PathBuf>,
}

const RECORD: &str = "snapshot.json";

/// What a snapshot is for.
#[derive(Debug, Clone, Copy)]
pub struct Purpose<'a> {
    /// Whether it can be written to.
    pub access: Access,
    /// Whose its files are, where not whose they are in the layers.
    pub owners: Option<Owners<'a>>,
    /// A path that is there as long as somebody knows of the snapshot; when it is gone, [`remove_forgotten`] removes it.
    pub known_by: Option<&'a std::path::Path>,
}

/// Mounts the layers of `image` as the snapshot `id`, and returns the absolute path of its root directory.
///
/// # Errors
/// [`Kind::NotUnpacked`] where a layer is not unpacked yet, [`Kind::Exists`] where the ID is taken. What was
/// begun is undone.
pub fn mount(store: &Store, id: &str, image: &Image, access: Access) -> Result<PathBuf> {
    mount_for(store, id, image, Purpose { access, owners: None, known_by: None })
}

/// The same, for a purpose.
///
/// # Errors
/// As [`mount`]; [`Kind::System`] where the kernel or the store's file system can't map owners.
pub fn mount_for(store: &Store, id: &str, image: &Image, purpose: Purpose<'_>) -> Result<PathBuf> {
    let Purpose { access, owners, known_by } = purpose;
    let known_by = known_by.map(std::path::Path::to_owned);
    let mounting = || format!("mounting {:?} as {id:?}", image.reference);
    check_id(id).context(mounting)?;
    let _lock = store.lock_adding()?;
    store.note_use(&image.digest).context(mounting)?;
    let layers = unpacked_layers(store, image).context(mounting)?;
    let record = Record {
        reference: image.reference.clone(),
        manifest: image.digest.clone(),
        layers,
        access,
        known_by,
    };
    let directory = begin(store, id, &record).context(mounting)?;
    if let Err(error) = assemble(store, id, directory.as_fd(), (&record, owners)) {
        // The first failure is the one to tell; what can't be undone now, the next `remove` finds.
        let _ = remove(store, id);
        return Err(error).context(mounting);
    }
    Ok(directory_path(store, id).join("rootfs"))
}

/// The names of what the snapshot `id` is made of below what was written to it, bottom first.
///
/// # Errors
/// [`Kind::NotFound`] where there is no snapshot `id`.
#[cfg(feature = "unpack")]
pub(crate) fn layers_of(store: &Store, id: &str) -> Result<Vec<String>> {
    check_id(id)?;
    let none = || Error::new(Kind::NotFound, format!("there is no snapshot {id:?}"));
    Ok(removal::record(store, id.as_ref())?.ok_or_else(none)?.layers)
}

/// The absolute path of the snapshot's directory.
pub fn directory_path(store: &Store, id: &str) -> PathBuf {
    store.path().join("snapshots").join(id)
}

/// The names of what the image's layers are unpacked into, bottom first.
pub(crate) fn unpacked_layers(store: &Store, image: &Image) -> Result<Vec<String>> {
    let found = image.layers.iter().map(|layer| {
        store.unpacked(layer).ok_or_else(|| {
            let why = format!("layer {} of {:?} is not unpacked", layer.diff_id, image.reference);
            Error::new(Kind::NotUnpacked, why)
                .hint(format!("`coracle-image unpack {}` does that", image.reference))
        })
    });
    found.collect()
}

/// Claims the ID and writes the intent.
fn begin(store: &Store, id: &str, record: &Record) -> Result<OwnedFd> {
    match file::mkdir(store.snapshots(), id, 0o700) {
        Err(e) if e.errno() == Errno::EEXIST => {
            let why = format!("a snapshot {id:?} exists already");
            return Err(Error::new(Kind::Exists, why)
                .hint(format!("`coracle-image unmount {id}` removes it, if no container has it")));
        }
        other => other?,
    }
    let directory = open_directory(store.snapshots(), OsStr::new(id))?;
    let bytes =
        serde_json::to_vec(record).map_err(|e| Error::new(Kind::Malformed, format!("{RECORD}: {e}")))?;
    // Not synced: a start would wait for the device. One that is lost with the power is taken for none.
    file::replace(directory.as_fd(), RECORD, &bytes, 0o600)?;
    Ok(directory)
}

fn open_directory(parent: BorrowedFd<'_>, name: &OsStr) -> Result<OwnedFd> {
    Ok(file::open(parent, name, libc::O_DIRECTORY, 0, Resolve::BeneathNoLinks)?)
}

/// Makes the directories and the mount: configured and given its attributes while detached, attached last.
fn assemble(
    store: &Store,
    id: &str,
    directory: BorrowedFd<'_>,
    (record, owners): (&Record, Option<Owners<'_>>),
) -> Result<()> {
    for name in ["upper", "work", "rootfs"] {
        file::mkdir(directory, name, 0o755)?;
    }
    let (mut visible, root) = visible_layers(store, &record.layers)?;
    let upper = open_directory(directory, OsStr::new("upper"))?;
    copy_root(root.as_ref().map(AsFd::as_fd), upper.as_fd())?;
    owners.map_or(Ok(()), |owners| owners.take(upper.as_fd()))?;

    let here = directory_path(store, id);
    let overlay = mount::Context::open("overlay")?;
    overlay.set("source", b"coracle")?;
    let set = |key: &str, path: PathBuf| set_path(&overlay, key, &path);
    if record.access == Access::ReadOnly {
        set("lowerdir+", here.join("upper"))?;
    }
    // Closed, it would be no mount any more.
    let _mapped = owners.map(|owners| map_owners(store, &mut visible, owners.namespace)).transpose()?;
    visible.iter().rev().try_for_each(|layer| layer.put_into(store, &overlay))?;
    // An image may have no layer, and overlayfs wants at least one below the upper one, or two.
    if visible.is_empty() {
        set("lowerdir+", here.join("rootfs"))?;
    }
    let attributes = if record.access == Access::Writable {
        set("upperdir", here.join("upper"))?;
        set("workdir", here.join("work"))?;
        0
    } else {
        mount::attr::RDONLY
    };
    let mounted = overlay.mount(attributes).map_err(too_old)?;
    let rootfs = open_directory(directory, OsStr::new("rootfs"))?;
    Ok(mount::attach(mounted.as_fd(), rootfs.as_fd())?)
}
