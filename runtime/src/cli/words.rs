//! The words of a command line: numbers, sizes, signals, what is left.

use std::ffi::OsString;
use std::path::PathBuf;

use lexopt::prelude::*;

use crate::cgroup::Rootless;
use crate::error::{Code, Error, Result};

/// The one argument of a command that takes nothing but a container's ID.
pub(super) fn only_id(parser: &mut lexopt::Parser, command: &str) -> Result<String> {
    let mut id = String::new();
    while let Some(arg) = parser.next()? {
        match arg {
            Value(value) if id.is_empty() => id = self::id(value)?,
            other => return Err(other.unexpected().into()),
        }
    }
    need_id(&id, command)?;
    Ok(id)
}

/// A container's ID. An empty one is refused at once, for the word after it would be taken for the ID: `kill "$id" web`
/// with an unset variable means no container of the name `web`.
pub(super) fn id(value: OsString) -> Result<String> {
    let id = value.string()?;
    not_empty(&id, "the container's ID")?;
    Ok(id)
}

pub(super) fn not_empty(name: &str, what: &str) -> Result<()> {
    if name.is_empty() {
        return Err(usage(format!("{what} is empty")).hint("is a variable unset?"));
    }
    Ok(())
}

pub(super) fn need_id(id: &str, command: &str) -> Result<()> {
    if id.is_empty() {
        return Err(usage(format!("{command} needs a container's ID")).hint("see coracle help"));
    }
    Ok(())
}

/// Whether the switch `name`, whose long name has just been read, is on: programs in Go may write `--name=true` and
/// `--name=false`.
pub(super) fn switch(parser: &mut lexopt::Parser, name: &str) -> Result<bool> {
    let Some(value) = parser.optional_value() else { return Ok(true) };
    match value.to_str() {
        Some("true") => Ok(true),
        Some("false") => Ok(false),
        _ => Err(usage(format!("--{name} {value:?} is neither true nor false"))),
    }
}

/// Whether the value of `--format` asks for JSON rather than for a table.
pub(super) fn is_json(parser: &mut lexopt::Parser) -> Result<bool> {
    match text(parser)?.as_str() {
        "json" => Ok(true),
        "table" => Ok(false),
        other => Err(usage(format!("--format {other:?} is neither table nor json"))),
    }
}

/// What follows `-n`, which can only be `-no-subreaper`: containerd writes that with one dash, as Go's flags may be.
/// There is no subreaper here to go without.
pub(super) fn no_subreaper(parser: &mut lexopt::Parser) -> Result<()> {
    match parser.optional_value() {
        Some(rest) if rest == "o-subreaper" => Ok(()),
        _ => Err(Short('n').unexpected().into()),
    }
}

/// Where `--log` has failures written. crun's other places are refused: a file of such a name is read by nobody.
pub(super) fn log(value: OsString) -> Result<PathBuf> {
    let (kind, path) = value.to_str().and_then(|text| text.split_once(':')).unwrap_or_default();
    match kind {
        "file" => Ok(path.into()),
        "journald" | "syslog" => Err(usage(format!("--log {value:?}: nothing is written to {kind}"))
            .hint("name a file; what goes to the standard error a service's journal has")),
        _ => Ok(value.into()),
    }
}

/// For a command without arguments.
pub(super) fn nothing(parser: &mut lexopt::Parser) -> Result<()> {
    parser.next()?.map_or(Ok(()), |arg| Err(arg.unexpected().into()))
}

/// What `--rootless` says.
pub(super) fn rootless(value: &str) -> Result<Rootless> {
    match value {
        "true" => Ok(Rootless::Yes),
        "false" => Ok(Rootless::No),
        "auto" => Ok(Rootless::Auto),
        other => Err(usage(format!("--rootless {other:?} is neither true, false nor auto"))),
    }
}

/// Whether the log's level `level` shows what is done.
pub(super) fn is_debug(level: &str) -> Result<bool> {
    match level {
        "debug" => Ok(true),
        "warning" | "error" => Ok(false),
        other => Err(usage(format!("--log-level {other:?} is none of debug, warning, error"))),
    }
}

/// All that is left, as it is: what looks like an option belongs to the container's program. A first `--`
/// only says so.
pub(super) fn rest(parser: &mut lexopt::Parser) -> Result<Vec<String>> {
    let mut rest: Vec<OsString> = parser.raw_args()?.collect();
    if rest.first().is_some_and(|first| first == "--") {
        rest.remove(0);
    }
    rest.into_iter().map(|arg| Ok(arg.string()?)).collect()
}

pub(super) fn text(parser: &mut lexopt::Parser) -> Result<String> {
    Ok(parser.value()?.string()?)
}

