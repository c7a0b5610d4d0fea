//! The entries of a tar archive (ustar, PAX, GNU).
//!
//! The tar crate names and types the fields of a header block; the framing is done here, for three reasons.
//! Its raw iteration takes an entry's size from the header alone, where PAX may say another; its cooked one
//! reads headers of any length into memory and shows no map of a sparse file; and what two parsers could read
//! differently (CVE-2025-62518, CVE-2026-33055) has to be refused rather than decided.

use coracle_sys::archive::Time;
use tar::{EntryType, GnuExtSparseHeader, GnuSparseHeader, Header};

use super::header::{kind, metadata, pick};
use super::limits::Limits;
use super::number;
use super::pax::Pax;
use super::stream::Stream;
use crate::error::{Context, Error, Kind, Result};

const BLOCK: usize = 512;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Type {
    /// A regular file.
    File,
    /// Another name of a file.
    HardLink,
    /// A symbolic link.
    Symlink,
    /// A directory.
    Directory,
    /// A device node or FIFO, as mknod(2) has it: `S_IFCHR`, `S_IFBLK` or `S_IFIFO`, and the device.
    Node(u32, u64),
}

/// Where the bytes of a sparse file belong: offset and length of each piece.
pub(crate) type Map = Vec<(u64, u64)>;

/// One entry, its headers put together. Its bytes are read from [`Entries::data`].
#[derive(Debug)]
pub(crate) struct Entry {
    pub path: Vec<u8>,
    pub link: Vec<u8>,
    pub kind: Type,
    pub metadata: Metadata,
    /// The file's size with its holes.
    pub size: u64,
    /// The map of a sparse file; none where it has no holes.
    pub map: Option<Map>,
}

/// Owner, permissions, times and attributes.
#[derive(Debug, Clone, Default)]
pub(crate) struct Metadata {
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub accessed: Time,
    pub modified: Time,
    /// Names and values of the extended attributes that belong to a file of an image.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Reads the entries of an archive one after the other.
pub(crate) struct Entries<'a> {
    stream: &'a mut Stream,
    limits: &'a Limits,
    /// Bytes of the entry at hand that nobody has read, and the padding after them.
    left: u64,
    padding: u64,
    /// Header bytes of the entry at hand.
    headers: u64,
    count: u64,
    bytes: u64,
}

/// Headers that describe the entry behind them.
#[derive(Default)]
struct Extensions {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    pax: Option<Pax>,
}

impl<'a> Entries<'a> {
    pub(crate) fn new(stream: &'a mut Stream, limits: &'a Limits) -> Self {
        Self { stream, limits, left: 0, padding: 0, headers: 0, count: 0, bytes: 0 }
    }

