//! `volume/csi`: volumes of a driver that is real, and told what to do wrong.

#![expect(clippy::unwrap_used, reason = "a helper of the tests fails as a test does")]

use std::cell::RefCell;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use coracle_tests::command::eventually;
use coracle_tests::{Bundle, Host, Outcome, Spec, plugin, privileged};
use serde_json::{Value, json};

const WORD: &str = "open-sesame-51c0";

/// A host with a driver, and volumes of it.
struct Storage {
    host: Host,
    driver: RefCell<Child>,
    directory: PathBuf,
    socket: PathBuf,
    definitions: PathBuf,
    state: PathBuf,
}

impl Storage {
    fn new(host: &Host) -> Option<Self> {
        if !host.needs_coracle("volumes of the Container Storage Interface") {
            return None;
        }
        let [directory, definitions, state, secrets] = [(); 4].map(|()| host.directory());
        let socket = host.directory().join("csi.sock");
        fs::create_dir(secrets.join("key")).unwrap();
        fs::write(secrets.join("key/word"), WORD).unwrap();
        let options = format!(
            "options = {{ drivers = {{ test = {socket:?} }}, definitions = {definitions:?}, secrets = {secrets:?}, \
            state = {state:?}, deadline = 1.0 }}\nwritable = [{state:?}]"
        );
        let host = host.with_plugin("volume/csi", &plugin::built("coracle_isolator_csi"), &options);
        let driver = RefCell::new(started(&socket, &directory));
        let storage = Self { host, driver, directory, socket, definitions, state };
        storage.define("data", &json!({"driver": "test", "volumeId": "one"}));
        fs::create_dir(storage.directory.join("one")).unwrap();
        Some(storage)
    }

    fn define(&self, name: &str, definition: &Value) {
        fs::write(self.definitions.join(format!("{name}.json")), definition.to_string()).unwrap();
    }

    fn bundle(&self, script: &str, options: &[&str]) -> Bundle<'_> {
        self.host.bundle(Spec::new().mount("/data", "csi", "data", options).script(script))
    }

    fn fault(&self, fault: &str) {
        fs::write(self.directory.join("fault"), fault).unwrap();
    }

    /// The calls since this was last asked.
    fn calls(&self) -> Vec<String> {
        let log = self.directory.join("log");
        let text = fs::read_to_string(&log).unwrap_or_default();
        let _ = fs::remove_file(log);
        text.lines().map(str::to_owned).collect()
    }

    /// Where the driver shows something: its mounts, by their last names.
    fn mounted(&self) -> Vec<String> {
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let points = table.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
        let own = points.filter(|point| point.starts_with(&self.state));
        let mut names: Vec<String> =
            own.map(|point| point.file_name().unwrap().to_string_lossy().into_owned()).collect();
        names.sort_unstable();
        names
    }

    /// Starts the driver again where it has died.
    fn revive(&self) {
        let mut driver = self.driver.borrow_mut();
        if driver.try_wait().unwrap().is_some() {
            *driver = started(&self.socket, &self.directory);
        }
    }

    /// Nothing is mounted, nothing on record.
    fn is_clean(&self) -> bool {
        let records = fs::read_dir(&self.state).unwrap().flatten().map(|volume| volume.path().join("record"));
        self.mounted().is_empty() && records.into_iter().all(|record| !record.exists())
    }

    fn end(&self) {
        let mut driver = self.driver.borrow_mut();
        let _ = driver.kill();
        driver.wait().unwrap();
    }
}

fn started(socket: &Path, directory: &Path) -> Child {
    let tests = std::env::current_exe().unwrap();
    let program = tests.ancestors().nth(2).unwrap().join("coracle-csi-driver");
    let _ = fs::remove_file(socket);
    let driver = Command::new(program).args([socket, directory]).stdin(Stdio::null()).spawn().unwrap();
    eventually("the driver listens", || std::os::unix::net::UnixStream::connect(socket).is_ok());
    driver
}

