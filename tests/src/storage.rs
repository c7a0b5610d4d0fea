//! A host with a driver of the Container Storage Interface (`coracle-csi-driver`), and volumes of it.

use std::cell::RefCell;
use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use coracle_fixtures::spec::Spec;
use serde_json::{Value, json};

use crate::bundle::Bundle;
use crate::command::{eventually, patience};
use crate::host::Host;
use crate::plugin;

/// What the secret `key` says.
pub const WORD: &str = "open-sesame-51c0";

/// A host with a driver, and the volume `data` of it.
pub struct Storage {
    host: Host,
    driver: RefCell<Child>,
    directory: PathBuf,
    socket: PathBuf,
    definitions: PathBuf,
    state: PathBuf,
}

impl Storage {
    /// On the test's host; nothing for another runtime.
    ///
    /// # Panics
    /// When the host can't be prepared.
    pub fn new(host: &Host) -> Option<Self> {
        if !host.needs_coracle("volumes of the Container Storage Interface") {
            return None;
        }
        let [directory, definitions, state, secrets] = [(); 4].map(|()| host.directory());
        let socket = host.directory().join("csi.sock");
        fs::create_dir(secrets.join("key")).expect("make a directory");
        fs::write(secrets.join("key/word"), WORD).expect("write a secret");
        let deadline = 3.0 * f64::from(patience());
        let options = format!(
            "options = {{ drivers = {{ test = {socket:?} }}, definitions = {definitions:?}, secrets = {secrets:?}, \
            state = {state:?}, deadline = {deadline:?} }}\nsockets = true\nwritable = [{state:?}]\ndeadline = {:?}",
            5.0 * deadline
        );
        let host = host.with_plugin("volume/csi", &plugin::built("coracle_isolator_csi"), &options);
        let driver = RefCell::new(started(&socket, &directory));
        let storage = Self { host, driver, directory, socket, definitions, state };
        storage.define("data", &json!({"driver": "test", "volumeId": "one"}));
        fs::create_dir(storage.directory.join("one")).expect("make a volume");
        Some(storage)
    }

    /// The host, on which the driver is configured.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Where the driver keeps its volumes, and finds what it is to do wrong.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Where the isolator keeps its records and mounts.
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// Defines a volume.
    ///
    /// # Panics
    /// When that fails.
    pub fn define(&self, name: &str, definition: &Value) {
        let path = self.definitions.join(format!("{name}.json"));
        fs::write(path, definition.to_string()).expect("define a volume");
    }

    /// A container with the volume at `/data`, in which a shell runs this.
    pub fn bundle(&self, script: &str, options: &[&str]) -> Bundle<'_> {
        self.host.bundle(Spec::new().mount("/data", "csi", "data", options).script(script))
    }

    /// Tells the driver to do something wrong once.
    ///
    /// # Panics
    /// When it can't be told.
    pub fn fault(&self, fault: &str) {
        fs::write(self.directory.join("fault"), fault).expect("tell the driver");
    }

    /// The calls since this was last asked.
    pub fn calls(&self) -> Vec<String> {
        let log = self.directory.join("log");
        let text = fs::read_to_string(&log).unwrap_or_default();
        let _ = fs::remove_file(log);
        text.lines().map(str::to_owned).collect()
    }

    /// Where the driver shows something: its mounts, by their last names.
    ///
    /// # Panics
    /// When the mount table can't be read.
    pub fn mounted(&self) -> Vec<String> {
        let table = fs::read_to_string("/proc/self/mountinfo").expect("read the mount table");
        let points = table.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
        let own = points.filter(|point| point.starts_with(&self.state));
        let mut names: Vec<String> =
            own.filter_map(|point| Some(point.file_name()?.to_string_lossy().into_owned())).collect();
        names.sort_unstable();
        names
    }

    /// Starts the driver again where it has died.
    ///
    /// # Panics
    /// When it does not start.
    pub fn revive(&self) {
        let mut driver = self.driver.borrow_mut();
        if driver.try_wait().expect("ask for the driver").is_some() {
            *driver = started(&self.socket, &self.directory);
        }
    }

    /// Whether the driver has ended.
    ///
    /// # Panics
    /// When it can't be told.
    pub fn is_dead(&self) -> bool {
        self.driver.borrow_mut().try_wait().expect("ask for the driver").is_some()
    }

    /// Nothing is mounted, nothing on record.
    pub fn is_clean(&self) -> bool {
        let volumes = fs::read_dir(&self.state).into_iter().flatten().flatten();
        self.mounted().is_empty() && volumes.into_iter().all(|volume| !volume.path().join("record").exists())
    }

    /// Ends the driver.
    ///
    /// # Panics
    /// When it does not end.
    pub fn end(&self) {
        let mut driver = self.driver.borrow_mut();
        let _ = driver.kill();
        driver.wait().expect("wait for the driver");
    }
}

fn started(socket: &Path, directory: &Path) -> Child {
    let tests = std::env::current_exe().expect("the path of the tests");
    let program =
        tests.ancestors().nth(2).expect("tests are built two levels deep").join("coracle-csi-driver");
    let _ = fs::remove_file(socket);
    let driver = Command::new(program).args([socket, directory]).stdin(Stdio::null()).spawn();
    eventually("the driver listens", || UnixStream::connect(socket).is_ok());
    driver.expect("start the driver")
}
