//! What scripts and clients of runc and crun count on beyond the specification: words, exit codes, orders, defaults.

use std::fs;

use coracle_tests::{Spec, privileged, privileged_v1};
use serde_json::json;

#[test]
fn a_run_that_fails_exits_with_1_and_an_exec_with_255() {
    privileged(|host| {
        host.bundle(Spec::new().set("/process/cwd", "relative")).run().exits(1);
        let container = host.sleeper();
        container.exec(&["no-such-program"]).exits(255).fails_with(&["executable file not found in $PATH"]);
        container.exec_with(&["--pid-file", "/no/such/directory"], &["true"]).exits(255);
        host.call(&["exec", "no-such-container", "true"]).exits(255);
        container.remove();
    });
}

#[test]
fn the_configuration_can_be_another_file_than_the_bundles() {
    privileged(|host| {
        let bundle = host.bundle(Spec::new().args(["echo", "of the bundle"]));
        let other = bundle.directory().join("config.json.other");
        let text = fs::read_to_string(bundle.directory().join("config.json")).unwrap();
        fs::write(&other, text.replace("of the bundle", "of the file")).unwrap();
        let bundle = bundle.options(["--config", "config.json.other"]);
        assert_eq!(bundle.run().succeeds().text(), "of the file");
    });
}

#[test]
fn unknown_capabilities_are_told_and_passed_over() {
    privileged(|host| {
        let spec =
            Spec::new().capabilities(&["CAP_KILL", "CAP_FLY"]).args(["grep", "CapBnd", "/proc/self/status"]);
        let run = host.bundle(spec).run().succeeds();
        assert!(run.text().ends_with("0000000000000020"), "{}", run.text());
        if host.needs_coracle("the warning") {
            assert!(
                run.stderr.contains("ignoring unknown or unavailable capabilities: [CAP_FLY]"),
                "{}",
                run.stderr
            );
        }
    });
}

#[test]
fn exec_gives_a_container_without_capabilities_the_one_that_is_asked_for_and_no_other() {
    privileged(|host| {
        let spec = Spec::new().remove("/process", "capabilities").args(["sleep", "1000"]);
        let container = host.bundle(spec).start();
        let status =
            container.exec_with(&["--cap", "CAP_KILL"], &["grep", "^Cap", "/proc/self/status"]).succeeds();
        let sets: Vec<String> =
            status.lines().iter().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        let (all, none) = ("0000000000000020", "0000000000000000");
        let wanted = [("Inh", none), ("Prm", all), ("Eff", all), ("Bnd", all), ("Amb", none)];
        assert_eq!(sets, wanted.map(|(name, set)| format!("Cap{name}: {set}")));
        container.remove();
    });
}

#[test]
fn a_process_description_can_come_through_a_descriptor_of_any_number() {
    privileged(|host| {
        let container = host.sleeper();
        let process = json!({"cwd": "/", "args": ["echo", "described"], "user": {"uid": 0, "gid": 0}});
        let runtime = host.runtime().display();
        let script =
            format!("exec 9<<'END'\n{process}\nEND\n{runtime} exec --process /dev/fd/9 {}", container.id());
        assert_eq!(host.shell(&script).succeeds().text(), "described");
        container.remove();
    });
}

#[test]
fn each_variable_is_set_once_and_an_empty_home_is_looked_up() {
    privileged(|host| {
        let spec = Spec::new()
            .set("/process/env", json!(["PATH=/bin", "ONE=two", "HOME=/x", "ONE=three", "HOME="]))
            .args(["env"]);
        let mut lines = host.bundle(spec).run().succeeds().lines();
        lines.sort();
        assert_eq!(lines, ["HOME=/root", "ONE=three", "PATH=/bin"]);
    });
}

#[test]
fn the_callers_processors_are_not_the_containers() {
    privileged(|host| {
        if fs::read_to_string("/proc/cpuinfo").unwrap().matches("processor\t").count() < 2 {
            return host.skip("it has one processor");
        }
        let spec = Spec::new().args(["grep", "Cpus_allowed_list", "/proc/self/status"]);
        let bundle = host.bundle(spec);
        let free = bundle.run().succeeds().text();
        let (directory, id, runtime) = (bundle.directory().display(), bundle.id(), host.runtime().display());
        let pinned = host.shell(&format!("taskset -c 0 {runtime} run --bundle {directory} {id}"));
        assert_eq!(pinned.succeeds().text(), free);
    });
}

