//! Layers that are unpacked together, in a temporary directory, on all processors.

use std::ffi::OsStr;
use std::num::NonZero;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::ScopedJoinHandle;

use coracle_sys::file::{self, Resolve};
use coracle_sys::{Errno, archive};

use super::apply::apply;
use super::confine::confine;
use super::entry::Entries;
use super::finish::Applied;
use super::form::Form;
use super::links::Links;
use super::stream::{self, Stream};
use super::{Blobs, Limits};
use crate::error::{Context, Error, Kind, Result};
use crate::image::{Image, Layer};
use crate::store::is_missing;
use crate::thread;

/// The prefix of a temporary directory's name. Our PID and a number follow: one can be in a directory of somebody else's.
const TEMPORARY: &str = ".coracle-new-";

/// Layers that are unpacked together.
pub(super) struct Batch<'a> {
    /// Where the temporary directory is.
    parent: BorrowedFd<'a>,
    /// Where blobs are read from.
    readable: BorrowedFd<'a>,
    blobs: &'a dyn Blobs,
    limits: Limits,
    name: String,
    directory: OwnedFd,
}

impl<'a> Batch<'a> {
    /// Makes the temporary directory in `parent`; `blobs` are read below `readable`.
    pub(super) fn begin(
        parent: BorrowedFd<'a>,
        (readable, blobs): (BorrowedFd<'a>, &'a dyn Blobs),
        limits: Limits,
    ) -> Result<Self> {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        loop {
            let count = COUNT.fetch_add(1, Ordering::Relaxed);
            let name = format!("{TEMPORARY}{}-{count}", std::process::id());
            file::mkdir(parent, &name, 0o700)?;
            let begun = begin_in(parent, &name).inspect_err(|_| drop(archive::remove_tree(parent, &name)))?;
            // Before it was locked, another process could take it for one that was left, and remove it.
            if let Some(directory) = begun {
                return Ok(Self { parent, readable, blobs, limits, name, directory });
            }
        }
    }

