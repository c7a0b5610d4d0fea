//! D-Bus messages, as far as systemd's manager needs them (D-Bus Specification 0.43, "Message Protocol").

use crate::error::{Code, Error, Result};

/// The protocol's mark for the byte order of the machine.
const ORDER: u8 = if cfg!(target_endian = "little") { b'l' } else { b'B' };

/// What comes before the header fields: order, type, flags, version, length of the body, serial, length of the
/// fields.
pub(super) const FIXED: usize = 16;

/// The longest message that is taken: what systemd says to us is a few hundred bytes.
const LONGEST: usize = 1 << 20;

const CALL: u8 = 1;
const VERSION: u8 = 1;

/// A value of a property.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Text(String),
    Truth(bool),
    Number(u64),
    Signed(i32),
    Unsigned(u32),
    Long(i64),
    Real(f64),
    Texts(Vec<String>),
    Pairs(Vec<(String, String)>),
    Bytes(Vec<u8>),
    Pids(Vec<u32>),
}

impl Value {
    fn signature(&self) -> &'static str {
        match self {
            Self::Text(_) => "s",
            Self::Truth(_) => "b",
            Self::Number(_) => "t",
            Self::Signed(_) => "i",
            Self::Unsigned(_) => "u",
            Self::Long(_) => "x",
            Self::Real(_) => "d",
            Self::Texts(_) => "as",
            Self::Pairs(_) => "a(ss)",
            Self::Bytes(_) => "ay",
            Self::Pids(_) => "au",
        }
    }
}

/// Marshals values one after the other, each at a multiple of its own alignment from the start.
#[derive(Debug, Default)]
pub(super) struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    fn align(&mut self, to: usize) {
        self.bytes.resize(self.bytes.len().next_multiple_of(to), 0);
    }

    pub(super) fn number(&mut self, value: u32) -> &mut Self {
        self.align(4);
        self.bytes.extend(value.to_ne_bytes());
        self
    }

    fn eight(&mut self, bytes: [u8; 8]) -> &mut Self {
        self.align(8);
        self.bytes.extend(bytes);
        self
    }

    pub(super) fn truth(&mut self, value: bool) -> &mut Self {
        self.number(value.into())
    }

    pub(super) fn text(&mut self, value: &str) -> &mut Self {
        self.number(value.len() as u32);
        self.bytes.extend(value.bytes().chain([0]));
        self
    }

    fn signature(&mut self, value: &str) {
        self.bytes.push(value.len() as u8);
        self.bytes.extend(value.bytes().chain([0]));
    }

    /// An array of what `elements` writes, whose elements stand at multiples of `alignment`.
    fn array(&mut self, alignment: usize, elements: impl FnOnce(&mut Self)) -> &mut Self {
        self.number(0);
        let length = self.bytes.len() - 4;
        self.align(alignment);
        let start = self.bytes.len();
        elements(self);
        let size = (self.bytes.len() - start) as u32;
        self.bytes[length..length + 4].copy_from_slice(&size.to_ne_bytes());
        self
    }

    fn variant(&mut self, value: &Value) {
        self.signature(value.signature());
        match value {
            Value::Text(text) => self.text(text),
            Value::Truth(truth) => self.truth(*truth),
            Value::Number(number) => self.eight(number.to_ne_bytes()),
            Value::Signed(number) => self.number(number.cast_unsigned()),
            Value::Unsigned(number) => self.number(*number),
            Value::Long(number) => self.eight(number.to_ne_bytes()),
            Value::Real(number) => self.eight(number.to_ne_bytes()),
            Value::Texts(texts) => self.array(4, |w| {
                texts.iter().for_each(|text| {
                    w.text(text);
                });
            }),
            Value::Pairs(pairs) => self.array(8, |w| {
                pairs.iter().for_each(|(one, other)| {
                    w.align(8);
                    w.text(one).text(other);
                });
            }),
            Value::Bytes(bytes) => self.array(1, |w| w.bytes.extend(bytes)),
            Value::Pids(pids) => self.array(4, |w| {
                pids.iter().for_each(|pid| {
                    w.number(*pid);
                });
            }),
        };
    }

    /// Properties, `a(sv)`.
    pub(super) fn properties(&mut self, properties: &[(impl AsRef<str>, Value)]) -> &mut Self {
        self.array(8, |w| {
            for (name, value) in properties {
                w.align(8);
                w.text(name.as_ref());
                w.variant(value);
            }
        })
    }

    /// An empty array of structures.
    pub(super) fn nothing(&mut self) -> &mut Self {
        self.array(8, |_| {})
    }

    /// The message that calls `method` of `object`, with all that was written, whose types `signature` names, as its
    /// arguments.
    pub(super) fn into_call(self, serial: u32, object: &Object, method: &str, signature: &str) -> Vec<u8> {
        let mut message = Self { bytes: vec![ORDER, CALL, 0, VERSION] };
        message.number(self.bytes.len() as u32).number(serial);
        message.array(8, |w| {
            let mut field = |code: u8, kind: &str, value: &str| {
                w.align(8);
                w.bytes.push(code);
                w.signature(kind);
                if kind == "g" { w.signature(value) } else { _ = w.text(value) }
            };
            field(1, "o", object.path);
            field(2, "s", object.interface);
            field(3, "s", method);
            field(6, "s", object.name);
            if !signature.is_empty() {
                field(8, "g", signature);
            }
        });
        message.align(8);
        message.bytes.extend(self.bytes);
        message.bytes
    }
}

