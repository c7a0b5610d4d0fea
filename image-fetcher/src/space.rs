//! Space: what the store holds, what of it is used, and what may go.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use coracle_sys::archive;
use coracle_sys::file::{self, Resolve};

use crate::digest::Digest;
use crate::error::{Context, Result};
use crate::image::Image;
use crate::metadata::SIZE;
use crate::snapshot;
use crate::store::{Entry, Store};

/// Parts of blobs that nobody has gone on with for so long are given up.
const ABANDONED: Duration = Duration::from_secs(24 * 3600);

/// Which images go, beside what no image uses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Policy {
    /// Those that were not used for so long.
    pub max_age: Option<Duration>,
    /// Those that were used least recently, until the store holds no more bytes than this.
    pub max_size: Option<u64>,
}

/// How much of one kind there is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Amount {
    /// How many.
    pub count: u64,
    /// Their bytes: of blobs as they are stored, of unpacked layers those of their files.
    pub bytes: u64,
    /// Those bytes that no image and no snapshot uses.
    pub unused: u64,
}

/// What the store holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Manifests, configs and layers as they came.
    pub blobs: Amount,
    /// Unpacked layers.
    pub layers: Amount,
    /// Parts of blobs that have not come wholly.
    pub partial: Amount,
}

/// An image, what it holds, and when it was used last: pulled, imported or mounted.
struct Held {
    entry: Entry,
    image: Image,
    used: SystemTime,
}

/// What the store holds, and how much of it is not used.
///
/// # Errors
/// Where an image can't be read.
pub fn usage(store: &Store) -> Result<Usage> {
    let _lock = store.lock_adding()?;
    let (images, others) = held(store)?;
    let keep = Keep::of(store, &images, &others)?;
    let mut usage = Usage::default();
    for (directory, kept, amount) in [
        (store.blobs(), &keep.blobs, &mut usage.blobs),
        (store.layers(), &keep.layers, &mut usage.layers),
        (store.partial()?.as_fd(), &BTreeSet::new(), &mut usage.partial),
    ] {
        for name in file::list(directory)? {
            let bytes = size_of(directory, &name)?;
            let is_kept = name.to_str().is_some_and(|name| kept.contains(name));
            amount.count += 1;
            amount.bytes += bytes;
            amount.unused += if is_kept { 0 } else { bytes };
        }
    }
    Ok(usage)
}

/// Removes images as `policy` says, and whatever no image and no snapshot uses; never an image that a snapshot is made of.
/// Waits for those who are adding. Returns the references that are gone, the least recently used first.
///
/// # Errors
/// Where an image can't be read: then nothing is removed, since its layers are not known.
pub fn collect(store: &Store, policy: &Policy) -> Result<Vec<String>> {
    let lock = store.lock_all()?;
    let (mut images, others) = held(store).context(|| "collecting what is not used")?;
    images.sort_by_key(|held| held.used);
    let in_use: BTreeSet<Digest> = snapshot::records(store)?.into_iter().map(|r| r.manifest).collect();
    let (mut gone, mut at) = (Vec::new(), 0);
    while at < images.len() {
        let held = &images[at];
        let is_old = policy.max_age.is_some_and(|age| held.used.elapsed().is_ok_and(|e| e > age));
        let is_too_much = match policy.max_size {
            Some(most) => Keep::of(store, &images, &others)?.size(store)? > most,
            None => false,
        };
        if !in_use.contains(&held.image.digest) && (is_old || is_too_much) {
            gone.push(images.remove(at).entry.reference);
        } else {
            at += 1;
        }
    }
    if !gone.is_empty() {
        store.forget(&lock, &gone).context(|| "collecting what is not used")?;
    }
    store.collect_locked(&lock)?;
    give_up(store.partial()?.as_fd())?;
    Ok(gone)
}

/// All images, and the names of the blobs of what else is in the store.
fn held(store: &Store) -> Result<(Vec<Held>, BTreeSet<String>)> {
    let (images, others) = store.contents()?;
    let of = |(entry, image): (Entry, Image)| {
        let modified = file::stat_at(store.blobs(), image.digest.hex())?.st_mtime;
        let used = UNIX_EPOCH + Duration::from_secs(modified.max(0).unsigned_abs());
        Ok(Held { entry, image, used })
    };
    Ok((images.into_iter().map(of).collect::<Result<_>>()?, others))
}

/// The names of what is used.
struct Keep {
    blobs: BTreeSet<String>,
    layers: BTreeSet<String>,
}

impl Keep {
    fn of(store: &Store, images: &[Held], others: &BTreeSet<String>) -> Result<Self> {
        let mut keep = Self { blobs: others.clone(), layers: snapshot::layers_in_use(store)? };
        for held in images {
            keep.blobs.extend(held.image.blobs().map(|digest| digest.hex().to_owned()));
            keep.layers.extend(held.image.layers.iter().filter_map(|layer| store.unpacked(layer)));
        }
        Ok(keep)
    }

