//! Many containers one after the other, some of whose runtimes are killed: nothing grows.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use coracle_tests::{Host, Spec, privileged};

/// How many start at a time.
const WIDTH: usize = 8;

/// What the kernel keeps for each of them while it lives; far fewer may stay than containers have been.
const KEPT: [&str; 5] = ["pid_namespace", "net_namespace", "mnt_cache", "task_struct", "filp"];

/// How many of each of these the kernel has, and how many files are open (proc_slabinfo(5), proc_sys_fs(5)).
fn kept() -> Vec<(&'static str, usize)> {
    let slabs = fs::read_to_string("/proc/slabinfo").unwrap();
    let active = |name: &str| {
        let line = slabs.lines().find(|line| line.split(' ').next() == Some(name));
        line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok()).unwrap_or_default()
    };
    let files = fs::read_to_string("/proc/sys/fs/file-nr").unwrap();
    let open = files.split_whitespace().next().unwrap().parse().unwrap();
    KEPT.into_iter().map(|name| (name, active(name))).chain([("open files", open)]).collect()
}

/// Runs container `number`; every hundredth runtime is killed at some moment of its life, and its container removed by
/// force. Says what went wrong.
fn one(runtime: &Path, bundle: &Path, number: usize) -> Option<String> {
    let id = format!("churn-{number}");
    let quiet = |args: &[&str]| {
        let mut command = Command::new(runtime);
        command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        command
    };
    let bundle = bundle.to_str().unwrap();
    let mut run = quiet(&["run", "--bundle", bundle, &id]).spawn().unwrap();
    if number % 100 != 37 {
        let ended = run.wait_with_output().unwrap();
        return (!ended.status.success())
            .then(|| format!("{id}: {}", String::from_utf8_lossy(&ended.stderr)));
    }
    thread::sleep(Duration::from_micros(number as u64 * 7919 % 9000));
    run.kill().unwrap();
    run.wait().unwrap();
    let removed = quiet(&["delete", "--force", &id]).output().unwrap();
    (!removed.status.success()).then(|| format!("{id}, killed: {}", String::from_utf8_lossy(&removed.stderr)))
}

/// Runs containers, `count` of them or, from then on, for as long as `lasting`.
fn churn(host: &Host, count: usize, lasting: Duration) {
    let begun = Instant::now();
    let bundle = host.bundle(Spec::new().memory(64 << 20).pids(32).args(["true"]));
    let (runtime, directory) = (host.runtime(), bundle.directory());
    // Each has the cgroup of its own name.
    let config = directory.join("config.json");
    let mut spec: serde_json::Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
    spec["linux"].as_object_mut().unwrap().remove("cgroupsPath");
    fs::write(&config, spec.to_string()).unwrap();
    let round = |from: usize, to: usize| -> Vec<String> {
        let next = AtomicUsize::new(from);
        let work = || {
            let numbers =
                std::iter::from_fn(|| Some(next.fetch_add(1, Ordering::Relaxed)).filter(|n| *n < to));
            numbers.filter_map(|number| one(runtime, directory, number)).collect::<Vec<_>>()
        };
        thread::scope(|scope| {
            let workers: Vec<_> = (0..WIDTH).map(|_| scope.spawn(work)).collect();
            workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
        })
    };
    // The first ones fill what the kernel keeps at hand.
    let warm = count / 10;
    let mut wrong = round(0, warm);
    let before = (host.snapshot(), kept());
    wrong.extend(round(warm, count));
    assert!(wrong.is_empty(), "{wrong:?}");
    assert_eq!(host.difference(&before.0), None);
    let bound = (count - warm) / 4 + 500;
    let mut all = count;
    while begun.elapsed() < lasting {
        wrong.extend(round(all, all + count));
        all += count;
        assert!(wrong.is_empty(), "{wrong:?}");
        assert_eq!(host.difference(&before.0), None, "after {all} containers");
    }
    for ((name, earlier), (_, now)) in before.1.into_iter().zip(kept()) {
        assert!(now <= earlier + bound, "after {all} containers {name} went from {earlier} to {now}");
    }
    host.counted(&format!(
        "{all} containers, {} of whose runtimes were killed, leave nothing",
        all.div_ceil(100)
    ));
}

#[test]
fn a_hundred_containers_leave_nothing() {
    privileged(|host| churn(host, 100, Duration::ZERO));
}

#[test]
#[ignore = "takes minutes: make test-faults; CORACLE_CHURN says how many"]
fn ten_thousand_containers_leave_nothing() {
    let count = std::env::var("CORACLE_CHURN").ok().and_then(|count| count.parse().ok()).unwrap_or(10_000);
    privileged(|host| churn(host, count, Duration::ZERO));
}

#[test]
#[ignore = "takes as long as CORACLE_SOAK says, in seconds: make soak"]
fn containers_leave_nothing_however_long_it_goes_on() {
    let seconds = std::env::var("CORACLE_SOAK").ok().and_then(|seconds| seconds.parse().ok()).unwrap_or(0);
    privileged(|host| churn(host, 1000, Duration::from_secs(seconds)));
}
