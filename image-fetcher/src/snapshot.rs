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

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use coracle_sys::archive::{self, Time};
use coracle_sys::file::{self, Resolve};
use coracle_sys::{Errno, mount};
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::error::{Context, Error, Kind, Result};
use crate::image::Image;
use crate::metadata;
use crate::store::{DOCUMENT_LIMIT, IMAGE, Store, check_id, is_missing};

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

/// Mounts what the snapshot `id` is made of, without what was written to it, read-only as the snapshot `new`.
///
/// # Errors
/// As [`mount()`], and [`Kind::NotFound`] where there is no snapshot `id`.
#[cfg(feature = "unpack")]
pub(crate) fn mount_again(store: &Store, id: &str, new: &str) -> Result<()> {
    check_id(id)?;
    let _lock = store.lock_adding()?;
    let path = std::path::Path::new(id).join(RECORD);
    let bytes = file::read(store.snapshots(), &path, DOCUMENT_LIMIT, Resolve::BeneathNoLinks);
    if is_missing(&bytes) {
        return Err(Error::new(Kind::NotFound, format!("there is no snapshot {id:?}")));
    }
    let record = Record { access: Access::ReadOnly, ..crate::image::parse(&bytes?, RECORD)? };
    let directory = begin(store, new, &record)?;
    assemble(store, new, directory.as_fd(), (&record, None)).inspect_err(|_| {
        // As in `mount_for`.
        let _ = remove(store, new);
    })
}

/// The absolute path of the snapshot's directory.
pub fn directory_path(store: &Store, id: &str) -> PathBuf {
    store.path().join("snapshots").join(id)
}

/// The names of what the image's layers are unpacked into, bottom first.
fn unpacked_layers(store: &Store, image: &Image) -> Result<Vec<String>> {
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
            return Err(
                Error::new(Kind::Exists, why).hint(format!("`coracle-image unmount {id}` removes it"))
            );
        }
        other => other?,
    }
    let directory = open_directory(store.snapshots(), OsStr::new(id))?;
    let bytes =
        serde_json::to_vec(record).map_err(|e| Error::new(Kind::Malformed, format!("{RECORD}: {e}")))?;
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

