//! Starts: `run`, `create` + `start` + `delete`, `exec`, one after the other and eight at a time.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use coracle_tests::command::is_installed;
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::measure::{
    alternate, compile, grace_periods, milliseconds, peak_memory, rate, rows, timed, timed_detached,
};
use crate::networks;
use crate::plugins;
use crate::pods;
use crate::report::{Report, Row};
use crate::subject::{Bundle, STATES, Subject};
use crate::{Options, crowd, sustained};

/// Whom all others are compared with.
pub(crate) const PEER: &str = "crun";
/// How many at a time.
pub(crate) const WIDTH: usize = 8;

/// Measures all of it.
pub(crate) fn measure(options: &Options, report: &mut Report) -> Result<(), String> {
    let directory = std::env::temp_dir().join(format!("coracle-bench-{}", std::process::id()));
    fs::create_dir_all(&directory).map_err(|error| format!("make {}: {error}", directory.display()))?;
    let result = in_memory(&directory.join(STATES), || measure_in(&directory, options, report));
    fs::remove_dir_all(&directory).map_err(|error| format!("remove {}: {error}", directory.display()))?;
    result
}

/// Does `work` while the directory `path` is in memory, as `/run` is on a host, where runtimes keep their states. The mount
/// is in the mount namespace of the bench.
fn in_memory(path: &Path, work: impl FnOnce() -> Result<(), String>) -> Result<(), String> {
    let named = |what: &str, errno: Errno| format!("{what} {}: {errno}", path.display());
    fs::create_dir(path).map_err(|error| format!("make {}: {error}", path.display()))?;
    mount(Some("states"), path, Some("tmpfs"), MsFlags::empty(), Some("mode=0711"))
        .map_err(|errno| named("mount", errno))?;
    let result = work();
    umount2(path, MntFlags::MNT_DETACH).map_err(|errno| named("umount", errno))?;
    result
}

fn measure_in(directory: &Path, options: &Options, report: &mut Report) -> Result<(), String> {
    let bare = Subject::bare(compile("bare", directory)?, directory);
    let runtimes = runtimes(directory, options, report)?;
    let runtimes: Vec<&Subject> = runtimes.iter().collect();
    let all: Vec<&Subject> = std::iter::once(&bare).chain(runtimes.iter().copied()).collect();
    if options.only.as_deref() == Some("crowd") {
        return crowd::measure(&all, options.runs, report);
    }

    report.section("Starts of `true`: busybox root, six namespaces, limits on memory, CPU and PIDs", PEER);
    let runs = options.runs;
    let times = alternate(&all, runs, |subject| timed(&mut subject.run(Bundle::Plain)))?;
    report.add(rows("run", "ms", &all, &milliseconds(&times), PEER));
    let times = alternate(&runtimes, runs, |subject| timed(&mut subject.run(Bundle::Seccomp)))?;
    report.add(rows("run, profile like Docker's", "ms", &runtimes, &milliseconds(&times), PEER));
    let times = alternate(&runtimes, runs, |subject| cycle(subject))?;
    report.add(rows("create + start + delete", "ms", &runtimes, &milliseconds(&times), PEER));
    measure_exec(&runtimes, runs, report)?;

    report.section("Eight at a time", PEER);
    let count = if runs < 10 { 40 } else { 200 };
    let rates =
        each(&all, |subject| rate(count, WIDTH, || timed(&mut subject.run(Bundle::Plain)).map(drop)))?;
    report.add(rows(&format!("{count} × run"), "/s", &all, &rates, PEER));
    let sustained: Result<Vec<f64>, String> = each(&all, |subject| {
        let once = || timed(&mut subject.run(Bundle::Plain)).map(drop);
        sustained::rate(count, || rate(count, WIDTH, once))
    });
    match sustained {
        Ok(rates) => {
            report.add(rows(&format!("{count} × run, until all is torn down"), "/s", &all, &rates, PEER));
        }
        // Others who make containers meanwhile are counted, too.
        Err(why) => report.note(&format!("launches with their teardown are not measured: {why}")),
    }
    let rates = each(&runtimes, |subject| rate(count, WIDTH, || cycle(subject).map(drop)))?;
    report.add(rows(&format!("{count} × create + start + delete"), "/s", &runtimes, &rates, PEER));

    plugins::measure(directory, options, report)?;
    networks::measure(directory, options, report)?;
    pods::measure(&runtimes, directory, options, report)?;
    crowd::measure(&all, runs, report)?;

    report.section("What a start takes", PEER);
    let peak = compile("peak", directory)?;
    let peaks = each(&all, |subject| peak_memory(&peak, &subject.run(Bundle::Plain)))?;
    report.add(rows("peak memory of run", "MiB", &all, &peaks, PEER));
    measure_grace_periods(&all, directory, report)
}

