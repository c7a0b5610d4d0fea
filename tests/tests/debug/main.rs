//! `debug`: looks into containers, of this runtime and of others, and leaves nothing behind.

#![expect(clippy::unwrap_used, reason = "a helper of the tests fails as a test does")]

mod ends;
mod foreign;
mod hidden;
mod images;
mod looks;
mod pods;
mod rights;
mod terminal;

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use coracle_tests::{Bundle, Host, Outcome, Spec, command};

/// Whether the runtime under test has the command; records a skipped test if not.
fn can_debug(host: &Host) -> bool {
    host.needs_coracle("debug")
}

/// A container that sleeps, in a user namespace.
fn in_user_namespace() -> Spec {
    let map = serde_json::json!([{"containerID": 0, "hostID": 100_000, "size": 65_536}]);
    let spec = Spec::new().namespace("user").args(["sleep", "1000"]);
    spec.set("/linux/uidMappings", map.clone()).set("/linux/gidMappings", map)
}

/// `debug` to its end.
fn debug(host: &Host, options: &[&str], target: &str, args: &[&str]) -> Outcome {
    host.call(&[&["debug"], options, &[target, "--"], args].concat())
}

/// The IDs of all sessions.
fn sessions(host: &Host) -> Vec<String> {
    let lines = host.call(&["debug", "--ls"]).succeeds().lines();
    lines[1..].iter().map(|line| line.split(' ').next().unwrap().to_owned()).collect()
}

/// A session that goes on meanwhile.
struct Session {
    client: Child,
    output: PathBuf,
}

impl Session {
    /// Starts one, and waits until it has written `ready`.
    fn start(host: &Host, options: &[&str], target: &str, script: &str) -> Self {
        let output = host.directory().join("output");
        let file = || File::create(&output).unwrap();
        let mut command = Command::new(host.runtime());
        command.arg("debug").args(options).args([target, "--", "sh", "-c"]);
        command.arg(format!("echo ready; {script}")).stdin(Stdio::null());
        let client = command.stdout(file()).stderr(Stdio::inherit()).spawn().unwrap();
        let session = Self { client, output };
        command::eventually("the session is there", || session.text().contains("ready"));
        session
    }

    fn text(&self) -> String {
        fs::read_to_string(&self.output).unwrap()
    }

    /// Kills the client as nobody can catch it.
    fn kill_client(&mut self) {
        self.client.kill().unwrap();
        self.client.wait().unwrap();
    }

    /// Waits for the client's end.
    fn code(&mut self) -> i32 {
        command::code(command::wait(&mut self.client, "a session"))
    }
}

/// A container of an image with a single static program and nothing else: no shell, no directories.
fn from_scratch(host: &Host, spec: Spec) -> Bundle<'_> {
    let bundle = host.bundle(spec.args(["/busybox", "sleep", "1000"]));
    fs::remove_dir_all(bundle.rootfs()).unwrap();
    fs::create_dir(bundle.rootfs()).unwrap();
    fs::copy("/bin/busybox", bundle.rootfs().join("busybox")).unwrap();
    bundle
}
