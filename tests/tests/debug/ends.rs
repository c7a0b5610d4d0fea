//! How a session ends, and that nothing of it is left: the oracle looks at that after each of these.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use coracle_tests::{Spec, command, plugin, privileged, unprivileged};

use crate::{Session, can_debug, debug, sessions};

#[test]
fn its_exit_code_is_the_programs() {
    privileged(|host| {
        if !can_debug(host) {
            return;
        }
        let target = host.sleeper();
        debug(host, &[], target.id(), &["sh", "-c", "exit 42"]).exits(42);
        debug(host, &[], target.id(), &["sh", "-c", "kill -TERM $$"]).exits(143);
        debug(host, &[], target.id(), &["/etc/passwd"]).exits(126).fails_with(&["permission denied"]);
        target.remove();
    });
}

#[test]
fn its_streams_are_pipes_that_end() {
    privileged(|host| {
        if !can_debug(host) {
            return;
        }
        let target = host.sleeper();
        let script = format!("head -c 3000000 /dev/zero | $RUNTIME debug {} -- cat | wc -c", target.id());
        assert_eq!(host.shell(&script).succeeds().text(), "3000000");
        let script = format!("$RUNTIME debug {} -- sh -c 'echo out; echo err >&2' 2>/dev/null", target.id());
        assert_eq!(host.shell(&script).succeeds().text(), "out");
        target.remove();
    });
}

#[test]
fn several_look_into_one_target_each_with_a_name_of_its_own() {
    privileged(|host| {
        if !can_debug(host) {
            return;
        }
        let target = host.sleeper();
        let mut all: Vec<Session> =
            (0..3).map(|_| Session::start(host, &[], target.id(), "sleep 1000")).collect();
        let wanted: Vec<String> = (1..4).map(|n| format!("{}/debug-{n}", target.id())).collect();
        assert_eq!(sessions(host), wanted);
        assert_eq!(host.call(&["state", &wanted[1]]).succeeds().json()["status"], "running");
        host.call(&["delete", "--force", &wanted[1]]).succeeds();
        assert_eq!(all[1].code(), 137);
        assert_eq!(sessions(host), [wanted[0].clone(), wanted[2].clone()]);
        assert_eq!(host.call(&["debug", "--rm-all"]).succeeds().lines().len(), 2);
        assert!(all[0].code() == 137 && all[2].code() == 137);
        assert!(sessions(host).is_empty());
        target.remove();
    });
}

#[test]
fn it_ends_with_its_client_however_that_ends() {
    privileged(|host| {
        if !can_debug(host) {
            return;
        }
        let target = host.sleeper();
        let mut session = Session::start(host, &[], target.id(), "setsid sleep 1000 & sleep 1000");
        session.kill_client();
        command::eventually("no session is left", || sessions(host).is_empty());
        command::eventually("no process of it is left", || {
            target.exec(&["ps", "-o", "args"]).succeeds().text().matches("sleep 1000").count() == 1
        });
        target.remove();
    });
}

#[test]
fn who_undoes_a_session_keeps_off_the_next_that_has_its_name() {
    privileged(|host| {
        if !can_debug(host) {
            return;
        }
        // Whoever loads it takes two seconds, as the monitor does before it looks for what its client has left.
        let options = ["-DIN=\"configure\"", "-DDO=nap"];
        let object = plugin::compiled(host, "fixtures/plugins/hostile.c", &options);
        let slow = host.with_plugin("test/hostile", &object, "");
        let target = host.sleeper();
        let mut first = Session::start(&slow, &[], target.id(), "sleep 1000");
        first.kill_client();
        let name = format!("{}/debug-1", target.id());
        host.call(&["delete", "--force", &name]).succeeds();
        let mut second = Session::start(host, &[], target.id(), "sleep 1001");
        assert_eq!(sessions(host), [&*name]);
        std::thread::sleep(Duration::from_secs(4));
        assert_eq!(sessions(host), [&*name]);
        assert_eq!(host.call(&["state", &name]).succeeds().json()["status"], "running");
        assert_eq!(host.call(&["debug", "--rm-all"]).succeeds().text(), name);
        assert_eq!(second.code(), 137);
        target.remove();
    });
}

