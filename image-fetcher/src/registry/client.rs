//! Questions to a registry: redirects, authentication, and what is tried again.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ureq::http::header::{AUTHORIZATION, LOCATION, WWW_AUTHENTICATE};
use ureq::http::{Method, Request, Response, StatusCode, Uri};
use ureq::{Body, SendBody};

use super::Settings;
use super::challenge;
use super::hosts::{Endpoint, Origin};
use super::refusal::check;
use super::report::{Event, Watch};
use super::token::{self, Authorization};
use super::transport::Transport;
use crate::error::{Error, Kind, Result};
use crate::reference::Reference;

/// Redirects that one question may lead through.
const REDIRECT_LIMIT: u32 = 10;
/// How often one question may be refused: a token may have expired, or been used up by others.
const REFUSAL_LIMIT: u32 = 4;
/// How often something is tried that makes no progress.
const ATTEMPTS: u32 = 6;
/// The longest that a registry may ask us to stay away.
const LONGEST_WAIT: Duration = Duration::from_secs(120);

/// What is sent with a question.
#[derive(Clone, Copy)]
pub(crate) enum Content<'a> {
    None,
    Bytes(&'a [u8]),
    /// A file of so many bytes.
    File(&'a File, u64),
}

/// A question to an endpoint.
pub(crate) struct Ask<'a> {
    pub method: Method,
    /// What follows the endpoint's path, with the query, or a whole address that the registry gave.
    pub path: String,
    pub headers: Vec<(&'static str, String)>,
    pub content: Content<'a>,
    /// What a token must allow: `repository:NAME:pull`.
    pub scope: String,
    /// Whether a body is long, the question's or the answer's: then only silence ends it, not its length.
    pub is_long: bool,
}

impl<'a> Ask<'a> {
    /// A question for a document.
    pub(crate) fn get(path: String, scope: String) -> Self {
        Self { method: Method::GET, path, headers: Vec::new(), content: Content::None, scope, is_long: false }
    }
}

/// Why there is no answer.
pub(crate) enum Failure {
    /// It may work a moment later; the registry may say when.
    Passing(Box<Error>, Option<Duration>),
    /// Nobody could be reached; that may be so a moment later, too, when another address has answered long ago.
    Unreachable(Box<Error>),
    /// It won't.
    Final(Box<Error>),
}

impl<E: Into<Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Final(Box::new(error.into()))
    }
}

impl Failure {
    /// One that may be gone a moment later.
    pub(crate) fn passing(error: Error, after: Option<Duration>) -> Self {
        Self::Passing(Box::new(error), after)
    }
}

/// Talks to one endpoint about one image's repository.
pub(crate) struct Client<'a> {
    transport: Transport,
    settings: &'a Settings,
    reference: &'a Reference,
    watch: Watch<'a>,
    /// What is shown for each scope.
    authorizations: Mutex<BTreeMap<String, Authorization>>,
    /// Whether nobody could be reached, and others were asked instead.
    is_given_up: AtomicBool,
}

impl<'a> Client<'a> {
    pub(crate) fn new(
        endpoint: Endpoint,
        settings: &'a Settings,
        reference: &'a Reference,
        watch: Watch<'a>,
    ) -> Self {
        let transport = Transport::new(endpoint, settings.patience);
        let (authorizations, is_given_up) = (Mutex::default(), AtomicBool::new(false));
        Self { transport, settings, reference, watch, authorizations, is_given_up }
    }

    pub(crate) fn endpoint(&self) -> &Endpoint {
        self.transport.endpoint()
    }