    /// The temporary directory.
    pub(super) fn directory(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    /// What each layer may cost.
    pub(super) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Its name.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Removes it.
    pub(super) fn remove(&self) -> Result<()> {
        Ok(archive::remove_tree(self.parent, &self.name)?)
    }

    /// Does `each` for the layers at `places`, as many at once as there are processors, confined; returns what that returned,
    /// and the places.
    pub(super) fn run<T: Send>(
        &self,
        image: &Image,
        places: &[usize],
        each: impl Fn(usize, &Layer) -> Result<Option<T>> + Sync,
    ) -> Result<Vec<(usize, T)>> {
        let (next, results) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
        let failed = Mutex::new(None);
        let work = || -> Result<()> {
            self.confine(None)?;
            while let Some(place) = places.get(next.fetch_add(1, Ordering::Relaxed)) {
                let layer = &image.layers[*place];
                let applied = each(*place, layer).context(|| format!("layer {}", layer.digest))?;
                lock(&results).extend(applied.map(|applied| (*place, applied)));
            }
            Ok(())
        };
        let worker = || {
            if let Err(error) = work() {
                // One failure is enough: the others begin nothing new.
                next.store(places.len(), Ordering::Relaxed);
                lock(&failed).get_or_insert(error);
            }
        };
        let processors = std::thread::available_parallelism().map_or(1, NonZero::get);
        std::thread::scope(|scope| thread::start_some(scope, processors.min(places.len()), worker))?;
        match failed.into_inner().unwrap_or_default() {
            Some(error) => Err(error),
            None => Ok(results.into_inner().unwrap_or_default()),
        }
    }

    /// Leaves the calling thread what it needs to read a layer, and to write below the temporary directory.
    fn confine(&self, below: Option<BorrowedFd<'_>>) -> Result<()> {
        let readable: Vec<BorrowedFd<'_>> = std::iter::once(self.readable).chain(below).collect();
        confine(self.directory.as_fd(), &readable)
    }

    /// Does `work` with names and links that are still what an archive says; it reads `below`, too.
    pub(super) fn confined<T: Send>(
        &self,
        below: Option<BorrowedFd<'_>>,
        work: impl FnOnce() -> Result<T> + Send,
    ) -> Result<T> {
        let confined = || self.confine(below).and_then(|()| work());
        let ended = std::thread::scope(|scope| thread::start(scope, confined).map(ScopedJoinHandle::join))?;
        ended.unwrap_or_else(|_| Err(Error::new(Kind::System, "the thread that finishes it has panicked")))
    }

    /// Applies the entries of a layer to `form`, while another thread decompresses them.
    pub(super) fn apply<F: Form>(&self, layer: &Layer, form: F) -> Result<Applied<F>> {
        let (blob, limits) = (self.blobs.open(layer)?, &self.limits);
        let (source, mut stream) = stream::pair();
        std::thread::scope(|scope| {
            thread::start(scope, move || source.run(blob, layer, limits))?;
            let applied = apply_all(&mut stream, form, limits);
            let applied = applied.or_else(|error| blame(&mut stream, error));
            if applied.is_ok() {
                self.blobs.note_verified(layer);
            }
            // The other thread ends where nobody listens.
            drop(stream);
            applied
        })
    }
}

/// Makes a new directory what layers can be unpacked in; none where it is gone.
fn begin_in(parent: BorrowedFd<'_>, name: &str) -> Result<Option<OwnedFd>> {
    let opened = file::open(parent, name, libc::O_DIRECTORY, 0, Resolve::BeneathNoLinks);
    if is_missing(&opened) {
        return Ok(None);
    }
    let directory = opened?;
    file::lock(directory.as_fd(), true)?;
    if is_missing(&file::stat_at(parent, name)) {
        return Ok(None);
    }
    // Without a set-group-ID bit that a parent's would have brought.
    file::chmod(directory.as_fd(), 0o700)?;
    // Ext4 would make all layers' files in one part of the disk, and look at each inode that was freed there of late
    // (its `recently_deleted`) whenever it makes one: more work than all else that the kernel does here.
    archive::spread_directories(directory.as_fd());
    Ok(Some(directory))
}

/// Whether we give temporary directories such names.
fn is_temporary(name: &OsStr) -> bool {
    let numbers = name.to_str().and_then(|name| name.strip_prefix(TEMPORARY)?.split_once('-'));
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    numbers.is_some_and(|(pid, count)| is_number(pid) && is_number(count))
}

/// Removes what a killed process has left in `parent`: temporary directories that nobody holds a lock of.
pub(super) fn sweep(parent: BorrowedFd<'_>) -> Result<()> {
    for name in file::list(parent)? {
        if !is_temporary(&name) {
            continue;
        }
        match file::open(parent, &name, libc::O_DIRECTORY, 0, Resolve::BeneathNoLinks) {
            Ok(fd) if file::lock(fd.as_fd(), false).is_ok() => archive::remove_tree(parent, &name)?,
            Ok(_) => {}
            Err(e) if e.errno() == Errno::ENOENT => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

/// Applies all entries of a layer, and reads its stream to the end, where it is known to be the right one.
pub(super) fn apply_all<F: Form>(stream: &mut Stream, mut form: F, limits: &Limits) -> Result<Applied<F>> {
    let mut links = Links::default();
    let mut entries = Entries::new(stream, limits);
    while let Some(entry) = entries.next()? {
        let path = entry.path.clone();
        let applied = apply(&mut form, &mut links, &mut entries, entry);
        let naming = || format!("entry {:?}", String::from_utf8_lossy(&path));
        applied.context(naming)?;
        if *form.kept() > limits.names {
            return Err(Limits::error("the names of its entries", limits.names, "bytes")).context(naming);
        }
    }
    let bytes = entries.bytes();
    stream.drain()?;
    Ok(Applied { form, links, bytes })
}

/// A layer that can't be understood may be one that isn't what its digest says: then that is the reason.
fn blame<T>(stream: &mut Stream, error: Error) -> Result<T> {
    match (error.kind(), stream.drain()) {
        (Kind::Malformed, Err(corrupt)) if corrupt.kind() == Kind::Corrupt => Err(corrupt),
        _ => Err(error),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