#[test]
fn a_signal_for_the_client_is_the_programs() {
    privileged(|host| {
        if !can_debug(host) {
            return;
        }
        let target = host.sleeper();
        let script = "trap 'echo caught; exit 9' TERM; echo set; while :; do sleep 0.01; done";
        let mut session = Session::start(host, &[], target.id(), script);
        command::eventually("the trap is set", || session.text().contains("set"));
        command::tool("kill", &["-TERM", &session.client.id().to_string()]);
        assert_eq!(session.code(), 9);
        assert!(session.text().contains("caught"));
        target.remove();
    });
}

#[test]
fn it_ends_with_its_target() {
    privileged(|host| {
        if !can_debug(host) {
            return;
        }
        let target = host.sleeper();
        let mut session = Session::start(host, &[], target.id(), "sleep 1000");
        target.remove();
        assert_eq!(session.code(), 137);
        assert!(sessions(host).is_empty());
    });
}

#[test]
fn it_ends_with_a_target_that_has_no_processes_of_its_own() {
    privileged(|host| {
        if !can_debug(host) {
            return;
        }
        let spec = Spec::new().without_namespace("pid").args(["sleep", "1000"]);
        let target = host.bundle(spec).start();
        let mut session = Session::start(host, &[], target.id(), "setsid sleep 1000 & sleep 1000");
        target.call_with("kill", &["KILL"]).succeeds();
        assert_eq!(session.code(), 137);
        target.becomes("stopped");
        target.call("delete").succeeds();
    });
}

#[test]
fn it_goes_before_its_target_does() {
    privileged(|host| {
        if !can_debug(host) {
            return;
        }
        let target = host.sleeper();
        let mut first = Session::start(host, &[], target.id(), "sleep 1000");
        host.call(&["delete", "--force", target.id()]).succeeds();
        assert_eq!(first.code(), 137);
        let ended = host.bundle(Spec::new().args(["true"])).start();
        ended.becomes("stopped");
        let mut second = Session::start(host, &[], ended.id(), "sleep 1000");
        ended.call("delete").succeeds();
        assert_eq!(second.code(), 137);
        assert!(sessions(host).is_empty());
    });
}

#[test]
fn a_session_below_a_session_goes_with_their_target_at_once() {
    privileged(|host| {
        if !can_debug(host) {
            return;
        }
        let target = host.sleeper();
        let mut first = Session::start(host, &[], target.id(), "sleep 1000");
        let mut second = Session::start(host, &[], &format!("{}/debug-1", target.id()), "sleep 1000");
        let begun = Instant::now();
        host.call(&["delete", "--force", target.id()]).succeeds();
        // A command waits so long for another that has the same container.
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
        assert_eq!((first.code(), second.code()), (137, 137));
        assert!(sessions(host).is_empty());
    });
}

#[test]
fn recover_removes_what_nobody_is_left_to_remove() {
    privileged(|host| {
        if !can_debug(host) {
            return;
        }
        let target = host.sleeper();
        let mut session = Session::start(host, &[], target.id(), "sleep 1000");
        // Client and monitor: the monitor is the one child of the client that is in a session of its own.
        let client = session.client.id().to_string();
        let children = command::tool("cat", &[format!("/proc/{client}/task/{client}/children")]);
        let monitor = children.split_whitespace().next().unwrap().to_owned();
        command::tool("kill", &["-KILL", &monitor]);
        session.kill_client();
        assert_eq!(sessions(host).len(), 1);
        let recovered = host.call(&["recover"]).succeeds();
        assert_eq!(recovered.text(), format!("{}/debug-1", target.id()));
        target.remove();
    });
}

#[test]
fn a_client_that_is_killed_at_any_moment_leaves_nothing() {
    privileged(|host| {
        if !can_debug(host) {
            return;
        }
        let target = host.sleeper();
        for delay in 0..30 {
            let mut command = Command::new(host.runtime());
            command.args(["debug", target.id(), "--", "sleep", "1000"]).stdin(Stdio::null());
            let mut client = command.spawn().unwrap();
            std::thread::sleep(Duration::from_micros(delay * 400));
            client.kill().unwrap();
            client.wait().unwrap();
        }
        // One that was killed before its monitor was there has left a record at most.
        command::eventually("no session is left", || {
            host.call(&["recover"]).succeeds();
            sessions(host).is_empty()
        });
        target.remove();
    });
}

#[test]
fn who_is_not_root_is_told_so() {
    unprivileged(|host| {
        if can_debug(host) {
            let words = ["debug is for root: it enters what others have made"];
            debug(host, &[], "any", &["true"]).exits(1).fails_with(&words);
        }
    });
}
