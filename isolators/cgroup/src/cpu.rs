//! `cgroups/cpu`: how much processor time a container gets.

use coracle_isolator::{Cgroup, CgroupVersion, CpuUsage, Errno, Error, Result, Usage};
use oci_spec::runtime::{LinuxCpu, LinuxResources};

use crate::limit::{Controller, Setting, not_on};
use crate::statistics::{keyed, number, pressure, text};

/// `linux.resources.cpu` but for `cpus` and `mems`. Zero is as good as absent, as runc has it, since no value of
/// these but `idle` may be zero.
#[derive(Debug)]
pub(crate) struct Cpu;

impl Controller for Cpu {
    const NAME: &'static str = "cgroups/cpu";

    fn check(&self, version: CgroupVersion, resources: &LinuxResources) -> Result<Vec<String>> {
        let Some(cpu) = resources.cpu() else { return Ok(Vec::new()) };
        for (set, field) in [
            (cpu.realtime_period().is_some_and(|period| period != 0), "cpu.realtimePeriod"),
            (cpu.realtime_runtime().is_some_and(|runtime| runtime != 0), "cpu.realtimeRuntime"),
        ] {
            if set && version == CgroupVersion::V2 {
                return Err(not_on(version, field));
            }
        }
        Ok(Vec::new())
    }

    fn settings(&self, group: &Cgroup, resources: &LinuxResources) -> Result<Vec<Setting>> {
        match (resources.cpu(), group.version()) {
            (None, _) => Ok(Vec::new()),
            (Some(cpu), CgroupVersion::V1) => version_1(cpu, group),
            (Some(cpu), CgroupVersion::V2) => version_2(cpu, group),
        }
    }

    fn hint(&self, error: &Error) -> Option<&'static str> {
        let is_of_bandwidth = ["cpu.cfs_", "cpu.max"].iter().any(|file| error.to_string().contains(file));
        (is_of_bandwidth && error.errno() == Some(Errno::EINVAL)).then_some(
            "a period is 1000 to 1000000 microseconds, a quota at least 1000 and at most the parent's, a burst at most the quota",
        )
    }

    fn usage(&self, group: &Cgroup) -> Result<Usage> {
        let cpu = match group.version() {
            CgroupVersion::V1 => usage_1(group)?,
            CgroupVersion::V2 => text(group, "cpu", "cpu.stat")?.map(|stat| usage_2(&stat)),
        };
        let pressure = pressure(group, "cpu")?;
        Ok(Usage { cpu: cpu.map(|cpu| CpuUsage { pressure, ..cpu }), ..Usage::default() })
    }
}

fn version_1(cpu: &LinuxCpu, group: &Cgroup) -> Result<Vec<Setting>> {
    let mut settings = Vec::new();
    // Each write makes the kernel look at every group of the machine (`tg_set_bandwidth`); a new one has the usual period.
    let standing = text(group, "cpu", "cpu.cfs_period_us")?;
    let period = nonzero(cpu.period()).filter(|period| standing.as_deref().map(str::trim) != Some(period));
    let mut set = |file, value: Option<String>, field| {
        settings.extend(value.map(|value| Setting::new("cpu", file, value, field)));
    };
    let shares = nonzero(cpu.shares());
    // The kernel takes no shares while a group is idle.
    let wakes = cpu.idle() == Some(0);
    set("cpu.idle", cpu.idle().filter(|_| wakes).map(text_of), "cpu.idle");
    set("cpu.shares", shares, "cpu.shares");
    set("cpu.idle", cpu.idle().filter(|_| !wakes).map(text_of), "cpu.idle");
    set("cpu.cfs_period_us", period, "cpu.period");
    set("cpu.cfs_quota_us", nonzero(cpu.quota()), "cpu.quota");
    set("cpu.cfs_burst_us", cpu.burst().map(text_of), "cpu.burst");
    set("cpu.rt_period_us", nonzero(cpu.realtime_period()), "cpu.realtimePeriod");
    set("cpu.rt_runtime_us", nonzero(cpu.realtime_runtime()), "cpu.realtimeRuntime");
    Ok(settings)
}

