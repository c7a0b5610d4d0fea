//! Plugins that do wrong: each gives one error that names it and the call; nobody else is hurt, and nothing is left.

use std::fs;
use std::time::{Duration, Instant};

use coracle_tests::silent::Silent;
use coracle_tests::{Container, Host, Outcome, Spec, cgroup, command, plugin, privileged};

use super::{NAME, hostile, spoiled};

/// What a launch is stopped by, in the order of their calls.
const STOPPING: [&str; 5] = ["configure", "prepare", "process", "validate", "isolate"];

fn run(host: &Host) -> Outcome {
    host.bundle(Spec::new().args(["echo", "ran"])).run()
}

/// The call as errors name it: options are given when a plugin is loaded.
fn told(call: &str) -> &str {
    match call {
        "configure" => "load",
        "cleanup" => "clean up",
        call => call,
    }
}

fn fails_in(outcome: Outcome, call: &str, words: &[&str]) {
    let named = format!("isolator {NAME} could not {}: ", told(call));
    let outcome = outcome.fails_with(&[&named]).fails_with(words);
    assert!(!outcome.text().contains("ran"), "the program ran");
}

/// A container that nothing happens to.
fn bystander<'h>(host: &'h Host, test: impl FnOnce()) {
    let other: Container<'h> = host.sleeper();
    test();
    assert_eq!(other.status(), "running");
    other.remove();
}

#[test]
fn files_that_are_no_plugins_are_refused() {
    privileged(|host| {
        let text = host.directory().join("text.so");
        fs::write(&text, "this is no shared object\n".repeat(9)).unwrap();
        let at = text.display().to_string();
        fails_in(run(&host.with_plugin(NAME, &text, "")), "load", &[&at, "invalid ELF header"]);
        let empty = host.directory().join("empty.so");
        fs::write(&empty, "").unwrap();
        fails_in(run(&host.with_plugin(NAME, &empty, "")), "load", &["file too short"]);
        let gone = host.directory().join("gone.so");
        fails_in(run(&host.with_plugin(NAME, &gone, "")), "load", &["there is no "]);
        let missing = spoiled(host, &["-DNO_SYMBOL"], "");
        fails_in(run(&missing), "load", &["it does not export coracle_isolator_table()"]);
    });
}

#[test]
fn tables_that_make_no_sense_are_refused() {
    privileged(|host| {
        for (spoil, words) in [
            ("-DNULL_TABLE", &["coracle_isolator_table() returned NULL"][..]),
            (
                "-DOTHER_VERSION",
                &["it speaks version 9 of the isolator contract, and this runtime version 1"],
            ),
            ("-DSHORTEST", &["its struct_size is 8, and every table has at least 48 bytes"]),
            ("-DNULL_NAME", &["its name is NULL"]),
            ("-DBAD_NAME", &["its name \"no/../name\" is not of the form family/subject"]),
            ("-DNO_KIND", &["its flags name no kind of container that it supports"]),
        ] {
            fails_in(run(&spoiled(host, &[spoil], "")), "load", words);
        }
        let other = spoiled(host, &["-DNAME=\"test/other\""], "");
        fails_in(run(&other), "load", &["plugin.so is isolator test/other"]);
    });
}

#[test]
fn a_shorter_and_a_longer_table_and_one_without_functions_are_used_as_far_as_they_go() {
    privileged(|host| {
        for fits in ["-DSHORT", "-DLONG", "-DNO_FUNCTIONS"] {
            let outcome = run(&spoiled(host, &[fits], "")).succeeds();
            assert_eq!(outcome.text(), "ran", "{fits}");
        }
        // What the table is too short for is not called.
        let short = spoiled(host, &["-DSHORT", "-DIN=\"validate\"", "-DDO=crash"], "");
        run(&short).succeeds();
    });
}

#[test]
fn a_crash_in_each_call_ends_its_own_launch_only() {
    privileged(|host| {
        bystander(host, || {
            for call in STOPPING {
                let words = ["its process was killed by SIGSEGV in the middle of the call"];
                fails_in(run(&hostile(host, call, "crash")), call, &words);
            }
            fails_in(run(&hostile(host, "table", "crash")), "load", &["killed by SIGSEGV"]);
        });
    });
}

