//! What these isolators write and tell, beside what the cgroups-rs crate reads in the same groups.

use cgroups_rs::fs::cpu::CpuController;
use cgroups_rs::fs::cpuacct::CpuAcctController;
use cgroups_rs::fs::memory::MemController;
use cgroups_rs::fs::pid::PidController;
use cgroups_rs::fs::{Cgroup, MaxValue, hierarchies};
use serde_json::json;

use crate::isolators;
use crate::testing::Group;

#[test]
fn another_reader_finds_the_limits_and_the_usage_that_we_tell() {
    let Some(group) = Group::version_1("parity", &["cpu", "cpuacct", "memory", "pids"]) else { return };
    let resources = json!({
        "cpu": {"shares": 512, "quota": 50_000, "period": 100_000},
        "memory": {"limit": 64 << 20},
        "pids": {"limit": 9},
    });
    for isolator in isolators().iter().filter(|isolator| isolator.name() != "cgroups/devices") {
        group.isolate(&**isolator, resources.clone()).unwrap();
    }
    assert!(group.run("exec head -c 3000000 /dev/zero").success());
    let usage = group.usage(&isolators());
    let other = Cgroup::load(hierarchies::auto(), group.name());

    let cpu: &CpuController = other.controller_of().unwrap();
    assert_eq!(
        (cpu.shares().unwrap(), cpu.cfs_quota().unwrap(), cpu.cfs_period().unwrap()),
        (512, 50_000, 100_000)
    );
    let accounting: &CpuAcctController = other.controller_of().unwrap();
    assert_eq!(accounting.cpuacct().usage, usage.cpu.unwrap().total);
    let memory = other.controller_of::<MemController>().unwrap().memory_stat();
    let ours = usage.memory.unwrap();
    assert_eq!((memory.limit_in_bytes, ours.limit), (64 << 20, Some(64 << 20)));
    assert_eq!((Some(memory.max_usage_in_bytes), memory.oom_control.oom_kill), (ours.peak, ours.oom_kills));
    let pids: &PidController = other.controller_of().unwrap();
    assert!(matches!(pids.get_pid_max().unwrap(), MaxValue::Value(9)));
    assert_eq!(pids.get_pid_current().unwrap(), usage.pids.unwrap().current);
}
