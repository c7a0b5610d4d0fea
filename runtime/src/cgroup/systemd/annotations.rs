//! Properties of a scope that a specification's annotations ask for: `org.systemd.property.NAME`, whose value is
//! text of a GVariant (GVariant Text Format; runc and crun read the same ones).

use std::borrow::Cow;
use std::collections::HashMap;

use super::message::Value;
use crate::error::{Code, Error, Result};

const PREFIX: &str = "org.systemd.property.";

/// Where the scope is and who is in it is the runtime's to say.
const OURS: [&str; 2] = ["PIDs", "Slice"];

/// The properties that `annotations` ask for, by name. One in seconds, whose name ends in `Sec`, is told in microseconds,
/// as systemd has it (`TimeoutStopSec` is `TimeoutStopUSec`).
///
/// # Errors
/// `InvalidSpec` for what is no name of a property, or no value.
pub(super) fn properties(annotations: &HashMap<String, String>) -> Result<Vec<(Cow<'_, str>, Value)>> {
    let mut found = Vec::new();
    for (key, text) in annotations {
        let Some(name) = key.strip_prefix(PREFIX) else { continue };
        let bad = |why: &str, hint: &str| {
            Error::new(Code::InvalidSpec, format!("/annotations/{key} is {text:?}: {why}"))
                .hint(hint.to_owned())
        };
        if name.len() < 3 || !name.bytes().all(|b| b.is_ascii_alphabetic()) {
            return Err(bad(
                "no property of systemd's is called that",
                "names are of letters, like TimeoutStopUSec",
            ));
        }
        if OURS.contains(&name) {
            return Err(bad("the runtime sets it", "use /linux/cgroupsPath, SLICE:PREFIX:NAME"));
        }
        let value = parse(text).ok_or_else(|| {
            bad("not a value", "write it as GVariant text: 'text', true, 5, uint64 5, 1.5 or ['a', 'b']")
        })?;
        found.push(match name.strip_suffix("Sec").filter(|stem| !stem.ends_with('U')) {
            None => (Cow::Borrowed(name), value),
            Some(stem) => {
                let value = microseconds(&value).ok_or_else(|| bad("no time", "write seconds, like 1.5"))?;
                (Cow::Owned(format!("{stem}USec")), Value::Number(value))
            }
        });
    }
    found.sort_by(|(one, _), (other, _)| one.cmp(other));
    Ok(found)
}

/// A time in seconds in microseconds.
fn microseconds(value: &Value) -> Option<u64> {
    let whole = |seconds: u64| seconds.checked_mul(1_000_000);
    match *value {
        Value::Number(seconds) => whole(seconds),
        Value::Unsigned(seconds) => whole(seconds.into()),
        Value::Signed(seconds) => whole(seconds.try_into().ok()?),
        Value::Long(seconds) => whole(seconds.try_into().ok()?),
        Value::Real(seconds) if (0.0..1e12).contains(&seconds) => Some((seconds * 1e6) as u64),
        _ => None,
    }
}

/// A value of a type that properties of scopes have: text, truth, a number, a list of texts.
fn parse(text: &str) -> Option<Value> {
    let text = text.trim();
    let list = text.strip_prefix("@as").unwrap_or(text).trim_start();
    if let Some(list) = list.strip_prefix('[') {
        return texts(list).map(Value::Texts);
    }
    if text.starts_with(['\'', '"']) {
        let (value, rest) = quoted(text)?;
        return rest.trim().is_empty().then_some(Value::Text(value));
    }
    let (kind, number) =
        text.split_once(char::is_whitespace).map_or(("", text), |(k, n)| (k, n.trim_start()));
    Some(match kind {
        "" | "boolean" | "@b" if number == "true" || number == "false" => Value::Truth(number == "true"),
        "" if number.contains(['.', 'e']) => Value::Real(number.parse().ok()?),
        "" | "int32" | "@i" => Value::Signed(number.parse().ok()?),
        "uint32" | "@u" => Value::Unsigned(number.parse().ok()?),
        "int64" | "@x" => Value::Long(number.parse().ok()?),
        "uint64" | "@t" => Value::Number(number.parse().ok()?),
        "double" | "@d" => Value::Real(number.parse().ok()?),
        "string" | "@s" => {
            let (value, rest) = quoted(number)?;
            rest.trim().is_empty().then_some(Value::Text(value))?
        }
        _ => return None,
    })
}

