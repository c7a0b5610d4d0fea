//! System calls that an agent decides on (`SCMP_ACT_NOTIFY`).

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use coracle_tests::{Host, Spec, command, privileged};
use serde_json::{Value, json};

/// A running agent; ends with the test.
struct Agent {
    process: Child,
    socket: PathBuf,
    told: PathBuf,
}

impl Agent {
    /// One that answers with the error number `answer`, or lets calls be made where that is 0. After `alive` answers to
    /// a process it answers that one no more.
    fn start(host: &Host, answer: &str, alive: &str) -> Self {
        let directory = host.directory();
        let (program, socket) = (directory.join("agent"), directory.join("socket"));
        let told = directory.join("told");
        command::compile("agent.c", &program);
        let mut start = Command::new(program);
        let start =
            start.arg(&socket).args([answer, alive]).stdout(File::create(&told).expect("make a file"));
        let process = start.spawn().expect("start the agent");
        command::eventually("the agent listens", || socket.exists());
        Self { process, socket, told }
    }

    /// A container whose calls of `names` it decides on.
    fn spec(&self, names: &[&str], no_new_privileges: bool) -> Spec {
        asking(&self.socket, names).set("/process/noNewPrivileges", no_new_privileges)
    }

    /// What the runtime told of each process.
    fn told(&self) -> Vec<Value> {
        let text = fs::read_to_string(&self.told).expect("what the agent heard");
        text.lines().map(|line| serde_json::from_str(line).expect("a state")).collect()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn asking(socket: &Path, names: &[&str]) -> Spec {
    Spec::new().set(
        "/linux/seccomp",
        json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "listenerPath": socket,
            "listenerMetadata": "some \"words\"",
            "flags": ["SECCOMP_FILTER_FLAG_TSYNC", "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"],
            "syscalls": [{"names": names, "action": "SCMP_ACT_NOTIFY"}],
        }),
    )
}

const MKDIR: [&str; 2] = ["mkdir", "mkdirat"];

#[test]
fn it_decides_with_and_without_new_privileges() {
    privileged(|host| {
        for no_new_privileges in [true, false] {
            let agent = Agent::start(host, "123", "0");
            let spec = agent.spec(&MKDIR, no_new_privileges).args(["mkdir", "/tmp/new"]);
            let run = host.bundle(spec).run().exits(1);
            assert!(run.stderr.contains("No medium found"), "{run:?}");
        }
    });
}

#[test]
fn it_is_told_whose_calls_they_are() {
    privileged(|host| {
        let agent = Agent::start(host, "0", "0");
        let container = host.bundle(agent.spec(&MKDIR, false).args(["sleep", "1000"])).start();
        container.exec(&["mkdir", "/tmp/new"]).succeeds();
        let told = agent.told();
        assert_eq!(told.len(), 2, "{told:?}");
        for one in &told {
            assert_eq!(one["fds"], json!(["seccompFd"]));
            assert_eq!(one["metadata"], "some \"words\"");
            assert_eq!(one["state"]["id"], container.id());
            assert_eq!(one["state"]["pid"], container.pid());
            assert_eq!(one["state"]["bundle"], container.bundle().directory().to_str().unwrap());
        }
        assert_eq!(told[0]["pid"], container.pid());
        assert_eq!(told[0]["state"]["status"], "created");
        assert_ne!(told[1]["pid"], container.pid());
        assert_eq!(told[1]["state"]["status"], "running");
        container.remove();
    });
}

#[test]
fn it_may_be_asked_for_what_a_start_needs() {
    privileged(|host| {
        let needed = [
            "execve",
            "openat",
            "open",
            "read",
            "close",
            "sendmsg",
            "recvmsg",
            "futex",
            "capset",
            "exit_group",
            "munmap",
            "mmap",
            "brk",
            "prctl",
            "wait4",
        ];
        for no_new_privileges in [true, false] {
            let agent = Agent::start(host, "0", "0");
            let spec = agent.spec(&needed, no_new_privileges).args(["echo", "works"]);
            assert_eq!(host.bundle(spec).run().succeeds().text(), "works");
        }
    });
}

#[test]
fn calls_fail_once_it_is_gone() {
    privileged(|host| {
        let agent = Agent::start(host, "0", "1");
        let spec = agent.spec(&MKDIR, true).script("mkdir /tmp/one && mkdir /tmp/two");
        let run = host.bundle(spec).run().exits(1);
        assert!(run.stderr.contains("Function not implemented"), "{run:?}");
    });
}

#[test]
fn without_it_nothing_starts() {
    privileged(|host| {
        let words = &["failed to connect with seccomp agent", "/linux/seccomp/listenerPath"];
        let file = host.directory().join("file");
        fs::write(&file, "").unwrap();
        for path in [Path::new("/nothing/there"), &file] {
            host.bundle(asking(path, &MKDIR)).run().fails_with(words);
            host.bundle(asking(path, &MKDIR)).try_create().fails_with(words);
        }
        // A socket that nobody listens on is found when the program is about to run.
        let socket = host.directory().join("socket");
        drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
        let script = asking(&socket, &MKDIR).script("echo it ran");
        let run = host.bundle(script).run().fails_with(words);
        assert_eq!(run.text(), "");
    });
}

#[test]
fn a_listener_that_no_rule_asks_is_passed_over() {
    privileged(|host| {
        let spec = asking(Path::new("/nothing/there"), &MKDIR).set("/linux/seccomp/syscalls", json!([]));
        host.bundle(spec.args(["true"])).run().succeeds();
    });
}
