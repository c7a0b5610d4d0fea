//! The test host: what one privileged test runs on, and how it gets there.

use std::cell::Cell;
use std::ffi::OsStr;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use coracle_fixtures::hostile::CANARY;
use coracle_fixtures::spec::Spec;

use crate::bundle::Bundle;
use crate::cgroup;
use crate::command::{self, Outcome};
use crate::oracle::Snapshot;
use crate::user::Caller;

/// Set inside the test host: the name of the test that it was made for.
const INSIDE: &str = "CORACLE_TEST_HOST";
/// Where a test keeps its files; the one place that the oracle does not look at.
const WORK: &str = "/run/test";

/// The machine as one test sees it.
pub struct Host {
    runtime: PathBuf,
    count: Cell<u64>,
    name: String,
    /// Whose the files are that the runtime is to write.
    owner: Option<u32>,
    /// What the script `runtime` executes, where it is one of a configured host.
    executes: Option<String>,
}

/// Runs a test on a host of its own, and the leak oracle around it.
///
/// # Panics
/// When the test fails or leaves anything behind.
pub fn privileged<F: FnOnce(&Host)>(test: F) {
    if cgroup::is_made_by_systemd() {
        return on_host(&["--systemd"], Caller::Root, test);
    }
    // crun 1.8 refuses a machine whose unified hierarchy has any controller beside version 1.
    let without_unified = runtime_path().ends_with("crun") && !cgroup::is_unified();
    on_host(if without_unified { &["--v1-only"] } else { &[] }, Caller::Root, test);
}

/// The same, with a runtime that a user without privilege calls ([`crate::user::USER`]).
///
/// # Panics
/// When the test fails or leaves anything behind.
pub fn unprivileged<F: FnOnce(&Host)>(test: F) {
    on_host(&[], Caller::User, test);
}

/// The same, with a runtime that the root of a user namespace of that user calls, as podman does without privilege.
///
/// # Panics
/// When the test fails or leaves anything behind.
pub fn namespaced<F: FnOnce(&Host)>(test: F) {
    on_host(&[], Caller::Namespaced, test);
}

/// The same on a host without the unified cgroup hierarchy: the v1 controllers alone.
///
/// # Panics
/// When the test fails or leaves anything behind.
pub fn privileged_v1<F: FnOnce(&Host)>(test: F) {
    on_host(&["--v1-only"], Caller::Root, test);
}

/// Runs a test on the machine itself, with systemd as its cgroup manager: systemd knows processes by their numbers in
/// its own PID namespace, so a host of the test's own won't do. The oracle looks at what is the runtime's alone.
///
/// # Panics
/// When the test fails or leaves anything behind.
pub fn with_systemd<F: FnOnce(&Host)>(test: F) {
    let name = name_of(&test);
    if !Path::new("/run/systemd/private").exists() {
        return record_skip(&name, "systemd does not run here");
    }
    let runtime = making_scopes(&Path::new(WORK).join(&name));
    // Tests share the machine: each has names of its own.
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let count = Cell::new(own_names() + NEXT.fetch_add(1000, Ordering::Relaxed));
    let host = Host { runtime, count, name, owner: None, executes: None };
    // What one of them makes would be left by another.
    static ONE: Mutex<()> = Mutex::new(());
    let _alone = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let before = Snapshot::of_runtime();
    test(&host);
    if let Some(difference) = before.difference_to(Snapshot::of_runtime) {
        panic!("the test left the machine changed:\n{difference}");
    }
}

/// The runtime, told to leave cgroups to systemd: a script in `directory`.
fn making_scopes(directory: &Path) -> PathBuf {
    let runtime = directory.join("bin/coracle");
    fs::create_dir_all(directory.join("bin")).expect("make a directory for the runtime");
    let script = format!("#!/bin/sh\nexec {} --systemd-cgroup \"$@\"\n", runtime_path().display());
    fs::write(&runtime, script).expect("write the runtime's script");
    fs::set_permissions(&runtime, fs::Permissions::from_mode(0o755)).expect("make it executable");
    runtime
}

/// Where the names of this process's hosts begin: all scopes are in one tree.
fn own_names() -> u64 {
    u64::from(std::process::id()) * 1_000_000
}

