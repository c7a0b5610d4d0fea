//! A layer's uncompressed bytes, decompressed and digested by a thread of their own.
//!
//! That thread reads the blob, digests it, decompresses it, digests what comes out, and hands it on in
//! chunks; meanwhile the other one writes files straight out of those chunks. The end of the stream
//! is reached only when size, digest and diff ID were the right ones.

use std::cell::Cell;
use std::io::{BufRead, BufReader, Read};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

use flate2::bufread::MultiGzDecoder;

use super::limits::Limits;
use crate::digest::{Hasher, Verified};
use crate::error::{Error, Kind, Result};
use crate::image::Layer;

const CHUNK: usize = 256 << 10;
/// Chunks on their way between the two threads, at most.
const CHUNKS: usize = 8;

/// The end that parses and writes.
pub(crate) struct Stream {
    chunks: Receiver<Result<Vec<u8>>>,
    empty: Sender<Vec<u8>>,
    chunk: Vec<u8>,
    at: usize,
    is_over: bool,
}

/// The end that reads and decompresses.
pub(crate) struct Source {
    chunks: SyncSender<Result<Vec<u8>>>,
    empty: Receiver<Vec<u8>>,
}

/// Both ends of a stream.
pub(crate) fn pair() -> (Source, Stream) {
    let ((chunks, filled), (emptied, empty)) = (sync_channel(CHUNKS), channel());
    let stream = Stream { chunks: filled, empty: emptied, chunk: Vec::new(), at: 0, is_over: false };
    (Source { chunks, empty }, stream)
}

impl Stream {
    /// A stream of these bytes, which nothing is compared with.
    #[cfg(any(test, feature = "fuzz"))]
    pub(crate) fn of(bytes: &[u8]) -> Self {
        let (_, mut stream) = pair();
        stream.chunk = bytes.to_vec();
        stream
    }

    /// The bytes at hand, at least one unless the stream has ended.
    pub(crate) fn data(&mut self) -> Result<&[u8]> {
        while self.at == self.chunk.len() && !self.is_over {
            // The other end may be gone already; then it needs no chunks.
            let _ = self.empty.send(std::mem::take(&mut self.chunk));
            self.at = 0;
            match self.chunks.recv() {
                Ok(chunk) => self.chunk = chunk?,
                Err(_) => self.is_over = true,
            }
        }
        Ok(&self.chunk[self.at..])
    }

    /// Passes `n` of the bytes at hand.
    pub(crate) fn consume(&mut self, n: usize) {
        self.at += n;
    }

    /// Fills `into`, and returns how many bytes there were, fewer only at the end.
    pub(crate) fn read(&mut self, into: &mut [u8]) -> Result<usize> {
        let mut filled = 0;
        while filled < into.len() {
            let data = self.data()?;
            if data.is_empty() {
                break;
            }
            let n = data.len().min(into.len() - filled);
            into[filled..filled + n].copy_from_slice(&data[..n]);
            self.consume(n);
            filled += n;
        }
        Ok(filled)
    }

    /// Passes all that is left, so that the other end can verify it.
    pub(crate) fn drain(&mut self) -> Result<()> {
        loop {
            let n = self.data()?.len();
            if n == 0 {
                return Ok(());
            }
            self.consume(n);
        }
    }
}

impl Source {
    /// Sends the layer's bytes from `blob`, to the end or to the first failure.
    pub(crate) fn run(self, blob: impl Read, layer: &Layer, limits: &Limits) {
        self.tell(self.layer(blob, layer, limits));
    }

    /// Sends the bytes of `archive`, decompressed, with nothing to compare them with; so many for each of its own at most.
    pub(crate) fn run_unverified(self, archive: impl Read, ratio: u64) {
        let taken = Cell::new(0);
        let archive = BufReader::with_capacity(CHUNK, Counted { from: archive, taken: &taken });
        let mut total = 0_u64;
        let sent = Decoder::new(archive).and_then(|mut decoder| {
            self.pump(&mut decoder, |chunk| {
                total += chunk.len() as u64;
                check_ratio(total, taken.get(), ratio)
            })
        });
        self.tell(sent.map(drop));
    }

    fn tell(&self, result: Result<()>) {
        if let Err(error) = result {
            // Where nobody listens any more, the other end has failed and tells why.
            let _ = self.chunks.send(Err(error));
        }
    }

    fn layer(&self, blob: impl Read, layer: &Layer, limits: &Limits) -> Result<()> {
        let verified = Verified::new(blob, layer.digest.clone(), layer.size);
        let mut decoder = Decoder::new(BufReader::with_capacity(CHUNK, verified))?;
        let (mut hasher, mut total) = (Hasher::default(), 0_u64);
        let pumped = self.pump(&mut decoder, |chunk| {
            hasher.update(chunk);
            total += chunk.len() as u64;
            check_size(total, layer, limits)
        });
        let pumped = match pumped {
            Ok(false) => return Ok(()),
            Ok(true) => check_diff_id(hasher, layer),
            Err(error) => Err(error),
        };
        match pumped {
            // A blob that is not the right one is why it can't be decompressed or has another diff ID.
            Err(error) if !matches!(error.kind(), Kind::Malformed | Kind::Corrupt) => Err(error),
            result => decoder.into_blob().finish().and(result),
        }
    }

