//! When and where the process runs (runtime-spec 1.3, config.md, "scheduler", "ioPriority" and "execCPUAffinity",
//! config-linux.md, "personality" and "memoryPolicy"), in the kernel's numbers.

use coracle_sys::scheduling::{Mask, Turns};
use oci_spec::runtime::{
    IOPriorityClass, Linux, LinuxMemoryPolicy, LinuxPersonality, LinuxPersonalityDomain, LinuxSchedulerFlag,
    LinuxSchedulerPolicy, MemoryPolicyFlagType, MemoryPolicyModeType, Process, Scheduler,
};

use crate::error::{Code, Error, Result};

/// When and where a process runs. What is `None` stays as the kernel has it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scheduling {
    /// How it gets its turns on a processor.
    pub turns: Option<Turns>,
    /// Class and level of its disk accesses.
    pub io_priority: Option<(u32, u32)>,
    /// The processors it may run on. Of processes that are executed in a container only.
    pub affinity: Affinity,
    /// Mode and nodes of its memory.
    pub memory_policy: Option<(i32, Mask)>,
    /// For which kind of system it takes its kernel.
    pub personality: Option<u32>,
}

/// On which processors a process runs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Affinity {
    /// Before it is in the container's cgroup.
    pub before_cgroup: Option<Mask>,
    /// From then on.
    pub in_cgroup: Option<Mask>,
}

impl Scheduling {
    /// What `process` and its container's `linux` ask for, but for the affinity of [`affinity`].
    ///
    /// # Errors
    /// `InvalidSpec` for what contradicts itself, `Unsupported` for what Linux doesn't have; both name the field.
    pub fn new(process: &Process, linux: Option<&Linux>) -> Result<Self> {
        let of = |linux: &Linux| {
            let policy = linux.memory_policy().as_ref().map(memory_policy).transpose()?;
            Ok::<_, Error>((policy, linux.personality().as_ref().map(personality).transpose()?))
        };
        let (memory_policy, personality) = linux.map(of).transpose()?.unwrap_or_default();
        Ok(Self {
            turns: process.scheduler().as_ref().map(turns).transpose()?,
            io_priority: io_priority(process)?,
            affinity: Affinity::default(),
            memory_policy,
            personality,
        })
    }
}

fn invalid(why: impl Into<String>) -> Error {
    Error::new(Code::InvalidSpec, why)
}

fn turns(asked: &Scheduler) -> Result<Turns> {
    use LinuxSchedulerPolicy as Policy;
    let policy = *asked.policy();
    let nice = asked.nice().unwrap_or(0);
    let priority = asked.priority().unwrap_or(0);
    let deadline =
        [*asked.runtime(), *asked.deadline(), *asked.period()].map(|nanoseconds| nanoseconds.unwrap_or(0));
    if !(-20..=19).contains(&nice) {
        return Err(invalid(format!("/process/scheduler/nice is {nice}")).hint("from -20 to 19"));
    }
    let real_time = matches!(policy, Policy::SchedFifo | Policy::SchedRr);
    if real_time != (1..=99).contains(&priority) && (real_time || priority != 0) {
        return Err(invalid(format!("/process/scheduler/priority is {priority} for policy {policy}"))
            .hint("from 1 to 99 for SCHED_FIFO and SCHED_RR, 0 for every other policy"));
    }
    let mut times = ["runtime", "deadline", "period"].into_iter().zip(deadline);
    if let Some((field, time)) = times.find(|(_, time)| policy != Policy::SchedDeadline && *time != 0) {
        return Err(invalid(format!("/process/scheduler/{field} is {time} for policy {policy}"))
            .hint("only SCHED_DEADLINE takes it"));
    }
    let flags = asked.flags().iter().flatten().fold(0, |flags, flag| flags | flag_bit(*flag));
    let [runtime, deadline, period] = deadline;
    let (policy, priority) = (policy_number(policy)?, priority.cast_unsigned());
    Ok(Turns { policy, flags, nice, priority, runtime, deadline, period })
}

