//! Who runs when, who is started again, who is ended how.

use std::path::Path;
use std::process::Command;

use coracle_tests::pod::Pods;
use coracle_tests::{command, privileged};

const QUICK: &str = "  annotations: {io.coracle/back-off: '20ms,40ms'}\n";

#[test]
fn init_containers_run_one_after_the_other_before_the_others_start() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        let spec = "
  restartPolicy: Never
  volumes: [{name: v, emptyDir: {}}]
  initContainers:
  - {name: first, image: IMAGE, command: [sh, -c, 'sleep 0.1; echo first >> /v/order'], volumeMounts: [{name: v, mountPath: /v}]}
  - {name: second, image: IMAGE, command: [sh, -c, 'echo second >> /v/order'], volumeMounts: [{name: v, mountPath: /v}]}
  containers:
  - {name: main, image: IMAGE, command: [cat, /v/order], volumeMounts: [{name: v, mountPath: /v}]}
";
        pods.run("web", spec);
        pods.call(&["wait", "web"]).exits(0);
        assert_eq!(pods.logs("web/main"), "first\nsecond");
        pods.remove("web");
    });
}

#[test]
fn an_init_container_that_fails_for_good_ends_the_pod() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        let spec = "
  restartPolicy: Never
  initContainers:
  - {name: first, image: IMAGE, command: ['false']}
  containers:
  - {name: main, image: IMAGE, command: [sleep, '1000']}
";
        pods.run("web", spec);
        pods.call(&["wait", "web"]).exits(1);
        let told = pods.inspect("web");
        assert_eq!(told["phase"], "Failed");
        assert!(told["message"].as_str().unwrap().contains("init container \"first\" failed"), "{told}");
        assert_eq!(pods.container("web", "main")["exit"], serde_json::Value::Null);
        pods.remove("web");
    });
}

#[test]
fn a_pod_that_is_started_again_and_stopped_before_its_containers_run_has_not_succeeded() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        let spec = "
  restartPolicy: Never
  terminationGracePeriodSeconds: 0
  volumes: [{name: v, emptyDir: {}}]
  initContainers:
  - {name: first, image: IMAGE, command: [sh, -c, 'test ! -e /v/again || sleep 1000; touch /v/again'], volumeMounts: [{name: v, mountPath: /v}]}
  containers:
  - {name: main, image: IMAGE, command: ['true']}
";
        pods.run("web", spec);
        pods.is("web", "Succeeded");
        let mut starting = Command::new(host.runtime()).args(["pod", "start", "web"]).spawn().unwrap();
        pods.becomes("web", "first", "state", "running");
        pods.call(&["stop", "web"]).succeeds();
        assert_eq!(pods.inspect("web")["phase"], "Failed");
        assert_eq!(pods.container("web", "main")["exit"], serde_json::Value::Null);
        pods.call(&["wait", "web/main"]).exits(255);
        starting.wait().unwrap();
        pods.remove("web");
    });
}

#[test]
fn a_pod_whose_containers_wait_to_be_started_again_runs() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        let slow = "  annotations: {io.coracle/back-off: '5m,5m'}\n";
        let spec = "  containers: [{name: main, image: IMAGE, command: ['false']}]\n";
        pods.make_with("run", "web", slow, spec).succeeds();
        pods.becomes("web", "main", "restarts", 2);
        pods.becomes("web", "main", "state", "back-off");
        assert_eq!(pods.inspect("web")["phase"], "Running");
        pods.remove("web");
    });
}

#[test]
fn sidecars_start_first_and_end_last_in_reverse_order() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        let spec = "
  restartPolicy: Never
  initContainers:
  - {name: one, image: IMAGE, restartPolicy: Always, command: [sh, -c, 'trap \"exit 0\" TERM; sleep 1000 & wait']}
  - {name: two, image: IMAGE, restartPolicy: Always, command: [sh, -c, 'trap \"exit 0\" TERM; sleep 1000 & wait']}
  containers:
  - {name: main, image: IMAGE, command: [sh, -c, 'sleep 0.2']}
";
        pods.run("job", spec);
        pods.call(&["wait", "job"]).exits(0);
        assert_eq!(pods.inspect("job")["phase"], "Succeeded");
        let finished =
            |name: &str| pods.container("job", name)["exit"]["finished"].as_str().unwrap().to_owned();
        assert!(finished("main") <= finished("two") && finished("two") <= finished("one"));
        pods.remove("job");
    });
}

#[test]
fn a_container_that_ends_is_started_again_and_each_end_is_counted() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        let spec = "
  containers:
  - {name: main, image: IMAGE, command: [sh, -c, 'echo again; exit 3']}
