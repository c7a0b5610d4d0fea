//! A bundle and the containers made of it.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use coracle_fixtures::busybox;
use coracle_fixtures::spec::Spec;
use serde_json::Value;

use crate::cgroup;
use crate::command::{self, Outcome};
use crate::host::Host;

/// A directory with `config.json` and `rootfs`, and the ID under which it runs.
pub struct Bundle<'h> {
    host: &'h Host,
    directory: PathBuf,
    id: String,
    options: Vec<OsString>,
    input: Vec<u8>,
}

impl<'h> Bundle<'h> {
    pub(crate) fn new(host: &'h Host, spec: Spec) -> Self {
        let (directory, id) = (host.directory(), host.name("container"));
        let bundle = Self { host, directory, id, options: Vec::new(), input: Vec::new() };
        busybox::write(&bundle.rootfs());
        // Who is not root must not ask for one of the hierarchies' own.
        let as_is = host.is_rootless() || spec.json().pointer("/linux/cgroupsPath").is_some();
        bundle.configure(&if as_is { spec } else { spec.cgroup(&cgroup::wanted(&bundle.id)) });
        host.give(&bundle.directory);
        bundle
    }

    fn configure(&self, spec: &Spec) {
        fs::write(self.directory.join("config.json"), spec.json().to_string()).expect("write config.json");
    }

    /// The bundle's directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The root file system.
    pub fn rootfs(&self) -> PathBuf {
        self.directory.join("rootfs")
    }

    /// The container's ID.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Options for `run` and `create`, before the ID.
    pub fn options<const N: usize>(mut self, options: [&str; N]) -> Self {
        self.options.extend(options.iter().map(OsString::from));
        self
    }

    /// Bytes for the standard input of `run`.
    pub fn input(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.input = bytes.into();
        self
    }

    /// Another ID than the one given.
    pub fn named(mut self, id: &str) -> Self {
        id.clone_into(&mut self.id);
        self
    }

    /// Puts a file into the root file system.
    pub fn with_file(self, path: &str, content: &str) -> Self {
        let path = self.rootfs().join(path);
        fs::create_dir_all(path.parent().expect("a file is in a directory")).expect("make a directory");
        fs::write(&path, content).expect("write a file of the root");
        self.host.give(&path);
        self
    }

    /// The command line of a verb on this bundle.
    pub fn command(&self, verb: &str) -> Command {
        let mut command = Command::new(self.host.runtime());
        command.arg(verb).arg("--bundle").arg(&self.directory).args(&self.options).arg(&self.id);
        command.current_dir(&self.directory).stdin(Stdio::null());
        command
    }

    /// `run`, to the container's end.
    pub fn run(&self) -> Outcome {
        let mut command = self.command("run");
        if !self.input.is_empty() {
            let path = self.directory.join("stdin");
            fs::write(&path, &self.input).expect("write the input");
            command.stdin(fs::File::open(path).expect("open the input"));
        }
        command::run(&mut command, &self.host.directory())
    }

    /// `create`, whatever comes of it.
    pub fn try_create(&self) -> Outcome {
        command::run(&mut self.command("create"), &self.directory)
    }

    /// `create`, which must succeed.
    ///
    /// # Panics
    /// When it fails.
    #[track_caller]
    pub fn create(self) -> Container<'h> {
        self.try_create().succeeds();
        Container { bundle: self }
    }

    /// `create` and `start`, which must succeed.
    ///
    /// # Panics
    /// When one fails.
    #[track_caller]
    pub fn start(self) -> Container<'h> {
        let container = self.create();
        container.call("start").succeeds();
        container
    }
}

/// A container that was created. It is not deleted on drop: tests delete it, or the oracle tells.
pub struct Container<'h> {
    bundle: Bundle<'h>,
}

impl<'h> Container<'h> {
    /// The container's ID.
    pub fn id(&self) -> &str {
        &self.bundle.id
    }

    /// The bundle that it was made of.
    pub fn bundle(&self) -> &Bundle<'h> {
        &self.bundle
    }

    /// A verb with nothing but the ID.
    pub fn call(&self, verb: &str) -> Outcome {
        self.bundle.host.call(&[verb, self.id()])
    }

    /// A verb with more arguments after the ID.
    pub fn call_with(&self, verb: &str, args: &[&str]) -> Outcome {
        self.bundle.host.call(&[&[verb, self.id()], args].concat())
    }

    /// A verb with options before the ID.
    pub fn verb_with(&self, verb: &str, options: &[&str]) -> Outcome {
        self.bundle.host.call(&[&[verb], options, &[self.id()]].concat())
    }

    /// What `state` prints.
    ///
    /// # Panics
    /// When it fails.
    #[track_caller]
    pub fn state(&self) -> Value {
        self.call("state").succeeds().json()
    }

    /// The status alone: `created`, `running`, `stopped`.
    #[track_caller]
    pub fn status(&self) -> String {
        self.state()["status"].as_str().unwrap_or_default().to_owned()
    }

    /// The process ID of the container's first process, as this host numbers it.
    ///
    /// # Panics
    /// When `state` gives none.
    #[track_caller]
    pub fn pid(&self) -> i32 {
        let pid = self.state()["pid"].as_i64().expect("state gives a pid");
        i32::try_from(pid).expect("a pid fits 32 bits")
    }

    /// Waits for a status, at most ten seconds.
    #[track_caller]
    pub fn becomes(&self, status: &str) {
        command::eventually(&format!("status {status}"), || self.status() == status);
    }

    /// What the container has written to its standard output so far.
    pub fn output(&self) -> String {
        fs::read_to_string(self.bundle.directory.join("stdout")).unwrap_or_default()
    }

    /// `exec` of a command.
    pub fn exec(&self, args: &[&str]) -> Outcome {
        self.exec_with(&[], args)
    }

    /// `exec` with options before the ID.
    pub fn exec_with(&self, options: &[&str], args: &[&str]) -> Outcome {
        self.bundle.host.call(&[&["exec"], options, &[self.id()], args].concat())
    }

    /// Kills the container, waits for its end and deletes it.
    ///
    /// # Panics
    /// When a step fails.
    #[track_caller]
    pub fn remove(&self) {
        self.call_with("kill", &["KILL"]).succeeds();
        self.becomes("stopped");
        self.call("delete").succeeds();
    }
}