fn ok(calls: &[&str]) -> Vec<String> {
    calls.iter().map(|call| format!("{call} ok")).collect()
}

#[test]
fn a_volume_is_staged_once_published_for_each_and_taken_back_with_the_last() {
    privileged(|host| {
        let Some(storage) = Storage::new(host) else { return };
        let one = storage.bundle("echo written >/data/file; sleep 1000", &[]).named("one").start();
        let begun = ["Probe", "NodeGetCapabilities", "NodeStageVolume", "NodePublishVolume"];
        assert_eq!(storage.calls(), ok(&begun));
        let reads =
            storage.bundle("touch /data/new || cat /data/file; sleep 1000", &["ro"]).named("two").start();
        assert_eq!(storage.calls(), ok(&["Probe", "NodeGetCapabilities", "NodePublishVolume"]));
        eventually("it reads", || reads.output() == "written\n");
        assert_eq!(storage.mounted(), ["one", "staging", "two"]);
        let told = one.call("stats").succeeds().json()["other"].clone();
        assert_eq!(
            (&told["volume/csi/bytes-used/data"], &told["volume/csi/bytes-total/data"]),
            (&json!(8.0), &json!(1000.0))
        );
        assert_eq!(storage.calls(), ok(&["NodeGetVolumeStats"]));
        one.remove();
        assert_eq!(storage.calls(), ok(&["NodeUnpublishVolume"]));
        assert_eq!(storage.mounted(), ["staging", "two"]);
        reads.remove();
        assert_eq!(storage.calls(), ok(&["NodeUnpublishVolume", "NodeUnstageVolume"]));
        assert!(storage.is_clean());
        assert_eq!(fs::read_to_string(storage.directory.join("one/file")).unwrap(), "written\n");
        storage.end();
    });
}

#[test]
fn a_driver_that_can_do_nothing_optional_is_asked_for_nothing_optional() {
    privileged(|host| {
        let Some(storage) = Storage::new(host) else { return };
        fs::write(storage.directory.join("simple"), "").unwrap();
        storage.define("data", &json!({"driver": "test", "volumeId": "one", "requiredBytes": 5000}));
        storage.bundle("echo hello >/data/file", &[]).run().succeeds();
        let all = ["Probe", "NodeGetCapabilities", "NodePublishVolume", "NodeUnpublishVolume"];
        assert_eq!(storage.calls(), ok(&all));
        fs::remove_file(storage.directory.join("simple")).unwrap();
        storage.bundle("true", &[]).run().succeeds();
        assert!(storage.calls().contains(&"NodeExpandVolume ok".to_owned()));
        assert!(storage.is_clean());
        storage.end();
    });
}

#[test]
fn a_secret_is_for_the_driver_alone() {
    privileged(|host| {
        let Some(storage) = Storage::new(host) else { return };
        let locked = json!({"driver": "test", "volumeId": "one", "volumeContext": {"locked": "yes"}});
        storage.define("data", &locked);
        storage.bundle("true", &[]).run().fails_with(&[
            "isolator volume/csi could not provide: driver \"test\" could not NodeStageVolume: the volume is locked (gRPC code 16)",
        ]);
        assert!(storage.is_clean());
        let mut open = locked.clone();
        open["secret"] = json!("key");
        storage.define("data", &open);
        let log = host.directory().join("log");
        let bundle = storage.bundle("sleep 1000", &[]).named("open");
        let args = ["--debug", "--log", log.to_str().unwrap(), "run", "--detach", "--bundle"];
        let args = [&args[..], &[bundle.directory().to_str().unwrap(), "open"]].concat();
        storage.host.call(&args).succeeds();
        for place in [
            "/run/coracle",
            storage.state.to_str().unwrap(),
            storage.directory.to_str().unwrap(),
            log.to_str().unwrap(),
        ] {
            let found = Command::new("grep").args(["-rlF", WORD, place]).output().unwrap();
            assert!(found.stdout.is_empty(), "{}", String::from_utf8_lossy(&found.stdout));
        }
        storage.host.call(&["delete", "--force", "open"]).succeeds();
        assert!(storage.is_clean());
        storage.end();
    });
}

