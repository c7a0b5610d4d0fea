//! What a hostile target can get from the runtime while it is looked into.

use std::fs;

use coracle_tests::{Spec, command, plugin, privileged};

use crate::{can_debug, debug};

/// Looks at every process that is still the runtime's afterwards, and writes down what it can open of it.
const LURK: &str = "cd /; runtime() { case $(cat $1/comm) in coracle*) true;; *) false;; esac; }; \
    while :; do for p in /proc/[0-9]*; do runtime $p || continue; echo seen >> /seen; \
    found=$(readlink $p/exe $p/root $p/cwd $p/fd/*; cat $p/environ; ls $p/root/ $p/cwd/); \
    runtime $p && echo $found >> /found; done; done 2>/dev/null";

#[test]
fn c35_a_target_reaches_nothing_of_a_runtime_that_enters_it() {
    privileged(|host| {
        if !can_debug(host) {
            return;
        }
        let target = host.bundle(Spec::new().script(LURK)).start();
        for _ in 0..60 {
            debug(host, &[], target.id(), &["true"]).succeeds();
        }
        let found = target.bundle().rootfs().join("found");
        let seen = target.bundle().rootfs().join("seen");
        host.counted(&format!(
            "{} looks at the runtime",
            fs::read_to_string(seen).unwrap_or_default().lines().count()
        ));
        let found = fs::read_to_string(found).unwrap_or_default();
        assert_eq!(found.trim(), "");
        target.remove();
    });
}

#[test]
fn c09_no_descriptor_of_the_host_reaches_the_program() {
    privileged(|host| {
        if !can_debug(host) {
            return;
        }
        let target = host.sleeper();
        let line = format!("exec 5</etc 7</; $RUNTIME debug {} -- sh -c 'ls -l /proc/self/fd'", target.id());
        let run = host.shell(&line).succeeds();
        // The streams; the directory that is listed is closed before its links are read.
        assert_eq!(run.text().matches(" -> ").count(), 3, "{run:?}");
        target.remove();
    });
}

#[test]
fn c15_links_in_the_targets_files_lead_nowhere_but_there() {
    privileged(|host| {
        if !can_debug(host) {
            return;
        }
        let canary = coracle_fixtures::hostile::CANARY;
        let bundle = host.bundle(
            Spec::new()
                .script("rm -rf /etc; ln -s /host-canary /etc; ln -s /host-canary /home/x; sleep 1000"),
        );
        let planted = bundle.rootfs().join("home/x");
        let target = bundle.start();
        command::eventually("it has planted them", || fs::symlink_metadata(&planted).is_ok());
        debug(host, &["-w", "/home/x"], target.id(), &["true"])
            .fails_with(&["is no directory of the target"]);
        debug(host, &[], target.id(), &["ls", "/etc/"]).exits(1);
        // On a machine that tests share there is none.
        assert_eq!(fs::read_dir(canary).map_or(2, Iterator::count), 2);
        target.remove();
    });
}

#[test]
fn an_isolator_that_does_not_know_debug_containers_refuses_them() {
    privileged(|host| {
        if !can_debug(host) {
            return;
        }
        let object = plugin::compiled(host, "fixtures/plugins/hostile.c", &["-DOCI_ONLY"]);
        let host = host.with_plugin("test/hostile", &object, "");
        let target = host.sleeper();
        let words = ["isolator test/hostile does not support debug containers"];
        debug(&host, &[], target.id(), &["true"]).exits(1).fails_with(&words);
        target.remove();
    });
}
