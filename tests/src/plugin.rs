//! Plugins for tests: built from their sources, and configured on a host.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use crate::host::{Host, repository};

/// Compiles `source`, a file of the repository, to a shared object in a directory of the test.
///
/// # Panics
/// When the compiler has something to say.
pub fn compiled(host: &Host, source: &str, options: &[&str]) -> PathBuf {
    let object = host.directory().join("plugin.so");
    let output = Command::new("gcc")
        .args(["-std=gnu11", "-Wall", "-Werror", "-shared", "-fPIC", "-o"])
        .arg(&object)
        .arg("-I")
        .arg(repository().join("isolators/abi"))
        .args(options)
        .arg(repository().join(source))
        .output()
        .expect("run gcc");
    assert!(output.status.success(), "{source}: {}", String::from_utf8_lossy(&output.stderr));
    object
}

/// The text of `path`, a file of the repository.
///
/// # Panics
/// When it can't be read.
pub fn source(path: &str) -> String {
    fs::read_to_string(repository().join(path)).expect("read a file of the repository")
}

/// The crates of the workspace that are plugins. They are built together, as `make test` does before the tests: alone,
/// each would have what it uses built with other features.
const CRATES: [&str; 6] = [
    "--package",
    "coracle-isolator-template",
    "--package",
    "coracle-fixture-built-in",
    "--package",
    "coracle-isolator-csi",
];

/// The shared object of a crate of the workspace that is a plugin, `lib` being its name. Built now, unless
/// `CORACLE_PREBUILT` says that it has been: a machine that is emulated takes its time.
///
/// # Panics
/// When it can't be built.
pub fn built(lib: &str) -> PathBuf {
    let executable = std::env::current_exe().expect("the path of the tests");
    let target = executable.ancestors().nth(3).expect("tests are built three levels deep");
    let object = target.join("debug").join(format!("lib{lib}.so"));
    if std::env::var_os("CORACLE_PREBUILT").is_some() {
        return object;
    }
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let output = Command::new(cargo)
        .args(["build", "--quiet", "--offline", "--locked"])
        .args(CRATES)
        .arg("--target-dir")
        .arg(target)
        .current_dir(repository())
        .output()
        .expect("run cargo");
    assert!(output.status.success(), "{lib}: {}", String::from_utf8_lossy(&output.stderr));
    object
}

/// Marks `source`, a file of the repository, as changed, and tells how long its plugin `lib` then takes to build: what an
/// author waits for.
///
/// # Panics
/// When it can't be built.
pub fn rebuilt(lib: &str, source: &str) -> Duration {
    let file = fs::File::open(repository().join(source)).expect("open a file of the repository");
    file.set_modified(SystemTime::now()).expect("mark a file as changed");
    let begun = Instant::now();
    built(lib);
    begun.elapsed()
}

impl Host {
    /// The same host, on which the runtime is configured by the file `config`.
    ///
    /// # Panics
    /// When the configuration can't be written.
    pub fn configured(&self, config: &str) -> Host {
        let directory = self.directory();
        fs::write(directory.join("config.toml"), config).expect("write the configuration");
        let runtime = directory.join("coracle");
        let executes = format!("{} --config {}", self.runtime().display(), directory.display());
        let script = format!("#!/bin/sh\nexec {executes} \"$@\"\n");
        fs::write(&runtime, script).expect("write the runtime's script");
        fs::set_permissions(&runtime, fs::Permissions::from_mode(0o755)).expect("make it executable");
        self.with_runtime(runtime, executes)
    }

    /// The same host with the plugin `file` as the isolator `name`; `settings` are further lines of its configuration.
    pub fn with_plugin(&self, name: &str, file: &Path, settings: &str) -> Host {
        self.configured(&format!("[isolator.{name:?}]\nfile = {file:?}\n{settings}\n"))
    }
}
