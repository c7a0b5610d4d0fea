//! Pulling: an image from a registry into the store, its layers unpacked while they come.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use coracle_sys::{Errno, archive, file};
use oci_spec::image::{Descriptor, ImageIndex, MediaType};

use super::fetch::{Document, Fetcher, Slots};
use super::part::Part;
use super::report::{Event, Report, Stop, Watch};
use super::{Settings, clients};
use crate::digest::Digest;
use crate::error::{Context, Error, Kind, Result};
use crate::image::{Image, Layer, check_depth, check_document, is_index, parse, parse_manifest};
use crate::reference::Reference;
use crate::stage::Stage;
use crate::store::{Entry, Store, is_missing};
use crate::thread;
use crate::unpack::{Blobs, unpack_from};

/// What a pull has done.
#[derive(Debug)]
pub struct Pulled {
    /// The image, as the store names it.
    pub entry: Entry,
    /// Bytes of layers that came over the network.
    pub fetched: u64,
    /// How many layers were unpacked.
    pub unpacked: usize,
}

/// Pulls the image `reference` into the store. What the store has is not fetched again, and neither are the bytes that a
/// pull which was cut or killed has brought.
///
/// # Errors
/// [`Kind::Network`], [`Kind::Denied`], [`Kind::NotFound`], [`Kind::Corrupt`], [`Kind::Limit`]. What came is kept for the
/// next attempt, unless it was wrong or the disk is full.
pub fn pull(
    store: &Store,
    reference: &Reference,
    settings: &Settings,
    report: &dyn Report,
) -> Result<Pulled> {
    let mut amends = Amends::default();
    let mut result = pull_once(store, reference, settings, report, &mut amends);
    if result.as_ref().is_err_and(|error| error.kind() == Kind::Corrupt || amends.may_help) {
        result = pull_once(store, reference, settings, report, &mut amends);
    }
    result.context(|| format!("pulling {reference}"))
}

/// What a failed attempt leaves to the next one.
#[derive(Default)]
struct Amends {
    /// Blobs of the store that are not what their names say: they are fetched again.
    damaged: BTreeSet<Digest>,
    /// Whether something wrong was at hand before the attempt, from elsewhere or long ago, and will not be any more.
    may_help: bool,
}

fn pull_once(
    store: &Store,
    reference: &Reference,
    settings: &Settings,
    report: &dyn Report,
    amends: &mut Amends,
) -> Result<Pulled> {
    let stop = Stop::default();
    let watch = Watch { report, stop: &stop };
    let clients = clients(reference, settings, watch)?;
    let slots = Slots::new(settings.per_host);
    let fetcher = Fetcher { clients: &clients, repository: reference.repository(), slots };
    let found = Found::resolve(&fetcher, store, reference, settings)?;
    watch.event(&Event::Resolved(found.image.digest.clone()));

    let layers = &found.image.layers;
    let lock = store.lock_digests(layers.iter().flat_map(|l| [&l.diff_id, &l.digest]))?;
    let partial = store.partial()?;
    let parts = Parts::open(store, partial.as_fd(), layers, &amends.damaged)?;
    let before: u64 = parts.missing();
    let unpacked = transfer(&fetcher, store, &found.image, &parts, settings);
    let unpacked = unpacked.map_err(|failure| parts.tidy(partial.as_fd(), layers, failure, amends))?;

    let names: Vec<Digest> = parts.map.keys().cloned().collect();
    let replaced = commit(store, &found, parts)?;
    for name in names {
        archive::remove_tree(partial.as_fd(), name.hex())?;
    }
    drop(lock);
    if replaced {
        // What keeps it from that, as another image that is damaged does, is no failure of this one: `gc` tells of it.
        let _ = store.collect_if_idle();
    }
    Ok(Pulled { entry: found.entry, fetched: before, unpacked })
}

/// An image that was found, with its documents as they came.
struct Found {
    entry: Entry,
    image: Image,
    manifest: Vec<u8>,
    config: Vec<u8>,
}

