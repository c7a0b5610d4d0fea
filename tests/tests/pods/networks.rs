//! Pods on networks, by the distribution's CNI plugins.

use std::net::TcpListener;

use coracle_tests::lan::Lan;
use coracle_tests::pod::Pods;
use coracle_tests::{command, privileged};
use serde_json::{Value, json};

const ON_BRIDGE: &str = "  annotations: {io.coracle/network: bridge}\n";

/// A web server and one beside it, on port 8090 of the host.
const SERVER: &str = "
  terminationGracePeriodSeconds: 0
  containers:
  - name: web
    image: IMAGE
    command: [sh, -c, 'mkdir /www; echo hello from $(hostname) > /www/index.html; exec httpd -f -p 80 -h /www']
    ports: [{containerPort: 80, hostPort: 8090}]
    readinessProbe: {httpGet: {port: 80}, periodSeconds: 1}
  - {name: beside, image: IMAGE, command: [sleep, '1000']}
";

const SLEEPER: &str = "
  terminationGracePeriodSeconds: 0
  containers: [{name: main, image: IMAGE, command: [sleep, '1000']}]
";

fn addresses(pods: &Pods<'_>, pod: &str) -> Vec<String> {
    let told = pods.inspect(pod);
    let addresses = told["networks"][0]["addresses"].as_array().unwrap();
    addresses.iter().map(|address| address.as_str().unwrap().to_owned()).collect()
}

/// Makes what plugins leave for whoever comes next, and takes stock.
fn warmed(lan: &Lan, pods: &Pods<'_>) -> std::collections::BTreeSet<String> {
    pods.make_with("run", "first", ON_BRIDGE, &SERVER.replace("8090", "8091")).succeeds();
    pods.remove("first");
    lan.stock()
}

fn kill(pid: &Value) {
    command::tool("kill", &["-KILL", &pid.to_string()]);
    command::eventually("it is gone", || {
        std::fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| stat.contains(") Z"))
    });
}

#[test]
fn pods_on_a_network_reach_each_other_by_name_and_containers_of_one_by_theirs() {
    privileged(|host| {
        let Some(lan) = Lan::new(host, 30.0) else { return };
        let Some(pods) = Pods::new(lan.host()) else { return };
        let before = warmed(&lan, &pods);
        pods.make_with("run", "server", ON_BRIDGE, SERVER).succeeds();
        pods.make_with("run", "client", ON_BRIDGE, SLEEPER).succeeds();
        pods.becomes("server", "web", "ready", true);
        let get = |from: &str, url: &str| pods.exec(from, &["wget", "-qO-", url]).succeeds().text();
        assert_eq!(get("client/main", "http://server/"), "hello from server");
        assert_eq!(get("server/beside", "http://web/"), "hello from server");
        let [v4, v6] = &addresses(&pods, "server")[..] else { panic!("one address of each kind") };
        assert!(v4.starts_with("10.76.") && v6.starts_with("fd76:"), "{v4} {v6}");
        assert_eq!(get("client/main", &format!("http://[{v6}]/")), "hello from server");
        assert_eq!(pods.exec("server/web", &["cat", "/etc/hostname"]).succeeds().text(), "server");
        let main = command::tool("ip", &["route", "get", v4]);
        assert!(main.contains("coracle0"), "{main}");
        pods.remove("client");
        assert!(!pods.exec("server/web", &["cat", "/etc/hosts"]).succeeds().text().contains("client"));
        pods.remove("server");
        lan.ends_as(&before);
    });
}

#[test]
fn a_port_of_the_host_leads_to_the_container_and_is_given_back_with_the_pod() {
    privileged(|host| {
        let Some(lan) = Lan::new(host, 30.0) else { return };
        if !host.needs_program("curl") {
            return;
        }
        let Some(pods) = Pods::new(lan.host()) else { return };
        let before = warmed(&lan, &pods);
        pods.make_with("run", "server", ON_BRIDGE, SERVER).succeeds();
        pods.becomes("server", "web", "ready", true);
        assert_eq!(command::tool("curl", &["-s", "http://127.0.0.1:8090/"]), "hello from server\n");
        pods.make_with("run", "other", ON_BRIDGE, SERVER).fails_with(&[
            "attaching the pod to its networks: port 8090/tcp of the host is published for \"server\"",
        ]);
        pods.call(&["inspect", "other"]).fails_with(&["does not exist"]);
        pods.call(&["stop", "server"]).succeeds();
        lan.ends_as(&before);
        let listener = TcpListener::bind("0.0.0.0:8090").unwrap();
        pods.call(&["start", "server"])
            .fails_with(&["port 8090/tcp of the host is taken by a process there"]);
        assert_eq!(pods.inspect("server")["phase"], "Failed");
        drop(listener);
        pods.call(&["start", "server"]).succeeds();
        pods.becomes("server", "web", "ready", true);
        pods.remove("server");
        lan.ends_as(&before);
    });
}