    /// Decompresses and sends to the end; false where the other end is gone.
    fn pump<R: BufRead>(
        &self,
        decoder: &mut Decoder<R>,
        mut check: impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<bool> {
        loop {
            let mut chunk = self.empty.try_recv().unwrap_or_default();
            chunk.resize(CHUNK, 0);
            let n = fill(decoder, &mut chunk)?;
            if n == 0 {
                return Ok(true);
            }
            chunk.truncate(n);
            check(&chunk)?;
            if self.chunks.send(Ok(chunk)).is_err() {
                return Ok(false);
            }
        }
    }
}

fn check_size(total: u64, layer: &Layer, limits: &Limits) -> Result<()> {
    if total > limits.bytes {
        return Err(Limits::error("its uncompressed archive", limits.bytes, "bytes"));
    }
    check_ratio(total, layer.size, limits.ratio)
}

fn check_ratio(total: u64, compressed: u64, ratio: u64) -> Result<()> {
    if total > Limits::RATIO_FROM && total / ratio > compressed {
        return Err(Limits::error("its compression ratio", ratio, "to 1"));
    }
    Ok(())
}

/// Counts what is read.
struct Counted<'a, R> {
    from: R,
    taken: &'a Cell<u64>,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let n = self.from.read(into)?;
        self.taken.set(self.taken.get() + n as u64);
        Ok(n)
    }
}

fn check_diff_id(hasher: Hasher, layer: &Layer) -> Result<()> {
    let found = hasher.finish();
    if found == layer.diff_id {
        return Ok(());
    }
    let why = format!("its diff ID should be {}, but is {found}", layer.diff_id);
    Err(Error::new(Kind::Corrupt, why))
}

/// Fills `chunk` as far as the stream goes.
fn fill<R: BufRead>(decoder: &mut Decoder<R>, chunk: &mut [u8]) -> Result<usize> {
    let mut filled = 0;
    while filled < chunk.len() {
        match decoder.read(&mut chunk[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(decoder.error(&e)),
        }
    }
    Ok(filled)
}

enum Decoder<R: BufRead> {
    Plain(R),
    Gzip(Box<MultiGzDecoder<R>>),
    Zstd(zstd::Decoder<'static, R>),
}

fn read_error(error: &std::io::Error) -> Error {
    coracle_sys::Error::of_io("read()", error).into()
}

impl<R: BufRead> Decoder<R> {
    /// Sees from the first bytes how the blob is compressed.
    fn new(mut blob: R) -> Result<Self> {
        let start = blob.fill_buf().map_err(|e| read_error(&e))?;
        match Compression::of(start) {
            Compression::None => Ok(Self::Plain(blob)),
            Compression::Gzip => Ok(Self::Gzip(Box::new(MultiGzDecoder::new(blob)))),
            Compression::Zstd => {
                Ok(Self::Zstd(zstd::Decoder::with_buffer(blob).map_err(|e| read_error(&e))?))
            }
            Compression::Other(name) => Err(Compression::unknown(name)),
        }
    }

    fn error(&self, error: &std::io::Error) -> Error {
        let name = match self {
            // What the verifying reader below says is right as it is: the blob is longer than announced.
            _ if error.kind() == std::io::ErrorKind::Other && error.raw_os_error().is_none() => "compressed",
            Self::Plain(_) => return read_error(error),
            Self::Gzip(_) => "gzip",
            Self::Zstd(_) => "zstd",
        };
        if error.raw_os_error().is_some() {
            return read_error(error);
        }
        let why = match error.kind() {
            std::io::ErrorKind::UnexpectedEof => format!("its {name} stream is truncated"),
            _ => format!("its {name} stream is malformed: {error}"),
        };
        Error::new(Kind::Malformed, why)
    }

    fn into_inner(self) -> R {
        match self {
            Self::Plain(blob) => blob,
            Self::Gzip(decoder) => decoder.into_inner(),
            Self::Zstd(decoder) => decoder.finish(),
        }
    }
}

impl<R: Read> Decoder<BufReader<R>> {
    fn into_blob(self) -> R {
        self.into_inner().into_inner()
    }
}

impl<R: BufRead> Read for Decoder<R> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        match self {
            Self::Plain(blob) => blob.read(into),
            Self::Gzip(decoder) => decoder.read(into),
            Self::Zstd(decoder) => decoder.read(into),
        }
    }
}

/// How a layer is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
    /// Not at all.
    None,
    /// RFC 1952, any number of members.
    Gzip,
    /// RFC 8878, any number of frames.
    Zstd,
    /// In a way that has this name, and is not read.
    Other(&'static str),
}

impl Compression {
    /// How many bytes at the start of a blob tell.
    pub(crate) const START: usize = 10;

    /// The compression of a blob that begins with `start`.
    pub(crate) fn of(start: &[u8]) -> Self {
        match start {
            [0x1f, 0x8b, ..] => Self::Gzip,
            // A frame, or a skippable one as zstd:chunked has them.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Self::Other("xz"),
            // The number is the size of its blocks, and the digits of pi follow: an archive may begin with a file's name.
            [b'B', b'Z', b'h', b'1'..=b'9', 0x31, 0x41, 0x59, 0x26, 0x53, 0x59, ..] => Self::Other("bzip2"),
            _ => Self::None,
        }
    }

    /// Why what is compressed so is refused.
    pub(crate) fn unknown(name: &str) -> Error {
        let why = format!("it is compressed with {name}, which is not read");
        Error::new(Kind::Unsupported, why).hint("decompress it first")
    }
}
