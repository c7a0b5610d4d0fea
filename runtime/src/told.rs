//! How failures and warnings reach people and programs: the only place that prints them.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;

use crate::cli::Global;
use crate::error::Error;
use crate::time;

impl Global {
    /// Prints a failure, and writes it to the log where there is one: clients of runc read the log.
    pub fn tell(&self, error: &Error) {
        print(&format!("error: {error}"));
        let json = error.to_json(&time::now());
        self.log("error", json["msg"].as_str().unwrap_or_default(), &json);
    }

    /// Tells what could not be done and did not stop the command: in the log, or where there is none on the
    /// standard error.
    pub fn warn(&self, warnings: impl IntoIterator<Item = String>) {
        for warning in warnings {
            let json = serde_json::json!({"level": "warning", "time": time::now(), "msg": warning});
            if self.log.is_none() {
                print(&format!("warning: {warning}"));
            }
            self.log("warning", &warning, &json);
        }
    }

    /// Tells what is being done, where `--debug` asks for it.
    pub fn debug(&self, doing: impl FnOnce() -> String) {
        if !self.debug {
            return;
        }
        let text = doing();
        let json = serde_json::json!({"level": "debug", "time": time::now(), "msg": text});
        if self.log.is_none() {
            let line = self.line("debug", &text, &json);
            let _ = writeln!(std::io::stderr(), "{line}");
        }
        self.log("debug", &text, &json);
    }

    fn line(&self, level: &str, text: &str, json: &serde_json::Value) -> String {
        if self.log_json {
            return json.to_string();
        }
        format!("time={:?} level={level} msg={text:?}", time::now())
    }

    fn log(&self, level: &str, text: &str, json: &serde_json::Value) {
        let Some(path) = &self.log else { return };
        let line = self.line(level, text, json);
        #[expect(clippy::disallowed_methods, reason = "the operator named the log's path")]
        let log = std::fs::OpenOptions::new().append(true).create(true).mode(0o600).open(path);
        if let Err(failure) = log.and_then(|mut log| log.write_all(format!("{line}\n").as_bytes())) {
            print(&format!("error: the log {path:?} can't be written: {failure}"));
        }
    }
}

/// In one write, so that lines of processes that share the stream do not mix.
fn print(line: &str) {
    let _ = std::io::stderr().write_all(format!("coracle: {line}\n").as_bytes());
}
