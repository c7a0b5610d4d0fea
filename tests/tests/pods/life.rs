//! A pod from its making to its removal.

use std::fs;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use coracle_tests::pod::Pods;
use coracle_tests::{cgroup, command, privileged};

const TWO: &str = "
  containers:
  - {name: one, image: IMAGE, command: [sh, -c, 'hostname > /dev/shm/x; echo up; sleep 1000']}
  - {name: two, image: IMAGE, command: [sleep, '1000']}
";

#[test]
fn a_pod_is_run_looked_at_and_removed() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        pods.run("web", TWO);
        assert_eq!(pods.inspect("web")["phase"], "Running");
        pods.becomes("web", "one", "ready", true);
        assert!(pods.call(&["ls"]).succeeds().text().contains("Running"));
        assert_eq!(pods.call(&["ls", "-q"]).succeeds().lines(), ["web"]);
        assert_eq!(host.call(&["list", "-q"]).succeeds().text(), "", "pods are no containers");
        command::eventually("it has spoken", || pods.logs("web/one") == "up");
        pods.exec("web/two", &["sh", "-c", "echo in; exit 3"]).exits(3);
        pods.call(&["rm", "web"]).fails_with(&["is not over", "--force"]);
        pods.call(&["stop", "--time", "0", "web"]).succeeds();
        assert_eq!(pods.inspect("web")["phase"], "Failed");
        assert_eq!(pods.container("web", "one")["exit"]["exitCode"], 137);
        pods.call(&["rm", "web"]).succeeds();
        pods.call(&["inspect", "web"]).fails_with(&["pod \"web\" does not exist"]);
    });
}

#[test]
fn containers_of_a_pod_share_network_ipc_and_host_name_but_neither_processes_nor_files() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        pods.run("web", TWO);
        let of = |container: &str, kind: &str| {
            pods.exec(container, &["readlink", &format!("/proc/self/ns/{kind}")]).succeeds().text()
        };
        for kind in ["net", "ipc", "uts"] {
            assert_eq!(of("web/one", kind), of("web/two", kind), "{kind}");
        }
        for kind in ["pid", "mnt"] {
            assert_ne!(of("web/one", kind), of("web/two", kind), "{kind}");
        }
        assert_eq!(pods.exec("web/one", &["hostname"]).succeeds().text(), "web");
        pods.remove("web");
    });
}

#[test]
fn a_pod_ends_when_its_containers_have_ended() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        let spec = "
  restartPolicy: Never
  containers:
  - {name: good, image: IMAGE, command: [sh, -c, 'echo done']}
  - {name: bad, image: IMAGE, command: [sh, -c, 'echo oh >&2; exit 7']}
";
        pods.run("job", spec);
        pods.call(&["wait", "job/good"]).exits(0);
        pods.call(&["wait", "job/bad"]).exits(7);
        pods.call(&["wait", "job"]).exits(7);
        assert_eq!(pods.inspect("job")["phase"], "Failed");
        assert_eq!(pods.container("job", "good")["exit"]["reason"], "Completed");
        assert_eq!(pods.logs("job/good"), "done");
        pods.call(&["rm", "job"]).succeeds();
    });
}

#[test]
fn a_pod_whose_image_is_missing_says_so() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        let spec = "
  restartPolicy: Never
  containers:
  - {name: a, image: nobody/has:this, imagePullPolicy: Never}
";
        pods.make("run", "web", spec).fails_with(&["launching", "nobody/has:this"]);
        assert_eq!(pods.container("web", "a")["exit"]["reason"], "LaunchFailed");
        pods.remove("web");
    });
}

