//! What was measured so far, within bounds: a program can say what it likes, and as often as it likes.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, HashSet};
use std::hash::{Hash, Hasher};

use serde::{Deserialize, Serialize};

use crate::line::{Kind, Line, Value};

/// How much of what a container's programs measure is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Series: a name with its tags.
    pub series: usize,
    /// Bytes.
    pub bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { series: 1000, bytes: 1 << 20 }
    }
}

/// A metric, as Prometheus has it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Family {
    /// Its name.
    pub name: String,
    /// `counter`, `gauge` or `summary`.
    pub kind: String,
    /// What it is, for people.
    pub help: String,
    /// Its samples.
    pub samples: Vec<Sample>,
}

/// A value of a metric.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// What follows the metric's name: `_sum` and `_count` of a summary.
    pub suffix: String,
    /// The labels.
    pub labels: Vec<(String, String)>,
    /// The value; finite.
    pub value: f64,
}

/// The latest values of which quantiles are told.
const LATEST: usize = 128;

/// The quantiles that are told.
const QUANTILES: [f64; 3] = [0.5, 0.9, 0.99];

/// What a series takes beside its names: the nodes of the tree, the allocations.
const OVERHEAD: usize = 128;

/// What a member of a set takes.
const MEMBER: usize = 16;

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    name: String,
    kind: Kind,
    labels: Vec<(String, String)>,
}

#[derive(Debug)]
enum State {
    Sum(f64),
    Level(f64),
    Summary(Summary),
    Members(HashSet<u64>),
}

#[derive(Debug, Default)]
struct Summary {
    count: f64,
    sum: f64,
    latest: Vec<f64>,
    next: usize,
}

/// All series of a container.
#[derive(Debug)]
pub(crate) struct Series {
    limits: Limits,
    all: BTreeMap<Key, State>,
    bytes: usize,
    received: u64,
    malformed: u64,
    beyond_series: u64,
    beyond_bytes: u64,
    /// What the kernel dropped, because nobody took it in time.
    pub(crate) dropped: u64,
}

impl Series {
    pub(crate) fn new(limits: Limits) -> Self {
        let (received, malformed, beyond_series, beyond_bytes, dropped) = (0, 0, 0, 0, 0);
        Self {
            limits,
            all: BTreeMap::new(),
            bytes: 0,
            received,
            malformed,
            beyond_series,
            beyond_bytes,
            dropped,
        }
    }

    /// Takes the lines of a datagram.
    pub(crate) fn take(&mut self, datagram: &[u8]) {
        let text = String::from_utf8_lossy(datagram);
        for line in text.lines().map(str::trim_end).filter(|line| !line.is_empty()) {
            self.received += 1;
            match Line::parse(line) {
                Some(line) => self.add(&line),
                None => self.malformed += 1,
            }
        }
    }

    fn add(&mut self, line: &Line<'_>) {
        let key = Key { name: metric(line.name, line.kind), kind: line.kind, labels: labels(&line.tags) };
        if !self.all.contains_key(&key) {
            let strings =
                |(name, value): &(String, String)| name.len() + value.len() + size_of::<(String, String)>();
            let latest = if matches!(line.kind, Kind::Timer | Kind::Histogram) {
                LATEST * size_of::<f64>()
            } else {
                0
            };
            let size = OVERHEAD + key.name.len() + key.labels.iter().map(strings).sum::<usize>() + latest;
            if self.all.len() >= self.limits.series {
                self.beyond_series += 1;
                return;
            }
            if self.bytes + size > self.limits.bytes {
                self.beyond_bytes += 1;
                return;
            }
            self.bytes += size;
        }
        let room = self.limits.bytes - self.bytes;
        let state = self.all.entry(key).or_insert_with(|| State::new(line.kind));
        let (taken, refused) = state.add(line, room);
        self.bytes += taken;
        self.beyond_bytes += refused;
    }

    /// All of it.
    pub(crate) fn families(&self) -> Vec<Family> {
        let mut families: Vec<Family> = Vec::new();
        for (key, state) in &self.all {
            // Two kinds can have one name; whoever prints all metrics makes one of them.
            if !families
                .last()
                .is_some_and(|last| last.name == key.name && last.kind == key.kind.in_prometheus())
            {
                families.push(family(
                    &key.name,
                    key.kind.in_prometheus(),
                    "told by programs in StatsD's format",
                ));
            }
            if let Some(family) = families.last_mut() {
                state.tell(&key.labels, &mut family.samples);
            }
        }
        families.extend(self.own());
        families
    }