#[test]
fn ways_to_end_are_told() {
    privileged(|host| {
        for (what, words) in [
            ("leave", "its process ended with status 3 in the middle of the call"),
            ("give_up", "its process was killed by SIGABRT in the middle of the call"),
            ("terminate", "its process was killed by SIGTERM in the middle of the call"),
        ] {
            fails_in(run(&hostile(host, "prepare", what)), "prepare", &[words]);
        }
    });
}

#[test]
fn a_call_that_never_returns_is_ended_at_its_deadline() {
    privileged(|host| {
        bystander(host, || {
            for (what, call) in
                [("hang", "prepare"), ("spin", "isolate"), ("nap", "process"), ("hang", "configure")]
            {
                let host = hostile(host, call, what);
                let begun = Instant::now();
                fails_in(run(&host), call, &["no answer within 1 s; its process was killed"]);
                assert!(begun.elapsed().as_secs_f64() < 20.0, "{what}: {:?}", begun.elapsed());
            }
        });
    });
}

#[test]
fn documents_that_are_none_are_refused() {
    privileged(|host| {
        for (what, words) in [
            ("malformed", "its adjustment is malformed: EOF while parsing"),
            ("unknown", "its adjustment is malformed: unknown field `proces`"),
            ("not_utf8", "its adjustment is no UTF-8"),
            ("enormous", "it returned more than 4194304 bytes"),
            ("positive", "it returned 5, which is neither 0 nor a negative errno"),
            ("wordless", "it failed: I/O error"),
            ("fails", "it does not want to"),
        ] {
            fails_in(run(&hostile(host, "prepare", what)), "prepare", &[words]);
        }
    });
}

#[test]
fn a_plugin_leaves_no_process() {
    privileged(|host| {
        fails_in(run(&hostile(host, "prepare", "forks")), "prepare", &["operation not permitted"]);
        fails_in(run(&hostile(host, "isolate", "executes")), "isolate", &["operation not permitted"]);
        // Where it may start programs, what it leaves ends with it.
        let granted = spoiled(host, &["-DIN=\"isolate\"", "-DDO=forks"], "programs = true");
        assert_eq!(run(&granted).succeeds().text(), "ran");
    });
}

#[test]
fn what_a_plugin_does_to_its_descriptors_is_its_own_affair() {
    privileged(|host| {
        let outcome = run(&hostile(host, "prepare", "scribbles")).succeeds();
        assert_eq!((outcome.text().as_str(), outcome.stderr.as_str()), ("ran", ""));
        fails_in(
            run(&hostile(host, "isolate", "closes")),
            "isolate",
            &["its process ", " in the middle of the call"],
        );
    });
}

#[test]
fn a_plugin_is_confined_to_what_it_is_granted() {
    privileged(|host| {
        assert_eq!(run(&hostile(host, "isolate", "escapes")).succeeds().text(), "ran");
        let granted = |settings| run(&spoiled(host, &["-DIN=\"isolate\"", "-DDO=escapes"], settings));
        fails_in(granted("writable = [\"/run\"]"), "isolate", &["it could write a file"]);
        fs::remove_file("/run/escaped").unwrap();
        fails_in(granted("capabilities = [\"CAP_SYS_CHROOT\"]"), "isolate", &["it has capabilities"]);
        fails_in(granted("sockets = true"), "isolate", &["it could make a socket"]);
        fails_in(granted("inline = true"), "isolate", &["it could write a file"]);
        fs::remove_file("/run/escaped").unwrap();
    });
}

/// Who writes to the file of processes moves any of the host's into a cgroup, whose limits then hold for it and whose end
/// is its own.
#[test]
fn a_plugin_moves_no_process_and_sets_limits_where_it_may_only() {
    privileged(|host| {
        let spoiled = |call, what, settings| {
            spoiled(host, &[&format!("-DIN={call:?}"), &format!("-DDO={what}")], settings)
        };
        assert_eq!(run(&spoiled("isolate", "moves", "")).succeeds().text(), "ran");
        fails_in(run(&spoiled("isolate", "limits", "")), "isolate", &["it can't write pids.max"]);
        for what in ["moves", "limits"] {
            assert_eq!(run(&spoiled("isolate", what, "cgroups = true")).succeeds().text(), "ran", "{what}");
        }
        // Nor where there are cgroups below the container's.
        let granted = spoiled("update", "moves", "cgroups = true");
        let container = granted.sleeper();
        let below: Vec<_> = cgroup::hierarchies_of(&format!("/{}", container.id()));
        below.iter().for_each(|directory| fs::create_dir(directory.join("below")).unwrap());
        container.verb_with("update", &["--pids-limit", "9"]).succeeds();
        below.iter().for_each(|directory| fs::remove_dir(directory.join("below")).unwrap());
        container.remove();
    });
}

