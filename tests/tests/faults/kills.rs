//! The runtime killed at every system call: `delete --force` then leaves nothing.

use std::fs;

use coracle_fixtures::small;
use coracle_tests::image::Store;
use coracle_tests::{Bundle, Host, Spec, privileged};

use crate::trace::{can_sweep, steps, stride, traced};

/// A sweep: a verb that is killed at its steps, one a turn.
pub(crate) struct Kills<'a> {
    pub host: &'a Host,
    pub bundle: &'a Bundle<'a>,
    pub verb: &'a str,
    /// Whether children are killed at their steps, too (strace's `-f`).
    pub follow: &'a str,
    /// Of how many steps one is taken.
    pub stride: usize,
    /// What is left that the oracle does not see.
    pub left: &'a dyn Fn() -> Option<String>,
}

impl Kills<'_> {
    /// Kills the verb at its steps, and tells after which something was left.
    pub(crate) fn sweep(&self) {
        let Self { host, bundle, verb, follow, .. } = self;
        let trace = host.directory().join("trace");
        traced(host, bundle, &format!("{follow} -o {}", trace.display()), verb);
        host.call(&["delete", "--force", bundle.id()]).succeeds();
        assert_eq!((self.left)(), None);
        let steps = steps(&fs::read_to_string(&trace).unwrap());
        assert!(steps.len() > 30, "only {} steps were traced", steps.len());
        let (mut leaks, mut turns, mut failed) = (Vec::new(), 0, 0);
        for (call, count) in steps.iter().step_by(stride(self.stride)) {
            let before = host.snapshot();
            let options = format!("{follow} -qq -o /dev/null -e inject={call}:signal=KILL:when={count}");
            turns += 1;
            failed += usize::from(traced(host, bundle, &options, verb) != 0);
            let delete = host.call(&["delete", "--force", bundle.id()]);
            let unclean = (delete.code != 0).then(|| format!("delete --force: {}", delete.stderr));
            if let Some(what) = unclean.or_else(self.left).or_else(|| host.difference(&before)) {
                leaks.push(format!("killed at {call} #{count}: {what}\n"));
            }
        }
        host.counted(&format!("{verb}: {} of {turns} kills leave nothing", turns - leaks.len()));
        assert!(leaks.is_empty(), "{}", leaks.concat());
        // A step that a second run happens not to reach kills nobody; they must be few.
        assert!(failed * 10 >= turns * 9, "only {failed} of {turns} turns were killed");
    }
}

fn sweep(host: &Host, verb: &str, follow: &str) {
    let bundle = host.bundle(Spec::new().memory(64 << 20).pids(32).args(["true"]));
    Kills { host, bundle: &bundle, verb, follow, stride: 1, left: &|| None }.sweep();
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
        let steps = steps(&fs::read_to_string(&trace).unwrap());
        for (call, count) in steps.iter().step_by(stride(1)) {
            let container = sleeping();
            let options = format!("-qq -o /dev/null -e inject={call}:signal=KILL:when={count}");
            traced(host, container.bundle(), &options, "start");
            container.call("start");
            let command = fs::read(format!("/proc/{}/cmdline", container.pid())).unwrap();
            if !command.starts_with(b"sleep") {
                stuck += &format!("killed at {call} #{count}: it is {}\n", container.status());
            }
            container.remove();
        }
        host.counted(&format!("start: it can be repeated after {} kills", steps.len().div_ceil(stride(1))));
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
        // The first session leaves a word with the target's record.
        traced(host, target.bundle(), &format!("-o {}", trace.display()), "debug");
        let before = host.snapshot();
        let steps = steps(&fs::read_to_string(&trace).unwrap());
        assert!(steps.len() > 60, "only {} steps were traced", steps.len());
        let (mut leaks, mut turns) = (String::new(), 0);
        for (call, count) in steps.iter().step_by(stride(5)) {
            turns += 1;
            let options = format!("-qq -o /dev/null -e inject={call}:signal=KILL:when={count}");
            traced(host, target.bundle(), &options, "debug");
            // One that was killed before its keeper was there has left a record at most.
            host.call(&["recover"]).succeeds();
            if let Some(difference) = host.difference(&before) {
                leaks += &format!("killed at {call} #{count}:\n{difference}");
            }
        }
        host.counted(&format!("debug: {turns} kills leave nothing"));
        assert!(leaks.is_empty(), "{leaks}");
        target.remove();
    });
}
