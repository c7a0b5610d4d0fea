//! `cgroups/cpuset`: on which processors and memory nodes a container runs.

use coracle_isolator::{Cgroup, Result};
use oci_spec::runtime::LinuxResources;

use crate::limit::{Controller, Setting};

/// `linux.resources.cpu.cpus` and `mems`, lists as in `0-3,6`. On version 1 both files must be filled in every
/// ancestor before a process can enter: that is the work of who makes the groups.
#[derive(Debug)]
pub(crate) struct Cpuset;

impl Controller for Cpuset {
    const NAME: &'static str = "cgroups/cpuset";

    fn settings(&self, _: &Cgroup, resources: &LinuxResources) -> Result<Vec<Setting>> {
        let Some(cpu) = resources.cpu() else { return Ok(Vec::new()) };
        let lists = [(cpu.cpus(), "cpuset.cpus", "cpu.cpus"), (cpu.mems(), "cpuset.mems", "cpu.mems")];
        let set = lists.into_iter().filter_map(|(list, file, field)| {
            let list = list.as_deref().filter(|list| !list.is_empty())?;
            Some(Setting::new("cpuset", file, list, field))
        });
        Ok(set.collect())
    }
}

#[cfg(test)]
mod tests {
    use coracle_isolator::CgroupVersion;
    use serde_json::json;

    use super::*;
    use crate::testing::{Group, written};

    #[test]
    fn each_list_is_one_write() {
        let cpu = json!({"cpu": {"cpus": "0-1", "mems": "0"}});
        for version in [CgroupVersion::V1, CgroupVersion::V2] {
            assert_eq!(written(&Cpuset, version, cpu.clone()), ["cpuset.cpus=0-1", "cpuset.mems=0"]);
        }
        assert!(written(&Cpuset, CgroupVersion::V1, json!({"cpu": {"cpus": ""}})).is_empty());
    }

    #[test]
    fn a_processor_that_is_not_there_is_refused_by_name() {
        let Some(group) = Group::version_1("cpuset", &["cpuset"]) else { return };
        group.apply(Cpuset, json!({"cpu": {"cpus": "0", "mems": "0"}}));
        assert_eq!(group.read("cpuset", "cpuset.cpus"), "0");
        let error = group.try_apply(Cpuset, json!({"cpu": {"cpus": "4000"}})).unwrap_err();
        assert!(
            error.starts_with("/linux/resources/cpu/cpus: write(\"cpuset.cpus\", \"4000\"): "),
            "{error}"
        );
    }
}