    /// The next entry; none at the end of the archive.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>> {
        self.count += 1;
        if self.count > self.limits.entries {
            return Err(Limits::error("its number of entries", self.limits.entries, ""));
        }
        self.headers = 0;
        let mut extensions = Extensions::default();
        loop {
            let Some(header) = self.header()? else {
                return match extensions {
                    Extensions { path: None, link: None, pax: None } => Ok(None),
                    _ => Err(malformed("its last header describes an entry that is missing")),
                };
            };
            let size = number::unsigned(&header.as_old().size, "size")?;
            match header.entry_type() {
                EntryType::GNULongName => self.extend(&mut extensions.path, size, "long name")?,
                EntryType::GNULongLink => self.extend(&mut extensions.link, size, "long link")?,
                EntryType::XHeader => {
                    let mut bytes = None;
                    self.extend(&mut bytes, size, "PAX header")?;
                    if extensions.pax.is_some() {
                        return Err(malformed("two PAX headers describe one entry"));
                    }
                    extensions.pax = Some(Pax::parse(&bytes.unwrap_or_default())?);
                }
                EntryType::XGlobalHeader => self.global(size)?,
                _ => return self.entry(&header, size, extensions).map(Some),
            }
        }
    }

    /// The bytes of all files until now.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes of the entry at hand, none when all have been read.
    pub(crate) fn data(&mut self) -> Result<&[u8]> {
        if self.left == 0 {
            return Ok(&[]);
        }
        let most = usize::try_from(self.left).unwrap_or(usize::MAX);
        let data = self.stream.data()?;
        if data.is_empty() {
            return Err(malformed("its archive ends in the middle of a file"));
        }
        Ok(&data[..data.len().min(most)])
    }

    /// Passes `n` bytes of [`Entries::data`].
    pub(crate) fn consume(&mut self, n: usize) {
        self.stream.consume(n);
        self.left -= n as u64;
    }

    /// Passes what nobody has read. The padding may be missing at the end, as `umoci insert` leaves it out.
    fn pass(&mut self) -> Result<()> {
        while self.left > 0 {
            let n = self.data()?.len();
            self.consume(n);
        }
        let mut padding = [0; BLOCK];
        let length = usize::try_from(std::mem::take(&mut self.padding)).unwrap_or(0);
        self.stream.read(&mut padding[..length]).map(drop)
    }

    fn expect(&mut self, size: u64) {
        self.left = size;
        self.padding = (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64;
    }

    /// The next header block; none at the end, which is a block of zeros and another, or where nothing follows.
    fn header(&mut self) -> Result<Option<Header>> {
        self.pass()?;
        let mut header = Header::new_old();
        if !self.block(header.as_mut_bytes())? {
            return Ok(None);
        }
        if is_zero(header.as_bytes()) {
            if self.block(header.as_mut_bytes())? && !is_zero(header.as_bytes()) {
                return Err(malformed("a lone block of zeros is in the middle of its archive"));
            }
            return Ok(None);
        }
        let sum = |from: &[u8]| from.iter().map(|b| i64::from(*b)).sum::<i64>();
        let bytes = header.as_bytes();
        // The checksum's own field counts as spaces.
        let expected = sum(&bytes[..148]) + 8 * i64::from(b' ') + sum(&bytes[156..]);
        if number::header(&header.as_old().cksum, "checksum")? != expected {
            return Err(malformed("a header of its archive has a wrong checksum"));
        }
        Ok(Some(header))
    }

    /// Reads a block of headers; false at the end of the stream.
    fn block(&mut self, block: &mut [u8; BLOCK]) -> Result<bool> {
        self.count_header(BLOCK as u64)?;
        match self.stream.read(block)? {
            0 => Ok(false),
            BLOCK => Ok(true),
            _ => Err(malformed("its archive ends in the middle of a header")),
        }
    }

    fn count_header(&mut self, bytes: u64) -> Result<()> {
        self.headers = self.headers.saturating_add(bytes);
        if self.headers > self.limits.header {
            return Err(Limits::error("the header of an entry", self.limits.header, "bytes"));
        }
        Ok(())
    }

    /// Reads the bytes of a header that describes the entry behind it.
    fn extend(&mut self, into: &mut Option<Vec<u8>>, size: u64, what: &str) -> Result<()> {
        if into.is_some() {
            return Err(malformed(&format!("two headers give one entry a {what}")));
        }
        self.count_header(size)?;
        self.expect(size);
        let mut bytes = vec![0; size as usize];
        if self.stream.read(&mut bytes)? < bytes.len() {
            return Err(malformed("its archive ends in the middle of a header"));
        }
        self.left = 0;
        if what != "PAX header" {
            let length = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
            bytes.truncate(length);
        }
        *into = Some(bytes);
        Ok(())
    }

    /// A header for all entries that follow: a comment is passed, anything else would be read differently by
    /// different programs.
    fn global(&mut self, size: u64) -> Result<()> {
        let mut bytes = None;
        self.extend(&mut bytes, size, "PAX header")?;
        let pax = Pax::parse(&bytes.unwrap_or_default())?;
        let is_empty = pax.path.is_none()
            && pax.link.is_none()
            && pax.size.is_none()
            && pax.uid.or(pax.gid).is_none()
            && pax.modified.is_none()
            && pax.xattrs.is_empty()
            && pax.sparse.map.is_empty();
        let why = "a global PAX header says more than a comment, which this version doesn't read";
        if is_empty { Ok(()) } else { Err(Error::new(Kind::Unsupported, why)) }
    }

    fn entry(&mut self, header: &Header, size: u64, extensions: Extensions) -> Result<Entry> {
        let mut pax = extensions.pax.unwrap_or_default();
        let sparse_name = pax.sparse.name.take();
        let path = pick(extensions.path, sparse_name.or(pax.path.take()), header.path_bytes(), "names")?;
        let in_header = header.link_name_bytes().unwrap_or_default();
        let link = pick(extensions.link, pax.link.take(), in_header, "link targets")?;
        let naming = || format!("entry {:?}", String::from_utf8_lossy(&path));
        let size = pax.size.unwrap_or(size);
        let kind = kind(header, &path, size).context(naming)?;
        let metadata = metadata(header, &mut pax).context(naming)?;
        self.expect(size);
        let (real_size, map) = self.map(header, &pax, size).context(naming)?;
        self.bytes = self.bytes.saturating_add(real_size.max(size));
        if self.bytes > self.limits.bytes {
            return Err(Limits::error("the size of its files", self.limits.bytes, "bytes")).context(naming);
        }
        Ok(Entry { path, link, kind, metadata, size: real_size, map })
    }

    /// A file's size with holes, and its map if it has any.
    fn map(&mut self, header: &Header, pax: &Pax, size: u64) -> Result<(u64, Option<Map>)> {
        let sparse = &pax.sparse;
        let (real_size, pieces) = if header.entry_type().is_gnu_sparse() {
            self.old_gnu_map(header)?
        } else if sparse.major == Some(1) {
            (sparse.real_size, self.map_in_data()?)
        } else if sparse.real_size.is_some() || !sparse.map.is_empty() {
            (sparse.real_size, sparse.map.clone())
        } else {
            return Ok((size, None));
        };
        let real_size = real_size.ok_or_else(|| malformed("a sparse file has no size"))?;
        let pieces: Map = pieces.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect();
        let (mut end, mut total) = (0_u64, 0_u64);
        for (offset, length) in &pieces {
            let next = offset.checked_add(*length).filter(|_| *offset >= end);
            end = next.ok_or_else(|| malformed("a sparse map is out of order"))?;
            total += length;
        }
        if end > real_size || total != self.left || sparse.blocks.is_some_and(|n| n != pieces.len() as u64) {
            return Err(malformed("a sparse map doesn't fit its file"));
        }
        Ok((real_size, Some(pieces)))
    }

    /// The map of GNU tar's old format: four pieces in the header, more in blocks behind it.
    fn old_gnu_map(&mut self, header: &Header) -> Result<(Option<u64>, Vec<u64>)> {
        let gnu = header.as_gnu().ok_or_else(|| malformed("a sparse file has no GNU header"))?;
        let mut map = Vec::new();
        push_pieces(&mut map, &gnu.sparse)?;
        let mut more = gnu.is_extended();
        while more {
            let mut block = GnuExtSparseHeader::new();
            if !self.block(block.as_mut_bytes())? {
                return Err(malformed("its archive ends in the middle of a header"));
            }
            push_pieces(&mut map, block.sparse())?;
            more = block.is_extended();
        }
        Ok((Some(number::unsigned(&gnu.realsize, "size")?), map))
    }

    /// The map of GNU tar's format 1.0: decimal numbers, a line each, in front of the file's bytes, padded to
    /// whole blocks.
    fn map_in_data(&mut self) -> Result<Vec<u64>> {
        let (mut numbers, mut digits, mut wanted) = (Vec::new(), Vec::new(), 1_u64);
        while (numbers.len() as u64) < wanted {
            let mut block = [0; BLOCK];
            self.count_header(BLOCK as u64)?;
            if self.left < BLOCK as u64 || self.stream.read(&mut block)? < BLOCK {
                return Err(malformed("a sparse file ends in the middle of its map"));
            }
            self.left -= BLOCK as u64;
            for byte in block {
                if numbers.len() as u64 == wanted {
                    break;
                }
                if byte != b'\n' {
                    digits.push(byte);
                    continue;
                }
                numbers.push(number::decimal(&digits, "sparse map")?);
                digits.clear();
                if numbers.len() == 1 {
                    wanted = numbers[0].saturating_mul(2).saturating_add(1);
                }
            }
        }
        numbers.remove(0);
        Ok(numbers)
    }
}

fn push_pieces(map: &mut Vec<u64>, pieces: &[GnuSparseHeader]) -> Result<()> {
    for piece in pieces.iter().filter(|p| !p.is_empty()) {
        map.push(number::unsigned(&piece.offset, "sparse map")?);
        map.push(number::unsigned(&piece.numbytes, "sparse map")?);
    }
    Ok(())
}

/// An archive that can't be understood, because of `why`.
pub(super) fn malformed(why: &str) -> Error {
    Error::new(Kind::Malformed, why)
}

fn is_zero(block: &[u8; BLOCK]) -> bool {
    block.iter().all(|b| *b == 0)
}
