//! `cgroups/pids`: how many tasks a container may have.

use coracle_isolator::{Cgroup, PidsUsage, Result, Usage};
use oci_spec::runtime::LinuxResources;

use crate::limit::{Controller, Setting};
use crate::statistics::number;

/// `linux.resources.pids.limit`: a number of tasks, none where negative. Zero is a limit since runtime-spec 1.3,
/// and means one task, as systemd has it, too: the first process runs and can't fork.
#[derive(Debug)]
pub(crate) struct Pids;

impl Controller for Pids {
    const NAME: &'static str = "cgroups/pids";

    fn settings(&self, _: &Cgroup, resources: &LinuxResources) -> Result<Vec<Setting>> {
        let limit = resources.pids().map(|pids| match pids.limit() {
            limit if limit < 0 => "max".to_owned(),
            0 => "1".to_owned(),
            limit => limit.to_string(),
        });
        Ok(limit.map(|limit| Setting::new("pids", "pids.max", limit, "pids.limit")).into_iter().collect())
    }

    fn usage(&self, group: &Cgroup) -> Result<Usage> {
        let Some(current) = number(group, "pids", "pids.current")? else { return Ok(Usage::default()) };
        let pids = Some(PidsUsage { current, limit: number(group, "pids", "pids.max")? });
        Ok(Usage { pids, ..Usage::default() })
    }
}

#[cfg(test)]
mod tests {
    use coracle_isolator::CgroupVersion;
    use serde_json::json;

    use super::*;
    use crate::testing::{Group, written};

    #[test]
    fn a_negative_limit_is_none_and_zero_is_one() {
        for (limit, wanted) in [(-1, "pids.max=max"), (0, "pids.max=1"), (7, "pids.max=7")] {
            let resources = json!({"pids": {"limit": limit}});
            assert_eq!(written(&Pids, CgroupVersion::V1, resources), [wanted]);
        }
    }

    #[test]
    fn the_kernel_takes_what_is_written() {
        let Some(group) = Group::version_1("pids", &["pids"]) else { return };
        group.apply(Pids, json!({"pids": {"limit": 12}}));
        let pids = Pids.usage(&group.group).unwrap().pids;
        assert_eq!(pids, Some(PidsUsage { current: 0, limit: Some(12) }));
        group.apply(Pids, json!({"pids": {"limit": -1}}));
        assert_eq!(Pids.usage(&group.group).unwrap().pids.unwrap().limit, None);
    }
}
