//! Reads JSON, and tells what is wrong with it by JSON pointer (RFC 6901), line and column.

use coracle_isolator::pointer;
use serde::de::DeserializeOwned;
use serde_json::Deserializer;

use super::repair::repaired;
use super::strict::{Strict, Trail};
use crate::error::{Code, Error, Result};

/// The document `text` as `T`, which a whole configuration would have at the pointer `base`; and what is passed over in
/// it.
///
/// # Errors
/// `InvalidSpec`.
pub(super) fn read<T: DeserializeOwned>(text: &[u8], base: &str) -> Result<(T, Vec<String>)> {
    let failure = match exactly(text, base) {
        Ok(read) => return Ok((read, Vec::new())),
        Err(failure) => failure,
    };
    let again =
        repaired(text, base).and_then(|(text, warnings)| Some((exactly(&text, base).ok()?, warnings)));
    again.ok_or(failure)
}

/// The document `text` as `T`, which a whole one would have at the pointer `base`, with nothing passed over.
///
/// # Errors
/// `InvalidSpec`.
pub fn exactly<T: DeserializeOwned>(text: &[u8], base: &str) -> Result<T> {
    let mut json = Deserializer::from_slice(text);
    let read = strictly(&mut json, base).map_err(|failure| no_text(text).unwrap_or(failure))?;
    let one = json.end().map_err(|e| invalid(e.to_string()).hint("one document is all that a file may hold"));
    one.map(|()| read)
}

/// The same of a document that was read from another notation.
///
/// # Errors
/// `InvalidSpec`.
pub fn from_value<T: DeserializeOwned>(value: serde_json::Value) -> Result<T> {
    strictly(value, "")
}

fn strictly<'de, T: DeserializeOwned, D: serde::Deserializer<'de>>(source: D, base: &str) -> Result<T> {
    let trail = Trail::default();
    T::deserialize(Strict(source, &trail)).map_err(|e| {
        let (at, why) = located(base.to_owned() + &trail.into_pointer(), &e.to_string());
        invalid(if at.is_empty() { why } else { format!("{at}: {why}") })
    })
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

/// What is wrong at the pointer `at` because of `why`. A field that is missing, or stands twice, is pointed at itself,
/// not at what holds it.
fn located(at: String, why: &str) -> (String, String) {
    let quoted = |prefix: &str| why.strip_prefix(prefix)?.split_once('`');
    if let Some((field, rest)) = quoted("missing field `") {
        return (pointer(&at, field), format!("it is missing{rest}"));
    }
    if let Some((field, rest)) = quoted("duplicate field `") {
        let at = if at.ends_with(&pointer("", field)) { at } else { pointer(&at, field) };
        return (at, format!("it stands twice{rest}"));
    }
    if let Some((field, _)) = quoted("unknown field `") {
        let at = if at.ends_with(&pointer("", field)) { at } else { pointer(&at, field) };
        return (at, "it is unknown or not supported".to_owned());
    }
    (at, why.to_owned())
}
