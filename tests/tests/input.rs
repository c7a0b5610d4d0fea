//! Bad input: each one clear line, a failure, nothing left.

#![expect(clippy::unwrap_used, reason = "a helper of the tests fails as a test does")]

use std::fs;
use std::path::Path;

use coracle_tests::{Outcome, Spec, cgroup, privileged};
use serde_json::{Value, json};

fn one_line(run: &Outcome) {
    assert_eq!(run.stderr.trim_end().lines().count(), 1, "{}", run.stderr);
    assert!(run.stderr.starts_with("coracle: error: "), "{}", run.stderr);
}

#[test]
fn a_missing_config_is_named() {
    privileged(|host| {
        let bundle = host.bundle(Spec::new());
        fs::remove_file(bundle.directory().join("config.json")).unwrap();
        bundle.try_create().fails_with(&["config.json"]);
        bundle.run().fails_with(&["config.json"]);
    });
}

#[test]
fn a_bundle_that_is_not_there_is_named() {
    privileged(|host| {
        host.call(&["run", "--bundle", "/no/such/bundle", "nobody"]).fails_with(&["/no/such/bundle"]);
    });
}

#[test]
fn an_empty_id_is_no_reason_to_take_the_next_word_for_it() {
    privileged(|host| {
        if !host.needs_coracle("what an empty ID is called") {
            return;
        }
        let container = host.bundle(Spec::new().args(["sleep", "1000"])).start();
        for command in ["kill", "delete", "state", "exec", "update", "events", "checkpoint", "start"] {
            let run = host.call(&[command, "", container.id()]);
            one_line(&run);
            run.fails_with(&["the container's ID is empty"]);
        }
        assert_eq!(container.status(), "running");
        container.remove();
    });
}

#[test]
fn so_it_is_of_those_who_only_look_and_of_pods() {
    privileged(|host| {
        if !host.needs_coracle("what an empty ID is called") {
            return;
        }
        for line in [["stats", "", "x"], ["ps", "", "x"], ["debug", "", "x"], ["isolator", "status", ""]] {
            host.call(&line).fails_with(&["the container's ID is empty"]);
        }
        for line in
            [&["rm", "--force", "", "x"][..], &["kill", "", "x"], &["exec", "/c", "true"], &["stop", ""]]
        {
            host.call(&[&["pod"], line].concat()).fails_with(&["the pod's name is empty"]);
        }
    });
}

#[test]
fn a_log_that_is_no_file_is_refused() {
    privileged(|host| {
        if !host.needs_coracle("places that crun logs to") {
            return;
        }
        let directory = host.directory();
        for place in ["journald:web", "syslog:web"] {
            let run = host.call_in(&directory, &["--log", place, "state", "nobody"]);
            run.fails_with(&[place, "nothing is written to"]);
        }
        host.call_in(&directory, &["--log", "file:log", "state", "nobody"]).fails_with(&["nobody"]);
        let left: Vec<_> =
            fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["log"]);
    });
}

#[test]
fn an_option_that_would_do_nothing_is_refused() {
    privileged(|host| {
        if !host.needs_coracle("what restore and exec take") {
            return;
        }
        let restore = ["restore", "--console-socket", "/s", "x"];
        host.call(&restore).fails_with(&["no option --console-socket", "terminal"]);
        host.call(&["restore", "--preserve-fds", "1", "x"]).fails_with(&["no option --preserve-fds"]);
        host.call(&["exec", "--no-pivot", "x", "true"]).fails_with(&["invalid option '--no-pivot'"]);
    });
}

#[test]
fn an_unknown_command_or_flag_is_named() {
    privileged(|host| {
        host.call(&["no-such-verb"]).fails_with(&["no-such-verb"]);
        host.call(&["state", "--no-such-flag", "x"]).fails_with(&["no-such-flag"]);
    });
}

#[test]
fn missing_arguments_are_told() {
    privileged(|host| {
        for verb in ["create", "run", "start", "state", "kill", "delete", "exec", "ps"] {
            host.call(&[verb]).fails_with(&[]);
        }
    });
}

#[test]
fn unknown_properties_are_ignored() {
    privileged(|host| {
        let spec =
            Spec::new().set("/org.example.unknown", "x").set("/linux/unknownField", 1).args(["echo", "ran"]);
        assert_eq!(host.bundle(spec).run().succeeds().text(), "ran");
    });
}

#[test]
fn failures_are_one_line_and_name_the_program() {
    privileged(|host| {
        if !host.needs_coracle("errors of one line") {
            return;
        }
        one_line(&host.bundle(Spec::new().args(["no-such-command"])).run());
        one_line(&host.bundle(Spec::new().set("/root/path", "nowhere")).try_create());
        one_line(&host.call(&["state", "nobody"]));
        one_line(&host.call(&["no-such-verb"]));
    });
}

#[test]
fn a_log_file_gets_the_failure_as_json() {
    privileged(|host| {
        let log = host.directory().join("log.json");
        let bundle = host.bundle(Spec::new().args(["no-such-command"]));
        let directory = bundle.directory().to_str().unwrap();
        let options = ["--log", log.to_str().unwrap(), "--log-format", "json"];
        host.call(&[&options[..], &["run", "--bundle", directory, bundle.id()]].concat()).fails_with(&[]);
        let text = fs::read_to_string(&log).unwrap();
        let last: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
        assert_eq!(last["level"], "error");
        assert!(last["msg"].as_str().unwrap().contains("executable file not found in $PATH"), "{last}");
    });
}