/// What stands between `[` and `]`.
fn texts(mut rest: &str) -> Option<Vec<String>> {
    let mut found = Vec::new();
    loop {
        rest = rest.trim_start();
        if rest.trim_end() == "]" {
            return Some(found);
        }
        if !found.is_empty() {
            rest = rest.strip_prefix(',')?.trim_start();
        }
        let (text, after) = quoted(rest)?;
        found.push(text);
        rest = after;
    }
}

/// A text in quotes of either kind, and what follows it.
fn quoted(text: &str) -> Option<(String, &str)> {
    let quote = text.chars().next().filter(|c| matches!(c, '\'' | '"'))?;
    let mut found = String::new();
    let mut letters = text.char_indices().skip(1);
    loop {
        match letters.next()? {
            (at, c) if c == quote => return Some((found, &text[at + 1..])),
            (_, '\\') => found.push(match letters.next()?.1 {
                'n' => '\n',
                't' => '\t',
                plain @ ('\\' | '\'' | '"') => plain,
                _ => return None,
            }),
            (_, c) => found.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(name: &str, text: &str) -> Result<(String, Value)> {
        let annotations = HashMap::from([(format!("{PREFIX}{name}"), text.to_owned())]);
        properties(&annotations)
            .map(|mut found| found.remove(0))
            .map(|(name, value)| (name.into_owned(), value))
    }

    #[test]
    fn values_are_text_of_variants() {
        let list = |list: &[&str]| Value::Texts(list.iter().map(|text| (*text).to_owned()).collect());
        for (text, value) in [
            ("'inactive-or-failed'", Value::Text("inactive-or-failed".to_owned())),
            (r#""it's \"so\"""#, Value::Text("it's \"so\"".to_owned())),
            ("string 'a'", Value::Text("a".to_owned())),
            ("true", Value::Truth(true)),
            ("-5", Value::Signed(-5)),
            ("uint32 5", Value::Unsigned(5)),
            ("int64 -5", Value::Long(-5)),
            ("uint64 18446744073709551615", Value::Number(u64::MAX)),
            ("@t 5", Value::Number(5)),
            ("1.5", Value::Real(1.5)),
            ("['a.service', \"b.service\"]", list(&["a.service", "b.service"])),
            ("@as []", list(&[])),
        ] {
            assert_eq!(of("Some", text).unwrap(), ("Some".to_owned(), value), "{text}");
        }
    }

    #[test]
    fn seconds_are_told_in_microseconds() {
        for text in ["5", "uint64 5", "5.0"] {
            let (name, value) = of("TimeoutStopSec", text).unwrap();
            assert_eq!((name.as_str(), value), ("TimeoutStopUSec", Value::Number(5_000_000)));
        }
        assert_eq!(of("TimeoutStopUSec", "uint64 7").unwrap().1, Value::Number(7));
    }

    #[test]
    fn other_annotations_are_nobodys_concern_here() {
        let annotations = HashMap::from([("org.systemd.other".to_owned(), "x".to_owned())]);
        assert!(properties(&annotations).unwrap().is_empty());
    }

    #[test]
    fn what_is_no_property_is_named() {
        for (name, text, why) in [
            ("After", "a.service", "not a value"),
            ("After", "['a.service'", "not a value"),
            ("After", "'a' 'b'", "not a value"),
            ("TasksMax", "uint64 -1", "not a value"),
            ("TimeoutStopSec", "'5'", "no time"),
            ("TimeoutStopSec", "-5", "no time"),
            ("A-b", "5", "no property of systemd's is called that"),
            ("Slice", "'a.slice'", "the runtime sets it"),
        ] {
            let error = of(name, text).unwrap_err().to_string();
            let expected = format!("/annotations/{PREFIX}{name} is {text:?}: {why}");
            assert!(error.starts_with(&expected), "{error}");
        }
    }
}