    pub(crate) fn watch(&self) -> Watch<'a> {
        self.watch
    }

    pub(crate) fn is_given_up(&self) -> bool {
        self.is_given_up.load(Ordering::Relaxed)
    }

    /// Attempts at this address alone.
    pub(crate) fn retries(&self) -> Retries<'_> {
        Retries { watch: self.watch, given_up: None, failed: 0 }
    }

    /// Attempts that leave this address to others that follow, for good, where nobody can be reached.
    pub(crate) fn retries_before_others(&self) -> Retries<'_> {
        Retries { given_up: Some(&self.is_given_up), ..self.retries() }
    }

    /// The name that credentials for this endpoint are kept under.
    fn credentials_host(&self) -> &str {
        let endpoint = self.endpoint();
        if endpoint.mirror_of.is_none() { self.reference.host() } else { &endpoint.origin.authority }
    }

    /// Asks until there is an answer, a failure that lasts, or too many that pass.
    pub(crate) fn ask(&self, ask: &Ask<'_>, mut retries: Retries<'_>) -> Result<Response<Body>> {
        loop {
            match self.once(ask) {
                Ok(response) => return Ok(response),
                Err(failure) => retries.wait(failure)?,
            }
        }
    }

    /// Asks once, and again where that needs authentication.
    pub(crate) fn once(&self, ask: &Ask<'_>) -> std::result::Result<Response<Body>, Failure> {
        let mut refused = 0;
        loop {
            let known = self.lock().get(&ask.scope).cloned();
            let (response, origin) = self.follow(ask, known.as_ref())?;
            let is_ours = origin == self.endpoint().origin;
            if response.status() != StatusCode::UNAUTHORIZED || !is_ours || refused == REFUSAL_LIMIT {
                return check(response, &origin);
            }
            // Another transfer may have got a new token meanwhile.
            if known.is_some() && self.lock().get(&ask.scope) != known.as_ref() {
                continue;
            }
            refused += 1;
            let headers = response.headers().get_all(WWW_AUTHENTICATE);
            let Some(challenge) = challenge::parse(headers.iter().filter_map(|h| h.to_str().ok())) else {
                return check(response, &origin);
            };
            let authorization = self.authorize(&challenge, &ask.scope)?;
            // What was refused with a password is refused again.
            let Some(authorization) = authorization.filter(|new| known.as_ref() != Some(new)) else {
                return check(response, &origin);
            };
            self.lock().insert(ask.scope.clone(), authorization);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Authorization>> {
        self.authorizations.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn authorize(
        &self,
        challenge: &challenge::Challenge,
        scope: &str,
    ) -> std::result::Result<Option<Authorization>, Failure> {
        let files = &self.settings.auth_files;
        let credentials = super::credentials::find(files, self.credentials_host(), self.reference)?;
        let ask = token::Wanted { endpoint: self.endpoint(), scope, credentials };
        ask.answer(challenge, |request, limit| {
            let origin = Origin::of(request.uri())?;
            let limit = Some(limit.unwrap_or(self.settings.patience * 2));
            self.transport.send(request, limit)?.map_err(|e| failure(&e, &origin))
        })
    }

    /// Sends the question, and again to where the answer points. Returns who has answered.
    fn follow(
        &self,
        ask: &Ask<'_>,
        known: Option<&Authorization>,
    ) -> std::result::Result<(Response<Body>, Origin), Failure> {
        let mut uri = self.address(&ask.path)?;
        for _ in 0..=REDIRECT_LIMIT {
            let origin = Origin::of(&uri)?;
            if self.endpoint().origin.is_secure && !origin.is_secure {
                let why = format!("{} points to {origin}, which is not encrypted", self.endpoint().origin);
                return Err(Error::new(Kind::Denied, why).into());
            }
            let request = self.request(ask, &uri, &origin, known)?;
            let limit = (!ask.is_long).then_some(self.settings.patience * 4);
            let response = self.transport.send(request, limit)?.map_err(|e| failure(&e, &origin))?;
            let moved = match response.status().as_u16() {
                // What is sent is sent again, as it was.
                307 | 308 => true,
                301..=303 => matches!(ask.method, Method::GET | Method::HEAD),
                _ => false,
            };
            if !moved {
                return Ok((response, origin));
            }
            uri = location(&response, &uri)?;
        }
        let why = format!("{} redirects more than {REDIRECT_LIMIT} times", self.endpoint().origin);
        Err(Error::new(Kind::Limit, why).into())
    }

    fn request(
        &self,
        ask: &Ask<'_>,
        uri: &Uri,
        origin: &Origin,
        known: Option<&Authorization>,
    ) -> Result<Request<SendBody<'static>>> {
        let mut request = Request::builder().method(ask.method.clone()).uri(uri.clone());
        for (name, value) in &ask.headers {
            request = request.header(*name, value);
        }
        // Nobody but the endpoint itself gets what is meant for it.
        if *origin == self.endpoint().origin {
            for (name, value) in &self.endpoint().headers {
                request = request.header(name, value);
            }
            if let Some(known) = known {
                request = request.header(AUTHORIZATION, known.header().reveal());
            }
        }
        let body = match ask.content {
            Content::None => SendBody::none(),
            Content::Bytes(bytes) => {
                request = request.header("content-length", bytes.len());
                SendBody::from_owned_reader(std::io::Cursor::new(bytes.to_vec()))
            }
            Content::File(file, size) => {
                request = request.header("content-length", size);
                let file = file.try_clone().map_err(|e| coracle_sys::Error::of_io("dup()", &e))?;
                SendBody::from_owned_reader(FromStart { file, at: 0 })
            }
        };
        request.body(body).map_err(|_| {
            Error::new(Kind::Malformed, "a header for the registry has characters that none can have")
        })
    }

    /// The whole address of a question.
    pub(crate) fn address(&self, path: &str) -> Result<Uri> {
        let endpoint = self.endpoint();
        if path.contains("://") {
            return parse_uri(path);
        }
        let mut text = format!("{}{}{path}", endpoint.origin, endpoint.path);
        if let Some(host) = &endpoint.mirror_of {
            let separator = if path.contains('?') { '&' } else { '?' };
            text = format!("{text}{separator}ns={host}");
        }
        parse_uri(&text)
    }
}

/// Reads a file from its start, whoever else reads it.
struct FromStart {
    file: File,
    at: u64,
}

impl Read for FromStart {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let n = self.file.read_at(into, self.at)?;
        self.at += n as u64;
        Ok(n)
    }
}

