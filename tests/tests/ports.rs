//! TCP ports that are allotted to a container (`io.coracle.ports`): who listens on another ends it.

#![expect(clippy::unwrap_used, reason = "a helper of the tests fails as a test does")]

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use coracle_tests::command::{eventually, tool, wait};
use coracle_tests::pod::Pods;
use coracle_tests::{Host, Spec, privileged};
use serde_json::json;

/// The runtime's directory of states.
const STATES: &str = "/run/coracle";

/// The same host, on which the runtime looks for listeners all the time.
fn looking(host: &Host) -> Option<Host> {
    let config = "[isolator.\"network/ports\"]\noptions = { interval = 0.05 }\n";
    host.needs_coracle("ports that are allotted").then(|| host.configured(config))
}

/// A container that may listen on `ports` alone.
fn allotted(ports: &str) -> Spec {
    Spec::new().set("/annotations", json!({"io.coracle.ports": ports}))
}

/// The processes that watch over the container whose state is at `state`.
fn wardens(state: &Path) -> Vec<String> {
    let place = state.join("watched");
    let processes = fs::read_dir("/proc").unwrap().flatten().filter(|process| {
        let fds = fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten();
        fds.into_iter().any(|fd| fs::read_link(fd.path()).is_ok_and(|target| target == place))
    });
    processes.map(|process| process.file_name().into_string().unwrap()).collect()
}

/// Kills the one process that watches over the container whose state is at `state`, which `recover` replaces, once.
fn kill_warden(host: &Host, state: &Path) {
    eventually("it is watched", || wardens(state).len() == 1);
    let first = wardens(state);
    tool("kill", &["-9", &first[0]]);
    eventually("nobody watches", || wardens(state).is_empty());
    for _ in 0..2 {
        host.call(&["recover"]).succeeds();
        eventually("another watches", || wardens(state).len() == 1);
    }
    assert_ne!(wardens(state), first);
}

#[test]
fn a_listener_outside_the_allotted_ports_ends_its_container() {
    privileged(|host| {
        let Some(host) = looking(host) else { return };
        let listening =
            |port: &str| host.bundle(allotted("8000-8010").args(["timeout", "20", "nc", "-l", "-p", port]));
        let run = listening("9000").run().exits(137);
        assert!(run.stderr.contains("isolator network/ports: it listens on port 9000"), "{}", run.stderr);
        let quiet =
            host.bundle(allotted("8000-8010").script("timeout 1 nc -l -p 8005; true")).run().succeeds();
        assert!(!quiet.stderr.contains("network/ports"), "{}", quiet.stderr);
    });
}

#[test]
fn a_listener_outside_the_allotted_ports_ends_a_container_that_nobody_waits_for() {
    privileged(|host| {
        let Some(host) = looking(host) else { return };
        let listening = |port: &str| host.bundle(allotted("8000-8010").args(["nc", "-l", "-p", port]));
        // Created and started, and detached.
        let created = listening("9000").start();
        created.becomes("stopped");
        let (detached, keeping) = (listening("9000").named("detached"), listening("8005").named("allotted"));
        let log = host.directory().join("log");
        for bundle in [&detached, &keeping] {
            let directory = bundle.directory().to_str().unwrap();
            let run = ["run", "--detach", "--bundle", directory, bundle.id()];
            host.call(&[&["--log", log.to_str().unwrap()][..], &run].concat()).succeeds();
        }
        let status = |id: &str| host.call(&["state", id]).succeeds().json()["status"].clone();
        eventually("it is ended", || status("detached") == "stopped");
        let told = fs::read_to_string(&log).unwrap();
        assert!(
            told.contains("it listens on port 9000") && told.contains("the container is killed"),
            "{told}"
        );
        assert_eq!(status("allotted"), "running");
        for id in [created.id(), "detached", "allotted"] {
            host.call(&["delete", "--force", id]).succeeds();
        }
    });
}

#[test]
fn a_listener_is_found_after_who_looks_for_it_was_killed_and_recovered() {
    privileged(|host| {
        let Some(host) = looking(host) else { return };
        let web = host.bundle(allotted("8000-8010").args(["sleep", "1000"])).start();
        kill_warden(&host, &Path::new(STATES).join(web.id()));
        assert_eq!(web.status(), "running");
        let listener = ["exec", "--detach", web.id(), "nc", "-l", "-p", "9000"];
        host.call(&listener).succeeds();
        web.becomes("stopped");
        web.call("delete").succeeds();
    });
}

