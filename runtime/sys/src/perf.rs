//! Counters of a control group's performance events (perf_event_open(2), `PERF_FLAG_PID_CGROUP`, Linux 2.6.39).

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use crate::error::{Error, Result, check_fd};
use crate::{Errno, file};

/// What a counter counts: `type` and `config` of `struct perf_event_attr`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event {
    /// `PERF_TYPE_HARDWARE` (0) or `PERF_TYPE_SOFTWARE` (1).
    pub kind: u32,
    /// Which of these.
    pub number: u64,
}

/// What a counter has counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Count {
    /// Events.
    pub events: u64,
    /// For how long it did: a processor counts a few events at a time, and takes turns where there are more.
    pub running: Duration,
}

/// `struct perf_event_attr` as it was first published (`PERF_ATTR_SIZE_VER0`); what is left out is zero.
#[repr(C)]
#[derive(Default)]
struct Attributes {
    kind: u32,
    size: u32,
    number: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup_events: u32,
    bp_type: u32,
    bp_addr: u64,
}

/// `PERF_FORMAT_TOTAL_TIME_RUNNING`.
const TIME_RUNNING: u64 = 2;
/// `PERF_FLAG_PID_CGROUP` and `PERF_FLAG_FD_CLOEXEC`.
const FLAGS: u64 = 4 | 8;

/// Begins to count `event` on the processor `cpu`, of the tasks in the control group whose directory `group` is, and in
/// those below it. It is one of the version 1 hierarchy of `perf_event`, or of the unified tree.
///
/// # Errors
/// `EACCES` or `EPERM` without `CAP_PERFMON`; `ENOENT` or `EOPNOTSUPP` where the processor does not count such events,
/// as those of most virtual machines; `EBADF` for a directory of another hierarchy; `ENODEV` for a processor that is off.
pub fn count(group: BorrowedFd<'_>, event: Event, cpu: u32) -> Result<OwnedFd> {
    let attributes = Attributes {
        kind: event.kind,
        size: size_of::<Attributes>() as u32,
        number: event.number,
        read_format: TIME_RUNNING,
        ..Attributes::default()
    };
    // SAFETY: the kernel reads as many bytes of the structure as its size says. No group of counters is joined.
    let fd = unsafe {
        libc::syscall(libc::SYS_perf_event_open, &raw const attributes, group.as_raw_fd(), cpu, -1, FLAGS)
    };
    check_fd(fd, || format!("perf_event_open({event:?}, cgroup, processor {cpu})"))
}

/// What the counter `counter` has counted since it was opened.
///
/// # Errors
/// `EIO` where the kernel tells less than it was asked.
pub fn read(counter: BorrowedFd<'_>) -> Result<Count> {
    let mut told = [0; 16];
    if file::read_some(counter, &mut told)? != told.len() {
        return Err(Error::new("read(counter)", Errno::EIO));
    }
    let number = |at: usize| told[at..at + 8].try_into().map_or(0, u64::from_ne_bytes);
    Ok(Count { events: number(0), running: Duration::from_nanos(number(8)) })
}
