//! Pods, through `coracle pod`.

use std::fs;
use std::path::PathBuf;

use coracle_fixtures::small;
use serde_json::Value;

use crate::command::{Outcome, eventually};
use crate::host::Host;
use crate::image::{Store, stacks_layers};

/// The image of every container that names none.
pub const IMAGE: &str = "coracle/small:latest";

/// A host on which pods are made, with a store that has the small image.
pub struct Pods<'h> {
    /// The host.
    pub host: &'h Host,
    /// The store.
    pub store: Store<'h>,
}

impl<'h> Pods<'h> {
    /// A store with the small image; `None`, recorded as skipped, for another runtime, and where images can't be mounted.
    pub fn new(host: &'h Host) -> Option<Self> {
        if !host.needs_coracle("pods") || !stacks_layers(host) {
            return None;
        }
        let pods = Self { host, store: Store::new(host) };
        pods.store.import(&small::image());
        pods.store.call(&["unpack", IMAGE]).succeeds();
        Some(pods)
    }

    /// `coracle pod` with these arguments.
    pub fn call(&self, args: &[&str]) -> Outcome {
        self.host.call(&[&["pod"], args].concat())
    }

    /// A file with this text.
    pub fn file(&self, text: &str) -> PathBuf {
        let path = self.host.directory().join("document.yaml");
        fs::write(&path, text).expect("write a document");
        path
    }

    /// `pod VERB -f` of the pod with this name and this `spec`, whose lines are indented by two; `IMAGE` in it is the
    /// small image.
    pub fn make(&self, verb: &str, name: &str, spec: &str) -> Outcome {
        self.make_with(verb, name, "", spec)
    }

    /// The same with more `metadata`.
    pub fn make_with(&self, verb: &str, name: &str, metadata: &str, spec: &str) -> Outcome {
        let spec = spec.replace("IMAGE", IMAGE);
        let text = format!("apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n{metadata}spec:\n{spec}");
        let file = self.file(&text);
        let store = self.store.directory().to_str().expect("the tests' paths are UTF-8").to_owned();
        self.call(&[verb, "--store", &store, "-f", file.to_str().expect("the tests' paths are UTF-8")])
    }

    /// `pod run`, which must succeed.
    #[track_caller]
    pub fn run(&self, name: &str, spec: &str) {
        self.make("run", name, spec).succeeds();
    }

    /// What `inspect` prints.
    #[track_caller]
    pub fn inspect(&self, name: &str) -> Value {
        self.call(&["inspect", name]).succeeds().json()
    }

    /// What it prints of a container.
    #[track_caller]
    pub fn container(&self, name: &str, path: &str) -> Value {
        let told = self.inspect(name);
        let found = told["containers"].as_array().expect("containers").iter().find(|c| c["name"] == path);
        found.unwrap_or_else(|| panic!("no container {path} in {told}")).clone()
    }

    /// Waits until `inspect` of a container holds this.
    #[track_caller]
    pub fn becomes(&self, name: &str, path: &str, key: &str, value: impl Into<Value>) {
        let value = value.into();
        eventually(&format!("{name}/{path}: {key} is {value}"), || self.container(name, path)[key] == value);
    }

    /// Waits until the pod is in this phase.
    #[track_caller]
    pub fn is(&self, name: &str, phase: &str) {
        eventually(&format!("{name} is {phase}"), || self.inspect(name)["phase"] == phase);
    }

    /// What a container wrote.
    #[track_caller]
    pub fn logs(&self, container: &str) -> String {
        self.call(&["logs", container]).exits(0).text()
    }

    /// Runs a program in a container.
    pub fn exec(&self, container: &str, args: &[&str]) -> Outcome {
        self.call(&[&["exec", container], args].concat())
    }

    /// Removes a pod by force.
    #[track_caller]
    pub fn remove(&self, name: &str) {
        self.call(&["rm", "--force", name]).succeeds();
    }
}
