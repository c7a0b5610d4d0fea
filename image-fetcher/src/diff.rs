//! What differs between two trees: two images, or a snapshot and the image it is of.

use std::ffi::OsStr;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use coracle_sys::Errno;
use coracle_sys::file::{self, Resolve};

use crate::error::{Context, Result};
use crate::image::Image;
use crate::lock::Held;
use crate::snapshot;
use crate::store::{Store, is_missing};

/// How something differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It is new.
    Added,
    /// Its type, permissions, owner, size, time, target or device is another one.
    Changed,
    /// It is gone.
    Deleted,
}

/// Something that differs. It is shown as `docker diff` does: `A /path`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// How.
    pub kind: Kind,
    /// Its path below the root, without a leading slash.
    pub path: PathBuf,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let letter = match self.kind {
            Kind::Added => 'A',
            Kind::Changed => 'C',
            Kind::Deleted => 'D',
        };
        // What a terminal could take for commands is shown as text.
        let path: String =
            self.path.to_string_lossy().chars().map(|c| if c.is_control() { '?' } else { c }).collect();
        write!(f, "{letter} /{path}")
    }
}

/// What has been changed in the snapshot `id`, in the order of paths.
///
/// # Errors
/// Where it is not mounted, or can't be read.
pub fn of_snapshot(store: &Store, id: &str) -> Result<Vec<Change>> {
    let looking = || format!("comparing {id:?} with its image");
    let before = View::beside(store, id).context(looking)?;
    let after = file::open_dir(snapshot::directory_path(store, id).join("rootfs")).context(looking)?;
    compare(before.root.as_fd(), after.as_fd()).context(looking)
}

/// What `after` has otherwise than `before`, in the order of paths.
///
/// # Errors
/// Where one of them is not unpacked, or can't be read.
pub fn of_images(store: &Store, before: &Image, after: &Image) -> Result<Vec<Change>> {
    let looking = || "comparing two images";
    let before = View::of(store, before).context(looking)?;
    let after = View::of(store, after).context(looking)?;
    compare(before.root.as_fd(), after.root.as_fd()).context(looking)
}

/// Layers, mounted one over the other and attached nowhere: whoever is killed leaves no mount, and no record that keeps
/// layers. Until it is dropped, nobody removes them.
struct View<'a> {
    root: OwnedFd,
    _empty: Empty<'a>,
    _adding: Held,
}

/// A directory among the layers which is below all of them. Where it is left, `gc` removes it.
struct Empty<'a> {
    store: &'a Store,
    name: String,
}

impl<'a> View<'a> {
    fn of(store: &'a Store, image: &Image) -> Result<Self> {
        let adding = store.lock_adding()?;
        store.note_use(&image.digest)?;
        Self::new(store, &snapshot::unpacked_layers(store, image)?, adding)
    }

    /// What the snapshot `id` is of.
    fn beside(store: &'a Store, id: &str) -> Result<Self> {
        let adding = store.lock_adding()?;
        Self::new(store, &snapshot::layers_of(store, id)?, adding)
    }

    fn new(store: &'a Store, layers: &[String], adding: Held) -> Result<Self> {
        let empty = Empty { store, name: format!(".diff-{:016x}", file::random()?) };
        file::mkdir(store.layers(), &empty.name, 0o700)?;
        let root = snapshot::view(store, layers, &empty.name)?;
        Ok(Self { root, _empty: empty, _adding: adding })
    }
}

impl Drop for Empty<'_> {
    fn drop(&mut self) {
        let _ = file::rmdir(self.store.layers(), &self.name);
    }
}

/// Compares all that is below either, one directory after the other, each opened from the top: a handful of descriptors is
/// enough, however deep the trees are.
fn compare(before: BorrowedFd<'_>, after: BorrowedFd<'_>) -> Result<Vec<Change>> {
    let mut changes = Vec::new();
    // Directories of `after`, and whether `before` has them, too.
    let mut left = vec![(PathBuf::new(), true)];
    while let Some((path, is_in_both)) = left.pop() {
        let old = if is_in_both { enter(before, &path)? } else { None };
        // A container may remove it, or put another thing in its place, while it is compared.
        let Some(new) = enter(after, &path)? else { continue };
        left.extend(directory(&path, old.as_ref().map(AsFd::as_fd), new.as_fd(), &mut changes)?);
    }
    changes.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(changes)
}

/// Compares what is in a directory of either. Returns the directories in it that are to be compared.
fn directory(
    path: &Path,
    before: Option<BorrowedFd<'_>>,
    after: BorrowedFd<'_>,
    changes: &mut Vec<Change>,
) -> Result<Vec<(PathBuf, bool)>> {
    let mut all = [before.map_or(Ok(Vec::new()), file::list)?, file::list(after)?].concat();
    all.sort();
    all.dedup();
    let mut inner = Vec::new();
    for name in all {
        let old = before.map_or(Ok(None), |before| look(before, &name))?;
        let new = look(after, &name)?;
        let kind = match (&old, &new) {
            // It has gone meanwhile.
            (None, None) => None,
            (None, Some(_)) => Some(Kind::Added),
            (Some(_), None) => Some(Kind::Deleted),
            (Some(old), Some(new)) => (old != new).then_some(Kind::Changed),
        };
        let [old, new] = [old, new].map(|look| look.is_some_and(|look| look.is(libc::S_IFDIR)));
        let path = path.join(&name);
        changes.extend(kind.map(|kind| Change { kind, path: path.clone() }));
        // What is below something that is gone is gone with it.
        inner.extend(new.then_some((path, old)));
    }
    Ok(inner)
}

