//! Whoever of a pod is killed, or refused something, at any system call (the command line, the supervisor, its keeper, its jobs,
//! a container): what is left goes with `recover` and `pod rm --force`, and nothing stays.

use std::cell::RefCell;
use std::fs;
use std::time::{Duration, Instant};

use coracle_tests::oracle::Snapshot;
use coracle_tests::pod::Pods;
use coracle_tests::{Host, Outcome, privileged};

use crate::trace::{Fault, Step, can_sweep, patience, taken, told, unless_whole};

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
    before: RefCell<Snapshot>,
}

impl<'p, 'h> Sweep<'p, 'h> {
    fn new(pods: &'p Pods<'h>) -> Self {
        let text = format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: web}}\nspec:\n{SPEC}");
        let image = coracle_tests::pod::IMAGE;
        let document = pods.file(&text.replace("IMAGE", image)).display().to_string();
        let nested = pods.file(&format!("{{name: child, image: '{image}', command: [sleep, '1000']}}"));
        Self {
            pods,
            document,
            nested: nested.display().to_string(),
            before: RefCell::new(pods.host.snapshot()),
        }
    }

    fn host(&self) -> &Host {
        self.pods.host
    }

    /// `pod run` under strace(1), which goes on with whatever that leaves running.
    fn run(&self, options: &str) -> Outcome {
        let store = self.pods.store.directory().display();
        let command = format!("$RUNTIME pod run --store {store} -f {} </dev/null", self.document);
        self.host()
            .shell(&format!("exec timeout -s KILL {} strace -D -f {options} {command}", 4 * patience()))
    }

    /// What a whole life of the pod calls, up to the moment when it runs.
    fn steps_of_run(&self, fault: Fault) -> Vec<Step> {
        let trace = self.host().directory().join("trace");
        self.run(&format!("-o {}", trace.display())).exits(0);
        self.pods.becomes("web", "main", "state", "running");
        self.clear();
        fault.steps(&trace)
    }

    /// A pod that nothing happens to until it runs.
    fn begin(&self) -> Outcome {
        let store = self.pods.store.directory().display().to_string();
        self.pods.call(&["run", "--store", &store, "-f", &self.document])
    }

    /// Whether there is no pod: one that does not go stands in the way of all turns that follow.
    fn is_free(&self) -> bool {
        self.pods.call(&["ls", "--quiet"]).text().is_empty()
    }

    /// What follows the start (a launch below a container, an exec, the end, another start), while strace(1) has the
    /// supervisor and its jobs.
    fn life(&self, options: &str) -> Outcome {
        let pid = self.pods.inspect("web")["supervisor"].clone();
        let attached = format!(
            "until grep -qs 'TracerPid:.[1-9]' /proc/{pid}/status; do kill -0 $! || break; sleep 0.002; done"
        );
        let strace = format!("strace -f -p {pid} {options} </dev/null >/dev/null 2>&1 & {attached}");
        let verbs = [
            &format!("launch -f {} web/main", self.nested),
            "exec web/main/child true",
            "stop web",
            "start web",
            "rm --force web",
        ];
        let script = verbs.map(|verb| format!("$RUNTIME pod {verb}")).join("; ");
        // What is left is looked at without a debugger, which would go on killing.
        let rest = "code=$?; { kill $!; wait $!; } 2>/dev/null; exit $code";
        self.host().shell(&format!("{strace}; timeout -s KILL {} sh -c '{script}'; {rest}", 6 * patience()))
    }

    /// What is left in the store of containers' files, which the oracle does not look at.
    fn snapshots(&self) -> Option<String> {
        let left = fs::read_dir(self.pods.store.directory().join("snapshots")).unwrap().flatten();
        let left: Vec<_> = left.map(|entry| entry.file_name()).collect();
        (!left.is_empty()).then(|| format!("snapshots {left:?}"))
    }

    /// What is left on the host; it is told once.
    fn difference(&self) -> Option<String> {
        let difference = self.host().difference(&self.before.borrow())?;
        *self.before.borrow_mut() = self.host().snapshot();
        Some(difference)
    }

    /// Takes away what is left, and tells what does not go. The kills go on, so it may take a few turns; what is refused to
    /// each job anew can't be done before the debugger has gone.
    fn clear(&self) -> Option<String> {
        let end = Instant::now() + Duration::from_secs(patience().into());
        let mut turns = 0;
        while turns < 20 || Instant::now() < end {
            if turns == 10 {
                self.host().shell("busybox killall -q -9 strace");
            }
            turns += 1;
            let recovered = self.host().call(&["recover"]);
            let removed = self.pods.call(&["rm", "--force", "web"]);
            let left = self.pods.call(&["ls", "--quiet"]);
            if recovered.code == 0 && removed.code == 0 && left.text().is_empty() {
                return self.snapshots().or_else(|| self.difference());
            }
        }
        let recovered = self.host().call(&["recover"]);
        let removed = self.pods.call(&["rm", "--force", "web"]);
        Some(format!("it can't be removed: {} {}", recovered.stderr, removed.stderr))
    }
}

