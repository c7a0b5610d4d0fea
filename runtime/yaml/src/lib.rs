//! YAML, as far as it says the same as JSON: one document, no anchors, no tags, each key once. The core schema of
//! YAML 1.2 decides what is a number, a truth or nothing.

#![forbid(unsafe_code)]

use std::fmt;

use saphyr_parser::{Event, Parser, ScalarStyle, ScanError};
use serde_json::{Map, Number, Value};

/// How deep a document may be nested, as for serde_json.
const DEEPEST: usize = 128;

/// Why a text is no such document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// What is wrong, with line and column.
    pub why: String,
    /// What to do about it.
    pub hint: Option<&'static str>,
}

impl Error {
    fn new(why: impl Into<String>) -> Self {
        Self { why: why.into(), hint: None }
    }

    fn hint(self, hint: &'static str) -> Self {
        Self { hint: Some(hint), ..self }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)?;
        self.hint.map_or(Ok(()), |hint| write!(f, "; {hint}"))
    }
}

impl std::error::Error for Error {}

/// What may be no such document.
pub type Result<T> = std::result::Result<T, Error>;

/// The document that `text` holds.
///
/// # Errors
/// What is wrong in it, and where.
pub fn read(text: &str) -> Result<Value> {
    let mut reader = Reader { parser: Parser::new_from_str(text), line: 1, column: 0 };
    reader.expect_start()?;
    let event = reader.next()?;
    let document = reader.value(event, 0)?;
    match (reader.next()?, reader.next()?) {
        (Event::DocumentEnd, Event::StreamEnd) => Ok(document),
        _ => Err(reader.wrong("another document follows").hint("one document is all that a file may hold")),
    }
}

struct Reader<'t> {
    parser: Parser<'t, saphyr_parser::StrInput<'t>>,
    line: usize,
    column: usize,
}

impl<'t> Reader<'t> {
    fn next(&mut self) -> Result<Event<'t>> {
        match self.parser.next_event() {
            Some(Ok((event, span))) => {
                (self.line, self.column) = (span.start.line(), span.start.col());
                Ok(event)
            }
            Some(Err(error)) => Err(scan_error(&error)),
            None => Err(self.wrong("it ends too early")),
        }
    }

    fn wrong(&self, why: &str) -> Error {
        Error::new(format!("line {} column {}: {why}", self.line, self.column + 1))
    }

    fn expect_start(&mut self) -> Result<()> {
        match (self.next()?, self.next()?) {
            (Event::StreamStart, Event::DocumentStart(_)) => Ok(()),
            _ => Err(Error::new("it is empty")),
        }
    }

    fn value(&mut self, event: Event<'t>, depth: usize) -> Result<Value> {
        if depth > DEEPEST {
            return Err(self.wrong(&format!("it is nested deeper than {DEEPEST}")));
        }
        match event {
            Event::Alias(_) => Err(self.wrong("an alias stands here").hint("write the value out")),
            Event::Scalar(_, _, 1.., _) | Event::SequenceStart(1.., _) | Event::MappingStart(1.., _) => {
                Err(self.wrong("an anchor stands here").hint("write the value out where it is used"))
            }
            Event::Scalar(.., Some(_))
            | Event::SequenceStart(_, Some(_))
            | Event::MappingStart(_, Some(_)) => {
                Err(self.wrong("a tag stands here").hint("quote what is a string"))
            }
            Event::Scalar(text, style, ..) => Ok(scalar(&text, style)),
            Event::SequenceStart(..) => self.list(depth),
            Event::MappingStart(..) => self.object(depth),
            _ => Err(self.wrong("a value is missing")),
        }
    }

    fn list(&mut self, depth: usize) -> Result<Value> {
        let mut list = Vec::new();
        loop {
            match self.next()? {
                Event::SequenceEnd => return Ok(Value::Array(list)),
                event => list.push(self.value(event, depth + 1)?),
            }
        }
    }

    fn object(&mut self, depth: usize) -> Result<Value> {
        let mut object = Map::new();
        loop {
            let key = match self.next()? {
                Event::MappingEnd => return Ok(Value::Object(object)),
                Event::Scalar(key, _, 0, None) => key.into_owned(),
                _ => return Err(self.wrong("a key is no plain string")),
            };
            if object.contains_key(&key) {
                return Err(self.wrong(&format!("the key {key:?} stands twice")));
            }
            let event = self.next()?;
            let value = self.value(event, depth + 1)?;
            // As Kubernetes has it: null says nothing.
            if !value.is_null() {
                object.insert(key, value);
            }
        }
    }
}

fn scan_error(error: &ScanError) -> Error {
    let at = error.marker();
    Error::new(format!("line {} column {}: {}", at.line(), at.col() + 1, error.info()))
}

/// What a scalar means: only one without quotes can be other than a string (YAML 1.2.2, §10.3.2).
fn scalar(text: &str, style: ScalarStyle) -> Value {
    if style != ScalarStyle::Plain {
        return Value::String(text.to_owned());
    }
    match text {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "true" | "True" | "TRUE" => Value::Bool(true),
        "false" | "False" | "FALSE" => Value::Bool(false),
        _ => number(text).map_or_else(|| Value::String(text.to_owned()), Value::Number),
    }
}

fn number(text: &str) -> Option<Number> {
    let radix = |prefix: &str, radix| i64::from_str_radix(text.strip_prefix(prefix)?, radix).ok();
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    if digits.len() > 1 && digits.starts_with('0') && digits.bytes().all(|b| b.is_ascii_digit()) {
        // As Kubernetes' reader has it: octal. What then is no number stays a string, which no number is read from.
        return i64::from_str_radix(text, 8).ok().map(Number::from);
    }
    if let Some(whole) = text.parse::<i64>().ok().or_else(|| radix("0x", 16)).or_else(|| radix("0o", 8)) {
        return Some(whole.into());
    }
    let is_decimal = text.starts_with(|c: char| c.is_ascii_digit() || "+-.".contains(c))
        && text.bytes().all(|b| b.is_ascii_digit() || b"+-.eE".contains(&b));
    text.parse::<f64>().ok().filter(|_| is_decimal).and_then(Number::from_f64)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn yaml_says_what_json_says() {
        let text = "a: 1\nb: [x, 'true', true, ~, 0x10, 1.5, \"2\"]\nc:\n  - d: |\n      two\n      lines\n";
        let expected =
            json!({"a": 1, "b": ["x", "true", true, null, 16, 1.5, "2"], "c": [{"d": "two\nlines\n"}]});
        assert_eq!(read(text).unwrap(), expected);
    }

    #[test]
    fn a_number_with_a_leading_zero_is_octal_and_one_that_can_not_be_is_none() {
        let text = "[0400, 0o400, -010, 0, 0.5, 0800, 08.5]";
        assert_eq!(read(text).unwrap(), json!([256, 256, -8, 0, 0.5, "0800", 8.5]));
    }

    #[test]
    fn what_json_can_not_say_is_refused_with_its_place() {
        for (text, words) in [
            ("", "it is empty"),
            ("a: &x 1\nb: *x", "an anchor stands here"),
            ("a: !!str 1", "a tag stands here"),
            ("a: 1\na: 2", "line 2 column 1: the key \"a\" stands twice"),
            ("a: 1\n---\nb: 2", "another document follows"),
            ("? [x]\n: 1", "a key is no plain string"),
            ("a: [1", "line "),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(words), "{text:?}: {error}");
        }
        let deep = "[".repeat(500);
        assert!(read(&deep).is_err());
    }
}
