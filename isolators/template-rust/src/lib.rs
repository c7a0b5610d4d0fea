//! `example/audit`: writes a line of JSON for every launch, and tells how many it has written for a container.
//!
//! Configure the file with `options = { log = "/var/log/coracle/audit.jsonl" }`, and grant its directory with
//! `writable = ["/var/log/coracle"]`.

#![forbid(unsafe_code)]

use std::fs::{OpenOptions, read_to_string};
use std::io::Write;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use coracle_isolator::{Error, Handles, Isolator, Result, Usage, export_isolator};
use serde_json::{Map, Value, json};

#[derive(Debug)]
struct Audit {
    log: PathBuf,
}

impl Default for Audit {
    fn default() -> Self {
        Self { log: "/var/log/coracle/audit.jsonl".into() }
    }
}

impl Audit {
    /// One write for a line: lines of launches at one time do not mix.
    fn write(&self, line: &Value) -> Result<()> {
        let log = OpenOptions::new().append(true).create(true).open(&self.log);
        let written = log.and_then(|mut log| log.write_all(format!("{line}\n").as_bytes()));
        written.map_err(|e| Error::new(format!("writing {}: {e}", self.log.display())))
    }
}

impl Isolator for Audit {
    fn name(&self) -> &str {
        "example/audit"
    }

    fn configure(&mut self, options: &Map<String, Value>) -> Result<()> {
        for (key, value) in options {
            match (key.as_str(), value.as_str()) {
                ("log", Some(path)) => self.log = path.into(),
                _ => return Err(Error::new(format!("option {key:?} is not known; there is log, a path"))),
            }
        }
        Ok(())
    }

    fn isolate(&self, container: &Handles<'_>) -> Result<()> {
        let time = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
        let process = container.spec.process().as_ref();
        let args = process.and_then(|process| process.args().clone()).unwrap_or_default();
        let user = process.map_or(0, |process| process.user().uid());
        self.write(&json!({"time": time, "container": container.id, "args": args, "uid": user}))
    }

    fn usage(&self, container: &Handles<'_>) -> Result<Usage> {
        let log = read_to_string(&self.log).unwrap_or_default();
        let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let launches = lines.filter(|line| line["container"] == container.id).count();
        let mut usage = Usage::default();
        usage.other.insert("example/audit/launches".to_owned(), launches as f64);
        Ok(usage)
    }
}

export_isolator!(Audit::default());
