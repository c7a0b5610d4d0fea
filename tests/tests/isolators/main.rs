//! Isolators from files: loaded, called and survived.

#![expect(clippy::unwrap_used, reason = "a helper of the tests fails as a test does")]

mod hostile;
mod configured;
mod whole;
mod checked;
mod policies;

use coracle_tests::{Host, plugin};

const HOSTILE: &str = "fixtures/plugins/hostile.c";
const NAME: &str = "test/hostile";

/// A host with a plugin that does `what` in the call `call`; what does not return is given a second.
fn hostile(host: &Host, call: &str, what: &str) -> Host {
    let options = [format!("-DIN=\"{call}\""), format!("-DDO={what}")];
    let settings = if ["hang", "spin", "nap"].contains(&what) { "deadline = 1" } else { "" };
    spoiled(host, &[&options[0], &options[1]], settings)
}

/// A host with a plugin that is compiled with these options.
fn spoiled(host: &Host, options: &[&str], settings: &str) -> Host {
    let object = plugin::compiled(host, HOSTILE, options);
    host.with_plugin(NAME, &object, settings)
}
