//! `events`: tells what a container uses and when it is out of memory, one JSON object a line, as runc does.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use coracle_isolator::{Cgroup, CgroupVersion, Handles, IoUsage, Limitation, MemoryUsage, Usage};
use coracle_isolator_host::Registry;
use coracle_sys::event;
use serde::Serialize;
use serde_json::{Value, json};

use crate::cli::{self, Global};
use crate::error::{Code, Context, Error, Result};
use crate::isolators;
use crate::stages::spec;
use crate::stages::watch::Note;
use crate::state::{State, Status};

/// Prints events until the container ends, or with `--stats` one and is done.
///
/// # Errors
/// `IllegalState` where the container does not run; `Unsupported` where it has no cgroups.
pub fn events(global: &Global, options: &cli::Events) -> Result<u8> {
    let id = &options.id;
    let attempt = || -> Result<()> {
        let state = State::open_unlocked(&global.root, id)?;
        let record = state.record()?.filter(|record| record.status() != Status::Stopped);
        let record = record.ok_or_else(Error::not_running)?;
        let place = record.cgroup.ok_or_else(|| Error::new(Code::Unsupported, "it has no cgroups"))?;
        let first = record.process.and_then(|first| first.open());
        let first = first.ok_or_else(Error::not_running)?;
        let spec = spec::kept(&state)?;
        let cgroup = place.open()?.into_handles();
        let handles = Handles { id, pidfd: Some(first.as_fd()), cgroup: &cgroup, spec: &spec };
        let isolators = isolators::all(global)?;
        if options.once {
            return print_stats(&isolators, &handles).map(drop);
        }
        follow(&isolators, &handles, &state, options.interval)
    };
    attempt().context(|| format!("following container {id:?}"))?;
    Ok(0)
}

fn follow(isolators: &Registry, handles: &Handles<'_>, state: &State, interval: Duration) -> Result<()> {
    let watched = isolators.watch(handles)?;
    let fds: Vec<_> = handles.pidfd.into_iter().chain(watched.iter().map(AsFd::as_fd)).collect();
    let mut told = Told::default();
    // An interval beyond what the clock can tell never ends.
    let mut next = Instant::now().checked_add(interval);
    // Version 1 wakes us before the kernel has counted what we are woken for: until then it is looked for again.
    let mut awaited: Option<Instant> = None;
    loop {
        let pause = awaited.map_or(Duration::MAX, |_| Duration::from_millis(5));
        let left = next.map_or(Duration::MAX, |next| next.saturating_duration_since(Instant::now()));
        let ready = event::readable(&fds, Some(pause.min(left)))?;
        for (fd, _) in fds.iter().zip(&ready).skip(1).filter(|(_, ready)| **ready) {
            event::take(*fd)?;
            awaited = Some(Instant::now() + Duration::from_secs(1));
        }
        if awaited.is_some() {
            let news = told.news(isolators.limitations(handles).unwrap_or_default());
            // A cgroup that went with its container has none.
            if !news.iter().all(|reason| print(reason, handles.id, None)) {
                return Ok(());
            }
            if !news.is_empty() || awaited < Some(Instant::now()) {
                awaited = None;
            }
        }
        if ready[0] {
            return print_end(state, handles.id, &told);
        }
        if next.is_some_and(|next| Instant::now() >= next) {
            match print_stats(isolators, handles) {
                // It ended meanwhile, and its cgroup is gone with it, as systemd's scopes are at once.
                Err(_) if event::readable(&fds[..1], Some(Duration::ZERO))? == [true] => return Ok(()),
                Ok(true) => {}
                printed => return printed.map(drop),
            }
            next = Instant::now().checked_add(interval);
        }
    }
}

/// The limitations that were told: of each isolator and reason the last message only. Messages count, and what is in the
/// container decides how far.
#[derive(Debug, Default)]
struct Told(BTreeMap<(String, String), String>);

impl Told {
    /// The reasons of those of `found` that are not told yet, which they are now.
    fn news(&mut self, found: Vec<(&str, Limitation)>) -> Vec<String> {
        let is_new = |(isolator, limitation): (&str, Limitation)| {
            let Limitation { reason, message, .. } = limitation;
            let before = self.0.insert((isolator.to_owned(), reason.clone()), message.clone());
            (before != Some(message)).then_some(reason)
        };
        found.into_iter().filter_map(is_new).collect()
    }
}

/// Prints why the container was ended, where another has found it at a limit before this one could.
fn print_end(state: &State, id: &str, told: &Told) -> Result<()> {
    let reason = Note::read(state).map(|note| note.reason);
    if let Some(reason) = reason.filter(|reason| told.0.keys().all(|(_, known)| known != reason)) {
        print(&reason, id, None);
    }
    Ok(())
}

/// Whether anybody reads it.
fn print_stats(isolators: &Registry, handles: &Handles<'_>) -> Result<bool> {
    let usage = isolators.usage(handles).context(|| "measuring")?;
    Ok(print("stats", handles.id, Some(data(&usage, handles.cgroup))))
}