fn parse_uri(text: &str) -> Result<Uri> {
    // The address may hold a signature: it is not shown.
    text.parse().map_err(|_| Error::new(Kind::Malformed, "the registry gave an address that is none"))
}

/// Where an answer points to.
pub(crate) fn location(response: &Response<Body>, from: &Uri) -> Result<Uri> {
    let missing = || Error::new(Kind::Malformed, "the registry redirects, but doesn't say where to");
    resolve(response.headers().get(LOCATION).and_then(|v| v.to_str().ok()).ok_or_else(missing)?, from)
}

/// The address that `target` means, seen from another.
pub(crate) fn resolve(target: &str, from: &Uri) -> Result<Uri> {
    if target.split(['/', '?']).next().is_some_and(|start| start.ends_with(':')) {
        return parse_uri(target);
    }
    let origin = Origin::of(from)?;
    if let Some(rest) = target.strip_prefix("//") {
        return parse_uri(&format!("{}://{rest}", if origin.is_secure { "https" } else { "http" }));
    }
    if target.starts_with('/') {
        return parse_uri(&format!("{origin}{target}"));
    }
    if target.starts_with('?') {
        return parse_uri(&format!("{origin}{}{target}", from.path()));
    }
    let directory = from.path().rsplit_once('/').map_or("", |(directory, _)| directory);
    parse_uri(&format!("{origin}{directory}/{target}"))
}

