//! Fetching: a document, or the bytes of a blob that are missing, from the first endpoint that has them.

use std::collections::BTreeMap;
use std::io::Read;
use std::ops::Range;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ureq::http::header::{ACCEPT, CONTENT_RANGE, CONTENT_TYPE, RANGE};
use ureq::http::{HeaderMap, Method, Response};
use ureq::{Body, BodyReader};

use super::client::{Ask, Client, Failure, Retries};
use super::hosts::Capability;
use super::part::Part;
use super::refusal::refusal;
use super::report::Event;
use crate::digest::Digest;
use crate::error::{Context, Error, Kind, Result};
use crate::store::DOCUMENT_LIMIT;

/// A connection that brings less than this between two failures makes no progress.
const PROGRESS: u64 = 64 << 10;
/// A connection that brings less than this in a second is as good as a silent one.
const SLOWEST: u64 = 512;
const BUFFER: usize = 128 << 10;

/// The types of manifests and indexes that are understood, the header `Accept`.
const MANIFEST_TYPES: &str = "application/vnd.oci.image.manifest.v1+json, \
    application/vnd.oci.image.index.v1+json, \
    application/vnd.docker.distribution.manifest.v2+json, \
    application/vnd.docker.distribution.manifest.list.v2+json";

/// A manifest or index as it came, with its type and digest.
pub(crate) struct Document {
    pub bytes: Vec<u8>,
    pub media_type: String,
    pub digest: Digest,
}

/// Several addresses of one registry.
pub(crate) struct Fetcher<'a> {
    pub clients: &'a [Client<'a>],
    pub repository: &'a str,
    pub slots: Slots,
}

impl Fetcher<'_> {
    fn scope(&self) -> String {
        format!("repository:{}:pull", self.repository)
    }

    /// Asks one address after the other, until one has an answer. One where nobody could be reached is passed over from then
    /// on, but for the last.
    fn first<T>(
        &self,
        capability: Capability,
        ask: impl Fn(&Client<'_>, Retries<'_>) -> Result<T>,
    ) -> Result<T> {
        let is_able = |c: &&Client<'_>| c.endpoint().capabilities.contains(&capability);
        let (mut able, mut last) = (self.clients.iter().filter(is_able).peekable(), None);
        while let Some(client) = able.next() {
            let retries = match able.peek() {
                Some(_) if client.is_given_up() => continue,
                Some(_) => client.retries_before_others(),
                None => client.retries(),
            };
            match ask(client, retries) {
                Ok(found) => return Ok(found),
                // A disk that is full stays full.
                Err(error) if error.kind() == Kind::System => return Err(error),
                Err(error) => last = Some(error),
            }
        }
        let none =
            || Error::new(Kind::NotFound, format!("no address in hosts.toml may be asked to {capability:?}"));
        Err(last.unwrap_or_else(none))
    }

    /// The digest that a tag has, where the registry says it without sending the manifest.
    pub(crate) fn resolve(&self, tag: &str) -> Result<Option<Digest>> {
        self.first(Capability::Resolve, |client, retries| {
            let ask = Ask { method: Method::HEAD, ..self.manifest(tag) };
            let response = client.ask(&ask, retries)?;
            match response.status().as_u16() {
                200 => Ok(named_digest(response.headers())),
                // Not all registries know HEAD.
                405 => Ok(None),
                _ => Err(refusal(response, &client.endpoint().origin)),
            }
        })
    }

    fn manifest(&self, wanted: &str) -> Ask<'static> {
        let path = format!("/{}/manifests/{wanted}", self.repository);
        Ask { headers: vec![(ACCEPT.as_str(), MANIFEST_TYPES.to_owned())], ..Ask::get(path, self.scope()) }
    }

    /// The manifest or index that a tag or digest names.
    pub(crate) fn document(&self, wanted: &str) -> Result<Document> {
        let expected: Option<Digest> = wanted.parse().ok();
        let capability = if expected.is_some() { Capability::Pull } else { Capability::Resolve };
        self.first(capability, |client, retries| {
            let (headers, bytes) =
                whole(client, &self.manifest(wanted), retries).context(|| format!("manifest {wanted:?}"))?;
            let (named, media_type) = (named_digest(&headers), media_type(&headers));
            let digest = Digest::of(&bytes);
            for expected in expected.iter().chain(&named) {
                if *expected != digest {
                    let why = format!("manifest {wanted:?} should be {expected}, but what came is {digest}");
                    return Err(Error::new(Kind::Corrupt, why));
                }
            }
            Ok(Document { bytes, media_type, digest })
        })
    }

    /// A small blob: an image's config.
    pub(crate) fn small_blob(&self, digest: &Digest, size: u64) -> Result<Vec<u8>> {
        self.first(Capability::Pull, |client, retries| {
            let (_, bytes) =
                whole(client, &self.blob(digest), retries).context(|| format!("blob {digest}"))?;
            crate::store::read_document(&bytes[..], digest, size)
        })
    }

    fn blob(&self, digest: &Digest) -> Ask<'static> {
        Ask::get(format!("/{}/blobs/{digest}", self.repository), self.scope())
    }

    /// Fetches what is missing of a blob.
    pub(crate) fn fetch(&self, part: &Part) -> Result<()> {
        let result = self.first(Capability::Pull, |client, mut retries| {
            loop {
                let before = part.length();
                let Err(failure) = self.attempt(client, part) else { return Ok(()) };
                if part.length() - before >= PROGRESS {
                    retries.reset();
                }
                retries.wait(failure)?;
            }
        });
        result.context(|| format!("blob {}", part.digest))
    }

    /// Fetches all that comes without a failure, in pieces where the registry sends no more at a time.
    fn attempt(&self, client: &Client<'_>, part: &Part) -> std::result::Result<(), Failure> {
        let mut may_resume = true;
        while part.length() < part.size {
            client.watch().check()?;
            let _slot = self.slots.take(&client.endpoint().origin.authority);
            may_resume &= self.piece(client, part, if may_resume { part.length() } else { 0 })?;
        }
        Ok(())
    }

    /// Fetches as many bytes as one answer brings, asked for from the byte `from` on: one that is here, or the next. False
    /// where the registry knows nothing of that, or answers with others: then it has to be asked for all of them.
    fn piece(&self, client: &Client<'_>, part: &Part, from: u64) -> std::result::Result<bool, Failure> {
        let mut ask = Ask { is_long: true, ..self.blob(&part.digest) };
        if from > 0 {
            ask.headers.push((RANGE.as_str(), format!("bytes={from}-")));
        }
        let response = client.once(&ask)?;
        let length = response.body().content_length();
        let bytes = match response.status().as_u16() {
            200 if length.is_none_or(|length| length == part.size) => 0..part.size,
            200 => return Err(differs(part, "others").into()),
            206 => match content_range(response.headers(), length, part) {
                Some(bytes) => bytes,
                None if from > 0 => return Ok(false),
                None => return Err(differs(part, "others").into()),
            },
            416 if from > 0 => return Ok(false),
            _ => return Err(refusal(response, &client.endpoint().origin).into()),
        };
        let body = response.into_body().into_with_config().limit(u64::MAX).reader();
        receive(body, client, part, bytes).map(|()| true)
    }
}

