//! Sessions on a terminal: as ssh.

use std::process::{Command, Stdio};

use coracle_tests::{Host, Outcome, command, privileged};

use crate::{can_debug, sessions};

/// Runs `line` on a terminal of script(1), with `input` typed.
fn on_terminal(host: &Host, line: &str, input: &str) -> Outcome {
    let line = line.replace('\'', "'\\''");
    host.shell(&format!("export RUNTIME; ({input}) | script --quiet --return --command '{line}' /dev/null"))
}

fn has_terminal(host: &Host) -> bool {
    can_debug(host) && host.needs_program("script")
}

#[test]
fn a_session_has_a_terminal_and_loses_no_line() {
    privileged(|host| {
        if !has_terminal(host) {
            return;
        }
        let target = host.sleeper();
        let line = format!(
            "$RUNTIME debug -it {} -- sh -c 'tty; seq 1 20000; echo the last line; exit 6'",
            target.id()
        );
        let run = on_terminal(host, &line, "sleep 2").exits(6);
        assert!(
            run.text().starts_with("/dev/pts/0") && run.text().ends_with("20000\r\nthe last line"),
            "{}",
            run.code
        );
        target.remove();
    });
}

#[test]
fn what_is_typed_arrives_and_ctrl_c_interrupts() {
    privileged(|host| {
        if !has_terminal(host) {
            return;
        }
        let target = host.sleeper();
        let line = format!("$RUNTIME debug -it {} -- sh", target.id());
        let typed = "sleep 0.3; printf 'echo a-$((1+1))\\r'; sleep 0.3; printf 'sleep 1000\\r'; sleep 0.5; printf '\\003'; sleep 0.2; \
                     printf 'echo still-$((2+1)); exit 4\\r'; sleep 1";
        let run = on_terminal(host, &line, typed).exits(4);
        assert!(run.text().contains("a-2") && run.text().contains("still-3"), "{run:?}");
        target.remove();
    });
}

#[test]
fn its_terminal_has_the_callers_size_and_follows_it() {
    privileged(|host| {
        if !has_terminal(host) {
            return;
        }
        let target = host.sleeper();
        let inside = "stty size; while [ \"$(stty size)\" = \"33 77\" ]; do sleep 0.05; done; stty size";
        let line = format!(
            "stty rows 33 cols 77; (sleep 3; stty -F /dev/tty rows 20 cols 40) & $RUNTIME debug -it {} -- sh -c '{inside}'",
            target.id()
        );
        let run = on_terminal(host, &line, "sleep 5").succeeds();
        assert!(run.text().contains("33 77\r\n20 40"), "{run:?}");
        target.remove();
    });
}

#[test]
fn a_killed_client_leaves_the_terminal_as_it_was() {
    privileged(|host| {
        if !has_terminal(host) {
            return;
        }
        let target = host.sleeper();
        let line = format!(
            "stty -g; $RUNTIME debug -it {} -- sh -c 'echo ready; sleep 1000' & client=$!; sleep 1; kill -KILL $client; \
             sleep 1; stty -g",
            target.id()
        );
        // The client must be in the foreground to change the terminal's settings.
        let line = format!("set -m; ({line})");
        let run = on_terminal(host, &line, "sleep 3").text();
        let settings: Vec<&str> =
            run.lines().filter(|line| line.matches(':').count() > 10).map(str::trim).collect();
        assert_eq!(settings.len(), 2, "{run}");
        assert_eq!(settings[0], settings[1]);
        command::eventually("no session is left", || sessions(host).is_empty());
        target.remove();
    });
}

#[test]
fn the_target_does_not_see_the_terminal() {
    privileged(|host| {
        if !has_terminal(host) {
            return;
        }
        let target = host.sleeper();
        let before = target.exec(&["ls", "-l", "/dev/pts", "/dev"]).succeeds().text();
        let line = format!("$RUNTIME debug -it {} -- sh -c 'echo ready; sleep 2'", target.id());
        let line = format!("script --quiet --command \"{line}\" /dev/null");
        let mut client = Command::new("sh")
            .args(["-c", &line])
            .env("RUNTIME", host.runtime())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        command::eventually("the session is there", || {
            sessions(host).len() == 1 && target.exec(&["ps", "-o", "args"]).text().contains("sleep 2")
        });
        assert_eq!(target.exec(&["ls", "-l", "/dev/pts", "/dev"]).succeeds().text(), before);
        command::wait(&mut client, "the session");
        target.remove();
    });
}