/// Why no answer came.
fn failure(error: &ureq::Error, origin: &Origin) -> Failure {
    let text = error.to_string();
    let network = |why: String| Error::new(Kind::Network, format!("{origin}: {why}"));
    match error {
        ureq::Error::Timeout(ureq::Timeout::Resolve | ureq::Timeout::Connect) => {
            Failure::Unreachable(Box::new(network("nobody answers there".to_owned())))
        }
        ureq::Error::Timeout(_) => Failure::passing(network("it says nothing any more".to_owned()), None),
        ureq::Error::HostNotFound => {
            Failure::Unreachable(Box::new(network("no such host is known".to_owned())))
        }
        ureq::Error::Io(e)
            if e.kind() == std::io::ErrorKind::InvalidData && text.contains("InvalidContentType") =>
        {
            let hint = format!(
                "it may speak plain HTTP: `--plain-http {}` or hosts.toml allow that",
                origin.authority
            );
            Failure::from(network("it doesn't speak TLS".to_owned()).hint(hint))
        }
        ureq::Error::Io(e) if e.kind() == std::io::ErrorKind::InvalidData && text.contains("certificate") => {
            let why = text.strip_prefix("io: ").unwrap_or(&text);
            let hint = "an authority of your own is named in hosts.toml (`ca`)";
            Failure::from(network(why.to_owned()).hint(hint))
        }
        ureq::Error::Io(_) | ureq::Error::ConnectionFailed => {
            let why = network(text.strip_prefix("io: ").unwrap_or(&text).to_owned());
            if is_unreachable(error) {
                Failure::Unreachable(Box::new(why))
            } else {
                Failure::passing(why, None)
            }
        }
        ureq::Error::BadUri(_) | ureq::Error::InvalidProxyUrl => {
            Failure::from(network("its address is none".to_owned()))
        }
        _ => Failure::from(network(text)),
    }
}

/// Whether no connection was made, as opposed to one that broke.
fn is_unreachable(error: &ureq::Error) -> bool {
    use std::io::ErrorKind;
    match error {
        ureq::Error::Io(e) => match e.kind() {
            ErrorKind::ConnectionRefused | ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => true,
            // The standard library has no kind for names that can't be resolved.
            _ => e.to_string().starts_with("failed to lookup address information"),
        },
        _ => matches!(error, ureq::Error::ConnectionFailed),
    }
}

/// How often something was tried, and how long to wait before the next time.
pub(crate) struct Retries<'a> {
    watch: Watch<'a>,
    /// Where to note that nobody can be reached, if others can be asked.
    given_up: Option<&'a AtomicBool>,
    failed: u32,
}

impl Retries<'_> {
    /// There was progress: the next failure is the first.
    pub(crate) fn reset(&mut self) {
        self.failed = 0;
    }

    /// Waits before the next attempt.
    ///
    /// # Errors
    /// The failure, where another attempt makes no sense.
    pub(crate) fn wait(&mut self, failure: Failure) -> Result<()> {
        let (error, after) = match failure {
            Failure::Final(error) => return Err(*error),
            Failure::Unreachable(error) => match self.given_up {
                Some(given_up) => {
                    given_up.store(true, Ordering::Relaxed);
                    return Err(*error);
                }
                None => (error, None),
            },
            Failure::Passing(error, after) => (error, after),
        };
        self.failed += 1;
        if self.failed >= ATTEMPTS {
            return Err((*error).hint(format!("it was tried {ATTEMPTS} times")));
        }
        if let Some(after) = after.filter(|after| *after > LONGEST_WAIT) {
            return Err((*error).hint(format!("try again in {} seconds, it says", after.as_secs())));
        }
        let wait = after.unwrap_or_else(|| jitter(Duration::from_millis(100 << self.failed.min(7))));
        self.watch.event(&Event::Retry { why: error.to_string(), wait });
        self.watch.sleep(wait)
    }
}

/// Between half and all of `wait`, so that many who were sent away do not come back at once.
fn jitter(wait: Duration) -> Duration {
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let random = f64::from((clock.subsec_nanos() ^ std::process::id()) % 1000) / 1000.0;
    wait.mul_f64(0.5 + random / 2.0)
}
