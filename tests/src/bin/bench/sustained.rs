//! Launches a second that a machine sustains: the kernel tears cgroups and namespaces down when the containers have long
//! ended, and a start in the meantime pays for it. So the clock runs until it has.

use std::fs;
use std::time::{Duration, Instant};

/// How many network namespaces may be counted that are no more: what the kernel's allocator keeps at hand for each processor.
const AT_HAND: usize = 40;

/// How long the kernel may take to tear down.
const TORN_DOWN_WITHIN: Duration = Duration::from_secs(60);

/// How many network namespaces there are (proc_slabinfo(5)), and how many cgroups with a limit on processes, with those
/// that are going (cgroups(7), `/proc/cgroups`).
fn standing() -> Result<[usize; 2], String> {
    let count = |path: &str, name: &str, field: usize| -> Result<usize, String> {
        let text = fs::read_to_string(path).map_err(|error| format!("read {path}: {error}"))?;
        let line = text.lines().find(|line| line.split_whitespace().next() == Some(name));
        let number = line.and_then(|line| line.split_whitespace().nth(field)?.parse().ok());
        number.ok_or_else(|| format!("{path} has no {name}"))
    };
    Ok([count("/proc/slabinfo", "net_namespace", 1)?, count("/proc/cgroups", "pids", 2)?])
}

/// How many a second of `count`, where `launch` launches them and tells how many a second it launched.
pub(crate) fn rate(count: usize, launch: impl FnOnce() -> Result<f64, String>) -> Result<f64, String> {
    let before = standing()?;
    let begin = Instant::now();
    launch()?;
    loop {
        let now = standing()?;
        if now[0] <= before[0] + AT_HAND && now[1] <= before[1] {
            break;
        }
        if begin.elapsed() > TORN_DOWN_WITHIN {
            return Err(format!("network namespaces and cgroups went from {before:?} to {now:?}, and stay"));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    let count = u32::try_from(count).map_err(|error| error.to_string())?;
    Ok(f64::from(count) / begin.elapsed().as_secs_f64())
}