#[test]
fn what_can_not_be_is_told_before_anything_is_made() {
    privileged(|host| {
        let Some(storage) = Storage::new(host) else { return };
        let run = |name: &str| storage.host.bundle(Spec::new().mount("/data", "csi", name, &[])).run();
        run("../data").fails_with(&["/mounts/", "/source: \"../data\" is no name of a volume"]);
        run("other").fails_with(&["/source: there is no volume \"other\" ("]);
        storage.define("data", &json!({"driver": "nobody", "volumeId": "one"}));
        run("data")
            .fails_with(&["no driver \"nobody\" is configured; the option drivers names their sockets"]);
        storage.define("data", &json!({"driver": "test", "volume": "one"}));
        run("data").fails_with(&["data.json: unknown field `volume`"]);
        assert!(storage.calls().is_empty() && storage.is_clean());
        storage.define("data", &json!({"driver": "test", "volumeId": "two"}));
        run("data").fails_with(&["could not NodeStageVolume: there is no volume two (gRPC code 5)"]);
        assert!(storage.is_clean());
        storage.end();
    });
}

#[test]
fn a_driver_that_is_busy_is_asked_again_and_one_that_hangs_is_given_up() {
    privileged(|host| {
        let Some(storage) = Storage::new(host) else { return };
        // ABORTED: it is at work on the volume.
        storage.fault("NodePublishVolume before 10");
        storage.bundle("true", &[]).run().succeeds();
        assert!(storage.is_clean());
        storage.fault("NodeStageVolume before hangs");
        let run = storage.bundle("true", &[]).run();
        run.fails_with(&["driver \"test\" could not NodeStageVolume: it did not answer in time"]);
        assert!(storage.is_clean());
        storage.end();
    });
}

/// Runs a container of `storage` in whose life `fault` comes up, and what follows: recovery, and removal.
fn goes_wrong(storage: &Storage, fault: &str) -> Outcome {
    storage.fault(fault);
    let bundle = storage.bundle("echo again >>/data/log", &[]).named("unlucky");
    let run = bundle.run();
    storage.revive();
    storage.host.call(&["recover"]).succeeds();
    // A runtime that was killed in its removal has left the container on record.
    storage.host.call(&["delete", "--force", "unlucky"]).succeeds();
    run
}

#[test]
fn driver_or_runtime_killed_between_any_two_calls_leave_nothing_that_recovery_does_not_undo() {
    privileged(|host| {
        let Some(storage) = Storage::new(host) else { return };
        let methods = [
            "Probe",
            "NodeGetCapabilities",
            "NodeStageVolume",
            "NodePublishVolume",
            "NodeUnpublishVolume",
            "NodeUnstageVolume",
        ];
        let mut turns = 0;
        for method in methods {
            for moment in ["before", "after"] {
                for who in ["dies", "killer"] {
                    let fault = format!("{method} {moment} {who}");
                    goes_wrong(&storage, &fault);
                    assert!(!storage.directory.join("fault").exists(), "{fault} did not come up");
                    assert!(storage.is_clean(), "{fault}: {:?}", storage.mounted());
                    // What follows finds a volume that can be used, which is staged and published once.
                    storage.calls();
                    storage.bundle("test -d /data", &[]).run().succeeds();
                    let calls = storage.calls();
                    let count = |name: &str| calls.iter().filter(|call| call.starts_with(name)).count();
                    let once =
                        ["NodeStageVolume", "NodePublishVolume", "NodeUnpublishVolume", "NodeUnstageVolume"];
                    assert!(once.iter().all(|name| count(name) == 1), "{fault}: {calls:?}");
                    turns += 1;
                }
            }
        }
        assert_eq!(turns, 24);
        storage.end();
    });
}
