//! `cgroups/io`: how fast a container may use block devices.

use std::borrow::Cow;
use std::collections::BTreeMap;

use coracle_isolator::{Cgroup, CgroupVersion, IoUsage, Result, Usage};
use oci_spec::runtime::{LinuxBlockIo, LinuxResources, LinuxThrottleDevice};

use crate::limit::{Controller, Setting, WhereMissing, not_on};
use crate::statistics::{pairs, pressure, text};

/// `linux.resources.blockIO`. Weights (10 to 1000) need a kernel whose I/O scheduler knows them: BFQ on version 1
/// and 2, or the `io.cost` controller of version 2, whose weights are 1 to 10000.
#[derive(Debug)]
pub(crate) struct Io;

impl Controller for Io {
    const NAME: &'static str = "cgroups/io";

    fn check(&self, version: CgroupVersion, resources: &LinuxResources) -> Result<Vec<String>> {
        let Some(io) = resources.block_io() else { return Ok(Vec::new()) };
        let devices = io.weight_device().iter().flatten();
        let leaf = asked(io.leaf_weight()).is_some()
            || devices.clone().any(|device| asked(device.leaf_weight()).is_some());
        if leaf && version == CgroupVersion::V2 {
            return Err(not_on(version, "blockIO.leafWeight"));
        }
        Ok(Vec::new())
    }

    fn settings(&self, group: &Cgroup, resources: &LinuxResources) -> Result<Vec<Setting>> {
        let Some(io) = resources.block_io() else { return Ok(Vec::new()) };
        let mut settings = Vec::new();
        match group.version() {
            CgroupVersion::V1 => weights_1(io, &mut settings),
            CgroupVersion::V2 => weights_2(io, &mut settings),
        }
        throttles(io, group.version(), &mut settings);
        Ok(settings)
    }

    fn usage(&self, group: &Cgroup) -> Result<Usage> {
        let io = match group.version() {
            CgroupVersion::V1 => usage_1(group)?,
            CgroupVersion::V2 => text(group, "io", "io.stat")?.as_deref().map(usage_2).unwrap_or_default(),
        };
        Ok(Usage { io, io_pressure: pressure(group, "io")?, ..Usage::default() })
    }
}

/// A weight that is asked for: no device takes 0, by which Docker says that it wants none.
fn asked(weight: Option<u16>) -> Option<u16> {
    weight.filter(|weight| *weight != 0)
}

/// Linux 5.0 took the CFQ scheduler and its `blkio.weight` away; BFQ's files stayed.
fn weights_1(io: &LinuxBlockIo, settings: &mut Vec<Setting>) {
    let group = [
        (asked(io.weight()), "blkio.weight", Some("blkio.bfq.weight"), "blockIO.weight"),
        (asked(io.leaf_weight()), "blkio.leaf_weight", None, "blockIO.leafWeight"),
    ];
    for (weight, file, instead, field) in group {
        settings.extend(weight.map(|weight| weight_setting(file, instead, weight.to_string(), field)));
    }
    for (i, device) in io.weight_device().iter().flatten().enumerate() {
        let number = (device.major(), device.minor());
        let weights = [
            (asked(device.weight()), "blkio.weight_device", Some("blkio.bfq.weight_device")),
            (asked(device.leaf_weight()), "blkio.leaf_weight_device", None),
        ];
        for (weight, file, instead) in weights {
            let value = weight.map(|weight| format!("{}:{} {weight}", number.0, number.1));
            settings.extend(
                value.map(|value| weight_setting(file, instead, value, format!("blockIO.weightDevice/{i}"))),
            );
        }
    }
}

fn weight_setting(
    file: &'static str,
    instead: Option<&'static str>,
    value: String,
    field: impl Into<Cow<'static, str>>,
) -> Setting {
    let missing = instead.map_or(WhereMissing::Fail, |instead| WhereMissing::Write(instead, value.clone()));
    Setting::new("blkio", file, value, field).where_missing(missing)
}

