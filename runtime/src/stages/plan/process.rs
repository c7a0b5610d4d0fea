//! What the container's process is: its words, its identity, its limits.

use std::path::PathBuf;

use coracle_isolator::{Landlock, SeccompProgram};
use coracle_isolator_host::Adjusted;
use coracle_sys::identity::Capabilities;
use oci_spec::runtime::Spec;
use serde::Serialize;

use super::scheduling::Scheduling;
use crate::error::{Code, Error, Result};

/// A process, as the child becomes it.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ProcessPlan {
    /// The program and its arguments.
    pub args: Vec<String>,
    /// Its environment.
    pub env: Vec<String>,
    /// Its working directory.
    pub cwd: PathBuf,
    /// Its user.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Its supplementary groups, and no others; `None` where it keeps those of the runtime's caller.
    pub groups: Option<Vec<u32>>,
    /// Its mask for new files' permission bits.
    pub umask: u32,
    /// Its resource limits: name, soft, hard.
    pub rlimits: Vec<(String, u64, u64)>,
    /// How likely the kernel is to kill it for memory.
    pub oom_score_adj: Option<i32>,
    /// Whether execve(2) can't give it privileges.
    pub no_new_privileges: bool,
    /// Whether it gets a terminal.
    pub terminal: bool,
    /// The terminal's rows and columns.
    pub console_size: Option<(u16, u16)>,
    /// When and where it runs.
    #[serde(skip)]
    pub scheduling: Scheduling,
    /// The AppArmor profile that confines it.
    pub apparmor_profile: Option<String>,
    /// The SELinux label that it runs under.
    pub selinux_label: Option<String>,
    /// Its capabilities.
    #[serde(skip)]
    pub capabilities: Capabilities,
    /// Its system call filter.
    #[serde(skip)]
    pub seccomp: Option<SeccompProgram>,
    /// What it may no longer do to files, ports and other processes.
    pub landlock: Option<Landlock>,
}

/// The umask of a process whose configuration names none: what runc's and crun's users have.
const UMASK: u32 = 0o022;

/// The annotation by which podman's `--group-add keep-groups` asks for the groups of who calls the runtime, as crun knows
/// it.
pub(super) const KEEP_GROUPS: &str = "run.oci.keep_original_groups";

pub(super) fn keeps_groups(spec: &Spec) -> bool {
    let annotation = spec.annotations().as_ref().and_then(|all| all.get(KEEP_GROUPS));
    annotation.is_some_and(|value| value != "0")
}

/// Each variable once, with the value that it is given last.
fn last_of_each(env: &[String]) -> Vec<String> {
    let mut seen = std::collections::HashSet::new();
    let name = |variable: &str| variable.split_once('=').map_or(variable.len(), |(name, _)| name.len());
    let mut kept: Vec<String> =
        env.iter().rev().filter(|variable| seen.insert(&variable[..name(variable)])).cloned().collect();
    kept.reverse();
    kept
}

impl ProcessPlan {
    /// The plan of the process of `spec`, without what isolators decide.
    ///
    /// # Errors
    /// `InvalidSpec`, `Unsupported`.
    pub fn new(spec: &Spec) -> Result<Self> {
        let process = spec.process().as_ref();
        let process = process.ok_or_else(|| Error::new(Code::InvalidSpec, "/process is missing"))?;
        let user = process.user();
        let cell = |n: u64| u16::try_from(n).unwrap_or(u16::MAX);
        let limit = |l: &oci_spec::runtime::PosixRlimit| (l.typ().to_string(), l.soft(), l.hard());
        Ok(Self {
            args: process.args().clone().unwrap_or_default(),
            env: last_of_each(process.env().as_deref().unwrap_or_default()),
            cwd: process.cwd().clone(),
            uid: user.uid(),
            gid: user.gid(),
            groups: (!keeps_groups(spec)).then(|| user.additional_gids().clone().unwrap_or_default()),
            umask: user.umask().unwrap_or(UMASK),
            rlimits: process.rlimits().iter().flatten().map(limit).collect(),
            oom_score_adj: process.oom_score_adj(),
            no_new_privileges: process.no_new_privileges().unwrap_or(false),
            terminal: process.terminal().unwrap_or(false),
            console_size: process.console_size().map(|b| (cell(b.height()), cell(b.width()))),
            scheduling: Scheduling::new(process, spec.linux().as_ref())?,
            apparmor_profile: process.apparmor_profile().clone().filter(|profile| !profile.is_empty()),
            selinux_label: process.selinux_label().clone().filter(|label| !label.is_empty()),
            capabilities: Capabilities::default(),
            seccomp: None,
            landlock: None,
        })
    }

    /// Whether a security module confines it under a label of its own.
    pub fn is_labelled(&self) -> bool {
        self.apparmor_profile.is_some() || self.selinux_label.is_some()
    }

    /// Takes over what the isolators decided.
    pub fn adjust(&mut self, adjusted: &mut Adjusted) {
        let sets = adjusted.capabilities;
        self.capabilities = Capabilities {
            bounding: sets.bounding,
            effective: sets.effective,
            permitted: sets.permitted,
            inheritable: sets.inheritable,
            ambient: sets.ambient,
        };
        self.seccomp = adjusted.seccomp.take();
        self.landlock = adjusted.landlock.take();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_value_of_a_variable_counts() {
        let env = ["A=1", "B=2", "A=", "AB=3", "A=4=5"].map(str::to_owned);
        assert_eq!(last_of_each(&env), ["B=2", "AB=3", "A=4=5"]);
    }
}