fn policy_number(policy: LinuxSchedulerPolicy) -> Result<u32> {
    use LinuxSchedulerPolicy as Policy;
    let number = match policy {
        Policy::SchedOther => libc::SCHED_OTHER,
        Policy::SchedFifo => libc::SCHED_FIFO,
        Policy::SchedRr => libc::SCHED_RR,
        Policy::SchedBatch => libc::SCHED_BATCH,
        Policy::SchedIdle => libc::SCHED_IDLE,
        Policy::SchedDeadline => libc::SCHED_DEADLINE,
        Policy::SchedIso => {
            return Err(Error::new(Code::Unsupported, "/process/scheduler/policy is SCHED_ISO")
                .hint("Linux reserves its number and has no such policy"));
        }
    };
    Ok(number.cast_unsigned())
}

fn flag_bit(flag: LinuxSchedulerFlag) -> u64 {
    use LinuxSchedulerFlag as Flag;
    let bit = match flag {
        Flag::SchedResetOnFork => libc::SCHED_FLAG_RESET_ON_FORK,
        Flag::SchedFlagReclaim => libc::SCHED_FLAG_RECLAIM,
        Flag::SchedFlagDLOverrun => libc::SCHED_FLAG_DL_OVERRUN,
        Flag::SchedFlagKeepPolicy => libc::SCHED_FLAG_KEEP_POLICY,
        Flag::SchedFlagKeepParams => libc::SCHED_FLAG_KEEP_PARAMS,
        Flag::SchedFlagUtilClampMin => libc::SCHED_FLAG_UTIL_CLAMP_MIN,
        Flag::SchedFlagUtilClampMax => libc::SCHED_FLAG_UTIL_CLAMP_MAX,
    };
    u64::from(bit.cast_unsigned())
}

fn io_priority(process: &Process) -> Result<Option<(u32, u32)>> {
    let Some(asked) = process.io_priority() else { return Ok(None) };
    let class = match asked.class() {
        IOPriorityClass::IoprioClassRt => 1,
        IOPriorityClass::IoprioClassBe => 2,
        IOPriorityClass::IoprioClassIdle => 3,
    };
    let level = u32::try_from(asked.priority()).ok().filter(|level| *level < 8);
    let level = level.ok_or_else(|| {
        invalid(format!("/process/ioPriority/priority is {}", asked.priority())).hint("from 0 to 7")
    })?;
    Ok(Some((class, level)))
}

/// The processors that a process which is executed in a container may run on.
///
/// # Errors
/// `InvalidSpec` for what is no list of processors.
pub fn affinity(process: &Process) -> Result<Affinity> {
    let Some(asked) = process.exec_cpu_affinity() else { return Ok(Affinity::default()) };
    let mask = |text: &Option<String>, field: &str| match text.as_deref() {
        None | Some("") => Ok(None),
        Some(text) => list(text, &format!("/process/execCPUAffinity/{field}")).map(Some),
    };
    Ok(Affinity {
        before_cgroup: mask(asked.initial(), "initial")?,
        in_cgroup: mask(asked.cpu_affinity_final(), "final")?,
    })
}

fn memory_policy(asked: &LinuxMemoryPolicy) -> Result<(i32, Mask)> {
    let nodes = list(asked.nodes().as_deref().unwrap_or_default(), "/linux/memoryPolicy/nodes")?;
    let mode = asked.mode();
    let (number, takes_nodes, needs_nodes) = mode_number(mode);
    if (!takes_nodes && !nodes.is_empty()) || (needs_nodes && nodes.is_empty()) {
        let takes = if takes_nodes { "needs some" } else { "takes none" };
        let nodes = asked.nodes().as_deref().unwrap_or_default();
        return Err(invalid(format!("/linux/memoryPolicy/nodes is {nodes:?}, and {mode} {takes}")));
    }
    let flags = asked.flags().iter().flatten().fold(0, |flags, flag| flags | memory_flag(*flag));
    if flags & libc::MPOL_F_STATIC_NODES != 0 && flags & libc::MPOL_F_RELATIVE_NODES != 0 {
        return Err(invalid(
            "/linux/memoryPolicy/flags: MPOL_F_STATIC_NODES and MPOL_F_RELATIVE_NODES exclude each other",
        ));
    }
    Ok((number | flags, nodes))
}

