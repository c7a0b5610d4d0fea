//! A container's limits as systemd's properties (systemd.resource-control(5)).
//!
//! The isolators write the limits into the cgroup themselves, to the byte. systemd must know of them too: it writes
//! its own idea of a unit into the unit's cgroup again whenever it is reloaded.

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxResources};

use super::super::Version;
use super::message::Value;
use crate::error::{Code, Error, Result};

/// systemd's word for no limit.
const INFINITY: u64 = u64::MAX;

/// The properties that say what `resources` say on a machine with `version` of cgroups. What systemd has no property
/// for is the isolators' alone.
///
/// # Errors
/// `InvalidSpec` for a list of CPUs or memory nodes that is none.
pub(super) fn properties(resources: &LinuxResources, version: Version) -> Result<Vec<(&'static str, Value)>> {
    let is_v2 = version == Version::V2;
    let mut found = Vec::new();
    let mut set = |name, value: Option<u64>| found.extend(value.map(|value| (name, Value::Number(value))));
    if let Some(memory) = resources.memory() {
        let limit = memory.limit().map(limited);
        set(if is_v2 { "MemoryMax" } else { "MemoryLimit" }, limit);
        if is_v2 {
            set("MemoryLow", memory.reservation().map(limited));
            set("MemorySwapMax", memory.swap().map(|both| swap(both, memory.limit().unwrap_or(0))));
        }
    }
    if let Some(cpu) = resources.cpu() {
        let shares = cpu.shares().filter(|shares| *shares != 0);
        if is_v2 {
            set("CPUWeight", shares.map(coracle_isolator_cgroup::cpu_weight));
        } else {
            set("CPUShares", shares);
        }
        let period = cpu.period().filter(|period| *period != 0);
        set("CPUQuotaPeriodUSec", period);
        set("CPUQuotaPerSecUSec", cpu.quota().map(|quota| per_second(quota, period.unwrap_or(100_000))));
    }
    let weight = resources.block_io().as_ref().and_then(|io| io.weight()).filter(|weight| *weight != 0);
    set(
        if is_v2 { "IOWeight" } else { "BlockIOWeight" },
        weight.map(u64::from).map(|w| if is_v2 { io_weight(w) } else { w }),
    );
    // As the isolator has it: 0 is 1, what is negative is no limit.
    let most = resources.pids().as_ref().map(|pids| if pids.limit() == 0 { 1 } else { pids.limit() });
    set("TasksMax", most.map(limited));
    if let Some(cpu) = resources.cpu().as_ref().filter(|_| is_v2) {
        for (name, field, list) in
            [("AllowedCPUs", "cpus", cpu.cpus()), ("AllowedMemoryNodes", "mems", cpu.mems())]
        {
            let Some(list) = list.as_ref().filter(|list| !list.is_empty()) else { continue };
            let bits = bits(list).ok_or_else(|| {
                Error::new(Code::InvalidSpec, format!("/linux/resources/cpu/{field} is {list:?}"))
            })?;
            found.push((name, Value::Bytes(bits)));
        }
    }
    Ok(found)
}

/// The properties that say what `rules` say about devices. An entry of a list that is set is added to what there is; an empty
/// list takes all away. What systemd has no words for, one minor number of all majors, is the isolator's alone.
///
/// # Errors
/// `InvalidSpec` for what is no rule; `Unsupported` for all devices but some, which systemd can't be told.
pub(super) fn devices(rules: &[LinuxDeviceCgroup]) -> Result<Vec<(&'static str, Value)>> {
    let access = coracle_isolator_cgroup::access(rules)?;
    let none = ("DeviceAllow", Value::Pairs(Vec::new()));
    if !access.all {
        let allowed = access.exceptions.iter().filter_map(|entry| device(entry)).collect();
        let strict = ("DevicePolicy", Value::Text("strict".to_owned()));
        return Ok(vec![strict, none, ("DeviceAllow", Value::Pairs(allowed))]);
    }
    match access.exceptions.first() {
        None => Ok(vec![("DevicePolicy", Value::Text("auto".to_owned())), none]),
        Some(denied) => Err(Error::new(
            Code::Unsupported,
            format!("/linux/resources/devices allows all but {denied:?}, and systemd would allow that, too, when it is reloaded"),
        )
        .hint("deny all, then allow those that are wanted")),
    }
}