fn weights_2(io: &LinuxBlockIo, settings: &mut Vec<Setting>) {
    if let Some(weight) = asked(io.weight()) {
        let wide = WhereMissing::Write("io.weight", format!("default {}", wide(weight)));
        settings.push(Setting::new("io", "io.bfq.weight", weight, "blockIO.weight").where_missing(wide));
    }
    for (i, device) in io.weight_device().iter().flatten().enumerate() {
        let number = format!("{}:{}", device.major(), device.minor());
        settings.extend(asked(device.weight()).map(|weight| {
            let wide = WhereMissing::Write("io.weight", format!("{number} {}", wide(weight)));
            let field = format!("blockIO.weightDevice/{i}");
            Setting::new("io", "io.bfq.weight", format!("{number} {weight}"), field).where_missing(wide)
        }));
    }
}

/// The weights 10 to 1000 on the line to 1 to 10000.
fn wide(weight: u16) -> u64 {
    1 + u64::from(weight).saturating_sub(10) * 9999 / 990
}

fn throttles(io: &LinuxBlockIo, version: CgroupVersion, settings: &mut Vec<Setting>) {
    type Devices = Option<Vec<LinuxThrottleDevice>>;
    let kinds: [(&Devices, &str, &str, &str); 4] = [
        (io.throttle_read_bps_device(), "blkio.throttle.read_bps_device", "rbps", "throttleReadBpsDevice"),
        (io.throttle_write_bps_device(), "blkio.throttle.write_bps_device", "wbps", "throttleWriteBpsDevice"),
        (
            io.throttle_read_iops_device(),
            "blkio.throttle.read_iops_device",
            "riops",
            "throttleReadIOPSDevice",
        ),
        (
            io.throttle_write_iops_device(),
            "blkio.throttle.write_iops_device",
            "wiops",
            "throttleWriteIOPSDevice",
        ),
    ];
    for (devices, file, key, field) in kinds {
        for (i, device) in devices.iter().flatten().enumerate() {
            let number = format!("{}:{}", device.major(), device.minor());
            let field = format!("blockIO.{field}/{i}");
            settings.push(match (version, device.rate()) {
                (CgroupVersion::V1, rate) => {
                    Setting::new("blkio", file.to_owned(), format!("{number} {rate}"), field)
                }
                // Zero takes a limit away on version 1; version 2 has a word for it.
                (CgroupVersion::V2, 0) => Setting::new("io", "io.max", format!("{number} {key}=max"), field),
                (CgroupVersion::V2, rate) => {
                    Setting::new("io", "io.max", format!("{number} {key}={rate}"), field)
                }
            });
        }
    }
}

/// Lines of `8:0 Read 4096`, with the operation's name; BFQ counts where it schedules, the throttle elsewhere.
fn usage_1(group: &Cgroup) -> Result<BTreeMap<String, IoUsage>> {
    let mut usage = BTreeMap::new();
    for (bytes, operations) in [
        ("blkio.throttle.io_service_bytes_recursive", "blkio.throttle.io_serviced_recursive"),
        ("blkio.bfq.io_service_bytes_recursive", "blkio.bfq.io_serviced_recursive"),
    ] {
        add_1(&mut usage, text(group, "blkio", bytes)?.as_deref(), |device, read, value| {
            *(if read { &mut device.read_bytes } else { &mut device.write_bytes }) = value;
        });
        add_1(&mut usage, text(group, "blkio", operations)?.as_deref(), |device, read, value| {
            *(if read { &mut device.reads } else { &mut device.writes }) = value;
        });
        if !usage.is_empty() {
            break;
        }
    }
    Ok(usage)
}

fn add_1(usage: &mut BTreeMap<String, IoUsage>, text: Option<&str>, set: impl Fn(&mut IoUsage, bool, u64)) {
    for line in text.unwrap_or_default().lines() {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        if let [device, operation @ ("Read" | "Write"), value] = words[..] {
            let device = usage.entry(device.to_owned()).or_default();
            set(device, operation == "Read", value.parse().unwrap_or_default());
        }
    }
}

