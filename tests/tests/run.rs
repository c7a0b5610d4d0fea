//! `run`: the container's exit code comes back, its streams are handed through.

use std::fs;
use std::io::{PipeReader, Read, Write};
use std::process::{Child, Command, Stdio};

use coracle_tests::{Bundle, Host, Spec, command, privileged};

#[test]
fn the_exit_code_is_the_containers() {
    privileged(|host| {
        host.bundle(Spec::new().script("exit 0")).run().exits(0);
        host.bundle(Spec::new().script("exit 7")).run().exits(7);
        host.bundle(Spec::new().script("exit 255")).run().exits(255);
    });
}

#[test]
fn a_signal_becomes_128_and_its_number() {
    privileged(|host| {
        // The first process of a PID namespace gets no signal that it does not handle from inside: the shell's
        // child is killed, and the shell says so in the same way.
        host.bundle(Spec::new().script("sh -c 'kill -TERM $$'; exit $?")).run().exits(143);
        let bundle = host.bundle(Spec::new().args(["sleep", "1000"]));
        let mut run = bundle.command("run").spawn().unwrap();
        command::eventually("the container runs", || {
            let state = host.call(&["state", bundle.id()]);
            state.code == 0 && state.json()["status"] == "running"
        });
        host.call(&["kill", bundle.id(), "KILL"]).succeeds();
        assert_eq!(command::code(command::wait(&mut run, "run")), 137);
    });
}

#[test]
fn a_signal_to_the_runtime_reaches_the_container() {
    privileged(|host| {
        let spec =
            Spec::new().script("trap 'echo caught; exit 9' TERM; echo ready; while :; do sleep 0.02; done");
        let bundle = host.bundle(spec);
        let mut child = bundle.command("run").stdout(Stdio::piped()).spawn().unwrap();
        let mut stdout = child.stdout.take().unwrap();
        let mut ready = [0; 6];
        stdout.read_exact(&mut ready).unwrap();
        command::tool("kill", &["-TERM", &child.id().to_string()]);
        assert_eq!(command::code(command::wait(&mut child, "run")), 9);
        let mut rest = String::new();
        stdout.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "caught\n");
    });
}

#[test]
fn a_command_that_is_not_there_is_named() {
    privileged(|host| {
        let run = host.bundle(Spec::new().args(["no-such-command"])).run();
        run.clone().fails_with(&["no-such-command", "executable file not found in $PATH"]);
        let run = host.bundle(Spec::new().args(["/no/such/file"])).run();
        run.clone().fails_with(&["/no/such/file", "no such file or directory"]);
    });
}

#[test]
fn a_file_that_can_not_be_executed_is_named() {
    privileged(|host| {
        let spec = Spec::new().args(["/etc/passwd"]);
        host.bundle(spec).run().fails_with(&["/etc/passwd", "permission denied"]);
    });
}

#[test]
fn run_deletes_the_container_at_its_end() {
    privileged(|host| {
        let bundle = host.bundle(Spec::new());
        bundle.run().succeeds();
        host.call(&["state", bundle.id()]).fails_with(&["does not exist"]);
        bundle.run().succeeds();
    });
}

#[test]
fn streams_carry_every_byte() {
    privileged(|host| {
        let bytes: Vec<u8> = (0..300_000_u32).map(|at| u8::try_from(at * 7 % 256).unwrap()).collect();
        let run = host.bundle(Spec::new().args(["cat"])).input(bytes.clone()).run().succeeds();
        assert!(run.stdout == bytes, "{} bytes came back of {}", run.stdout.len(), bytes.len());
    });
}

#[test]
fn pipes_are_handed_through_and_closed() {
    privileged(|host| {
        let bundle = host.bundle(Spec::new().script("cat; echo error >&2"));
        let mut command = bundle.command("run");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(b"one\ntwo\n").unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.stdout, b"one\ntwo\n");
        assert_eq!(output.stderr, b"error\n");
    });
}

#[test]
fn standard_output_and_error_stay_apart() {
    privileged(|host| {
        let run = host.bundle(Spec::new().script("echo out; echo err >&2")).run().succeeds();
        assert_eq!((run.text().as_str(), run.stderr.as_str()), ("out", "err\n"));
    });
}