fn on_host<F: FnOnce(&Host)>(options: &[&str], caller: Caller, test: F) {
    let name = name_of(&test);
    if options == ["--v1-only"] && cgroup::is_unified() {
        return record_skip(&name, "this machine has no version 1 controllers");
    }
    match std::env::var(INSIDE) {
        Ok(inside) if inside == name => inside_host(name, caller, test),
        _ => enter_host(&name, options),
    }
}

/// A closure's type is named after the function that holds it: `lifecycle::create::{{closure}}`.
fn name_of<F>(_: &F) -> String {
    let path = std::any::type_name::<F>().trim_end_matches("::{{closure}}");
    path.split_once("::").map_or(path, |(_, name)| name).to_owned()
}

/// Runs this very test again, on a new host.
fn enter_host(name: &str, options: &[&str]) {
    let executable = std::env::current_exe().expect("the path of the tests");
    let directory = executable.ancestors().nth(2).expect("tests are built two levels deep");
    let output = Command::new(directory.join("coracle-test-host"))
        .args(options)
        .arg(&executable)
        .args([name, "--exact", "--include-ignored", "--nocapture", "--test-threads=1"])
        .env(INSIDE, name)
        .env("RUST_BACKTRACE", "0")
        .stdin(Stdio::null())
        .output()
        .expect("start coracle-test-host");
    let told = [output.stdout, output.stderr].concat();
    let told = String::from_utf8_lossy(&told);
    let ran = told.contains("test result: ok. 1 passed");
    assert!(output.status.success() && ran, "{name} failed on its host:\n{told}");
}

fn inside_host<F: FnOnce(&Host)>(name: String, caller: Caller, test: F) {
    fs::create_dir_all(WORK).expect("make the test's directory");
    plant_canary();
    make_state_roots();
    let (runtime, first) = match caller == Caller::Root && cgroup::is_made_by_systemd() {
        true => (making_scopes(Path::new(WORK)), own_names()),
        false => (caller.calling(runtime_path(), Path::new(WORK)), 0),
    };
    let host = Host { runtime, count: Cell::new(first), name, owner: caller.owner(), executes: None };
    let before = host.snapshot();
    test(&host);
    if let Some(difference) = host.difference(&before) {
        panic!("the test left the host changed:\n{difference}");
    }
}

fn plant_canary() {
    let canary = Path::new(CANARY);
    fs::create_dir_all(canary.join("directory")).expect("make the canary");
    for file in ["file", "directory/file"] {
        fs::write(canary.join(file), "untouched").expect("write the canary");
    }
}

/// A runtime's root directory of states stays, once made (as mount(8)'s own does), and so does that of pods on the disk; what
/// lies in them must not.
fn make_state_roots() {
    fs::DirBuilder::new()
        .mode(0o700)
        .recursive(true)
        .create("/var/lib/coracle/pods")
        .expect("make a directory");
    for path in ["/run/coracle", "/run/runc", "/run/crun"] {
        fs::DirBuilder::new().mode(0o700).create(path).expect("make a runtime's root directory");
    }
    fs::create_dir("/run/mount").expect("make the directory of mount(8)");
}

fn record_skip(name: &str, reason: &str) {
    record(&format!("skipped: {name}: {reason}\n"));
}

fn record(line: &str) {
    let path =
        std::env::var_os("CORACLE_SKIPS").map_or_else(|| repository().join("target/skipped"), PathBuf::from);
    let file = OpenOptions::new().create(true).append(true).open(path);
    file.and_then(|mut file| file.write_all(line.as_bytes())).expect("record what a test tells");
}

/// Where the sources are.
pub(crate) fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests are a folder of the repository").to_owned()
}

fn binary(variable: &str, name: &str) -> PathBuf {
    std::env::var_os(variable).map_or_else(|| repository().join("target/bin").join(name), PathBuf::from)
}

/// The program of the runtime under test.
pub fn runtime_path() -> PathBuf {
    binary("CORACLE_RUNTIME", "coracle")
}

impl Host {
    /// The runtime under test.
    pub fn runtime(&self) -> &Path {
        &self.runtime
    }

