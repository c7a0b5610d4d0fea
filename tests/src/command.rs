//! Running a program to its end and looking at what it said.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// How long any one command may take, where the machine is quick.
const LIMIT: Duration = Duration::from_secs(60);

/// How much longer everything may take on this machine than on a quick one: `CORACLE_PATIENCE`, once where it is not set.
pub fn patience() -> u32 {
    std::env::var("CORACLE_PATIENCE").ok().and_then(|times| times.parse().ok()).unwrap_or(1)
}

/// How a command ended and what it wrote.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The exit code, or 128 and the signal that ended it.
    pub code: i32,
    /// What it wrote to its standard output.
    pub stdout: Vec<u8>,
    /// What it wrote to its standard error, as text.
    pub stderr: String,
}

impl Outcome {
    /// The standard output as text, less white space at its end.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim_end().to_owned()
    }

    /// The lines of the standard output.
    pub fn lines(&self) -> Vec<String> {
        self.text().lines().map(str::to_owned).collect()
    }

    /// The standard output as a JSON document.
    ///
    /// # Panics
    /// When it is none.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.stdout).unwrap_or_else(|error| panic!("not JSON ({error}): {self:?}"))
    }

    /// Asserts an exit code.
    ///
    /// # Panics
    /// When it is another.
    #[track_caller]
    pub fn exits(self, code: i32) -> Self {
        assert!(self.code == code, "expected exit code {code}, got {}\n{}", self.code, self.told());
        self
    }

    /// Asserts success and nothing on standard error.
    ///
    /// # Panics
    /// When it failed.
    #[track_caller]
    pub fn succeeds(self) -> Self {
        self.exits(0)
    }

    /// Asserts a failure whose message is one line that holds all of `words`, in any letter case.
    ///
    /// # Panics
    /// When it succeeded, or said something else, or more.
    #[track_caller]
    pub fn fails_with(self, words: &[&str]) -> Self {
        assert!(self.code != 0, "expected a failure with {words:?}, got success\n{}", self.told());
        let message = self.stderr.trim_end();
        assert!(message.lines().count() <= 1 || !is_ours(message), "more than one line: {message}");
        assert!(!message.is_empty(), "a failure (exit code {}) without a word", self.code);
        for word in words {
            let found = message.to_lowercase().contains(&word.to_lowercase());
            assert!(found, "expected {word:?} in the message\n{}", self.told());
        }
        self
    }

    fn told(&self) -> String {
        format!("stdout: {}\nstderr: {}", self.text(), self.stderr.trim_end())
    }
}

/// Other runtimes log as many lines as they like; ours says one.
fn is_ours(message: &str) -> bool {
    message.starts_with("coracle")
}

/// The exit code as a shell gives it: 128 and the signal for a process that a signal ended.
pub fn code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

/// Waits for a child, at most a minute, times [`patience`].
///
/// # Panics
/// When it takes longer; it is killed then.
pub fn wait(child: &mut Child, what: &str) -> ExitStatus {
    let limit = LIMIT * patience();
    let end = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait().expect("wait for a child") {
            return status;
        }
        if Instant::now() > end {
            let _ = child.kill();
            panic!("{what} did not end within {} seconds", limit.as_secs());
        }
        thread::sleep(Duration::from_millis(2));
    }
}

/// Runs a command with its streams in files below `directory`, so that what outlives it (a container) keeps no
/// reader waiting.
///
/// # Panics
/// When it can't be started.
pub fn run(command: &mut Command, directory: &Path) -> Outcome {
    let (stdout, stderr) = (directory.join("stdout"), directory.join("stderr"));
    let file = |path: &Path| File::create(path).expect("make a file for a stream");
    command.stdout(file(&stdout)).stderr(file(&stderr));
    let what = format!("{command:?}");
    let mut child = command.spawn().unwrap_or_else(|error| panic!("start {what}: {error}"));
    let status = wait(&mut child, &what);
    let read = |path: &Path| fs::read(path).expect("read a stream's file");
    Outcome {
        code: code(status),
        stdout: read(&stdout),
        stderr: String::from_utf8_lossy(&read(&stderr)).into_owned(),
    }
}

/// Runs a tool of the host that must succeed, and gives its standard output.
///
/// # Panics
/// When it fails.
pub fn tool<S: AsRef<OsStr>>(program: &str, args: &[S]) -> String {
    let output = Command::new(program).args(args).stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|error| panic!("start {program}: {error}"));
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} failed: {told}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Compiles `source`, a C program of `fixtures/`, to the static program `to`.
///
/// # Panics
/// When the compiler fails.
pub fn compile(source: &str, to: &Path) {
    let source = crate::host::repository().join("fixtures").join(source);
    tool("gcc", &["-O2".as_ref(), "-static".as_ref(), "-o".as_ref(), to.as_os_str(), source.as_os_str()]);
}

/// Whether a program is installed.
pub fn is_installed(program: &str) -> bool {
    installed(program).is_some()
}

/// Where a program is installed, by its name or its path.
pub fn installed(program: impl AsRef<Path>) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|directory| directory.join(&program)).find(|file| file.is_file())
}

/// How much of a second, in hundredths, `server` computes while it can't have another descriptor and a caller, whom `call` makes, waits for it.
///
/// # Panics
/// Where it is gone.
pub fn busy_without_descriptors<T>(server: &Child, call: impl FnOnce() -> T) -> u64 {
    let pid = server.id();
    let limit = |most: usize| {
        tool("prlimit", &["--pid", &pid.to_string(), &format!("--nofile={most}:")]);
    };
    let is_free = |number: &usize| fs::symlink_metadata(format!("/proc/{pid}/fd/{number}")).is_err();
    let computed = || -> u64 {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("the server lives");
        let fields = stat.rsplit(')').next().unwrap_or_default().split(' ').skip(12).take(2);
        fields.map(|ticks| ticks.parse::<u64>().expect("ticks are a number")).sum()
    };
    limit((0..).find(is_free).expect("a number is free"));
    let (caller, before) = (call(), computed());
    thread::sleep(Duration::from_secs(1));
    let busy = computed() - before;
    drop(caller);
    limit(1024);
    busy
}

/// Waits until `what` holds, at most thirty seconds, times [`patience`].
///
/// # Panics
/// When it does not come true.
#[track_caller]
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let seconds = 30 * patience();
    let end = Instant::now() + Duration::from_secs(seconds.into());
    while !holds() {
        assert!(Instant::now() < end, "did not come true within {seconds} seconds: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}