#[test]
fn the_environment_is_exactly_the_specifications() {
    privileged(|host| {
        let spec = Spec::new().env("ONE=1").env("SPACED= a b ").env("EMPTY=").args(["env"]);
        let mut lines = host.bundle(spec).run().succeeds().lines();
        lines.retain(|line| {
            !["PWD", "SHLVL", "HOME", "PATH", "TERM"].contains(&line.split('=').next().unwrap())
        });
        assert_eq!(lines, ["ONE=1", "SPACED= a b ", "EMPTY="]);
    });
}

#[test]
fn home_comes_from_the_users_entry_in_passwd() {
    privileged(|host| {
        let home = |spec: Spec| host.bundle(spec.script("echo $HOME")).run().succeeds().text();
        assert_eq!(home(Spec::new()), "/root");
        assert_eq!(home(Spec::new().user(1000, 1000)), "/home/user");
        assert_eq!(home(Spec::new().env("HOME=/elsewhere")), "/elsewhere");
    });
}

#[test]
fn a_passwd_that_is_a_link_to_itself_gives_no_home() {
    privileged(|host| {
        let bundle = host.bundle(Spec::new().script("echo $HOME"));
        let passwd = bundle.rootfs().join("etc/passwd");
        fs::remove_file(&passwd).unwrap();
        std::os::unix::fs::symlink("passwd", &passwd).unwrap();
        assert_eq!(bundle.run().succeeds().text(), "/");
    });
}

#[test]
fn the_working_directory_is_the_specifications() {
    privileged(|host| {
        let spec = Spec::new().set("/process/cwd", "/home/user").args(["pwd"]);
        assert_eq!(host.bundle(spec).run().succeeds().text(), "/home/user");
    });
}

#[test]
fn a_relative_working_directory_is_refused() {
    privileged(|host| {
        host.bundle(Spec::new().set("/process/cwd", "home")).run().fails_with(&["cwd"]);
    });
}

#[test]
fn a_pid_file_holds_the_first_process() {
    privileged(|host| {
        let file = host.directory().join("pid");
        let path = file.to_str().unwrap().to_owned();
        let bundle = host.bundle(Spec::new().args(["sleep", "1000"])).options(["--pid-file", &path]);
        let container = bundle.create();
        assert_eq!(fs::read_to_string(&file).unwrap(), container.pid().to_string());
        container.call("start").succeeds();
        container.remove();
    });
}

#[test]
fn detached_it_returns_while_the_container_runs() {
    privileged(|host| {
        let bundle = host.bundle(Spec::new().args(["sleep", "1000"])).options(["--detach"]);
        bundle.run().succeeds();
        let state = host.call(&["state", bundle.id()]).succeeds().json();
        assert_eq!(state["status"], "running");
        host.call(&["delete", "--force", bundle.id()]).succeeds();
    });
}

/// How much a pipe holds.
const PIPE: usize = 65536;

/// A container that has said `end` and ended, with a `run` that waits for who reads the pipe, which is full.
fn unread(host: &Host) -> (Bundle<'_>, Child, PipeReader) {
    let bundle = host.bundle(Spec::new().set("/process/terminal", true).script("printf end"));
    let (reader, mut writer) = std::io::pipe().expect("make a pipe");
    writer.write_all(&[b'.'; PIPE]).expect("fill a pipe");
    let run = bundle.command("run").stdout(writer).spawn().expect("start run");
    let status = || host.call(&["state", bundle.id()]).text();
    command::eventually("it has ended", || status().contains("\"stopped\""));
    (bundle, run, reader)
}

#[test]
fn a_namesake_that_another_has_made_meanwhile_is_left_alone() {
    privileged(|host| {
        if !host.needs_coracle("a run that waits for who reads its terminal") {
            return;
        }
        let (bundle, mut run, reader) = unread(host);
        host.call(&["delete", bundle.id()]).succeeds();
        let namesake = host.bundle(Spec::new().args(["sleep", "1000"])).named(bundle.id()).start();
        let output = std::io::read_to_string(reader).unwrap();
        assert_eq!(output.trim_start_matches('.'), "end");
        assert_eq!(command::code(command::wait(&mut run, "run")), 0);
        assert_eq!(namesake.status(), "running");
        namesake.remove();
    });
}