";
        pods.make_with("run", "web", QUICK, spec).succeeds();
        command::eventually("three restarts", || {
            pods.container("web", "main")["restarts"].as_u64() >= Some(3)
        });
        assert_eq!(pods.container("web", "main")["exit"]["exitCode"], 3);
        assert!(pods.logs("web/main").lines().count() >= 3);
        pods.remove("web");
    });
}

#[test]
fn on_failure_starts_again_what_failed_alone() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        let spec = "
  restartPolicy: OnFailure
  volumes: [{name: v, emptyDir: {}}]
  containers:
  - {name: good, image: IMAGE, command: ['true']}
  - name: bad
    image: IMAGE
    command: [sh, -c, 'test -e /v/tried || { touch /v/tried; exit 1; }']
    volumeMounts: [{name: v, mountPath: /v}]
";
        pods.make_with("run", "job", QUICK, spec).succeeds();
        pods.call(&["wait", "job"]).exits(0);
        assert_eq!(pods.container("job", "good")["restarts"], 0);
        assert_eq!(pods.container("job", "bad")["restarts"], 1);
        assert_eq!(pods.inspect("job")["phase"], "Succeeded");
        pods.remove("job");
    });
}

#[test]
fn one_failure_ends_a_pod_whose_annotation_says_so() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        let metadata = "  annotations: {io.coracle/termination-policy: kill-on-failure}\n";
        let spec = "
  terminationGracePeriodSeconds: 0
  containers:
  - {name: lives, image: IMAGE, command: [sleep, '1000']}
  - {name: fails, image: IMAGE, command: [sh, -c, 'sleep 0.1; exit 4']}
";
        pods.make_with("run", "group", metadata, spec).succeeds();
        pods.call(&["wait", "group/fails"]).exits(4);
        pods.is("group", "Failed");
        assert_eq!(pods.container("group", "lives")["exit"]["signal"], 9);
        assert!(pods.inspect("group")["message"].as_str().unwrap().contains("one failure ends the pod"));
        pods.remove("group");
    });
}

#[test]
fn a_pod_ends_at_its_deadline() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        let spec = "
  activeDeadlineSeconds: 1
  terminationGracePeriodSeconds: 0
  containers:
  - {name: main, image: IMAGE, command: [sleep, '1000']}
";
        pods.run("web", spec);
        pods.is("web", "Failed");
        assert_eq!(pods.container("web", "main")["exit"]["reason"], "DeadlineExceeded");
        pods.remove("web");
    });
}

#[test]
fn who_ignores_the_request_to_end_is_killed_after_the_grace_period() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        let spec = "
  terminationGracePeriodSeconds: 1
  containers:
  - {name: deaf, image: IMAGE, command: [sh, -c, 'trap \"\" TERM; while :; do sleep 1; done']}
  - {name: polite, image: IMAGE, command: [sh, -c, 'trap \"exit 5\" TERM; sleep 1000 & wait']}
";
        pods.run("web", spec);
        pods.becomes("web", "polite", "ready", true);
        std::thread::sleep(std::time::Duration::from_millis(200));
        pods.call(&["stop", "web"]).succeeds();
        assert_eq!(pods.container("web", "deaf")["exit"]["exitCode"], 137);
        assert_eq!(pods.container("web", "polite")["exit"]["exitCode"], 5);
        pods.remove("web");
    });
}

#[test]
fn hooks_run_after_the_start_and_before_the_end() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        let spec = "
  terminationGracePeriodSeconds: 5
  volumes: [{name: v, hostPath: {path: /run/test}}]
  containers:
  - name: main
    image: IMAGE
    command: [sh, -c, 'trap \"exit 0\" TERM; sleep 1000 & wait']
    volumeMounts: [{name: v, mountPath: /v}]
    lifecycle:
      postStart: {exec: {command: [sh, -c, 'echo started >> /v/hooks']}}
      preStop: {exec: {command: [sh, -c, 'echo stopping >> /v/hooks']}}
";
        pods.run("web", spec);
        let said = || std::fs::read_to_string("/run/test/hooks").unwrap_or_default();
        command::eventually("postStart ran", || said() == "started\n");
        pods.call(&["stop", "web"]).succeeds();
        assert_eq!(said(), "started\nstopping\n");
        pods.remove("web");
    });
}

#[test]
fn an_ended_pod_can_be_started_again() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        let spec = "
  restartPolicy: Never
  containers:
  - {name: main, image: IMAGE, command: [echo, once]}
