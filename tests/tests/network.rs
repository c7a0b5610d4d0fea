//! Networks by CNI, with the distribution's plugins, on a host of the test's own.

#![expect(clippy::unwrap_used, reason = "a helper of the tests fails as a test does")]

use std::fs;
use std::process::Command;
use std::time::Instant;

use coracle_tests::command::{eventually, patience, tool};
use coracle_tests::lan::Lan;
use coracle_tests::{Bundle, Container, Spec, privileged};
use serde_json::{Value, json};

/// What a web server in a container runs.
const SERVE: &str =
    "mkdir -p /www; echo hello from $(hostname) >/www/index.html; exec httpd -f -p 80 -h /www";

fn on(networks: &str) -> Spec {
    Spec::new().set("/annotations", json!({"io.coracle.network": networks}))
}

/// A bundle named `name`, on the networks `wanted`.
fn bundle<'l>(lan: &'l Lan, name: &str, networks: &str, script: &str) -> Bundle<'l> {
    lan.host().bundle(on(networks).set("/hostname", name).script(script)).named(name)
}

/// Makes what plugins leave for the next container, and takes stock.
fn warmed(lan: &Lan, networks: &str) -> std::collections::BTreeSet<String> {
    bundle(lan, "first", networks, "true").run().succeeds();
    lan.stock()
}

/// Runs `script` in a container on the bridge, again until it succeeds, and returns what it said.
fn asks(lan: &Lan, script: &str) -> String {
    let again = format!("for i in $(seq 60); do {script} && exit 0; sleep 0.2; done; exit 1");
    bundle(lan, "client", "bridge", &again).run().succeeds().text()
}

fn addresses(container: &Container<'_>) -> Vec<String> {
    let status = container.verb_with("isolator", &["status"]).succeeds().json();
    let addresses = status["networks"][0]["addresses"].as_array().unwrap().clone();
    addresses.iter().map(|address| address.as_str().unwrap().to_owned()).collect()
}

/// A network with a bridge of its own, and `more` plugins after it.
fn lan_with(name: &str, third: u8, more: &[Value]) -> Value {
    let subnet = format!("10.77.{third}.0/24");
    let bridge = json!({"type": "bridge", "bridge": format!("br-{name}"), "isGateway": true,
        "capabilities": {"ips": true, "mac": true},
        "ipam": {"type": "host-local", "ranges": [[{"subnet": subnet}]], "routes": [{"dst": "0.0.0.0/0"}]}});
    let plugins = [&[bridge], more].concat();
    json!({"cniVersion": "1.0.0", "name": name, "plugins": plugins})
}

#[test]
fn two_containers_on_the_bridge_reach_each_other_by_name() {
    privileged(|host| {
        let Some(lan) = Lan::new(host, 30.0) else { return };
        let before = warmed(&lan, "bridge");
        let server = bundle(&lan, "server", "bridge", SERVE).start();
        assert_eq!(asks(&lan, "wget -qO- http://server/"), "hello from server");
        let [v4, v6] = &addresses(&server)[..] else { panic!("one address of each kind") };
        assert!(v4.starts_with("10.76.") && v6.starts_with("fd76:"), "{v4} {v6}");
        assert_eq!(asks(&lan, &format!("wget -qO- http://[{v6}]/")), "hello from server");
        assert_eq!(tool("curl", &["-s", &format!("http://{v4}/")]), "hello from server\n");
        server.remove();
        lan.ends_as(&before);
    });
}

#[test]
fn names_come_and_go_with_their_containers() {
    privileged(|host| {
        let Some(lan) = Lan::new(host, 30.0) else { return };
        let before = warmed(&lan, "bridge");
        let watcher = bundle(&lan, "watcher", "bridge", "sleep 1000").start();
        let knows = |name: &str| watcher.exec(&["cat", "/etc/hosts"]).succeeds().text().contains(name);
        assert!(knows("localhost") && knows("\twatcher"));
        let other = bundle(&lan, "other", "bridge", "sleep 1000").start();
        assert!(knows("\tother"));
        other.remove();
        assert!(!knows("\tother"));
        assert_eq!(watcher.exec(&["cat", "/etc/hostname"]).succeeds().text(), "watcher");
        watcher.remove();
        lan.ends_as(&before);
    });
}

#[test]
fn a_name_that_would_forge_a_line_is_nobodys() {
    privileged(|host| {
        let Some(lan) = Lan::new(host, 30.0) else { return };
        let before = warmed(&lan, "bridge");
        let forged =
            lan.host().bundle(on("bridge").set("/hostname", "x 1.2.3.4").args(["cat", "/etc/hosts"]));
        let text = forged.named("forger").run().succeeds().text();
        assert!(text.contains("\tforger") && !text.contains("1.2.3.4"), "{text}");
        lan.ends_as(&before);
    });
}