#[test]
fn a_created_container_ends_when_it_is_asked_to() {
    privileged(|host| {
        let container = host.bundle(Spec::new()).create();
        container.call_with("kill", &["TERM"]).succeeds();
        container.becomes("stopped");
        container.call("delete").succeeds();
    });
}

#[test]
fn killing_reaches_those_who_outlived_the_first_process() {
    privileged(|host| {
        let spec = Spec::new().without_namespace("pid").args(["sleep", "1000"]);
        let container = host.bundle(spec).start();
        container.exec_with(&["--detach"], &["sleep", "1001"]).succeeds();
        host.shell(&format!("kill -9 {}", container.pid())).succeeds();
        container.becomes("stopped");
        container.call_with("kill", &["KILL"]).succeeds();
        container.call("delete").succeeds();
    });
}

#[test]
fn a_frozen_cgroup_is_refused() {
    privileged_v1(|host| {
        let directory = std::path::Path::new("/sys/fs/cgroup/freezer/was-frozen");
        fs::create_dir(directory).unwrap();
        fs::write(directory.join("freezer.state"), "FROZEN").unwrap();
        host.bundle(Spec::new().cgroup("/was-frozen"))
            .run()
            .exits(1)
            .fails_with(&["the container's cgroup unexpectedly frozen"]);
        fs::remove_dir(directory).unwrap();
    });
}

#[test]
fn a_container_hook_completes_the_root_by_the_hosts_path_of_it() {
    privileged(|host| {
        let file = host.directory().join("from-the-host");
        fs::write(&file, "complete").unwrap();
        let script = format!(
            "root=$(grep -o '\"rootfs\":\"[^\"]*' | cut -d'\"' -f4); touch $root/lib; mount --bind {} $root/lib; \
             ls $root/proc/self > $root/seen",
            file.display()
        );
        let spec = Spec::new()
            .hook("createContainer", &["/bin/sh", "-ec", &script])
            .script("cat /lib; echo; grep -cx maps /seen");
        assert_eq!(host.bundle(spec).run().succeeds().lines(), ["complete", "1"]);
    });
}

#[test]
fn a_hook_inside_has_the_environment_of_the_program_where_it_names_none() {
    privileged(|host| {
        let spec = Spec::new()
            .env("ONE=two")
            .set("/root/readonly", false)
            .hook("startContainer", &["/bin/sh", "-c", "echo $ONE $HOME > /hooked"])
            .args(["cat", "/hooked"]);
        assert_eq!(host.bundle(spec).run().succeeds().text(), "two /root");
    });
}

#[test]
fn a_failing_hook_is_named_as_runc_names_it() {
    privileged(|host| {
        let spec = Spec::new().hook("createRuntime", &["/bin/true"]).hook("createRuntime", &["/bin/false"]);
        host.bundle(spec).run().exits(1).fails_with(&["error running createRuntime hook #1:"]);
    });
}

#[test]
fn without_pivot_a_new_user_namespace_gets_no_bare_procfs() {
    privileged(|host| {
        let spec = Spec::new()
            .capabilities(&["CAP_SETFCAP", "CAP_SYS_ADMIN"])
            .args(["unshare", "-mrpf", "mount", "-t", "proc", "none", "/proc"]);
        let run = host.bundle(spec).options(["--no-pivot"]).run();
        assert_ne!(run.code, 0);
        assert!(run.stderr.contains("ermission denied"), "{}", run.stderr);
    });
}

#[test]
fn scripts_can_match_the_members_of_lists_and_events_in_order() {
    privileged(|host| {
        let container = host.sleeper();
        let list = host.call(&["list", "--format", "json"]).succeeds().text();
        let places: Vec<Option<usize>> = ["ociVersion", "id", "pid", "status", "bundle", "rootfs", "created"]
            .iter()
            .map(|name| list.find(&format!("\"{name}\":")))
            .collect();
        assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{list}");
        let stats = host.call(&["events", "--stats", container.id()]).succeeds().text();
        let wanted = format!("{{\"type\":\"stats\",\"id\":\"{}\",\"data\":{{", container.id());
        assert!(stats.starts_with(&wanted), "{stats}");
        container.remove();
    });
}