";
        pods.make("create", "job", spec).succeeds();
        assert_eq!(pods.inspect("job")["phase"], "Created");
        for _ in 0..2 {
            pods.call(&["start", "job"]).succeeds();
            pods.call(&["wait", "job"]).exits(0);
        }
        assert_eq!(pods.logs("job/main"), "once\nonce");
        pods.remove("job");
    });
}

#[test]
fn containers_may_share_processes_and_the_hosts_namespaces() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        let containers = "
  terminationGracePeriodSeconds: 0
  containers:
  - {name: one, image: IMAGE, command: [sleep, '1234']}
  - {name: two, image: IMAGE, command: [sleep, '1000']}
";
        pods.run("shared", &format!("\n  shareProcessNamespace: true{containers}"));
        let seen = pods.exec("shared/two", &["ps", "-o", "args"]).succeeds().text();
        assert!(seen.contains("sleep 1234"), "{seen}");
        pods.exec("shared/two", &["ls", "/proc/1/root/"]).exits(1);
        let first = pods.exec("shared/two", &["cat", "/proc/1/cmdline"]).succeeds().text();
        assert_eq!(first.trim_end_matches('\0'), "coracle\0init");
        pods.remove("shared");
        pods.run("open", &format!("\n  hostNetwork: true\n  hostPID: true\n  hostIPC: true{containers}"));
        for kind in ["net", "pid", "ipc", "uts"] {
            let own = std::fs::read_link(format!("/proc/self/ns/{kind}")).unwrap();
            let seen =
                pods.exec("open/one", &["readlink", &format!("/proc/self/ns/{kind}")]).succeeds().text();
            assert_eq!(seen, own.to_string_lossy(), "{kind}");
        }
        pods.remove("open");
    });
}

/// The first process of shared ones is on the host; Kubernetes has them for debuggers, which may trace it.
#[test]
fn the_first_of_shared_processes_leads_nobody_to_the_host() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        let secret = host.directory().join("secret");
        std::fs::write(&secret, "of the host").unwrap();
        let path = format!("/proc/1/root{}{}", "/..".repeat(20), secret.display());
        pods.run(
            "traced",
            "
  shareProcessNamespace: true
  terminationGracePeriodSeconds: 0
  containers:
  - {name: one, image: IMAGE, command: [sleep, '1000'], securityContext: {capabilities: {add: [SYS_PTRACE]}}}
",
        );
        let seen = pods.exec("traced/one", &["ls", "-A", "/proc/1/root/"]).succeeds().text();
        assert_eq!(seen, "");
        pods.exec("traced/one", &["cat", &path]).fails_with(&["No such file or directory"]);
        pods.exec("traced/one", &["touch", "/proc/1/root/x"]).fails_with(&["Read-only file system"]);
        pods.remove("traced");
    });
}

/// What a cgroup's file says, in version 2 or 1.
#[track_caller]
fn read(path: &str, v2: &str, v1: &str) -> String {
    let found = coracle_tests::cgroup::read(path, v2);
    found.or_else(|| coracle_tests::cgroup::read(path, v1)).unwrap()
}

#[track_caller]
fn memory(path: &str) -> String {
    read(path, "memory.max", "memory.limit_in_bytes")
}

#[test]
fn limits_that_an_update_does_not_name_stay_also_after_a_restart_and_a_new_supervisor() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        let spec = "
  terminationGracePeriodSeconds: 0
  resources: {limits: {memory: 128Mi}}
  containers:
  - {name: main, image: IMAGE, command: [sleep, '1000'], resources: {limits: {memory: 64Mi}}}
";
        pods.make_with("run", "web", QUICK, spec).succeeds();
        let update = |limits: &str, target: &str| {
            pods.call(&["update", "-f", pods.file(limits).to_str().unwrap(), target])
        };
        update("limits: {pids: 40}", "web/main").succeeds();
        update("limits: {pids: 50}", "web").succeeds();
        pods.call(&["kill", "web/main", "KILL"]).succeeds();
        pods.becomes("web", "main", "restarts", 1);
        pods.becomes("web", "main", "ready", true);
        let holds = || {
            let pids = read("coracle/web.pod/main", "pids.max", "pids.max");
            (memory("coracle/web.pod/main"), pids)
        };
        let wanted = ((64 << 20).to_string(), "40".to_owned());
        assert_eq!(holds(), wanted);
        let supervisor = pods.inspect("web")["supervisor"].to_string();
        command::tool("kill", &["-KILL", &supervisor]);
        command::eventually("it is gone", || pods.call(&["ls"]).text().contains("Unknown"));
        host.call(&["recover"]).succeeds();
        pods.call(&["stop", "web"]).succeeds();
        pods.call(&["start", "web"]).succeeds();
        assert_eq!(holds(), wanted);
        assert_eq!(memory("coracle/web.pod"), (128 << 20).to_string());
        assert_eq!(read("coracle/web.pod", "pids.max", "pids.max"), "50");
        update("limits: {memory: 1Xi}", "web/main")
            .fails_with(&["/resources/limits/memory: \"1Xi\" is no quantity"]);
        pods.remove("web");
    });
}