/// Appends what comes to the part, but for what is here already: the bytes `range` of the blob.
fn receive(
    mut body: BodyReader<'_>,
    client: &Client<'_>,
    part: &Part,
    range: Range<u64>,
) -> std::result::Result<(), Failure> {
    let mut skip = part.length() - range.start;
    let origin = &client.endpoint().origin;
    let cut = |why: String| Failure::passing(Error::new(Kind::Network, format!("{origin}: {why}")), None);
    let (mut buffer, mut pace) = (vec![0; BUFFER], Pace::new());
    loop {
        client.watch().check()?;
        let n = match body.read(&mut buffer) {
            Ok(0) if part.length() == range.end => return Ok(()),
            Ok(0) => return Err(cut(format!("it ended after {} of {} bytes", part.length(), part.size))),
            Ok(n) => n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(e) => {
                return Err(cut(format!("it broke off after {} of {} bytes: {e}", part.length(), part.size)));
            }
        };
        let passed = skip.min(n as u64);
        skip -= passed;
        let bytes = &buffer[passed as usize..n];
        if part.length() + bytes.len() as u64 > range.end {
            return Err(differs(part, "more").into());
        }
        part.append(bytes)?;
        client.watch().event(&Event::Moved(part.digest.clone(), bytes.len() as u64));
        if pace.is_too_slow(n as u64) {
            return Err(cut("it sends a few bytes a second".to_owned()));
        }
    }
}

/// Tells a connection that trickles from one that flows.
struct Pace {
    since: Instant,
    bytes: u64,
}

impl Pace {
    const WINDOW: Duration = Duration::from_secs(20);

    fn new() -> Self {
        Self { since: Instant::now(), bytes: 0 }
    }

    fn is_too_slow(&mut self, bytes: u64) -> bool {
        self.bytes += bytes;
        if self.since.elapsed() < Self::WINDOW {
            return false;
        }
        let is_slow = self.bytes < SLOWEST * Self::WINDOW.as_secs();
        *self = Self::new();
        is_slow
    }
}

fn differs(part: &Part, found: &str) -> Error {
    let why = format!("the registry has {found} than the {} bytes that the manifest says", part.size);
    Error::new(Kind::Corrupt, why)
}

