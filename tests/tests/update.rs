//! `update`: new limits for a running container.

#![expect(clippy::unwrap_used, reason = "a helper of the tests fails as a test does")]

use std::fs;

use coracle_tests::{Container, Spec, cgroup, command, privileged};
use serde_json::{Value, json};

const MIB: i64 = 1 << 20;

fn limit(container: &Container<'_>, v1: &str, v2: &str) -> String {
    let file = if cgroup::is_unified() { v2 } else { v1 };
    cgroup::read(&format!("/{}", container.id()), file).unwrap_or_else(|| panic!("{file} is missing"))
}

fn memory(container: &Container<'_>) -> String {
    limit(container, "memory.limit_in_bytes", "memory.max")
}

fn pids(container: &Container<'_>) -> String {
    limit(container, "pids.max", "pids.max")
}

fn update(container: &Container<'_>, options: &[&str]) -> coracle_tests::Outcome {
    container.verb_with("update", options)
}

/// The limits in the configuration that the runtime keeps.
fn kept(container: &Container<'_>) -> Value {
    let path = format!("/run/coracle/{}/config.json", container.id());
    let text = fs::read_to_string(path).unwrap();
    serde_json::from_str::<Value>(&text).unwrap()["linux"]["resources"].clone()
}

fn limited() -> Spec {
    let memory = json!({"limit": 64 * MIB, "swap": 64 * MIB});
    Spec::new()
        .set("/linux/resources/memory", memory)
        .set("/linux/resources/pids", json!({"limit": 20}))
        .set("/linux/resources/cpu", json!({"shares": 512}))
        .args(["sleep", "1000"])
}

#[test]
fn each_option_is_a_limit_and_the_others_stay() {
    privileged(|host| {
        let container = host.bundle(limited()).start();
        update(&container, &["--memory", "48m", "--cpu-quota", "50000", "--cpu-period", "100000"]).succeeds();
        assert_eq!(memory(&container), (48 * MIB).to_string());
        let quota = limit(&container, "cpu.cfs_quota_us", "cpu.max");
        assert!(quota == "50000" || quota == "50000 100000", "{quota}");
        assert_eq!(pids(&container), "20");
        update(&container, &["--pids-limit", "30", "--cpuset-cpus", "0", "--cpu-share", "1024"]).succeeds();
        assert_eq!(pids(&container), "30");
        assert_eq!(limit(&container, "cpuset.cpus", "cpuset.cpus"), "0");
        assert_eq!(limit(&container, "cpu.shares", "cpu.weight").parse::<u32>().unwrap() % 924, 100);
        assert_eq!(memory(&container), (48 * MIB).to_string());
        update(&container, &["--pids-limit", "-1", "--memory-reservation", "32m", "--kernel-memory", "1g"])
            .succeeds();
        assert_eq!(pids(&container), "max");
        container.remove();
    });
}

#[test]
fn memory_and_swap_are_raised_and_lowered_together() {
    privileged(|host| {
        let container = host.bundle(limited()).start();
        for (memory_limit, swap) in [(128, 256), (32, 48), (96, 96)] {
            let [limit, swap] = [memory_limit, swap].map(|n| format!("{n}m"));
            update(&container, &["--memory", &limit, "--memory-swap", &swap]).succeeds();
            assert_eq!(memory(&container), (memory_limit * MIB).to_string());
        }
        update(&container, &["--memory", "-1"]).succeeds();
        assert!(memory(&container).len() > 10 || memory(&container) == "max");
        container.remove();
    });
}

#[test]
fn limits_come_from_a_file_and_from_the_standard_input() {
    privileged(|host| {
        let container = host.bundle(limited()).start();
        let file = host.directory().join("limits.json");
        fs::write(&file, json!({"pids": {"limit": 11}, "devices": []}).to_string()).unwrap();
        update(&container, &["--resources", file.to_str().unwrap()]).succeeds();
        assert_eq!(pids(&container), "11");
        let document = json!({"memory": {"limit": 33 * MIB}, "pids": {"limit": 12}});
        let script = format!("echo '{document}' | $RUNTIME update -r - {}", container.id());
        host.shell(&script).succeeds();
        assert_eq!((pids(&container), memory(&container)), ("12".to_owned(), (33 * MIB).to_string()));
        // No rules for devices are no wish for none.
        container.exec(&["head", "-c", "1", "/dev/zero"]).succeeds();
        container.remove();
    });
}

#[test]
fn the_new_limits_are_kept() {
    privileged(|host| {
        if !host.needs_coracle("a configuration with its state") {
            return;
        }
        let container = host.bundle(limited()).start();
        update(&container, &["--memory", "48m", "--cpu-burst", "0"]).succeeds();
        let kept = kept(&container);
        assert_eq!(kept["memory"], json!({"limit": 48 * MIB, "swap": 64 * MIB}));
        assert_eq!(kept["cpu"], json!({"shares": 512, "burst": 0}));
        assert_eq!(kept["pids"], json!({"limit": 20}));
        container.remove();
    });
}