#[test]
fn a_pod_whose_supervisor_and_keeper_were_killed_leaves_its_networks_with_recover() {
    privileged(|host| {
        let Some(lan) = Lan::new(host, 30.0) else { return };
        let Some(pods) = Pods::new(lan.host()) else { return };
        let before = warmed(&lan, &pods);
        pods.make_with("run", "server", ON_BRIDGE, SERVER).succeeds();
        let attached = addresses(&pods, "server");
        kill(&pods.inspect("server")["supervisor"]);
        lan.host().call(&["recover"]).succeeds();
        assert_eq!(addresses(&pods, "server"), attached, "one that goes on stays on its networks");
        let told = pods.inspect("server");
        kill(&told["supervisor"]);
        kill(&told["keeper"]);
        lan.host().call(&["recover"]).succeeds();
        pods.is("server", "Failed");
        lan.ends_as(&before);
        pods.call(&["rm", "server"]).succeeds();
    });
}

#[test]
fn a_network_that_can_not_be_had_is_told_before_anything_is_made() {
    privileged(|host| {
        let Some(lan) = Lan::new(host, 30.0) else { return };
        let Some(pods) = Pods::new(lan.host()) else { return };
        let nowhere = "  annotations: {io.coracle/network: nowhere}\n";
        pods.make_with("run", "web", nowhere, SLEEPER)
            .fails_with(&["/metadata/annotations/io.coracle~1network", "nowhere"]);
        pods.make("run", "web", SERVER).fails_with(&[
            "/spec/containers/0/ports/0/hostPort: the pod is on no network; name one with --network",
        ]);
    });
}

#[test]
fn a_plugin_that_fails_ends_the_start_and_what_was_begun_is_undone() {
    privileged(|host| {
        let Some(lan) = Lan::new(host, 30.0) else { return };
        let Some(pods) = Pods::new(lan.host()) else { return };
        lan.plugin("fails", r#"echo $CNI_COMMAND >> $DIR/calls; [ $CNI_COMMAND = DEL ] || { echo '{"code": 999, "msg": "no more cables"}'; exit 1; }"#);
        lan.network(&json!({"cniVersion": "1.0.0", "name": "broken", "plugins": [{"type": "fails"}]}));
        let broken = "  annotations: {io.coracle/network: broken}\n";
        pods.make_with("run", "web", broken, SLEEPER).fails_with(&["no more cables"]);
        assert_eq!(lan.read("calls"), "ADD\nDEL\n");
        pods.call(&["inspect", "web"]).fails_with(&["does not exist"]);
        let _ = std::fs::remove_dir_all("/var/lib/coracle/network");
    });
}

#[test]
fn the_operator_may_say_which_networks_pods_are_on() {
    privileged(|host| {
        let Some(lan) = Lan::new(host, 30.0) else { return };
        let configured =
            host.configured("[isolator.\"network/cni\"]\noptions = { pods = \"bridge\", deadline = 30.0 }\n");
        let Some(pods) = Pods::new(&configured) else { return };
        let before = warmed(&lan, &pods);
        pods.run("web", SLEEPER);
        assert_eq!(pods.inspect("web")["networks"][0]["name"], "bridge");
        pods.remove("web");
        pods.make_with("run", "web", "  annotations: {io.coracle/network: none}\n", SLEEPER).succeeds();
        assert_eq!(pods.inspect("web")["networks"], Value::Null);
        pods.remove("web");
        lan.ends_as(&before);
    });
}

#[test]
fn the_caller_may_say_which_networks() {
    privileged(|host| {
        let Some(lan) = Lan::new(host, 30.0) else { return };
        let Some(pods) = Pods::new(lan.host()) else { return };
        let before = warmed(&lan, &pods);
        let store = pods.store.directory().to_str().unwrap().to_owned();
        let image = coracle_tests::pod::IMAGE;
        let run =
            ["run", "--network", "bridge", "--store", &store, "--name", "web", image, "--", "sleep", "1000"];
        pods.call(&run).succeeds();
        assert_eq!(pods.inspect("web")["networks"][0]["name"], "bridge");
        pods.remove("web");
        let host_network =
            ["run", "--network", "host", "--store", &store, "--name", "web", image, "sleep", "1000"];
        pods.call(&host_network).succeeds();
        let net = pods.exec("web", &["readlink", "/proc/self/ns/net"]).succeeds().text();
        assert_eq!(net, std::fs::read_link("/proc/self/ns/net").unwrap().to_str().unwrap());
        pods.remove("web");
        lan.ends_as(&before);
    });
}

#[test]
fn a_pod_with_users_of_its_own_is_on_networks_too() {
    privileged(|host| {
        let Some(lan) = Lan::new(host, 30.0) else { return };
        let Some(pods) = Pods::new(lan.host()) else { return };
        if !super::users::maps_layers(host) {
            return;
        }
        let before = warmed(&lan, &pods);
        pods.make_with("run", "server", ON_BRIDGE, &format!("  hostUsers: false{SERVER}")).succeeds();
        pods.becomes("server", "web", "ready", true);
        let v4 = &addresses(&pods, "server")[0];
        assert_eq!(
            pods.exec("server/beside", &["wget", "-qO-", &format!("http://{v4}/")]).succeeds().text(),
            "hello from server"
        );
        pods.remove("server");
        lan.ends_as(&before);
    });
}
