//! How much a layer may cost.

use crate::error::{Error, Kind};

/// How much one layer may cost. Each limit is named by the error of a layer that passes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Entries of the archive.
    pub entries: u64,
    /// Bytes of the uncompressed archive, and of its files with their holes.
    pub bytes: u64,
    /// Uncompressed bytes for each compressed one, once [`Limits::RATIO_FROM`] bytes have come out.
    pub ratio: u64,
    /// Bytes of headers for one entry: names, attributes, maps of sparse files.
    pub header: u64,
    /// Bytes of the names of all entries without the links in them, of where links lead, and of the attributes of
    /// directories: they are kept in memory.
    pub names: u64,
}

impl Limits {
    /// Below so many uncompressed bytes any ratio will do: small files of zeros are harmless.
    pub const RATIO_FROM: u64 = 1 << 30;

    pub(crate) fn error(what: &str, limit: u64, unit: &str) -> Error {
        Error::new(Kind::Limit, format!("{what} is over the limit of {limit} {unit}"))
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self { entries: 4_000_000, bytes: 256 << 30, ratio: 500, header: 1 << 20, names: 256 << 20 }
    }
}