/// Whom a call is for.
#[derive(Debug)]
pub(super) struct Object {
    pub(super) name: &'static str,
    pub(super) path: &'static str,
    pub(super) interface: &'static str,
}

/// What a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Reply,
    Failure,
    Signal,
    Other,
}

/// A message that came in.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) kind: Kind,
    /// The serial of the call that it answers.
    pub(super) answers: u32,
    /// The name of the signal.
    pub(super) member: String,
    /// The name of the failure.
    pub(super) failure: String,
    body: Vec<u8>,
}

impl Message {
    /// How long the message is that starts with the bytes `fixed`.
    ///
    /// # Errors
    /// `System` for what is no message of this protocol, or far too long.
    pub(super) fn length(fixed: &[u8; FIXED]) -> Result<usize> {
        let mut reader = Reader { bytes: fixed, at: 4 };
        let (body, _, fields) = (reader.number()?, reader.number()?, reader.number()?);
        let length = (FIXED + fields as usize).next_multiple_of(8).saturating_add(body as usize);
        if fixed[0] != ORDER || fixed[3] != VERSION || length > LONGEST {
            return Err(malformed());
        }
        Ok(length)
    }

    /// Reads a whole message.
    ///
    /// # Errors
    /// `System` where it is malformed.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self> {
        let kind = match bytes.get(1) {
            Some(2) => Kind::Reply,
            Some(3) => Kind::Failure,
            Some(4) => Kind::Signal,
            _ => Kind::Other,
        };
        let mut message =
            Self { kind, answers: 0, member: String::new(), failure: String::new(), body: Vec::new() };
        let mut reader = Reader { bytes, at: 12 };
        let end = FIXED + reader.number()? as usize;
        while reader.at < end {
            reader.align(8);
            let code = reader.byte()?;
            let kind = reader.signature()?;
            match (code, kind.as_str()) {
                (5, "u") => message.answers = reader.number()?,
                (3, "s") => message.member = reader.text()?,
                (4, "s") => message.failure = reader.text()?,
                (_, "u") => _ = reader.number()?,
                (_, "s" | "o") => _ = reader.text()?,
                (_, "g") => _ = reader.signature()?,
                _ => return Err(malformed()),
            }
        }
        reader.align(8);
        message.body = bytes.get(reader.at..).ok_or_else(malformed)?.to_vec();
        Ok(message)
    }

    /// A reader of its arguments.
    pub(super) fn arguments(&self) -> Reader<'_> {
        Reader { bytes: &self.body, at: 0 }
    }
}

/// Takes values out of a message in their order.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn align(&mut self, to: usize) {
        self.at = self.at.next_multiple_of(to);
    }

    fn take(&mut self, count: usize) -> Result<&[u8]> {
        let end = self.at.checked_add(count).ok_or_else(malformed)?;
        let taken = self.bytes.get(self.at..end).ok_or_else(malformed)?;
        self.at = end;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8> {
        Ok(self.take(1)?[0])
    }

    pub(super) fn number(&mut self) -> Result<u32> {
        self.align(4);
        self.take(4)?.try_into().map(u32::from_ne_bytes).map_err(|_| malformed())
    }

    pub(super) fn text(&mut self) -> Result<String> {
        let length = self.number()?;
        self.string(length as usize)
    }

    fn signature(&mut self) -> Result<String> {
        let length = self.byte()?;
        self.string(length.into())
    }

    fn string(&mut self, length: usize) -> Result<String> {
        let text = String::from_utf8_lossy(self.take(length)?).into_owned();
        self.take(1)?;
        Ok(text)
    }
}