/// The number of a mode, whether it may have nodes, and whether it must.
fn mode_number(mode: MemoryPolicyModeType) -> (i32, bool, bool) {
    use MemoryPolicyModeType as Mode;
    // The C library's headers end before these.
    const PREFERRED_MANY: i32 = 5;
    const WEIGHTED_INTERLEAVE: i32 = 6;
    match mode {
        Mode::MpolDefault => (libc::MPOL_DEFAULT, false, false),
        Mode::MpolLocal => (libc::MPOL_LOCAL, false, false),
        Mode::MpolPreferred => (libc::MPOL_PREFERRED, true, false),
        Mode::MpolBind => (libc::MPOL_BIND, true, true),
        Mode::MpolInterleave => (libc::MPOL_INTERLEAVE, true, true),
        Mode::MpolPreferredMany => (PREFERRED_MANY, true, true),
        Mode::MpolWeightedInterleave => (WEIGHTED_INTERLEAVE, true, true),
    }
}

fn memory_flag(flag: MemoryPolicyFlagType) -> i32 {
    match flag {
        MemoryPolicyFlagType::MpolFNumaBalancing => libc::MPOL_F_NUMA_BALANCING,
        MemoryPolicyFlagType::MpolFRelativeNodes => libc::MPOL_F_RELATIVE_NODES,
        MemoryPolicyFlagType::MpolFStaticNodes => libc::MPOL_F_STATIC_NODES,
    }
}

fn personality(asked: &LinuxPersonality) -> Result<u32> {
    if let Some(flag) = asked.flags().iter().flatten().next() {
        return Err(Error::new(Code::Unsupported, format!("/linux/personality/flags/0 is {flag:?}"))
            .hint("the specification defines no flag yet; leave them out"));
    }
    Ok(match asked.domain() {
        LinuxPersonalityDomain::PerLinux => 0,
        LinuxPersonalityDomain::PerLinux32 => 8,
    })
}

/// The numbers of a list as cpuset(7) writes them: `0-3,7`. An empty text is an empty list.
fn list(text: &str, field: &str) -> Result<Mask> {
    let malformed =
        || invalid(format!("{field} is {text:?}")).hint(format!("a list like 0-3,7 of numbers below {MOST}"));
    let mut mask = Mask::default();
    for part in text.split(',').map(str::trim).filter(|_| !text.trim().is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number = |digits: &str| digits.parse::<usize>().ok().filter(|n| *n < MOST);
        let (first, last) = number(first).zip(number(last)).ok_or_else(malformed)?;
        if first > last {
            return Err(malformed());
        }
        (first..=last).for_each(|number| mask.insert(number));
    }
    Ok(mask)
}

/// Above the number of processors and nodes of any kernel.
const MOST: usize = 1 << 16;

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn planned(process: &Value, linux: Value) -> Result<Scheduling> {
        let mut whole = json!({"user": {"uid": 0, "gid": 0}, "cwd": "/", "args": ["true"]});
        whole.as_object_mut().unwrap().extend(process.as_object().unwrap().clone());
        let process = serde_json::from_value(whole).unwrap();
        Scheduling::new(&process, Some(&serde_json::from_value(linux).unwrap()))
    }

    #[test]
    fn a_deadline_keeps_its_three_times_and_its_flags() {
        let scheduler = json!({
            "policy": "SCHED_DEADLINE", "runtime": 1, "deadline": 2, "period": 3,
            "flags": ["SCHED_FLAG_RECLAIM", "SCHED_RESET_ON_FORK"],
        });
        let turns = planned(&json!({ "scheduler": scheduler }), json!({})).unwrap().turns.unwrap();
        let wanted = Turns { policy: 6, flags: 3, runtime: 1, deadline: 2, period: 3, ..Turns::default() };
        assert_eq!(turns, wanted);
    }

    #[test]
    fn what_is_not_asked_for_stays_as_it_is() {
        assert_eq!(planned(&json!({}), json!({})).unwrap(), Scheduling::default());
    }

    #[test]
    fn a_memory_policy_is_its_mode_and_flags_and_nodes() {
        let policy = json!({"mode": "MPOL_INTERLEAVE", "nodes": "0-1,65", "flags": ["MPOL_F_STATIC_NODES"]});
        let planned = planned(&json!({}), json!({ "memoryPolicy": policy })).unwrap();
        let (mode, nodes) = planned.memory_policy.unwrap();
        assert_eq!((mode, nodes.numbers().collect::<Vec<_>>()), (3 | 1 << 15, vec![0, 1, 65]));
    }
}