#[test]
fn what_a_plugin_says_is_on_one_line_and_commands_no_terminal() {
    privileged(|host| {
        let outcome = run(&hostile(host, "prepare", "rings"));
        fails_in(outcome, "prepare", &["could not prepare: red  [31m line two  1m"]);
        let warned = run(&hostile(host, "prepare", "warns")).succeeds();
        assert!(warned.stderr.contains("test/hostile: red  [31m line two"), "{:?}", warned.stderr);
        assert!(!warned.stderr.contains('\u{1b}'), "{:?}", warned.stderr);
    });
}

#[test]
fn a_plugin_adds_no_hooks_unless_it_may() {
    privileged(|host| {
        let words = ["/hooks: it may not add hooks", "`hooks = true` in its configuration grants that"];
        fails_in(run(&hostile(host, "prepare", "hooks")), "prepare", &words);
        fails_in(run(&hostile(host, "process", "hooks")), "process", &["/hooks is not a field of a process"]);
        let granted = spoiled(host, &["-DIN=\"prepare\"", "-DDO=hooks"], "hooks = true");
        assert_eq!(run(&granted).succeeds().text(), "ran");
    });
}

#[test]
fn what_a_plugin_sets_is_held_to_what_a_configuration_is() {
    privileged(|host| {
        run(&hostile(host, "prepare", "tunes")).fails_with(&[
            "checking what the isolators made of the configuration",
            "/linux/sysctl/vm.swappiness belongs to no namespace",
        ]);
    });
}

#[test]
fn a_broken_configuration_keeps_no_container_from_going_by_force() {
    privileged(|host| {
        let container = host.sleeper();
        let broken = host.directory();
        fs::write(broken.join("config.toml"), "isolator = 5\n").unwrap();
        let call = |verb: &[&str]| {
            let config = ["--config", broken.to_str().unwrap()];
            host.call(&[&config[..], verb, &[container.id()]].concat())
        };
        call(&["stats"]).fails_with(&["reading the configuration", "config.toml"]);
        let deleted = call(&["delete", "--force"]).succeeds();
        assert!(deleted.stderr.contains("no plugin is asked"), "{deleted:?}");
    });
}

#[test]
fn a_directory_that_others_can_write_holds_no_plugin_and_a_fifo_is_none() {
    use std::os::unix::fs::PermissionsExt;
    privileged(|host| {
        let dir = host.directory();
        let object = plugin::compiled(host, super::HOSTILE, &[]);
        let own = dir.join("own.so");
        fs::copy(&object, &own).unwrap();
        let host = host.with_plugin(NAME, &own, "");
        run(&host).succeeds();
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o777)).unwrap();
        run(&host).fails_with(&[dir.to_str().unwrap(), "can be written by others (mode 777)"]);
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
        fs::remove_file(&own).unwrap();
        command::tool("mkfifo", &[&own]);
        run(&host).fails_with(&["own.so is no file"]);
    });
}

#[test]
fn a_cleanup_that_fails_is_told_and_can_be_forced() {
    privileged(|host| {
        let container = host.sleeper();
        for (what, words) in [("crash", "killed by SIGSEGV"), ("hang", "no answer within 1 s")] {
            let host = hostile(host, "cleanup", what);
            let bundle = host.bundle(Spec::new().args(["echo", "ran"]));
            let outcome = bundle.run().fails_with(&[&format!("isolator {NAME} could not clean up: "), words]);
            assert_eq!(outcome.text(), "ran");
            host.call(&["delete", bundle.id()]).fails_with(&[NAME, "could not clean up", words]);
            let forced = host.call(&["delete", "--force", bundle.id()]).succeeds();
            assert!(forced.stderr.contains(words), "{}", forced.stderr);
        }
        container.remove();
    });
}

