//! `isolator`: which isolators there are, and what is wrong with a plugin.

use std::fmt::Write;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Instant;

use coracle_isolator::{CgroupVersion, Config, Isolator, Kind, States};
use coracle_isolator_host::config::check_writers;
use coracle_isolator_host::plugin::{self, Plugin};
use coracle_isolator_host::{Listed, Registry, Settings};
use coracle_sys::file::{self, Resolve};
use oci_spec::runtime::Spec;
use serde_json::{Map, Value, json};

use crate::cli::{Global, Isolators};
use crate::error::{Code, Context, Error, Result};
use crate::isolators;

/// Does what is asked, and returns 1 where something is wrong with the plugin that was to be checked.
///
/// # Errors
/// Where the configuration can't be read, or there is no such isolator or file.
pub fn isolator(global: &Global, wanted: &Isolators) -> Result<u8> {
    match wanted {
        Isolators::List { json } => list(global, *json),
        Isolators::Inspect(name) => inspect(global, name),
        Isolators::Status(id) => status(global, id),
        Isolators::Check { file, options } => check(global, file, options),
    }
}

fn list(global: &Global, json: bool) -> Result<u8> {
    let registry = isolators::all(global)?;
    if json {
        let all: Vec<Value> = registry.list().map(|listed| told(&listed)).collect();
        crate::print(&format!("{:#}\n", Value::Array(all)));
        return Ok(0);
    }
    let mut table = format!("{:<28}{:<12}{}\n", "ISOLATOR", "VERSION", "FROM");
    for listed in registry.list() {
        let (version, from) = match (&listed.plugin, listed.broken) {
            (None, None) => (env!("CARGO_PKG_VERSION").to_owned(), "built in".to_owned()),
            (_, Some(broken)) => (String::new(), broken.to_string()),
            (Some((about, path)), _) => (about.version.clone(), path.display().to_string()),
        };
        let _ = writeln!(table, "{:<28}{version:<12}{from}", listed.name);
    }
    crate::print(&table);
    Ok(0)
}

fn inspect(global: &Global, name: &str) -> Result<u8> {
    let registry = isolators::all(global)?;
    let found = registry.list().find(|listed| listed.name == name).ok_or_else(|| {
        Error::new(Code::NotFound, format!("there is no isolator {name:?}")).hint("see coracle isolator ls")
    })?;
    crate::print(&format!("{:#}\n", told(&found)));
    Ok(0)
}

fn status(global: &Global, id: &str) -> Result<u8> {
    let status = super::stats::ask(global, id, Registry::status)?;
    crate::print(&format!("{:#}\n", json!(status)));
    Ok(0)
}

fn told(listed: &Listed<'_>) -> Value {
    let mut told = json!({"name": listed.name, "builtIn": listed.settings.is_none()});
    if let Some((about, path)) = &listed.plugin {
        told["file"] = json!(path);
        told["version"] = json!(about.version);
        told["supports"] = json!(about.supports);
        told["calls"] = json!(about.calls);
        told["after"] = json!(about.after);
        told["before"] = json!(about.before);
    }
    if let Some(settings) = listed.settings {
        told["optional"] = json!(settings.optional);
        told["inline"] = json!(settings.inline);
        told["deadline"] = json!(settings.deadline().as_secs_f64());
        told["granted"] = json!({
            "capabilities": settings.capabilities, "writable": settings.writable, "programs": settings.programs,
            "cgroups": settings.cgroups, "sockets": settings.sockets, "hooks": settings.hooks,
        });
        told["options"] = json!(settings.options);
    }
    if let Some(broken) = listed.broken {
        told["error"] = json!(broken.to_string());
    }
    told
}

/// What is found out about a plugin.
#[derive(Default)]
struct Findings {
    text: String,
    problems: Vec<String>,
}

impl Findings {
    fn say(&mut self, key: &str, value: &str) {
        let _ = writeln!(self.text, "{key:<12}{value}");
    }

    /// Makes a call twice, tells how long each took, and what went wrong. The first finds both processes cold.
    fn try_call<T>(&mut self, name: &str, call: impl Fn() -> coracle_isolator::Result<T>) -> Option<T> {
        let timed = || {
            let begun = Instant::now();
            call().map(|value| (value, begun.elapsed().as_micros()))
        };
        match timed().and_then(|(_, first)| timed().map(|(value, again)| (value, first, again))) {
            Ok((value, first, again)) => {
                self.say(name, &format!("{first} µs, again {again} µs"));
                Some(value)
            }
            Err(error) => {
                self.say(name, "failed");
                self.problems.push(format!("{name}: {error}"));
                None
            }
        }
    }
}

/// Loads the plugin in a process that is granted nothing, and makes each call that has no side effects, or that must
/// do no harm for a container that does not exist.
fn check(global: &Global, path: &Path, options: &Map<String, Value>) -> Result<u8> {
    let opened = file::open(file::CWD, path, libc::O_RDONLY, 0, Resolve::Host)
        .context(|| format!("opening {}", path.display()))?;
    let mut findings = Findings::default();
    findings.say("file", &path.display().to_string());
    findings.problems.extend(check_writers(opened.as_fd()).err().map(|why| format!("the file {why}")));
    let settings = Settings { options: options.clone(), ..Settings::default() };
    match plugin::lone(opened, path, settings, &isolators::place(global)?) {
        Ok(plugin) => look(&plugin, &mut findings),
        Err(error) => findings.problems.push(error.to_string()),
    }
    let text = findings.text;
    let problems: String = findings.problems.iter().map(|problem| format!("wrong: {problem}\n")).collect();
    let verdict = if problems.is_empty() { "nothing is wrong with it\n" } else { &problems };
    crate::print(&format!("{text}{verdict}"));
    Ok(u8::from(!findings.problems.is_empty()))
}

fn look(plugin: &Plugin, findings: &mut Findings) {
    let about = plugin.about();
    let kinds: Vec<String> = about.supports.iter().map(|kind| kind.to_string().to_lowercase()).collect();
    for (key, value) in [
        ("isolator", about.name),
        ("version", about.version),
        ("supports", kinds.join(" ")),
        ("calls", about.calls.join(" ")),
    ] {
        findings.say(key, &value);
    }
    if about.calls.is_empty() {
        findings.problems.push("it implements no call".to_owned());
    }
    if about.calls.iter().any(|call| call == "limitation") != about.calls.iter().any(|call| call == "watch") {
        findings.problems.push("watch and limitation go together, and one is missing".to_owned());
    }
    let spec = Spec::default();
    let config = Config {
        id: "coracle-check",
        kind: Kind::Oci,
        bundle: Path::new("/"),
        spec: &spec,
        cgroup: CgroupVersion::V2,
    };
    findings.try_call("recover", || plugin.recover(&States::default()));
    findings.try_call("prepare", || plugin.prepare(&config));
    let adjustment = findings.try_call("process", || plugin.process(&config)).unwrap_or_default();
    for field in adjustment.container_fields() {
        findings.problems.push(format!("process: {field} is not a field of a process"));
    }
    findings.try_call("validate", || plugin.validate(&spec));
    findings.try_call("cleanup", || plugin.cleanup(config.id));
}