    /// The same host with another runtime; names on it are not those of this one.
    pub(crate) fn with_runtime(&self, runtime: PathBuf, executes: String) -> Self {
        self.count.set(self.count.get() + 1000);
        Self {
            runtime,
            count: Cell::new(self.count.get() + 1000),
            name: self.name.clone(),
            owner: self.owner,
            executes: Some(executes),
        }
    }

    /// The runtime and its options as a shell takes them, without a script in between.
    pub fn command_line(&self) -> String {
        self.executes.clone().unwrap_or_else(|| self.runtime.display().to_string())
    }

    /// The program `coracle-image`.
    pub fn image_program(&self) -> PathBuf {
        binary("CORACLE_IMAGE", "coracle-image")
    }

    /// Whether the runtime under test is ours; some tests are about what only it does.
    pub fn is_coracle(&self) -> bool {
        self.runtime.file_name() == Some(OsStr::new("coracle"))
    }

    /// A new name, for a container or a file.
    pub fn name(&self, what: &str) -> String {
        self.count.set(self.count.get() + 1);
        format!("{what}-{}", self.count.get())
    }

    /// A new, empty directory of the test.
    pub fn directory(&self) -> PathBuf {
        let path = Path::new(WORK).join(self.name("directory"));
        fs::create_dir_all(&path).expect("make a directory");
        self.give(&path);
        path
    }

    /// Gives a file or directory, and all below it, to the runtime's caller.
    ///
    /// # Panics
    /// When that fails.
    pub fn give(&self, path: &Path) {
        if let Some(owner) = self.owner {
            command::tool("chown", &["-hR", &format!("{owner}:{owner}"), &path.to_string_lossy()]);
        }
    }

    /// Whether the runtime's caller is not the host's root.
    pub fn is_rootless(&self) -> bool {
        self.owner.is_some()
    }

    /// A bundle with a busybox root and this specification.
    pub fn bundle(&self, spec: Spec) -> Bundle<'_> {
        Bundle::new(self, spec)
    }

    /// A container that sleeps, created and started.
    pub fn sleeper(&self) -> crate::Container<'_> {
        self.bundle(Spec::new().args(["sleep", "1000"])).start()
    }

    /// Runs the runtime with these arguments, nothing on its standard input.
    pub fn call<S: AsRef<OsStr>>(&self, args: &[S]) -> Outcome {
        self.call_in(&self.directory(), args)
    }

    /// The same from a working directory.
    pub fn call_in<S: AsRef<OsStr>>(&self, directory: &Path, args: &[S]) -> Outcome {
        let streams = self.directory();
        let mut command = Command::new(&self.runtime);
        command::run(command.args(args).current_dir(directory).stdin(Stdio::null()), &streams)
    }

    /// Runs a shell script of the host, in which `$RUNTIME` is the runtime.
    pub fn shell(&self, script: &str) -> Outcome {
        let streams = self.directory();
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]).env("RUNTIME", &self.runtime).current_dir(&streams);
        command::run(command.stdin(Stdio::null()), &streams)
    }

    /// Takes stock of the host in the middle of a test.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot::take(&self.runtime)
    }

    /// What differs from an earlier moment and does not go away.
    pub fn difference(&self, before: &Snapshot) -> Option<String> {
        before.difference_to(|| self.snapshot())
    }

    /// The same where something is expected to differ, which is not waited for as long.
    pub fn difference_soon(&self, before: &Snapshot) -> Option<String> {
        before.difference_within(Duration::from_secs(2), || self.snapshot())
    }

    /// Records that this test could not run, and why; the test then returns. `make test` counts these.
    pub fn skip(&self, reason: &str) {
        record_skip(&self.name, reason);
    }

    /// Records what a test has counted, for `make` to print when all have run.
    pub fn counted(&self, what: &str) {
        record(&format!("counted: {}: {what}\n", self.name));
    }

    /// Whether the runtime under test is ours; records a skipped test if not.
    pub fn needs_coracle(&self, what: &str) -> bool {
        if !self.is_coracle() {
            self.skip(&format!("only coracle has {what}"));
        }
        self.is_coracle()
    }

    /// Whether a program is installed; records a skipped test if not.
    pub fn needs_program(&self, program: &str) -> bool {
        let installed = command::is_installed(program);
        if !installed {
            self.skip(&format!("{program} is not installed"));
        }
        installed
    }
}
