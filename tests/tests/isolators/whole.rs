//! Plugins that do well: the templates, one of version 1, and the built-in ones as plugins.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use coracle_tests::{Container, Host, Spec, cgroup, command, plugin, privileged};
use serde_json::json;

#[test]
fn the_c_template_limits_open_files_and_sets_its_variable() {
    privileged(|host| {
        let begun = Instant::now();
        let object = plugin::compiled(host, "isolators/template-c/nofile.c", &["-std=c99", "-Wpedantic"]);
        host.counted(&format!("the C template builds in {:.1?}", begun.elapsed()));
        let host = host.with_plugin("example/nofile", &object, "options = { limit = 77 }");
        let outcome = host.bundle(Spec::new().script("echo $NOFILE $(ulimit -n)")).run().succeeds();
        assert_eq!(outcome.text(), "77 77");
        let container = host.sleeper();
        assert_eq!(container.exec(&["sh", "-c", "ulimit -n"]).succeeds().text(), "77");
        container.remove();
        let wrong = host.with_plugin("example/nofile", &object, "options = { limits = 77 }");
        wrong.bundle(Spec::new()).run().fails_with(&["its options are not of the form { limit = 512 }"]);
    });
}

#[test]
fn the_c_template_is_about_forty_lines() {
    assert!(plugin::source("isolators/template-c/nofile.c").lines().count() <= 45);
}

#[test]
fn the_rust_template_logs_each_launch_and_tells_how_many() {
    privileged(|host| {
        let object = plugin::built("coracle_isolator_template");
        let took = plugin::rebuilt("coracle_isolator_template", "isolators/template-rust/src/lib.rs");
        // For people to read: how long it takes is the machine's, and a build that hangs is ended by its own limit.
        host.counted(&format!("the Rust template builds in {took:.1?}"));
        let logs = host.directory();
        let settings =
            format!("writable = [{logs:?}]\noptions = {{ log = \"{}/audit.jsonl\" }}", logs.display());
        let host = host.with_plugin("example/audit", &object, &settings);
        let container = host.sleeper();
        let log = fs::read_to_string(logs.join("audit.jsonl")).unwrap();
        let line: serde_json::Value = serde_json::from_str(&log).unwrap();
        assert_eq!((&line["container"], &line["args"]), (&json!(container.id()), &json!(["sleep", "1000"])));
        let usage = container.call("stats").succeeds().json();
        assert_eq!(usage["other"]["example/audit/launches"], 1.0);
        container.remove();
        let ungranted = host.with_plugin("example/audit", &object, "");
        ungranted
            .bundle(Spec::new())
            .run()
            .fails_with(&["isolator example/audit could not isolate: writing /var/log"]);
    });
}

/// The calls that a plugin has noted, without what they were about.
fn calls(log: &Path) -> Vec<String> {
    let text = fs::read_to_string(log).unwrap();
    text.lines().map(|line| line.split(' ').next().unwrap().to_owned()).collect()
}