#[test]
fn one_that_another_removes_ends_as_it_was_killed() {
    privileged(|host| {
        if !host.needs_coracle("a run whose container another may remove") {
            return;
        }
        let bundle = host.bundle(Spec::new().args(["sleep", "1000"]));
        let told = bundle.directory().join("told");
        let mut command = bundle.command("run");
        let mut run = command.stderr(fs::File::create(&told).unwrap()).spawn().unwrap();
        let state = || host.call(&["state", bundle.id()]).text();
        command::eventually("it runs", || state().contains("\"running\""));
        host.call(&["delete", "--force", bundle.id()]).succeeds();
        assert_eq!(command::code(command::wait(&mut run, "run")), 137);
        assert_eq!(fs::read_to_string(told).unwrap(), "");
    });
}

#[test]
fn a_missing_command_leaves_nothing_when_detached() {
    privileged(|host| {
        let bundle = host.bundle(Spec::new().args(["no-such-command"])).options(["--detach"]);
        bundle.run().fails_with(&["no-such-command"]);
        host.call(&["state", bundle.id()]).fails_with(&["does not exist"]);
    });
}

#[test]
fn preserved_descriptors_reach_the_container_and_no_others() {
    privileged(|host| {
        let bundle = host.bundle(Spec::new().script("ls -l /proc/self/fd | grep -c '^l' ; cat <&3"));
        fs::write(bundle.directory().join("three"), "from three").unwrap();
        let script = format!(
            "cd {} && exec $RUNTIME run --preserve-fds 1 {} 3<three 4</dev/zero 5</",
            bundle.directory().display(),
            bundle.id()
        );
        let run = host.shell(&script).succeeds();
        // 0, 1, 2, 3 and the directory that ls itself reads.
        assert_eq!(run.lines(), ["5", "from three"]);
    });
}

#[test]
fn sockets_of_another_process_do_not_reach_the_container() {
    privileged(|host| {
        let bundle = host.bundle(Spec::new().script("echo $LISTEN_FDS; ls -l /proc/self/fd | grep -c '^l'"));
        let run = |pid: &str| {
            let script = format!(
                "cd {} && LISTEN_PID={pid} LISTEN_FDS=1 exec $RUNTIME run {} 3</dev/zero",
                bundle.directory().display(),
                bundle.id()
            );
            host.shell(&script).succeeds().lines()
        };
        assert_eq!(run("$$"), ["1", "5"]);
        assert_eq!(run("1"), ["", "4"]);
    });
}

#[test]
fn inherited_descriptors_do_not_reach_the_container() {
    privileged(|host| {
        let bundle = host.bundle(Spec::new().script("ls -l /proc/self/fd"));
        let script = format!(
            "cd {} && exec $RUNTIME run {} 3</ 4</etc/passwd 5</dev/zero 9</root",
            bundle.directory().display(),
            bundle.id()
        );
        let listing = host.shell(&script).succeeds();
        let open = listing.lines().iter().filter(|line| line.starts_with('l')).count();
        assert_eq!(open, 4, "0, 1, 2 and the directory that ls reads\n{}", listing.text());
    });
}

#[test]
fn no_pivot_moves_the_root_instead() {
    privileged(|host| {
        let bundle = host.bundle(Spec::new().script("ls /bin/busybox; ls -d /host-canary || echo hidden"));
        let run = bundle.options(["--no-pivot"]).run().succeeds();
        assert_eq!(run.lines(), ["/bin/busybox", "hidden"]);
    });
}

#[test]
fn a_container_has_a_session_keyring_of_its_own_unless_told_otherwise() {
    privileged(|host| {
        let run = |options: &[&str]| {
            let bundle = host.bundle(Spec::new().args(["/keys", "look"]));
            let keys = bundle.rootfs().join("keys");
            command::compile("keys.c", &keys);
            // The caller has the key. Keyrings are in no namespace: this name must be no other test's.
            let mut caller = Command::new(keys);
            caller.args(["plant", "coracle-test-of-run"]).arg(host.runtime()).arg("run").args(options);
            caller.arg("--bundle").arg(bundle.directory()).arg(bundle.id());
            command::run(&mut caller, bundle.directory())
        };
        run(&[]).exits(1);
        run(&["--no-new-keyring"]).succeeds();
    });
}

#[test]
fn more_descriptors_than_a_process_can_have_are_refused() {
    privileged(|host| {
        for number in ["4294967293", "2147483648", "4294967296", "-1"] {
            host.bundle(Spec::new()).options(["--preserve-fds", number]).run().fails_with(&["preserve-fds"]);
        }
    });
}