/// `c 1:3 rwm` as systemd has it (`DeviceAllow=` of systemd.resource-control(5)): a node, or all of a major number. That is
/// told as a number, since drivers may share a name.
fn device(entry: &str) -> Option<(String, String)> {
    let (class, rest) = entry.split_once(' ')?;
    let (number, access) = rest.split_once(' ')?;
    let class = if class == "c" { "char" } else { "block" };
    let node = match number.split_once(':')? {
        (major, "*") => format!("{class}-{major}"),
        ("*", _) => return None,
        _ => format!("/dev/{class}/{number}"),
    };
    Some((node, access.to_owned()))
}

/// The properties that `new` sets, as `old` sets them, or as they are where nobody has.
///
/// # Errors
/// As [`properties`].
pub(super) fn reverted(
    new: &LinuxResources,
    old: &LinuxResources,
    version: Version,
) -> Result<Vec<(&'static str, Value)>> {
    let old = properties(old, version)?;
    let unset = |name| match name {
        "MemoryLow" => Value::Number(0),
        "AllowedCPUs" | "AllowedMemoryNodes" => Value::Bytes(Vec::new()),
        _ => Value::Number(INFINITY),
    };
    let revert = |(name, _): (&'static str, Value)| {
        let before = old.iter().find(|(own, _)| *own == name).map(|(_, value)| value.clone());
        (name, before.unwrap_or_else(|| unset(name)))
    };
    Ok(properties(new, version)?.into_iter().map(revert).collect())
}

fn limited(limit: i64) -> u64 {
    u64::try_from(limit).unwrap_or(INFINITY)
}

/// The specification's limit is for memory and swap together, version 2's for swap alone.
fn swap(both: i64, memory: i64) -> u64 {
    if both < 0 { INFINITY } else { limited((both - memory.max(0)).max(0)) }
}

/// Microseconds of CPU time in a second, in whole hundredths of a CPU: what systemd rounds to.
fn per_second(quota: i64, period: u64) -> u64 {
    match u64::try_from(quota) {
        Ok(0) | Err(_) => INFINITY,
        Ok(quota) => (quota.saturating_mul(1_000_000) / period).next_multiple_of(10_000),
    }
}

/// Version 2's weight (1 to 10000) for version 1's (10 to 1000).
fn io_weight(weight: u64) -> u64 {
    1 + weight.saturating_sub(10) * 9999 / 990
}

