//! Which images are pulled, and what becomes of snapshots that nobody knows any more.

use std::fs;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use coracle_fixtures::small;
use coracle_tests::pod::Pods;
use coracle_tests::registry::{Content, Registry, Reply};
use coracle_tests::{Host, Outcome, command, privileged};
use serde_json::Value;

/// A registry with the small image, which this host allows to speak plain HTTP, as long as this lives.
struct Reachable<'h> {
    host: &'h Host,
    registry: Registry,
}

impl<'h> Reachable<'h> {
    fn new(host: &'h Host) -> Self {
        Self::opened_by(host, true, None).0
    }

    /// One that answers when what is returned beside it is true; until then it says nothing, or this status.
    fn opened_by(host: &'h Host, is_open: bool, until_then: Option<u16>) -> (Self, Arc<AtomicBool>) {
        let mut content = Content::of(&small::image());
        content.add(&small::image(), "1");
        let open = Arc::new(AtomicBool::new(is_open));
        let gate = Arc::clone(&open);
        let registry = Registry::start(move |request| {
            while !gate.load(Ordering::Relaxed) {
                if let Some(status) = until_then {
                    return Reply::status(status);
                }
                thread::sleep(Duration::from_millis(5));
            }
            content.answer(request)
        });
        let script = "mkdir -p /run/test/etc/upper /run/test/etc/work; \
             mount -t overlay overlay -o lowerdir=/etc,upperdir=/run/test/etc/upper,workdir=/run/test/etc/work /etc";
        host.shell(script).succeeds();
        let name = registry.host();
        let directory = format!("/etc/coracle/certs.d/{name}");
        fs::create_dir_all(&directory).unwrap();
        fs::write(format!("{directory}/hosts.toml"), format!("server = \"http://{name}\"\n")).unwrap();
        (Self { host, registry }, open)
    }

    fn run(&self, pods: &Pods<'_>, policy: &str) -> Outcome {
        let image = self.registry.image("boats/small:1");
        let spec = format!(
            "  restartPolicy: Never\n  containers:\n  - {{name: main, image: '{image}', command: ['true'], imagePullPolicy: {policy}}}\n"
        );
        let outcome = pods.make("run", "web", &spec);
        let _ = pods.call(&["wait", "web"]);
        pods.remove("web");
        outcome
    }

    /// How often the registry was asked for the image.
    fn asked(&self) -> usize {
        self.registry.asked().iter().filter(|request| request.path.contains("manifests")).count()
    }
}

impl Drop for Reachable<'_> {
    fn drop(&mut self) {
        let _ = self.host.shell("umount /etc");
    }
}

#[test]
fn an_image_is_pulled_as_its_policy_says() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        let there = Reachable::new(host);
        there.run(&pods, "Never").fails_with(&["no image is named", "boats/small:1"]);
        assert_eq!(there.asked(), 0, "Never asks nobody");
        there.run(&pods, "IfNotPresent").succeeds();
        let first = there.asked();
        assert!(first > 0);
        there.run(&pods, "IfNotPresent").succeeds();
        there.run(&pods, "Never").succeeds();
        assert_eq!(there.asked(), first, "what is in the store is not asked for");
        there.run(&pods, "Always").succeeds();
        assert!(there.asked() > first, "Always asks each time");
    });
}

#[test]
fn a_pull_that_fails_says_why() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        let there = Reachable::new(host);
        let gone = there.registry.image("boats/small:9");
        let spec = format!("  restartPolicy: Never\n  containers: [{{name: main, image: '{gone}'}}]\n");
        pods.make("run", "web", &spec).fails_with(&[
            "it is not in the store",
            "coracle-image pull",
            "boats/small:9",
            "it is tried again and again",
        ]);
        let told = pods.container("web", "main");
        assert!(told["message"].as_str().unwrap().contains("boats/small:9"), "{told}");
        pods.remove("web");
        let spec = format!(
            "  volumes: [{{name: v, image: {{reference: '{gone}'}}}}]\n  containers: [{{name: main, image: IMAGE}}]\n"
        );
        pods.make("run", "web", &spec).fails_with(&[
            "/spec/volumes/0 (\"v\")",
            "it is not in the store",
            "coracle-image pull",
        ]);
        pods.call(&["inspect", "web"]).fails_with(&["does not exist"]);
    });
}