fn version_2(cpu: &LinuxCpu, group: &Cgroup) -> Result<Vec<Setting>> {
    let mut settings = Vec::new();
    let idle = cpu.idle().map(|idle| Setting::new("cpu", "cpu.idle", idle, "cpu.idle"));
    let weight = cpu.shares().filter(|shares| *shares != 0).map(weight);
    let weight = weight.map(|weight| Setting::new("cpu", "cpu.weight", weight, "cpu.shares"));
    // The kernel takes no weight while a group is idle.
    let wakes = cpu.idle() == Some(0);
    settings.extend(if wakes { [idle, weight] } else { [weight, idle] }.into_iter().flatten());
    let quota = cpu.quota().filter(|quota| *quota != 0);
    let quota = quota.map(|quota| if quota > 0 { quota.to_string() } else { "max".to_owned() });
    let maximum = match (quota, nonzero(cpu.period())) {
        (None, None) => None,
        // The kernel keeps the period that stands there.
        (Some(quota), None) => Some((quota, "cpu.quota")),
        (Some(quota), Some(period)) => Some((format!("{quota} {period}"), "cpu.quota")),
        (None, Some(period)) => {
            let old = text(group, "cpu", "cpu.max")?.unwrap_or_default();
            let quota = old.split_ascii_whitespace().next().unwrap_or("max");
            Some((format!("{quota} {period}"), "cpu.period"))
        }
    };
    settings.extend(maximum.map(|(value, field)| Setting::new("cpu", "cpu.max", value, field)));
    settings.extend(cpu.burst().map(|burst| Setting::new("cpu", "cpu.max.burst", burst, "cpu.burst")));
    Ok(settings)
}

fn nonzero<T: Default + PartialEq + ToString>(value: Option<T>) -> Option<String> {
    value.filter(|value| *value != T::default()).map(text_of)
}

#[expect(clippy::needless_pass_by_value, reason = "for Option::map over numbers")]
fn text_of(value: impl ToString) -> String {
    value.to_string()
}

/// Version 2's weight (1 to 10000, usually 100) for version 1's shares (2 to 262144, usually 1024): the quadratic
/// curve in the logarithms through (2, 1), (1024, 100) and (262144, 10000) that runc 1.3.2 and crun 1.23 came to
/// use; the straight line before it gave 39 for 1024.
pub fn weight(shares: u64) -> u64 {
    match shares {
        0..=2 => 1,
        262_144.. => 10_000,
        shares => {
            let log = (shares as f64).log2();
            10_f64.powf((log * log + 125.0 * log) / 612.0 - 7.0 / 34.0).ceil() as u64
        }
    }
}

fn usage_1(group: &Cgroup) -> Result<Option<CpuUsage>> {
    let Some(total) = number(group, "cpuacct", "cpuacct.usage")? else { return Ok(None) };
    let stat = text(group, "cpu", "cpu.stat")?.unwrap_or_default();
    let of = |key| keyed(&stat, key).unwrap_or_default();
    let per_cpu = text(group, "cpuacct", "cpuacct.usage_percpu")?.unwrap_or_default();
    Ok(Some(CpuUsage {
        total,
        per_cpu: per_cpu.split_ascii_whitespace().filter_map(|time| time.parse().ok()).collect(),
        user: number(group, "cpuacct", "cpuacct.usage_user")?.unwrap_or_default(),
        system: number(group, "cpuacct", "cpuacct.usage_sys")?.unwrap_or_default(),
        periods: of("nr_periods"),
        throttled_periods: of("nr_throttled"),
        throttled_time: of("throttled_time"),
        pressure: None,
    }))
}

