//! How long ends take, and who is told what of them.

use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use coracle_tests::pod::Pods;
use coracle_tests::{command, privileged};
use serde_json::Value;

/// A container that ends of nothing but SIGKILL.
const DEAF: &str = "image: IMAGE, command: [sh, -c, 'trap \"\" TERM; while :; do sleep 0.1; done']";

/// Sends a signal to a process.
fn signal(pid: &Value, signal: &str) {
    command::tool("kill", &[&format!("-{signal}"), &pid.to_string()]);
}

#[test]
fn who_asks_again_can_shorten_the_time_that_a_container_has() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        pods.run("web", &format!("  containers: [{{name: main, {DEAF}}}]\n"));
        sleep(Duration::from_millis(200));
        let mut first = Command::new(host.runtime());
        let mut first = first.args(["pod", "stop", "web"]).stdout(Stdio::null()).spawn().unwrap();
        pods.becomes("web", "main", "state", "stopping");
        let asked = Instant::now();
        pods.call(&["stop", "--time", "1", "web"]).succeeds();
        assert!(asked.elapsed() < Duration::from_secs(10), "{:?}", asked.elapsed());
        assert!(first.wait().unwrap().success());
        pods.remove("web");
    });
}

#[test]
fn sidecars_share_what_is_left_of_the_time_of_their_pod() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        let sidecar = |name: &str| format!("  - {{name: {name}, restartPolicy: Always, {DEAF}}}\n");
        let sidecars: String = ["one", "two", "three"].iter().map(|name| sidecar(name)).collect();
        let main = "  containers: [{name: main, image: IMAGE, command: [sleep, '1000']}]\n";
        pods.run("web", &format!("  terminationGracePeriodSeconds: 4\n  initContainers:\n{sidecars}{main}"));
        sleep(Duration::from_millis(200));
        pods.call(&["kill", "web/main", "KILL"]);
        let asked = Instant::now();
        pods.call(&["stop", "web"]).succeeds();
        // Four seconds for all, and two more for each that comes after them.
        assert!(asked.elapsed() < Duration::from_secs(11), "{:?}", asked.elapsed());
        pods.remove("web");
    });
}

#[test]
fn a_hook_that_takes_all_the_time_leaves_a_moment_to_end_in() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        let spec = "
  terminationGracePeriodSeconds: 1
  restartPolicy: Never
  containers:
  - name: main
    image: IMAGE
    command: [sh, -c, 'trap \"exit 5\" TERM; while :; do sleep 0.1; done']
    lifecycle: {preStop: {sleep: {seconds: 100}}}
";
        pods.run("web", spec);
        sleep(Duration::from_millis(200));
        pods.call(&["stop", "web"]).succeeds();
        assert_eq!(pods.container("web", "main")["exit"]["exitCode"], 5);
        pods.remove("web");
    });
}

#[test]
fn a_container_is_asked_to_end_by_the_signal_of_its_image_also_by_a_new_supervisor() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        // As the image's configuration becomes one.
        let metadata = "  annotations: {org.opencontainers.image.stopSignal: SIGUSR1}\n";
        let spec = "
  restartPolicy: Never
  containers:
  - {name: main, image: IMAGE, command: [sh, -c, 'trap \"echo asked; exit 0\" USR1; while :; do sleep 0.1; done']}
";
        pods.make_with("run", "web", metadata, spec).succeeds();
        sleep(Duration::from_millis(200));
        pods.call(&["stop", "web"]).succeeds();
        assert_eq!(pods.logs("web"), "asked");
        pods.call(&["start", "web"]).succeeds();
        signal(&pods.inspect("web")["supervisor"], "KILL");
        command::eventually("it is gone", || pods.call(&["ls"]).text().contains("Unknown"));
        host.call(&["recover"]).succeeds();
        pods.call(&["stop", "web"]).succeeds();
        assert_eq!(pods.logs("web"), "asked\nasked");
        pods.remove("web");
    });
}

#[test]
fn why_a_pod_was_ended_is_known_to_a_new_supervisor() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        let spec = "
  activeDeadlineSeconds: 1
  restartPolicy: Never
  containers:
  - {name: main, image: IMAGE, command: [sh, -c, 'trap \"exit 0\" TERM; while :; do sleep 0.1; done']}
";
        pods.run("web", spec);
        pods.is("web", "Failed");
        signal(&pods.inspect("web")["supervisor"], "KILL");
        command::eventually("it is gone", || pods.call(&["ls"]).text().contains("Unknown"));
        host.call(&["recover"]).succeeds();
        let told = pods.inspect("web");
        assert_eq!(told["phase"], "Failed", "{told}");
        assert!(told["message"].as_str().unwrap().contains("activeDeadlineSeconds"), "{told}");
        pods.remove("web");
    });
}

#[test]
fn a_pod_that_was_made_before_does_not_start_while_its_host_is_drained() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        pods.make("create", "web", "  containers: [{name: main, image: IMAGE, command: [sleep, '1000']}]\n")
            .succeeds();
        host.call(&["drain", "--within", "10"]).succeeds();
        pods.call(&["start", "web"]).fails_with(&["the host is being drained", "coracle drain --off"]);
        host.call(&["drain", "--off"]).succeeds();
        pods.call(&["start", "web"]).succeeds();
        pods.remove("web");
    });
}

#[test]
fn a_pod_that_does_not_answer_keeps_no_other_from_being_ended_by_a_drain() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        for name in ["a", "b"] {
            pods.run(name, &format!("  restartPolicy: Never\n  containers: [{{name: main, {DEAF}}}]\n"));
        }
        sleep(Duration::from_millis(200));
        let supervisor = pods.inspect("a")["supervisor"].clone();
        signal(&supervisor, "STOP");
        host.call(&["drain", "--within", "3"]);
        assert_eq!(pods.inspect("b")["phase"], "Failed");
        signal(&supervisor, "CONT");
        host.call(&["drain", "--off"]).succeeds();
        for name in ["a", "b"] {
            pods.remove(name);
        }
    });
}
