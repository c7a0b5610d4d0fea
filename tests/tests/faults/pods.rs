//! Whoever of a pod is killed at any system call (the command line, the supervisor, its keeper, its jobs, a container): what
//! is left goes with `recover` and `pod rm --force`, and nothing stays.

use std::fs;
use std::path::Path;

use coracle_tests::oracle::Snapshot;
use coracle_tests::pod::Pods;
use coracle_tests::{Host, privileged};

use crate::trace::{Step, can_sweep, patience, steps, stride};

const SPEC: &str = "
  terminationGracePeriodSeconds: 0
  volumes: [{name: disk, emptyDir: {}}, {name: memory, emptyDir: {medium: Memory}}, {name: image, image: {reference: IMAGE}}]
  initContainers:
  - {name: first, image: IMAGE, command: ['true']}
  containers:
  - name: main
    image: IMAGE
    command: [sleep, '1000']
    volumeMounts: [{name: disk, mountPath: /d}, {name: memory, mountPath: /m}, {name: image, mountPath: /i}]
";

/// A pod's document, and the one of a container below its own.
struct Sweep<'p, 'h> {
    pods: &'p Pods<'h>,
    document: String,
    nested: String,
    before: Snapshot,
}

impl<'p, 'h> Sweep<'p, 'h> {
    fn new(pods: &'p Pods<'h>) -> Self {
        let text = format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: web}}\nspec:\n{SPEC}");
        let image = coracle_tests::pod::IMAGE;
        let document = pods.file(&text.replace("IMAGE", image)).display().to_string();
        let nested = pods.file(&format!("{{name: child, image: '{image}', command: [sleep, '1000']}}"));
        Self { pods, document, nested: nested.display().to_string(), before: pods.host.snapshot() }
    }

    fn host(&self) -> &Host {
        self.pods.host
    }

    /// `pod run` under strace(1), which goes on with whatever that leaves running.
    fn run(&self, options: &str) -> i32 {
        let store = self.pods.store.directory().display();
        let command =
            format!("$RUNTIME pod run --store {store} -f {} </dev/null >/dev/null 2>&1", self.document);
        self.host()
            .shell(&format!("exec timeout -s KILL {} strace -D -f {options} {command}", 4 * patience()))
            .code
    }

    /// What a whole life of the pod calls, up to the moment when it runs.
    fn steps_of_run(&self) -> Vec<Step> {
        let trace = self.host().directory().join("trace");
        assert_eq!(self.run(&format!("-o {}", trace.display())), 0, "a traced run succeeds");
        self.pods.becomes("web", "main", "state", "running");
        self.clear();
        steps_in(&trace)
    }

    /// What the supervisor and its jobs call while `script` is at work, and whether it succeeded.
    fn supervisor(&self, options: &str, script: &str) -> i32 {
        let pid = self.pods.inspect("web")["supervisor"].clone();
        let attached = format!(
            "until grep -q 'TracerPid:.[1-9]' /proc/{pid}/status; do kill -0 $! || break; sleep 0.002; done"
        );
        let strace = format!("strace -f -p {pid} {options} </dev/null >/dev/null 2>&1 & {attached}");
        // What is left is looked at without a debugger, which would go on killing.
        let rest = "code=$?; kill $!; wait $!; exit $code";
        let script = format!("{strace}; timeout -s KILL {} sh -c '{script}'; {rest}", 4 * patience());
        self.host().shell(&script).code
    }

    /// What is left in the store of containers' files, which the oracle does not look at.
    fn snapshots(&self) -> Option<String> {
        let left = fs::read_dir(self.pods.store.directory().join("snapshots")).unwrap().flatten();
        let left: Vec<_> = left.map(|entry| entry.file_name()).collect();
        (!left.is_empty()).then(|| format!("snapshots {left:?}"))
    }

    /// Takes away what is left, and tells what does not go. The kills go on, so it may take a few turns.
    fn clear(&self) -> Option<String> {
        for _ in 0..20 {
            let recovered = self.host().call(&["recover"]);
            let removed = self.pods.call(&["rm", "--force", "web"]);
            let left = self.pods.call(&["ls", "--quiet"]);
            if recovered.code == 0 && removed.code == 0 && left.text().is_empty() {
                return self.snapshots().or_else(|| self.host().difference(&self.before));
            }
        }
        let recovered = self.host().call(&["recover"]);
        let removed = self.pods.call(&["rm", "--force", "web"]);
        Some(format!("it can't be removed: {} {}", recovered.stderr, removed.stderr))
    }
}

