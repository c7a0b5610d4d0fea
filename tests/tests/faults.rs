//! The runtime killed at every system call: `delete --force` then leaves nothing.

#![expect(clippy::unwrap_used, reason = "a helper of the tests fails as a test does")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use coracle_fixtures::small;
use coracle_tests::image::Store;
use coracle_tests::{Bundle, Host, Spec, privileged};

/// A system call, and the how-maniest of its kind.
type Step = (String, usize);

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

/// Runs a verb under strace; its exit code is the verb's.
fn traced(host: &Host, bundle: &Bundle<'_>, options: &str, verb: &str) -> i32 {
    let (directory, id) = (bundle.directory().display(), bundle.id());
    let command = format!("strace {options} $RUNTIME {verb} {id} </dev/null >/dev/null 2>&1");
    host.shell(&format!("cd {directory} && exec timeout -s KILL 20 {command}")).code
}

/// Kills `verb` at each of its steps, one a turn, and tells after which something was left.
fn sweep(host: &Host, verb: &str, follow: &str) {
    let bundle = host.bundle(Spec::new().memory(64 << 20).pids(32).args(["true"]));
    let trace = host.directory().join("trace");
    traced(host, &bundle, &format!("{follow} -o {}", trace.display()), verb);
    host.call(&["delete", "--force", bundle.id()]).succeeds();
    let steps = steps(&fs::read_to_string(&trace).unwrap());
    assert!(steps.len() > 30, "only {} steps were traced", steps.len());
    let (mut leaks, mut turns, mut failed) = (String::new(), 0, 0);
    for (call, count) in &steps {
        let before = host.snapshot();
        let options = format!("{follow} -qq -o /dev/null -e inject={call}:signal=KILL:when={count}");
        turns += 1;
        failed += u32::from(traced(host, &bundle, &options, verb) != 0);
        let delete = host.call(&["delete", "--force", bundle.id()]);
        if delete.code != 0 {
            leaks += &format!("killed at {call} #{count}: delete --force: {}\n", delete.stderr);
        }
        if let Some(difference) = host.difference(&before) {
            leaks += &format!("killed at {call} #{count}:\n{difference}");
        }
    }
    assert!(leaks.is_empty(), "{leaks}");
    // A step that a second run happens not to reach kills nobody; they must be few.
    assert!(failed * 10 >= turns * 9, "only {failed} of {turns} turns were killed");
}

fn can_sweep(host: &Host) -> bool {
    // runc 1.1 leaves cgroups behind when it is killed before it wrote its state.
    host.needs_coracle("a journal of intents") && host.needs_program("strace")
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
        for count in 1..12 {
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

/// Cuts a file to half its length, as a host that crashes may.
fn cut(path: &Path) {
    let bytes = fs::read(path).unwrap();
    fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
}

#[test]
fn a_record_that_was_cut_short_does_not_keep_a_container() {
    privileged(|host| {
        if !host.needs_coracle("a record that may be broken") {
            return;
        }
        let before = host.snapshot();
        let container = host.sleeper();
        cut(&Path::new("/run/coracle").join(container.id()).join("record.json"));
        host.call(&["delete", "--force", container.id()]).succeeds();
        assert_eq!(host.difference(&before), None);
    });
}

#[test]
fn where_nothing_tells_what_to_remove_force_says_so() {
    privileged(|host| {
        if !host.needs_coracle("a record that may be broken") {
            return;
        }
        let container = host.sleeper();
        let pid = container.pid();
        let record = Path::new("/run/coracle").join(container.id()).join("record.json");
        let whole = fs::read(&record).unwrap();
        cut(&record);
        cut(&record.with_file_name("config.json"));
        host.call(&["delete", "--force", container.id()]).fails_with(&["record", "configuration"]);
        assert!(Path::new(&format!("/proc/{pid}")).is_dir());
        fs::write(&record, whole).unwrap();
        host.call(&["delete", "--force", container.id()]).succeeds();
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
        for (call, count) in steps(&fs::read_to_string(&trace).unwrap()) {
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
        assert!(stuck.is_empty(), "{stuck}");
    });
}
