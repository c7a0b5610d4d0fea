//! How a transfer is shown: bars on a terminal, a line for each event elsewhere, JSON for programs.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write, stderr};
use std::sync::{Mutex, PoisonError};

use coracle_image::digest::Digest;
use coracle_image::registry::{Event, Report, Silent};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use serde_json::json;

/// What is shown of the progress, on standard error.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Progress {
    /// Bars on a terminal, lines elsewhere.
    #[default]
    Usual,
    /// Nothing.
    Quiet,
    /// A line of JSON for each event.
    Json,
}

/// Who is told.
pub(crate) fn report(progress: Progress) -> Box<dyn Report> {
    match progress {
        Progress::Quiet => Box::new(Silent),
        Progress::Json => Box::new(Lines(json_line)),
        Progress::Usual if stderr().is_terminal() => Box::new(Bars::new()),
        Progress::Usual => Box::new(Lines(plain_line)),
    }
}

/// A line for each event that is worth one.
struct Lines(fn(&Event) -> Option<String>);

impl Report for Lines {
    fn event(&self, event: &Event) {
        if let Some(line) = self.0(event) {
            // Whoever has closed standard error doesn't want to know.
            let _ = writeln!(stderr(), "{line}");
        }
    }
}

fn plain_line(event: &Event) -> Option<String> {
    Some(match event {
        Event::Resolved(digest) => format!("image {digest}"),
        Event::Started { digest, size, have: 0 } => format!("{digest}: {size} bytes"),
        Event::Started { digest, size, have } if have == size => format!("{digest}: already there"),
        Event::Started { digest, size, have } => {
            format!("{digest}: {size} bytes, {have} of them already there")
        }
        Event::Moved(..) => return None,
        Event::Finished(digest) => format!("{digest}: done"),
        Event::Retry { why, wait } => format!("{why}; once more in {:.1} s", wait.as_secs_f64()),
    })
}

fn json_line(event: &Event) -> Option<String> {
    let value = match event {
        Event::Resolved(digest) => json!({ "event": "resolved", "digest": digest }),
        Event::Started { digest, size, have } => {
            json!({ "event": "started", "digest": digest, "size": size, "have": have })
        }
        Event::Moved(digest, bytes) => json!({ "event": "moved", "digest": digest, "bytes": bytes }),
        Event::Finished(digest) => json!({ "event": "finished", "digest": digest }),
        Event::Retry { why, wait } => json!({ "event": "retry", "why": why, "wait": wait.as_secs_f64() }),
    };
    Some(value.to_string())
}

/// A bar for each blob, with its speed and the time that remains.
struct Bars {
    all: MultiProgress,
    bars: Mutex<BTreeMap<Digest, ProgressBar>>,
}

impl Bars {
    fn new() -> Self {
        Self { all: MultiProgress::new(), bars: Mutex::default() }
    }

    fn with(&self, digest: &Digest, change: impl FnOnce(&ProgressBar)) {
        if let Some(bar) = self.bars.lock().unwrap_or_else(PoisonError::into_inner).get(digest) {
            change(bar);
        }
    }

    fn start(&self, digest: &Digest, size: u64, have: u64) {
        const TEMPLATE: &str =
            "{prefix} [{bar:24}] {bytes:>10}/{total_bytes:10} {bytes_per_sec:>12} {eta:>4} {msg}";
        // The template is ours, and a test reads it.
        let style = ProgressStyle::with_template(TEMPLATE).unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = self.all.add(ProgressBar::new(size).with_style(style.progress_chars("=> ")));
        bar.set_prefix(digest.hex()[..12].to_owned());
        bar.set_position(have);
        // What was there already has no speed.
        bar.reset_eta();
        self.bars.lock().unwrap_or_else(PoisonError::into_inner).insert(digest.clone(), bar);
    }
}

impl Report for Bars {
    fn event(&self, event: &Event) {
        match event {
            Event::Resolved(_) => {}
            Event::Started { digest, size, have } => self.start(digest, *size, *have),
            Event::Moved(digest, bytes) => self.with(digest, |bar| bar.inc(*bytes)),
            Event::Finished(digest) => self.with(digest, |bar| bar.finish_with_message("done")),
            Event::Retry { why, .. } => {
                let _ = self.all.println(why);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_line_tells_of_all_events_but_the_bytes() {
        let digest = Digest::of(b"");
        assert_eq!(plain_line(&Event::Moved(digest.clone(), 1)), None);
        let event = Event::Started { digest: digest.clone(), size: 5, have: 2 };
        assert_eq!(plain_line(&event).unwrap(), format!("{digest}: 5 bytes, 2 of them already there"));
        let event = Event::Retry { why: "it broke off".to_owned(), wait: Duration::from_millis(250) };
        assert_eq!(plain_line(&event).unwrap(), "it broke off; once more in 0.2 s");
    }

    #[test]
    fn events_are_json_for_programs() {
        let line = json_line(&Event::Moved(Digest::of(b""), 7)).unwrap();
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!((&value["event"], &value["bytes"]), (&json!("moved"), &json!(7)));
    }
}
