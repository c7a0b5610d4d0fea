//! `cgroups/net`: how a container's packets are marked.

use coracle_isolator::{Cgroup, CgroupVersion, Result};
use oci_spec::runtime::LinuxResources;

use crate::limit::{Controller, Setting, not_on};

/// `linux.resources.network`: a class for traffic control and priorities by interface. Version 1 alone has them.
#[derive(Debug)]
pub(crate) struct Net;

impl Controller for Net {
    const NAME: &'static str = "cgroups/net";

    fn check(&self, version: CgroupVersion, resources: &LinuxResources) -> Result<Vec<String>> {
        let Some(network) = resources.network() else { return Ok(Vec::new()) };
        let priorities = network.priorities().as_ref().is_some_and(|priorities| !priorities.is_empty());
        for (set, field) in [(network.class_id().is_some(), "classID"), (priorities, "priorities")] {
            if set && version == CgroupVersion::V2 {
                return Err(not_on(version, &format!("network.{field}")));
            }
        }
        Ok(Vec::new())
    }

    fn settings(&self, _: &Cgroup, resources: &LinuxResources) -> Result<Vec<Setting>> {
        let Some(network) = resources.network() else { return Ok(Vec::new()) };
        let class = network.class_id();
        let class = class.map(|class| Setting::new("net_cls", "net_cls.classid", class, "network.classID"));
        let priorities = network.priorities().iter().flatten().enumerate().map(|(i, interface)| {
            let value = format!("{} {}", interface.name(), interface.priority());
            Setting::new("net_prio", "net_prio.ifpriomap", value, format!("network.priorities/{i}"))
        });
        Ok(class.into_iter().chain(priorities).collect())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::{refusal, written};

    #[test]
    fn class_and_priorities_are_written_on_version_1() {
        let network = json!({"network": {"classID": 5, "priorities": [{"name": "eth0", "priority": 7}]}});
        let wanted = ["net_cls.classid=5", "net_prio.ifpriomap=eth0 7"];
        assert_eq!(written(&Net, CgroupVersion::V1, network), wanted);
    }

    #[test]
    fn version_2_refuses_both_by_name() {
        let wanted = "cgroup version 2, which this machine runs, has no such limit";
        let class = refusal(&Net, CgroupVersion::V2, json!({"network": {"classID": 5}}));
        assert_eq!(class, format!("/linux/resources/network/classID: {wanted}"));
    }
}
