//! `cgroups/perf`: how often a container makes the processors and the kernel do what costs time.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use coracle_isolator::{Cgroup, Errno, Error, Handles, Isolator, Result, Usage, pointer};
use coracle_sys::file::{self, Resolve};
use coracle_sys::perf::{self, Count, Event};
use oci_spec::runtime::Spec;

/// The annotation that names the events, with commas between them.
const ANNOTATION: &str = "io.coracle.perf";
/// For how long they are counted each time that somebody asks.
const SAMPLE: Duration = Duration::from_millis(100);
/// How many may be named: each takes a descriptor for each processor.
const MOST: usize = 16;
/// The longest list of processors, in bytes.
const LONGEST: u64 = 64 << 10;

/// linux/perf_event.h, by the names of perf-list(1): what processors count, then what the kernel does.
const HARDWARE: [&str; 10] = [
    "cycles",
    "instructions",
    "cache-references",
    "cache-misses",
    "branches",
    "branch-misses",
    "bus-cycles",
    "stalled-cycles-frontend",
    "stalled-cycles-backend",
    "ref-cycles",
];
const SOFTWARE: [&str; 9] = [
    "cpu-clock",
    "task-clock",
    "page-faults",
    "context-switches",
    "cpu-migrations",
    "minor-faults",
    "major-faults",
    "alignment-faults",
    "emulation-faults",
];

/// Counts what the annotation names, for a tenth of a second each time that usage is asked for, and tells events a
/// second. Nothing is kept open in between: who looks after a container need not live as long as it does.
#[derive(Debug)]
pub(crate) struct Perf;

impl Isolator for Perf {
    fn name(&self) -> &str {
        "cgroups/perf"
    }

    fn validate(&self, spec: &Spec) -> Result<()> {
        events(spec).map(drop)
    }

    /// Tries each event, so that what can't be counted here is told at once.
    fn isolate(&self, container: &Handles<'_>) -> Result<()> {
        let events = events(container.spec)?;
        if events.is_empty() {
            return Ok(());
        }
        let (group, cpu) = (group(container.cgroup)?, first_processor()?);
        events.into_iter().try_for_each(|(name, event)| count(group, name, event, cpu).map(drop))
    }

    fn usage(&self, container: &Handles<'_>) -> Result<Usage> {
        let events = events(container.spec)?;
        if events.is_empty() {
            return Ok(Usage::default());
        }
        let counters = counters(group(container.cgroup)?, &events)?;
        std::thread::sleep(SAMPLE);
        let mut other = BTreeMap::new();
        for (name, counter) in &counters {
            let count = perf::read(counter.as_fd()).map_err(|e| Error::failed(e.call(), e.errno()))?;
            *other.entry(format!("cgroups/perf/{name}")).or_default() += a_second(&count);
        }
        Ok(Usage { other, ..Usage::default() })
    }
}

/// The events that the annotation names.
fn events(spec: &Spec) -> Result<Vec<(&str, Event)>> {
    let annotation = spec.annotations().as_ref().and_then(|all| all.get(ANNOTATION));
    let Some(text) = annotation else { return Ok(Vec::new()) };
    let named: Result<Vec<_>> = text.split(',').map(|name| event(name.trim())).collect();
    named
        .and_then(|events| match events.len() {
            0..=MOST => Ok(events),
            more => Err(Error::new(format!("it names {more} events, and {MOST} are the most"))),
        })
        .map_err(|e| e.at(at()))
}

fn at() -> String {
    pointer("/annotations", ANNOTATION)
}

fn event(name: &str) -> Result<(&str, Event)> {
    let place = |names: &[&str]| names.iter().position(|known| *known == name);
    let found = place(&HARDWARE).map(|number| (0, number)).or(place(&SOFTWARE).map(|number| (1, number)));
    let Some((kind, number)) = found else {
        let known = [&HARDWARE[..], &SOFTWARE[..]].concat().join(", ");
        return Err(Error::new(format!("{name:?} is no event; known are {known}")));
    };
    Ok((name, Event { kind, number: number as u64 }))
}

/// The directory by which the kernel knows whose events to count: of the version 1 hierarchy, where there is one.
fn group(cgroup: &Cgroup) -> Result<BorrowedFd<'_>> {
    let dir = cgroup.dir("perf_event").or_else(|| cgroup.dir("unified"));
    dir.ok_or_else(|| Error::new("the container has no cgroup in which events are counted").at(at()))
}

