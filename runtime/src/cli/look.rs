//! `ps`, `list`, `events` and `metrics`, which only look.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use lexopt::prelude::*;

use super::Command;
use super::words::{self, need_id, rest, text, usage};
use crate::error::Result;

/// The options of `ps`.
#[derive(Debug, Clone, Default)]
pub struct Ps {
    /// The container.
    pub id: String,
    /// Print the PIDs as a JSON array.
    pub json: bool,
    /// Arguments for ps(1).
    pub args: Vec<String>,
}

/// The options of `list`.
#[derive(Debug, Clone, Default)]
pub struct List {
    /// Print JSON.
    pub json: bool,
    /// Print IDs only.
    pub quiet: bool,
}

/// The options of `events`.
#[derive(Debug, Clone)]
pub struct Events {
    /// The container.
    pub id: String,
    /// Print what it uses once, and nothing more.
    pub once: bool,
    /// How often to print what it uses.
    pub interval: Duration,
}

/// The options of `metrics`: where it serves them, where it does not print them.
#[derive(Debug, Clone, Default)]
pub struct Listen {
    /// A Unix socket.
    pub socket: Option<PathBuf>,
    /// A port of the loopback network.
    pub address: Option<SocketAddr>,
}

/// The options of `metrics`.
pub(super) fn metrics(parser: &mut lexopt::Parser) -> Result<Listen> {
    let mut listen = Listen::default();
    while let Some(arg) = parser.next()? {
        match arg {
            Long("socket") => listen.socket = Some(parser.value()?.into()),
            Long("listen") => {
                let address = text(parser)?;
                let parsed: Option<SocketAddr> = address.parse().ok();
                let local = parsed.filter(|address| address.ip().is_loopback()).ok_or_else(|| {
                    usage(format!("--listen {address:?} is no address of the loopback network with a port"))
                        .hint("for others, put a server before it that knows whom it may tell")
                })?;
                listen.address = Some(local);
            }
            other => return Err(other.unexpected().into()),
        }
    }
    Ok(listen)
}

/// The options of `ps`.
pub(super) fn ps(parser: &mut lexopt::Parser) -> Result<Command> {
    let mut ps = Ps::default();
    while let Some(arg) = parser.next()? {
        match arg {
            Short('f') | Long("format") => ps.json = words::is_json(parser)?,
            Value(id) => {
                ps.id = words::id(id)?;
                ps.args = rest(parser)?;
            }
            other => return Err(other.unexpected().into()),
        }
    }
    need_id(&ps.id, "ps")?;
    Ok(Command::Ps(ps))
}

/// The options of `list`.
pub(super) fn list(parser: &mut lexopt::Parser) -> Result<Command> {
    let mut list = List::default();
    while let Some(arg) = parser.next()? {
        match arg {
            Short('f') | Long("format") => list.json = words::is_json(parser)?,
            Short('q') => list.quiet = true,
            Long("quiet") => list.quiet = words::switch(parser, "quiet")?,
            other => return Err(other.unexpected().into()),
        }
    }
    Ok(Command::List(list))
}

/// The options of `events`.
pub(super) fn events(parser: &mut lexopt::Parser) -> Result<Events> {
    let mut events = Events { id: String::new(), once: false, interval: Duration::from_secs(5) };
    while let Some(arg) = parser.next()? {
        match arg {
            Long("stats") => events.once = words::switch(parser, "stats")?,
            Long("interval") => events.interval = interval(&text(parser)?)?,
            Value(id) if events.id.is_empty() => events.id = words::id(id)?,
            other => return Err(other.unexpected().into()),
        }
    }
    need_id(&events.id, "events")?;
    Ok(events)
}

/// A length of time as Go writes it, in parts of one unit each: `5s`, `1m30s`, `500ms`.
fn interval(text: &str) -> Result<Duration> {
    const UNITS: [(&str, f64); 6] =
        [("h", 3600.0), ("ms", 1e-3), ("us", 1e-6), ("ns", 1e-9), ("m", 60.0), ("s", 1.0)];
    let mut seconds = 0.0;
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let unit = UNITS.iter().find(|(unit, _)| rest[end..].starts_with(unit));
        let (Ok(number), Some((unit, length))) = (rest[..end].parse::<f64>(), unit) else {
            return Err(
                usage(format!("--interval {text:?} is no length of time")).hint("write it like 5s or 1m30s")
            );
        };
        seconds += number * length;
        rest = &rest[end + unit.len()..];
    }
    let length = Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX);
    if length.is_zero() {
        return Err(usage(format!("--interval {text:?} is not greater than 0")));
    }
    Ok(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_written_as_go_writes_them() {
        for (text, milliseconds) in
            [("5s", 5000), ("1m30s", 90_000), ("500ms", 500), ("1.5s", 1500), ("1h", 3_600_000)]
        {
            assert_eq!(interval(text).unwrap(), Duration::from_millis(milliseconds), "{text}");
        }
        for (bad, words) in [
            ("5", "no length"),
            ("s", "no length"),
            ("5x", "no length"),
            ("0s", "not greater"),
            ("", "not greater"),
        ] {
            let error = interval(bad).unwrap_err().to_string();
            assert!(error.contains(words), "{bad}: {error}");
        }
    }
}