/// A node of the tree with a limit of memory, as an operator makes it.
fn make_node(node: &Path) {
    std::fs::create_dir_all(node).unwrap();
    for file in ["cpuset.cpus", "cpuset.mems"] {
        // Version 1 begins without any.
        let places: Vec<_> = node.ancestors().take(3).map(|place| place.join(file)).collect();
        let above = node.ancestors().nth(3).map(|root| root.join(file));
        if let Some(all) = above
            .and_then(|file| std::fs::read(file).ok())
            .filter(|_| node.starts_with("/sys/fs/cgroup/cpuset"))
        {
            places.iter().rev().for_each(|place| std::fs::write(place, &all).unwrap());
        }
    }
    let limits = ["memory.max", "memory.limit_in_bytes"].map(|file| node.join(file));
    limits.iter().filter(|file| file.exists()).for_each(|file| std::fs::write(file, "32M").unwrap());
}

#[test]
fn pods_of_a_tenant_stand_below_its_node_and_can_not_exceed_it() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        let spec = "
  restartPolicy: Never
  containers:
  - {name: main, image: IMAGE, command: [sh, -c, 'cat /proc/self/cgroup; x=a; while :; do x=$x$x; done']}
";
        let nodes: Vec<_> = coracle_tests::oracle::cgroup_hierarchies()
            .into_iter()
            .map(|hierarchy| hierarchy.join("coracle/org/team"))
            .collect();
        nodes.iter().for_each(|node| make_node(node));
        let text = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: web}}\nspec:\n{}",
            spec.replace("IMAGE", coracle_tests::pod::IMAGE)
        );
        let file = pods.file(&text);
        let store = pods.store.directory().to_str().unwrap();
        let run = |parent: &str| {
            pods.call(&["run", "--parent", parent, "--store", store, "-f", file.to_str().unwrap()])
        };
        run("../up").fails_with(&["--parent: \"..\" is no name of a node"]);
        run("a.pod").fails_with(&["is no name of a node"]);
        run("org/team").succeeds();
        pods.call(&["wait", "web"]).exits(137);
        assert_eq!(pods.inspect("web")["parent"], "org/team");
        assert!(!pods.logs("web").contains("org/team"), "a tenant sees its own cgroup alone");
        pods.remove("web");
        for node in &nodes {
            for place in node.ancestors().take(3) {
                std::fs::remove_dir(place).unwrap();
            }
        }
    });
}

#[test]
fn limits_hold_for_the_pod_and_for_each_container_and_can_be_changed() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        let spec = "
  terminationGracePeriodSeconds: 0
  resources: {limits: {memory: 128Mi}}
  containers:
  - {name: main, image: IMAGE, command: [sleep, '1000'], resources: {limits: {memory: 64Mi, cpu: 500m, pids: 50}}}
";
        pods.run("web", spec);
        assert_eq!(memory("coracle/web.pod"), (128 << 20).to_string());
        assert_eq!(memory("coracle/web.pod/main"), (64 << 20).to_string());
        assert_eq!(read("coracle/web.pod/main", "pids.max", "pids.max"), "50");
        let file = pods.file("limits: {memory: 32Mi}");
        pods.call(&["update", "-f", file.to_str().unwrap(), "web/main"]).succeeds();
        assert_eq!(memory("coracle/web.pod/main"), (32 << 20).to_string());
        pods.call(&["update", "-f", file.to_str().unwrap(), "web"]).succeeds();
        assert_eq!(memory("coracle/web.pod"), (32 << 20).to_string());
        let none = pods.file("limits: {memory: 0, cpu: '0'}");
        pods.call(&["update", "-f", none.to_str().unwrap(), "web/main"]).succeeds();
        assert!(!["", "33554432"].contains(&&*memory("coracle/web.pod/main")), "lifted");
        let stats = pods.call(&["stats", "web"]).succeeds().json();
        assert_eq!(stats.as_array().unwrap().len(), 2, "{stats}");
        pods.remove("web");
    });
}
