//! `cgroups/memory`: how much memory a container gets.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use coracle_isolator::{Cgroup, CgroupVersion, Errno, Error, Limitation, MemoryUsage, Result, Usage};
use oci_spec::runtime::{LinuxMemory, LinuxResources};

use crate::limit::{Controller, Setting, WhereMissing, not_on};
use crate::oom;
use crate::statistics::{keyed, number, pressure, text};

/// `linux.resources.memory`. `limit`, `swap` (memory and swap together) and `reservation` are bytes, -1 is no
/// limit, and zero is as good as absent, as runc has it.
#[derive(Debug)]
pub(crate) struct Memory;

impl Controller for Memory {
    const NAME: &'static str = "cgroups/memory";

    fn check(&self, version: CgroupVersion, resources: &LinuxResources) -> Result<Vec<String>> {
        let Some(memory) = resources.memory() else { return Ok(Vec::new()) };
        if memory.use_hierarchy() == Some(false) {
            let what = "a memory cgroup without its descendants is no longer to be had (Linux 5.11)";
            return Err(Error::new(what).at("/linux/resources/memory/useHierarchy"));
        }
        for (set, field) in [
            (memory.swappiness().is_some(), "memory.swappiness"),
            (memory.disable_oom_killer() == Some(true), "memory.disableOOMKiller"),
        ] {
            if set && version == CgroupVersion::V2 {
                return Err(not_on(version, field));
            }
        }
        let deprecated = [(memory.kernel(), "kernel"), (memory.kernel_tcp(), "kernelTCP")];
        let set = deprecated.into_iter().filter(|(value, _)| value.is_some());
        Ok(set
            .map(|(_, name)| format!("/linux/resources/memory/{name} is deprecated and has no effect"))
            .collect())
    }

    fn settings(&self, group: &Cgroup, resources: &LinuxResources) -> Result<Vec<Setting>> {
        let Some(memory) = resources.memory() else { return Ok(Vec::new()) };
        check_usage(memory, group)?;
        match group.version() {
            CgroupVersion::V1 => Ok(version_1(memory)),
            CgroupVersion::V2 => version_2(memory, group),
        }
    }

    fn hint(&self, error: &Error) -> Option<&'static str> {
        match error.errno() {
            Some(Errno::EBUSY) => Some("memory limit too low?"),
            Some(Errno::EINVAL) if error.to_string().contains("memory.memsw") => {
                Some("it counts memory and swap together, so it is at least the limit of memory")
            }
            _ => None,
        }
    }

    fn usage(&self, group: &Cgroup) -> Result<Usage> {
        let memory = match group.version() {
            CgroupVersion::V1 => usage_1(group)?,
            CgroupVersion::V2 => usage_2(group)?,
        };
        let pressure = pressure(group, "memory")?;
        Ok(Usage { memory: memory.map(|memory| MemoryUsage { pressure, ..memory }), ..Usage::default() })
    }

    fn watch(&self, group: &Cgroup) -> Result<Option<OwnedFd>> {
        oom::watch(group)
    }

    fn limitation(&self, group: &Cgroup) -> Result<Option<Limitation>> {
        oom::limitation(group)
    }
}

/// Version 1 wants memory's limit at or below that of memory and swap at any moment: a write in the wrong order
/// is refused with `EINVAL` and made again last.
fn version_1(memory: &LinuxMemory) -> Vec<Setting> {
    let limit = nonzero(memory.limit());
    // Without a limit for memory there can be none for memory and swap.
    let no_swap_limit = limit.filter(|limit| *limit < 0 && nonzero(memory.swap()).is_none());
    let bytes = [
        (limit, "memory.limit_in_bytes", "memory.limit"),
        (nonzero(memory.swap()), "memory.memsw.limit_in_bytes", "memory.swap"),
        (nonzero(memory.reservation()), "memory.soft_limit_in_bytes", "memory.reservation"),
    ];
    let mut settings: Vec<Setting> = bytes
        .into_iter()
        .filter_map(|(value, file, field)| Some(Setting::new("memory", file, value?, field)))
        .collect();
    settings.extend(no_swap_limit.map(|limit| {
        Setting::new("memory", "memory.memsw.limit_in_bytes", limit, "memory.limit")
            .where_missing(WhereMissing::Skip)
    }));
    let swappiness = memory.swappiness();
    settings.extend(swappiness.map(|s| Setting::new("memory", "memory.swappiness", s, "memory.swappiness")));
    if memory.disable_oom_killer() == Some(true) {
        settings.push(Setting::new("memory", "memory.oom_control", 1, "memory.disableOOMKiller"));
    }
    settings
}

