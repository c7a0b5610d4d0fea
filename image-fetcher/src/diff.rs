//! What differs between two trees: two images, or a snapshot and the image it is of.

use std::ffi::OsStr;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use coracle_sys::file::{self, Resolve};

use crate::error::{Context, Result};
use crate::image::Image;
use crate::snapshot::{self, Access};
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
    let before = Temporary::beside(store, id).context(looking)?;
    let after = file::open_dir(snapshot::directory_path(store, id).join("rootfs")).context(looking)?;
    compare(before.root()?.as_fd(), after.as_fd()).context(looking)
}

/// What `after` has otherwise than `before`, in the order of paths.
///
/// # Errors
/// Where one of them is not unpacked, or can't be read.
pub fn of_images(store: &Store, before: &Image, after: &Image) -> Result<Vec<Change>> {
    let (before, after) = (Temporary::of(store, before, "before")?, Temporary::of(store, after, "after")?);
    compare(before.root()?.as_fd(), after.root()?.as_fd()).context(|| "comparing two images")
}

/// A snapshot for as long as something is compared with it.
struct Temporary<'a> {
    store: &'a Store,
    id: String,
}

impl<'a> Temporary<'a> {
    fn new(store: &'a Store, what: &str) -> Self {
        Self { store, id: format!("diff-{what}-{}", std::process::id()) }
    }

    fn of(store: &'a Store, image: &Image, what: &str) -> Result<Self> {
        let new = Self::new(store, what);
        snapshot::mount(store, &new.id, image, Access::ReadOnly)?;
        Ok(new)
    }

    /// What the snapshot `id` is of.
    fn beside(store: &'a Store, id: &str) -> Result<Self> {
        let new = Self::new(store, "of");
        snapshot::mount_again(store, id, &new.id)?;
        Ok(new)
    }

    fn root(&self) -> Result<OwnedFd> {
        Ok(file::open_dir(snapshot::directory_path(self.store, &self.id).join("rootfs"))?)
    }
}

impl Drop for Temporary<'_> {
    fn drop(&mut self) {
        // What can't be undone now, `unmount` does: the snapshot has its record.
        let _ = snapshot::remove(self.store, &self.id);
    }
}

fn compare(before: BorrowedFd<'_>, after: BorrowedFd<'_>) -> Result<Vec<Change>> {
    let mut changes = Vec::new();
    directory(Path::new(""), Some(before), Some(after), &mut changes)?;
    changes.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(changes)
}

/// Compares what is in a directory of either.
fn directory(
    path: &Path,
    before: Option<BorrowedFd<'_>>,
    after: Option<BorrowedFd<'_>>,
    changes: &mut Vec<Change>,
) -> Result<()> {
    let names = |directory: Option<BorrowedFd<'_>>| directory.map_or(Ok(Vec::new()), file::list);
    let mut all = [names(before)?, names(after)?].concat();
    all.sort();
    all.dedup();
    for name in all {
        let (old, new) = (look(before, &name)?, look(after, &name)?);
        let kind = match (&old, &new) {
            (None, _) => Some(Kind::Added),
            (_, None) => Some(Kind::Deleted),
            (Some(old), Some(new)) => (old != new).then_some(Kind::Changed),
        };
        let path = path.join(&name);
        changes.extend(kind.map(|kind| Change { kind, path: path.clone() }));
        let (old, new) = (enter(before, &name, old.as_ref())?, enter(after, &name, new.as_ref())?);
        // What is below something that is gone is gone with it.
        if new.is_some() {
            directory(&path, old.as_ref().map(AsFd::as_fd), new.as_ref().map(AsFd::as_fd), changes)?;
        }
    }
    Ok(())
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

fn look(directory: Option<BorrowedFd<'_>>, name: &OsStr) -> Result<Option<Look>> {
    let Some(directory) = directory else { return Ok(None) };
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

fn enter(directory: Option<BorrowedFd<'_>>, name: &OsStr, look: Option<&Look>) -> Result<Option<OwnedFd>> {
    match (directory, look) {
        (Some(directory), Some(look)) if look.is(libc::S_IFDIR) => {
            Ok(Some(file::open(directory, name, libc::O_DIRECTORY, 0, Resolve::BeneathNoLinks)?))
        }
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::disallowed_methods, reason = "tests make files on the host")]

    use std::fs;

    use super::*;
    use crate::fixture::{Tar, both};

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
}
