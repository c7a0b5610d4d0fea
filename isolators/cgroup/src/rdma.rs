//! `cgroups/rdma`: how much of RDMA devices a container may use.

use std::collections::BTreeMap;

use coracle_isolator::{Cgroup, RdmaUsage, Result, Usage};
use oci_spec::runtime::LinuxResources;

use crate::limit::{Controller, Setting};
use crate::statistics::{pairs, text};

/// `linux.resources.rdma`: handles and objects for each device. Both versions have the same files.
#[derive(Debug)]
pub(crate) struct Rdma;

impl Controller for Rdma {
    const NAME: &'static str = "cgroups/rdma";

    fn settings(&self, _: &Cgroup, resources: &LinuxResources) -> Result<Vec<Setting>> {
        let mut devices: Vec<_> = resources.rdma().iter().flatten().collect();
        devices.sort_by_key(|(device, _)| *device);
        let settings = devices.into_iter().map(|(device, limit)| {
            let handles = limit.hca_handles().map(|most| format!(" hca_handle={most}"));
            let objects = limit.hca_objects().map(|most| format!(" hca_object={most}"));
            let value = format!("{device}{}{}", handles.unwrap_or_default(), objects.unwrap_or_default());
            Setting::new("rdma", "rdma.max", value, format!("rdma.{device}"))
        });
        Ok(settings.collect())
    }

    fn usage(&self, group: &Cgroup) -> Result<Usage> {
        let current = text(group, "rdma", "rdma.current")?.unwrap_or_default();
        Ok(Usage { rdma: devices(&current), ..Usage::default() })
    }
}

fn devices(current: &str) -> BTreeMap<String, RdmaUsage> {
    let lines = current.lines().filter_map(|line| line.split_once(' '));
    let device = |(name, line): (&str, &str)| {
        let of = |wanted| pairs(line).find(|(key, _)| *key == wanted).map_or(0, |(_, value)| value);
        (name.to_owned(), RdmaUsage { hca_handles: of("hca_handle"), hca_objects: of("hca_object") })
    };
    lines.map(device).collect()
}

#[cfg(test)]
mod tests {
    use coracle_isolator::CgroupVersion;
    use serde_json::json;

    use super::*;
    use crate::testing::written;

    #[test]
    fn each_device_is_one_write() {
        let rdma =
            json!({"rdma": {"mlx5_1": {"hcaHandles": 3, "hcaObjects": 10}, "mlx4_0": {"hcaObjects": 1}}});
        let wanted = ["rdma.max=mlx4_0 hca_object=1", "rdma.max=mlx5_1 hca_handle=3 hca_object=10"];
        assert_eq!(written(&Rdma, CgroupVersion::V1, rdma), wanted);
    }

    #[test]
    fn usage_is_told_by_device() {
        let usage = devices("mlx4_0 hca_handle=2 hca_object=2000\n");
        assert_eq!(usage["mlx4_0"], RdmaUsage { hca_handles: 2, hca_objects: 2000 });
    }
}
