//! The last steps: what the user's program must not have is given up, each as late as the kernel allows.

use std::path::PathBuf;

use coracle_isolator::SeccompProgram;
use coracle_sys::identity::{self, Capabilities};
use coracle_sys::landlock::Ruleset;
use coracle_sys::{Errno, seccomp};

use super::{landlock, program};
use crate::error::{Context, Error, Result};
use crate::handshake::Executing;
use crate::stages::plan::process::ProcessPlan;

/// Without `no_new_privs` the kernel takes a filter, and rules of Landlock, from a thread with this one only.
const SYS_ADMIN: u64 = 1 << 21;
const SETGID: u64 = 1 << 6;

/// Sets limits, user, groups, capabilities, rules of Landlock and system call filter; the user changes to the working
/// directory `cwd`, where root could not. The filter comes as late as it can: what follows it, it must allow.
pub(super) fn confine(
    plan: &ProcessPlan,
    cwd: Option<&PathBuf>,
    landlock: Option<&Ruleset>,
    word: &Executing,
) -> Result<()> {
    for (name, soft, hard) in &plan.rlimits {
        identity::set_limit(name, *soft, *hard).context(|| format!("setting /process/rlimits {name}"))?;
    }
    let sets = plan.capabilities;
    let needs_leave = plan.seccomp.is_some() || landlock.is_some();
    let lent = if needs_leave && !plan.no_new_privileges { SYS_ADMIN } else { 0 };
    let with_lent =
        Capabilities { effective: sets.effective | lent, permitted: sets.permitted | lent, ..sets };
    identity::limit_bounding(sets.bounding)?;
    become_user(plan, &with_lent).context(|| "becoming /process/user")?;
    identity::set_capabilities(&with_lent).context(|| "setting /process/capabilities")?;
    identity::raise_ambient(sets.ambient).context(|| "setting /process/capabilities/ambient")?;
    if let Some(cwd) = cwd {
        program::change_dir(cwd)?;
    }
    identity::set_umask(plan.umask);
    if plan.no_new_privileges {
        identity::no_new_privileges()?;
    }
    if let Some(rules) = landlock {
        rules.restrict_self().context(|| landlock::FIELD)?;
    }
    if let Some(filter) = &plan.seccomp {
        load(filter, word).context(|| "loading /linux/seccomp")?;
    }
    if with_lent != sets {
        identity::set_capabilities(&sets)
            .map_err(|e| Error::from(e).hint("without noNewPrivileges /linux/seccomp must allow capset"))
            .context(|| "setting /process/capabilities")?;
    }
    Ok(())
}

fn load(filter: &SeccompProgram, word: &Executing) -> Result<()> {
    if filter.flags & seccomp::NEW_LISTENER == 0 {
        seccomp::load(&filter.program, filter.flags)?;
        return Ok(());
    }
    let word = word.twin()?;
    Ok(seccomp::load_with_listener(&filter.program, filter.flags, move |fd| word.hand_over(fd))?)
}

/// Who may set groups, and still may not, is in a user namespace that lets nobody do so (user_namespaces(7), "setgroups"):
/// there the caller's own stay.
fn set_groups(groups: &[u32]) -> Result<()> {
    match identity::set_groups(groups) {
        Err(e) if e.errno() == Errno::EPERM && identity::capabilities()?.effective & SETGID != 0 => {
            let hint = "this user namespace lets nobody set groups: map ranges of groups (/etc/subgid)";
            let why = || format!("setting /process/user/additionalGids to {groups:?}");
            if groups.is_empty() { Ok(()) } else { Err(Error::from(e).hint(hint)).context(why) }
        }
        other => Ok(other?),
    }
}

/// Groups before users: afterwards the right to set them is gone. The permitted set is kept over the change and
/// narrowed right after it.
fn become_user(plan: &ProcessPlan, capabilities: &Capabilities) -> Result<()> {
    let keeps = plan.uid != 0 && *capabilities != Capabilities::default();
    if keeps {
        identity::keep_capabilities(true)?;
    }
    if let Some(groups) = &plan.groups {
        set_groups(groups)?;
    }
    identity::set_group(plan.gid)?;
    identity::set_user(plan.uid)?;
    Ok(())
}