    fn own(&self) -> [Family; 4] {
        let one = |name, kind, help, value| {
            let mut family = family(name, kind, help);
            family.samples.push(sample("", &[], value));
            family
        };
        let mut refused =
            family("coracle_statsd_refused_total", "counter", "lines and datagrams that were not taken");
        let reasons = [
            ("malformed", self.malformed),
            ("series", self.beyond_series),
            ("bytes", self.beyond_bytes),
            ("dropped", self.dropped),
        ];
        refused.samples = reasons
            .map(|(reason, count)| sample("", &[("reason".to_owned(), reason.to_owned())], count as f64))
            .to_vec();
        [
            one("coracle_statsd_lines_total", "counter", "lines that were received", self.received as f64),
            refused,
            one("coracle_statsd_series", "gauge", "series that are kept", self.all.len() as f64),
            one("coracle_statsd_bytes", "gauge", "what they take", self.bytes as f64),
        ]
    }
}

fn family(name: &str, kind: &str, help: &str) -> Family {
    Family { name: name.to_owned(), kind: kind.to_owned(), help: help.to_owned(), samples: Vec::new() }
}

fn sample(suffix: &str, labels: &[(String, String)], value: f64) -> Sample {
    // JSON knows no infinity.
    let value = value.clamp(f64::MIN, f64::MAX);
    Sample { suffix: suffix.to_owned(), labels: labels.to_vec(), value }
}

impl Kind {
    fn in_prometheus(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge | Self::Set => "gauge",
            Self::Timer | Self::Histogram => "summary",
        }
    }
}

impl State {
    fn new(kind: Kind) -> Self {
        match kind {
            Kind::Counter => Self::Sum(0.0),
            Kind::Gauge => Self::Level(0.0),
            Kind::Timer | Kind::Histogram => Self::Summary(Summary::default()),
            Kind::Set => Self::Members(HashSet::new()),
        }
    }

    /// Adds the values of a line, where there are `room` bytes left. Returns how many bytes that took, and how many values
    /// were refused.
    fn add(&mut self, line: &Line<'_>, room: usize) -> (usize, u64) {
        let (mut taken, mut refused) = (0, 0);
        for value in &line.values {
            match (&mut *self, value) {
                (Self::Sum(sum), Value::Number(number)) => *sum += number / line.rate,
                (Self::Level(level), Value::Number(number)) => *level = *number,
                (Self::Level(level), Value::Change(change)) => *level += change,
                (Self::Summary(summary), Value::Number(number)) => {
                    let unit = if line.kind == Kind::Timer { 1e-3 } else { 1.0 };
                    summary.add(number * unit, line.rate);
                }
                (Self::Members(members), Value::Member(member)) => {
                    let mut hasher = DefaultHasher::new();
                    member.hash(&mut hasher);
                    let hash = hasher.finish();
                    if members.contains(&hash) {
                        continue;
                    }
                    if taken + MEMBER > room {
                        refused += 1;
                        continue;
                    }
                    members.insert(hash);
                    taken += MEMBER;
                }
                _ => {}
            }
        }
        (taken, refused)
    }

    fn tell(&self, labels: &[(String, String)], samples: &mut Vec<Sample>) {
        match self {
            Self::Sum(value) | Self::Level(value) => samples.push(sample("", labels, *value)),
            Self::Members(members) => samples.push(sample("", labels, members.len() as f64)),
            Self::Summary(summary) => summary.tell(labels, samples),
        }
    }
}

impl Summary {
    fn add(&mut self, value: f64, rate: f64) {
        self.count += 1.0 / rate;
        self.sum += value / rate;
        if self.latest.len() < LATEST {
            self.latest.push(value);
        } else {
            self.latest[self.next] = value;
            self.next = (self.next + 1) % LATEST;
        }
    }

    fn tell(&self, labels: &[(String, String)], samples: &mut Vec<Sample>) {
        let mut sorted = self.latest.clone();
        sorted.sort_unstable_by(f64::total_cmp);
        for quantile in QUANTILES {
            let rank = (quantile * sorted.len() as f64).ceil() as usize;
            let Some(value) = sorted.get(rank.saturating_sub(1)) else { continue };
            let mut labels = labels.to_vec();
            labels.push(("quantile".to_owned(), quantile.to_string()));
            samples.push(sample("", &labels, *value));
        }
        samples.push(sample("_sum", labels, self.sum));
        samples.push(sample("_count", labels, self.count));
    }
}

