//! What a start costs, and a look, where a thousand containers are alive already.

use std::sync::Mutex;
use std::time::Duration;

use crate::measure::{alternate, median, milliseconds, rate, rows, timed, timed_detached};
use crate::report::{Report, Row};
use crate::starts::{PEER, WIDTH};
use crate::subject::{Bundle, Subject};

/// What is measured in a crowd.
struct Times {
    run: Duration,
    list: Duration,
    state: Duration,
}

/// Measures `run`, `list` and `state` of ours and the peer, each among so many of its own, and `run` among none.
pub(crate) fn measure(runtimes: &[&Subject], runs: usize, report: &mut Report) -> Result<(), String> {
    let count = if runs < 10 { 80 } else { 1000 };
    let subjects: Vec<&Subject> = runtimes
        .iter()
        .copied()
        .filter(|subject| ["coracle", PEER].contains(&subject.name.as_str()))
        .collect();
    report.section(&format!("With {count} containers alive"), PEER);
    let alone = alternate(&subjects, runs, |subject| timed(&mut subject.run(Bundle::Plain)))?;
    let mut among = Vec::new();
    for subject in &subjects {
        among.push(with_crowd(subject, count, |id| {
            let median_of = |one: &dyn Fn() -> Result<Duration, String>| {
                (0..runs).map(|_| one()).collect::<Result<Vec<_>, _>>().map(median)
            };
            Ok(Times {
                run: median_of(&|| timed(&mut subject.run(Bundle::Plain)))?,
                list: median_of(&|| timed(&mut subject.verb("list")))?,
                state: median_of(&|| timed(&mut subject.on("state", id)))?,
            })
        })?);
    }
    let mut add = |what: &str, times: Vec<Duration>| {
        report.add(rows(what, "ms", &subjects, &milliseconds(&times), PEER));
    };
    add("run, none alive", alone.clone());
    add(&format!("run, {count} alive"), among.iter().map(|times| times.run).collect());
    add(&format!("list of {count}"), among.iter().map(|times| times.list).collect());
    add(&format!("state of one of {count}"), among.iter().map(|times| times.state).collect());
    for (subject, (alone, among)) in subjects.iter().zip(alone.iter().zip(&among)) {
        report.add(vec![Row {
            what: format!("run, {count} alive, over none alive"),
            subject: subject.name.clone(),
            value: among.run.as_secs_f64() / alone.as_secs_f64(),
            unit: "×",
            ratio: None,
        }]);
    }
    Ok(())
}

/// Starts so many containers, does `work` among them, with the ID of one, and deletes them.
fn with_crowd<T>(
    subject: &Subject,
    count: usize,
    work: impl FnOnce(&str) -> Result<T, String>,
) -> Result<T, String> {
    let crowd = Mutex::new(Vec::new());
    let started = rate(count, WIDTH, || {
        let id = subject.id();
        timed_detached(&mut subject.create(Bundle::Sleeper, &id))?;
        crowd.lock().map_err(|_| "a worker panicked".to_owned())?.push(id.clone());
        timed_detached(&mut subject.on("start", &id)).map(drop)
    });
    let ids = crowd.into_inner().map_err(|_| "a worker panicked".to_owned())?;
    let result = started.and_then(|_| work(ids.first().ok_or("nothing was started")?));
    for id in &ids {
        timed_detached(&mut subject.delete(id))?;
    }
    result
}