impl Found {
    fn resolve(
        fetcher: &Fetcher<'_>,
        store: &Store,
        reference: &Reference,
        settings: &Settings,
    ) -> Result<Self> {
        let wanted = match reference.digest() {
            Some(digest) => digest.to_string(),
            None => {
                let tag = reference.wanted();
                fetcher.resolve(&tag)?.map_or(tag, |digest| digest.to_string())
            }
        };
        let mut document = fetcher.document(&wanted)?;
        let mut depth = 0;
        while is_index(&media_type(&document)) {
            check_document(&document.bytes, &media_type(&document))?;
            let index: ImageIndex = parse(&document.bytes, "the index")?;
            check_depth(depth)?;
            depth += 1;
            let chosen = settings.platform.choose(&index)?;
            let digest = Digest::try_from(chosen.digest())?;
            let (size, media_type) = (chosen.size(), chosen.media_type().to_string());
            document = fetcher.document(&digest.to_string())?;
            if document.bytes.len() as u64 != size || document.media_type != media_type {
                let why = format!(
                    "the index says that {digest} is {media_type:?} of {size} bytes, but what came is {:?} of {}",
                    document.media_type,
                    document.bytes.len()
                );
                return Err(Error::new(Kind::Malformed, why));
            }
        }
        Self::complete(fetcher, store, reference, document)
    }

    fn complete(
        fetcher: &Fetcher<'_>,
        store: &Store,
        reference: &Reference,
        document: Document,
    ) -> Result<Self> {
        let manifest = parse_manifest(&document.bytes, &media_type(&document))?;
        let config_digest = Digest::try_from(manifest.config().digest())?;
        let known = store.document(manifest.config());
        let config = known.or_else(|_| fetcher.small_blob(&config_digest, manifest.config().size()))?;
        let digest = oci_spec::image::Digest::try_from(document.digest.to_string());
        let digest = digest.map_err(|e| Error::new(Kind::Malformed, e.to_string()))?;
        let descriptor = Descriptor::new(media_type(&document), document.bytes.len() as u64, digest);
        let entry = Entry { reference: reference.to_string(), descriptor };
        let image = Image::assemble(&entry, manifest, parse(&config, "the image config")?)?;
        Ok(Self { entry, image, manifest: document.bytes, config })
    }
}

fn media_type(document: &Document) -> MediaType {
    MediaType::from(document.media_type.as_str())
}

/// The blobs of an image that the store doesn't have.
struct Parts<'a> {
    store: &'a Store,
    map: BTreeMap<Digest, Part>,
}

/// Why a transfer failed.
struct Failure {
    error: Error,
    /// Whether it was fetching that failed, and not unpacking.
    in_fetching: bool,
}

impl<'a> Parts<'a> {
    fn open(
        store: &'a Store,
        partial: BorrowedFd<'_>,
        layers: &[Layer],
        damaged: &BTreeSet<Digest>,
    ) -> Result<Self> {
        let mut map = BTreeMap::new();
        for layer in layers {
            if !damaged.contains(&layer.digest) && has_blob(store, layer)? {
                // One that was killed after it had named the blob has left this.
                archive::remove_tree(partial, layer.digest.hex())?;
            } else if !map.contains_key(&layer.digest) {
                map.insert(layer.digest.clone(), Part::open(partial, &layer.digest, layer.size)?);
            }
        }
        Ok(Self { store, map })
    }

    /// How many bytes have still to come.
    fn missing(&self) -> u64 {
        self.map.values().map(|part| part.size - part.length()).sum()
    }

    /// After a failure: removes what is wrong, and all of it where the disk is full. Wrong bytes can fail in any way, and
    /// while some are missing nobody can tell: what could not be unpacked is not trusted then.
    fn tidy(
        &self,
        partial: BorrowedFd<'_>,
        layers: &[Layer],
        failure: Failure,
        amends: &mut Amends,
    ) -> Error {
        let is_full = matches!(failure.error.errno(), Some(Errno::ENOSPC | Errno::EDQUOT));
        for part in self.map.values() {
            let is_wrong = match part.length() == part.size {
                true => part.verify().is_err(),
                false => !failure.in_fetching,
            };
            if is_full || is_wrong {
                // The failure itself is what is told; what stays behind is tried again by the next pull.
                let _ = archive::remove_tree(partial, part.digest.hex());
                amends.may_help |= part.was_begun && !is_full;
            }
        }
        if !is_full && !failure.in_fetching {
            for layer in layers.iter().filter(|layer| !self.map.contains_key(&layer.digest)) {
                if is_damaged(self.store, layer) {
                    amends.may_help |= amends.damaged.insert(layer.digest.clone());
                }
            }
        }
        failure.error
    }
}

