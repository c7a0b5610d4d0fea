//! The runtime killed at every system call: `delete --force` then leaves nothing.

use std::fs;

use coracle_fixtures::small;
use coracle_tests::image::Store;
use coracle_tests::{Bundle, Host, Spec, privileged};

use crate::trace::{Fault, can_sweep, stride, taken, told, traced};

/// A sweep: a verb of the OCI command line to which something happens at its steps, one a turn.
pub(crate) struct Turns<'a> {
    pub host: &'a Host,
    pub bundle: &'a Bundle<'a>,
    pub verb: &'a str,
    pub fault: Fault,
    /// Whether it happens at the steps of children, too (strace's `-f`).
    pub follow: &'a str,
    /// Of how many steps one is taken.
    pub every: usize,
    /// What is left that the oracle does not see.
    pub left: &'a dyn Fn() -> Option<String>,
}

impl Turns<'_> {
    /// Takes its turns, and tells after which something was wrong, or left.
    pub(crate) fn sweep(&self) {
        let Self { host, bundle, verb, fault, follow, .. } = self;
        let trace = host.directory().join("trace");
        let clean = host.snapshot();
        traced(host, bundle, &format!("{follow} -o {}", trace.display()), verb);
        host.call(&["delete", "--force", bundle.id()]).succeeds();
        assert_eq!((self.left)(), None);
        // A process may still be about to go: it would be missed later. Files of networks differ, rightly.
        let _ = host.difference_soon(&clean);
        let steps = fault.steps(&trace);
        let (mut faults, mut turns, mut failed) = (Vec::new(), 0, 0);
        for step in taken(&steps, self.every) {
            let before = host.snapshot();
            let options = format!("{follow} {}", fault.at(step, turns));
            let run = traced(host, bundle, &options, verb);
            failed += usize::from(run.code != 0);
            let delete = host.call(&["delete", "--force", bundle.id()]);
            let unclean = (delete.code != 0).then(|| format!("delete --force: {}", delete.stderr));
            let left = unclean.or_else(self.left).or_else(|| host.difference(&before));
            faults.extend(fault.judged(step, turns, fault.wrong(step, &run), left));
            turns += 1;
        }
        told(host, &format!("{verb}, {fault:?}"), (turns, steps.len()), &faults);
        // A step that a second run happens not to reach kills nobody; they must be few.
        let is_killed = matches!(fault, Fault::Killed);
        assert!(!is_killed || failed * 10 >= turns * 9, "only {failed} of {turns} turns were killed");
    }
}

fn sweep(host: &Host, verb: &str, follow: &str) {
    let bundle = host.bundle(Spec::new().memory(64 << 20).pids(32).args(["true"]));
    Turns { host, bundle: &bundle, verb, fault: Fault::Killed, follow, every: 1, left: &|| None }.sweep();
}

#[test]
fn create_killed_at_any_step_of_its_own_leaves_nothing() {
    privileged(|host| {
        if can_sweep(host) {
            sweep(host, "create", "");
        }
    });
}

#[test]
fn run_killed_at_any_step_of_it_or_its_children_leaves_nothing() {
    privileged(|host| {
        if can_sweep(host) {
            sweep(host, "run", "-f");
        }
    });
}

#[test]
fn delete_killed_at_any_step_can_be_repeated() {
    privileged(|host| {
        if !can_sweep(host) {
            return;
        }
        let mut leaks = String::new();
        for count in (1..12).step_by(stride(1)) {
            for call in ["unlinkat", "rmdir", "pidfd_send_signal", "openat2", "close"] {
                let before = host.snapshot();
                let container = host.sleeper();
                let options = format!("-qq -o /dev/null -e inject={call}:signal=KILL:when={count}");
                traced(host, container.bundle(), &options, "delete --force");
                host.call(&["delete", "--force", container.id()]).succeeds();
                if let Some(difference) = host.difference(&before) {
                    leaks += &format!("killed at {call} #{count}:\n{difference}");
                }
            }
        }
        assert!(leaks.is_empty(), "{leaks}");
    });
}

#[test]
fn run_of_an_image_killed_at_any_step_leaves_no_snapshot() {
    privileged(|host| {
        if !can_sweep(host) {
            return;
        }
        let (store, image) = (Store::new(host), small::image());
        store.import(&image);
        store.call(&["unpack", &image.name]).succeeds();
        let run = format!("run --store {} --image {}", store.directory().display(), image.name);
        sweep(host, &run, "");
        let snapshots = fs::read_dir(store.directory().join("snapshots")).unwrap();
        assert_eq!(snapshots.count(), 0);
    });
}

#[test]
fn start_killed_at_any_step_can_be_repeated() {
    privileged(|host| {
        if !can_sweep(host) {
            return;
        }
        let sleeping = || host.bundle(Spec::new().args(["sleep", "1000"])).create();
        let trace = host.directory().join("trace");
        let first = sleeping();
        traced(host, first.bundle(), &format!("-o {}", trace.display()), "start");
        first.remove();
        let mut stuck = String::new();
        let steps = Fault::Killed.steps(&trace);
        let mut turns = 0;
        for step in taken(&steps, 1) {
            let container = sleeping();
            traced(host, container.bundle(), &Fault::Killed.at(step, turns), "start");
            turns += 1;
            container.call("start");
            // Whom the killed one has told to go on is still on its way.
            let is_there = (0..500).any(|_| {
                std::thread::sleep(std::time::Duration::from_millis(10));
                fs::read(format!("/proc/{}/cmdline", container.pid())).unwrap().starts_with(b"sleep")
            });
            if !is_there {
                stuck += &format!("{}: it is {}\n", Fault::Killed.told(step, turns), container.status());
            }
            container.remove();
        }
        host.counted(&format!("start: it can be repeated after {turns} kills"));
        assert!(stuck.is_empty(), "{stuck}");
    });
}

#[test]
fn a_session_killed_at_any_step_of_its_client_leaves_nothing() {
    privileged(|host| {
        if !can_sweep(host) {
            return;
        }
        let (target, trace) = (host.sleeper(), host.directory().join("trace"));
        let clean = host.snapshot();
        traced(host, target.bundle(), &format!("-o {}", trace.display()), "debug");
        // The first session leaves a word with the target's record; its keeper may still be about to go.
        let _ = host.difference_soon(&clean);
        let before = host.snapshot();
        let steps = Fault::Killed.steps(&trace);
        let (mut leaks, mut turns) = (String::new(), 0);
        for step in taken(&steps, 5) {
            traced(host, target.bundle(), &Fault::Killed.at(step, turns), "debug");
            turns += 1;
            // One that was killed before its keeper was there has left a record at most.
            host.call(&["recover"]).succeeds();
            if let Some(difference) = host.difference(&before) {
                leaks += &format!("{}:\n{difference}", Fault::Killed.told(step, turns));
            }
        }
        host.counted(&format!("debug: {turns} kills leave nothing"));
        assert!(leaks.is_empty(), "{leaks}");
        target.remove();
    });
}
