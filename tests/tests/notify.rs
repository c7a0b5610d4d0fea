//! `NOTIFY_SOCKET`: who starts a container learns when its program is ready (sd_notify(3)), and nothing else of it.

#![expect(clippy::unwrap_used, reason = "a helper of the tests fails as a test does")]

use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use coracle_tests::command::{eventually, wait};
use coracle_tests::{Bundle, Host, Spec, privileged};

/// The caller's own socket, and its path.
fn caller(host: &Host) -> (UnixDatagram, PathBuf) {
    let path = host.directory().join("socket");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    (socket, path)
}

/// The verb `verb` with the options `options`, for a caller that listens at `path`.
fn started(bundle: &Bundle<'_>, verb: &str, options: &[&str], path: &Path) -> Child {
    let mut command = bundle.command(verb);
    command.args(options).env("NOTIFY_SOCKET", path).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().unwrap()
}

/// Says `words` as a program of the container would, at the socket that it is shown.
fn say(pid: i32, path: &Path, words: &str) {
    let shown = format!("/proc/{pid}/root{}/notify", path.display());
    UnixDatagram::unbound().unwrap().send_to(words.as_bytes(), shown).unwrap();
}

fn heard(socket: &UnixDatagram) -> String {
    let mut buffer = [0; 1000];
    let length = socket.recv(&mut buffer).unwrap();
    String::from_utf8(buffer[..length].to_vec()).unwrap()
}

/// The PID of a container that is about to run.
fn pid_of(host: &Host, id: &str) -> i32 {
    let mut pid = None;
    eventually("the container runs", || {
        let state = host.call(&["state", id]);
        let is_running = state.code == 0 && state.json()["status"] == "running";
        pid = is_running.then(|| state.json()["pid"].as_i64()).flatten();
        pid.is_some()
    });
    pid.unwrap().try_into().unwrap()
}

fn sleeping() -> Spec {
    Spec::new().args(["sleep", "1000"])
}

#[test]
fn start_waits_until_the_program_is_ready_and_tells_the_caller_its_pid() {
    privileged(|host| {
        if !host.needs_coracle("the place of crun's socket") {
            return;
        }
        let (socket, path) = caller(host);
        let bundle = host.bundle(sleeping());
        let id = bundle.id().to_owned();
        assert!(wait(&mut started(&bundle, "create", &[], &path), "create").success());
        let mut command = std::process::Command::new(host.runtime());
        let mut start = command.args(["start", &id]).env("NOTIFY_SOCKET", &path).spawn().unwrap();
        let pid = pid_of(host, &id);
        // Others are not kept from the container meanwhile.
        host.call(&["exec", &id, "true"]).succeeds();
        assert!(start.try_wait().unwrap().is_none(), "it does not wait");
        // What speaks for others is not passed on.
        say(pid, &path, "MAINPID=1\nSTOPPING=1");
        say(pid, &path, "STATUS=up\nREADY=1\n");
        assert_eq!(heard(&socket), format!("MAINPID={pid}\nREADY=1"));
        assert!(wait(&mut start, "start").success());
        host.call(&["delete", "--force", &id]).succeeds();
    });
}

#[test]
fn a_run_in_the_foreground_tells_that_the_program_is_ready() {
    privileged(|host| {
        if !host.needs_coracle("the place of crun's socket") {
            return;
        }
        let (socket, path) = caller(host);
        let bundle = host.bundle(sleeping());
        let mut run = started(&bundle, "run", &[], &path);
        let pid = pid_of(host, bundle.id());
        say(pid, &path, "READY=1");
        assert_eq!(heard(&socket), "READY=1");
        assert!(run.try_wait().unwrap().is_none(), "the container has ended");
        host.call(&["kill", bundle.id(), "KILL"]).succeeds();
        assert_eq!(wait(&mut run, "run").code(), Some(137));
    });
}

#[test]
fn a_program_that_ends_before_it_is_ready_keeps_nobody_waiting() {
    privileged(|host| {
        let (_socket, path) = caller(host);
        let bundle = host.bundle(Spec::new().args(["true"]));
        assert!(wait(&mut started(&bundle, "run", &["--detach"], &path), "run").success());
        host.call(&["delete", "--force", bundle.id()]).succeeds();
    });
}

#[test]
fn the_program_finds_the_socket_by_the_variable_and_can_change_nothing_beside_it() {
    privileged(|host| {
        if !host.needs_coracle("the place of crun's socket") {
            return;
        }
        let (_socket, path) = caller(host);
        let script =
            "test -S $NOTIFY_SOCKET && echo there; touch ${NOTIFY_SOCKET%/*}/x 2>/dev/null || echo refused";
        let bundle = host.bundle(Spec::new().script(&format!("{script}; echo $NOTIFY_SOCKET")));
        let mut command = bundle.command("run");
        let run = coracle_tests::command::run(command.env("NOTIFY_SOCKET", &path), &host.directory());
        let place = format!("{}/notify", path.display());
        assert_eq!(run.succeeds().lines(), ["there", "refused", &place]);
        // And where nobody wants to know, there is none.
        let bundle = host.bundle(Spec::new().script("echo -$NOTIFY_SOCKET-"));
        assert_eq!(bundle.run().succeeds().text(), "--");
    });
}