#[test]
fn names_that_stand_twice_and_cycles_are_refused_and_make_nothing() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        let one = "{name: a, image: IMAGE}";
        std::os::unix::fs::symlink("/run/test/loop", "/run/test/loop").unwrap();
        for (spec, words) in [
            (format!("  containers: [{one}, {one}]\n"), "/spec/containers/1/name: \"a\" stands twice"),
            (
                format!("  initContainers: [{one}]\n  containers: [{one}]\n"),
                "/spec/containers/0/name: \"a\" stands twice",
            ),
            (
                format!(
                    "  volumes: [{{name: v, emptyDir: {{}}}}, {{name: v, emptyDir: {{}}}}]\n  containers: [{one}]\n"
                ),
                "/spec/volumes/1/name: \"v\" stands twice",
            ),
            (format!("  hostname: a\n  hostname: b\n  containers: [{one}]\n"), "hostname"),
            ("  containers: &all [{name: a, image: i, args: *all}]\n".to_owned(), "an anchor stands here"),
            (
                format!(
                    "  volumes: [{{name: v, hostPath: {{path: /run/test/loop}}}}]\n  containers: [{one}]\n"
                ),
                "/spec/volumes/0 (\"v\"): openat2(AT_FDCWD, \"/run/test/loop\"): too many symbolic links",
            ),
        ] {
            pods.make("run", "web", &spec).fails_with(&[words]);
            assert_eq!(pods.call(&["ls", "-q"]).succeeds().text(), "");
        }
    });
}

#[test]
fn the_environment_of_who_makes_a_pod_is_nobodys_in_it() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        let store = pods.store.directory().display();
        let image = coracle_tests::pod::IMAGE;
        host.shell(&format!(
            "CANARY=sings $RUNTIME pod run --store {store} --name web {image} -- sleep 1000"
        ))
        .succeeds();
        let told = pods.inspect("web");
        for pid in [&told["supervisor"], &told["keeper"], &told["containers"][0]["pid"]] {
            let environment = fs::read_to_string(format!("/proc/{pid}/environ")).unwrap();
            assert!(!environment.contains("CANARY"), "{pid}: {environment}");
        }
        assert!(!pods.exec("web", &["env"]).succeeds().text().contains("CANARY"));
        pods.remove("web");
    });
}

#[test]
fn a_document_with_an_unknown_field_makes_nothing() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        let spec = "
  nodeSelector: {a: b}
  containers:
  - {name: a, image: IMAGE}
";
        pods.make("run", "web", spec).fails_with(&["/spec/nodeSelector: it is unknown or not supported"]);
        assert_eq!(pods.call(&["ls", "-q"]).succeeds().text(), "");
    });
}

#[test]
fn a_pod_is_removed_in_the_middle_of_a_launch() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        for wait in [0, 10, 20, 40] {
            pods.make("create", "web", TWO).succeeds();
            let mut start = Command::new(host.runtime());
            let mut start = start.args(["pod", "start", "web"]).stderr(Stdio::null()).spawn().unwrap();
            thread::sleep(Duration::from_millis(wait));
            pods.remove("web");
            start.wait().unwrap();
        }
    });
}

/// Who is begun in a container and not known yet when that ends is reaped all the same: a zombie in its PID namespace would
/// keep its first process from ending, and its removal from being done.
#[test]
fn a_pod_is_removed_while_programs_are_begun_in_it() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        let spec = "
  terminationGracePeriodSeconds: 0
  containers: [{name: main, image: IMAGE, command: [sleep, '1000']}]
";
        for round in 0..4 {
            pods.run("web", spec);
            let begin = || {
                let mut exec = Command::new(host.runtime());
                exec.args(["pod", "exec", "web/main", "sleep", "1000"]).stderr(Stdio::null());
                exec.spawn().unwrap()
            };
            let begun: Vec<_> = (0..6).map(|_| begin()).collect();
            thread::sleep(Duration::from_millis(20 * round));
            let asked = Instant::now();
            pods.remove("web");
            assert!(asked.elapsed() < Duration::from_secs(8), "{:?}", asked.elapsed());
            begun.into_iter().for_each(|mut exec| assert!(!exec.wait().unwrap().success()));
        }
    });
}