/// Prints one event; whether anybody reads it. Its members come in runc's order, which is what scripts match.
fn print(kind: &str, id: &str, data: Option<Value>) -> bool {
    #[derive(Serialize)]
    struct Event<'a> {
        r#type: &'a str,
        id: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        data: Option<Value>,
    }
    let event = serde_json::to_string(&Event { r#type: kind, id, data });
    crate::print(&format!("{}\n", event.unwrap_or_default()))
}

/// What runc prints as `data`.
fn data(usage: &Usage, cgroup: &Cgroup) -> Value {
    let cpu = usage.cpu.clone().unwrap_or_default();
    let pids = usage.pids.unwrap_or_default();
    let hugetlb: BTreeMap<&String, Value> = usage
        .hugetlb
        .iter()
        .map(|(size, of)| {
            (size, json!({"usage": of.usage, "max": of.peak.unwrap_or(0), "failcnt": of.failures}))
        })
        .collect();
    let mut blkio = json!({
        "ioServiceBytesRecursive": blkio(&usage.io, |of| [of.read_bytes, of.write_bytes]),
        "ioServicedRecursive": blkio(&usage.io, |of| [of.reads, of.writes]),
    });
    let mut processor = json!({
        "usage": {"total": cpu.total, "percpu": cpu.per_cpu, "kernel": cpu.system, "user": cpu.user},
        "throttling": {
            "periods": cpu.periods, "throttledPeriods": cpu.throttled_periods, "throttledTime": cpu.throttled_time,
        },
    });
    for (part, pressure) in [(&mut blkio, usage.io_pressure), (&mut processor, cpu.pressure)] {
        part["psi"] = json!(pressure);
    }
    json!({
        "cpu": processor,
        "cpuset": {},
        "memory": memory(&usage.memory.clone().unwrap_or_default(), cgroup.version()),
        "pids": {"current": pids.current, "limit": pids.limit.unwrap_or(0)},
        "blkio": blkio,
        "hugetlb": hugetlb,
        "intel_rdt": {},
        "network_interfaces": null,
    })
}

/// No limit is the greatest number, as each version of cgroups has it; swap is memory and swap together.
fn memory(memory: &MemoryUsage, version: CgroupVersion) -> Value {
    let unlimited = if version == CgroupVersion::V1 { 0x7FFF_FFFF_FFFF_F000 } else { u64::MAX };
    let both = memory.limit.zip(memory.swap_limit).map_or(unlimited, |(memory, swap)| memory + swap);
    json!({
        "cache": memory.cache,
        "usage": {
            "limit": memory.limit.unwrap_or(unlimited), "usage": memory.usage, "max": memory.peak.unwrap_or(0),
            "failcnt": memory.limit_hits,
        },
        "swap": {"limit": both, "usage": memory.usage + memory.swap.unwrap_or(0), "failcnt": 0},
        "kernel": {"limit": unlimited, "usage": memory.kernel.unwrap_or(0), "failcnt": 0},
        "kernelTCP": {"limit": unlimited, "failcnt": 0},
        "raw": memory.statistics,
        "psi": memory.pressure,
    })
}

fn blkio(io: &BTreeMap<String, IoUsage>, values: impl Fn(&IoUsage) -> [u64; 2]) -> Vec<Value> {
    let mut entries = Vec::new();
    for (device, usage) in io {
        let (major, minor) = device.split_once(':').unwrap_or_default();
        let number = |text: &str| text.parse::<u64>().unwrap_or(0);
        for (op, value) in ["Read", "Write"].into_iter().zip(values(usage)) {
            entries.push(json!({"major": number(major), "minor": number(minor), "op": op, "value": value}));
        }
    }
    entries
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_told_as_each_version_has_them() {
        let limited = MemoryUsage {
            usage: 5,
            limit: Some(10),
            swap: Some(1),
            swap_limit: Some(2),
            ..MemoryUsage::default()
        };
        let told = memory(&limited, CgroupVersion::V2);
        assert_eq!(
            (&told["usage"]["limit"], &told["swap"]["limit"], &told["swap"]["usage"]),
            (&json!(10), &json!(12), &json!(6))
        );
        let told = memory(&MemoryUsage::default(), CgroupVersion::V1);
        assert_eq!(told["usage"]["limit"], 9_223_372_036_854_771_712_u64);
    }

    #[test]
    fn what_is_told_again_and_again_is_kept_once() {
        let found = |reason: &str, count: u32| {
            let message = format!("{count} processes killed");
            vec![("cgroups/mem", Limitation { reason: reason.to_owned(), message, resources: None })]
        };
        let mut told = Told::default();
        for count in 1..10_000 {
            assert_eq!(told.news(found("oom", count)), ["oom"]);
            assert!(told.news(found("oom", count)).is_empty());
        }
        assert_eq!(told.0.len(), 1);
        assert_eq!(told.news(found("swap", 1)), ["swap"]);
    }

    #[test]
    fn each_device_has_an_entry_for_each_operation() {
        let usage = IoUsage { read_bytes: 7, ..IoUsage::default() };
        let entries =
            blkio(&BTreeMap::from([("8:1".to_owned(), usage)]), |of| [of.read_bytes, of.write_bytes]);
        assert_eq!(entries[0], json!({"major": 8, "minor": 1, "op": "Read", "value": 7}));
        assert_eq!(entries.len(), 2);
    }
}
