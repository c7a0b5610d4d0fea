//! Unpacking: each layer becomes a directory in overlay form or an EROFS image, by itself and beside the others.
//!
//! A layer's blob is read, digested, decompressed and digested again by one thread (`stream`), parsed
//! (`entry`) and written (`apply`, `tree` or `erofs`) by another; as many layers go on at once as there are
//! processors. Nearly all layers say all about themselves and are kept by diff ID. One with a hard link to
//! a file below it, without entries for its directories, or with whiteouts of nothing, is finished after the
//! others (`finish`) and kept by chain ID.
//!
//! All layers of an image are unpacked in one temporary directory, synced once, and get their names when
//! every digest was right: what has a name below `layers` is whole.

mod apply;
mod batch;
mod confine;
pub(crate) mod entry;
mod erofs;
mod finish;
mod flat;
pub(crate) mod form;
mod header;
mod limits;
mod links;
mod number;
mod owners;
mod pax;
pub(crate) mod stream;
mod tree;
#[cfg(test)]
mod differential;
#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use coracle_sys::file::{self, Resolve};
use coracle_sys::{Errno, archive, verity};

use crate::error::{Context, Result};
use crate::image::{Image, Layer};
use crate::snapshot::{self, Snapshotter};
use crate::store::{IMAGE, Store};
#[cfg(feature = "fuzz")]
use batch::apply_all;
use batch::{Batch, sweep};
use erofs::Erofs;
use finish::{Applied, Fit};
use form::Form;
use tree::Tree;

pub use flat::{ROOT, unpack_tree};
pub use limits::Limits;
pub use owners::Owners;

/// An empty directory beside the layers of a batch.
const EMPTY: &str = "empty";

/// How layers are unpacked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Options {
    /// What each of them may cost.
    pub limits: Limits,
    /// What they become.
    pub snapshotter: Snapshotter,
}

/// Unpacks the layers of `image` that are not unpacked yet, and returns how many that were.
///
/// # Errors
/// [`Kind::Corrupt`], [`Kind::Malformed`] or [`Kind::Limit`] of the first layer that is not right; then none of
/// them is kept.
pub fn unpack(store: &Store, image: &Image, options: &Options) -> Result<usize> {
    let unpacking = || format!("unpacking {:?}", image.reference);
    let _lock = store.lock_digests(image.layers.iter().map(|l| &l.diff_id)).context(unpacking)?;
    unpack_from(store, store, image, options).context(unpacking)
}

/// Where the blobs of layers come from.
pub(crate) trait Blobs: Sync {
    /// Opens the blob of a layer. What it holds is verified while it is read.
    fn open<'a>(&'a self, layer: &Layer) -> Result<Box<dyn Read + Send + 'a>>;

    /// Notes that all of the blob was read, and was right.
    fn note_verified(&self, _layer: &Layer) {}
}

impl Blobs for Store {
    fn open<'a>(&'a self, layer: &Layer) -> Result<Box<dyn Read + Send + 'a>> {
        Ok(Box::new(self.blob(&layer.digest)?))
    }
}

/// As [`unpack`], for who has locked the layers: their blobs come from `blobs`.
pub(crate) fn unpack_from(
    store: &Store,
    blobs: &dyn Blobs,
    image: &Image,
    options: &Options,
) -> Result<usize> {
    sweep(store.layers())?;
    let mut count = 0;
    // A layer that depends on what is below is unpacked for one place in the image; the same one in another
    // place, which is rare, takes another round.
    loop {
        let missing = missing(store, image);
        if missing.is_empty() {
            return Ok(count);
        }
        count += missing.len();
        let batch = Batch::begin(store.layers(), (store.root(), blobs), options.limits)?;
        let kept = Kept { store, snapshotter: options.snapshotter, batch: &batch };
        let result = kept.run(image, &missing);
        let removed = batch.remove();
        result.and(removed)?;
    }
}

/// The places in the image of the layers that are not unpacked, each diff ID once.
fn missing(store: &Store, image: &Image) -> Vec<usize> {
    let mut places: Vec<usize> = Vec::new();
    for (i, layer) in image.layers.iter().enumerate() {
        let is_known = places.iter().any(|p| image.layers[*p].diff_id == layer.diff_id);
        if !is_known && store.unpacked(layer).is_none() {
            places.push(i);
        }
    }
    places
}

/// Layers on their way into the store.
struct Kept<'a> {
    store: &'a Store,
    snapshotter: Snapshotter,
    batch: &'a Batch<'a>,
}

/// A layer with its entries applied.
trait Unfinished: Send {
    fn finish(self: Box<Self>, below: Option<BorrowedFd<'_>>, limits: &Limits) -> Result<Fit>;
}

impl<F: Form + Send> Unfinished for Applied<F> {
    fn finish(self: Box<Self>, below: Option<BorrowedFd<'_>>, limits: &Limits) -> Result<Fit> {
        Applied::finish(*self, below, limits)
    }
}

/// Such a layer, and its place in the image.
type Done = (usize, Box<dyn Unfinished>);

impl Kept<'_> {
    fn run(&self, image: &Image, places: &[usize]) -> Result<()> {
        file::mkdir(self.batch.directory(), EMPTY, 0o700)?;
        let done = self.batch.run(image, places, |_, layer| self.layer(layer))?;
        self.commit(image, done)
    }