fn counters<'a>(group: BorrowedFd<'_>, events: &[(&'a str, Event)]) -> Result<Vec<(&'a str, OwnedFd)>> {
    let mut counters = Vec::new();
    for cpu in processors()? {
        for (name, event) in events {
            counters.push((*name, count(group, name, *event, cpu)?));
        }
    }
    Ok(counters)
}

fn count(group: BorrowedFd<'_>, name: &str, event: Event, cpu: u32) -> Result<OwnedFd> {
    perf::count(group, event, cpu).map_err(|e| {
        let failed = Error::failed(e.call(), e.errno()).at(at());
        match e.errno() {
            Errno::ENOENT | Errno::EOPNOTSUPP | Errno::ENODEV => {
                failed.with_hint(format!("this machine does not count {name}"))
            }
            Errno::EACCES | Errno::EPERM => failed.with_hint("counting asks for CAP_PERFMON"),
            _ => failed,
        }
    })
}

/// The processors that are on.
fn processors() -> Result<Vec<u32>> {
    let text = file::read(file::CWD, "/sys/devices/system/cpu/online", LONGEST, Resolve::Host)
        .map_err(|e| Error::failed(e.call(), e.errno()))?;
    Ok(numbers(&String::from_utf8_lossy(&text)).collect())
}

fn first_processor() -> Result<u32> {
    processors()?.first().copied().ok_or_else(|| Error::new("the kernel tells of no processor"))
}

/// The numbers of a list as the kernel writes it: `0-3,8`.
fn numbers(list: &str) -> impl Iterator<Item = u32> {
    list.trim().split(',').flat_map(|part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        match (first.parse::<u32>(), last.parse::<u32>()) {
            (Ok(first), Ok(last)) => first..=last,
            #[expect(clippy::reversed_empty_ranges, reason = "no number at all")]
            _ => 1..=0,
        }
    })
}

/// Events a second, were it counted all of the time.
fn a_second(count: &Count) -> f64 {
    if count.running.is_zero() { 0.0 } else { count.events as f64 / count.running.as_secs_f64() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Group;

    fn spec(events: &str) -> Spec {
        let mut spec = Spec::default();
        spec.set_annotations(Some([(ANNOTATION.to_owned(), events.to_owned())].into()));
        spec
    }

    #[test]
    fn events_have_the_names_of_perf() {
        let named = spec("instructions, context-switches");
        let found: Vec<_> = events(&named).unwrap().into_iter().map(|(_, e)| (e.kind, e.number)).collect();
        assert_eq!(found, [(0, 1), (1, 3)]);
        assert_eq!(events(&Spec::default()).unwrap(), []);
    }

    #[test]
    fn what_is_no_event_is_named() {
        let error = Perf.validate(&spec("cycles,cakes")).unwrap_err().to_string();
        assert!(
            error.starts_with(r#"/annotations/io.coracle.perf: "cakes" is no event; known are cycles,"#),
            "{error}"
        );
        let error = Perf.validate(&spec(&["cycles"; 17].join(","))).unwrap_err().to_string();
        assert!(error.ends_with("it names 17 events, and 16 are the most"), "{error}");
    }

    #[test]
    fn lists_of_processors_are_read() {
        assert_eq!(numbers("0-2,5\n").collect::<Vec<_>>(), [0, 1, 2, 5]);
        assert_eq!(numbers("\n").count(), 0);
    }

    #[test]
    fn an_event_that_took_turns_is_counted_as_if_it_had_not() {
        let count = |running| Count { events: 500, running: Duration::from_millis(running) };
        assert_eq!([a_second(&count(500)), a_second(&count(0))], [1000.0, 0.0]);
    }

    #[test]
    fn a_container_without_cgroups_is_told_so() {
        let (cgroup, spec) = (Cgroup::new(coracle_isolator::CgroupVersion::V1, Vec::new()), spec("cycles"));
        let container = Handles { id: "c", pidfd: None, cgroup: &cgroup, spec: &spec };
        let error = Perf.isolate(&container).unwrap_err().to_string();
        assert!(error.ends_with("the container has no cgroup in which events are counted"), "{error}");
    }

    #[test]
    fn an_idle_group_has_no_events() {
        let Some(group) = Group::version_2("perf") else { return };
        let spec = spec("task-clock");
        let container = Handles { id: "c", pidfd: None, cgroup: &group.group, spec: &spec };
        Perf.isolate(&container).unwrap();
        assert_eq!(
            Perf.usage(&container).unwrap().other,
            [("cgroups/perf/task-clock".to_owned(), 0.0)].into()
        );
    }
}
