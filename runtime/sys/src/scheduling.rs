//! When and where a process runs: its turns, its processors, its disk accesses, its memory's nodes.

use std::ptr;

use crate::error::{Result, check, named};

/// A set of numbers, as the kernel takes processors and memory nodes: bit `n % 64` of word `n / 64`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mask(Vec<u64>);

impl Mask {
    /// Adds `number`.
    pub fn insert(&mut self, number: usize) {
        let word = number / 64;
        if self.0.len() <= word {
            self.0.resize(word + 1, 0);
        }
        self.0[word] |= 1 << (number % 64);
    }

    /// Every number that a kernel may be built to know (`NR_CPUS` of x86 is at most 8192).
    pub fn all() -> Self {
        Self(vec![u64::MAX; 8192 / 64])
    }

    /// As one hexadecimal number.
    pub fn to_hex(&self) -> String {
        let digits: String = self.0.iter().rev().map(|word| format!("{word:016x}")).collect();
        let digits = digits.trim_start_matches('0');
        format!("0x{}", if digits.is_empty() { "0" } else { digits })
    }

    /// Whether no number is in it.
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }

    /// The numbers in it, ascending.
    pub fn numbers(&self) -> impl Iterator<Item = usize> {
        let has = |(word, bits): (usize, &u64)| {
            let bits = *bits;
            (0..64).filter(move |bit| bits & (1 << bit) != 0).map(move |bit| word * 64 + bit)
        };
        self.0.iter().enumerate().flat_map(has)
    }

    fn show(&self) -> String {
        let numbers: Vec<String> = self.numbers().map(|n| n.to_string()).collect();
        format!("{{{}}}", numbers.join(","))
    }
}

/// How a thread gets its turns on a processor (sched(7)).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Turns {
    /// `SCHED_*`.
    pub policy: u32,
    /// `SCHED_FLAG_*`.
    pub flags: u64,
    /// The nice value, for `SCHED_OTHER` and `SCHED_BATCH`.
    pub nice: i32,
    /// The priority, for `SCHED_FIFO` and `SCHED_RR`.
    pub priority: u32,
    /// For `SCHED_DEADLINE`: nanoseconds of processor time a period.
    pub runtime: u64,
    /// For `SCHED_DEADLINE`: nanoseconds from a period's start by which they are had.
    pub deadline: u64,
    /// For `SCHED_DEADLINE`: the period in nanoseconds, 0 for that of the deadline.
    pub period: u64,
}

/// Sets how the thread `pid` gets its turns (sched_setattr(2), Linux 3.14).
///
/// # Errors
/// `EPERM` without `CAP_SYS_NICE`, or in a version 1 cgroup without real-time budget; `EINVAL` for a policy or
/// flag that the kernel doesn't know; `EBUSY` where a deadline can't be promised.
pub fn set_turns(pid: i32, turns: &Turns) -> Result<()> {
    let mut attr = libc::sched_attr {
        size: 0,
        sched_policy: turns.policy,
        sched_flags: turns.flags,
        sched_nice: turns.nice,
        sched_priority: turns.priority,
        sched_runtime: turns.runtime,
        sched_deadline: turns.deadline,
        sched_period: turns.period,
    };
    attr.size = u32::try_from(size_of_val(&attr)).unwrap_or_default();
    // SAFETY: the structure tells its own size and outlives the call, which only reads it.
    let ret = unsafe { libc::syscall(libc::SYS_sched_setattr, pid, &raw const attr, 0) };
    let call = || {
        let Turns { policy, flags, nice, priority, runtime, deadline, period } = turns;
        format!(
            "sched_setattr({pid}, {policy}, {flags:#x}, {nice}, {priority}, {runtime}/{deadline}/{period})"
        )
    };
    check(ret, call).map(drop)
}

/// Sets the priority `level` (0 to 7, 0 first) in class `class` (`IOPRIO_CLASS_*`) of the disk accesses of thread
/// `pid` (ioprio_set(2)).
///
/// # Errors
/// `EPERM` for the real-time class without `CAP_SYS_NICE` or `CAP_SYS_ADMIN`, `EINVAL`.
pub fn set_io_priority(pid: i32, class: u32, level: u32) -> Result<()> {
    const WHO_PROCESS: i32 = 1;
    const CLASS_SHIFT: u32 = 13;
    // SAFETY: the call takes no pointers.
    let ret =
        unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, pid, (class << CLASS_SHIFT) | level) };
    check(ret, || format!("ioprio_set({pid}, {class}, {level})")).map(drop)
}

/// Sets the processors on which the calling thread may run (sched_setaffinity(2)).
///
/// # Errors
/// `EINVAL` where none of them is online and allowed by the thread's cpuset.
pub fn set_affinity(processors: &Mask) -> Result<()> {
    let words = &processors.0;
    // SAFETY: pointer and length in bytes are those of one live slice, which the kernel only reads.
    let ret =
        unsafe { libc::syscall(libc::SYS_sched_setaffinity, 0, size_of_val(&words[..]), words.as_ptr()) };
    check(ret, || format!("sched_setaffinity(0, {})", processors.show())).map(drop)
}

/// Sets from which nodes the calling thread gets its memory: `mode` is `MPOL_*` with `MPOL_F_*` flags
/// (set_mempolicy(2)).
///
/// # Errors
/// `EINVAL` where mode, flags and nodes contradict each other, or no node is online and allowed by the thread's
/// cpuset.
pub fn set_memory_policy(mode: i32, nodes: &Mask) -> Result<()> {
    let words = &nodes.0;
    let (mask, bits) = match nodes.is_empty() {
        true => (ptr::null(), 0),
        // The kernel takes one bit less than it is told.
        false => (words.as_ptr(), words.len() * 64 + 1),
    };
    // SAFETY: the mask is null, or has as many bits as the kernel reads, which is one less than `bits`.
    let ret = unsafe { libc::syscall(libc::SYS_set_mempolicy, mode, mask, bits) };
    check(ret, || format!("set_mempolicy({mode:#x}, {})", nodes.show())).map(drop)
}

/// Sets for which kind of system the calling process takes its kernel (personality(2)).
///
/// # Errors
/// `EINVAL` where the kernel can't be that.
pub fn set_personality(domain: u32) -> Result<()> {
    use nix::sys::personality::{Persona, set};
    let persona = Persona::from_bits_retain(domain.cast_signed());
    named(set(persona), || format!("personality({domain:#x})")).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_holds_its_numbers_beyond_one_word() {
        let mut mask = Mask::default();
        for number in [1030, 0, 63, 64] {
            mask.insert(number);
        }
        assert_eq!(mask.numbers().collect::<Vec<_>>(), [0, 63, 64, 1030]);
        assert_eq!(mask.show(), "{0,63,64,1030}");
        assert_eq!(mask.to_hex(), format!("0x40{:0239}1{:016x}", 0, (1_u64 << 63) | 1));
        assert_eq!(Mask::default().to_hex(), "0x0");
        assert!(!mask.is_empty() && Mask::default().is_empty());
    }

    #[test]
    fn every_processor_is_a_choice() {
        set_affinity(&Mask::all()).unwrap();
    }

    #[test]
    fn processors_beyond_the_last_are_no_choice() {
        let mut beyond = Mask::default();
        beyond.insert(100_000);
        assert_eq!(set_affinity(&beyond).unwrap_err().errno(), nix::errno::Errno::EINVAL);
    }

    #[test]
    fn the_default_memory_policy_takes_no_nodes() {
        set_memory_policy(libc::MPOL_DEFAULT, &Mask::default()).unwrap();
    }
}
