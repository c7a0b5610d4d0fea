//! Containers below others, at any depth.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use coracle_tests::pod::Pods;
use coracle_tests::{Outcome, plugin, privileged};
use serde_json::{Value, json};

const WEB: &str = "
  terminationGracePeriodSeconds: 0
  restartPolicy: Never
  containers:
  - {name: main, image: IMAGE, command: [sleep, '1000']}
";

fn launch(pods: &Pods<'_>, parent: &str, name: &str, rest: &str) -> Outcome {
    let image = coracle_tests::pod::IMAGE;
    let file = pods.file(&format!("name: {name}\nimage: {image}\n{rest}\n"));
    pods.call(&["launch", "-f", file.to_str().unwrap(), parent])
}

#[test]
fn containers_are_launched_waited_for_and_forgotten_while_the_pod_runs() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        pods.run("web", WEB);
        launch(&pods, "web/main", "child", "command: [sh, -c, 'echo below; exit 6']").succeeds();
        pods.call(&["wait", "web/main/child"]).exits(6);
        assert_eq!(pods.logs("web/main/child"), "below");
        // Who did not hear that it was launched asks again, and it may be over by then.
        launch(&pods, "web/main", "child", "command: [sh, -c, 'echo below; exit 6']").succeeds();
        assert_eq!(pods.logs("web/main/child"), "below");
        launch(&pods, "web/main", "stays", "command: [sleep, '1000']").succeeds();
        launch(&pods, "web/main", "stays", "command: [sleep, '1000']").succeeds();
        launch(&pods, "web/main", "stays", "command: [sleep, '2000']").fails_with(&["already exists"]);
        launch(&pods, "web/main/stays", "deep", "command: [sleep, '1000']").succeeds();
        launch(&pods, "web/main/stays/deep", "deeper", "command: [sleep, '1000']").succeeds();
        let net = |path: &str| pods.exec(path, &["readlink", "/proc/self/ns/net"]).succeeds().text();
        assert_eq!(net("web/main"), net("web/main/stays/deep/deeper"));
        pods.call(&["forget", "web/main/stays"]).succeeds();
        assert_eq!(pods.inspect("web")["containers"].as_array().unwrap().len(), 2);
        pods.call(&["forget", "web/main/stays"]).succeeds();
        pods.call(&["forget", "web/main"]).fails_with(&["belongs to the pod"]);
        pods.remove("web");
    });
}

#[test]
fn the_end_of_a_container_is_the_end_of_those_below_it_each_with_its_record() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        pods.run("web", WEB);
        launch(&pods, "web/main", "child", "command: [sleep, '1000']").succeeds();
        launch(&pods, "web/main/child", "grandchild", "command: [sleep, '1000']").succeeds();
        pods.call(&["kill", "web/main", "KILL"]).succeeds();
        for path in ["web/main/child/grandchild", "web/main/child", "web/main"] {
            pods.call(&["wait", path]).exits(137);
        }
        pods.remove("web");
    });
}

#[test]
fn a_launch_that_fails_says_why_and_leaves_the_pod_alone() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        pods.run("web", WEB);
        launch(&pods, "web/main", "bad", "command: [no-such-program]").fails_with(&["no-such-program"]);
        launch(&pods, "web/nobody", "bad", "command: ['true']").fails_with(&["no container \"nobody\""]);
        launch(&pods, "web/main", "bad2", "envFrom: []")
            .fails_with(&["/envFrom: it is unknown or not supported"]);
        assert_eq!(pods.inspect("web")["phase"], "Running");
        pods.remove("web");
    });
}

#[test]
fn the_container_that_ran_out_of_memory_is_the_one_that_is_told() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        pods.run("web", WEB);
        let eats = "command: [sh, -c, 'x=a; while :; do x=$x$x; done']\nresources: {limits: {memory: 16Mi}}";
        launch(&pods, "web/main", "eats", eats).succeeds();
        pods.call(&["wait", "web/main/eats"]).exits(137);
        assert_eq!(pods.container("web", "main/eats")["exit"]["reason"], "OOMKilled");
        assert_eq!(pods.container("web", "main")["state"], "running");
        pods.remove("web");
    });
}

/// A caller over the raw socket.
struct Api(UnixStream);

impl Api {
    fn call(&mut self, method: &str, parameters: &Value) -> Value {
        let call = json!({ "method": format!("io.coracle.Pod.{method}"), "parameters": parameters });
        self.0.write_all(format!("{call}\0").as_bytes()).unwrap();
        let (mut reply, mut chunk) = (Vec::new(), [0; 4096]);
        while reply.last() != Some(&0) {
            let length = self.0.read(&mut chunk).unwrap();
            assert!(length > 0, "{method}: the supervisor went away");
            reply.extend_from_slice(&chunk[..length]);
        }
        reply.pop();
        let reply: Value = serde_json::from_slice(&reply).unwrap();
        assert_eq!(reply["error"], Value::Null, "{reply}");
        reply["parameters"].clone()
    }
}

#[test]
fn a_call_that_takes_no_reply_gets_none() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        pods.run("web", WEB);
        let mut api = Api(UnixStream::connect("/run/coracle/.pods/web/api.sock").unwrap());
        api.0.write_all(b"{\"method\":\"io.coracle.Pod.Inspect\",\"oneway\":true}\0").unwrap();
        let reply = api.call("Document", &json!({}));
        assert_eq!(reply["document"]["metadata"]["name"], "web", "{reply}");
        pods.remove("web");
    });
}

#[test]
fn a_thousand_launches_leave_nothing() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        pods.run("web", WEB);
        let mut api = Api(UnixStream::connect("/run/coracle/.pods/web/api.sock").unwrap());
        let mut life = |number: usize| {
            let container = json!({ "name": format!("n{number}"), "image": coracle_tests::pod::IMAGE, "command": ["true"] });
            api.call("Launch", &json!({ "parent": "main", "container": container }));
            let path = format!("main/n{number}");
            let ended = api.call("Wait", &json!({ "container": path }));
            assert_eq!(ended["container"]["exit"]["exitCode"], 0);
            api.call("Forget", &json!({ "container": path }));
        };
        life(0);
        let before = host.snapshot();
        let begin = std::time::Instant::now();
        (1..=1000).for_each(life);
        host.counted(&format!("a container below another lives {:?} on average", begin.elapsed() / 1000));
        let difference = host.difference(&before).unwrap_or_default();
        let left: Vec<&str> = difference.lines().filter(|line| line.contains("left:")).collect();
        assert!(left.is_empty(), "{left:?}");
        pods.remove("web");
    });
}

#[test]
fn an_isolator_that_does_not_support_containers_below_others_refuses_them() {
    privileged(|host| {
        let object = plugin::compiled(host, "fixtures/plugins/hostile.c", &["-DOCI_ONLY"]);
        let host = host.with_plugin("test/hostile", &object, "");
        let Some(pods) = Pods::new(&host) else { return };
        pods.make("run", "web", WEB)
            .fails_with(&["isolator test/hostile does not support nested containers"]);
        pods.remove("web");
    });
}

#[test]
fn a_plugin_ends_the_container_that_it_finds_at_a_limit() {
    privileged(|host| {
        let object = plugin::compiled(host, "fixtures/plugins/hostile.c", &["-DLIMITED", "-DLATER"]);
        let host = host.with_plugin("test/hostile", &object, "");
        let Some(pods) = Pods::new(&host) else { return };
        pods.run("web", WEB);
        pods.call(&["wait", "web/main"]).exits(137);
        pods.remove("web");
    });
}
