//! `cgroups/unified`: files of cgroup version 2 by their names.

use coracle_isolator::{Cgroup, CgroupVersion, Error, Result};
use oci_spec::runtime::LinuxResources;

use crate::limit::{Controller, Setting};

/// `linux.resources.unified`: a map of files to values, written after all other limits and in the files' order.
#[derive(Debug)]
pub(crate) struct Unified;

impl Controller for Unified {
    const NAME: &'static str = "cgroups/unified";

    fn check(&self, version: CgroupVersion, resources: &LinuxResources) -> Result<Vec<String>> {
        let asked = resources.unified().as_ref().is_some_and(|unified| !unified.is_empty());
        if asked && version == CgroupVersion::V1 {
            return Err(Error::new(
                "invalid configuration: this machine's controllers are on cgroup version 1, which has no such files",
            )
            .at("/linux/resources/unified"));
        }
        Ok(Vec::new())
    }

    fn settings(&self, _: &Cgroup, resources: &LinuxResources) -> Result<Vec<Setting>> {
        let mut files: Vec<_> = resources.unified().iter().flatten().collect();
        files.sort();
        let setting = |(file, value): (&String, &String)| {
            let field = format!("unified.{}", file.replace('~', "~0").replace('/', "~1"));
            Setting::new("unified", file.clone(), value, field)
        };
        Ok(files.into_iter().map(setting).collect())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::{Group, refusal, written};

    #[test]
    fn each_file_is_one_write_in_order() {
        let files = json!({"unified": {"memory.high": "9", "cpu.max": "max 5"}});
        assert_eq!(written(&Unified, CgroupVersion::V2, files), ["cpu.max=max 5", "memory.high=9"]);
    }

    #[test]
    fn version_1_refuses() {
        let wanted = "/linux/resources/unified: invalid configuration: this machine's controllers are on cgroup version 1, \
                      which has no such files";
        assert_eq!(refusal(&Unified, CgroupVersion::V1, json!({"unified": {"cpu.max": "1"}})), wanted);
    }

    #[test]
    fn no_name_leads_out_of_the_group() {
        let Some(group) = Group::version_2("unified") else { return };
        group.apply(Unified, json!({"unified": {"cgroup.max.depth": "3"}}));
        assert_eq!(group.read("unified", "cgroup.max.depth"), "3");
        let error = group.try_apply(Unified, json!({"unified": {"../cgroup.procs": "1"}})).unwrap_err();
        let wanted =
            "/linux/resources/unified/..~1cgroup.procs: \"../cgroup.procs\" is no file of a control group";
        assert_eq!(error, wanted);
    }
}