/// Maps the owners of layers: of images by their mounts, of directories by a mount of the one that they are in, which is
/// returned. It is attached nowhere, and has no path.
fn map_owners(store: &Store, layers: &mut [Unpacked<'_>], users: BorrowedFd<'_>) -> Result<OwnedFd> {
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
fn too_old(error: coracle_sys::Error) -> Error {
    let is_refused = error.errno() == Errno::EINVAL;
    let error = Error::from(error);
    if is_refused {
        error.hint("images need Linux 6.5, whose overlayfs takes layers one by one")
    } else {
        error
    }
}

/// Sets a path of the overlay. fsconfig(2) takes no string longer than 255 bytes.
fn set_path(overlay: &mount::Context, key: &str, path: &std::path::Path) -> Result<()> {
    let bytes = path.as_os_str().as_encoded_bytes();
    if bytes.len() > 255 {
        let why = format!("{path:?} is longer than the 255 bytes that overlayfs takes");
        return Err(Error::new(Kind::Limit, why).hint("keep the store at a shorter path"));
    }
    Ok(overlay.set(key, bytes)?)
}

/// An unpacked layer.
struct Unpacked<'a> {
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
    fn put_into(&self, store: &Store, overlay: &mount::Context) -> Result<()> {
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
/// whose root is opaque hides all below it, which overlayfs itself doesn't look at.
fn visible_layers<'a>(store: &Store, layers: &'a [String]) -> Result<(Vec<Unpacked<'a>>, Option<OwnedFd>)> {
    let (mut visible, mut described) = (Vec::new(), None);
    for name in layers.iter().rev() {
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
fn copy_root(root: Option<BorrowedFd<'_>>, upper: BorrowedFd<'_>) -> Result<()> {
    let [access, modification] = match root {
        Some(root) => metadata::copy(root, upper)?,
        None => {
            file::chmod(upper, 0o755)?;
            [Time::default(); 2]
        }
    };
    Ok(archive::set_times(upper, access, modification)?)
}

/// Unmounts the snapshot `id` and keeps what was written to it. One that is not mounted is no error.
///
/// # Errors
/// Where the kernel refuses.
pub fn unmount(store: &Store, id: &str) -> Result<()> {
    check_id(id)?;
    let rootfs = directory_path(store, id).join("rootfs");
    loop {
        match mount::detach(&rootfs) {
            Ok(()) => {}
            // EINVAL: nothing is mounted there.
            Err(e) if matches!(e.errno(), Errno::EINVAL | Errno::ENOENT | Errno::ENOTDIR) => return Ok(()),
            Err(e) => return Err(e).context(|| format!("unmounting {id:?}")),
        }
    }
}

/// Unmounts and removes the snapshot `id` with what was written to it. One that is not there is no error.
///
/// # Errors
/// Where the kernel refuses.
pub fn remove(store: &Store, id: &str) -> Result<()> {
    let removing = || format!("removing snapshot {id:?}");
    unmount(store, id).context(removing)?;
    let opened = file::open(store.snapshots(), id, libc::O_DIRECTORY, 0, Resolve::BeneathNoLinks);
    if is_missing(&opened) {
        return Ok(());
    }
    let directory = opened.context(removing)?;
    // rmdir(2) says EBUSY where something is mounted, in this namespace or, since it would be lost, another.
    let rootfs = file::rmdir(directory.as_fd(), "rootfs");
    if !is_missing(&rootfs) {
        rootfs.context(removing)?;
    }
    // The record goes last: until then, its layers are in use.
    for name in file::list(directory.as_fd()).context(removing)? {
        if name != RECORD {
            archive::remove_tree(directory.as_fd(), &name).context(removing)?;
        }
    }
    archive::remove_tree(store.snapshots(), id).context(removing)
}

/// Removes the snapshots of whom nobody knows any more, as after the machine has started anew. Returns their IDs, and what
/// kept others.
///
/// # Errors
/// Where the store can't be read.
pub fn remove_forgotten(store: &Store) -> Result<(Vec<String>, Vec<Error>)> {
    let (mut gone, mut failures) = (Vec::new(), Vec::new());
    for id in file::list(store.snapshots())?.into_iter().filter_map(|id| id.into_string().ok()) {
        let path = std::path::Path::new(&id).join(RECORD);
        let bytes = file::read(store.snapshots(), &path, DOCUMENT_LIMIT, Resolve::BeneathNoLinks);
        if is_missing(&bytes) {
            continue; // being made, or removed
        }
        let record: Record = crate::image::parse(&bytes?, RECORD)?;
        let is_gone =
            |path: &PathBuf| is_missing(&file::open(file::CWD, path, libc::O_PATH, 0, Resolve::Host));
        if record.known_by.as_ref().is_some_and(is_gone) {
            match remove(store, &id) {
                Ok(()) => gone.push(id),
                Err(error) => failures.push(error),
            }
        }
    }
    Ok((gone, failures))
}

/// The names of the layers that snapshots are made of.
pub(crate) fn layers_in_use(store: &Store) -> Result<BTreeSet<String>> {
    Ok(records(store)?.into_iter().flat_map(|record| record.layers).collect())
}

/// What the snapshots are made of.
pub(crate) fn records(store: &Store) -> Result<Vec<Record>> {
    let mut records = Vec::new();
    for id in file::list(store.snapshots())? {
        let path = std::path::Path::new(&id).join(RECORD);
        let bytes = file::read(store.snapshots(), &path, DOCUMENT_LIMIT, Resolve::BeneathNoLinks);
        // One without a record was never assembled.
        if !is_missing(&bytes) {
            records.push(crate::image::parse(&bytes?, "snapshot.json")?);
        }
    }
    Ok(records)
}

#[cfg(test)]
#[cfg(feature = "unpack")]
mod tests {
    #![expect(clippy::disallowed_methods, reason = "tests look at files on the host")]

    use std::fs;
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::fixture::{Tar, both};

    fn is_mounted(path: &std::path::Path) -> bool {
        fs::read_to_string("/proc/self/mountinfo").unwrap().contains(path.to_str().unwrap())
    }

    fn layers() -> Vec<Vec<u8>> {
        let root = Tar::default().raw(b"", |h| {
            h.set_entry_type(tar::EntryType::Directory);
            h.set_mode(0o711);
            h.as_old_mut().name[..2].copy_from_slice(b"./");
        });
        let lower = root.dir("d/").file("d/gone", b"").file("d/stays", b"1").dir("o/").file("o/old", b"");
        let upper = Tar::default().dir("d/").file("d/.wh.gone", b"").dir("o/").file("o/.wh..wh..opq", b"");
        vec![lower.end(), upper.file("o/new", b"").end()]
    }

    #[test]
    fn a_snapshot_shows_what_the_layers_are_together_and_leaves_nothing() {
        both(|new| {
            let scratch = new();
            scratch.unpack(&layers()).unwrap();
            let image = scratch.store.image("image").unwrap();
            let root = mount(&scratch.store, "web", &image, Access::Writable).unwrap();
            assert!(!root.join("d/gone").exists());
            assert!(root.join("d/stays").exists());
            assert!(!root.join("o/old").exists());
            assert!(root.join("o/new").exists());
            assert_eq!(fs::metadata(&root).unwrap().mode() & 0o777, 0o711);
            fs::write(root.join("d/written"), "x").unwrap();
            let again = mount(&scratch.store, "web", &image, Access::Writable).unwrap_err();
            assert_eq!(again.kind(), Kind::Exists);
            for _ in 0..2 {
                remove(&scratch.store, "web").unwrap();
                assert!(!is_mounted(&root));
                assert!(file::list(scratch.store.snapshots()).unwrap().is_empty());
            }
        });
    }

    #[test]
    fn owners_are_mapped_in_layers_of_either_kind_and_changed_in_none() {
        /// A process in a user namespace whose root is 70000 on the host.
        struct Users(std::process::Child);
        impl Drop for Users {
            fn drop(&mut self) {
                self.0.kill().and_then(|()| self.0.wait()).unwrap();
            }
        }
        let mut users = std::process::Command::new("unshare");
        let users =
            users.args(["--user", "sh", "-c", "echo; exec sleep 1000"]).stdout(std::process::Stdio::piped());
        let mut users = Users(users.spawn().unwrap());
        let mut said = [0];
        std::io::Read::read_exact(users.0.stdout.as_mut().unwrap(), &mut said).unwrap();
        let of = |name: &str| format!("/proc/{}/{name}", users.0.id());
        fs::write(of("uid_map"), "0 70000 1000").unwrap();
        fs::write(of("gid_map"), "0 70000 1000").unwrap();
        let namespace = fs::File::open(of("ns/user")).unwrap();
        let owners = Owners { namespace: namespace.as_fd(), first: 70_000, count: 1000 };
        both(|new| {
            let scratch = new();
            let owned = Tar::default().dir("d/").raw(b"", |h| {
                h.set_uid(7);
                h.set_gid(8);
                h.as_old_mut().name[..3].copy_from_slice(b"d/f");
            });
            scratch.unpack(&[owned.end()]).unwrap();
            let image = scratch.store.image("image").unwrap();
            for access in [Access::ReadOnly, Access::Writable] {
                let purpose = Purpose { access, owners: Some(owners), known_by: None };
                let root = mount_for(&scratch.store, "web", &image, purpose).unwrap();
                let owner = |path: &str| fs::metadata(root.join(path)).map(|m| (m.uid(), m.gid())).unwrap();
                let seen = [owner("d"), owner("d/f"), owner("")];
                remove(&scratch.store, "web").unwrap();
                assert_eq!(seen, [(70_000, 70_000), (70_007, 70_008), (70_000, 70_000)]);
            }
            let unchanged = fs::metadata(scratch.layer_path(0).join("d/f")).unwrap();
            assert_eq!((unchanged.uid(), unchanged.gid()), (7, 8));
        });
    }

    #[test]
    fn a_read_only_snapshot_of_one_layer_or_none_mounts_too() {
        both(|new| {
            for layers in [&layers()[..1], &[]] {
                let scratch = new();
                scratch.unpack(layers).unwrap();
                let image = scratch.store.image("image").unwrap();
                for access in [Access::ReadOnly, Access::Writable] {
                    let root = mount(&scratch.store, "web", &image, access).unwrap();
                    assert_eq!(fs::write(root.join("x"), "").is_ok(), access == Access::Writable);
                    remove(&scratch.store, "web").unwrap();
                }
            }
        });
    }

    #[test]
    fn a_root_that_is_opaque_hides_all_layers_below() {
        both(|new| {
            let scratch = new();
            let upper = Tar::default().file(".wh..wh..opq", b"").file("only", b"");
            scratch.unpack(&[layers().remove(0), upper.end()]).unwrap();
            let image = scratch.store.image("image").unwrap();
            let root = mount(&scratch.store, "web", &image, Access::ReadOnly).unwrap();
            let names: Vec<_> = fs::read_dir(&root).unwrap().map(|e| e.unwrap().file_name()).collect();
            remove(&scratch.store, "web").unwrap();
            assert_eq!(names, ["only"]);
        });
    }

    #[test]
    fn an_image_that_is_not_unpacked_is_an_error_of_its_own_kind() {
        both(|new| {
            let scratch = new();
            scratch.import(&layers()).unwrap();
            let image = scratch.store.image("image").unwrap();
            let error = mount(&scratch.store, "web", &image, Access::Writable).unwrap_err();
            assert_eq!(error.kind(), Kind::NotUnpacked);
            assert!(error.to_string().ends_with("`coracle-image unpack image` does that"), "{error}");
            assert!(file::list(scratch.store.snapshots()).unwrap().is_empty());
        });
    }

    #[test]
    fn removing_an_image_keeps_the_layers_of_its_snapshots() {
        both(|new| {
            let scratch = new();
            scratch.unpack(&layers()).unwrap();
            let image = scratch.store.image("image").unwrap();
            mount(&scratch.store, "web", &image, Access::Writable).unwrap();
            scratch.store.remove("image").unwrap();
            assert_eq!(file::list(scratch.store.layers()).unwrap().len(), 2);
            remove(&scratch.store, "web").unwrap();
            scratch.store.collect().unwrap();
            assert!(file::list(scratch.store.layers()).unwrap().is_empty());
        });
    }
}