    fn size(&self, store: &Store) -> Result<u64> {
        let mut total = 0;
        for (directory, names) in [(store.blobs(), &self.blobs), (store.layers(), &self.layers)] {
            for name in names {
                total += size_of(directory, OsStr::new(name))?;
            }
        }
        Ok(total)
    }
}

/// The bytes of a blob, or of an unpacked layer as it was noted when that was made.
fn size_of(directory: BorrowedFd<'_>, name: &OsStr) -> Result<u64> {
    let Ok(stat) = file::stat_at(directory, name) else { return Ok(0) };
    if stat.st_mode & libc::S_IFMT != libc::S_IFDIR {
        return Ok(stat.st_size.unsigned_abs());
    }
    let layer = file::open(directory, name, libc::O_DIRECTORY, 0, Resolve::BeneathNoLinks)?;
    let noted = archive::xattr(layer.as_fd(), OsStr::new(SIZE))?.unwrap_or_default();
    Ok(std::str::from_utf8(&noted).ok().and_then(|text| text.parse().ok()).unwrap_or(0))
}

/// Removes parts of blobs that nobody has gone on with for a day.
fn give_up(partial: BorrowedFd<'_>) -> Result<()> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    for name in file::list(partial)? {
        let modified = file::stat_at(partial, &name)?.st_mtime.max(0).unsigned_abs();
        if now.saturating_sub(modified) > ABANDONED.as_secs() {
            archive::remove_tree(partial, &name)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::disallowed_methods, reason = "tests look at files on the host")]

    use super::*;
    use crate::fixture::{Scratch, Tar};
    use crate::snapshot::Access;

    /// A store with the images `old`, `middle` and `new`, each of one layer, used in this order.
    fn store() -> Scratch {
        let scratch = Scratch::new();
        for (age, name) in [(3000, "old"), (2000, "middle"), (1000, "new")] {
            scratch.unpack(&[Tar::default().file(name, &[b'x'; 10_000]).end()]).unwrap();
            scratch.store.tag("image", name).unwrap();
            let digest = scratch.store.image(name).unwrap().digest;
            let blob = scratch.store.path().join("blobs/sha256").join(digest.hex());
            let time = SystemTime::now() - Duration::from_secs(age);
            std::fs::File::open(blob).unwrap().set_modified(time).unwrap();
        }
        scratch.store.remove("image").unwrap();
        scratch
    }

    fn names(store: &Store) -> Vec<String> {
        store.entries().unwrap().into_iter().map(|e| e.reference).collect()
    }

    #[test]
    fn what_was_used_least_recently_goes_until_the_rest_fits() {
        let scratch = store();
        let whole = usage(&scratch.store).unwrap();
        assert_eq!((whole.layers.count, whole.layers.bytes, whole.blobs.unused), (3, 30_000, 0));
        let policy =
            Policy { max_size: Some(whole.blobs.bytes + whole.layers.bytes - 1), ..Policy::default() };
        assert_eq!(collect(&scratch.store, &policy).unwrap(), ["old"]);
        let policy = Policy { max_size: Some(0), ..Policy::default() };
        assert_eq!(collect(&scratch.store, &policy).unwrap(), ["middle", "new"]);
        assert_eq!(usage(&scratch.store).unwrap(), Usage::default());
    }

    #[test]
    fn what_is_older_than_allowed_goes_but_never_what_is_mounted() {
        let scratch = store();
        let image = scratch.store.image("old").unwrap();
        let root = snapshot::mount(&scratch.store, "web", &image, Access::ReadOnly).unwrap();
        // Mounting has made it the latest: make it old again.
        let blob = scratch.store.path().join("blobs/sha256").join(image.digest.hex());
        std::fs::File::open(blob).unwrap().set_modified(UNIX_EPOCH).unwrap();
        let policy = Policy { max_age: Some(Duration::from_secs(1500)), max_size: None };
        assert_eq!(collect(&scratch.store, &policy).unwrap(), ["middle"]);
        assert_eq!(names(&scratch.store), ["new", "old"]);
        assert!(root.join("old").exists());
        snapshot::remove(&scratch.store, "web").unwrap();
    }

    #[test]
    fn mounting_an_image_makes_it_the_one_used_last() {
        let scratch = store();
        let image = scratch.store.image("old").unwrap();
        snapshot::mount(&scratch.store, "web", &image, Access::ReadOnly).unwrap();
        snapshot::remove(&scratch.store, "web").unwrap();
        let policy = Policy { max_age: Some(Duration::from_secs(1500)), max_size: None };
        assert_eq!(collect(&scratch.store, &policy).unwrap(), ["middle"]);
    }

    #[test]
    fn parts_that_nobody_goes_on_with_are_given_up_after_a_day() {
        let scratch = store();
        let partial = scratch.store.path().join("partial");
        scratch.store.partial().unwrap();
        for name in ["fresh", "stale"] {
            std::fs::write(partial.join(name), "x").unwrap();
        }
        let stale = std::fs::File::open(partial.join("stale")).unwrap();
        stale.set_modified(SystemTime::now() - ABANDONED * 2).unwrap();
        collect(&scratch.store, &Policy::default()).unwrap();
        assert!(partial.join("fresh").exists() && !partial.join("stale").exists());
    }
}