#[test]
fn a_pull_that_fails_is_tried_again_whatever_the_restart_policy_says_and_is_no_run() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        for policy in ["IfNotPresent", "Always"] {
            let (there, open) = Reachable::opened_by(host, false, Some(404));
            let image = there.registry.image("boats/small:1");
            let spec = format!(
                "  restartPolicy: Never\n  containers: [{{name: main, image: '{image}', command: ['true'], imagePullPolicy: {policy}}}]\n"
            );
            let quick = "  annotations: {io.coracle/back-off: '200ms,400ms'}\n";
            pods.make_with("run", "web", quick, &spec).fails_with(&["boats/small:1"]);
            let asked = there.asked();
            command::eventually("it is tried again", || there.asked() > asked);
            let told = pods.inspect("web");
            let main = &told["containers"][0];
            assert_eq!((&told["phase"], &main["restarts"]), (&"Pending".into(), &0.into()), "{told}");
            open.store(true, Ordering::Relaxed);
            pods.call(&["wait", "web/main"]).exits(0);
            let main = pods.container("web", "main");
            assert_eq!((&main["restarts"], &main["message"]), (&0.into(), &Value::Null), "{main}");
            pods.is("web", "Succeeded");
            pods.remove("web");
        }
    });
}

#[test]
fn a_pod_whose_image_can_not_be_pulled_is_stopped() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        let (there, _open) = Reachable::opened_by(host, false, None);
        let image = there.registry.image("boats/small:1");
        pods.make("create", "web", &format!("  containers: [{{name: main, image: '{image}'}}]\n")).succeeds();
        let mut starting = Command::new(host.runtime()).args(["pod", "start", "web"]).spawn().unwrap();
        pods.becomes("web", "main", "state", "pulling");
        pods.call(&["stop", "web"]).succeeds();
        assert_eq!(pods.inspect("web")["phase"], "Failed");
        starting.wait().unwrap();
        pods.remove("web");
    });
}

#[test]
fn the_image_of_a_container_below_another_that_can_not_be_pulled_is_told_to_who_launches_it() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        let there = Reachable::new(host);
        pods.run("web", "  containers: [{name: main, image: IMAGE, command: [sleep, '1000']}]\n");
        for (tag, is_there) in [("9", false), ("1", true)] {
            let image = there.registry.image(&format!("boats/small:{tag}"));
            let file =
                pods.file(&format!("{{name: child{tag}, image: '{image}', command: [sleep, '1000']}}"));
            let launched = pods.call(&["launch", "-f", file.to_str().unwrap(), "web/main"]);
            if is_there {
                launched.succeeds();
            } else {
                launched.fails_with(&["it is not in the store", "boats/small:9"]);
            }
        }
        pods.remove("web");
    });
}

#[test]
fn a_supervisor_that_dies_while_an_image_is_pulled_is_replaced_by_one_that_pulls_it() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        let (there, open) = Reachable::opened_by(host, false, None);
        let image = there.registry.image("boats/small:1");
        let spec = format!(
            "  restartPolicy: Never\n  containers: [{{name: main, image: '{image}', command: ['true']}}]\n"
        );
        pods.make("create", "web", &spec).succeeds();
        let mut starting = Command::new(host.runtime()).args(["pod", "start", "web"]).spawn().unwrap();
        command::eventually("the registry is asked", || !there.registry.asked().is_empty());
        command::tool("kill", &["-9", &pods.inspect("web")["supervisor"].to_string()]);
        assert!(!starting.wait().unwrap().success());
        open.store(true, Ordering::Relaxed);
        command::eventually("another looks after it", || {
            host.call(&["recover"]).succeeds();
            pods.call(&["inspect", "web"]).code == 0
        });
        pods.call(&["wait", "web/main"]).exits(0);
        pods.remove("web");
    });
}