/// Whether the store has the blob of a layer. One of another size than the manifest says is damaged, or the manifest is wrong.
fn has_blob(store: &Store, layer: &Layer) -> Result<bool> {
    let found = file::stat_at(store.blobs(), layer.digest.hex());
    if is_missing(&found) {
        return Ok(false);
    }
    let size = found?.st_size.unsigned_abs();
    if size != layer.size && store.check(&layer.digest).is_ok() {
        let why =
            format!("the manifest says that {} is {} bytes, but it is {size}", layer.digest, layer.size);
        return Err(Error::new(Kind::Malformed, why));
    }
    Ok(size == layer.size)
}

/// Whether the store's blob of a layer is not what its name says.
fn is_damaged(store: &Store, layer: &Layer) -> bool {
    store.check(&layer.digest).is_err_and(|error| error.kind() == Kind::Corrupt)
}

impl Blobs for Parts<'_> {
    fn open<'a>(&'a self, layer: &Layer) -> Result<Box<dyn Read + Send + 'a>> {
        match self.map.get(&layer.digest) {
            Some(part) => Ok(Box::new(part.reader())),
            None => Blobs::open(self.store, layer),
        }
    }

    fn note_verified(&self, layer: &Layer) {
        if let Some(part) = self.map.get(&layer.digest) {
            part.note_verified();
        }
    }
}

/// Fetches all parts, several at once, and unpacks the layers while they come. Returns how many that were.
fn transfer(
    fetcher: &Fetcher<'_>,
    store: &Store,
    image: &Image,
    parts: &Parts<'_>,
    settings: &Settings,
) -> std::result::Result<usize, Failure> {
    let order = in_order(image, parts);
    let (next, failed) = (AtomicUsize::new(0), Mutex::new(None));
    let watch = fetcher.clients[0].watch();
    let fetch = || {
        while let Some(part) = order.get(next.fetch_add(1, Ordering::Relaxed)) {
            let result = fetch(fetcher, part, watch);
            part.end();
            if let Err(error) = result {
                failed.lock().unwrap_or_else(std::sync::PoisonError::into_inner).get_or_insert(error);
                watch.stop.set();
            }
        }
    };
    let unpacked = std::thread::scope(|scope| {
        let started = thread::start_some(scope, settings.parallel.clamp(1, order.len().max(1)), fetch);
        let result = started.and_then(|()| finish(store, image, parts, settings));
        if result.is_err() {
            watch.stop.set();
        }
        result
    });
    match failed.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
        // One that was only stopped is no reason.
        Some(error) if !error.to_string().ends_with(super::report::STOPPED) => {
            Err(Failure { error, in_fetching: true })
        }
        _ => unpacked.map_err(|error| Failure { error, in_fetching: false }),
    }
}

/// The parts in the order of the image's layers.
fn in_order<'a>(image: &Image, parts: &'a Parts<'_>) -> Vec<&'a Part> {
    let mut seen = BTreeSet::new();
    image.layers.iter().filter(|l| seen.insert(&l.digest)).filter_map(|l| parts.map.get(&l.digest)).collect()
}

fn fetch(fetcher: &Fetcher<'_>, part: &Part, watch: Watch<'_>) -> Result<()> {
    let (digest, have) = (part.digest.clone(), part.length());
    watch.event(&Event::Started { digest, size: part.size, have });
    fetcher.fetch(part)?;
    watch.event(&Event::Finished(part.digest.clone()));
    Ok(())
}

/// Unpacks and so verifies what comes, and verifies all that nothing was unpacked from: a layer that is unpacked already,
/// one of the same diff ID as another, or all of them.
fn finish(store: &Store, image: &Image, parts: &Parts<'_>, settings: &Settings) -> Result<usize> {
    let count = if settings.unpack { unpack_from(store, parts, image, &settings.options)? } else { 0 };
    parts.map.values().try_for_each(Part::verify)?;
    Ok(count)
}

/// Syncs, and gives the blobs and then the image their names. Returns whether the image has replaced another.
fn commit(store: &Store, found: &Found, parts: Parts<'_>) -> Result<bool> {
    let mut stage = Stage::new(store);
    for (digest, part) in parts.map {
        stage.insert(&digest, part.into_file());
    }
    for document in [&found.config, &found.manifest] {
        let blob = stage.add(&document[..])?;
        stage.take(&blob.digest, blob.size)?;
    }
    stage.commit(std::slice::from_ref(&found.entry))
}
