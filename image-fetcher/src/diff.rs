//! What differs between two trees: two images, or a snapshot and the image it is of.

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr};
use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use coracle_sys::file::{self, Resolve};
use coracle_sys::{Errno, archive, mount};

use crate::error::{Context, Result};
use crate::image::Image;
use crate::lock::Held;
use crate::metadata::is_kept;
use crate::snapshot;
use crate::store::{Store, is_missing};

/// How something differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It is new.
    Added,
    /// Its type, permissions, owner, size, time, target, device, attributes or bytes are others.
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
    // What a container puts in the place of a file while that is opened is no device then, and no other mount.
    let after = mount::clone_tree(after.as_fd(), Path::new(""), false).context(looking)?;
    let inert = mount::Attributes { set: mount::attr::NODEV | mount::attr::RDONLY, ..Default::default() };
    mount::set_attributes(after.as_fd(), inert, false).context(looking)?;
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
            (Some(old), Some(new)) => {
                let is_same = old.looks_as(new)
                    && before.map_or(Ok(true), |before| holds_same((before, old), (after, new), &name))?;
                (!is_same).then_some(Kind::Changed)
            }
        };
        let [old, new] = [old, new].map(|look| look.is_some_and(|look| look.is(libc::S_IFDIR)));
        let path = path.join(&name);
        changes.extend(kind.map(|kind| Change { kind, path: path.clone() }));
        // What is below something that is gone is gone with it.
        inner.extend(new.then_some((path, old)));
    }
    Ok(inner)
}

/// What is known of a file without opening it.
struct Look {
    /// Type and permissions, owner, device, size, time.
    numbers: [i64; 7],
    /// Where a link leads.
    target: Option<std::ffi::OsString>,
    /// Inode and time of its last change of any kind.
    inode: [i64; 3],
}

impl Look {
    fn is(&self, kind: u32) -> bool {
        self.numbers[0] as u32 & libc::S_IFMT == kind
    }

    fn looks_as(&self, other: &Self) -> bool {
        self.numbers == other.numbers && self.target == other.target
    }

    /// Whether the two are one file of one layer, which both trees have. EROFS keeps one time alone, and there the number
    /// proves nothing.
    fn is_one_with(&self, other: &Self) -> bool {
        self.inode == other.inode && self.inode[1..] != self.numbers[5..]
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
    Ok(Some(Look { numbers, target, inode: [stat.st_ino.cast_signed(), stat.st_ctime, stat.st_ctime_nsec] }))
}

/// Whether two files or directories that look alike have the same attributes and bytes: images that are built to be
/// reproduced have one time for all.
fn holds_same(
    (before, old): (BorrowedFd<'_>, &Look),
    (after, new): (BorrowedFd<'_>, &Look),
    name: &OsStr,
) -> Result<bool> {
    if old.is_one_with(new) || !(old.is(libc::S_IFREG) || old.is(libc::S_IFDIR)) {
        return Ok(true);
    }
    let flags = libc::O_RDONLY | libc::O_NONBLOCK | libc::O_NOFOLLOW;
    let open = |at| file::open(at, name, flags, 0, Resolve::BeneathNoLinks);
    let (before, after) = (open(before)?, open(after));
    // Gone meanwhile, or something else.
    let Ok(after) = after else { return Ok(false) };
    if attributes(before.as_fd())? != attributes(after.as_fd())? {
        return Ok(false);
    }
    Ok(old.is(libc::S_IFDIR) || has_same_bytes(File::from(before), File::from(after))?)
}

fn attributes(fd: BorrowedFd<'_>) -> Result<BTreeMap<CString, Option<Vec<u8>>>> {
    let names = archive::xattr_names(fd)?.into_iter().filter(|name| is_kept(name.as_bytes()));
    names.map(|name| Ok((name.clone(), archive::xattr(fd, OsStr::from_bytes(name.as_bytes()))?))).collect()
}

fn has_same_bytes(before: File, after: File) -> Result<bool> {
    let failed = |e| coracle_sys::Error::of_io("read()", &e);
    let [mut before, mut after] = [before, after].map(|file| BufReader::with_capacity(128 << 10, file));
    loop {
        let (old, new) = (before.fill_buf().map_err(failed)?, after.fill_buf().map_err(failed)?);
        let length = old.len().min(new.len());
        if old[..length] != new[..length] {
            return Ok(false);
        }
        if length == 0 {
            return Ok(old.len() == new.len());
        }
        before.consume(length);
        after.consume(length);
    }
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
    fn files_of_one_size_and_time_are_told_apart_by_their_bytes_and_attributes() {
        both(|new| {
            let scratch = new();
            let made = |bytes: &[u8], value: &[u8]| {
                let attribute = [("SCHILY.xattr.user.a", value)];
                let tar = Tar::default()
                    .file("same", b"1")
                    .file("bytes", bytes)
                    .pax(&attribute)
                    .file("attribute", b"");
                tar.pax(&attribute).dir("d/").end()
            };
            scratch.unpack(&[made(b"old", b"x")]).unwrap();
            scratch.store.tag("image", "old").unwrap();
            scratch.unpack(&[made(b"new", b"y")]).unwrap();
            let [old, new] = ["old", "image"].map(|name| scratch.store.image(name).unwrap());
            let changes = of_images(&scratch.store, &old, &new).unwrap();
            assert_eq!(shown(&changes), ["C /attribute", "C /bytes", "C /d"]);
            assert!(of_images(&scratch.store, &new, &new).unwrap().is_empty());
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