/// Coracle and whichever peers are installed.
fn runtimes(directory: &Path, options: &Options, report: &mut Report) -> Result<Vec<Subject>, String> {
    let mut runtimes = Vec::new();
    for (name, program) in
        [("coracle", options.runtime.clone()), ("crun", "crun".into()), ("runc", "runc".into())]
    {
        if program.is_file() || program.to_str().is_some_and(is_installed) {
            runtimes.push(Subject::runtime(name, program, directory)?);
        } else {
            report.note(&format!("{name} is not measured: {} is not there", program.display()));
        }
    }
    Ok(runtimes)
}

fn each(
    subjects: &[&Subject],
    mut one: impl FnMut(&Subject) -> Result<f64, String>,
) -> Result<Vec<f64>, String> {
    subjects.iter().map(|subject| one(subject)).collect()
}

/// One container's life in three commands.
fn cycle(subject: &Subject) -> Result<Duration, String> {
    let id = subject.id();
    let create = timed_detached(&mut subject.create(Bundle::Plain, &id))?;
    let start = timed_detached(&mut subject.on("start", &id))?;
    Ok(create + start + timed_detached(&mut subject.delete(&id))?)
}

fn measure_exec(runtimes: &[&Subject], runs: usize, report: &mut Report) -> Result<(), String> {
    let mut sleepers = Vec::new();
    let result = measure_exec_in(runtimes, runs, &mut sleepers, report);
    for (subject, id) in &sleepers {
        timed_detached(&mut subject.delete(id))?;
    }
    result
}

fn measure_exec_in<'s>(
    runtimes: &[&'s Subject],
    runs: usize,
    sleepers: &mut Vec<(&'s Subject, String)>,
    report: &mut Report,
) -> Result<(), String> {
    for subject in runtimes {
        let id = subject.id();
        timed_detached(&mut subject.create(Bundle::Sleeper, &id))?;
        sleepers.push((subject, id.clone()));
        timed_detached(&mut subject.on("start", &id))?;
    }
    let times = alternate(sleepers, runs, |(subject, id)| timed(&mut subject.exec(id)))?;
    report.add(rows("exec", "ms", runtimes, &milliseconds(&times), PEER));
    let mut rates = Vec::new();
    for (subject, id) in sleepers.iter() {
        rates.push(rate(runs * WIDTH, WIDTH, || timed(&mut subject.exec(id)).map(drop))?);
    }
    report.add(rows("exec, eight at a time", "/s", runtimes, &rates, PEER));
    Ok(())
}

/// Counts sleeps for RCU grace periods: of three runs the one with the fewest, as other work on the machine can
/// only add switches.
fn measure_grace_periods(all: &[&Subject], directory: &Path, report: &mut Report) -> Result<(), String> {
    if Command::new("perf").arg("--version").output().is_err() {
        report.note("RCU-waiting calls are not measured: perf is not installed");
        return Ok(());
    }
    for subject in all {
        let mut fewest: Option<BTreeMap<String, usize>> = None;
        for _ in 0..3 {
            let counts = grace_periods(directory, &subject.run(Bundle::Plain))?;
            if fewest.as_ref().is_none_or(|fewest| counts.values().sum::<usize>() < fewest.values().sum()) {
                fewest = Some(counts);
            }
        }
        let counts = fewest.unwrap_or_default();
        let total = u32::try_from(counts.values().sum::<usize>()).map_err(|error| error.to_string())?;
        let row = Row {
            what: "RCU grace periods waited for in a run".to_owned(),
            subject: subject.name.clone(),
            value: f64::from(total),
            unit: "",
            ratio: None,
        };
        report.add(vec![row]);
        let list: Vec<String> = counts.iter().map(|(call, count)| format!("{count} {call}")).collect();
        report.note(&format!("{}: {}", subject.name, list.join(", ")));
    }
    Ok(())
}