#[test]
fn files_are_never_written_through_an_images_links() {
    privileged(|host| {
        let Some(lan) = Lan::new(host, 30.0) else { return };
        let before = warmed(&lan, "bridge");
        let canary = host.directory().join("canary");
        fs::write(&canary, "untouched").unwrap();
        let document = r#"{"networks": [{"name": "bridge"}], "dns": {"nameservers": ["192.0.2.53"]}}"#;
        let script = "cat /etc/resolv.conf; echo x >>/etc/resolv.conf || echo refused";
        let bundle = bundle(&lan, "linked", document, script);
        let etc = bundle.rootfs().join("etc");
        fs::create_dir_all(&etc).unwrap();
        for name in ["resolv.conf", "hosts", "hostname"] {
            let _ = fs::remove_file(etc.join(name));
            std::os::unix::fs::symlink(&canary, etc.join(name)).unwrap();
        }
        let run = bundle.run().succeeds();
        assert_eq!(run.lines(), ["nameserver 192.0.2.53", "refused"]);
        assert_eq!(fs::read_to_string(canary).unwrap(), "untouched");
        lan.ends_as(&before);
    });
}

#[test]
fn a_published_port_answers_from_the_host() {
    privileged(|host| {
        let Some(lan) = Lan::new(host, 30.0) else { return };
        let document =
            r#"{"networks": [{"name": "bridge"}], "ports": [{"hostPort": 8080, "containerPort": 80}]}"#;
        let before = warmed(&lan, document);
        tool("ip", &["addr", "add", "192.0.2.1/32", "dev", "lo"]);
        let server = bundle(&lan, "server", document, SERVE).start();
        for address in ["192.0.2.1", "127.0.0.1"] {
            let get =
                || Command::new("curl").args(["-s", &format!("http://{address}:8080/")]).output().unwrap();
            eventually("the port answers", || get().stdout == b"hello from server\n");
        }
        server.remove();
        tool("ip", &["addr", "del", "192.0.2.1/32", "dev", "lo"]);
        lan.ends_as(&before);
    });
}

#[test]
fn bandwidth_is_limited_as_asked() {
    privileged(|host| {
        let Some(lan) = Lan::new(host, 30.0) else { return };
        const RATE: f64 = 16e6;
        let document = r#"{"networks": [{"name": "bridge", "bandwidth":
            {"egressRate": 16000000, "egressBurst": 400000}}]}"#;
        let before = warmed(&lan, document);
        let script = "mkdir /www; head -c 4000000 /dev/zero >/www/file; exec httpd -f -p 80 -h /www";
        let server = bundle(&lan, "server", document, script).start();
        let url = format!("http://{}/file", addresses(&server)[0]);
        eventually("the file is served", || {
            let head = Command::new("curl").args(["-sfI", &url]).output().unwrap();
            String::from_utf8_lossy(&head.stdout).contains("Content-Length: 4000000")
        });
        let begun = Instant::now();
        assert_eq!(tool("curl", &["-s", "-o", "/dev/null", "-w", "%{size_download}", &url]), "4000000");
        let rate = 4e6 * 8.0 / begun.elapsed().as_secs_f64();
        // What proves the limit is that it is not faster: a slow machine may not come near it.
        let least = 0.3 * RATE / f64::from(patience());
        assert!((least..1.2 * RATE).contains(&rate), "{rate} bits a second");
        server.remove();
        lan.ends_as(&before);
    });
}

#[test]
fn a_container_may_be_on_several_networks_with_an_address_of_its_own_choice() {
    privileged(|host| {
        let Some(lan) = Lan::new(host, 30.0) else { return };
        lan.network(&lan_with("front", 1, &[]));
        lan.network(&lan_with("back", 2, &[]));
        let before = warmed(&lan, "front,back");
        let document = r#"{"networks": [{"name": "front", "ips": ["10.77.1.99/24"], "mac": "02:00:00:00:00:63"},
            {"name": "back", "interface": "private"}]}"#;
        let script = "ip -o addr; ip link; cat /etc/hosts";
        let text = bundle(&lan, "both", document, script).run().succeeds().text();
        for words in [
            "eth0    inet 10.77.1.99/24",
            "private    inet 10.77.2.",
            "02:00:00:00:00:63",
            "10.77.1.99\tboth",
        ] {
            assert!(text.contains(words), "{words}: {text}");
        }
        lan.ends_as(&before);
    });
}