/// The name of a metric: `statsd_app_requests_total` for the counter `app.requests`.
fn metric(name: &str, kind: Kind) -> String {
    let name = format!("statsd_{}", plain(name));
    match kind {
        Kind::Counter if !name.ends_with("_total") => name + "_total",
        Kind::Timer if !name.ends_with("_seconds") => name + "_seconds",
        _ => name,
    }
}

/// Tags as labels, each name once; a later one goes before an earlier one. Names that are taken are told as Prometheus
/// tells them.
fn labels(tags: &[(&str, &str)]) -> Vec<(String, String)> {
    let name = |tag: &str| {
        let name = plain(tag);
        let is_taken = ["id", "pod", "quantile"].contains(&name.as_str());
        let is_label =
            name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') && !name.starts_with("__");
        if is_taken || !is_label { format!("exported_{name}") } else { name }
    };
    let labels: BTreeMap<String, String> =
        tags.iter().map(|(tag, value)| (name(tag), (*value).to_owned())).collect();
    labels.into_iter().collect()
}

fn plain(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(lines: &str, limits: Limits) -> Vec<String> {
        let mut series = Series::new(limits);
        series.take(lines.as_bytes());
        let families = series.families();
        let samples = families.iter().flat_map(|family| family.samples.iter().map(move |s| (family, s)));
        samples
            .map(|(family, sample)| {
                let labels: Vec<String> = sample.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
                format!("{}{}{{{}}} {}", family.name, sample.suffix, labels.join(","), sample.value)
            })
            .collect()
    }

    fn has(told: &[String], wanted: &[&str]) {
        for wanted in wanted {
            assert!(told.iter().any(|line| line == wanted), "{wanted} is not in {told:#?}");
        }
    }

    #[test]
    fn counters_add_up_gauges_change_sets_count_and_timers_are_summed_up() {
        let lines = "a.b:1|c\na.b:2|c|@0.5\ng:10|g\ng:-3|g\nu:x|s\nu:y:x|s\nt:100:300|ms\nsize:7|h\nbroken\n";
        has(
            &told(lines, Limits::default()),
            &[
                "statsd_a_b_total{} 5",
                "statsd_g{} 7",
                "statsd_u{} 2",
                "statsd_t_seconds{quantile=0.5} 0.1",
                "statsd_t_seconds{quantile=0.99} 0.3",
                "statsd_t_seconds_sum{} 0.4",
                "statsd_t_seconds_count{} 2",
                "statsd_size_sum{} 7",
                "coracle_statsd_lines_total{} 9",
                "coracle_statsd_refused_total{reason=malformed} 1",
            ],
        );
    }

    #[test]
    fn tags_make_series_and_never_take_the_names_of_ours() {
        let lines = "a:1|c|#b:2,id:me\na:1|c|#b:3,0x:y,b:4\na:5|c|#id:me,b:2";
        has(
            &told(lines, Limits::default()),
            &["statsd_a_total{b=2,exported_id=me} 6", "statsd_a_total{b=4,exported_0x=y} 1"],
        );
    }

    #[test]
    fn what_is_beyond_the_limits_is_refused_and_counted_and_the_rest_goes_on() {
        let lines: String = (0..10).map(|n| format!("m{n}:1|c\n")).collect();
        let told_by_count = told(&(lines.clone() + "m0:1|c"), Limits { series: 3, ..Limits::default() });
        let wanted = [
            "statsd_m0_total{} 2",
            "coracle_statsd_refused_total{reason=series} 7",
            "coracle_statsd_series{} 3",
        ];
        has(&told_by_count, &wanted);
        let told_by_size = told(&lines, Limits { bytes: 500, ..Limits::default() });
        has(&told_by_size, &["coracle_statsd_refused_total{reason=bytes} 7"]);
        let members: String = (0..1000).map(|n| format!("s:{n}|s\n")).collect();
        let told_by_members = told(&members, Limits { bytes: 500, ..Limits::default() });
        let bytes =
            told_by_members.iter().find_map(|line| line.strip_prefix("coracle_statsd_bytes{} ")).unwrap();
        assert!(bytes.parse::<usize>().unwrap() <= 500, "{told_by_members:#?}");
    }
}