/// A list like `0-2,7` as systemd takes it: a bit each, the lowest first.
fn bits(list: &str) -> Option<Vec<u8>> {
    let mut bits = Vec::new();
    for range in list.split(',').map(str::trim) {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (usize, usize) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        if first > last || last >= 8192 {
            return None;
        }
        for bit in first..=last {
            bits.resize(bits.len().max(bit / 8 + 1), 0);
            bits[bit / 8] |= 1 << (bit % 8);
        }
    }
    Some(bits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn of(resources: serde_json::Value, version: Version) -> Vec<(&'static str, Value)> {
        properties(&serde_json::from_value(resources).unwrap(), version).unwrap()
    }

    #[test]
    fn limits_become_properties_of_each_version() {
        let resources = json!({
            "memory": {"limit": 1000, "swap": 1500, "reservation": 500},
            "cpu": {"shares": 1024, "quota": 50000, "period": 100_000, "cpus": "0-1,8"},
            "pids": {"limit": 7},
            "blockIO": {"weight": 10},
        });
        let number = |name, value| (name, Value::Number(value));
        assert_eq!(
            of(resources.clone(), Version::V2),
            [
                number("MemoryMax", 1000),
                number("MemoryLow", 500),
                number("MemorySwapMax", 500),
                number("CPUWeight", 100),
                number("CPUQuotaPeriodUSec", 100_000),
                number("CPUQuotaPerSecUSec", 500_000),
                number("IOWeight", 1),
                number("TasksMax", 7),
                ("AllowedCPUs", Value::Bytes(vec![3, 1])),
            ]
        );
        assert_eq!(
            of(resources, Version::V1),
            [
                number("MemoryLimit", 1000),
                number("CPUShares", 1024),
                number("CPUQuotaPeriodUSec", 100_000),
                number("CPUQuotaPerSecUSec", 500_000),
                number("BlockIOWeight", 10),
                number("TasksMax", 7),
            ]
        );
    }

    #[test]
    fn what_was_set_is_set_as_it_was_or_not_at_all() {
        let parsed = |json: serde_json::Value| serde_json::from_value::<LinuxResources>(json).unwrap();
        let new =
            json!({"memory": {"limit": 9, "reservation": 3}, "pids": {"limit": 2}, "cpu": {"cpus": "0"}});
        let old = json!({"memory": {"limit": 5}, "blockIO": {"weight": 10}});
        let reverted = reverted(&parsed(new), &parsed(old), Version::V2).unwrap();
        let wanted = [
            ("MemoryMax", Value::Number(5)),
            ("MemoryLow", Value::Number(0)),
            ("TasksMax", Value::Number(INFINITY)),
            ("AllowedCPUs", Value::Bytes(Vec::new())),
        ];
        assert_eq!(reverted, wanted);
    }

    fn of_devices(rules: serde_json::Value) -> Result<Vec<(&'static str, Value)>> {
        devices(&serde_json::from_value::<Vec<LinuxDeviceCgroup>>(rules).unwrap())
    }

    #[test]
    fn rules_about_devices_are_a_list_of_what_is_allowed() {
        let rules = json!([
            {"allow": true, "type": "b", "major": 8, "access": "r"},
            {"allow": true, "type": "c", "major": 10, "minor": 200, "access": "rwm"},
            {"allow": true, "type": "c", "minor": 7, "access": "r"},
        ]);
        let told = of_devices(rules).unwrap();
        assert_eq!(told[0], ("DevicePolicy", Value::Text("strict".to_owned())));
        assert_eq!(told[1], ("DeviceAllow", Value::Pairs(Vec::new())), "what was told before is forgotten");
        let ("DeviceAllow", Value::Pairs(allowed)) = &told[2] else { panic!("{told:?}") };
        let allowed: Vec<String> = allowed.iter().map(|(node, access)| format!("{node} {access}")).collect();
        for wanted in ["char-* m", "/dev/char/1:3 rwm", "char-136 rwm", "block-8 r", "/dev/char/10:200 rwm"] {
            assert!(allowed.iter().any(|entry| entry == wanted), "{wanted} in {allowed:?}");
        }
        assert!(!allowed.iter().any(|entry| entry.contains('7') && entry.ends_with(" r")), "{allowed:?}");
    }

    #[test]
    fn all_devices_are_told_of_and_all_but_some_can_not_be() {
        let all = json!({"allow": true, "access": "rwm"});
        assert_eq!(of_devices(json!([all])).unwrap()[0], ("DevicePolicy", Value::Text("auto".to_owned())));
        let but = json!({"allow": false, "type": "b", "major": 8, "access": "rwm"});
        let error = of_devices(json!([all, but])).unwrap_err().to_string();
        assert_eq!(
            error,
            "/linux/resources/devices allows all but \"b 8:* rwm\", and systemd would allow that, too, when it is \
             reloaded; deny all, then allow those that are wanted"
        );
    }

    #[test]
    fn what_is_negative_is_no_limit() {
        let resources = json!({
            "memory": {"limit": -1, "swap": -1}, "cpu": {"quota": -1}, "pids": {"limit": -1},
        });
        for (name, value) in of(resources, Version::V2) {
            assert_eq!(value, Value::Number(INFINITY), "{name}");
        }
    }

    #[test]
    fn a_list_that_is_none_is_named() {
        for list in ["a", "3-1", "0-99999", "1,"] {
            let resources = serde_json::from_value(json!({"cpu": {"cpus": list}})).unwrap();
            let error = properties(&resources, Version::V2).unwrap_err().to_string();
            assert_eq!(error, format!("/linux/resources/cpu/cpus is {list:?}"));
        }
    }
}
