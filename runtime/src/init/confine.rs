//! The last steps: what the user's program must not have is given up, each as late as the kernel allows.

use coracle_sys::identity::{self, Capabilities};
use coracle_sys::seccomp;

use crate::error::{Context, Result};
use crate::stages::plan::process::ProcessPlan;

/// Sets limits, capabilities, user, groups and system call filter.
pub(super) fn confine(plan: &ProcessPlan) -> Result<()> {
    for (name, soft, hard) in &plan.rlimits {
        identity::set_limit(name, *soft, *hard).context(|| format!("setting process.rlimits {name}"))?;
    }
    if !plan.no_new_privileges {
        // Without no_new_privs the kernel takes a filter from a capable thread only, so before the drop.
        load_filter(plan)?;
    }
    let sets = plan.capabilities;
    identity::limit_bounding(sets.bounding)?;
    become_user(plan).context(|| "becoming process.user")?;
    identity::set_capabilities(&sets).context(|| "setting process.capabilities")?;
    identity::raise_ambient(sets.ambient).context(|| "setting process.capabilities.ambient")?;
    identity::set_umask(plan.umask);
    if plan.no_new_privileges {
        identity::no_new_privileges()?;
        load_filter(plan)?;
    }
    Ok(())
}

fn load_filter(plan: &ProcessPlan) -> Result<()> {
    match &plan.seccomp {
        Some(filter) => seccomp::load(&filter.program, filter.flags).context(|| "loading linux.seccomp"),
        None => Ok(()),
    }
}

/// Groups before users: afterwards the right to set them is gone. The permitted set is kept over the change and
/// narrowed right after it.
fn become_user(plan: &ProcessPlan) -> Result<()> {
    let keeps = plan.uid != 0 && plan.capabilities != Capabilities::default();
    if keeps {
        identity::keep_capabilities(true)?;
    }
    identity::set_groups(&plan.groups)?;
    identity::set_group(plan.gid)?;
    identity::set_user(plan.uid)?;
    Ok(())
}
