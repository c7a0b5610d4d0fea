//! A container with an isolator of the host's own, or on a network, whose runtime, plugins and children are killed at
//! every step: nothing is left of either.

use std::fs;

use coracle_tests::lan::Lan;
use coracle_tests::plugin::compiled;
use coracle_tests::{Host, Spec, privileged};
use serde_json::json;

use crate::kills::Kills;
use crate::trace::can_sweep;

fn on_a_network(host: &Host, follow: &str, stride: usize) {
    let Some(lan) = Lan::new(host, 30.0).filter(|_| can_sweep(host)) else { return };
    let spec = Spec::new().set("/annotations", json!({"io.coracle.network": "bridge"}));
    let bundle = lan.host().bundle(spec.args(["true"]));
    // Plugins leave their bridge, its rules and their locks for the next container.
    bundle.run().succeeds();
    let before = lan.stock();
    let left = || {
        // Where the next address is looked for is no leak.
        host.shell("rm -f /var/lib/cni/networks/*/last_reserved_ip.*").succeeds();
        let now = lan.stock();
        let lines: Vec<_> = now.symmetric_difference(&before).cloned().collect();
        (!lines.is_empty()).then(|| lines.join("\n"))
    };
    Kills { host: lan.host(), bundle: &bundle, verb: "run", follow, stride, left: &left }.sweep();
    lan.ends_as(&before);
}

#[test]
fn run_on_a_network_killed_at_any_step_leaves_no_address() {
    privileged(|host| on_a_network(host, "", 40));
}

#[test]
#[ignore = "takes minutes: make test-faults"]
fn run_on_a_network_and_its_plugins_killed_at_every_step_leave_no_address() {
    privileged(|host| on_a_network(host, "-f", 4));
}

fn with_a_plugin(host: &Host, follow: &str, stride: usize) {
    if !can_sweep(host) {
        return;
    }
    let plugin = compiled(host, "isolators/template-c/nofile.c", &[]);
    let host = host.configured(&format!("[isolator.\"example/nofile\"]\nfile = {plugin:?}\n"));
    let bundle = host.bundle(Spec::new().args(["true"]));
    bundle.run().succeeds();
    Kills { host: &host, bundle: &bundle, verb: "run", follow, stride, left: &|| None }.sweep();
    assert!(fs::exists(plugin).unwrap());
}

#[test]
fn run_with_a_plugin_killed_at_any_step_leaves_nothing() {
    privileged(|host| with_a_plugin(host, "-f", 40));
}

#[test]
#[ignore = "takes minutes: make test-faults"]
fn run_with_a_plugin_killed_at_every_step_leaves_nothing() {
    privileged(|host| with_a_plugin(host, "-f", 1));
}
