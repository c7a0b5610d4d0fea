//! Measuring: wall time of commands, alternating; rates of many at once; peak memory; waits for grace periods.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use coracle_tests::command::installed;

use crate::report::Row;
use crate::subject::Subject;

/// How often each of several subjects takes its turn, and what a turn's time is.
pub(crate) fn alternate<S>(
    subjects: &[S],
    runs: usize,
    mut turn: impl FnMut(&S) -> Result<Duration, String>,
) -> Result<Vec<Duration>, String> {
    let mut times = vec![Vec::with_capacity(runs); subjects.len()];
    // The first round warms caches and does not count.
    for round in 0..=runs {
        for (subject, times) in subjects.iter().zip(&mut times) {
            let time = turn(subject)?;
            if round > 0 {
                times.push(time);
            }
        }
    }
    Ok(times.into_iter().map(median).collect())
}

/// The middle one.
pub(crate) fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

/// Runs a command with no streams; a failure is an error that shows what it said.
pub(crate) fn timed(command: &mut Command) -> Result<Duration, String> {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let begin = Instant::now();
    let child = command.spawn().map_err(|error| format!("start {command:?}: {error}"))?;
    // Reading the pipe to its end is waiting for the command: nothing that lives on may keep it.
    let output = child.wait_with_output().map_err(|error| error.to_string())?;
    let time = begin.elapsed();
    if !output.status.success() {
        return Err(format!("{command:?} failed: {}", String::from_utf8_lossy(&output.stderr).trim()));
    }
    Ok(time)
}

/// The same for a command whose child lives on with its streams.
pub(crate) fn timed_detached(command: &mut Command) -> Result<Duration, String> {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let begin = Instant::now();
    let status = command.status().map_err(|error| format!("start {command:?}: {error}"))?;
    let time = begin.elapsed();
    if status.success() { Ok(time) } else { Err(format!("{command:?} failed with {status}")) }
}

/// How many a second, `count` of them, `width` at a time.
pub(crate) fn rate(
    count: usize,
    width: usize,
    once: impl Fn() -> Result<(), String> + Sync,
) -> Result<f64, String> {
    let begin = Instant::now();
    let result: Result<(), String> = std::thread::scope(|scope| {
        let work = || (0..count / width).try_for_each(|_| once());
        let workers: Vec<_> = (0..width).map(|_| scope.spawn(work)).collect();
        workers
            .into_iter()
            .try_for_each(|worker| worker.join().map_err(|_| "a worker panicked".to_owned())?)
    });
    result?;
    let count = u32::try_from(count).map_err(|error| error.to_string())?;
    Ok(f64::from(count) / begin.elapsed().as_secs_f64())
}

/// The largest resident set of a command and of all it waited for, in MiB, by `fixtures/peak.c`. A fresh copy of the
/// program runs: how much of a file is mapped at a fault depends on the folios, small or large, in which the kernel holds
/// it, and so on how it came to the disk.
pub(crate) fn peak_memory(peak: &Path, command: &Command) -> Result<f64, String> {
    let program = command.get_program();
    let installed = installed(program).ok_or_else(|| format!("{} is not there", program.display()))?;
    let copy = peak.with_file_name("measured");
    fs::copy(&installed, &copy).map_err(|error| format!("copy {}: {error}", installed.display()))?;
    let output = Command::new(peak)
        .arg(&copy)
        .args(command.get_args())
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("start {}: {error}", peak.display()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    // The command itself may print something first.
    let last = text.lines().last().unwrap_or_default();
    let kib: f64 = last
        .parse()
        .map_err(|_| format!("{command:?} under peak: {}", String::from_utf8_lossy(&output.stderr)))?;
    Ok(kib / 1024.0)
}

/// How often a command, or a process it started, slept for an RCU grace period, by the system call that
/// waited. perf(1) records every switch away from the command and its children with its kernel stack; those
/// stacks that hold `synchronize_rcu` are counted.
pub(crate) fn grace_periods(directory: &Path, command: &Command) -> Result<BTreeMap<String, usize>, String> {
    let data = directory.join("perf.data");
    let mut record = Command::new("perf");
    record.args(["record", "--quiet", "--event", "sched:sched_switch", "-g", "--output"]);
    record.arg(&data).arg("--").arg(command.get_program()).args(command.get_args());
    timed_detached(&mut record)?;
    let script = Command::new("perf")
        .args(["script", "--fields", "comm,event,ip,sym", "--input"])
        .arg(&data)
        .stderr(Stdio::null())
        .output()
        .map_err(|error| format!("perf script: {error}"))?;
    let _ = fs::remove_file(&data);
    Ok(count_waits(&String::from_utf8_lossy(&script.stdout)))
}

fn count_waits(script: &str) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for sample in script.split("\n\n") {
        if sample.contains("synchronize_rcu") {
            *counts.entry(waiting_call(sample)).or_insert(0) += 1;
        }
    }
    counts
}

/// What a kernel stack was about: mostly the system call at its bottom.
fn waiting_call(sample: &str) -> String {
    if sample.contains("cgroup") {
        return "write to a cgroup".to_owned();
    }
    let name = sample.lines().find_map(|line| line.split_once("__x64_sys_").map(|(_, name)| name));
    let name = name.map(|name| name.split(['+', ' ', '(']).next().unwrap_or_default());
    // A detached mount that nobody attached is taken apart when its last descriptor goes, at the end of a call.
    let deferred = if sample.contains("__fput") { "last close of a detached mount" } else { "other" };
    name.unwrap_or(deferred).to_owned()
}

/// Rows of one measurement: a value each subject, and its ratio to the peer named first.
pub(crate) fn rows(
    what: &str,
    unit: &'static str,
    subjects: &[&Subject],
    values: &[f64],
    peer: &str,
) -> Vec<Row> {
    let base = subjects.iter().position(|subject| subject.name == peer).map(|at| values[at]);
    let row = |(subject, value): (&&Subject, &f64)| Row {
        what: what.to_owned(),
        subject: subject.name.clone(),
        value: *value,
        unit,
        ratio: base.map(|base| value / base),
    };
    subjects.iter().zip(values).map(row).collect()
}

/// Milliseconds.
pub(crate) fn milliseconds(times: &[Duration]) -> Vec<f64> {
    times.iter().map(|time| time.as_secs_f64() * 1000.0).collect()
}

/// Compiles one of the C programs of `fixtures/` into `directory`.
pub(crate) fn compile(name: &str, directory: &Path) -> Result<PathBuf, String> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures").join(name).with_extension("c");
    let program = directory.join(name);
    timed(Command::new("gcc").args(["-O2", "-static", "-o"]).arg(&program).arg(source))?;
    Ok(program)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_of_an_odd_number_is_the_median() {
        let times = [5, 1, 3].map(Duration::from_millis).to_vec();
        assert_eq!(median(times), Duration::from_millis(3));
    }

    #[test]
    fn waits_are_counted_by_system_call() {
        let script = "crun sched:sched_switch:\n ffff synchronize_rcu_expedited\n ffff __x64_sys_umount\n\n\
                      crun sched:sched_switch:\n ffff synchronize_rcu_normal\n ffff cgroup_procs_write_start\n ffff __x64_sys_write\n\n\
                      true sched:sched_switch:\n ffff schedule\n";
        let counts = count_waits(script);
        assert_eq!(
            counts.into_iter().collect::<Vec<_>>(),
            [("umount".to_owned(), 1), ("write to a cgroup".to_owned(), 1)]
        );
    }
}