/// Lets it happen to everybody at steps of `pod run`, one a turn.
fn sweep_run(host: &Host, fault: Fault, every: usize) {
    if !can_sweep(host) {
        return;
    }
    let Some(pods) = Pods::new(host) else { return };
    let sweep = Sweep::new(&pods);
    let steps = sweep.steps_of_run(fault);
    let (mut faults, mut turns) = (Vec::new(), 0);
    for step in taken(&steps, every).take_while(|_| sweep.is_free()) {
        let run = sweep.run(&fault.at(step, turns));
        faults.extend(fault.judged(step, turns, fault.wrong(step, &run), sweep.clear()));
        turns += 1;
    }
    told(host, &format!("pod run, {fault:?}"), (turns, steps.len()), &faults);
}

/// Lets it happen to the supervisor and its jobs at steps of what follows the start.
fn sweep_life(host: &Host, fault: Fault, every: usize) {
    if !can_sweep(host) {
        return;
    }
    let Some(pods) = Pods::new(host) else { return };
    let sweep = Sweep::new(&pods);
    sweep.begin().exits(0);
    let trace = host.directory().join("trace");
    sweep.life(&format!("-o {}", trace.display())).exits(0);
    let steps = fault.steps(&trace);
    let (mut faults, mut turns) = (Vec::new(), 0);
    for step in taken(&steps, every).take_while(|_| sweep.is_free()) {
        let begun = sweep.begin();
        if begun.code != 0 {
            faults.push(format!("and then no pod can begin: {}\n", begun.stderr));
            break;
        }
        let life = sweep.life(&fault.at(step, turns));
        let wrong = match fault {
            Fault::Refused if life.code == 137 => Some("hangs".to_owned()),
            Fault::Refused => life
                .stderr
                .lines()
                .find(|line| !line.starts_with("coracle"))
                .map(|line| format!("said {line:?}")),
            Fault::Killed => None,
        };
        faults.extend(fault.judged(step, turns, wrong, sweep.clear()));
        turns += 1;
    }
    told(host, &format!("a pod's life, {fault:?}"), (turns, steps.len()), &faults);
}

#[test]
fn who_is_killed_at_some_steps_of_a_pods_start_leaves_nothing() {
    privileged(|host| sweep_run(host, Fault::Killed, 41));
}

#[test]
fn who_is_killed_at_some_steps_of_a_pods_life_leaves_nothing() {
    privileged(|host| sweep_life(host, Fault::Killed, 61));
}

#[test]
#[ignore = "takes minutes: make test-faults"]
fn who_is_killed_at_any_step_of_a_pods_start_leaves_nothing() {
    privileged(|host| sweep_run(host, Fault::Killed, unless_whole(3)));
}

#[test]
#[ignore = "takes minutes: make test-faults"]
fn who_is_killed_at_any_step_of_a_pods_life_leaves_nothing() {
    privileged(|host| sweep_life(host, Fault::Killed, unless_whole(5)));
}

#[test]
#[ignore = "takes minutes: make test-faults"]
fn who_is_refused_any_call_of_a_pods_start_leaves_nothing() {
    privileged(|host| sweep_run(host, Fault::Refused, unless_whole(3)));
}

#[test]
#[ignore = "takes minutes: make test-faults"]
fn who_is_refused_any_call_of_a_pods_life_leaves_nothing() {
    privileged(|host| sweep_life(host, Fault::Refused, unless_whole(5)));
}