fn version_2(memory: &LinuxMemory, group: &Cgroup) -> Result<Vec<Setting>> {
    let mut settings = Vec::new();
    if let Some(limit) = nonzero(memory.limit()) {
        settings.push(Setting::new("memory", "memory.max", or_max(limit), "memory.limit"));
    }
    if let Some(reservation) = nonzero(memory.reservation()) {
        settings.push(Setting::new("memory", "memory.low", or_max(reservation), "memory.reservation"));
    }
    settings.extend(swap_2(memory, group)?);
    Ok(settings)
}

/// The specification's `swap` is memory and swap together; version 2 limits swap alone.
fn swap_2(memory: &LinuxMemory, group: &Cgroup) -> Result<Option<Setting>> {
    let field = "memory.swap";
    let limit = nonzero(memory.limit());
    let swap = match (nonzero(memory.swap()), limit) {
        (None, Some(limit)) if limit < 0 => {
            let setting = Setting::new("memory", "memory.swap.max", "max", "memory.limit");
            return Ok(Some(setting.where_missing(WhereMissing::Skip)));
        }
        (None, _) => return Ok(None),
        (Some(swap), _) if swap < 0 => {
            return Ok(Some(Setting::new("memory", "memory.swap.max", "max", field)));
        }
        (Some(swap), limit) => swap.cast_unsigned().checked_sub(memory_limit(limit, group)?),
    };
    let swap = swap.ok_or_else(|| {
        Error::new("memory and swap together are less than memory").at("/linux/resources/memory/swap")
    })?;
    let setting = Setting::new("memory", "memory.swap.max", swap, field);
    // A kernel without swap has no such file, and grants none.
    Ok(Some(if swap == 0 { setting.where_missing(WhereMissing::Skip) } else { setting }))
}

/// The limit for memory that a limit for memory and swap goes with: the one in the same document, else the one
/// that stands in the group.
fn memory_limit(limit: Option<i64>, group: &Cgroup) -> Result<u64> {
    let known = match limit {
        Some(limit) => u64::try_from(limit).ok(),
        None => number(group, "memory", "memory.max")?,
    };
    known.ok_or_else(|| {
        Error::new("memory and swap can't be limited together where memory is not")
            .at("/linux/resources/memory/swap")
            .with_hint("set memory.limit too")
    })
}

/// `checkBeforeUpdate`: refuses a limit below what is in use, which on version 2 would kill.
fn check_usage(memory: &LinuxMemory, group: &Cgroup) -> Result<()> {
    let limit = nonzero(memory.limit()).and_then(|limit| u64::try_from(limit).ok());
    let (Some(limit), Some(true)) = (limit, memory.check_before_update()) else { return Ok(()) };
    let file = match group.version() {
        CgroupVersion::V1 => "memory.usage_in_bytes",
        CgroupVersion::V2 => "memory.current",
    };
    match number(group, "memory", file)? {
        Some(usage) if usage > limit => {
            Err(Error::new(format!("{limit} bytes are less than the {usage} in use"))
                .at("/linux/resources/memory/limit"))
        }
        _ => Ok(()),
    }
}

fn nonzero(value: Option<i64>) -> Option<i64> {
    value.filter(|value| *value != 0)
}

fn or_max(bytes: i64) -> String {
    if bytes < 0 { "max".to_owned() } else { bytes.to_string() }
}

