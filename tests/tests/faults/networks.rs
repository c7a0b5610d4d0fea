//! A container with an isolator of the host's own, on a network, or with a volume of a driver, whose runtime, plugins and
//! children are killed or refused a call at every step: nothing is left of either.

use std::fs;

use coracle_tests::lan::Lan;
use coracle_tests::plugin::compiled;
use coracle_tests::storage::Storage;
use coracle_tests::{Host, Spec, privileged};
use serde_json::json;

use crate::kills::Turns;
use crate::trace::{Fault, can_sweep, unless_whole};

fn on_a_network(host: &Host, fault: Fault, follow: &str, every: usize) {
    let Some(lan) = Lan::new(host, 30.0).filter(|_| can_sweep(host)) else { return };
    let spec = Spec::new().set("/annotations", json!({"io.coracle.network": "bridge"}));
    let bundle = lan.host().bundle(spec.args(["true"]));
    // Plugins leave their bridge, its rules and their locks for the next container.
    bundle.run().succeeds();
    let before = lan.stock();
    let left = || {
        // What a plugin would not give back at the end of the container it is asked for again.
        lan.host().call(&["recover"]).succeeds();
        // Where the next address is looked for is no leak.
        host.shell("rm -f /var/lib/cni/networks/*/last_reserved_ip.*").succeeds();
        let now = lan.stock();
        // A plugin that is itself cut off while it takes its rules away finds them no more (bridge 1.1 looks for them by the
        // addresses of an interface that it has removed by then): that is not ours to mend.
        let of_plugins = |line: &&String| !follow.is_empty() && line.contains("tables-save ");
        let lines: Vec<_> =
            now.symmetric_difference(&before).filter(|line| !of_plugins(line)).cloned().collect();
        (!lines.is_empty()).then(|| lines.join("\n"))
    };
    Turns { host: lan.host(), bundle: &bundle, verb: "run", fault, follow, every, left: &left }.sweep();
    lan.ends_as(&before);
}

#[test]
fn run_on_a_network_killed_at_any_step_leaves_no_address() {
    privileged(|host| on_a_network(host, Fault::Killed, "", 40));
}

#[test]
#[ignore = "takes minutes: make test-faults"]
fn run_on_a_network_and_its_plugins_killed_at_every_step_leave_no_address() {
    privileged(|host| on_a_network(host, Fault::Killed, "-f", unless_whole(4)));
}

#[test]
fn run_on_a_network_refused_a_call_leaves_no_address() {
    privileged(|host| on_a_network(host, Fault::Refused, "", 40));
}

#[test]
#[ignore = "takes minutes: make test-faults"]
fn run_on_a_network_and_its_plugins_refused_any_call_leave_no_address() {
    privileged(|host| on_a_network(host, Fault::Refused, "-f", unless_whole(4)));
}

fn with_a_plugin(host: &Host, fault: Fault, follow: &str, every: usize) {
    if !can_sweep(host) {
        return;
    }
    let plugin = compiled(host, "isolators/template-c/nofile.c", &[]);
    let host = host.configured(&format!("[isolator.\"example/nofile\"]\nfile = {plugin:?}\n"));
    let bundle = host.bundle(Spec::new().args(["true"]));
    bundle.run().succeeds();
    Turns { host: &host, bundle: &bundle, verb: "run", fault, follow, every, left: &|| None }.sweep();
    assert!(fs::exists(plugin).unwrap());
}

#[test]
fn run_with_a_plugin_killed_at_any_step_leaves_nothing() {
    privileged(|host| with_a_plugin(host, Fault::Killed, "-f", 40));
}

#[test]
#[ignore = "takes minutes: make test-faults"]
fn run_with_a_plugin_killed_at_every_step_leaves_nothing() {
    privileged(|host| with_a_plugin(host, Fault::Killed, "-f", 1));
}

#[test]
fn run_with_a_plugin_refused_a_call_leaves_nothing() {
    privileged(|host| with_a_plugin(host, Fault::Refused, "-f", 40));
}

#[test]
#[ignore = "takes minutes: make test-faults"]
fn run_with_a_plugin_refused_any_call_leaves_nothing() {
    privileged(|host| with_a_plugin(host, Fault::Refused, "-f", 1));
}

fn with_a_driver(host: &Host, fault: Fault, every: usize) {
    let Some(storage) = Storage::new(host).filter(|_| can_sweep(host)) else { return };
    let bundle = storage.bundle("echo again >>/data/log", &[]);
    bundle.run().succeeds();
    let left = || (!storage.is_clean()).then(|| format!("records, or mounts {:?}", storage.mounted()));
    let host = storage.host();
    Turns { host, bundle: &bundle, verb: "run", fault, follow: "-f", every, left: &left }.sweep();
    storage.end();
}

#[test]
fn run_with_a_drivers_volume_killed_at_any_step_leaves_nothing() {
    privileged(|host| with_a_driver(host, Fault::Killed, 40));
}

#[test]
fn run_with_a_drivers_volume_refused_a_call_leaves_nothing() {
    privileged(|host| with_a_driver(host, Fault::Refused, 40));
}

#[test]
#[ignore = "takes minutes: make test-faults"]
fn run_with_a_drivers_volume_killed_at_every_step_leaves_nothing() {
    privileged(|host| with_a_driver(host, Fault::Killed, 1));
}

#[test]
#[ignore = "takes minutes: make test-faults"]
fn run_with_a_drivers_volume_refused_any_call_leaves_nothing() {
    privileged(|host| with_a_driver(host, Fault::Refused, 1));
}
