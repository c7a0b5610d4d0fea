//! `events`: what a container uses, and when it is out of memory.

#![expect(clippy::unwrap_used, reason = "a helper of the tests fails as a test does")]

use std::fs::File;
use std::process::{Child, Command, Stdio};

use coracle_tests::{Container, Host, Spec, command, privileged};
use serde_json::{Value, json};

/// `events` in the background, with what it has written so far.
struct Follower {
    child: Child,
    file: std::path::PathBuf,
}

impl Follower {
    fn new(host: &Host, container: &Container<'_>, interval: &str) -> Self {
        let file = host.directory().join("events");
        let child = Command::new(host.runtime())
            .args(["events", "--interval", interval, container.id()])
            .stdin(Stdio::null())
            .stdout(File::create(&file).unwrap())
            .spawn()
            .unwrap();
        Self { child, file }
    }

    fn events(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(&self.file).unwrap();
        // The last line may be half written.
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        whole.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Waits until it has opened a file of one of these kinds.
    fn has_open(&self, kinds: &[&str]) {
        command::eventually("it follows the container", || {
            let fds = std::fs::read_dir(format!("/proc/{}/fd", self.child.id()));
            let mut files = fds.into_iter().flatten().flatten().flat_map(|fd| std::fs::read_link(fd.path()));
            files.any(|file| kinds.iter().any(|kind| file.to_string_lossy().contains(kind)))
        });
    }

    fn count(&self, kind: &str) -> usize {
        self.events().iter().filter(|event| event["type"] == kind).count()
    }
}

#[test]
fn an_interval_that_no_clock_can_tell_does_not_end() {
    privileged(|host| {
        if !host.needs_coracle("intervals of any length") {
            return;
        }
        let container = host.sleeper();
        let mut follower = Follower::new(host, &container, "5000000000000000h");
        follower.has_open(&["pidfd"]);
        container.call_with("kill", &["KILL"]).succeeds();
        assert_eq!(command::code(command::wait(&mut follower.child, "events")), 0);
        container.call("delete").succeeds();
    });
}

#[test]
fn stats_are_told_once_in_the_form_of_runc() {
    privileged(|host| {
        let spec = Spec::new()
            .set("/linux/resources/memory", json!({"limit": 64 << 20}))
            .set("/linux/resources/pids", json!({"limit": 9}));
        let container = host.bundle(spec.script("head -c 3000000 /dev/zero >/dev/null; sleep 1000")).start();
        let stats = || host.call(&["events", "--stats", container.id()]).succeeds().json();
        command::eventually("some processor time", || {
            stats()["data"]["cpu"]["usage"]["total"].as_u64() > Some(0)
        });
        let event = stats();
        assert_eq!((&event["type"], &event["id"]), (&json!("stats"), &json!(container.id())));
        let data = &event["data"];
        assert_eq!(data["memory"]["usage"]["limit"], 64 << 20);
        assert!(data["memory"]["usage"]["usage"].as_u64() > Some(0), "{data}");
        assert!(data["memory"]["raw"]["pgfault"].as_u64() > Some(0), "{data}");
        assert!(data["pids"]["current"].as_u64() > Some(0) && data["pids"]["limit"] == 9, "{data}");
        for part in ["blkio", "hugetlb", "intel_rdt"] {
            assert!(data[part].is_object(), "{part}");
        }
        assert!(data["cpu"]["throttling"].is_object());
        container.remove();
    });
}

#[test]
fn they_come_at_the_interval_and_end_with_the_container() {
    privileged(|host| {
        let container = host.sleeper();
        let mut follower = Follower::new(host, &container, "50ms");
        command::eventually("three events", || follower.count("stats") >= 3);
        container.call_with("kill", &["KILL"]).succeeds();
        assert!(command::wait(&mut follower.child, "events").success());
        container.becomes("stopped");
        container.call("delete").succeeds();
    });
}

#[test]
fn they_end_when_nobody_reads_them_any_more() {
    privileged(|host| {
        let container = host.sleeper();
        let line =
            format!("timeout 10 sh -c '$RUNTIME events --interval 50ms {} | head -n 1'", container.id());
        host.shell(&line).succeeds();
        container.remove();
    });
}

#[test]
fn a_container_that_is_out_of_memory_is_told_of() {
    privileged(|host| {
        let memory = json!({"limit": 8 << 20, "swap": 8 << 20});
        let script = "until [ -e /tmp/go ]; do sleep 0.01; done; head -c 50000000 /dev/zero | tail -c 40000000 >/dev/null; echo over; sleep 1000";
        let spec = Spec::new().set("/linux/resources/memory", memory).script(script);
        let container = host.bundle(spec).start();
        let mut follower = Follower::new(host, &container, "10s");
        // How it hears of it: on version 1, and on version 2.
        follower.has_open(&["eventfd", "inotify"]);
        assert_eq!(follower.count("oom"), 0);
        container.exec(&["touch", "/tmp/go"]).succeeds();
        command::eventually("an oom event", || follower.count("oom") >= 1);
        assert_eq!(follower.events()[0]["id"], container.id());
        container.remove();
        assert!(command::wait(&mut follower.child, "events").success());
    });
}

#[test]
fn named_events_are_counted_by_the_second() {
    privileged(|host| {
        if !host.needs_coracle("an annotation for events that are counted") {
            return;
        }
        let busy = Spec::new().set("/annotations/io.coracle.perf", "task-clock,page-faults");
        let container = host.bundle(busy.script("while :; do :; done")).start();
        // Nanoseconds of a processor, which others may have some of the time.
        command::eventually("time of a processor", || {
            let stats = container.call("stats").succeeds().json();
            stats["other"]["cgroups/perf/task-clock"].as_f64().unwrap() > 1e8
        });
        let told = container.verb_with("stats", &["--format", "prometheus"]).succeeds().text();
        assert!(told.contains("cgroups/perf/page-faults"), "{told}");
        container.remove();
        let unknown = Spec::new().set("/annotations/io.coracle.perf", "cakes");
        host.bundle(unknown).try_create().fails_with(&[
            "cgroups/perf",
            "/annotations/io.coracle.perf",
            "\"cakes\" is no event",
        ]);
    });
}

#[test]
fn a_container_that_does_not_run_has_none() {
    privileged(|host| {
        let container = host.bundle(Spec::new()).start();
        container.becomes("stopped");
        container.call("events").fails_with(&["not running"]);
        container.call("delete").succeeds();
        host.call(&["events", "nobody"]).fails_with(&["does not exist"]);
        host.call(&["events", "--interval", "0s", "nobody"]).fails_with(&["greater than 0"]);
    });
}
