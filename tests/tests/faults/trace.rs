//! What strace(1) sees of a verb, and a verb under its injections.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use coracle_tests::{Bundle, Host, Outcome, command};

/// A system call, and the how-maniest of its kind.
pub(crate) type Step = (String, usize);

/// The steps of a traced command, in their order.
fn steps(trace: &str) -> Vec<Step> {
    let mut counts: BTreeMap<(String, String), usize> = BTreeMap::new();
    let mut seen = BTreeSet::new();
    let mut steps = Vec::new();
    for line in trace
        .lines()
        .filter(|line| !line.contains("resumed>") && !line.contains("+++") && !line.contains("---"))
    {
        let Some((before, _)) = line.split_once('(') else { continue };
        let (pid, call) = before.trim().rsplit_once(' ').unwrap_or(("", before.trim()));
        let count = counts.entry((pid.trim().to_owned(), call.to_owned())).or_insert(0);
        *count += 1;
        // The runtime has not run yet when strace's own child executes it.
        let step = (call.to_owned(), *count);
        if step != ("execve".to_owned(), 1) && seen.insert(step.clone()) {
            steps.push(step);
        }
    }
    steps
}

/// What happens at a step.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    /// The process is killed.
    Killed,
    /// The call fails, with one error of [`ERRORS`] after the other.
    Refused,
}

pub(crate) const ERRORS: [&str; 7] = ["EPERM", "ENOMEM", "ENOSPC", "EMFILE", "EINTR", "EAGAIN", "ENOSYS"];

/// Calls that the kernel never refuses: a process's end and its umask; and it gives a descriptor back even where
/// close(2) fails, wakes who waits for a futex(2), and answers brk(2) with an address, which an injected error does not.
const CAN_NOT_FAIL: [&str; 8] =
    ["exit", "exit_group", "rt_sigreturn", "restart_syscall", "close", "umask", "futex", "brk"];
/// What a C library and Rust's own start do before `main`; where they can't go on, they end with 127 or by a signal.
const START_UP: [&str; 13] = [
    "arch_prctl",
    "getrandom",
    "mmap",
    "mprotect",
    "munmap",
    "newfstatat",
    "openat",
    "poll",
    "pread64",
    "read",
    "rt_sigaction",
    "sigaltstack",
    "set_tid_address",
];

impl Fault {
    /// The steps at which it can happen.
    pub(crate) fn steps(self, trace: &Path) -> Vec<Step> {
        let mut steps = steps(&fs::read_to_string(trace).unwrap());
        steps.retain(|(call, _)| matches!(self, Self::Killed) || !CAN_NOT_FAIL.contains(&call.as_str()));
        assert!(steps.len() > 30, "only {} steps were traced", steps.len());
        steps
    }

    /// How strace(1) is told of it, in one turn of a sweep.
    pub(crate) fn at(self, (call, count): &Step, turn: usize) -> String {
        let what = match self {
            Self::Killed => "signal=KILL".to_owned(),
            Self::Refused => format!("error={}", error_of(call, turn)),
        };
        format!("-qq -o /dev/null -e inject={call}:{what}:when={count}")
    }

    /// The same for people.
    pub(crate) fn told(self, (call, count): &Step, turn: usize) -> String {
        match self {
            Self::Killed => format!("killed at {call} #{count}"),
            Self::Refused => format!("{call} #{count} refused with {}", error_of(call, turn)),
        }
    }

    /// A line on what was wrong with a turn, if anything was.
    pub(crate) fn judged(
        self,
        step: &Step,
        turn: usize,
        wrong: Option<String>,
        left: Option<String>,
    ) -> Option<String> {
        let what: Vec<String> = wrong.into_iter().chain(left).collect();
        (!what.is_empty()).then(|| format!("{}: {}\n", self.told(step, turn), what.join("; ")))
    }

    /// What is wrong with how a command of ours ended.
    pub(crate) fn wrong(self, (call, _): &Step, run: &Outcome) -> Option<String> {
        match (self, run.code) {
            (Self::Killed, _) | (_, 0) => None,
            (_, 137) => Some("hangs".to_owned()),
            (_, 127..) if START_UP.contains(&call.as_str()) && !run.stderr.starts_with("coracle") => None,
            // The container's own program is followed, too.
            _ if run.stderr.starts_with("sh: ") => None,
            // The message itself is such a call; and a stream that seems not to be open is given to nobody.
            _ if ["write", "fcntl"].contains(&call.as_str()) && run.stderr.is_empty() => None,
            (_, code) => (!is_named(&run.stderr)).then(|| format!("exit code {code}: {:?}", run.stderr)),
        }
    }
}

/// Each turn has another, and each seed begins with another.
fn error_of(call: &str, turn: usize) -> &'static str {
    match ERRORS[(turn + seed()) % ERRORS.len()] {
        // By this it answers that somebody else holds the file, to whom it is then rightly left.
        "EAGAIN" if call == "flock" => "ENOMEM",
        error => error,
    }
}

/// One line of ours that says more than that something failed: why, or what to do. What strace(1) has to say of itself is
/// not ours.
fn is_named(message: &str) -> bool {
    let lines: Vec<&str> = message.trim_end().lines().filter(|line| !line.starts_with("strace: ")).collect();
    let [line] = lines[..] else { return false };
    line.starts_with("coracle") && (line.matches(": ").count() >= 2 || line.contains("; "))
}

/// Runs a verb under strace; its exit code is the verb's.
pub(crate) fn traced(host: &Host, bundle: &Bundle<'_>, options: &str, verb: &str) -> Outcome {
    let (directory, id) = (bundle.directory().display(), bundle.id());
    let command = format!("strace {options} {} {verb} {id} </dev/null", host.command_line());
    host.shell(&format!("cd {directory} && exec timeout -s KILL {} {command}", 4 * patience()))
}

/// Those of the steps that a sweep takes: one of so many, beginning where the seed says.
pub(crate) fn taken(steps: &[Step], every: usize) -> impl Iterator<Item = &Step> {
    let every = stride(every);
    steps.iter().skip(seed() % every).step_by(every)
}

/// Of how many steps one is taken, times as many as `CORACLE_STRIDE` says: a slow machine takes a sample.
pub(crate) fn stride(own: usize) -> usize {
    own * number("CORACLE_STRIDE").unwrap_or(1)
}

/// Of how many steps a sweep takes one that would go on for hours: each, where `CORACLE_WHOLE` is set.
pub(crate) fn unless_whole(every: usize) -> usize {
    if number("CORACLE_WHOLE").is_some_and(|whole| whole != 0) { 1 } else { every }
}

/// What decides where a sweep begins that does not take every step: `CORACLE_SEED`. `make test-faults` gives each day
/// another one.
pub(crate) fn seed() -> usize {
    number("CORACLE_SEED").unwrap_or(0)
}

fn number(variable: &str) -> Option<usize> {
    std::env::var(variable).ok()?.parse().ok()
}

/// Writes down what a sweep covered.
pub(crate) fn told(host: &Host, what: &str, turns: (usize, usize), faults: &[String]) {
    let (taken, all) = turns;
    let clean = taken - faults.len();
    host.counted(&format!("{what}: {clean} of {taken} leave nothing ({all} steps, seed {})", seed()));
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.concat());
}

/// After how many seconds a command hangs.
pub(crate) fn patience() -> u32 {
    5 * command::patience()
}

/// Whether this machine and the runtime under test can be swept.
pub(crate) fn can_sweep(host: &Host) -> bool {
    // runc 1.1 leaves cgroups behind when it is killed before it wrote its state.
    host.needs_coracle("a journal of intents") && host.needs_program("strace")
}