fn malformed() -> Error {
    Error::new(Code::System, "the answer is no message of D-Bus")
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    const OBJECT: Object = Object { name: "a.b", path: "/a", interface: "a.b.C" };

    /// A message as a bus sends it: with `fields` of texts and numbers, and `body`.
    pub(in super::super) fn incoming(kind: u8, fields: &[(u8, &str, &str)], body: Writer) -> Vec<u8> {
        let mut message = Writer { bytes: vec![ORDER, kind, 0, VERSION] };
        message.number(body.bytes.len() as u32).number(7);
        message.array(8, |w| {
            for (code, kind, value) in fields {
                w.align(8);
                w.bytes.push(*code);
                w.signature(kind);
                match *kind {
                    "u" => _ = w.number(value.parse().unwrap()),
                    "g" => w.signature(value),
                    _ => _ = w.text(value),
                }
            }
        });
        message.align(8);
        message.bytes.extend(body.bytes);
        message.bytes
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn a_call_reads_as_the_specification_says() {
        let mut arguments = Writer::default();
        arguments.text("x");
        let expected = [
            &b"l\x01\0\x01\x06\0\0\0\x03\0\0\0\x47\0\0\0"[..],
            b"\x01\x01o\0\x02\0\0\0/a\0\0\0\0\0\0",
            b"\x02\x01s\0\x05\0\0\0a.b.C\0\0\0",
            b"\x03\x01s\0\x01\0\0\0M\0\0\0\0\0\0\0",
            b"\x06\x01s\0\x03\0\0\0a.b\0\0\0\0\0",
            b"\x08\x01g\0\x01s\0\0",
            b"\x01\0\0\0x\0",
        ];
        let call = arguments.into_call(3, &OBJECT, "M", "s");
        assert_eq!(call.escape_ascii().to_string(), expected.concat().escape_ascii().to_string());
        let fixed = call[..FIXED].try_into().unwrap();
        assert_eq!(Message::length(&fixed).unwrap(), call.len());
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn properties_are_structures_of_a_name_and_a_variant() {
        let mut writer = Writer::default();
        writer.properties(&[
            ("T", Value::Number(1)),
            ("B", Value::Bytes(vec![5])),
            ("P", Value::Pids(vec![9])),
        ]);
        let expected = [
            &b"\x38\0\0\0\0\0\0\0"[..],
            b"\x01\0\0\0T\0\x01t\0\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0",
            b"\x01\0\0\0B\0\x02ay\0\0\0\x01\0\0\0\x05\0\0\0\0\0\0\0",
        ];
        let start = expected.concat();
        assert_eq!(
            writer.bytes[8..start.len()].escape_ascii().to_string(),
            start[8..].escape_ascii().to_string()
        );
        assert_eq!(writer.bytes.len(), 8 + writer.bytes[0] as usize);
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn values_stand_at_multiples_of_their_own_size() {
        let mut writer = Writer::default();
        let [a, b] = ["a", "b"].map(str::to_owned);
        let (texts, pairs) =
            (Value::Texts(vec![a.clone(), b.clone()]), Value::Pairs(vec![(a.clone(), b), (a.clone(), a)]));
        for value in [Value::Signed(-1), Value::Real(1.0), texts, pairs] {
            writer.variant(&value);
        }
        let expected = [
            &b"\x01i\0\0\xff\xff\xff\xff"[..],
            b"\x01d\0\0\0\0\0\0\0\0\0\0\0\0\xf0\x3f",
            b"\x02as\0\x0e\0\0\0\x01\0\0\0a\0\0\0\x01\0\0\0b\0\x05a(ss)\0\0\0\0",
            b"\x1e\0\0\0\0\0\0\0\x01\0\0\0a\0\0\0\x01\0\0\0b\0\0\0\x01\0\0\0a\0\0\0\x01\0\0\0a\0",
        ];
        assert_eq!(writer.bytes.escape_ascii().to_string(), expected.concat().escape_ascii().to_string());
    }

    #[test]
    fn a_failure_tells_what_it_answers_its_name_and_its_text() {
        let mut body = Writer::default();
        body.text("no such unit");
        let bytes = incoming(3, &[(5, "u", "4"), (4, "s", "a.NoSuchUnit"), (8, "g", "s")], body);
        let message = Message::parse(&bytes).unwrap();
        assert_eq!(
            (message.kind, message.answers, message.failure.as_str()),
            (Kind::Failure, 4, "a.NoSuchUnit")
        );
        assert_eq!(message.arguments().text().unwrap(), "no such unit");
    }

    #[test]
    fn what_is_cut_short_is_malformed_and_never_read_beyond() {
        let mut body = Writer::default();
        body.text("job").text("done");
        let bytes = incoming(4, &[(3, "s", "JobRemoved")], body);
        for length in 0..bytes.len() - 5 {
            let read = Message::parse(&bytes[..length]).and_then(|message| {
                let mut arguments = message.arguments();
                arguments.text()?;
                arguments.text()
            });
            assert!(read.is_err(), "{length} bytes were enough");
        }
    }
}