#[test]
fn what_ends_a_pod_is_refused_for_a_container_of_it() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        pods.run("web", TWO);
        for verb in [&["rm", "--force"][..], &["stop", "--time", "0"], &["start"], &["inspect"]] {
            pods.call(&[verb, &["web/one"]].concat()).fails_with(&["it takes a pod, not a container"]);
        }
        assert_eq!(pods.inspect("web")["phase"], "Running");
        pods.remove("web");
    });
}

#[test]
fn a_pod_that_is_not_there_is_told_of_by_name_and_so_is_a_supervisor_that_dies_while_it_is_watched() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        for verb in ["stats", "top"] {
            pods.call(&[verb, "typo"]).fails_with(&["pod \"typo\" does not exist"]);
        }
        pods.run("web", TWO);
        for (ends, is_success) in
            [("kill -KILL $(cat /run/test/supervisor)", false), ("$RUNTIME pod rm -f web", true)]
        {
            host.call(&["recover"]).succeeds();
            fs::write("/run/test/supervisor", pods.inspect("web")["supervisor"].to_string()).unwrap();
            let mut watch = Command::new(host.runtime());
            let mut watch = watch
                .args(["pod", "watch", "web"])
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            thread::sleep(Duration::from_secs(1));
            host.shell(ends).succeeds();
            assert_eq!(watch.wait().unwrap().success(), is_success, "{ends}");
        }
    });
}

#[test]
fn what_does_not_run_has_its_new_limits_when_it_is_started() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        let spec = "
  terminationGracePeriodSeconds: 0
  containers:
  - {name: main, image: IMAGE, command: [sleep, '1000']}
  - {name: fails, image: IMAGE, command: ['false']}
";
        let update = |limits: &str, target: &str| {
            let file = pods.file(limits);
            pods.call(&["update", "-f", file.to_str().unwrap(), target]).succeeds();
        };
        let holds = |path: &str| cgroup::read(path, "pids.max").unwrap();
        pods.make_with("create", "web", "  annotations: {io.coracle/back-off: '10m,10m'}\n", spec).succeeds();
        for (of_pod, of_main, restarts) in [("50", "40", 2), ("51", "41", 4)] {
            update(&format!("limits: {{pids: {of_pod}}}"), "web");
            update(&format!("limits: {{pids: {of_main}}}"), "web/main");
            pods.call(&["start", "web"]).succeeds();
            pods.becomes("web", "main", "state", "running");
            assert_eq!(holds("coracle/web.pod"), of_pod);
            assert_eq!(holds("coracle/web.pod/main"), of_main);
            // Once it is started again at once, then it waits.
            pods.becomes("web", "fails", "restarts", restarts);
            update("limits: {pids: 30}", "web/fails");
            pods.call(&["stop", "web"]).succeeds();
        }
        pods.remove("web");
    });
}

/// The first process of a PID namespace is there until all others in it are gone, without the namespaces that it held.
#[test]
fn a_pod_whose_supervisor_and_first_process_were_just_killed_ends_with_recover() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        for _ in 0..4 {
            pods.run("web", &format!("  shareProcessNamespace: true{TWO}"));
            let told = pods.inspect("web");
            let [supervisor, keeper] = ["supervisor", "keeper"].map(|who| told[who].to_string());
            command::tool("kill", &["-KILL", &supervisor, &keeper]);
            command::eventually("it dies", || fs::read_link(format!("/proc/{keeper}/ns/net")).is_err());
            command::eventually("it has ended", || {
                host.call(&["recover"]).succeeds();
                pods.call(&["inspect", "web"]).text().contains("Failed")
            });
            pods.remove("web");
        }
    });
}

#[test]
fn names_are_taken_once() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        pods.run("web", TWO);
        pods.make("run", "web", TWO).fails_with(&["pod \"web\" already exists"]);
        pods.remove("web");
    });
}
