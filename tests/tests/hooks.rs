//! Hooks: which run where and in which order, and what a failing one does.

use std::fs;
use std::path::PathBuf;

use coracle_tests::{Host, Spec, command, privileged};
use serde_json::json;

const HOST_SIDE: [&str; 5] = ["prestart", "createRuntime", "createContainer", "poststart", "poststop"];

fn log(host: &Host) -> PathBuf {
    host.directory().join("log")
}

#[test]
fn they_run_in_the_order_of_the_specification() {
    privileged(|host| {
        let log = log(host);
        let mut spec = Spec::new();
        for kind in HOST_SIDE {
            spec = spec.hook(kind, &["/bin/sh", "-c", &format!("echo {kind} >> {}", log.display())]);
        }
        // This one runs inside, in the container's root.
        spec = spec.hook("startContainer", &["/bin/sh", "-c", "echo startContainer > /hooked"]);
        let bundle = host.bundle(spec.args(["cat", "/hooked"]));
        assert_eq!(bundle.run().succeeds().text(), "startContainer");
        let order = fs::read_to_string(&log).unwrap();
        assert_eq!(order.lines().collect::<Vec<_>>(), HOST_SIDE);
    });
}

#[test]
fn each_gets_the_state_on_its_standard_input() {
    privileged(|host| {
        let log = log(host);
        let mut spec = Spec::new().set("/annotations/key", "value");
        for kind in ["createRuntime", "createContainer", "poststart", "poststop"] {
            spec = spec.hook(kind, &["/bin/sh", "-c", &format!("cat >> {0}; echo >> {0}", log.display())]);
        }
        let bundle = host.bundle(spec);
        bundle.run().succeeds();
        let told = fs::read_to_string(&log).unwrap();
        let states: Vec<serde_json::Value> =
            told.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(states.len(), 4);
        for state in &states {
            assert_eq!(state["id"], bundle.id());
            assert_eq!(state["bundle"], bundle.directory().to_str().unwrap());
            assert_eq!(state["annotations"]["key"], "value");
        }
        assert_eq!(states[3]["status"], "stopped");
    });
}

#[test]
fn they_wait_for_their_moment() {
    privileged(|host| {
        let log = log(host);
        let mut spec = Spec::new().args(["sleep", "1000"]);
        for kind in HOST_SIDE {
            spec = spec.hook(kind, &["/bin/sh", "-c", &format!("echo {kind} >> {}", log.display())]);
        }
        let read =
            || fs::read_to_string(&log).unwrap_or_default().lines().map(str::to_owned).collect::<Vec<_>>();
        let container = host.bundle(spec).create();
        // runc 1.1 runs poststart at the end of create.
        let waiting = read();
        let early = if host.is_coracle() { 3 } else { waiting.len() };
        assert_eq!(waiting, HOST_SIDE[..early]);
        container.call("start").succeeds();
        assert_eq!(read().last().unwrap(), "poststart");
        container.remove();
        assert_eq!(read().last().unwrap(), "poststop");
    });
}

