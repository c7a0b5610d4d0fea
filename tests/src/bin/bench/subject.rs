//! What is measured: a runtime with a bundle of its own, or the bare C program.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use coracle_fixtures::busybox;
use coracle_fixtures::spec::{Spec, docker_like_seccomp};

/// The directory of states of all subjects, beside theirs.
pub(crate) const STATES: &str = "states";

/// One program under measurement.
pub(crate) struct Subject {
    pub(crate) name: String,
    program: PathBuf,
    directory: PathBuf,
    bare: bool,
    /// The directory of its configuration, where it has one.
    config: Option<PathBuf>,
    count: AtomicUsize,
}

/// The bundles of a subject.
#[derive(Clone, Copy)]
pub(crate) enum Bundle {
    /// `true` without a filter of system calls.
    Plain,
    /// `true` with a profile like Docker's.
    Seccomp,
    /// `sleep`, to execute in.
    Sleeper,
}

impl Bundle {
    fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Seccomp => "seccomp",
            Self::Sleeper => "sleeper",
        }
    }

    /// Six namespaces and limits on memory, CPU and processes.
    fn spec(self) -> Spec {
        let spec = Spec::new().memory(64 << 20).cpu(1000).pids(64);
        match self {
            Self::Plain => spec,
            Self::Seccomp => spec.set("/linux/seccomp", docker_like_seccomp()),
            Self::Sleeper => spec.args(["sleep", "100000"]),
        }
    }
}

impl Subject {
    /// A runtime with the command line of runc; its bundles and its state are below `directory`.
    pub(crate) fn runtime(name: &str, program: PathBuf, directory: &Path) -> Result<Self, String> {
        let directory = directory.join(name);
        for bundle in [Bundle::Plain, Bundle::Seccomp, Bundle::Sleeper] {
            let path = directory.join(bundle.name());
            busybox::write(&path.join("rootfs"));
            fs::write(path.join("config.json"), bundle.spec().json().to_string())
                .map_err(|error| format!("write the bundle of {name}: {error}"))?;
        }
        Ok(Self {
            name: name.to_owned(),
            program,
            directory,
            bare: false,
            config: None,
            count: AtomicUsize::new(0),
        })
    }

    /// The same, configured by `config.toml` in the directory `config`.
    pub(crate) fn configured(self, config: &Path) -> Self {
        Self { config: Some(config.to_owned()), ..self }
    }

    /// The bare C program.
    pub(crate) fn bare(program: PathBuf, directory: &Path) -> Self {
        let directory = directory.join("bare-root");
        busybox::write(&directory.join("rootfs"));
        Self {
            name: "bare C".to_owned(),
            program,
            directory,
            bare: true,
            config: None,
            count: AtomicUsize::new(0),
        }
    }

    /// A name that no other container of this sitting has.
    pub(crate) fn id(&self) -> String {
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        format!("bench-{}-{}-{count}", self.name.replace(' ', "-"), std::process::id())
    }

    /// The command that runs `true` once.
    pub(crate) fn run(&self, bundle: Bundle) -> Command {
        if self.bare {
            let mut command = Command::new(&self.program);
            command.arg(self.directory.join("rootfs")).arg(self.id());
            return command;
        }
        let mut command = self.verb("run");
        command.arg("--bundle").arg(self.directory.join(bundle.name())).arg(self.id());
        command
    }

    /// `create` of a container.
    pub(crate) fn create(&self, bundle: Bundle, id: &str) -> Command {
        let mut command = self.verb("create");
        command.arg("--bundle").arg(self.directory.join(bundle.name())).arg(id);
        command
    }

    /// A verb whose last argument is an ID.
    pub(crate) fn on(&self, verb: &str, id: &str) -> Command {
        let mut command = self.verb(verb);
        command.arg(id);
        command
    }

    /// `delete --force`.
    pub(crate) fn delete(&self, id: &str) -> Command {
        let mut command = self.verb("delete");
        command.args(["--force", id]);
        command
    }

    /// `exec` of `true`.
    pub(crate) fn exec(&self, id: &str) -> Command {
        let mut command = self.on("exec", id);
        command.arg("true");
        command
    }

    /// A verb without an ID.
    pub(crate) fn verb(&self, verb: &str) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--root").arg(self.directory.with_file_name(STATES).join(&self.name));
        command.args(self.config.iter().flat_map(|config| [OsStr::new("--config"), config.as_os_str()]));
        command.arg(verb);
        command
    }
}