fn steps_in(trace: &Path) -> Vec<Step> {
    let steps = steps(&fs::read_to_string(trace).unwrap());
    assert!(steps.len() > 100, "only {} steps were traced", steps.len());
    steps
}

fn kill_at((call, count): &Step) -> String {
    format!("-qq -o /dev/null -e inject={call}:signal=KILL:when={count}")
}

fn told(host: &Host, what: &str, turns: usize, leaks: &[String]) {
    host.counted(&format!("{what}: {} of {turns} kills leave nothing", turns - leaks.len()));
    assert!(leaks.is_empty(), "{}", leaks.concat());
}

/// Kills everybody at each step of `pod run`, one step a turn.
fn sweep_run(host: &Host, own: usize) {
    if !can_sweep(host) {
        return;
    }
    let Some(pods) = Pods::new(host) else { return };
    let sweep = Sweep::new(&pods);
    let (mut leaks, mut turns) = (Vec::new(), 0);
    for step in sweep.steps_of_run().iter().step_by(stride(own)) {
        turns += 1;
        sweep.run(&kill_at(step));
        leaks.extend(sweep.clear().map(|what| format!("killed at {} #{}: {what}\n", step.0, step.1)));
    }
    told(host, "pod run", turns, &leaks);
}

/// Kills the supervisor and its jobs at each step of what follows the start: a launch below a container, an exec, the end.
fn sweep_supervisor(host: &Host, own: usize) {
    if !can_sweep(host) {
        return;
    }
    let Some(pods) = Pods::new(host) else { return };
    let sweep = Sweep::new(&pods);
    let script = format!(
        "$RUNTIME pod launch -f {} web/main; $RUNTIME pod exec web/main/child true; $RUNTIME pod stop web; $RUNTIME pod start web; $RUNTIME pod rm --force web",
        sweep.nested
    );
    let begin = || {
        sweep
            .host()
            .shell(&format!(
                "$RUNTIME pod run --store {} -f {}",
                pods.store.directory().display(),
                sweep.document
            ))
            .succeeds();
    };
    begin();
    let trace = host.directory().join("trace");
    assert_eq!(sweep.supervisor(&format!("-o {}", trace.display()), &script), 0, "a traced life succeeds");
    let (mut leaks, mut turns) = (Vec::<String>::new(), 0);
    for step in steps_in(&trace).iter().step_by(stride(own)) {
        turns += 1;
        if !pods.call(&["ls", "--quiet"]).text().is_empty() {
            break; // one that does not go is told below
        }
        begin();
        sweep.supervisor(&kill_at(step), &format!("({script}) >/dev/null 2>&1"));
        leaks.extend(sweep.clear().map(|what| format!("killed at {} #{}: {what}\n", step.0, step.1)));
    }
    told(host, "a pod's life", turns, &leaks);
}

#[test]
fn who_is_killed_at_some_steps_of_a_pods_start_leaves_nothing() {
    privileged(|host| sweep_run(host, 41));
}

#[test]
fn who_is_killed_at_some_steps_of_a_pods_life_leaves_nothing() {
    privileged(|host| sweep_supervisor(host, 61));
}

#[test]
#[ignore = "takes minutes: make test-faults"]
fn who_is_killed_at_any_step_of_a_pods_start_leaves_nothing() {
    privileged(|host| sweep_run(host, 1));
}

#[test]
#[ignore = "takes minutes: make test-faults"]
fn who_is_killed_at_any_step_of_a_pods_life_leaves_nothing() {
    privileged(|host| sweep_supervisor(host, 1));
}
