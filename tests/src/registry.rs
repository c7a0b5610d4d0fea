//! A registry of the tests' own, that keeps to the specification or does what a test says it does wrong.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use coracle_fixtures::image::Image;
use coracle_fixtures::layer::digest;
use serde_json::Value;

/// What was asked.
#[derive(Clone, Debug)]
pub struct Request {
    /// `GET`, `HEAD`, `CONNECT`.
    pub method: String,
    /// The path with its query.
    pub path: String,
    /// Names, in lower case, and values.
    pub headers: Vec<(String, String)>,
    /// What was sent along.
    pub body: Vec<u8>,
}

impl Request {
    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// The first byte that a `Range` asks for.
    pub fn offset(&self) -> Option<usize> {
        self.header("range")?.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
    }
}

/// What is answered, and how.
#[derive(Clone, Debug, Default)]
pub struct Reply {
    /// The status.
    pub status: u16,
    /// All headers but the length.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
    /// The length that is told, where it isn't the body's.
    pub length: Option<usize>,
    /// The connection is closed after so many bytes of the body.
    pub cut: Option<usize>,
    /// Nothing more is sent after so many bytes of the body, until the registry ends.
    pub stall: Option<usize>,
    /// A header without end comes first, a byte after each of these times.
    pub trickle: Option<Duration>,
}

impl Reply {
    /// An answer without a body.
    pub fn status(status: u16) -> Self {
        Self { status, ..Self::default() }
    }

    /// An answer with a body.
    pub fn of(body: impl Into<Vec<u8>>) -> Self {
        Self { status: 200, body: body.into(), ..Self::default() }
    }

    /// The same with a header.
    #[must_use]
    pub fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }
}

/// What a registry has: blobs and manifests by digest, manifests by tag.
#[derive(Clone, Debug, Default)]
pub struct Content {
    blobs: BTreeMap<String, Vec<u8>>,
    manifests: BTreeMap<String, (String, Vec<u8>)>,
}

impl Content {
    /// All that is part of an image, its manifest under the tag `latest`.
    pub fn of(image: &Image) -> Self {
        let mut content = Self::default();
        content.add(image, "latest");
        content
    }

    /// Adds an image under a tag.
    pub fn add(&mut self, image: &Image, tag: &str) {
        let manifest = image.manifest();
        for blob in image.layers.iter().map(|layer| layer.blob.clone()).chain([image.document()]) {
            self.blobs.insert(digest(&blob), blob);
        }
        let media_type = manifest["mediaType"].as_str().expect("a manifest has a type").to_owned();
        self.add_manifest(tag, &media_type, &manifest);
    }

    /// Adds a manifest or index under a tag and its digest.
    pub fn add_manifest(&mut self, tag: &str, media_type: &str, manifest: &Value) {
        let bytes = manifest.to_string().into_bytes();
        for name in [tag.to_owned(), digest(&bytes)] {
            self.manifests.insert(name, (media_type.to_owned(), bytes.clone()));
        }
    }

    /// The answer of a registry that keeps to the specification.
    pub fn answer(&self, request: &Request) -> Reply {
        let path = request.path.split('?').next().unwrap_or_default();
        if let Some((_, name)) = path.rsplit_once("/manifests/") {
            let Some((media_type, bytes)) = self.manifests.get(name) else {
                return not_found("manifest unknown");
            };
            let reply = Reply::of(bytes.clone()).header("Content-Type", media_type);
            return reply.header("Docker-Content-Digest", digest(bytes));
        }
        let blob = path.rsplit_once("/blobs/").and_then(|(_, name)| self.blobs.get(name));
        let Some(blob) = blob else { return not_found("blob unknown") };
        match request.offset() {
            Some(from) if from < blob.len() => {
                let range = format!("bytes {from}-{}/{}", blob.len() - 1, blob.len());
                Reply { status: 206, ..Reply::of(&blob[from..]) }.header("Content-Range", range)
            }
            Some(_) => Reply::status(416),
            None => Reply::of(blob.clone()),
        }
    }
}

fn not_found(message: &str) -> Reply {
    let body = serde_json::json!({"errors": [{"code": "UNKNOWN", "message": message}]}).to_string();
    Reply { status: 404, ..Reply::of(body) }
}

