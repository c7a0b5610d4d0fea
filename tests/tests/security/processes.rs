//! What a hostile process, program or hook can get from the runtime while it runs.

use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd;
use std::path::Path;

use coracle_fixtures::hostile::CANARY;
use coracle_tests::{Spec, privileged};

use crate::withstands;

#[test]
fn c01_the_running_image_can_not_be_written_through_proc() {
    privileged(|host| {
        let container = host.bundle(Spec::new().args(["sleep", "1000"])).create();
        let executable = File::open(format!("/proc/{}/exe", container.pid())).unwrap();
        host.call(&["delete", "--force", container.id()]).succeeds();
        // Nobody executes it now, so ETXTBSY protects it no more.
        let again = format!("/proc/self/fd/{}", executable.as_raw_fd());
        let result = OpenOptions::new().write(true).open(again);
        assert!(result.is_err(), "the runtime's own image could be opened for writing");
    });
}

#[test]
fn c09_no_descriptor_of_the_runtime_is_a_way_out() {
    privileged(|host| {
        for number in 3..24 {
            let spec = Spec::new()
                .set("/process/cwd", format!("/proc/self/fd/{number}"))
                .script("pwd; ls ../../../../../../..$0/file; ls .");
            let run = host.bundle(spec).run();
            assert!(run.code != 0 || !run.text().contains("canary"), "fd {number}: {run:?}");
        }
        let container = host.sleeper();
        for number in 3..24 {
            let run = container.exec_with(&["--cwd", &format!("/proc/self/fd/{number}")], &["ls", ".."]);
            assert!(run.code != 0 || !run.text().contains("host-canary"), "fd {number}: {run:?}");
        }
        container.remove();
    });
}

#[test]
fn c25_hooks_run_with_nothing_of_the_containers_environment() {
    privileged(|host| {
        let file = host.directory().join("environment");
        let script = format!("env > {}", file.display());
        let spec =
            Spec::new().env("LD_LIBRARY_PATH=/evil").hook("createRuntime", &["/bin/sh", "-c", &script]);
        host.bundle(spec).run().succeeds();
        assert!(!fs::read_to_string(file).unwrap().contains("evil"));
    });
}