/// Type and permissions, owner, device, size, time, and where a link leads.
#[derive(PartialEq, Eq)]
struct Look {
    numbers: [i64; 7],
    target: Option<std::ffi::OsString>,
}

impl Look {
    fn is(&self, kind: u32) -> bool {
        self.numbers[0] as u32 & libc::S_IFMT == kind
    }
}

fn look(directory: BorrowedFd<'_>, name: &OsStr) -> Result<Option<Look>> {
    let found = file::stat_at(directory, name);
    if is_missing(&found) {
        return Ok(None);
    }
    let stat = found?;
    // How long a directory is, is up to the file system.
    let size = if stat.st_mode & libc::S_IFMT == libc::S_IFDIR { 0 } else { stat.st_size };
    let numbers = [
        i64::from(stat.st_mode),
        i64::from(stat.st_uid),
        i64::from(stat.st_gid),
        stat.st_rdev.cast_signed(),
        size,
        stat.st_mtime,
        stat.st_mtime_nsec,
    ];
    let is_link = stat.st_mode & libc::S_IFMT == libc::S_IFLNK;
    let target = is_link.then(|| file::read_link(directory, name)).transpose()?;
    Ok(Some(Look { numbers, target }))
}

/// Opens a directory; none where there is none any more.
fn enter(top: BorrowedFd<'_>, path: &Path) -> Result<Option<OwnedFd>> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    match file::open(top, path, libc::O_DIRECTORY, 0, Resolve::BeneathNoLinks) {
        Err(e) if matches!(e.errno(), Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => Ok(None),
        other => Ok(Some(other?)),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::disallowed_methods, reason = "tests make files on the host")]

    use std::fs;

    use coracle_sys::archive;

    use super::*;
    use crate::fixture::{Tar, both};
    use crate::snapshot::Access;

    fn shown(changes: &[Change]) -> Vec<String> {
        changes.iter().map(Change::to_string).collect()
    }

    #[test]
    fn what_was_added_changed_and_deleted_in_a_snapshot_is_told() {
        both(|new| {
            let scratch = new();
            let layer =
                Tar::default().dir("d/").file("d/f", b"1").file("gone", b"").dir("e/").file("e/in", b"");
            scratch.unpack(&[layer.end()]).unwrap();
            let image = scratch.store.image("image").unwrap();
            let root = snapshot::mount(&scratch.store, "web", &image, Access::Writable).unwrap();
            assert!(of_snapshot(&scratch.store, "web").unwrap().is_empty());
            fs::write(root.join("d/f"), "22").unwrap();
            fs::write(root.join("d/new"), "").unwrap();
            fs::remove_file(root.join("gone")).unwrap();
            fs::remove_dir_all(root.join("e")).unwrap();
            let changes = of_snapshot(&scratch.store, "web").unwrap();
            assert_eq!(shown(&changes), ["C /d", "C /d/f", "A /d/new", "D /e", "D /gone"]);
            snapshot::remove(&scratch.store, "web").unwrap();
            assert!(file::list(scratch.store.snapshots()).unwrap().is_empty());
        });
    }

    #[test]
    fn two_images_are_compared() {
        both(|new| {
            let scratch = new();
            let base = Tar::default().dir("d/").file("d/f", b"1").link("l", "d");
            scratch.unpack(&[base.end()]).unwrap();
            scratch.store.tag("image", "old").unwrap();
            let upper = Tar::default().file("d/.wh.f", b"").link("l", "e").file("n", b"");
            scratch.unpack(&[base.end(), upper.end()]).unwrap();
            let [old, new] = ["old", "image"].map(|name| scratch.store.image(name).unwrap());
            let changes = of_images(&scratch.store, &old, &new).unwrap();
            assert_eq!(shown(&changes), ["D /d/f", "C /l", "A /n"]);
        });
    }

    #[test]
    fn a_tree_deeper_than_descriptors_are_many_is_compared() {
        let [before, after] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let [old, new] = [&before, &after].map(|dir| file::open_dir(dir.path()).unwrap());
        let deep = "d/".repeat(1500);
        for top in [&old, &new] {
            file::mkdir_all(top.as_fd(), &deep, 0o755).unwrap();
        }
        file::mkdir_all(new.as_fd(), format!("{deep}new"), 0o755).unwrap();
        let changes = shown(&compare(old.as_fd(), new.as_fd()).unwrap());
        assert_eq!(changes.last(), Some(&format!("A /{deep}new")));
        for dir in [before, after] {
            let parent = file::open_dir(dir.path().parent().unwrap()).unwrap();
            archive::remove_tree(parent.as_fd(), dir.path().file_name().unwrap()).unwrap();
        }
    }

    #[test]
    fn what_is_killed_while_it_compares_leaves_neither_mount_nor_record() {
        both(|new| {
            let scratch = new();
            scratch.unpack(&[Tar::default().dir("d/").file("d/f", b"1").end()]).unwrap();
            let layers = || file::list(scratch.store.layers()).unwrap().len();
            let (image, before) = (scratch.store.image("image").unwrap(), layers());
            let view = View::of(&scratch.store, &image).unwrap();
            assert!(enter(view.root.as_fd(), Path::new("d")).unwrap().is_some());
            assert!(file::list(scratch.store.snapshots()).unwrap().is_empty());
            let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
            assert!(!mounts.contains(scratch.store.path().to_str().unwrap()), "{mounts}");
            drop(view);
            assert_eq!(layers(), before);
            file::mkdir(scratch.store.layers(), ".diff-left", 0o700).unwrap();
            scratch.store.collect().unwrap();
            assert_eq!(layers(), before);
        });
    }
}