#[test]
fn debugging_shows_what_is_done_in_the_log_or_on_the_standard_error() {
    privileged(|host| {
        let bundle = host.bundle(Spec::new().args(["true"]));
        let (directory, log) =
            (bundle.directory().to_str().unwrap().to_owned(), host.directory().join("log"));
        let shown = host.call(&["--debug", "run", "--bundle", &directory, bundle.id()]).succeeds();
        assert!(shown.stderr.contains("level=debug"), "{}", shown.stderr);
        let log = log.to_str().unwrap();
        let line =
            ["--debug", "--log", log, "--log-format", "json", "run", "--bundle", &directory, bundle.id()];
        assert_eq!(host.call(&line).succeeds().stderr, "");
        let logged = fs::read_to_string(log).unwrap();
        assert!(
            logged.contains("\"level\":\"debug\"") && logged.contains("child process in init()"),
            "{logged}"
        );
    });
}

#[test]
fn containerd_may_write_an_option_with_one_dash() {
    privileged(|host| {
        for verb in ["restore", "create", "run"] {
            let line = [verb, "-no-subreaper", "--bundle", "/no/such/bundle", "web"];
            host.call(&line).fails_with(&["/no/such/bundle"]);
        }
    });
}

#[test]
fn podman_finds_out_that_a_pod_can_be_restored_into() {
    privileged(|host| {
        let run = host.call(&["restore", "--lsm-mount-context"]);
        let words = ["flag needs an argument", "requires an argument"];
        assert!(words.iter().any(|words| run.stderr.contains(words)), "{}", run.stderr);
    });
}

#[test]
fn connections_can_be_closed_by_a_checkpoint() {
    privileged(|host| {
        if !host.needs_coracle("an option of crun's") {
            return;
        }
        for verb in ["restore", "checkpoint"] {
            let run = host.call(&[verb, "--tcp-close", "nobody"]);
            assert!(!run.stderr.contains("tcp-close"), "{}", run.stderr);
        }
    });
}

#[test]
fn a_switch_may_say_true_or_false() {
    privileged(|host| {
        let bundle = host.bundle(Spec::new().args(["echo", "ran"]));
        let directory = bundle.directory().to_str().unwrap();
        let line =
            ["--debug=false", "--systemd-cgroup=false", "run", "--detach=false", "--bundle", directory];
        assert_eq!(
            host.call(&[&line[..], &["--no-pivot=false", bundle.id()]].concat()).succeeds().text(),
            "ran"
        );
        host.call(&["--debug=true", "list", "--quiet=true"]).succeeds();
        host.call(&["--debug=maybe", "list"]).fails_with(&["debug", "maybe"]);
    });
}

#[test]
fn help_tells_of_each_name_of_a_command() {
    privileged(|host| {
        if !host.needs_coracle("commands of its own") {
            return;
        }
        assert!(host.call(&["ls", "--help"]).succeeds().text().contains("list [--format json]"));
        host.call(&["help", "version"]).succeeds();
    });
}

#[test]
fn lines_come_from_a_terminal_as_the_program_wrote_them() {
    privileged(|host| {
        let spec = Spec::new().set("/process/terminal", true).args(["echo", "one line"]);
        let run = host.bundle(spec).run().succeeds();
        assert_eq!(run.stdout, b"one line\n");
    });
}

#[test]
fn a_list_of_users_that_is_no_file_names_no_home() {
    privileged(|host| {
        let spec = Spec::new().bind("/dev/null", "/etc/passwd", &[]).script("echo $HOME");
        let spec = spec.set("/process/env", json!(["PATH=/bin"]));
        assert_eq!(host.bundle(spec).run().succeeds().text(), "/");
    });
}

#[test]
fn output_that_can_not_be_written_is_told() {
    privileged(|host| {
        if host.needs_coracle("what runc prints and forgets") {
            let list = host.shell("$RUNTIME list >/dev/full");
            list.fails_with(&["writing to the standard output", "No space left"]);
        }
    });
}