#[test]
fn c01_a_container_can_not_write_the_runtime_that_enters_it() {
    privileged(|host| {
        // Appends to every program that it sees run, but its own.
        let script = "while :; do for p in /proc/[0-9]*; do
                [ \"$(readlink $p/exe)\" = /bin/busybox ] || { true >>$p/exe && echo $p >>/won; } 2>/dev/null
            done; done";
        let container = host.bundle(Spec::new().script(script)).start();
        let program = container.bundle().rootfs().join("bin/self");
        fs::write(&program, "#!/proc/self/exe\n").unwrap();
        std::os::unix::fs::chown(&program, Some(0), Some(0)).unwrap();
        fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        for _ in 0..10 {
            container.exec(&["/proc/self/exe"]);
            container.exec(&["/bin/self"]);
        }
        // That the runtime's bytes are the same is for the oracle to see.
        assert!(!container.bundle().rootfs().join("won").exists());
        container.remove();
    });
}

#[test]
fn c09_a_program_is_not_found_through_a_descriptor_of_the_runtime() {
    privileged(|host| {
        if !withstands(host) {
            return;
        }
        let program = host.directory().join("escaped");
        fs::copy("/bin/busybox", &program).unwrap();
        let out = |number| format!("/proc/self/fd/{number}/../../../../../../..{}", program.display());
        for number in 3..24 {
            let spec = Spec::new().set("/process/args", serde_json::json!([out(number), "echo", "out"]));
            let run = host.bundle(spec).run();
            assert!(run.code != 0, "fd {number}: {run:?}");
        }
        let container = host.sleeper();
        for number in 3..24 {
            let run = container.exec(&[&out(number), "echo", "out"]);
            assert!(run.code != 0, "fd {number}: {run:?}");
        }
        container.remove();
    });
}

#[test]
fn c09_a_directory_that_the_caller_left_open_is_no_way_out() {
    privileged(|host| {
        for verb in ["run", "exec"] {
            let spec = Spec::new().set("/process/cwd", if verb == "run" { "/proc/self/fd/9" } else { "/" });
            let spec = if verb == "run" { spec.args(["pwd"]) } else { spec.args(["sleep", "1000"]) };
            let bundle = host.bundle(spec);
            let (directory, id) = (bundle.directory().display(), bundle.id());
            let command = match verb {
                "run" => format!("$RUNTIME run {id}"),
                _ => format!("$RUNTIME run --detach {id} && $RUNTIME exec --cwd /proc/self/fd/9 {id} ls"),
            };
            let run = host.shell(&format!("cd {directory}; exec 9<{CANARY} </dev/null; {command}"));
            assert!(run.code != 0 && !run.text().contains("file"), "{verb}: {run:?}");
            host.call(&["delete", "--force", bundle.id()]).succeeds();
        }
    });
}

#[test]
fn c22_no_abstract_socket_of_the_runtime_is_in_a_shared_network() {
    privileged(|host| {
        let spec = Spec::new().without_namespace("network").script("cat /proc/net/unix");
        let run = host.bundle(spec).run().succeeds();
        assert!(!run.text().contains('@'), "{run:?}");
    });
}

#[test]
fn c25_hooks_run_in_the_bundle_and_not_in_the_root() {
    privileged(|host| {
        for kind in ["prestart", "createRuntime", "createContainer", "poststart", "poststop"] {
            let file = host.directory().join("place");
            let script = format!("pwd > {}", file.display());
            let bundle = host.bundle(Spec::new().hook(kind, &["/bin/sh", "-c", &script]));
            bundle.run().succeeds();
            let place = fs::read_to_string(&file).unwrap();
            assert!(!place.contains("rootfs"), "{kind} ran in {place}");
        }
    });
}

#[test]
fn c28_nothing_of_the_containers_files_runs_on_the_host() {
    privileged(|host| {
        let container = host.sleeper();
        let rootfs = container.bundle().rootfs();
        let harm = format!("#!/bin/sh\ntouch {CANARY}/new\n");
        for name in ["ps", "nsenter", "gzip", "xz", "unpigz", "newuidmap", "criu", "systemctl", "sh"] {
            for directory in ["usr/bin", "sbin", "usr/local/bin"] {
                let path = rootfs.join(directory).join(name);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(&path, &harm).unwrap();
                fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
            }
        }
        for path in ["lib/x86_64-linux-gnu/libnss_files.so.2", "lib/libc.so.6", "etc/ld.so.preload"] {
            fs::create_dir_all(rootfs.join(path).parent().unwrap()).unwrap();
            fs::write(rootfs.join(path), "no library").unwrap();
        }
        for verb in ["state", "ps"] {
            host.shell(&format!("cd {} && $RUNTIME {verb} {}", rootfs.display(), container.id())).succeeds();
        }
        container.exec(&["/bin/busybox", "true"]).succeeds();
        container.remove();
        assert!(!Path::new(CANARY).join("new").exists());
    });
}

#[test]
fn c35_a_shared_pid_namespace_shows_nothing_of_the_runtime() {
    privileged(|host| {
        let script = format!(
            "while :; do for p in /proc/[0-9]*; do
                for way in root cwd fd/3 fd/4 fd/5 fd/6; do
                    [ -e $p/$way/{CANARY}/file ] && echo $p/$way >>/won
                done
                grep -qs CORACLE_TEST_HOST $p/environ && echo $p/environ >>/won
            done; done"
        );
        let attacker = host.bundle(Spec::new().script(&script)).start();
        let shared = format!("/proc/{}/ns/pid", attacker.pid());
        for _ in 0..20 {
            host.bundle(Spec::new().join("pid", &shared)).run();
            attacker.exec(&["true"]);
        }
        let won = fs::read_to_string(attacker.bundle().rootfs().join("won"));
        attacker.remove();
        assert!(won.is_err(), "{won:?}");
    });
}

#[test]
fn no_variable_of_the_callers_names_a_program_to_become() {
    privileged(|host| {
        if !withstands(host) {
            return;
        }
        let evil = host.directory();
        for name in ["coracle-image", "coracle-isolator-host"] {
            fs::write(evil.join(name), "#!/bin/sh\ntouch $(dirname $0)/was-run\n").unwrap();
            fs::set_permissions(evil.join(name), std::os::unix::fs::PermissionsExt::from_mode(0o755))
                .unwrap();
        }
        let origin = evil.join("coracle");
        host.shell(&format!("_CORACLE_ORIGIN={} $RUNTIME image list", origin.display()));
        assert!(!evil.join("was-run").exists());
    });
}

/// Of a process in the container whoever may trace reads what its root directory is, and its descriptors lead to. Slowed
/// down, so that there is time to see it.
#[test]
fn an_executed_process_comes_into_sight_with_nothing_of_the_host() {
    privileged(|host| {
        if !host.needs_coracle("what strace(1) slows down") || !host.needs_program("strace") {
            return;
        }
        let secret = host.directory().join("secret");
        fs::write(&secret, "").unwrap();
        let script = format!(
            "while :; do for p in /proc/[0-9]*; do for way in $p/root $p/cwd $p/fd/*; do
                [ -e $way/../../../../../../../..{} ] && echo $way >>/seen; done; done; done",
            secret.display()
        );
        let spec = Spec::new().capabilities(&["CAP_SYS_PTRACE", "CAP_DAC_READ_SEARCH"]).script(&script);
        let container = host.bundle(spec).start();
        for call in ["setns", "close_range", "prctl"] {
            let slowly = format!("strace -f -qq -o /dev/null -e inject={call}:delay_enter=100000");
            host.shell(&format!("{slowly} $RUNTIME exec {} true", container.id())).succeeds();
        }
        let seen = fs::read_to_string(container.bundle().rootfs().join("seen"));
        assert!(seen.is_err(), "ways to the host: {}", seen.unwrap());
        container.remove();
    });
}

#[test]
fn an_executed_process_shows_nobody_the_operators_command_line() {
    privileged(|host| {
        if !host.needs_coracle("what strace(1) slows down") || !host.needs_program("strace") {
            return;
        }
        let script = "while :; do grep -l 'hunter[2]' /proc/[0-9]*/cmdline >>/seen 2>/dev/null; done";
        let container = host.bundle(Spec::new().script(script)).start();
        for call in ["setns", "close_range", "prctl"] {
            let slowly = format!("strace -f -qq -o /dev/null -e inject={call}:delay_enter=100000");
            let exec = format!("{slowly} $RUNTIME exec --env PASSWORD=hunter2 {} true", container.id());
            host.shell(&exec).succeeds();
        }
        assert_eq!(fs::read_to_string(container.bundle().rootfs().join("seen")).unwrap(), "");
        container.remove();
    });
}