#[test]
fn a_refused_update_leaves_every_limit_as_it_was() {
    privileged(|host| {
        if !host.needs_coracle("updates that are whole or not at all") {
            return;
        }
        let container = host.bundle(limited()).start();
        let before = kept(&container);
        let shares = limit(&container, "cpu.shares", "cpu.weight");
        let options =
            ["--cpu-share", "2048", "--pids-limit", "5", "--memory", "48m", "--cpuset-cpus", "4000"];
        update(&container, &options).fails_with(&["updating", "/linux/resources/cpu/cpus", "cpuset.cpus"]);
        assert_eq!(limit(&container, "cpu.shares", "cpu.weight"), shares);
        assert_eq!((memory(&container), pids(&container)), ((64 * MIB).to_string(), "20".to_owned()));
        assert_eq!(kept(&container), before);
        // What is refused last: all that was written before goes back.
        let file = host.directory().join("limits.json");
        let document = json!({"cpu": {"shares": 2048}, "pids": {"limit": 5}, "memory": {"limit": 48 * MIB},
            "devices": [{"allow": true, "type": "c", "major": 10, "minor": 229, "access": "x"}]});
        fs::write(&file, document.to_string()).unwrap();
        update(&container, &["--resources", file.to_str().unwrap()]).fails_with(&["devices/0"]);
        assert_eq!(limit(&container, "cpu.shares", "cpu.weight"), shares);
        assert_eq!((memory(&container), pids(&container)), ((64 * MIB).to_string(), "20".to_owned()));
        container.remove();
    });
}

#[test]
fn a_paused_and_a_created_container_can_be_updated_but_no_stopped_one() {
    privileged(|host| {
        let container = host.bundle(limited()).create();
        update(&container, &["--pids-limit", "7"]).succeeds();
        container.call("start").succeeds();
        container.call("pause").succeeds();
        update(&container, &["--pids-limit", "8"]).succeeds();
        assert_eq!((pids(&container), container.status()), ("8".to_owned(), "paused".to_owned()));
        container.call("resume").succeeds();
        container.call_with("kill", &["KILL"]).succeeds();
        container.becomes("stopped");
        update(&container, &["--pids-limit", "9"]).fails_with(&["not running"]);
        container.call("delete").succeeds();
    });
}

#[test]
fn what_is_no_limit_is_named() {
    privileged(|host| {
        let container = host.bundle(limited()).start();
        update(&container, &["--memory", "lots"]).fails_with(&["lots"]);
        if host.is_coracle() {
            let script = format!("echo '{{\"pids\": 7}}' | $RUNTIME update -r - {}", container.id());
            host.shell(&script).fails_with(&["updating", "/linux/resources/pids: invalid type"]);
            host.shell(&format!("echo '[' | $RUNTIME update -r - {}", container.id()))
                .fails_with(&["/linux/resources", "expected an object"]);
            update(&container, &["--l3-cache-schema", "all"])
                .fails_with(&["/linux/intelRdt/l3CacheSchema", "\"all\" is no line of a schemata file"]);
            update(&container, &["--pids-limit", "9", "--mem-bw-schema", "MB:0=50"])
                .fails_with(&["/linux/intelRdt", "Intel RDT is not supported or enabled"]);
            assert_eq!(pids(&container), "20", "what was written before is put back");
        }
        container.remove();
    });
}

/// A container that holds on to 20 MiB.
fn using_memory() -> Spec {
    limited().script("dd if=/dev/zero of=/dev/shm/file bs=1M count=20 2>/dev/null; echo full; sleep 1000")
}

#[test]
fn a_limit_below_the_use_is_refused_where_that_is_asked_for() {
    privileged(|host| {
        let container = host.bundle(using_memory()).start();
        command::eventually("the memory is in use", || container.output().contains("full"));
        let file = host.directory().join("resources.json");
        let limits = json!({"memory": {"limit": 8 * MIB, "swap": 8 * MIB, "checkBeforeUpdate": true}, "pids": {"limit": 9}});
        fs::write(&file, limits.to_string()).unwrap();
        update(&container, &["--resources", file.to_str().unwrap()]).fails_with(&[
            "/linux/resources/memory/limit",
            "8388608 bytes are less than the",
            "in use",
        ]);
        assert_eq!((memory(&container), pids(&container)), ((64 * MIB).to_string(), "20".to_owned()));
        container.remove();
    });
}

#[test]
fn a_container_that_wants_new_limits_checked_has_those_of_options_checked() {
    privileged(|host| {
        let spec = using_memory().set("/linux/resources/memory/checkBeforeUpdate", true);
        let container = host.bundle(spec).start();
        command::eventually("the memory is in use", || container.output().contains("full"));
        update(&container, &["--memory", "8m"]).fails_with(&["/linux/resources/memory/limit", "in use"]);
        update(&container, &["--memory", "48m"]).succeeds();
        assert_eq!(memory(&container), (48 * MIB).to_string());
        container.remove();
    });
}

#[test]
fn limits_of_tasks_that_say_nothing_change_nothing() {
    privileged(|host| {
        let spec = Spec::new().set("/linux/resources/pids", json!({})).args(["sleep", "1000"]);
        let container = host.bundle(spec).start();
        let before = pids(&container);
        assert!(before == "max" || cgroup::is_made_by_systemd(), "{before}: systemd has a default");
        let file = host.directory().join("resources.json");
        fs::write(&file, r#"{"pids": {}}"#).unwrap();
        update(&container, &["--resources", file.to_str().unwrap()]).succeeds();
        assert_eq!(pids(&container), before);
        container.remove();
    });
}
