//! PAX extended headers (pax(1), "pax Extended Header").
//!
//! Parsed here and not by the tar crate, which ends a record at the first newline and not where its length
//! says: attributes hold any bytes.

use coracle_sys::archive::Time;

use super::number;
use crate::error::{Error, Kind, Result};

/// What a PAX header says about the entry behind it.
#[derive(Debug, Default)]
pub(crate) struct Pax {
    pub path: Option<Vec<u8>>,
    pub link: Option<Vec<u8>>,
    pub size: Option<u64>,
    pub uid: Option<u64>,
    pub gid: Option<u64>,
    pub modified: Option<Time>,
    pub accessed: Option<Time>,
    /// Names and values of extended attributes.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub sparse: Sparse,
}

/// What a PAX header says about a sparse file, in one of GNU tar's three formats.
#[derive(Debug, Default)]
pub(crate) struct Sparse {
    pub major: Option<u64>,
    pub minor: Option<u64>,
    pub name: Option<Vec<u8>>,
    pub real_size: Option<u64>,
    pub blocks: Option<u64>,
    /// Offset, length, offset, length, …
    pub map: Vec<u64>,
}

impl Pax {
    /// Parses the records of `bytes`.
    ///
    /// # Errors
    /// Where any record is malformed: nothing in it is guessed.
    pub(crate) fn parse(mut bytes: &[u8]) -> Result<Self> {
        let mut pax = Self::default();
        let mut seen = std::collections::BTreeSet::new();
        while !bytes.is_empty() {
            let (key, value, rest) = record(bytes).ok_or_else(|| malformed("a record"))?;
            bytes = rest;
            // Format 0.0 of sparse files says two keys again and again; any other could be read in two ways.
            if !key.starts_with(b"GNU.sparse.") && !seen.insert(key) {
                let why = format!("its PAX header has {:?} twice", String::from_utf8_lossy(key));
                return Err(Error::new(Kind::Malformed, why));
            }
            // An empty value takes a global one back, and global ones are refused.
            if !value.is_empty() || key.starts_with(b"SCHILY.xattr.") {
                pax.take(key, value)?;
            }
        }
        if !pax.sparse.map.len().is_multiple_of(2) {
            return Err(malformed("a sparse map"));
        }
        Ok(pax)
    }

    fn take(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
            self.xattrs.push((name.to_vec(), value.to_vec()));
        } else if let Some(name) = key.strip_prefix(b"LIBARCHIVE.xattr.") {
            let decoded = url_decode(name).zip(base64(value)).ok_or_else(|| malformed("an attribute"))?;
            self.xattrs.push(decoded);
        } else if let Some(key) = key.strip_prefix(b"GNU.sparse.") {
            return self.sparse.take(key, value);
        } else {
            match key {
                b"path" => self.path = Some(value.to_vec()),
                b"linkpath" => self.link = Some(value.to_vec()),
                b"size" => self.size = Some(number::decimal(value, "size")?),
                b"uid" => self.uid = Some(number::decimal(value, "uid")?),
                b"gid" => self.gid = Some(number::decimal(value, "gid")?),
                b"mtime" => self.modified = Some(number::time(value, "mtime")?),
                b"atime" => self.accessed = Some(number::time(value, "atime")?),
                b"SCHILY.realsize" | b"SCHILY.acl.access" | b"SCHILY.acl.default" => {
                    let key = String::from_utf8_lossy(key);
                    let why = format!("its PAX header has {key}, which this version doesn't read");
                    return Err(Error::new(Kind::Unsupported, why));
                }
                // Names of owners, change times, comments, device numbers: nothing that a layer is made of.
                _ => {}
            }
        }
        Ok(())
    }
}

impl Sparse {
    fn take(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        let decimal = |value: &[u8]| number::decimal(value, "sparse map");
        match key {
            b"major" => self.major = Some(decimal(value)?),
            b"minor" => self.minor = Some(decimal(value)?),
            b"name" => self.name = Some(value.to_vec()),
            b"size" | b"realsize" => self.real_size = Some(decimal(value)?),
            b"numblocks" => self.blocks = Some(decimal(value)?),
            b"offset" if self.map.len().is_multiple_of(2) => self.map.push(decimal(value)?),
            b"numbytes" if !self.map.len().is_multiple_of(2) => self.map.push(decimal(value)?),
            b"map" if self.map.is_empty() => {
                self.map = value.split(|b| *b == b',').map(decimal).collect::<Result<_>>()?;
            }
            _ => return Err(malformed("a sparse map")),
        }
        Ok(())
    }
}

fn malformed(what: &str) -> Error {
    Error::new(Kind::Malformed, format!("its PAX header has {what} that is malformed"))
}

/// The first record, `LENGTH KEY=VALUE\n` with the length of all of it, and what follows.
fn record(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = bytes.iter().take(20).position(|b| *b == b' ')?;
    let length = number::decimal(&bytes[..space], "length").ok()?;
    let length = usize::try_from(length).ok().filter(|n| *n <= bytes.len() && *n > space + 1)?;
    let (record, rest) = bytes.split_at(length);
    let pair = record[space + 1..].strip_suffix(b"\n")?;
    let equals = pair.iter().position(|b| *b == b'=')?;
    (equals > 0).then_some((&pair[..equals], &pair[equals + 1..], rest))
}

/// Undoes the encoding of URLs in an attribute's name.
fn url_decode(text: &[u8]) -> Option<Vec<u8>> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, tail)) = rest.split_first() {
        rest = tail;
        if *first == b'%' {
            let digits = std::str::from_utf8(tail.get(..2)?).ok()?;
            decoded.push(u8::from_str_radix(digits, 16).ok()?);
            rest = &tail[2..];
        } else {
            decoded.push(*first);
        }
    }
    Some(decoded)
}

/// Decodes base 64, padded or not.
fn base64(text: &[u8]) -> Option<Vec<u8>> {
    let end = text.iter().position(|b| *b == b'=').unwrap_or(text.len());
    let (mut decoded, mut bits, mut count) = (Vec::with_capacity(text.len()), 0_u32, 0);
    for byte in &text[..end] {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            decoded.push((bits >> count) as u8);
        }
    }
    Some(decoded)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record_of(key: &str, value: &[u8]) -> Vec<u8> {
        let rest = key.len() + value.len() + 3;
        let length = (1..).find(|n| n.to_string().len() + rest == *n).unwrap();
        [format!("{length} {key}=").as_bytes(), value, b"\n"].concat()
    }

    #[test]
    fn values_may_hold_newlines_and_any_bytes() {
        let pax = Pax::parse(&record_of("SCHILY.xattr.user.a", b"1\n\xff=\0")).unwrap();
        assert_eq!(pax.xattrs, [(b"user.a".to_vec(), b"1\n\xff=\0".to_vec())]);
    }

    #[test]
    fn libarchives_attributes_are_decoded() {
        let pax = Pax::parse(&record_of("LIBARCHIVE.xattr.user.%20a", b"aGkA")).unwrap();
        assert_eq!(pax.xattrs, [(b"user. a".to_vec(), b"hi\0".to_vec())]);
    }

    #[test]
    fn a_malformed_record_is_never_skipped() {
        for bad in [&b"5 a=b\n"[..], b"7 a=b\n", b"6 a=bX", b"x a=b\n", b"6 =bb\n", b"a=b\n"] {
            assert!(Pax::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_size_that_is_said_twice_is_refused() {
        let twice = [record_of("size", b"1"), record_of("size", b"2")].concat();
        assert_eq!(Pax::parse(&twice).unwrap_err().to_string(), "its PAX header has \"size\" twice");
    }
}
