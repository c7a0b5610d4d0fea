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

#[test]
fn a_container_that_is_ended_at_a_limit_of_its_files_says_so() {
    privileged(|host| {
        let state = host.directory();
        let often = format!("[isolator.\"disk/du\"]\noptions = {{ state = {state:?}, interval = 0.1 }}\n");
        let host = host.configured(&often);
        let Some(pods) = Pods::new(&host) else { return };
        let spec = "
  restartPolicy: Never
  volumes: [{name: v, emptyDir: {}}]
  containers:
  - name: main
    image: IMAGE
    command: [sh, -c, 'sleep 0.5; head -c 2000000 /dev/zero >/v/file; sleep 1000']
    volumeMounts: [{name: v, mountPath: /v, subPath: part}]
";
        let metadata = "  annotations: {io.coracle.disk: '{\"/v\": \"1m\"}'}\n";
        pods.make_with("run", "web", metadata, spec).succeeds();
        pods.call(&["wait", "web/main"]).exits(137);
        let exit = pods.container("web", "main")["exit"].clone();
        assert_eq!(exit["reason"], "Evicted", "{exit}");
        assert!(exit["message"].as_str().unwrap().contains("its files in /v"), "{exit}");
        pods.remove("web");
    });
}

#[test]
fn a_supervisor_that_stands_still_keeps_nobody_from_the_other_pods() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        for name in ["a", "b"] {
            pods.run(name, "  containers: [{name: main, image: IMAGE, command: [sleep, '1000']}]\n");
        }
        let supervisor = pods.inspect("a")["supervisor"].clone();
        signal(&supervisor, "STOP");
        let phases = pods.call(&["ls"]).succeeds().lines();
        for (line, words) in phases.iter().skip(1).zip([["a", "Unknown"], ["b", "Running"]]) {
            assert_eq!(line.split_whitespace().take(2).collect::<Vec<_>>(), words);
        }
        let used = pods.call(&["stats"]).succeeds().json();
        let names: Vec<&Value> = used.as_array().unwrap().iter().map(|one| &one["pod"]).collect();
        assert_eq!(names, ["b", "b"]);
        let told = host.call(&["metrics"]).succeeds().text();
        assert!(told.contains("{id=\"b\",pod=\"b\"}") && told.contains("\ncoracle_unmeasured 1"), "{told}");
        pods.call(&["stats", "a"]).fails_with(&["pod \"a\"", "does not answer"]);
        signal(&supervisor, "CONT");
        pods.is("a", "Running");
        for name in ["a", "b"] {
            pods.remove(name);
        }
    });
}

#[test]
fn a_drain_that_has_no_time_names_no_pod_that_was_over_before() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        pods.run(
            "job",
            "  restartPolicy: Never\n  containers: [{name: main, image: IMAGE, command: ['true']}]\n",
        );
        pods.is("job", "Succeeded");
        assert_eq!(host.call(&["drain", "--within", "0"]).succeeds().text(), "");
        host.call(&["drain", "--off"]).succeeds();
        pods.remove("job");
    });
}

#[test]
fn a_pod_that_finds_its_cgroup_in_use_leaves_those_in_it_alone() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        let one = "  terminationGracePeriodSeconds: 0\n  containers: [{name: one, image: IMAGE, command: [sleep, '1000']}]\n";
        pods.run("web", one);
        let (root, file) = (host.directory(), pods.file(""));
        let (root, store) = (root.to_str().unwrap(), pods.store.directory().to_str().unwrap().to_owned());
        let spec = one.replace("IMAGE", coracle_tests::pod::IMAGE);
        std::fs::write(&file, format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: web}}\nspec:\n{spec}"))
            .unwrap();
        let file = file.to_str().unwrap();
        host.call(&["--root", root, "pod", "run", "--store", &store, "-f", file])
            .fails_with(&["making the pod's cgroup", "a pod of this name below another --root has it"]);
        host.call(&["--root", root, "pod", "rm", "--force", "web"]).succeeds();
        assert_eq!(pods.container("web", "one")["state"], "running");
        pods.remove("web");
    });
}

/// Freezes the cgroup that a process is in.
fn freeze(pid: &Value) {
    let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let of =
        |name: &str| text.lines().find_map(|line| line.split_once(name).map(|(_, path)| path.to_owned()));
    let (file, word) = match of(":freezer:") {
        Some(path) => (format!("/sys/fs/cgroup/freezer{path}/freezer.state"), "FROZEN"),
        None => (format!("/sys/fs/cgroup{}/cgroup.freeze", of("0::").unwrap()), "1"),
    };
    std::fs::write(file, word).unwrap();
}

#[test]
fn what_somebody_has_frozen_ends_all_the_same() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        let spec = format!(
            "  restartPolicy: Never\n  terminationGracePeriodSeconds: 1\n  containers: [{{name: one, {DEAF}}}, {{name: two, {DEAF}}}]\n"
        );
        pods.run("web", &spec);
        freeze(&pods.container("web", "one")["pid"]);
        pods.call(&["kill", "web/one", "KILL"]).succeeds();
        pods.becomes("web", "one", "state", "exited");
        freeze(&pods.container("web", "two")["pid"]);
        let begun = Instant::now();
        pods.call(&["stop", "web"]).succeeds();
        assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
        pods.remove("web");
    });
}