fn usage_1(group: &Cgroup) -> Result<Option<MemoryUsage>> {
    let Some(usage) = number(group, "memory", "memory.usage_in_bytes")? else { return Ok(None) };
    let stat = text(group, "memory", "memory.stat")?.unwrap_or_default();
    let control = text(group, "memory", "memory.oom_control")?.unwrap_or_default();
    let of = |key| keyed(&stat, key).unwrap_or_default();
    // Without a limit, the kernel shows the greatest number of whole pages in an i64.
    let limit = number(group, "memory", "memory.limit_in_bytes")?.filter(|limit| *limit < 1 << 62);
    Ok(Some(MemoryUsage {
        usage,
        peak: number(group, "memory", "memory.max_usage_in_bytes")?,
        limit,
        swap: keyed(&stat, "total_swap"),
        swap_limit: swap_limit_1(group, limit)?,
        kernel: number(group, "memory", "memory.kmem.usage_in_bytes")?,
        rss: of("total_rss"),
        cache: of("total_cache"),
        inactive_file: of("total_inactive_file"),
        limit_hits: number(group, "memory", "memory.failcnt")?.unwrap_or_default(),
        oom_kills: keyed(&control, "oom_kill").unwrap_or_default(),
        statistics: all(&stat),
        pressure: None,
    }))
}

/// Version 1 limits memory and swap together.
fn swap_limit_1(group: &Cgroup, memory: Option<u64>) -> Result<Option<u64>> {
    let both = number(group, "memory", "memory.memsw.limit_in_bytes")?.filter(|limit| *limit < 1 << 62);
    Ok(both.zip(memory).map(|(both, memory)| both.saturating_sub(memory)))
}

/// Lines of `key number`.
fn all(stat: &str) -> BTreeMap<String, u64> {
    let pairs = stat.lines().filter_map(|line| line.split_once(' '));
    pairs.filter_map(|(key, value)| Some((key.to_owned(), value.parse().ok()?))).collect()
}