#[test]
fn a_plugin_of_version_1_is_called_in_order_with_all_that_it_was_promised() {
    privileged(|host| {
        let object = plugin::compiled(host, "fixtures/plugins/version-1.c", &[]);
        let log = host.directory().join("log");
        let settings =
            format!("writable = [{:?}]\noptions = {{ log = \"{}\" }}", log.parent().unwrap(), log.display());
        let host = host.with_plugin("test/version-1", &object, &settings);
        let container =
            host.bundle(Spec::new().script("echo $VERSION; cat /proc/sys/kernel/msgmax; sleep 1000")).start();
        // Nobody waits for it: its warden asks what there is to be watched.
        let all = ["configure", "prepare", "process", "validate", "isolate", "configure", "watch"];
        command::eventually("the calls of a launch", || calls(&log) == all);
        let text = fs::read_to_string(&log).unwrap();
        assert!(text.contains("validate adjusted\n"), "{text}");
        assert!(text.contains(&format!("isolate process {}\n", container.id())), "{text}");
        command::eventually("its output", || container.output() == "1\n4096\n");
        // What systemd is told it writes, too, and isolators again after it.
        let updates = if cgroup::is_made_by_systemd() { 2 } else { 1 };
        for (args, noted) in [
            (&["exec"][..], &["configure", "process", "join"][..]),
            (&["update", "--pids-limit", "9"], &["configure", "update", "update"][..=updates]),
            (&["stats"], &["configure", "usage"]),
            (&["isolator", "status"], &["configure", "status"]),
            (&["delete", "--force"], &["configure", "cleanup"]),
        ] {
            fs::write(&log, "").unwrap();
            let rest: &[&str] = if args[0] == "exec" { &["true"] } else { &[] };
            let told = host.call(&[args, &[container.id()], rest].concat()).succeeds();
            match args.last() {
                Some(&"stats") => assert_eq!(told.json()["other"]["test/version-1/answer"], 42.0),
                Some(&"status") => assert_eq!(told.json()["answer"]["of"], 42),
                _ => {}
            }
            assert_eq!(calls(&log), noted);
        }
    });
}

/// What a launch that was cut off owes is done by `recover`, and by nobody twice who must not.
#[test]
fn recover_tells_of_what_is_known_and_cleans_up_what_was_cut_off() {
    privileged(|host| {
        let object = plugin::compiled(host, "fixtures/plugins/version-1.c", &[]);
        let log = host.directory().join("log");
        let config =
            format!("writable = [{:?}]\noptions = {{ log = \"{}\" }}", log.parent().unwrap(), log.display());
        let hanging = plugin::compiled(host, super::HOSTILE, &["-DIN=\"isolate\"", "-DDO=hang"]);
        let both = host.configured(&format!(
            "[isolator.\"test/version-1\"]\nfile = {object:?}\n{config}\n[isolator.\"test/hostile\"]\nfile = {hanging:?}\n"
        ));
        let one = host.with_plugin("test/version-1", &object, &config);
        let known = one.bundle(Spec::new().args(["sleep", "1000"])).named("known").start();
        let bundle = both.bundle(Spec::new().args(["echo", "ran"]));
        let mut runtime = bundle.command("run").spawn().unwrap();
        command::eventually("all calls before isolate", || {
            calls(&log).iter().filter(|call| *call == "validate").count() == 2
        });
        std::thread::sleep(Duration::from_millis(200));
        runtime.kill().unwrap();
        command::wait(&mut runtime, "run");
        fs::write(&log, "").unwrap();
        assert_eq!(both.call(&["recover"]).succeeds().lines(), [bundle.id()]);
        let text = fs::read_to_string(&log).unwrap();
        // Who looks for limits of the one that lives is started again, and calls the plugin when it comes to that.
        let told = || calls(&log).into_iter().filter(|call| !["configure", "watch"].contains(&&**call));
        assert_eq!(told().collect::<Vec<_>>(), ["recover", "cleanup"], "{text}");
        assert!(text.contains("recover {\"states\":[{\"id\":\"known\""), "{text}");
        assert!(text.contains(&format!("cleanup {}\n", bundle.id())), "{text}");
        fs::write(&log, "").unwrap();
        assert_eq!(both.call(&["recover"]).succeeds().text(), "");
        assert_eq!(told().collect::<Vec<_>>(), ["recover"]);
        assert_eq!(known.status(), "running");
        known.remove();
    });
}

/// Files that tell of use, not of limits.
fn is_setting(name: &str) -> bool {
    let parts =
        ["limit", "max", "shares", "quota", "period", "burst", "idle", "cpus", "mems", "weight", "list"];
    let more = ["classid", "ifpriomap", "swappiness", "oom_control", "low", "throttle", "rt_"];
    let measured = ["usage", "failcnt", "stat", "events", "peak", "effective", "io_serv", "current"];
    parts.iter().chain(&more).any(|part| name.contains(part))
        && !measured.iter().any(|part| name.contains(part))
}