pub(super) fn usage(why: impl Into<String>) -> Error {
    Error::new(Code::Usage, why)
}

pub(super) fn parsed<T: std::str::FromStr<Err: std::fmt::Display>>(name: &str, value: &str) -> Result<T> {
    value.parse().map_err(|e| usage(format!("--{name} {value:?}: {e}")))
}

/// A number of bytes: `512k`, `64m`, `1.5g`, `1GiB`, or plain. Units are powers of 1024, as Docker has them.
pub(super) fn size(name: &str, value: &str) -> Result<i64> {
    let lower = value.to_ascii_lowercase();
    let short = ["ib", "b"].iter().find_map(|end| lower.strip_suffix(end)).unwrap_or(&lower);
    let unit = "kmgtp".find(short.chars().last().unwrap_or_default());
    let (digits, factor) =
        unit.map_or((short, 1), |unit| (&short[..short.len() - 1], 1_i64 << (10 * (unit + 1))));
    let whole = digits.parse::<i64>().ok().and_then(|n| n.checked_mul(factor));
    let size = whole.or_else(|| fraction(digits, factor)).filter(|n| *n > 0);
    size.ok_or_else(|| usage(format!("--{name} {value:?} is no size")).hint("write it like 64m or 1g"))
}

fn fraction(digits: &str, factor: i64) -> Option<i64> {
    let is_plain = digits.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    let bytes = digits.parse::<f64>().ok().filter(|_| is_plain && digits.contains('.'))? * factor as f64;
    (bytes < 2_f64.powi(62)).then_some(bytes as i64)
}

/// A signal by number or name, with or without `SIG`.
pub(crate) fn signal(text: &str) -> Result<i32> {
    if let Ok(number) = text.parse::<i32>()
        && (0..=64).contains(&number)
    {
        return Ok(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let named: Option<nix::sys::signal::Signal> = format!("SIG{name}").parse().ok();
    let number = named.map(|signal| signal as i32).or_else(|| realtime_signal(name));
    number.ok_or_else(|| usage(format!("there is no signal {text:?}")))
}

/// `RTMIN`, `RTMIN+3`, `RTMAX-1`: the signals without names of their own (signal(7)).
fn realtime_signal(name: &str) -> Option<i32> {
    // As programs on glibc count them, which is what container programs and other runtimes mean.
    let (first, last) = (34, 64);
    let number = match (name.strip_prefix("RTMIN"), name.strip_prefix("RTMAX")) {
        (Some(""), _) => Some(first),
        (_, Some("")) => Some(last),
        (Some(plus), _) => plus.strip_prefix('+')?.parse::<i32>().ok()?.checked_add(first),
        (_, Some(minus)) => last.checked_sub(minus.strip_prefix('-')?.parse::<i32>().ok()?),
        _ => None,
    };
    number.filter(|number| (first..=last).contains(number))
}

impl From<lexopt::Error> for Error {
    fn from(error: lexopt::Error) -> Self {
        let why = match &error {
            // podman learns from the words of runc or crun that a runtime has an option.
            lexopt::Error::MissingValue { option: Some(option) } => {
                format!("option '{option}' requires an argument")
            }
            other => other.to_string(),
        };
        usage(why).hint("see coracle help")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_known_by_name_and_number() {
        for (text, number) in [
            ("9", 9),
            ("KILL", 9),
            ("SIGTERM", 15),
            ("sigint", 2),
            ("0", 0),
            ("64", 64),
            ("SIGRTMIN", 34),
            ("RTMIN+3", 37),
            ("sigrtmax-1", 63),
        ] {
            assert_eq!(signal(text).unwrap(), number, "{text}");
        }
        for bad in ["SIGNONE", "65", "-1", "RTMIN+31", "RTMIN-1", "RTMIN+", "SIGSIGKILL", ""] {
            let error = signal(bad).unwrap_err().to_string();
            assert!(error.contains(&format!("no signal {bad:?}")), "{error}");
        }
    }

    #[test]
    fn sizes_have_units() {
        for (text, bytes) in
            [("64m", 64 << 20), ("4096", 4096), ("1.5G", 3 << 29), ("2KiB", 2048), ("3kb", 3072), ("7b", 7)]
        {
            assert_eq!(size("memory", text).unwrap(), bytes, "{text}");
        }
        for bad in ["", "m", "-1", "1x", "99999999999g", "1e3", "1.5.5g", "infg", "9999999.5p", "0"] {
            let error = size("memory", bad).unwrap_err().to_string();
            assert!(error.contains(&format!("--memory {bad:?} is no size")), "{error}");
        }
    }
}