type Handler = dyn Fn(&Request) -> Reply + Send + Sync;

/// A server on the loopback, until it is dropped.
pub struct Registry {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<Request>>>,
    ended: Arc<AtomicBool>,
}

impl Registry {
    /// A registry that keeps to the specification.
    pub fn serving(content: Content) -> Self {
        Self::start(move |request| content.answer(request))
    }

    /// A server that answers each request as `handler` says.
    ///
    /// # Panics
    /// When the loopback can't be used.
    pub fn start(handler: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("listen on the loopback");
        let address = listener.local_addr().expect("the listener's address");
        let (asked, ended): (Arc<Mutex<Vec<Request>>>, Arc<AtomicBool>) = Default::default();
        let handler: Arc<Handler> = Arc::new(handler);
        let (log, end) = (asked.clone(), ended.clone());
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if end.load(Ordering::Relaxed) {
                    return;
                }
                let (handler, log, end) = (handler.clone(), log.clone(), end.clone());
                // A client that goes away in the middle is what some tests are about.
                thread::spawn(move || serve(&stream, &handler, &log, &end));
            }
        });
        Self { address, asked, ended }
    }

    /// Host and port.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// An image of this registry.
    pub fn image(&self, name: &str) -> String {
        format!("{}/{name}", self.address)
    }

    /// All that was asked until now.
    pub fn asked(&self) -> Vec<Request> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How often a blob or manifest was asked for with GET.
    pub fn count(&self, part: &str) -> usize {
        self.asked().iter().filter(|request| request.method == "GET" && request.path.contains(part)).count()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        // The listener waits for somebody.
        let _ = TcpStream::connect(self.address);
    }
}

/// Answers one connection's requests; none at the client's end.
fn serve(
    stream: &TcpStream,
    handler: &Arc<Handler>,
    log: &Mutex<Vec<Request>>,
    end: &AtomicBool,
) -> Option<()> {
    let mut reader = BufReader::new(stream);
    loop {
        let request = read_request(&mut reader)?;
        log.lock().unwrap_or_else(PoisonError::into_inner).push(request.clone());
        let reply = handler(&request);
        write_reply(stream, &request, &reply, end)?;
    }
}

fn read_request(reader: &mut BufReader<&TcpStream>) -> Option<Request> {
    let mut line = Vec::new();
    reader.read_until(b'\n', &mut line).ok()?;
    let line = String::from_utf8_lossy(&line);
    if !line.is_empty() && !line.trim_end().ends_with(" HTTP/1.1") {
        // What servers say to who begins with TLS.
        let mut stream = *reader.get_ref();
        stream.write_all(b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTPS request\n").ok()?;
        return None;
    }
    let mut words = line.split_whitespace();
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        headers.push((name.to_ascii_lowercase(), value.to_owned()));
    }
    let mut request = Request { method, path, headers, body: Vec::new() };
    let length = request.header("content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
    request.body = vec![0; length];
    reader.read_exact(&mut request.body).ok()?;
    Some(request)
}

fn write_reply(mut stream: &TcpStream, request: &Request, reply: &Reply, end: &AtomicBool) -> Option<()> {
    if let Some(pause) = reply.trickle {
        stream.write_all(b"HTTP/1.1 200 Reason\r\nX-More: ").ok()?;
        while !end.load(Ordering::Relaxed) {
            stream.write_all(b"x").ok()?;
            thread::sleep(pause);
        }
        return None;
    }
    let length = reply.length.unwrap_or(reply.body.len());
    let mut head = format!("HTTP/1.1 {} Reason\r\nContent-Length: {length}\r\n", reply.status);
    for (name, value) in &reply.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    stream.write_all(format!("{head}\r\n").as_bytes()).ok()?;
    if request.method == "HEAD" {
        return Some(());
    }
    let most = reply.cut.or(reply.stall).unwrap_or(usize::MAX).min(reply.body.len());
    stream.write_all(&reply.body[..most]).ok()?;
    while reply.stall.is_some() && !end.load(Ordering::Relaxed) {
        thread::sleep(Duration::from_millis(10));
    }
    if reply.cut.is_some() || reply.stall.is_some() {
        stream.shutdown(Shutdown::Both).ok()?;
        return None;
    }
    Some(())
}