/// The settings in a container's cgroups and of its first process, as the kernel tells them.
fn kernel_state(container: &Container<'_>) -> BTreeMap<String, String> {
    let mut state = BTreeMap::new();
    for directory in cgroup::hierarchies_of(&format!("/{}", container.id())) {
        for entry in fs::read_dir(&directory).unwrap().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if let (true, Ok(text)) = (is_setting(&name), fs::read_to_string(entry.path())) {
                let hierarchy = directory.parent().unwrap().display();
                state.insert(format!("{hierarchy}/{name}"), text);
            }
        }
    }
    let proc = PathBuf::from(format!("/proc/{}", container.pid()));
    for file in ["limits", "oom_score_adj"] {
        state.insert(file.to_owned(), fs::read_to_string(proc.join(file)).unwrap());
    }
    let status = fs::read_to_string(proc.join("status")).unwrap();
    for line in status.lines() {
        let (key, value) = line.split_once(':').unwrap();
        if key.starts_with("Cap") || key.starts_with("Seccomp") || key == "NoNewPrivs" {
            state.insert(key.to_owned(), value.trim().to_owned());
        }
    }
    state
}

/// A configuration in which every built-in isolator of the runtime is a plugin.
fn built_in_as_plugins(host: &Host) -> String {
    const MARK: &[u8] = b"NAME OF THE BUILT-IN ISOLATOR...";
    let object = fs::read(plugin::built("coracle_fixture_built_in")).unwrap();
    let at = object.windows(MARK.len()).position(|bytes| bytes == MARK).expect("the mark");
    let directory = host.directory();
    let mut config = format!("directories = [{directory:?}]\n");
    let listed = host.call(&["isolator", "ls", "--format", "json"]).succeeds().json();
    for isolator in listed.as_array().unwrap() {
        let name = isolator["name"].as_str().unwrap();
        let mut copy = object.clone();
        copy[at..at + name.len()].copy_from_slice(name.as_bytes());
        copy[at + name.len()] = 0;
        let file = format!("{}.so", name.replace('/', "-"));
        fs::write(directory.join(&file), copy).unwrap();
        config.push_str(&format!("[isolator.{name:?}]\nfile = {file:?}\ninline = true\n"));
    }
    config
}

