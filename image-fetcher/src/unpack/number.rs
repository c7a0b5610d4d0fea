//! The numbers of tar headers and PAX records.
//!
//! Parsed here and not by the tar crate, which reads the last eight bytes of a base-256 number whatever the
//! others say: two parsers that disagree about a size disagree about where the next entry begins.

use coracle_sys::archive::Time;

use crate::error::{Error, Kind, Result};

/// A number of a header: octal digits, padded with spaces and NULs, or base 256 where the first bit is set.
pub(crate) fn header(field: &[u8], what: &str) -> Result<i64> {
    let malformed = || Error::new(Kind::Malformed, format!("its header has a malformed {what}"));
    if field[0] & 0x80 != 0 {
        return base256(field).ok_or_else(malformed);
    }
    let is_padding = |b: &u8| matches!(b, b' ' | 0);
    let start = field.iter().position(|b| !is_padding(b)).unwrap_or(field.len());
    let digits = &field[start..];
    let end = digits.iter().position(is_padding).unwrap_or(digits.len());
    if !digits[end..].iter().all(is_padding) {
        return Err(malformed());
    }
    digits[..end]
        .iter()
        .try_fold(0_i64, |value, digit| match digit {
            b'0'..=b'7' => value.checked_mul(8)?.checked_add(i64::from(digit - b'0')),
            _ => None,
        })
        .ok_or_else(malformed)
}

/// Two's complement, big-endian, its first bit replaced by the mark.
fn base256(field: &[u8]) -> Option<i64> {
    let is_negative = field[0] & 0x40 != 0;
    let first = if is_negative { field[0] } else { field[0] & 0x7f };
    let fill = if is_negative { 0xff } else { 0 };
    let bytes = std::iter::once(first).chain(field[1..].iter().copied());
    let (high, low): (Vec<u8>, Vec<u8>) = {
        let all: Vec<u8> = bytes.collect();
        let split = all.len().saturating_sub(8);
        (all[..split].to_vec(), all[split..].to_vec())
    };
    let mut wide = [fill; 8];
    wide[8 - low.len()..].copy_from_slice(&low);
    let value = i64::from_be_bytes(wide);
    (high.iter().all(|b| *b == fill) && (value < 0) == is_negative).then_some(value)
}

/// The same where it can't be negative.
pub(crate) fn unsigned(field: &[u8], what: &str) -> Result<u64> {
    let value = header(field, what)?;
    u64::try_from(value)
        .map_err(|_| Error::new(Kind::Malformed, format!("its header has the negative {what} {value}")))
}

/// A decimal number of a PAX record.
pub(crate) fn decimal(value: &[u8], what: &str) -> Result<u64> {
    let digits = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
    let number = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
    number.filter(|_| digits).ok_or_else(|| {
        let shown = String::from_utf8_lossy(value);
        Error::new(Kind::Malformed, format!("its PAX header has the malformed {what} {shown:?}"))
    })
}

/// A time of a PAX record: decimal seconds with a fraction, negative before 1970.
pub(crate) fn time(value: &[u8], what: &str) -> Result<Time> {
    let (negative, rest) = match value.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, value),
    };
    let dot = rest.iter().position(|b| *b == b'.');
    let (whole, fraction) = dot.map_or((rest, &b""[..]), |dot| (&rest[..dot], &rest[dot + 1..]));
    let mut digits = fraction.to_vec();
    digits.resize(9, b'0');
    let seconds = i64::try_from(decimal(whole, what)?).unwrap_or(i64::MAX);
    decimal(if fraction.is_empty() { b"0" } else { fraction }, what)?;
    let nanoseconds = u32::try_from(decimal(&digits, what)?).unwrap_or(0);
    Ok(match (negative, nanoseconds) {
        (false, _) => Time { seconds, nanoseconds },
        (true, 0) => Time { seconds: -seconds, nanoseconds: 0 },
        (true, _) => Time { seconds: -seconds - 1, nanoseconds: 1_000_000_000 - nanoseconds },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn octal_and_base_256_are_read() {
        assert_eq!(header(b"0000644\0", "mode").unwrap(), 0o644);
        assert_eq!(header(b"   644 \0", "mode").unwrap(), 0o644);
        assert_eq!(header(b"\0\0\0\0\0\0\0\0", "mode").unwrap(), 0);
        assert_eq!(header(b"\x80\0\0\0\0\x20\0\x01", "uid").unwrap(), 0x20_0001);
        let big = [0x80, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0];
        assert_eq!(header(&big, "size").unwrap(), 0x2_0000_0000);
        assert_eq!(header(&[0xff; 12], "mtime").unwrap(), -1);
    }

    #[test]
    fn numbers_that_two_parsers_could_read_differently_are_refused() {
        for bad in [&b"00x0644\0"[..], b"00 0644\0", b"9", &[0x80, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]] {
            assert!(header(bad, "size").is_err(), "{bad:?}");
        }
        assert!(unsigned(&[0xff; 12], "size").is_err());
        for bad in [&b""[..], b"+1", b"-1", b" 1", b"1x", b"18446744073709551616"] {
            assert!(decimal(bad, "size").is_err(), "{bad:?}");
        }
    }

    #[test]
    fn times_have_nanoseconds_and_may_lie_before_1970() {
        let at = |text: &str| time(text.as_bytes(), "mtime").map(|t| (t.seconds, t.nanoseconds));
        assert_eq!(at("1.5").unwrap(), (1, 500_000_000));
        assert_eq!(at("1.0000000019").unwrap(), (1, 1));
        assert_eq!(at("-1.25").unwrap(), (-2, 750_000_000));
        assert_eq!(at("-3").unwrap(), (-3, 0));
        assert!(at("1.-5").is_err());
        assert!(at(".5").is_err());
    }
}
