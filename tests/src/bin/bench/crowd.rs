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
    /// Of the bare C program: what the kernel takes longer for.
    bare: Duration,
    list: Duration,
    state: Duration,
    /// Of `stats` and `recover`, which are ours alone.
    own: Option<[Duration; 2]>,
}

/// Measures `run`, `list` and `state` of ours and the peer, each among so many of its own, and `run` among none; and
/// the bare C program, the first of `all`, beside each.
pub(crate) fn measure(all: &[&Subject], runs: usize, report: &mut Report) -> Result<(), String> {
    let count = if runs < 10 { 80 } else { 1000 };
    let (bare, runtimes) = all.split_first().ok_or("nothing is measured")?;
    let subjects: Vec<&Subject> = runtimes
        .iter()
        .copied()
        .filter(|subject| ["coracle", PEER].contains(&subject.name.as_str()))
        .collect();
    report.section(&format!("With {count} containers alive"), PEER);
    let with_bare = [&[*bare], &subjects[..]].concat();
    let alone = alternate(&with_bare, runs, |subject| timed(&mut subject.run(Bundle::Plain)))?;
    let (bare_alone, alone) = alone.split_first().ok_or("nothing is measured")?;
    let mut among = Vec::new();
    for subject in &subjects {
        among.push(with_crowd(subject, count, |id| in_crowd(subject, bare, id, runs))?);
    }
    let mut add = |what: &str, times: Vec<Duration>| {
        report.add(rows(what, "ms", &subjects, &milliseconds(&times), PEER));
    };
    add("run, none alive", alone.to_vec());
    add(&format!("run, {count} alive"), among.iter().map(|times| times.run).collect());
    add(&format!("list of {count}"), among.iter().map(|times| times.list).collect());
    add(&format!("state of one of {count}"), among.iter().map(|times| times.state).collect());
    for (subject, [stats, recover]) in subjects.iter().zip(&among).filter_map(|(s, t)| Some((s, t.own?))) {
        for (what, time) in
            [(format!("stats of one of {count}"), stats), (format!("recover among {count}"), recover)]
        {
            report.add(rows(&what, "ms", &[*subject], &milliseconds(&[time]), PEER));
        }
    }
    let over = |who: &str, what: &str, among: Duration, alone: &Duration| Row {
        what: format!("{what}, {count} alive, over none alive"),
        subject: who.to_owned(),
        value: among.as_secs_f64() / alone.as_secs_f64(),
        unit: "×",
        ratio: None,
    };
    for (subject, (alone, among)) in subjects.iter().zip(alone.iter().zip(&among)) {
        let beside = format!("beside {}", subject.name);
        report.add(vec![
            over(&subject.name, "run", among.run, alone),
            over(&bare.name, &beside, among.bare, bare_alone),
        ]);
    }
    Ok(())
}

/// Measures `subject`, and the bare C program, among containers of which one is `id`.
fn in_crowd(subject: &Subject, bare: &Subject, id: &str, runs: usize) -> Result<Times, String> {
    let median_of = |one: &dyn Fn() -> Result<Duration, String>| {
        (0..runs).map(|_| one()).collect::<Result<Vec<_>, _>>().map(median)
    };
    let own = || -> Result<_, String> {
        let stats = median_of(&|| timed(&mut subject.on("stats", id)))?;
        Ok([stats, median_of(&|| timed(&mut subject.verb("recover")))?])
    };
    let pair = alternate(&[subject, bare], runs, |subject| timed(&mut subject.run(Bundle::Plain)))?;
    Ok(Times {
        run: pair[0],
        bare: pair[1],
        list: median_of(&|| timed(&mut subject.verb("list")))?,
        state: median_of(&|| timed(&mut subject.on("state", id)))?,
        own: (subject.name != PEER).then(own).transpose()?,
    })
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
