//! Reads JSON, and tells what is wrong with it by JSON pointer (RFC 6901), line and column.

use coracle_isolator::pointer;
use serde::de::DeserializeOwned;
use serde_json::Deserializer;
use serde_path_to_error::{Path, Segment};

use super::repair::repaired;
use super::strict::Strict;
use crate::error::{Code, Error, Result};

/// The document `text` as `T`, which a whole configuration would have at the pointer `base`; and what is passed over in
/// it.
///
/// # Errors
/// `InvalidSpec`.
pub(super) fn read<T: DeserializeOwned>(text: &[u8], base: &str) -> Result<(T, Vec<String>)> {
    if let Ok(read) = quickly(text) {
        return Ok((read, Vec::new()));
    }
    let again = repaired(text, base).and_then(|(text, warnings)| Some((quickly(&text).ok()?, warnings)));
    again.ok_or_else(|| failure::<T>(text, base))
}

/// The document without a word on what is wrong with it: to keep the pointer at hand costs an allocation for each key.
fn quickly<T: DeserializeOwned>(text: &[u8]) -> serde_json::Result<T> {
    let mut json = Deserializer::from_slice(text);
    let read = T::deserialize(Strict(&mut json))?;
    json.end().map(|()| read)
}

/// What is wrong with `text`, which is no `T`.
fn failure<T: DeserializeOwned>(text: &[u8], base: &str) -> Error {
    if let Some(error) = no_text(text) {
        return error;
    }
    let mut json = Deserializer::from_slice(text);
    match serde_path_to_error::deserialize::<_, T>(Strict(&mut json)) {
        Ok(_) => match json.end() {
            Ok(()) => invalid("it is malformed"),
            Err(e) => invalid(e.to_string()).hint("one document is all that a file may hold"),
        },
        Err(error) => {
            let (at, why) = located(base, error.path(), &error.inner().to_string());
            invalid(if at.is_empty() { why } else { format!("{at}: {why}") })
        }
    }
}

/// What can't be JSON at all, said plainly.
fn no_text(text: &[u8]) -> Option<Error> {
    if text.trim_ascii().is_empty() {
        return Some(invalid("it is empty"));
    }
    if text.starts_with(b"\xef\xbb\xbf") {
        return Some(invalid("it begins with a byte order mark").hint("save it as UTF-8 without one"));
    }
    let end = std::str::from_utf8(text).err()?.valid_up_to();
    Some(invalid(format!("byte {end} is no UTF-8")).hint("save it as UTF-8"))
}

fn invalid(why: impl Into<String>) -> Error {
    Error::new(Code::InvalidSpec, why)
}

/// Where it is wrong, and why. A field that is missing, or stands twice, is pointed at itself, not at what holds it.
fn located(base: &str, path: &Path, why: &str) -> (String, String) {
    let at = path.iter().fold(base.to_owned(), |at, segment| match segment {
        Segment::Seq { index } => format!("{at}/{index}"),
        Segment::Map { key } => pointer(&at, key),
        Segment::Enum { .. } | Segment::Unknown => at,
    });
    let quoted = |prefix: &str| why.strip_prefix(prefix)?.split_once('`');
    if let Some((field, rest)) = quoted("missing field `") {
        return (pointer(&at, field), format!("it is missing{rest}"));
    }
    if let Some((field, rest)) = quoted("duplicate field `") {
        let at = if at.ends_with(&pointer("", field)) { at } else { pointer(&at, field) };
        return (at, format!("it stands twice{rest}"));
    }
    (at, why.to_owned())
}