#[test]
fn each_built_in_isolator_does_the_same_through_the_c_abi() {
    privileged(|host| {
        let plugins = host.configured(&built_in_as_plugins(host));
        let listed = plugins.call(&["isolator", "ls", "--format", "json"]).succeeds().json();
        assert!(listed.as_array().unwrap().iter().all(|isolator| isolator["builtIn"] == false));
        assert!(listed.as_array().unwrap().len() >= 16, "{listed}");
        let resources = json!({
            "cpu": {"shares": 512, "quota": 50_000, "period": 100_000, "burst": 10_000, "cpus": "0", "mems": "0"},
            "memory": {"limit": 64 << 20, "reservation": 32 << 20, "swap": 64 << 20},
            "pids": {"limit": 12},
            "devices": [{"allow": false, "access": "rwm"}, {"allow": true, "type": "c", "major": 10, "minor": 200, "access": "rw"}],
        });
        let spec = || {
            Spec::new()
                .args(["sleep", "1000"])
                .set("/linux/resources", resources.clone())
                .set("/process/rlimits", json!([{"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200}]))
                .set("/process/noNewPrivileges", json!(true))
                .set("/annotations/io.coracle.perf", "task-clock")
                .set(
                    "/linux/seccomp",
                    json!({"defaultAction": "SCMP_ACT_ALLOW",
                    "syscalls": [{"names": ["kexec_load"], "action": "SCMP_ACT_ERRNO"}]}),
                )
        };
        let (inside, outside) = (host.bundle(spec()).start(), plugins.bundle(spec()).start());
        let state = kernel_state(&inside);
        assert!(state.len() > 20, "{state:?}");
        assert_eq!(state, kernel_state(&outside));
        for container in [&inside, &outside] {
            container
                .verb_with(
                    "update",
                    &["--memory", "48m", "--memory-swap", "48m", "--pids-limit", "7", "--cpu-share", "256"],
                )
                .succeeds();
        }
        let updated = kernel_state(&inside);
        assert_ne!(updated, state);
        assert_eq!(updated, kernel_state(&outside));
        let usage = |container: &Container<'_>| container.call("stats").succeeds().json();
        let (ours, theirs) = (usage(&inside), usage(&outside));
        assert_eq!(ours["memory"]["limit"], theirs["memory"]["limit"]);
        let keys = |value: &serde_json::Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        assert_eq!(keys(&ours), keys(&theirs));
        assert_eq!(keys(&ours["other"]), ["cgroups/perf/task-clock"]);
        inside.remove();
        outside.remove();
    });
}

/// The table's last function, which those of older plugins do not have.
#[test]
fn new_shares_of_the_cache_reach_the_plugin_that_looks_after_them() {
    privileged(|host| {
        let object =
            plugin::compiled(host, super::HOSTILE, &["-DNAME=\"linux/rdt\"", "-DIN=\"update_intel_rdt\""]);
        let host = host.with_plugin("linux/rdt", &object, "");
        let container = host.sleeper();
        let refused = container.verb_with("update", &["--l3-cache-schema", "L3:0=f"]);
        refused.fails_with(&["linux/rdt", "update", r#"{"l3CacheSchema":"L3:0=f"}"#]);
        container.verb_with("update", &["--pids-limit", "9"]).succeeds();
        container.remove();
    });
}

#[test]
fn a_limitation_at_once_ends_the_container_or_is_told_only() {
    privileged(|host| {
        let ends = super::spoiled(host, &["-DLIMITED"], "");
        let outcome = ends.bundle(Spec::new().args(["sleep", "1000"])).run().exits(137);
        let words = "isolator test/hostile: too much of everything; the container is killed";
        assert!(outcome.stderr.contains(words), "{}", outcome.stderr);
        let told = super::spoiled(host, &["-DLIMITED"], "tell_only = true");
        let outcome = told.bundle(Spec::new().script("sleep 2; echo ran")).run().succeeds();
        assert_eq!(outcome.text(), "ran");
        assert_eq!(outcome.stderr.matches("too much of everything; the container goes on").count(), 1);
    });
}

#[test]
fn a_limitation_ends_a_container_that_nobody_waits_for() {
    privileged(|host| {
        let host = super::spoiled(host, &["-DLIMITED", "-DLATER"], "");
        let container = host.sleeper();
        container.becomes("stopped");
        container.call("delete").succeeds();
    });
}

#[test]
fn a_launch_with_a_plugin_takes_little_longer() {
    privileged(|host| {
        let object = plugin::compiled(host, "isolators/template-c/nofile.c", &["-O2"]);
        let plugged = host.with_plugin("example/nofile", &object, "");
        // The same way of calling both, through a script.
        let plain = host.configured("");
        let mut differences: Vec<Duration> = (0..15)
            .map(|_| {
                let timed = |host: &Host| {
                    let bundle = host.bundle(Spec::new().args(["true"]));
                    let begun = Instant::now();
                    bundle.run().succeeds();
                    begun.elapsed()
                };
                let without = timed(&plain);
                timed(&plugged).saturating_sub(without)
            })
            .collect();
        differences.sort_unstable();
        // The bar is 3 ms on a quiet machine; `make bench` measures it. A busy one must not fail the tests.
        assert!(differences[2] < Duration::from_millis(30) * command::patience(), "{differences:?}");
    });
}