/// Version 2 counts microseconds.
fn usage_2(stat: &str) -> CpuUsage {
    let of = |key| keyed(stat, key).unwrap_or_default();
    CpuUsage {
        total: of("usage_usec") * 1000,
        user: of("user_usec") * 1000,
        system: of("system_usec") * 1000,
        periods: of("nr_periods"),
        throttled_periods: of("nr_throttled"),
        throttled_time: of("throttled_usec") * 1000,
        ..CpuUsage::default()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::{Group, refusal, written};

    #[test]
    fn shares_become_weights_on_the_curve() {
        for (shares, wanted) in
            [(2, 1), (3, 2), (10, 4), (512, 59), (1024, 100), (2048, 174), (262_144, 10_000)]
        {
            assert_eq!(weight(shares), wanted, "{shares}");
        }
    }

    #[test]
    fn each_field_is_one_write() {
        let cpu = json!({"shares": 512, "quota": 50_000, "period": 100_000, "burst": 10});
        let one =
            ["cpu.shares=512", "cpu.cfs_period_us=100000", "cpu.cfs_quota_us=50000", "cpu.cfs_burst_us=10"];
        assert_eq!(written(&Cpu, CgroupVersion::V1, json!({ "cpu": cpu })), one);
        let two = ["cpu.weight=59", "cpu.max=50000 100000", "cpu.max.burst=10"];
        assert_eq!(written(&Cpu, CgroupVersion::V2, json!({ "cpu": cpu })), two);
    }

    #[test]
    fn a_quota_that_can_not_be_is_hinted_at() {
        for (call, is_hinted) in
            [("write(\"cpu.cfs_quota_us\", \"5\")", true), ("write(\"cpu.shares\", \"x\")", false)]
        {
            let hint = Cpu.hint(&Error::failed(call, Errno::EINVAL));
            assert_eq!(hint.is_some_and(|hint| hint.contains("a quota at least 1000")), is_hinted, "{call}");
        }
    }

    #[test]
    fn a_group_goes_idle_after_its_shares_and_wakes_before_them() {
        let idle = |idle: u8| json!({"cpu": {"shares": 2, "idle": idle}});
        assert_eq!(written(&Cpu, CgroupVersion::V1, idle(1)), ["cpu.shares=2", "cpu.idle=1"]);
        assert_eq!(written(&Cpu, CgroupVersion::V1, idle(0)), ["cpu.idle=0", "cpu.shares=2"]);
        assert_eq!(written(&Cpu, CgroupVersion::V2, idle(0)), ["cpu.idle=0", "cpu.weight=1"]);
    }

    #[test]
    fn version_2_writes_quota_and_period_alone_too() {
        assert_eq!(written(&Cpu, CgroupVersion::V2, json!({"cpu": {"quota": -1}})), ["cpu.max=max"]);
        assert_eq!(written(&Cpu, CgroupVersion::V2, json!({"cpu": {"period": 9}})), ["cpu.max=max 9"]);
    }

    #[test]
    fn zero_is_as_good_as_absent() {
        let cpu = json!({"cpu": {"shares": 0, "quota": 0, "period": 0}});
        assert_eq!(written(&Cpu, CgroupVersion::V1, cpu), Vec::<String>::new());
    }

    #[test]
    fn realtime_limits_are_refused_on_version_2() {
        let wanted = "/linux/resources/cpu/realtimeRuntime: cgroup version 2, which this machine runs, has no such limit";
        assert_eq!(refusal(&Cpu, CgroupVersion::V2, json!({"cpu": {"realtimeRuntime": 5}})), wanted);
    }

    #[test]
    fn version_2_s_microseconds_are_told_as_nanoseconds() {
        let usage = usage_2(
            "usage_usec 7\nuser_usec 5\nsystem_usec 2\nnr_periods 3\nnr_throttled 1\nthrottled_usec 9\n",
        );
        let wanted = CpuUsage {
            total: 7000,
            user: 5000,
            system: 2000,
            periods: 3,
            throttled_periods: 1,
            throttled_time: 9000,
            ..CpuUsage::default()
        };
        assert_eq!(usage, wanted);
    }

    #[test]
    fn the_kernel_takes_what_is_written_and_lower_limits_later() {
        let Some(group) = Group::version_1("cpu-limits", &["cpu", "cpuacct"]) else { return };
        group
            .apply(Cpu, json!({"cpu": {"shares": 512, "quota": 50_000, "period": 100_000, "burst": 20_000}}));
        assert_eq!(group.read("cpu", "cpu.shares"), "512");
        assert_eq!(group.read("cpu", "cpu.cfs_quota_us"), "50000");
        // The burst that stands there is above the new quota: one order alone would be refused.
        group.apply(Cpu, json!({"cpu": {"quota": 10_000, "period": 50_000, "burst": 5_000}}));
        assert_eq!(group.read("cpu", "cpu.cfs_quota_us"), "10000");
        assert_eq!(group.read("cpu", "cpu.cfs_burst_us"), "5000");
        group.apply(Cpu, json!({"cpu": {"quota": -1}}));
        assert_eq!(group.read("cpu", "cpu.cfs_quota_us"), "-1");
        assert!(Cpu.usage(&group.group).unwrap().cpu.is_some());
    }
}