#[test]
fn the_environment_is_the_hooks_own() {
    privileged(|host| {
        let log = log(host);
        let hook = json!({"path": "/usr/bin/env", "args": ["env"], "env": ["ONLY=this"]});
        let script = format!("env > {}", log.display());
        let shell = json!({"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["ONLY=this"]});
        let spec = Spec::new().push("/hooks/createRuntime", hook).push("/hooks/createRuntime", shell);
        host.bundle(spec.env("LD_PRELOAD=./evil.so")).run();
        let told = fs::read_to_string(&log).unwrap();
        assert!(told.lines().any(|line| line == "ONLY=this"), "{told}");
        assert!(
            !told.contains("LD_PRELOAD") && !told.contains("PATH=/usr/local/sbin:/usr/local/bin:/usr"),
            "{told}"
        );
    });
}

#[test]
fn what_a_caller_has_is_kept_from_hooks_of_every_command() {
    privileged(|host| {
        let log = log(host);
        let script = format!("(env; ls -l /proc/self/fd) >> {}", log.display());
        let hook = ["/bin/sh", "-c", &script];
        let spec = Spec::new().hook("poststart", &hook).hook("poststop", &hook).args(["sleep", "1000"]);
        let container = host.bundle(spec).create();
        let id = container.id();
        let call = |line: &str| format!("SECRET=1 $RUNTIME {line} {id} 7</etc/hostname");
        host.shell(&call("start")).succeeds();
        host.shell(&call("delete --force")).succeeds();
        let told = fs::read_to_string(&log).unwrap();
        assert_eq!(told.matches("PATH=").count(), 2, "{told}");
        if host.needs_coracle("an environment of its own") {
            assert!(!told.contains("SECRET") && !told.contains("hostname"), "{told}");
        }
    });
}

#[test]
fn a_failing_hook_before_the_start_stops_the_container() {
    privileged(|host| {
        for kind in ["prestart", "createRuntime", "createContainer", "startContainer"] {
            let bundle =
                host.bundle(Spec::new().hook(kind, &["/bin/sh", "-c", "exit 3"]).args(["echo", "ran"]));
            let run = bundle.run();
            assert_ne!(run.code, 0, "{kind}");
            assert_eq!(run.text(), "", "{kind}: the command ran all the same");
            assert!(run.stderr.to_lowercase().contains("hook"), "{kind}: {}", run.stderr);
        }
    });
}

#[test]
fn a_start_hook_that_the_filter_ends_is_told_why() {
    privileged(|host| {
        if !host.needs_coracle("start hooks below the filter") {
            return;
        }
        let rules = json!([{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_KILL"}]);
        let spec =
            Spec::new().seccomp("SCMP_ACT_ALLOW", &rules).hook("startContainer", &["/bin/mkdir", "/made"]);
        let bundle = host.bundle(spec);
        bundle.run().fails_with(&[
            "error running startContainer hook #0",
            "bad system call",
            "/linux/seccomp",
        ]);
        assert!(!bundle.rootfs().join("made").exists());
    });
}

#[test]
fn a_failing_poststop_hook_does_not_keep_the_container() {
    privileged(|host| {
        let container = host.bundle(Spec::new().hook("poststop", &["/bin/false"])).start();
        container.becomes("stopped");
        container.call("delete");
        host.call(&["delete", "--force", container.id()]).succeeds();
    });
}

#[test]
fn a_failing_poststop_hook_keeps_no_other_from_running() {
    privileged(|host| {
        // runc leaves out those after it, against runtime-spec's step 13.
        if !host.needs_coracle("poststop hooks after one that fails") {
            return;
        }
        let log = log(host);
        let hook = |then: &str| format!("echo hook >> {}; {then}", log.display());
        let spec = ["true", "exit 4", "exit 5", "true"]
            .iter()
            .fold(Spec::new(), |spec, then| spec.hook("poststop", &["/bin/sh", "-c", &hook(then)]));
        let container = host.bundle(spec).start();
        container.becomes("stopped");
        let deleted = container.call("delete").succeeds();
        for told in ["/hooks/poststop/1", "exit status: 4", "/hooks/poststop/2", "exit status: 5"] {
            assert!(deleted.stderr.contains(told), "{}", deleted.stderr);
        }
        assert_eq!(fs::read_to_string(&log).unwrap().lines().count(), 4);
    });
}

#[test]
fn a_hook_that_takes_too_long_is_killed() {
    privileged(|host| {
        let hook = json!({"path": "/bin/sleep", "args": ["sleep", "1003"], "timeout": 1});
        let begin = std::time::Instant::now();
        let run = host.bundle(Spec::new().push("/hooks/createRuntime", hook)).run();
        assert_ne!(run.code, 0);
        assert!(begin.elapsed().as_secs() < 20);
    });
}

#[test]
fn a_timeout_that_no_clock_can_tell_is_none() {
    privileged(|host| {
        if !host.needs_coracle("timeouts of any length") {
            return;
        }
        let hook = json!({"path": "/bin/true", "timeout": i64::MAX});
        let spec = Spec::new().push("/hooks/createRuntime", hook.clone()).push("/hooks/poststop", hook);
        host.bundle(spec).run().succeeds();
    });
}

#[test]
fn a_hook_that_is_not_there_is_named() {
    privileged(|host| {
        host.bundle(Spec::new().hook("createRuntime", &["/no/such/hook"]))
            .run()
            .fails_with(&["/no/such/hook"]);
    });
}

#[test]
fn what_a_hook_leaves_running_is_not_waited_for() {
    privileged(|host| {
        let script = "sleep 1004 & echo $! > pid; echo sorry >&2; exit 3";
        let hook = json!({"path": "/bin/sh", "args": ["sh", "-c", script], "timeout": 30});
        let bundle = host.bundle(Spec::new().push("/hooks/createRuntime", hook));
        let begin = std::time::Instant::now();
        bundle.run().fails_with(&["/hooks/createRuntime/0", "exit status: 3", "saying \"sorry\""]);
        assert!(begin.elapsed().as_secs() < 20);
        host.shell(&format!("kill $(cat {}/pid)", bundle.directory().display())).succeeds();
    });
}

#[test]
fn a_hook_that_takes_too_long_is_killed_with_what_it_started() {
    privileged(|host| {
        let script = "sleep 1005 & wait";
        let hook = json!({"path": "/bin/sh", "args": ["sh", "-c", script], "timeout": 1});
        host.bundle(Spec::new().push("/hooks/createRuntime", hook)).run().fails_with(&["its timeout of 1 s"]);
        command::eventually("the hook's child is gone", || {
            host.shell("pgrep -f '^sleep 1005$'").text().is_empty()
        });
    });
}

#[test]
fn a_state_of_any_size_does_not_hold_the_timeout_up() {
    privileged(|host| {
        let hook = json!({"path": "/bin/sleep", "args": ["sleep", "1006"], "timeout": 1});
        let spec = Spec::new().set("/annotations/long", "x".repeat(200_000));
        let begin = std::time::Instant::now();
        host.bundle(spec.push("/hooks/createRuntime", hook)).run().fails_with(&["its timeout of 1 s"]);
        assert!(begin.elapsed().as_secs() < 20);
    });
}

#[test]
fn a_hook_may_say_as_much_as_it_likes() {
    privileged(|host| {
        let script = "head -c 300000 /dev/zero >&2";
        let hook = json!({"path": "/bin/sh", "args": ["sh", "-c", script], "timeout": 20});
        host.bundle(Spec::new().push("/hooks/createRuntime", hook)).run().succeeds();
    });
}

/// A start hook is a program of the image: with the host's rights it would be the image that has them.
#[test]
fn a_hook_ends_with_the_runtime_that_started_it() {
    privileged(|host| {
        let bundle = host.bundle(Spec::new().hook("createRuntime", &["/bin/sleep", "1008"]));
        let mut run = bundle.command("run").stdin(std::process::Stdio::null()).spawn().unwrap();
        let sleeps = || !host.shell("pgrep -f '^/bin/sleep 1008$'").text().is_empty();
        command::eventually("the hook runs", sleeps);
        run.kill().unwrap();
        run.wait().unwrap();
        command::eventually("the hook is gone", || !sleeps());
        host.call(&["delete", "--force", bundle.id()]).succeeds();
    });
}

#[test]
fn a_failed_poststart_hook_stops_the_container_and_is_told() {
    privileged(|host| {
        // runc stops it since 1.6.
        if !host.needs_coracle("containers that a failed poststart hook stops") {
            return;
        }
        let log = log(host);
        let spec = Spec::new()
            .hook("poststart", &["/bin/sh", "-c", "echo no such network >&2; exit 4"])
            .hook("poststop", &["/bin/sh", "-c", &format!("echo poststop >> {}", log.display())])
            .args(["sleep", "1000"]);
        let container = host.bundle(spec.clone()).create();
        container.call("start").fails_with(&["/hooks/poststart/0", "exit status: 4", "no such network"]);
        container.becomes("stopped");
        container.call("delete").succeeds();
        assert_eq!(fs::read_to_string(&log).unwrap(), "poststop\n");
        let bundle = host.bundle(spec);
        bundle.run().fails_with(&["/hooks/poststart/0", "no such network"]);
        host.call(&["state", bundle.id()]).fails_with(&["does not exist"]);
        assert_eq!(fs::read_to_string(&log).unwrap(), "poststop\npoststop\n");
    });
}

#[test]
fn poststop_runs_however_the_container_ends() {
    privileged(|host| {
        let log = log(host);
        let hook = format!("echo poststop >> {}", log.display());
        let spec = || Spec::new().hook("poststop", &["/bin/sh", "-c", &hook]).args(["sleep", "1000"]);
        let ran = |times: usize, how: &str| {
            assert_eq!(fs::read_to_string(&log).unwrap_or_default().lines().count(), times, "{how}");
        };
        host.bundle(spec().args(["true"])).run().succeeds();
        ran(1, "run");
        let container = host.bundle(spec()).create();
        host.call(&["delete", "--force", container.id()]).succeeds();
        ran(2, "delete of a created container");
        let container = host.bundle(spec()).start();
        host.call(&["delete", "--force", container.id()]).succeeds();
        ran(3, "delete of a running container");
        let container = host.bundle(spec()).start();
        container.call("pause").succeeds();
        host.call(&["delete", "--force", container.id()]).succeeds();
        ran(4, "delete of a paused container");
        if host.is_coracle() {
            host.bundle(spec().hook("createRuntime", &["/bin/false"])).run();
            ran(5, "a failed launch");
        }
    });
}

#[test]
fn each_is_told_the_status_and_the_process_of_its_moment() {
    privileged(|host| {
        if !host.needs_coracle("the statuses of the specification for hooks") {
            return;
        }
        let log = log(host);
        let append = format!("cat >> {0}; echo >> {0}", log.display());
        let mut spec = Spec::new().args(["sleep", "1000"]);
        for kind in HOST_SIDE {
            spec = spec.hook(kind, &["/bin/sh", "-c", &append]);
        }
        let spec = spec.hook("startContainer", &["/bin/sh", "-c", "cat > /started"]);
        let container = host.bundle(spec).start();
        let pid = container.pid();
        let started = fs::read_to_string(container.bundle().rootfs().join("started")).unwrap();
        container.remove();
        let told = fs::read_to_string(&log).unwrap();
        let mut states: Vec<serde_json::Value> =
            told.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        states.insert(3, serde_json::from_str(&started).unwrap());
        let statuses: Vec<&str> = states.iter().map(|state| state["status"].as_str().unwrap()).collect();
        assert_eq!(statuses, ["creating", "creating", "creating", "created", "running", "stopped"]);
        for state in &states[..5] {
            assert_eq!(state["pid"], pid, "{state}");
        }
    });
}

/// Whether a process runs with exactly these arguments.
fn runs(args: &str) -> bool {
    let wanted = args.replace(' ', "\0") + "\0";
    let processes = fs::read_dir("/proc").expect("read /proc").flatten();
    let mut lines = processes.filter_map(|entry| fs::read_to_string(entry.path().join("cmdline")).ok());
    lines.any(|line| line == wanted)
}

#[test]
fn a_hook_that_hangs_does_not_keep_a_run_that_is_asked_to_end() {
    privileged(|host| {
        if !host.needs_coracle("a run that can be ended while a hook hangs") {
            return;
        }
        for (stage, signal) in [
            ("createRuntime", "TERM"),
            ("createContainer", "INT"),
            ("startContainer", "HUP"),
            ("poststart", "TERM"),
        ] {
            let spec = Spec::new().args(["sleep", "1000"]).hook(stage, &["/bin/sh", "-c", "exec sleep 4321"]);
            let bundle = host.bundle(spec);
            let told = bundle.directory().join("told");
            let mut command = bundle.command("run");
            let mut run = command.stderr(fs::File::create(&told).unwrap()).spawn().unwrap();
            command::eventually("the hook hangs", || runs("sleep 4321"));
            command::tool("kill", &[&format!("-{signal}"), &run.id().to_string()]);
            assert_eq!(command::code(command::wait(&mut run, stage)), 1);
            let told = fs::read_to_string(told).unwrap();
            assert!(told.contains(&format!("it was interrupted by SIG{signal}")), "{stage}: {told}");
            host.call(&["state", bundle.id()]).fails_with(&["does not exist"]);
        }
    });
}
