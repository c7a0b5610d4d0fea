//! When a container runs out of the memory that it may use.

use std::os::fd::{AsRawFd, OwnedFd};

use coracle_isolator::{Cgroup, CgroupVersion, Errno, Error, Limitation, Result};
use coracle_sys::event;
use coracle_sys::file::{self, Resolve};
use oci_spec::runtime::{LinuxMemory, LinuxResources};

use crate::statistics::{keyed, number, text};

/// A descriptor that becomes readable when the group is out of memory: the eventfd of `memory.oom_control` on version 1
/// (memcg_test.rst of the kernel's documentation), a watch of `memory.events` on version 2.
pub(crate) fn watch(group: &Cgroup) -> Result<Option<OwnedFd>> {
    let Some(dir) = group.dir("memory") else { return Ok(None) };
    let fail = |e: coracle_sys::Error| Error::failed(e.call(), e.errno());
    if group.version() == CgroupVersion::V2 {
        return event::modifications(dir, "memory.events").map(Some).map_err(fail);
    }
    let control = file::open(dir, "memory.oom_control", O_RDONLY, 0, Resolve::Beneath).map_err(fail)?;
    let counter = event::counter().map_err(fail)?;
    let pair = format!("{} {}", counter.as_raw_fd(), control.as_raw_fd());
    file::write_to(dir, "cgroup.event_control", pair.as_bytes(), Resolve::Beneath).map_err(fail)?;
    Ok(Some(counter))
}

/// What the leaf counts that the runtime moves the processes of a container into before it makes another below.
const LEAF: &str = "_own/memory.events";

/// The longest such file, in bytes.
const LONGEST: u64 = 1 << 16;

/// open(2), linux/fcntl.h.
const O_RDONLY: i32 = 0;

/// What the group is known to have run into: a process was killed for want of memory, or waits for some.
pub(crate) fn limitation(group: &Cgroup) -> Result<Option<Limitation>> {
    let (file, limit) = match group.version() {
        CgroupVersion::V1 => ("memory.oom_control", "memory.limit_in_bytes"),
        CgroupVersion::V2 => ("memory.events", "memory.max"),
    };
    let told = text(group, "memory", file)?.unwrap_or_default();
    let kills = match own_kills(group)? {
        Some(own) => own,
        None => keyed(&told, "oom_kill").unwrap_or_default(),
    };
    let waits = keyed(&told, "under_oom") == Some(1);
    if kills == 0 && !waits {
        return Ok(None);
    }
    let limit = number(group, "memory", limit)?.filter(|limit| *limit < 1 << 62);
    let limit_told = limit.map_or_else(String::new, |limit| format!(" of {limit} bytes"));
    let what = if waits { "processes wait".to_owned() } else { format!("{kills} processes killed") };
    Ok(Some(Limitation {
        message: format!("memory limit{limit_told} exceeded, {what}"),
        reason: "oom".to_owned(),
        resources: limit.map(resources),
    }))
}

/// How many processes of a container's own were killed, where other containers are below it: its own are then in a leaf, and the
/// group counts those of the others, too. `None` elsewhere.
fn own_kills(group: &Cgroup) -> Result<Option<u64>> {
    let Some(dir) = group.dir("memory").filter(|_| group.version() == CgroupVersion::V2) else {
        return Ok(None);
    };
    let leaf = match file::read(dir, LEAF, LONGEST, Resolve::BeneathNoLinks) {
        Err(e) if e.errno() == Errno::ENOENT => return Ok(None),
        leaf => leaf.map_err(|e| Error::failed(e.call(), e.errno()))?,
    };
    let local = text(group, "memory", "memory.events.local")?.unwrap_or_default();
    Ok(Some(
        [String::from_utf8_lossy(&leaf).into_owned(), local]
            .iter()
            .filter_map(|told| keyed(told, "oom_kill"))
            .sum(),
    ))
}

fn resources(limit: u64) -> LinuxResources {
    let mut memory = LinuxMemory::default();
    memory.set_limit(i64::try_from(limit).ok());
    let mut resources = LinuxResources::default();
    resources.set_memory(Some(memory));
    resources
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::time::Duration;

    use serde_json::json;

    use super::*;
    use crate::limit::Limits;
    use crate::memory::Memory;
    use crate::testing::Group;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "a test lays out what a kernel would")]
    fn what_was_killed_in_containers_below_is_not_the_containers_own() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("memory.events"), "oom_kill 3\n").unwrap();
        std::fs::write(dir.path().join("memory.events.local"), "oom_kill 0\n").unwrap();
        let group = || {
            let dir = file::open_dir(dir.path()).unwrap();
            limitation(&Cgroup::new(CgroupVersion::V2, vec![(Vec::new(), dir)])).unwrap()
        };
        assert!(group().unwrap().message.ends_with("3 processes killed"));
        std::fs::create_dir(dir.path().join("_own")).unwrap();
        std::fs::write(dir.path().join("_own/memory.events"), "oom_kill 0\n").unwrap();
        assert!(group().is_none());
        std::fs::write(dir.path().join("_own/memory.events"), "oom_kill 1\n").unwrap();
        assert!(group().unwrap().message.ends_with("1 processes killed"));
    }

    #[test]
    fn a_group_that_is_out_of_memory_is_told_of() {
        let Some(group) = Group::version_1("oom", &["memory"]) else { return };
        group.isolate(&Limits(Memory), json!({"memory": {"limit": 8 << 20, "swap": 8 << 20}})).unwrap();
        let watched = watch(&group.group).unwrap().unwrap();
        assert!(limitation(&group.group).unwrap().is_none());
        group.run("head -c 50000000 /dev/zero | tail -c 40000000 >/dev/null");
        assert_eq!(event::readable(&[watched.as_fd()], Some(Duration::from_secs(5))).unwrap(), [true]);
        let limitation = limitation(&group.group).unwrap().unwrap();
        assert_eq!(
            (limitation.reason.as_str(), limitation.message.as_str()),
            ("oom", "memory limit of 8388608 bytes exceeded, 1 processes killed")
        );
        assert_eq!(limitation.resources.unwrap().memory().unwrap().limit(), Some(8 << 20));
    }
}
