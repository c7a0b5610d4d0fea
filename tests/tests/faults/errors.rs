//! The runtime refused any system call, one a turn: it does its work all the same, or says in one line what failed.
//! Never does it hang, and `delete --force` then leaves nothing.

use std::fs;
use std::path::PathBuf;

use coracle_fixtures::spec::docker_like_seccomp;
use coracle_tests::oracle::Snapshot;
use coracle_tests::{Bundle, Host, Outcome, Spec, privileged};

use crate::trace::{ERRORS, Fault, Step, can_sweep, patience, seed, taken, traced};

/// Of all processes of `run`, an error hits the first that comes to a step; so the child is swept alone, too, from its
/// isolation on.
const VERBS: [&str; 6] = ["create", "start", "exec", "delete", "run", INSIDE];
const INSIDE: &str = "inside";

/// What the container's program writes about itself: whatever was refused, a container that starts is the whole one.
const REPORT: &str = r#"
exec >/tmp/report 2>&1
grep -E '^(Uid|Gid|Groups|Cap.*|NoNewPrivs|Seccomp):' /proc/self/status
hostname; umask; ulimit -n; pwd; env | sort | grep -v ^SHLVL
cat /proc/self/oom_score_adj /proc/sys/net/ipv4/ip_unprivileged_port_start /sys/class/net/lo/flags
for file in memory/memory.limit_in_bytes memory.max pids/pids.max pids.max; do
    [ ! -e /sys/fs/cgroup/$file ] || cat /sys/fs/cgroup/$file
done
cut -d: -f2- /proc/self/cgroup
cut -d' ' -f4- /proc/self/mountinfo | sed -E 's/(master|shared):[0-9]+//'
stat -c '%n %F %a %u:%g %t:%T' /dev/* /proc/kcore /proc/timer_list
touch /proc/sys/new; touch /new; ls /proc/self/fd | wc -l
for kind in pid net ipc uts mnt cgroup; do
    grep -q "$(readlink /proc/self/ns/$kind)" /namespaces || echo "own $kind"
done
"#;

fn specification() -> Spec {
    Spec::new()
        .args(["sh", "/report"])
        .user(1000, 1000)
        .memory(64 << 20)
        .pids(32)
        .set("/root/readonly", true)
        .mount("/tmp", "bind", "report", &["bind", "rw"])
        .set("/process/oomScoreAdj", 100)
        .set("/linux/sysctl", serde_json::json!({"net.ipv4.ip_unprivileged_port_start": "77"}))
        .set("/linux/seccomp", docker_like_seccomp())
}

/// A hook that lets strace(1) have the child that waits.
const HOOK: &str = r#"
pid=$(sed 's/.*"pid": *\([0-9]*\).*/\1/')
strace -b execve -qq $(cat strace) -p $pid >/dev/null 2>&1 &
until grep -q 'TracerPid:.[1-9]' /proc/$pid/status; do kill -0 $! || exit 1; sleep 0.002; done
"#;

/// One verb under test, on a bundle that reports what its container is like.
struct Sweep<'h> {
    host: &'h Host,
    bundle: Bundle<'h>,
    verb: &'static str,
    before: Snapshot,
    /// The runtime's file, where nobody can write to it.
    read_only: PathBuf,
    /// The report of a container that nothing was refused.
    whole: String,
    turns: usize,
    faults: Vec<String>,
}

impl<'h> Sweep<'h> {
    fn new(host: &'h Host, verb: &'static str) -> Self {
        let spec = specification();
        // `exec` reports; the container that it goes to only waits.
        let spec = match verb {
            "exec" => spec.args(["sleep", "1000"]),
            INSIDE => spec.hook("createRuntime", &["/bin/sh", "hook"]),
            _ => spec,
        };
        let bundle = host.bundle(spec).with_file("report", REPORT).with_file("namespaces", &namespaces());
        fs::write(bundle.directory().join("hook"), HOOK).unwrap();
        fs::create_dir(bundle.directory().join("report")).unwrap();
        std::os::unix::fs::chown(bundle.directory().join("report"), Some(1000), Some(1000)).unwrap();
        let read_only = host.directory().join("coracle");
        let (file, runtime) = (read_only.display(), host.runtime().display());
        let mount =
            format!("touch {file} && mount --bind {runtime} {file} && mount -o remount,ro,bind {file}");
        host.shell(&mount).succeeds();
        let before = host.snapshot();
        Self { host, bundle, verb, before, read_only, whole: String::new(), turns: 0, faults: Vec::new() }
    }