#[test]
fn usage_status_update_and_join_fail_by_name_and_leave_the_container_alone() {
    privileged(|host| {
        for (call, verb) in
            [("usage", &["stats"][..]), ("update", &["update", "--pids-limit", "9"]), ("join", &["exec"])]
        {
            let host = hostile(host, call, "crash");
            let container = host.sleeper();
            let args: Vec<&str> =
                [verb, &[container.id()], if call == "join" { &["true"] } else { &[] }].concat();
            fails_in(host.call(&args), call, &["killed by SIGSEGV"]);
            assert_eq!(container.status(), "running");
            container.remove();
        }
    });
}

#[test]
fn a_container_that_a_plugin_should_watch_and_can_not_is_ended() {
    privileged(|host| {
        let closed = spoiled(host, &["-DIN=\"watch-closed\""], "");
        let words = [NAME, "could not watch", "descriptor 77, which is not open"];
        closed.bundle(Spec::new().args(["sleep", "1000"])).run().fails_with(&words);
        closed.bundle(Spec::new().args(["sleep", "1000"])).try_create().fails_with(&words);
    });
}

#[test]
fn a_container_whose_plugin_crashes_when_asked_for_a_limitation_is_ended() {
    privileged(|host| {
        let crashing = spoiled(host, &["-DENDED", "-DIN=\"limitation\"", "-DDO=crash"], "");
        let run = crashing.bundle(Spec::new().args(["sleep", "1000"])).run();
        assert!(
            run.stderr.contains("could not tell of a limitation") && run.stderr.contains("is killed"),
            "{run:?}"
        );
        let container = crashing.bundle(Spec::new().args(["sleep", "1000"])).create();
        command::eventually("nobody looks after it, and it ends", || container.status() == "stopped");
        crashing.call(&["delete", container.id()]).succeeds();
    });
}

#[test]
fn a_watching_plugin_that_is_killed_watches_in_a_new_process() {
    privileged(|host| {
        let watching = spoiled(host, &["-DHELD"], "");
        let container = watching.sleeper();
        let plugins = || {
            let processes =
                fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().into_string().ok());
            let is_one = |pid: &String| {
                fs::read_to_string(format!("/proc/{pid}/comm"))
                    .is_ok_and(|comm| comm.starts_with("coracle-isolato"))
            };
            processes.filter(is_one).collect::<Vec<_>>()
        };
        let first = plugins();
        assert_eq!(first.len(), 1, "{first:?}");
        command::tool("kill", &["-KILL", &first[0]]);
        command::eventually("it watches in another", || plugins().len() == 1 && plugins() != first);
        assert_eq!(container.status(), "running");
        container.remove();
    });
}

#[test]
fn the_runtime_may_be_killed_during_any_call() {
    privileged(|host| {
        for call in STOPPING {
            let host = hostile(host, call, "hang");
            let bundle = host.bundle(Spec::new().args(["echo", "ran"]));
            let mut runtime = bundle.command("run").spawn().unwrap();
            std::thread::sleep(Duration::from_millis(100));
            runtime.kill().unwrap();
            command::wait(&mut runtime, "run");
            host.call(&["delete", "--force", bundle.id()]).succeeds();
        }
    });
}

#[test]
fn a_kind_that_a_plugin_does_not_support_is_refused() {
    privileged(|host| {
        run(&spoiled(host, &["-DNESTED_ONLY"], ""))
            .fails_with(&[&format!("isolator {NAME} does not support OCI containers")]);
    });
}

#[test]
fn a_plugin_that_waits_for_a_file_server_and_can_not_be_killed_keeps_nobody() {
    privileged(|host| {
        let Some(silent) = Silent::mount(host) else { return };
        let asked = format!("-DASKED={:?}", silent.path());
        let host = spoiled(host, &["-DIN=\"prepare\"", "-DDO=asks", &asked], "deadline = 1");
        let begun = Instant::now();
        fails_in(run(&host), "prepare", &["no answer within 1 s"]);
        assert!(silent.is_asked());
        assert!(begun.elapsed() < Duration::from_secs(20) * command::patience(), "{:?}", begun.elapsed());
    });
}
