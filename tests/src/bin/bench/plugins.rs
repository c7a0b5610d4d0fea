//! Starts with isolators from files.

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::Options;
use crate::measure::{alternate, median, milliseconds, rows, timed};
use crate::report::{Report, Row};
use crate::subject::{Bundle, Subject};

const NONE: &str = "no plugin";
/// What each of the plugins limits: no field may have two owners.
const LIMITS: [&str; 4] = ["RLIMIT_NOFILE", "RLIMIT_CORE", "RLIMIT_MSGQUEUE", "RLIMIT_SIGPENDING"];

/// Measures `run` without a plugin, with one and with four, each a copy of the template in C.
pub(crate) fn measure(directory: &Path, options: &Options, report: &mut Report) -> Result<(), String> {
    if options.runtime.file_name().is_none_or(|name| name != "coracle") {
        return Ok(());
    }
    let mut subjects = vec![Subject::runtime(NONE, options.runtime.clone(), directory)?];
    for (name, count) in [("1 plugin", 1), ("4 plugins", 4)] {
        let config = directory.join(format!("config-{count}"));
        configure(&config, count).map_err(|error| format!("configure plugins: {error}"))?;
        subjects.push(Subject::runtime(name, options.runtime.clone(), directory)?.configured(&config));
    }
    report.section("Isolators from files, each in a process of its own", NONE);
    let subjects: Vec<&Subject> = subjects.iter().collect();
    let times = alternate(&subjects, options.runs, |subject| timed(&mut subject.run(Bundle::Plain)))?;
    report.add(rows("run", "ms", &subjects, &milliseconds(&times), NONE));
    let object = directory.join("config-1").join(LIMITS[0]).with_extension("so");
    let times: Result<Vec<_>, _> = (0..options.runs).map(|_| calls(&options.runtime, &object)).collect();
    let (first, again): (Vec<_>, Vec<_>) = times?.into_iter().unzip();
    for (what, times) in [("first call of a plugin, there and back", first), ("a further call", again)] {
        let value = median(times).as_secs_f64() * 1e6;
        let (what, subject) = (what.to_owned(), "coracle".to_owned());
        report.add(vec![Row { what, subject, value, unit: "µs", ratio: None }]);
    }
    Ok(())
}

/// How long the first call took and how long the second, as `isolator check` tells: of `process`, a document each way.
fn calls(runtime: &Path, object: &Path) -> Result<(Duration, Duration), String> {
    let output = Command::new(runtime).args(["isolator", "check"]).arg(object).output();
    let output = output.map_err(|error| format!("check a plugin: {error}"))?;
    let told = String::from_utf8_lossy(&output.stdout);
    let micros = |words: &str| words.trim().strip_suffix(" µs")?.parse().ok().map(Duration::from_micros);
    let line = told.lines().find_map(|line| line.strip_prefix("process")?.split_once(", again"));
    let calls = line.and_then(|(first, again)| Some((micros(first)?, micros(again)?)));
    calls.ok_or_else(|| format!("check a plugin: {told}"))
}

fn configure(config: &Path, count: usize) -> Result<(), Box<dyn std::error::Error>> {
    let isolators = Path::new(env!("CARGO_MANIFEST_DIR")).join("../isolators");
    let template = fs::read_to_string(isolators.join("template-c/nofile.c"))?;
    fs::create_dir_all(config)?;
    let mut text = String::new();
    for limit in &LIMITS[..count] {
        let source = config.join(limit).with_extension("c");
        let own = template.replace("example/nofile", &format!("bench/{limit}"));
        fs::write(&source, own.replace("NOFILE=", &format!("{limit}=")).replace("RLIMIT_NOFILE", limit))?;
        let object = config.join(limit).with_extension("so");
        let mut compiler = Command::new("gcc");
        compiler.args(["-O2", "-shared", "-fPIC", "-I"]).arg(isolators.join("abi")).arg("-o");
        timed(compiler.arg(&object).arg(&source))?;
        writeln!(text, "[isolator.\"bench/{limit}\"]\nfile = {object:?}")?;
    }
    Ok(fs::write(config.join("config.toml"), text)?)
}
