//! What the caller of a container says beside the image.

use std::collections::BTreeMap;
use std::path::PathBuf;

/// The network of the container.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Network {
    /// A network namespace of its own, with nothing but the loopback interface; and with what an annotation asks for.
    #[default]
    None,
    /// The host's, with its `/etc/hosts` and `/etc/resolv.conf`.
    Host,
}

/// Which system calls the container may make.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Seccomp {
    /// The built-in list.
    #[default]
    Default,
    /// All.
    Unconfined,
    /// What this file says, in the format of Docker's profiles or of the runtime spec.
    File(PathBuf),
}

/// What the caller of a container says beside the image; the default is what the image says.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The command: replaces the image's `Cmd`, and is given to its `Entrypoint`.
    pub args: Vec<String>,
    /// Replaces the image's `Entrypoint`, and drops its `Cmd`.
    pub entrypoint: Option<Vec<String>>,
    /// `NAME=value`, over the image's; `NAME` alone takes the caller's value, if it has one.
    pub env: Vec<String>,
    /// `user[:group]`, by name or number, instead of the image's.
    pub user: Option<String>,
    /// The absolute path of the working directory, instead of the image's.
    pub working_dir: Option<String>,
    /// The host name; [`make`](super::make) takes the container's ID where there is none.
    pub hostname: Option<String>,
    /// Whether the process gets a terminal.
    pub terminal: bool,
    /// Whether the root file system is read-only.
    pub read_only: bool,
    /// Whether the file system of the store has to be one that keeps what is written over the image to a limit (project
    /// quotas of ext4 and XFS).
    pub needs_quotas: bool,
    /// The network.
    pub network: Network,
    /// Which system calls the container may make.
    pub seccomp: Seccomp,
    /// `source:destination[:option,…]` with absolute paths.
    pub volumes: Vec<String>,
    /// `destination[:option,…]`, as `/tmp:size=64m`.
    pub tmpfs: Vec<String>,
    /// Annotations, by name.
    pub annotations: BTreeMap<String, String>,
    /// Capabilities over the default ones, with or without `CAP_`; `ALL` is all.
    pub cap_add: Vec<String>,
    /// Capabilities to take from the default ones; `ALL` is all.
    pub cap_drop: Vec<String>,
    /// The memory limit in bytes.
    pub memory: Option<i64>,
    /// The limit of processor time, in processors.
    pub cpus: Option<f64>,
    /// The weight of processor time beside other containers: cgroup v1's shares, 1024 being usual.
    pub cpu_shares: Option<u64>,
    /// The most processes and threads.
    pub pids: Option<i64>,
}

impl Options {
    /// The same, named after the container's ID where it has no host name.
    pub(crate) fn for_id(&self, id: &str) -> Self {
        let mut options = self.clone();
        options.hostname.get_or_insert_with(|| host_name(id));
        options
    }
}

/// The host name of who is named `name` and has none of its own: as much of it as a host name holds (63 characters;
/// a label of the DNS, and less than the 64 of sethostname(2)).
#[must_use]
pub fn host_name(name: &str) -> String {
    name.chars().take(63).collect()
}