fn usage_2(group: &Cgroup) -> Result<Option<MemoryUsage>> {
    let Some(usage) = number(group, "memory", "memory.current")? else { return Ok(None) };
    let stat = text(group, "memory", "memory.stat")?.unwrap_or_default();
    let events = text(group, "memory", "memory.events")?.unwrap_or_default();
    let of = |key| keyed(&stat, key).unwrap_or_default();
    Ok(Some(MemoryUsage {
        usage,
        peak: number(group, "memory", "memory.peak")?,
        limit: number(group, "memory", "memory.max")?,
        swap: number(group, "memory", "memory.swap.current")?,
        swap_limit: number(group, "memory", "memory.swap.max")?,
        kernel: keyed(&stat, "kernel"),
        rss: of("anon"),
        cache: of("file"),
        inactive_file: of("inactive_file"),
        limit_hits: keyed(&events, "max").unwrap_or_default(),
        oom_kills: keyed(&events, "oom_kill").unwrap_or_default(),
        statistics: all(&stat),
        pressure: None,
    }))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::{Group, refusal, written};

    const MIB: i64 = 1 << 20;

    #[test]
    fn version_1_limits_memory_and_swap_together() {
        let memory = json!({"limit": MIB, "swap": 2 * MIB, "reservation": 5, "swappiness": 3, "disableOOMKiller": true});
        let wanted = [
            "memory.limit_in_bytes=1048576",
            "memory.memsw.limit_in_bytes=2097152",
            "memory.soft_limit_in_bytes=5",
            "memory.swappiness=3",
            "memory.oom_control=1",
        ];
        assert_eq!(written(&Memory, CgroupVersion::V1, json!({ "memory": memory })), wanted);
    }

    #[test]
    fn version_2_limits_swap_alone() {
        for (swap, wanted) in
            [(2 * MIB, "memory.swap.max=1048576"), (MIB, "memory.swap.max=0"), (-1, "memory.swap.max=max")]
        {
            let memory = json!({"memory": {"limit": MIB, "swap": swap, "reservation": -1}});
            let all = ["memory.max=1048576", "memory.low=max", wanted];
            assert_eq!(written(&Memory, CgroupVersion::V2, memory), all);
        }
    }

    #[test]
    fn no_limit_for_memory_is_none_for_swap() {
        let memory = json!({"memory": {"limit": -1}});
        let one = ["memory.limit_in_bytes=-1", "memory.memsw.limit_in_bytes=-1"];
        assert_eq!(written(&Memory, CgroupVersion::V1, memory.clone()), one);
        assert_eq!(written(&Memory, CgroupVersion::V2, memory), ["memory.max=max", "memory.swap.max=max"]);
    }

    #[test]
    fn what_can_not_be_is_refused_by_name() {
        let v2 = "cgroup version 2, which this machine runs, has no such limit";
        for (version, memory, wanted) in [
            (CgroupVersion::V2, json!({"swappiness": 5}), format!("swappiness: {v2}")),
            (CgroupVersion::V2, json!({"disableOOMKiller": true}), format!("disableOOMKiller: {v2}")),
            (
                CgroupVersion::V2,
                json!({"swap": 5, "limit": 6}),
                "swap: memory and swap together are less than memory".to_owned(),
            ),
            (
                CgroupVersion::V2,
                json!({"swap": 5}),
                "swap: memory and swap can't be limited together where memory is not; set memory.limit too"
                    .to_owned(),
            ),
            (
                CgroupVersion::V1,
                json!({"useHierarchy": false}),
                "useHierarchy: a memory cgroup without its descendants is no longer to be had (Linux 5.11)"
                    .to_owned(),
            ),
        ] {
            let wanted = format!("/linux/resources/memory/{wanted}");
            assert_eq!(refusal(&Memory, version, json!({ "memory": memory })), wanted);
        }
    }

    #[test]
    fn deprecated_limits_are_warned_of() {
        let resources = serde_json::from_value(json!({"memory": {"kernel": 5}})).unwrap();
        let warnings = Memory.check(CgroupVersion::V1, &resources).unwrap();
        assert_eq!(warnings, ["/linux/resources/memory/kernel is deprecated and has no effect"]);
    }

    #[test]
    fn limits_are_raised_and_lowered_in_whatever_order_the_kernel_takes() {
        let Some(group) = Group::version_1("memory", &["memory"]) else { return };
        for (limit, swap) in [(64 * MIB, 64 * MIB), (128 * MIB, 256 * MIB), (32 * MIB, 48 * MIB)] {
            group.apply(Memory, json!({"memory": {"limit": limit, "swap": swap}}));
            assert_eq!(group.read("memory", "memory.limit_in_bytes"), limit.to_string());
            assert_eq!(group.read("memory", "memory.memsw.limit_in_bytes"), swap.to_string());
        }
        let usage = Memory.usage(&group.group).unwrap().memory.unwrap();
        assert_eq!((usage.limit, usage.oom_kills), (Some(32 * MIB as u64), 0));
        group.apply(Memory, json!({"memory": {"limit": -1}}));
        assert_eq!(Memory.usage(&group.group).unwrap().memory.unwrap().limit, None);
        let error = group.try_apply(Memory, json!({"memory": {"limit": 64 * MIB, "swap": MIB}})).unwrap_err();
        let wanted = "/linux/resources/memory/swap: write(\"memory.memsw.limit_in_bytes\", \"1048576\"): invalid argument; \
            it counts memory and swap together, so it is at least the limit of memory";
        assert_eq!(error, wanted);
    }

    #[test]
    fn limits_that_can_not_be_are_hinted_at() {
        let error = Error::failed("write(\"memory.limit_in_bytes\", \"1\")", Errno::EBUSY);
        assert_eq!(Memory.hint(&error), Some("memory limit too low?"));
        let error = Error::failed("write(\"memory.memsw.limit_in_bytes\", \"1\")", Errno::EINVAL);
        assert!(Memory.hint(&error).unwrap().contains("memory and swap together"));
    }
}