#[test]
fn a_rootless_specification_runs_as_its_writer_in_a_user_namespace() {
    privileged(|host| {
        let bundle = host.bundle(Spec::new());
        let config = bundle.directory().join("config.json");
        fs::remove_file(&config).unwrap();
        host.call_in(bundle.directory(), &["spec", "--rootless"]).succeeds();
        let written: Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
        assert_eq!(written["linux"]["uidMappings"], json!([{"containerID": 0, "hostID": 0, "size": 1}]));
        assert!(written["linux"]["namespaces"].as_array().unwrap().contains(&json!({"type": "user"})));
        assert!(!written["mounts"].to_string().contains("gid="));
        let mut runs = written;
        runs["process"]["terminal"] = false.into();
        runs["process"]["args"] = json!(["cat", "/proc/self/uid_map"]);
        fs::write(&config, runs.to_string()).unwrap();
        let text = bundle.run().succeeds().text();
        assert_eq!(text.split_whitespace().collect::<Vec<_>>(), ["0", "0", "1"]);
    });
}

#[test]
fn spec_writes_a_config_that_runs() {
    privileged(|host| {
        let bundle = host.bundle(Spec::new());
        fs::remove_file(bundle.directory().join("config.json")).unwrap();
        host.call_in(bundle.directory(), &["spec"]).succeeds();
        let config: Value =
            serde_json::from_slice(&fs::read(bundle.directory().join("config.json")).unwrap()).unwrap();
        assert_eq!(config["process"]["args"][0], "sh");
        host.call_in(bundle.directory(), &["spec"]).fails_with(&["config.json"]);
    });
}

#[test]
fn version_and_help_are_there() {
    privileged(|host| {
        assert!(host.call(&["--version"]).succeeds().text().contains("version"));
        let help = host.call(&["--help"]).succeeds().text();
        for verb in ["create", "start", "state", "kill", "delete", "run", "exec", "ps", "list", "spec"] {
            assert!(help.contains(verb), "{verb} is not in the help");
        }
    });
}

#[test]
fn features_tell_what_is_built_in() {
    privileged(|host| {
        let features = host.call(&["features"]).succeeds().json();
        assert!(features["ociVersionMax"].is_string());
        let namespaces = features["linux"]["namespaces"].as_array().unwrap();
        assert!(
            ["pid", "mount", "network", "uts", "ipc"].iter().all(|kind| namespaces.contains(&(*kind).into()))
        );
        assert!(features["mountOptions"].as_array().unwrap().contains(&"rbind".into()));
        let actions = features["linux"]["seccomp"]["actions"].as_array().unwrap();
        assert!(["ALLOW", "NOTIFY"].iter().all(|name| actions.contains(&format!("SCMP_ACT_{name}").into())));
    });
}

#[test]
fn features_name_the_annotations_that_may_give_a_container_more() {
    privileged(|host| {
        if !host.needs_coracle("annotations that are its own") {
            return;
        }
        let features = host.call(&["features"]).succeeds().json();
        let unsafe_ones = features["potentiallyUnsafeConfigAnnotations"].as_array().unwrap();
        assert!(
            ["io.coracle.", "org.systemd.property."].iter().all(|name| unsafe_ones.contains(&(*name).into()))
        );
    });
}

#[test]
fn features_tell_what_this_kernel_offers_apart_from_what_is_built_in() {
    privileged(|host| {
        if !host.needs_coracle("annotations for the kernel") {
            return;
        }
        let features = host.call(&["features"]).succeeds().json();
        let kernel = |name: &str| {
            let value = &features["annotations"][format!("io.coracle.kernel.{name}")];
            value.as_str().unwrap_or_else(|| panic!("{name}: {value}")).to_owned()
        };
        assert_eq!(kernel("release"), fs::read_to_string("/proc/sys/kernel/osrelease").unwrap().trim());
        let namespaces = kernel("namespaces");
        assert!(["mnt", "pid", "net", "user"].iter().all(|kind| namespaces.split(',').any(|n| n == *kind)));
        let expected: &[&str] = if cgroup::is_unified() { &["v2"] } else { &["v1", "hybrid"] };
        assert!(expected.contains(&kernel("cgroup").as_str()));
        kernel("landlock").parse::<u32>().unwrap();
        // What is built in does not depend on the kernel; what of it the kernel takes is a part of that.
        let flags = |key: &str| features["linux"]["seccomp"][key].as_array().unwrap().clone();
        assert_eq!(flags("knownFlags").len(), 4);
        assert!(flags("supportedFlags").iter().all(|flag| flags("knownFlags").contains(flag)));
        assert_eq!(features["linux"]["intelRdt"]["enabled"], true);
        assert_eq!(kernel("intelRdt"), Path::new("/sys/fs/resctrl/schemata").exists().to_string());
    });
}

/// Every document of `fixtures/specs/valid` runs and prints what is beside it.
#[test]
fn valid_specifications_run() {
    privileged(|host| {
        let cases = valid_specifications();
        assert!(!cases.is_empty());
        for path in cases {
            let bundle = host.bundle(Spec::new());
            fs::copy(&path, bundle.directory().join("config.json")).unwrap();
            let expected = fs::read_to_string(path.with_extension("expect")).unwrap();
            assert_eq!(bundle.run().succeeds().text(), expected.trim_end(), "{}", path.display());
        }
    });
}

fn valid_specifications() -> Vec<std::path::PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/specs/valid");
    let mut files: Vec<_> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
    files.sort();
    files
}
