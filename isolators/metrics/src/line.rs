//! What a program says: a line of StatsD (github.com/statsd/statsd/blob/master/docs/metric_types.md), with the tags and the
//! packed values of DogStatsD 1.1.

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// `c`: how often something happened.
    Counter,
    /// `g`: how much there is of something.
    Gauge,
    /// `ms`: how long something took, in milliseconds.
    Timer,
    /// `h` and `d`: how large something was.
    Histogram,
    /// `s`: which there were of something.
    Set,
}

/// A line, taken apart.
#[derive(Debug, PartialEq)]
pub(crate) struct Line<'l> {
    pub(crate) name: &'l str,
    pub(crate) kind: Kind,
    /// At least one.
    pub(crate) values: Vec<Value<'l>>,
    /// The share of all that the program has told, above 0 and at most 1.
    pub(crate) rate: f64,
    /// Names and values, in the program's order.
    pub(crate) tags: Vec<(&'l str, &'l str)>,
}

/// What was measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Value<'l> {
    /// A number; not negative, but for gauges.
    Number(f64),
    /// By how much a gauge changes.
    Change(f64),
    /// A member of a set.
    Member(&'l str),
}

/// The most tags that a line may have.
const MOST_TAGS: usize = 32;

impl<'l> Line<'l> {
    /// `NAME:VALUE[:VALUE…]|KIND[|@RATE][|#TAG:VALUE,…]`; nothing where it is malformed.
    pub(crate) fn parse(line: &'l str) -> Option<Self> {
        let (name, rest) = line.split_once(':')?;
        let mut parts = rest.split('|');
        let (values, kind) = (parts.next()?, parts.next()?);
        let kind = Kind::parse(kind)?;
        let values: Option<Vec<_>> = values.split(':').map(|value| kind.value(value)).collect();
        let mut line = Self { name, kind, values: values?, rate: 1.0, tags: Vec::new() };
        for part in parts {
            line.add(part)?;
        }
        (!name.is_empty() && !name.contains('|')).then_some(line)
    }

    /// A further part. What DogStatsD says of the sender and its time is of no use here.
    fn add(&mut self, part: &'l str) -> Option<()> {
        if let Some(rate) = part.strip_prefix('@') {
            self.rate = rate.parse().ok().filter(|rate| *rate > 0.0 && *rate <= 1.0)?;
            return Some(());
        }
        if let Some(tags) = part.strip_prefix('#') {
            let tags = tags.split(',').filter(|tag| !tag.is_empty());
            self.tags.extend(tags.map(|tag| tag.split_once(':').unwrap_or((tag, "true"))));
            return (self.tags.len() <= MOST_TAGS).then_some(());
        }
        ["c:", "e:", "card:", "T"].iter().any(|known| part.starts_with(known)).then_some(())
    }
}

impl Kind {
    fn parse(word: &str) -> Option<Self> {
        Some(match word {
            "c" => Self::Counter,
            "g" => Self::Gauge,
            "ms" => Self::Timer,
            "h" | "d" => Self::Histogram,
            "s" => Self::Set,
            _ => return None,
        })
    }

    fn value(self, text: &str) -> Option<Value<'_>> {
        if self == Self::Set {
            return (!text.is_empty()).then_some(Value::Member(text));
        }
        let number: f64 = text.parse().ok().filter(|number: &f64| number.is_finite())?;
        match self {
            Self::Gauge if text.starts_with(['+', '-']) => Some(Value::Change(number)),
            Self::Gauge => Some(Value::Number(number)),
            _ => (number >= 0.0).then_some(Value::Number(number)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_a_name_values_a_kind_a_rate_and_tags() {
        let line = Line::parse("app.hits:1:2.5|c|@0.1|#path:/a:b,slow|c:abc|T1700000000").unwrap();
        assert_eq!((line.name, line.kind, line.rate), ("app.hits", Kind::Counter, 0.1));
        assert_eq!(line.values, [Value::Number(1.0), Value::Number(2.5)]);
        assert_eq!(line.tags, [("path", "/a:b"), ("slow", "true")]);
        let kind = |line: &'static str| Line::parse(line).map(|line| (line.kind, line.values[0]));
        assert_eq!(kind("a:5|g"), Some((Kind::Gauge, Value::Number(5.0))));
        assert_eq!(kind("a:-5|g"), Some((Kind::Gauge, Value::Change(-5.0))));
        assert_eq!(kind("a:320|ms"), Some((Kind::Timer, Value::Number(320.0))));
        assert_eq!(kind("a:1|h").map(|(kind, _)| kind), kind("a:1|d").map(|(kind, _)| kind));
        assert_eq!(kind("a:user 7|s"), Some((Kind::Set, Value::Member("user 7"))));
    }

    #[test]
    fn what_is_malformed_is_nothing() {
        for line in [
            "",
            "a",
            "a:1",
            ":1|c",
            "a:|c",
            "a:x|c",
            "a:inf|g",
            "a:NaN|g",
            "a:-1|c",
            "a:1|q",
            "a:1|c|@0",
            "a:1|c|@2",
            "a:1|c|?",
            "a:1:x|c",
            "a:|s",
            "a|b:1|c",
            "_e{1,1}:a|b",
        ] {
            assert_eq!(Line::parse(line), None, "{line}");
        }
        let tags = vec!["t"; MOST_TAGS + 1].join(",");
        assert_eq!(Line::parse(&format!("a:1|c|#{tags}")), None);
    }
}