fn usage_2(stat: &str) -> BTreeMap<String, IoUsage> {
    let mut usage: BTreeMap<String, IoUsage> = BTreeMap::new();
    for (device, line) in stat.lines().filter_map(|line| line.split_once(' ')) {
        let device = usage.entry(device.to_owned()).or_default();
        for (key, value) in pairs(line) {
            match key {
                "rbytes" => device.read_bytes = value,
                "wbytes" => device.write_bytes = value,
                "rios" => device.reads = value,
                "wios" => device.writes = value,
                _ => {}
            }
        }
    }
    usage
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::{Group, refusal, written};

    #[test]
    fn each_limit_is_one_write() {
        let throttle = json!([{"major": 8, "minor": 0, "rate": 600}]);
        let io = json!({
            "weight": 500,
            "weightDevice": [{"major": 8, "minor": 1, "weight": 10}],
            "throttleReadBpsDevice": throttle,
            "throttleWriteIOPSDevice": throttle,
        });
        let one = [
            "blkio.weight=500",
            "blkio.weight_device=8:1 10",
            "blkio.throttle.read_bps_device=8:0 600",
            "blkio.throttle.write_iops_device=8:0 600",
        ];
        assert_eq!(written(&Io, CgroupVersion::V1, json!({ "blockIO": io })), one);
        let two =
            ["io.bfq.weight=500", "io.bfq.weight=8:1 10", "io.max=8:0 rbps=600", "io.max=8:0 wiops=600"];
        assert_eq!(written(&Io, CgroupVersion::V2, json!({ "blockIO": io })), two);
    }

    #[test]
    fn weights_are_widened_end_to_end() {
        assert_eq!([10, 100, 1000].map(wide), [1, 910, 10_000]);
    }

    #[test]
    fn a_weight_of_zero_is_none() {
        let none = json!({"blockIO": {"weight": 0, "leafWeight": 0, "weightDevice": [{"major": 8, "minor": 1, "weight": 0}]}});
        for version in [CgroupVersion::V1, CgroupVersion::V2] {
            assert!(written(&Io, version, none.clone()).is_empty());
        }
    }

    #[test]
    fn leaf_weights_are_refused_on_version_2() {
        let wanted = "/linux/resources/blockIO/leafWeight: cgroup version 2, which this machine runs, has no such limit";
        assert_eq!(refusal(&Io, CgroupVersion::V2, json!({"blockIO": {"leafWeight": 5}})), wanted);
    }

    #[test]
    fn both_versions_tell_bytes_and_operations_by_device() {
        let wanted = IoUsage { read_bytes: 1, write_bytes: 2, reads: 3, writes: 4 };
        assert_eq!(usage_2("8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0\n")["8:0"], wanted);
        let mut usage = BTreeMap::new();
        add_1(&mut usage, Some("8:0 Read 1\n8:0 Write 2\n8:0 Sync 9\nTotal 3\n"), |device, read, value| {
            *(if read { &mut device.read_bytes } else { &mut device.write_bytes }) = value;
        });
        assert_eq!(usage["8:0"], IoUsage { read_bytes: 1, write_bytes: 2, ..IoUsage::default() });
    }

    #[test]
    fn the_kernel_takes_weights_or_says_that_it_has_none() {
        let Some(group) = Group::version_1("io", &["blkio"]) else { return };
        group.apply(Io, json!({"blockIO": {"weight": 200}}));
        assert!(group.read("blkio", "blkio.bfq.weight").contains("200"));
        let error = group.try_apply(Io, json!({"blockIO": {"leafWeight": 200}})).unwrap_err();
        let wanted = "/linux/resources/blockIO/leafWeight: openat(\"blkio.leaf_weight\"): no such file or directory; \
                      this kernel does not offer it";
        assert_eq!(error, wanted);
        assert!(Io.usage(&group.group).unwrap().io.is_empty());
    }
}