/// The bytes of a partial answer of so many: `bytes FIRST-LAST/TOTAL` (RFC 9110, 14.4). They may end before those that were
/// asked for do (15.3.7). None where they do not go on where the part ends.
fn content_range(headers: &HeaderMap, length: Option<u64>, part: &Part) -> Option<Range<u64>> {
    let value = headers.get(CONTENT_RANGE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let (first, last, total) = parse_range(value)?;
    let is_right = (first..=last).contains(&part.length())
        && last < part.size
        && total.is_none_or(|total| total == part.size)
        && length.is_none_or(|length| length == last - first + 1);
    is_right.then(|| first..last + 1)
}

/// First, last and total of a `Content-Range`; the total may be unknown.
pub(crate) fn parse_range(value: &str) -> Option<(u64, u64, Option<u64>)> {
    let (range, total) = value.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last) = (first.parse().ok()?, last.parse().ok()?);
    let total = if total == "*" { None } else { Some(total.parse().ok()?) };
    (first <= last && total.is_none_or(|total| last < total)).then_some((first, last, total))
}

/// The digest that a registry says a manifest has.
fn named_digest(headers: &HeaderMap) -> Option<Digest> {
    headers.get("docker-content-digest")?.to_str().ok()?.parse().ok()
}

/// The media type of an answer, without parameters.
fn media_type(headers: &HeaderMap) -> String {
    let value = headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim().to_owned()
}

/// Asks until a whole document has come, or a failure lasts; with the head of the answer.
pub(crate) fn whole(
    client: &Client<'_>,
    ask: &Ask<'_>,
    mut retries: Retries<'_>,
) -> Result<(HeaderMap, Vec<u8>)> {
    loop {
        match client.once(ask).and_then(|response| read(client, response)) {
            Ok(found) => return Ok(found),
            Err(failure) => retries.wait(failure)?,
        }
    }
}

/// Reads a document to its end.
fn read(client: &Client<'_>, response: Response<Body>) -> std::result::Result<(HeaderMap, Vec<u8>), Failure> {
    let origin = &client.endpoint().origin;
    if !response.status().is_success() {
        return Err(refusal(response, origin).into());
    }
    let (headers, mut bytes) = (response.headers().clone(), Vec::new());
    // One byte more than allowed tells that it is longer.
    let body = response.into_body().into_with_config().limit(u64::MAX).reader();
    let read = body.take(DOCUMENT_LIMIT + 1).read_to_end(&mut bytes);
    read.map_err(|e| {
        let why = format!("{origin}: it broke off after {} bytes: {e}", bytes.len());
        Failure::passing(Error::new(Kind::Network, why), None)
    })?;
    if bytes.len() as u64 > DOCUMENT_LIMIT {
        let why = format!("it is over the limit of {DOCUMENT_LIMIT} bytes");
        return Err(Error::new(Kind::Limit, why).into());
    }
    Ok((headers, bytes))
}

/// How many transfers may go on with one host.
pub(crate) struct Slots {
    most: usize,
    taken: Mutex<BTreeMap<String, usize>>,
    freed: Condvar,
}

/// One of them, until it is dropped.
pub(crate) struct Slot<'a> {
    slots: &'a Slots,
    host: String,
}

impl Slots {
    pub(crate) fn new(most: usize) -> Self {
        Self { most: most.max(1), taken: Mutex::default(), freed: Condvar::new() }
    }

    fn take(&self, host: &str) -> Slot<'_> {
        let taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let is_full = |taken: &mut BTreeMap<String, usize>| taken.get(host).is_some_and(|n| *n >= self.most);
        let mut taken = self.freed.wait_while(taken, is_full).unwrap_or_else(PoisonError::into_inner);
        *taken.entry(host.to_owned()).or_default() += 1;
        Slot { slots: self, host: host.to_owned() }
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        let mut taken = self.slots.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = taken.get_mut(&self.host) {
            *count -= 1;
        }
        // One alone may be waiting for another host.
        self.slots.freed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_read_and_nonsense_is_none() {
        assert_eq!(parse_range("bytes 5-9/10"), Some((5, 9, Some(10))));
        assert_eq!(parse_range("bytes 0-0/*"), Some((0, 0, None)));
        for bad in [
            "",
            "bytes",
            "bytes 5-9",
            "bytes 9-5/10",
            "bytes 5-10/10",
            "items 5-9/10",
            "bytes -5-9/10",
            "bytes */10",
        ] {
            assert_eq!(parse_range(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn who_waits_for_a_host_goes_on_though_another_waits_for_another_host() {
        let slots = Slots::new(1);
        let (busy, free) = (slots.take("busy"), slots.take("free"));
        std::thread::scope(|scope| {
            let (sender, receiver) = std::sync::mpsc::channel();
            for host in ["busy", "free"] {
                let (slots, sender) = (&slots, sender.clone());
                scope.spawn(move || {
                    let _slot = slots.take(host);
                    let _ = sender.send(host); // only the first is heard
                });
                // They wait one behind the other.
                std::thread::sleep(Duration::from_millis(50));
            }
            drop(free);
            let first = receiver.recv_timeout(Duration::from_secs(5));
            drop(busy);
            // So that on a failure all of them end.
            slots.freed.notify_all();
            assert_eq!(first, Ok("free"));
        });
    }
}
