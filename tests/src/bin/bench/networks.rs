//! What a network costs a start beside the time that its plugins take themselves.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use coracle_fixtures::spec::Spec;
use nix::sched::{CloneFlags, setns, unshare};
use serde_json::json;

use crate::Options;
use crate::measure::{median, timed};
use crate::report::{Report, Row};
use crate::subject::{Bundle, Subject};

/// Where the distribution has them.
const PLUGINS: &str = "/usr/lib/cni";

/// A plugin in the place of another, which it runs, and notes how many nanoseconds that took.
const WRAPPER: &str = r#"
#include <stdio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
int main(int argc, char **argv) {
    struct timespec from, to;
    int status = 0;
    clock_gettime(CLOCK_MONOTONIC, &from);
    pid_t pid = fork();
    if (pid == 0) {
        execv(REAL, argv);
        _exit(127);
    }
    waitpid(pid, &status, 0);
    clock_gettime(CLOCK_MONOTONIC, &to);
    FILE *times = fopen(TIMES, "a");
    if (!times) return 1;
    fprintf(times, "%lld\n", (to.tv_sec - from.tv_sec) * 1000000000LL + (to.tv_nsec - from.tv_nsec));
    fclose(times);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}
"#;

/// Measures `run` without a network and on one, in a network namespace of its own.
pub(crate) fn measure(directory: &Path, options: &Options, report: &mut Report) -> Result<(), String> {
    if options.runtime.file_name().is_none_or(|name| name != "coracle") {
        return Ok(());
    }
    let home = File::open("/proc/self/ns/net").map_err(|error| error.to_string())?;
    if !Path::new(PLUGINS).join("bridge").is_file() {
        report.note("a CNI network: containernetworking-plugins is not installed");
        return Ok(());
    }
    unshare(CloneFlags::CLONE_NEWNET).map_err(|errno| format!("unshare: {errno}"))?;
    let measured = measure_here(&directory.join("networks"), options, report);
    setns(home, CloneFlags::CLONE_NEWNET).map_err(|errno| format!("setns: {errno}"))?;
    measured
}

fn measure_here(directory: &Path, options: &Options, report: &mut Report) -> Result<(), String> {
    configure(directory).map_err(|error| format!("configure a network: {error}"))?;
    let subject = |name: &str| Subject::runtime(name, options.runtime.clone(), directory);
    let (without, on) = (subject("without")?, subject("on")?);
    let without = without.configured(directory);
    let on = on.configured(directory);
    let spec = Spec::new().memory(64 << 20).cpu(1000).pids(64);
    let spec = spec.set("/annotations", json!({"io.coracle.network": "bench"}));
    fs::write(directory.join("on/plain/config.json"), spec.json().to_string()).map_err(|e| e.to_string())?;
    let (mut whole, mut own, mut over) = (Vec::new(), Vec::new(), Vec::new());
    // The first round makes the bridge.
    for round in 0..=options.runs {
        let plain = timed(&mut without.run(Bundle::Plain))?;
        let _ = fs::remove_file(directory.join("times"));
        let networked = timed(&mut on.run(Bundle::Plain))?;
        let plugins = taken(directory)?;
        if round > 0 {
            whole.push(networked);
            own.push(plugins);
            over.push(networked.saturating_sub(plain).saturating_sub(plugins));
        }
    }
    report.section("On a network by CNI (bar: 15 ms over the plugins' own time)", "-");
    for (what, times) in [
        ("run, on one network", whole),
        ("its plugins alone, ADD and DEL", own),
        ("over that and a run without a network", over),
    ] {
        let value = median(times).as_secs_f64() * 1e3;
        let (what, subject) = (what.to_owned(), "coracle".to_owned());
        report.add(vec![Row { what, subject, value, unit: "ms", ratio: None }]);
    }
    Ok(())
}

/// How long the plugins took since this was last asked.
fn taken(directory: &Path) -> Result<Duration, String> {
    let text =
        fs::read_to_string(directory.join("times")).map_err(|error| format!("no plugin ran: {error}"))?;
    Ok(text.lines().filter_map(|line| line.parse().ok()).map(Duration::from_nanos).sum())
}

fn configure(directory: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let (plugins, networks, state) =
        (directory.join("plugins"), directory.join("net.d"), directory.join("addresses"));
    for path in [&plugins, &networks, &state] {
        fs::create_dir_all(path)?;
    }
    let source = directory.join("wrapper.c");
    fs::write(&source, WRAPPER)?;
    let mut compiler = Command::new("gcc");
    compiler.arg("-O2").arg(format!("-DREAL=\"{PLUGINS}/bridge\""));
    compiler.arg(format!("-DTIMES={:?}", directory.join("times")));
    timed(compiler.arg("-o").arg(plugins.join("bridge")).arg(&source))?;
    let bridge = json!({"type": "bridge", "bridge": "bench0", "ipam": {"type": "host-local", "dataDir": state,
        "ranges": [[{"subnet": "10.78.0.0/16"}]]}});
    let list = json!({"cniVersion": "1.0.0", "name": "bench", "plugins": [bridge]});
    fs::write(networks.join("bench.conflist"), list.to_string())?;
    let kept = directory.join("network");
    let text = format!(
        "[isolator.\"network/cni\"]\noptions = {{ config = {networks:?}, plugins = [{plugins:?}, {PLUGINS:?}], state = {kept:?} }}\n"
    );
    Ok(fs::write(directory.join("config.toml"), text)?)
}