#[test]
fn what_is_not_configured_is_refused_before_anything_is_made() {
    privileged(|host| {
        let Some(lan) = Lan::new(host, 30.0) else { return };
        let before = lan.stock();
        let run = |networks: &str| bundle(&lan, "refused", networks, "true").run();
        run("nowhere")
            .fails_with(&["/annotations/io.coracle.network", "no network \"nowhere\" is configured in"]);
        run(r#"{"networks": [{"name": "bridge", "tos": 5}]}"#)
            .fails_with(&["no plugin of network \"bridge\" takes \"tos\""]);
        lan.network(&lan_with("front", 1, &[]));
        let ports = r#"{"networks": [{"name": "front"}], "ports": [{"hostPort": 1, "containerPort": 2}]}"#;
        run(ports).fails_with(&["no plugin of these networks takes \"portMappings\""]);
        let host_network = lan.host().bundle(on("front").without_namespace("network"));
        host_network.run().fails_with(&["it is set but /linux/namespaces has no \"network\""]);
        lan.ends_as(&before);
    });
}

#[test]
fn plugins_that_fail_hang_answer_rubbish_or_vanish_are_named_and_leave_nothing() {
    privileged(|host| {
        let deadline = 5 * patience();
        let Some(lan) = Lan::new(host, deadline.into()) else { return };
        let too_long = format!("did not answer ADD within {deadline} s, and was killed");
        lan.network(&lan_with("front", 1, &[]));
        let before = warmed(&lan, "front");
        lan.network(&lan_with("front", 1, &[json!({"type": "faulty"})]));
        let add = "[ $CNI_COMMAND = ADD ] || exit 0\n";
        for (script, words) in [
            (
                "echo '{\"code\": 7, \"msg\": \"no luck\", \"details\": \"today\"}'; exit 1",
                "could not ADD: no luck (today) (CNI code 7)",
            ),
            ("echo why >&2; exit 3", "could not ADD: it ended with exit status: 3, saying \"why\""),
            ("kill -9 $$", "could not ADD: it ended with signal: 9 (SIGKILL)"),
            ("sleep 1003 & sleep 1003", &too_long),
            ("echo {", "could not ADD: its answer is no JSON"),
            ("echo []", "answered ADD with no result"),
        ] {
            lan.plugin("faulty", &format!("{add}{script}"));
            let run = bundle(&lan, "unlucky", "front", "true").run();
            run.fails_with(&[
                "isolator network/cni could not isolate: network \"front\": plugin \"faulty\"",
                words,
            ]);
            assert_eq!(lan.stock(), before, "{script}");
        }
        lan.forget_plugin("faulty");
        let run = bundle(&lan, "unlucky", "front", "true").run();
        run.fails_with(&[
            "there is no plugin \"faulty\" in",
            "containernetworking-plugins has the usual ones",
        ]);
        // What vanished can't be asked to give up what it has: the container stays on record until it can.
        lan.plugin("faulty", "");
        lan.host().call(&["delete", "--force", "unlucky"]).succeeds();
        lan.ends_as(&before);
    });
}

#[test]
fn who_is_deleted_by_force_is_gone_and_what_its_plugins_owe_is_asked_for_later() {
    privileged(|host| {
        let Some(lan) = Lan::new(host, 30.0) else { return };
        lan.network(&lan_with("front", 1, &[]));
        let before = warmed(&lan, "front");
        lan.network(&lan_with("front", 1, &[json!({"type": "stubborn"})]));
        let script = "case $CNI_COMMAND in\nADD) cat >/dev/null; echo '{\"cniVersion\": \"1.0.0\"}';;\n\
            DEL) [ ! -e $DIR/busy ] || { echo '{\"code\": 9, \"msg\": \"not now\"}'; exit 1; }\n\
            echo $CNI_NETNS >$DIR/namespace;;\nesac";
        lan.plugin("stubborn", script);
        fs::write(lan.path("busy"), "").unwrap();
        let container = bundle(&lan, "owing", "front", "sleep 1000").start();
        let deleted = lan.host().call(&["delete", "--force", container.id()]).succeeds();
        assert!(deleted.stderr.contains("plugin \"stubborn\" could not DEL: not now"), "{}", deleted.stderr);
        lan.host().call(&["state", container.id()]).fails_with(&["does not exist"]);
        assert_ne!(lan.stock(), before);
        let refused = lan.host().call(&["recover"]).succeeds();
        assert!(refused.stderr.contains("not now"), "{}", refused.stderr);
        fs::remove_file(lan.path("busy")).unwrap();
        lan.host().call(&["recover"]).succeeds();
        assert_eq!(lan.read("namespace").trim(), "/run/coracle/.network-owing");
        lan.ends_as(&before);
    });
}

#[test]
fn what_a_failed_delete_owes_is_asked_for_while_the_container_is_still_known() {
    privileged(|host| {
        let Some(lan) = Lan::new(host, 30.0) else { return };
        lan.network(&json!({"cniVersion": "1.0.0", "name": "front", "plugins": [{"type": "stubborn"}]}));
        let before = lan.stock();
        let script = "case $CNI_COMMAND in\nADD) cat >/dev/null; echo '{\"cniVersion\": \"1.0.0\"}';;\n\
            DEL) [ ! -e $DIR/busy ] || exit 1\necho let go >$DIR/told;;\nesac";
        lan.plugin("stubborn", script);
        fs::write(lan.path("busy"), "").unwrap();
        let container = bundle(&lan, "owing", "front", "true").start();
        container.becomes("stopped");
        lan.host().call(&["delete", container.id()]).fails_with(&["could not DEL"]);
        fs::remove_file(lan.path("busy")).unwrap();
        lan.host().call(&["network", "gc"]).succeeds();
        assert_eq!(lan.read("told").trim(), "let go");
        lan.host().call(&["delete", container.id()]).succeeds();
        lan.ends_as(&before);
    });
}

#[test]
fn a_plugin_that_asks_for_it_is_called_again() {
    privileged(|host| {
        let Some(lan) = Lan::new(host, 10.0) else { return };
        lan.network(&lan_with("front", 1, &[json!({"type": "busy"})]));
        let script = "[ $CNI_COMMAND = ADD ] || exit 0\n\
            echo >>$DIR/calls; [ $(wc -l <$DIR/calls) = 3 ] || { echo '{\"code\": 11, \"msg\": \"busy\"}'; exit 1; }\n\
            echo '{\"cniVersion\": \"1.0.0\"}'";
        lan.plugin("busy", script);
        bundle(&lan, "patient", "front", "true").run().succeeds();
        assert_eq!(lan.read("calls").lines().count(), 3);
        let before = lan.stock();
        lan.ends_as(&before);
    });
}

#[test]
fn what_a_killed_runtime_was_about_to_attach_is_detached_by_recover() {
    privileged(|host| {
        let Some(lan) = Lan::new(host, 30.0) else { return };
        lan.network(&lan_with("front", 1, &[]));
        let before = warmed(&lan, "front");
        lan.network(&lan_with("front", 1, &[json!({"type": "slow"})]));
        lan.plugin("slow", "[ $CNI_COMMAND = ADD ] || exit 0\ntouch $DIR/adding; exec sleep 1004");
        let bundle = bundle(&lan, "cut-off", "front", "true");
        let mut run = bundle.command("run").spawn().unwrap();
        eventually("the plugin is called", || lan.path("adding").exists());
        run.kill().unwrap();
        run.wait().unwrap();
        assert_ne!(lan.stock(), before);
        eventually("it is recovered", || {
            lan.host().call(&["recover"]).succeeds();
            lan.stock() == before
        });
        lan.ends_as(&before);
    });
}

#[test]
fn after_a_start_of_the_machine_recover_gives_back_what_plugins_hold() {
    privileged(|host| {
        let Some(lan) = Lan::new(host, 30.0) else { return };
        lan.network(&lan_with("front", 1, &[json!({"type": "noting"})]));
        lan.plugin("noting", "echo $CNI_COMMAND:$CNI_NETNS >>$DIR/calls\n[ $CNI_COMMAND = ADD ] || exit 0\necho '{\"cniVersion\": \"1.0.0\"}'");
        let before = warmed(&lan, "front");
        let lost = bundle(&lan, "lost", "front", "sleep 1000").start();
        // What a start does: processes, namespaces, mounts, cgroups and /run are gone, /var is not; and it has a number.
        let pid = lost.pid();
        tool("kill", &["-9", &pid.to_string()]);
        lost.becomes("stopped");
        let own = fs::read("/run/coracle/lost/record.json").unwrap();
        tool("umount", &["/run/coracle/.network-lost"]);
        fs::remove_dir_all("/run/coracle/lost").unwrap();
        let number = host.directory().join("boot_id");
        fs::write(&number, "another\n").unwrap();
        tool("mount", &["--bind", number.to_str().unwrap(), "/proc/sys/kernel/random/boot_id"]);
        lan.host().call(&["recover"]).succeeds();
        tool("umount", &["/proc/sys/kernel/random/boot_id"]);
        let calls = lan.read("calls");
        assert_eq!(calls.lines().last(), Some("DEL:"), "{calls}");
        // The interface went with its namespace, the cgroups with the machine.
        fs::create_dir("/run/coracle/lost").unwrap();
        fs::write("/run/coracle/lost/record.json", own).unwrap();
        lan.host().call(&["delete", "--force", "lost"]).succeeds();
        lan.ends_as(&before);
    });
}

#[test]
fn networks_are_listed_asked_checked_and_collected() {
    privileged(|host| {
        let Some(lan) = Lan::new(host, 30.0) else { return };
        lan.plugin(
            "modern",
            "cat >$DIR/$CNI_COMMAND\ncase $CNI_COMMAND in\n\
            ADD) echo '{\"cniVersion\": \"1.1.0\", \"ips\": [{\"address\": \"192.0.2.7/24\"}]}';;\n\
            STATUS) [ ! -e $DIR/full ] || { echo '{\"code\": 50, \"msg\": \"full\"}'; exit 1; };;\n\
            CHECK) [ ! -e $DIR/full ] || { echo '{\"code\": 100, \"msg\": \"gone\"}'; exit 1; };;\nesac",
        );
        lan.network(&json!({"cniVersion": "1.1.0", "name": "modern", "plugins": [{"type": "modern"}]}));
        let before = lan.stock();
        let listed = lan.host().call(&["network", "ls"]).succeeds().text();
        assert!(
            listed.contains("modern           1.1.0   modern ") && listed.contains("(built in)"),
            "{listed}"
        );
        let status = lan.host().call(&["network", "status"]).succeeds().lines();
        assert_eq!(status, ["modern           ready", "bridge           ready"]);

        let container = bundle(&lan, "kept", "modern", "sleep 1000").start();
        assert_eq!(addresses(&container), ["192.0.2.7"]);
        container.verb_with("network", &["check"]).succeeds();
        lan.host().call(&["network", "gc"]).succeeds();
        let told: Value = serde_json::from_str(&lan.read("GC")).unwrap();
        let valid = json!([{"containerID": "kept", "ifname": "eth0"}]);
        assert_eq!(told["cni.dev/valid-attachments"], valid);
        // Of whom nothing can be read nobody may be told that they are gone.
        fs::remove_file(lan.path("GC")).unwrap();
        let record = "/var/lib/coracle/network/kept/record.json";
        let text = fs::read(record).unwrap();
        fs::write(record, "{").unwrap();
        lan.host().call(&["network", "gc"]).fails_with(&["the record of \"kept\" on networks is malformed"]);
        assert!(!lan.path("GC").exists());
        fs::write(record, text).unwrap();

        fs::write(lan.path("full"), "").unwrap();
        let status = lan.host().call(&["network", "status", "modern"]).exits(1).text();
        assert_eq!(status, "modern           plugin \"modern\" could not STATUS: full (CNI code 50)");
        container
            .verb_with("network", &["check"])
            .fails_with(&["network \"modern\"", "could not CHECK: gone (CNI code 100)"]);
        lan.host().call(&["network", "status", "none"]).fails_with(&["no network \"none\" is configured"]);
        lan.host().call(&["network", "check", "nobody"]).fails_with(&["\"nobody\" is on no network"]);
        container.remove();
        lan.ends_as(&before);
    });
}

#[test]
fn without_the_annotation_nothing_of_networks_is_read() {
    privileged(|host| {
        if !host.needs_coracle("networks") || !host.needs_program("strace") {
            return;
        }
        let bundle = host.bundle(Spec::new());
        let trace = host.directory().join("trace");
        let mut command = Command::new("strace");
        command.args(["-f", "-e", "trace=%file", "-o"]).arg(&trace).arg(host.runtime());
        let status =
            command.arg("run").arg("--bundle").arg(bundle.directory()).arg("plain").status().unwrap();
        assert!(status.success());
        let calls = fs::read_to_string(trace).unwrap();
        let (start, _) = calls.split_once("execve(\"/bin/true\"").or(calls.split_once("\"true\"")).unwrap();
        for path in ["cni", "/var/lib/coracle", "boot_id"] {
            assert!(!start.contains(path), "{path}: {start}");
        }
        // One look, when it is deleted, for what may have to be undone.
        assert_eq!(calls.matches("/var/lib/coracle/network").count(), 1, "{calls}");
    });
}