    /// What went wrong.
    fn end(self) -> Vec<String> {
        self.host.shell(&format!("umount {}", self.read_only.display())).succeeds();
        let clean = self.turns - self.faults.len();
        self.host.counted(&format!("{}: {clean} of {} refusals are clean", self.verb, self.turns));
        self.faults
    }

    fn report(&self) -> PathBuf {
        self.bundle.directory().join("report/report")
    }

    /// The system calls that the verb makes, of all its processes, but for the container's own program.
    fn steps(&mut self) -> Vec<Step> {
        let trace = self.host.directory().join("trace");
        let run = self.turn(&format!("-o {}", trace.display()));
        assert_eq!(run.code, 0, "{}: {run:?}", self.verb);
        self.whole = self.reported();
        assert!(self.whole.contains("own pid") || self.verb == "delete", "{}", self.whole);
        self.clean();
        Fault::Refused.steps(&trace)
    }

    /// Brings a container to where the verb applies, and runs the verb under strace.
    fn turn(&self, strace: &str) -> Outcome {
        let (_, id) = (fs::remove_file(self.report()), self.bundle.id());
        if self.verb == INSIDE {
            fs::write(self.bundle.directory().join("strace"), strace).unwrap();
            return self.in_time(&format!("sh -c '$RUNTIME create {id} && $RUNTIME start {id}'"));
        }
        if ["start", "exec", "delete"].contains(&self.verb) {
            self.bundle.try_create().succeeds();
        }
        if ["exec", "delete"].contains(&self.verb) {
            self.host.call(&["start", id]).succeeds();
        }
        let verb = match self.verb {
            "exec" => format!("exec {id} sh /report"),
            "delete" => format!("delete --force {id}"),
            verb => format!("{verb} {id}"),
        };
        // A child is followed until it executes the container's program; one that waits would keep strace from its
        // end. The runtime executes itself again, unless its own file can't be written to and it thinks that it has.
        let runtime = self.host.runtime().display();
        let (follow, program) = match self.verb {
            "run" | "exec" => {
                (format!("-f -b execve -E _CORACLE_ORIGIN={runtime}"), self.read_only.display().to_string())
            }
            _ => (String::new(), runtime.to_string()),
        };
        self.in_time(&format!("strace {follow} -qq {strace} {program} {verb}"))
    }

    /// A command in the bundle, killed where it hangs.
    fn in_time(&self, command: &str) -> Outcome {
        let directory = self.bundle.directory().display();
        self.host
            .shell(&format!("cd {directory} && exec timeout -s KILL {} {command} </dev/null", patience()))
    }

    /// What the program reports in the end.
    fn reported(&self) -> String {
        if self.verb == "create" {
            self.host.call(&["start", self.bundle.id()]).succeeds();
        }
        if self.verb != "delete" {
            let ends = "own cgroup\n";
            coracle_tests::command::eventually("a whole report", || {
                fs::read_to_string(self.report()).is_ok_and(|report| report.ends_with(ends))
            });
        }
        fs::read_to_string(self.report()).unwrap_or_default()
    }

    /// Refuses one call, and writes down what went wrong but should not.
    fn refuse(&mut self, step: &Step, error: &str) {
        let (call, count) = step;
        let run = self.turn(&format!("-o /dev/null -e inject={call}:error={error}:when={count}"));
        let wrong = match run.code {
            0 if self.verb != "delete" => {
                let report = self.reported();
                (report != self.whole)
                    .then(|| format!("succeeds, but is not the same: {}", self.compare(&report)))
            }
            _ => Fault::Refused.wrong(step, &run),
        };
        let left = self.clean();
        self.turns += 1;
        if wrong.is_some() || left.is_some() {
            let what: Vec<String> = wrong.into_iter().chain(left).collect();
            self.faults.push(format!("{} {call} #{count} {error}: {}\n", self.verb, what.join("; ")));
        }
    }

