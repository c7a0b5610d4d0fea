//! Digests: the names of blobs, and the check that bytes are what their name says.

use std::fmt;
use std::io::{self, Read};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::Digest as _;

use crate::error::{Error, Kind, Result};

/// A SHA-256 digest as image-spec writes it, `sha256:` and 64 lower-case hexadecimal digits, and nothing
/// else: it becomes the name of a file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(String);

impl Digest {
    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        let mut hasher = Hasher::default();
        hasher.update(bytes);
        hasher.finish()
    }

    /// The 64 hexadecimal digits: a file name.
    pub fn hex(&self) -> &str {
        &self.0[PREFIX.len()..]
    }
}

impl FromStr for Digest {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let hex = text.strip_prefix(PREFIX).ok_or_else(|| {
            let why = format!("{text:?} is no digest this version knows");
            Error::new(Kind::Unsupported, why).hint("it knows sha256:HEX")
        })?;
        let is_hex = hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if hex.len() != 64 || !is_hex {
            let why =
                format!("{text:?} is no digest: sha256: is followed by 64 lower-case hexadecimal digits");
            return Err(Error::new(Kind::Malformed, why));
        }
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for Digest {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl TryFrom<&oci_spec::image::Digest> for Digest {
    type Error = Error;

    fn try_from(digest: &oci_spec::image::Digest) -> Result<Self> {
        digest.as_ref().parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

const PREFIX: &str = "sha256:";

/// Digests bytes as they come.
#[derive(Default)]
pub struct Hasher(sha2::Sha256);

impl Hasher {
    /// Takes more bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The digest of all bytes taken.
    pub fn finish(self) -> Digest {
        use fmt::Write;
        let mut text = PREFIX.to_owned();
        for byte in self.0.finalize() {
            // Writing to a string can't fail.
            let _ = write!(text, "{byte:02x}");
        }
        Digest(text)
    }
}

/// A reader that counts and digests what passes, and refuses to pass more than `size` bytes. At the end,
/// [`Verified::finish`] says whether they were the right ones.
pub struct Verified<R> {
    inner: R,
    hasher: Hasher,
    digest: Digest,
    size: u64,
    passed: u64,
}

impl<R: Read> Verified<R> {
    /// Verifies that `inner` holds `size` bytes with the digest `digest`.
    pub fn new(inner: R, digest: Digest, size: u64) -> Self {
        Self { inner, hasher: Hasher::default(), digest, size, passed: 0 }
    }

    /// Reads what is left, and tells whether all bytes were the right ones.
    ///
    /// # Errors
    /// [`Kind::Corrupt`] where size or digest differ.
    pub fn finish(mut self) -> Result<()> {
        let mut rest = vec![0; 65536];
        loop {
            match self.read(&mut rest) {
                Ok(0) => break,
                Ok(_) => {}
                Err(e) => return Err(self.failed(&e)),
            }
        }
        if self.passed != self.size {
            return Err(self.wrong(&format!("{} bytes", self.size), &format!("{} bytes", self.passed)));
        }
        let found = std::mem::take(&mut self.hasher).finish();
        if found != self.digest {
            return Err(self.wrong("these bytes", &format!("those of {found}")));
        }
        Ok(())
    }

    fn failed(&self, error: &io::Error) -> Error {
        if self.passed > self.size {
            return self.wrong(&format!("{} bytes", self.size), "more");
        }
        coracle_sys::Error::of_io(format!("read({})", self.digest), error).into()
    }

    fn wrong(&self, expected: &str, found: &str) -> Error {
        Error::new(Kind::Corrupt, format!("blob {} should hold {expected}, but holds {found}", self.digest))
    }
}

impl<R: Read> Read for Verified<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let n = loop {
            match self.inner.read(into) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                other => break other?,
            }
        };
        self.passed += n as u64;
        if self.passed > self.size {
            return Err(io::Error::other(format!("blob {} is longer than {} bytes", self.digest, self.size)));
        }
        self.hasher.update(&into[..n]);
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn only_sha256_in_lower_case_and_full_length_is_a_digest() {
        assert!(EMPTY.parse::<Digest>().is_ok());
        for bad in [
            "sha256:../../x",
            "sha256:abc",
            &EMPTY.to_uppercase(),
            &EMPTY.replace('e', "E"),
            "md5:d41d8cd98f00b204e9800998ecf8427e",
            "sha512:e3b0",
            "sha256:",
            "",
            &format!("{EMPTY}0"),
        ] {
            assert!(bad.parse::<Digest>().is_err(), "{bad} was accepted");
        }
    }

    #[test]
    fn bytes_are_digested_as_sha256sum_does() {
        assert_eq!(Digest::of(b"").to_string(), EMPTY);
    }

    #[test]
    fn the_right_bytes_pass() {
        Verified::new(&b"abc"[..], Digest::of(b"abc"), 3).finish().unwrap();
    }

    #[test]
    fn wrong_bytes_are_refused_at_the_end() {
        let error = Verified::new(&b"abd"[..], Digest::of(b"abc"), 3).finish().unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt);
        assert!(error.to_string().contains("but holds those of sha256:"), "{error}");
    }

    #[test]
    fn fewer_and_more_bytes_than_announced_are_refused() {
        let short = Verified::new(&b"ab"[..], Digest::of(b"abc"), 3).finish().unwrap_err();
        assert!(short.to_string().ends_with("should hold 3 bytes, but holds 2 bytes"), "{short}");
        let long = Verified::new(io::repeat(0), Digest::of(b"abc"), 3).finish().unwrap_err();
        assert!(long.to_string().ends_with("should hold 3 bytes, but holds more"), "{long}");
    }
}
