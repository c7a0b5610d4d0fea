//! Pushing: an image of the store into a registry, what it has already left out (distribution-spec, "Push").

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use ureq::Body;
use ureq::http::header::{CONTENT_TYPE, LOCATION};
use ureq::http::{Method, Response, Uri};

use super::client::{Ask, Client, Content};
use super::hosts::{Capability, Origin};
use super::refusal::refusal;
use super::report::{Event, Report, Stop, Watch};
use super::token::percent;
use super::{Settings, clients};
use crate::digest::Digest;
use crate::error::{Context, Error, Kind, Result};
use crate::image::Image;
use crate::reference::Reference;
use crate::store::Store;
use crate::thread;

/// Uploads an image: its layers, several at once, then its config, and its manifest last.
///
/// # Errors
/// [`Kind::Network`], [`Kind::Denied`], and [`Kind::NotFound`] where a blob is missing from the store.
pub fn push(
    store: &Store,
    image: &Image,
    target: &Reference,
    settings: &Settings,
    report: &dyn Report,
) -> Result<()> {
    let pushing = || format!("pushing {:?} to {target}", image.reference);
    let stop = Stop::default();
    let watch = Watch { report, stop: &stop };
    let _lock = store.lock_adding()?;
    let clients = clients(target, settings, watch).context(pushing)?;
    let client = clients.iter().find(|c| c.endpoint().capabilities.contains(&Capability::Push));
    let none = || Error::new(Kind::NotFound, "no address in hosts.toml may be pushed to");
    let client = client.ok_or_else(none).context(pushing)?;
    Push { store, client, target, watch }.run(image, settings).context(pushing)
}

struct Push<'a> {
    store: &'a Store,
    client: &'a Client<'a>,
    target: &'a Reference,
    watch: Watch<'a>,
}

impl Push<'_> {
    fn run(&self, image: &Image, settings: &Settings) -> Result<()> {
        let config = (Digest::try_from(image.manifest.config().digest())?, image.manifest.config().size());
        let mut blobs: Vec<(Digest, u64)> = image.layers.iter().map(|l| (l.digest.clone(), l.size)).collect();
        blobs.push(config);
        blobs.sort();
        blobs.dedup();
        self.blobs(&blobs, settings)?;
        let manifest = self.store.blob(&image.digest)?;
        let size = coracle_sys::file::stat(std::os::fd::AsFd::as_fd(&manifest))?.st_size.unsigned_abs();
        let media_type = self.store.entry(&image.digest.to_string())?.descriptor.media_type().to_string();
        let wanted = self.target.wanted();
        let ask = Ask {
            method: Method::PUT,
            headers: vec![(CONTENT_TYPE.as_str(), media_type)],
            content: Content::File(&manifest, size),
            ..self.ask(format!("/{}/manifests/{wanted}", self.target.repository()))
        };
        let response = self.client.ask(&ask, self.client.retries())?;
        self.expect(response, &[201]).context(|| format!("manifest {wanted:?}")).map(drop)
    }

    fn ask(&self, path: String) -> Ask<'static> {
        Ask::get(path, format!("repository:{}:pull,push", self.target.repository()))
    }

    fn expect(&self, response: Response<Body>, statuses: &[u16]) -> Result<Response<Body>> {
        let is_fine = statuses.contains(&response.status().as_u16());
        if is_fine { Ok(response) } else { Err(refusal(response, &self.client.endpoint().origin)) }
    }

    fn blobs(&self, blobs: &[(Digest, u64)], settings: &Settings) -> Result<()> {
        let (next, failed) = (AtomicUsize::new(0), Mutex::new(None));
        let work = || {
            while let Some((digest, size)) = blobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                let result = self.blob(digest, *size).context(|| format!("blob {digest}"));
                if let Err(error) = result {
                    failed.lock().unwrap_or_else(std::sync::PoisonError::into_inner).get_or_insert(error);
                    self.watch.stop.set();
                    return;
                }
            }
        };
        let count = settings.parallel.min(settings.per_host).clamp(1, blobs.len().max(1));
        std::thread::scope(|scope| thread::start_some(scope, count, work))?;
        failed.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner).map_or(Ok(()), Err)
    }

    /// Uploads a blob unless the registry has it.
    fn blob(&self, digest: &Digest, size: u64) -> Result<()> {
        self.watch.check()?;
        let repository = self.target.repository();
        let head = Ask { method: Method::HEAD, ..self.ask(format!("/{repository}/blobs/{digest}")) };
        let there = self.client.ask(&head, self.client.retries())?.status().is_success();
        let have = if there { size } else { 0 };
        self.watch.event(&Event::Started { digest: digest.clone(), size, have });
        if !there {
            self.upload(digest, size)?;
            self.watch.event(&Event::Moved(digest.clone(), size));
        }
        self.watch.event(&Event::Finished(digest.clone()));
        Ok(())
    }

    /// An upload is asked for, and the bytes sent to where the registry says, all at once. One that breaks off begins
    /// again with another question: what was left of the first is the registry's to clean up.
    fn upload(&self, digest: &Digest, size: u64) -> Result<()> {
        let repository = self.target.repository();
        let blob = self.store.blob(digest)?;
        let mut retries = self.client.retries();
        loop {
            let begin = Ask {
                method: Method::POST,
                content: Content::Bytes(b""),
                ..self.ask(format!("/{repository}/blobs/uploads/"))
            };
            let begun = self.client.ask(&begin, self.client.retries())?;
            let place = self.place(&self.expect(begun, &[202])?, digest)?;
            let put = Ask {
                method: Method::PUT,
                headers: vec![(CONTENT_TYPE.as_str(), "application/octet-stream".to_owned())],
                content: Content::File(&blob, size),
                is_long: true,
                ..self.ask(place)
            };
            match self.client.once(&put) {
                Ok(response) => return self.expect(response, &[201]).map(drop),
                Err(failure) => retries.wait(failure)?,
            }
        }
    }

    /// Where the bytes of an upload go.
    fn place(&self, response: &Response<Body>, digest: &Digest) -> Result<String> {
        let origin = &self.client.endpoint().origin;
        let base: Uri =
            format!("{origin}/").parse().map_err(|_| Error::new(Kind::Malformed, "no address"))?;
        if !response.headers().contains_key(LOCATION) {
            return Err(Error::new(Kind::Malformed, format!("{origin} doesn't say where to upload to")));
        }
        let place = super::client::location(response, &base)?;
        if origin.is_secure && !Origin::of(&place)?.is_secure {
            return Err(Error::new(Kind::Denied, format!("{origin} wants an upload that is not encrypted")));
        }
        let separator = if place.query().is_some() { '&' } else { '?' };
        Ok(format!("{place}{separator}digest={}", percent(&digest.to_string())))
    }
}