#[test]
fn the_image_of_a_volume_is_pulled_as_its_policy_says() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        let there = Reachable::new(host);
        let image = there.registry.image("boats/small:1");
        let run = |policy: &str| {
            let spec = format!(
                "  restartPolicy: Never
  volumes: [{{name: v, image: {{reference: '{image}', pullPolicy: {policy}}}}}]
  containers:
  - {{name: main, image: IMAGE, command: [ls, /v/bin/sh], volumeMounts: [{{name: v, mountPath: /v}}]}}
"
            );
            pods.make("run", "web", &spec)
        };
        let succeeds = |policy: &str| {
            run(policy).succeeds();
            pods.call(&["wait", "web/main"]).exits(0);
            assert_eq!(pods.logs("web/main"), "/v/bin/sh");
            pods.remove("web");
        };
        run("Never").fails_with(&["/spec/volumes/0 (\"v\")", "no image is named", "boats/small:1"]);
        assert_eq!(there.asked(), 0, "Never asks nobody");
        succeeds("IfNotPresent");
        let first = there.asked();
        assert!(first > 0);
        succeeds("Never");
        succeeds("IfNotPresent");
        assert_eq!(there.asked(), first, "what is in the store is not asked for");
        succeeds("Always");
        assert!(there.asked() > first, "Always asks each time");
    });
}

#[test]
fn a_supervisor_that_dies_while_a_volume_is_pulled_is_replaced_by_one_that_pulls_it() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        let (there, open) = Reachable::opened_by(host, false, None);
        let image = there.registry.image("boats/small:1");
        let spec = format!(
            "  volumes: [{{name: v, image: {{reference: '{image}'}}}}]
  containers:
  - {{name: main, image: IMAGE, command: [sleep, '1000'], volumeMounts: [{{name: v, mountPath: /v}}]}}
"
        );
        pods.make("create", "web", &spec).succeeds();
        let mut starting = Command::new(host.runtime()).args(["pod", "start", "web"]).spawn().unwrap();
        command::eventually("the registry is asked", || !there.registry.asked().is_empty());
        let supervisor = pods.inspect("web")["supervisor"].to_string();
        command::tool("kill", &["-9", &supervisor]);
        assert!(!starting.wait().unwrap().success());
        open.store(true, Ordering::Relaxed);
        command::eventually("another looks after it", || {
            host.call(&["recover"]).succeeds();
            pods.container("web", "main")["state"] == "running"
        });
        assert_eq!(pods.exec("web/main", &["ls", "/v/bin/sh"]).succeeds().text(), "/v/bin/sh");
        pods.remove("web");
    });
}

#[test]
fn snapshots_from_before_the_machines_start_go_with_recover() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        pods.run("web", "  volumes: [{name: v, image: {reference: IMAGE}}]\n  containers: [{name: main, image: IMAGE, command: [sleep, '1000']}]\n");
        let store = pods.store.directory().display().to_string();
        pods.store.call(&["mount", coracle_tests::pod::IMAGE, "by-hand"]).succeeds();
        let told = pods.inspect("web");
        let pids =
            [&told["supervisor"], &told["keeper"], &told["containers"][0]["pid"]].map(ToString::to_string);
        // A start of the machine, as far as it goes: no process, no mount, no cgroup, no file in /run.
        for pid in &pids {
            command::tool("kill", &["-KILL", pid]);
            command::eventually("it is gone", || {
                fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| stat.contains(") Z"))
            });
        }
        host.shell(&format!(
            "for at in $(awk '$5 ~ \"^({store}|/run/coracle)/\" {{print $5}}' /proc/self/mountinfo | sort -r); do umount -l $at; done; \
             rm -rf /run/coracle/.pods; find /sys/fs/cgroup -depth -path '*/coracle*' -type d -exec rmdir {{}} +"
        ));
        let snapshots = || {
            let names = fs::read_dir(format!("{store}/snapshots")).unwrap();
            let mut names: Vec<_> =
                names.map(|name| name.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        };
        assert_eq!(snapshots(), ["by-hand", "web~main", "web~v.volume"]);
        let recovered = host.shell(&format!("CORACLE_STORE={store} $RUNTIME recover")).succeeds();
        assert_eq!(recovered.lines(), ["web/main", "web/v.volume"]);
        assert_eq!(snapshots(), ["by-hand"], "what a person has mounted stays");
        pods.store.call(&["unmount", "by-hand"]).succeeds();
    });
}