#[test]
fn recover_reads_no_configuration_of_a_container_that_has_nothing_beside_it() {
    privileged(|host| {
        let Some(host) = looking(host) else { return };
        if !host.needs_program("strace") {
            return;
        }
        let plain = host.bundle(Spec::new().args(["sleep", "1000"])).named("plain").start();
        let watched = host.bundle(allotted("80").args(["sleep", "1000"])).named("watched").start();
        let trace = host.directory().join("trace");
        let mut strace = Command::new("strace");
        strace.args(["-f", "-y", "-e", "trace=openat2", "-o"]).arg(&trace).arg(host.runtime()).arg("recover");
        assert!(strace.status().unwrap().success());
        let calls = fs::read_to_string(trace).unwrap();
        let is_read = |id: &str, file: &str| {
            let directory = format!("<{STATES}/{id}>, \"{file}\"");
            calls.lines().any(|call| call.contains(&directory))
        };
        assert!(is_read("plain", "record.json") && !is_read("plain", "config.json"), "{calls}");
        assert!(is_read("watched", "config.json"), "{calls}");
        for container in [plain, watched] {
            container.remove();
        }
    });
}

#[test]
fn a_container_of_a_pod_is_watched_again_after_recovery() {
    privileged(|host| {
        let Some(host) = looking(host) else { return };
        let Some(pods) = Pods::new(&host) else { return };
        let metadata = "  annotations: {io.coracle.ports: '8000-8010', io.coracle.ports/free: '0-65535'}\n";
        let spec = "
  restartPolicy: Never
  terminationGracePeriodSeconds: 0
  containers:
  - {name: main, image: IMAGE, command: [sleep, '1000']}
  - {name: free, image: IMAGE, command: [nc, -l, -p, '7000']}
";
        pods.make_with("run", "web", metadata, spec).succeeds();
        kill_warden(&host, &Path::new(STATES).join(".pods/web/containers/main"));
        pods.exec("web/main", &["sh", "-c", "nc -l -p 9000 & sleep 1000"]);
        pods.call(&["wait", "web/main"]).exits(137);
        assert_eq!(pods.container("web", "free")["state"], "running");
        pods.remove("web");
    });
}

#[test]
fn who_shares_a_namespace_is_not_taken_for_another() {
    privileged(|host| {
        let Some(host) = looking(host) else { return };
        let shared = || Spec::new().without_namespace("network").without_mount("/sys");
        let other = host.bundle(shared().args(["nc", "-l", "-p", "9000"])).start();
        eventually("the other listens", || {
            fs::read_to_string("/proc/net/tcp6").unwrap().contains(":2328 ")
                || fs::read_to_string("/proc/net/tcp").unwrap().contains(":2328 ")
        });
        let own = shared().set("/annotations", json!({"io.coracle.ports": ""}));
        let run = host.bundle(own.script("sleep 1")).run().succeeds();
        assert_eq!(run.stderr, "");
        other.remove();
    });
}

#[test]
fn who_follows_a_container_is_told_of_a_listener_that_another_found() {
    privileged(|host| {
        let Some(host) = looking(host) else { return };
        let spec = Spec::new().set("/annotations", json!({"io.coracle.ports": "80"}));
        let script = "until [ -e /tmp/go ]; do sleep 0.01; done; nc -l -p 9000";
        let container = host.bundle(spec.script(script)).start();
        let told = host.directory().join("told");
        let mut events = Command::new(host.runtime());
        events.args(["events", "--interval", "20ms", container.id()]);
        let mut events = events.stdout(fs::File::create(&told).unwrap()).spawn().unwrap();
        let told = || fs::read_to_string(&told).unwrap();
        eventually("it is followed", || told().contains("stats"));
        let pid = events.id().to_string();
        tool("kill", &["-STOP", &pid]);
        container.exec(&["touch", "/tmp/go"]).succeeds();
        container.becomes("stopped");
        tool("kill", &["-CONT", &pid]);
        assert!(wait(&mut events, "events").success());
        assert_eq!(told().matches("\"type\":\"ports\"").count(), 1, "{}", told());
        container.call("delete").succeeds();
    });
}

#[test]
fn a_runtime_that_comes_later_finds_a_listener_too() {
    privileged(|host| {
        let Some(host) = looking(host) else { return };
        // By a child of the first process: what counts is the container, not who began it.
        let listens = "{ until [ -e /tmp/go ]; do sleep 0.01; done; nc -l -p 9000; } & wait";
        let container = host.bundle(allotted("80").script(listens)).start();
        let mut events = Command::new(host.runtime());
        events.args(["events", "--interval", "50ms", container.id()]).stdout(Stdio::piped());
        let mut events = events.spawn().unwrap();
        let mut line = String::new();
        let mut told = BufReader::new(events.stdout.take().unwrap());
        told.read_line(&mut line).unwrap();
        container.exec(&["touch", "/tmp/go"]).succeeds();
        while !line.contains("\"ports\"") {
            line.clear();
            assert_ne!(told.read_line(&mut line).unwrap(), 0, "nothing was told");
        }
        events.kill().unwrap();
        events.wait().unwrap();
        container.becomes("stopped");
        container.call("delete").succeeds();
    });
}
