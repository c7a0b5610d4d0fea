//! Where the process runs, as far as only it can say so of itself. Its turns on a processor and at the disk are set
//! by the runtime, which may what a user namespace's root may not.

use coracle_sys::scheduling::{self, Mask};

use crate::error::{Context, Result};
use crate::stages::plan::scheduling::Scheduling;

/// Sets processors, memory nodes and personality. The cgroups stand around the process by now: their cpuset has the
/// last word on the first two.
pub(super) fn settle(plan: &Scheduling) -> Result<()> {
    match (&plan.affinity.in_cgroup, &plan.affinity.before_cgroup) {
        (Some(processors), _) => {
            scheduling::set_affinity(processors).context(|| "setting /process/execCPUAffinity/final")?;
        }
        (None, Some(_)) => {}
        // To what processors the caller keeps is no business of the container. Refused to one that runs by deadline.
        (None, None) => drop(scheduling::set_affinity(&Mask::all())),
    }
    if let Some((mode, nodes)) = &plan.memory_policy {
        scheduling::set_memory_policy(*mode, nodes).context(|| "setting /linux/memoryPolicy")?;
    }
    if let Some(domain) = plan.personality {
        scheduling::set_personality(domain).context(|| "setting /linux/personality")?;
    }
    Ok(())
}
