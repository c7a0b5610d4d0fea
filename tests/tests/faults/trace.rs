//! What strace(1) sees of a verb, and a verb under its injections.

use std::collections::{BTreeMap, BTreeSet};

use coracle_tests::{Bundle, Host, command};

/// A system call, and the how-maniest of its kind.
pub(crate) type Step = (String, usize);

/// The steps of a traced command, in their order.
pub(crate) fn steps(trace: &str) -> Vec<Step> {
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

/// Runs a verb under strace; its exit code is the verb's.
pub(crate) fn traced(host: &Host, bundle: &Bundle<'_>, options: &str, verb: &str) -> i32 {
    let (directory, id) = (bundle.directory().display(), bundle.id());
    let command = format!("strace {options} $RUNTIME {verb} {id} </dev/null >/dev/null 2>&1");
    host.shell(&format!("cd {directory} && exec timeout -s KILL {} {command}", 4 * patience())).code
}

/// Of how many steps one is taken, times as many as `CORACLE_STRIDE` says: a slow machine takes a sample.
pub(crate) fn stride(own: usize) -> usize {
    own * std::env::var("CORACLE_STRIDE").ok().and_then(|times| times.parse().ok()).unwrap_or(1)
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