    fn compare(&self, report: &str) -> String {
        let differs = report.lines().filter(|line| !self.whole.lines().any(|other| other == *line));
        let lacks = self.whole.lines().filter(|line| !report.lines().any(|other| other == *line));
        format!("has {:?}, lacks {:?}", differs.collect::<Vec<_>>(), lacks.collect::<Vec<_>>())
    }

    /// Deletes the container by force, and tells what is left.
    fn clean(&self) -> Option<String> {
        let delete = self.host.call(&["delete", "--force", self.bundle.id()]);
        if delete.code != 0 {
            return Some(format!("delete --force: {}", delete.stderr));
        }
        self.host.difference(&self.before)
    }
}

/// The namespaces of this process, by which the program tells that it is in others.
fn namespaces() -> String {
    let links = fs::read_dir("/proc/self/ns").unwrap().flatten();
    links.map(|entry| format!("{}\n", fs::read_link(entry.path()).unwrap().display())).collect()
}

/// Sweeps every verb: one step of so many, the errors in turn from `errors`.
fn sweep(host: &Host, every: usize, errors: &[&str]) {
    if !can_sweep(host) {
        return;
    }
    let mut faults = Vec::new();
    for verb in VERBS {
        let mut sweep = Sweep::new(host, verb);
        let steps = sweep.steps();
        for (turn, step) in taken(&steps, every).enumerate() {
            let error = errors[(turn + seed()) % errors.len()];
            // By this flock(2) answers that another launch holds the cgroup, which is then rightly left to it.
            if (step.0.as_str(), error) != ("flock", "EAGAIN") {
                sweep.refuse(step, error);
            }
        }
        faults.extend(sweep.end());
    }
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.concat());
}

#[test]
fn a_container_that_cant_be_looked_at_is_not_taken_for_gone() {
    privileged(|host| {
        if !can_sweep(host) {
            return;
        }
        let container = host.sleeper();
        for count in 1..8 {
            let options = format!("-qq -o /dev/null -e inject=newfstatat:error=EINTR:when={count}");
            let delete = traced(host, container.bundle(), &options, "delete --force");
            let is_there = host.call(&["state", container.id()]).code == 0;
            assert_eq!(delete.code != 0, is_there, "newfstatat #{count}: {}", delete.stderr);
            if !is_there {
                return;
            }
        }
        container.remove();
    });
}

#[test]
fn any_call_may_fail_a_sample() {
    privileged(|host| sweep(host, 5, &ERRORS));
}

#[test]
#[ignore = "takes minutes: make test-faults"]
fn every_call_may_be_forbidden() {
    privileged(|host| sweep(host, 1, &ERRORS[..1]));
}

#[test]
#[ignore = "takes minutes: make test-faults"]
fn every_call_may_lack_memory() {
    privileged(|host| sweep(host, 1, &ERRORS[1..2]));
}

#[test]
#[ignore = "takes minutes: make test-faults"]
fn every_call_may_lack_space() {
    privileged(|host| sweep(host, 1, &ERRORS[2..3]));
}

#[test]
#[ignore = "takes minutes: make test-faults"]
fn every_call_may_lack_descriptors() {
    privileged(|host| sweep(host, 1, &ERRORS[3..4]));
}

#[test]
#[ignore = "takes minutes: make test-faults"]
fn every_call_may_be_interrupted() {
    privileged(|host| sweep(host, 1, &ERRORS[4..5]));
}

#[test]
#[ignore = "takes minutes: make test-faults"]
fn every_call_may_have_to_be_tried_again() {
    privileged(|host| sweep(host, 1, &ERRORS[5..6]));
}

#[test]
#[ignore = "takes minutes: make test-faults"]
fn every_call_may_be_unknown_to_the_kernel() {
    privileged(|host| sweep(host, 1, &ERRORS[6..]));
}