    /// The name in the batch's directory of what a layer becomes.
    fn name_of(&self, layer: &Layer) -> String {
        match self.snapshotter {
            Snapshotter::Overlay => layer.diff_id.hex().to_owned(),
            Snapshotter::Erofs => format!("{}{IMAGE}", layer.diff_id.hex()),
        }
    }

    /// Unpacks one layer; it is returned where what is below has to be known to finish it.
    fn layer(&self, layer: &Layer) -> Result<Option<Box<dyn Unfinished>>> {
        let (directory, name) = (self.batch.directory(), self.name_of(layer));
        if self.snapshotter == Snapshotter::Erofs {
            let flags = libc::O_RDWR | libc::O_CREAT | libc::O_EXCL;
            let fd = file::open(directory, &name, flags, 0o600, Resolve::BeneathNoLinks)?;
            let uuid = u128::from_str_radix(&layer.diff_id.hex()[..32], 16).unwrap_or_default();
            return self.apply(layer, Erofs::new(File::from(fd), uuid.to_be_bytes()));
        }
        file::mkdir(directory, &name, 0o700)?;
        let root = file::open(directory, &name, libc::O_DIRECTORY, 0, Resolve::BeneathNoLinks)?;
        self.apply(layer, Tree::new(root, Owners::All))
    }

    fn apply<F: Form + Send + 'static>(&self, layer: &Layer, form: F) -> Result<Option<Box<dyn Unfinished>>> {
        let mut applied = self.batch.apply(layer, form)?;
        if applied.needs_below() {
            return Ok(Some(Box::new(applied) as Box<dyn Unfinished>));
        }
        applied.finish(None, self.batch.limits()).map(|_| None)
    }

    /// Finishes the layers that need those below them, syncs, and gives all layers their names.
    fn commit(&self, image: &Image, mut done: Vec<Done>) -> Result<()> {
        done.sort_by_key(|(place, _)| *place);
        let mut chained = Vec::new();
        for (place, applied) in done {
            let layer = &image.layers[place];
            let below = self.below(image, place).context(|| format!("below layer {}", layer.digest))?;
            let below = below.as_ref().map(AsFd::as_fd);
            let finished = self.batch.confined(below, || applied.finish(below, self.batch.limits()));
            if finished.context(|| format!("layer {}", layer.digest))? == Fit::Here {
                chained.push(layer);
            }
        }
        archive::sync_file_system(self.batch.directory())?;
        self.make_unchangeable()?;
        let mut named = Vec::new();
        let result =
            self.give_names(&chained, &mut named).and_then(|()| Ok(archive::sync(self.store.layers())?));
        // Names that may not outlive a crash are not promised: the next unpacking would not sync them either.
        result.inspect_err(|_| {
            for name in &named {
                let _ = archive::remove_tree(self.store.layers(), name);
            }
        })
    }

    /// Moves the layers to where they are kept; `named` are the names that they got. Those of `chained` are kept by chain ID.
    fn give_names(&self, chained: &[&Layer], named: &mut Vec<OsString>) -> Result<()> {
        for name in file::list(self.batch.directory())?.into_iter().filter(|name| name != EMPTY) {
            let chain = chained.iter().find(|l| name.to_str() == Some(&self.name_of(l)));
            let by_chain = |l: &&&Layer| {
                self.name_of(l).replace(l.diff_id.hex(), &format!("{}.chain", l.chain_id.hex()))
            };
            let kept = chain.as_ref().map_or_else(|| name.clone(), |l| by_chain(l).into());
            match file::rename(self.batch.directory(), &name, self.store.layers(), &kept) {
                // A layer of that name is there already, which can't happen while its lock is held.
                Err(e) if e.errno() == Errno::ENOTEMPTY => {}
                other => named.push(other.map(|()| kept)?),
            }
        }
        Ok(())
    }

    /// Where the file system has fs-verity, EROFS images can't change any more, and what changed below is found when it
    /// is read. Where it hasn't, they are like any other file of root's.
    fn make_unchangeable(&self) -> Result<()> {
        let names = file::list(self.batch.directory())?;
        for name in names.iter().filter(|name| name.as_encoded_bytes().ends_with(IMAGE.as_bytes())) {
            let image = file::open(self.batch.directory(), name, libc::O_RDONLY, 0, Resolve::BeneathNoLinks)?;
            if !verity::enable(image.as_fd())? {
                break;
            }
        }
        Ok(())
    }

    /// The layers below the one at `place`, mounted but nowhere attached; none below the lowest.
    fn below(&self, image: &Image, place: usize) -> Result<Option<OwnedFd>> {
        let paths: Vec<String> = image.layers[..place]
            .iter()
            .map(|layer| {
                let unpacked = self.store.unpacked(layer);
                unpacked.unwrap_or_else(|| format!("{}/{}", self.batch.name(), self.name_of(layer)))
            })
            .collect();
        let empty = format!("{}/{EMPTY}", self.batch.name());
        if paths.is_empty() { Ok(None) } else { snapshot::view(self.store, &paths, &empty).map(Some) }
    }
}

/// Makes an EROFS image of an archive, in a file.
#[cfg(feature = "fuzz")]
pub(crate) fn make_image(archive: &[u8], file: File, limits: &Limits) -> Result<()> {
    apply_all(&mut stream::Stream::of(archive), Erofs::new(file, [0; 16]), limits)?
        .finish(None, limits)
        .map(drop)
}
