//! `cgroups/hugetlb`: how many huge pages a container may use.

use std::collections::BTreeMap;

use coracle_isolator::{Cgroup, CgroupVersion, Error, HugetlbUsage, Result, Usage};
use coracle_sys::file;
use oci_spec::runtime::LinuxResources;

use crate::limit::{Controller, Setting, WhereMissing};
use crate::statistics::{keyed, number, text};

/// `linux.resources.hugepageLimits`: bytes for each size of page, for use and for reservation alike: a container
/// could otherwise reserve what it may not use and starve others (Linux 5.7 brought the limit for reservations).
#[derive(Debug)]
pub(crate) struct Hugetlb;

impl Controller for Hugetlb {
    const NAME: &'static str = "cgroups/hugetlb";

    fn check(&self, _: CgroupVersion, resources: &LinuxResources) -> Result<Vec<String>> {
        for (i, limit) in resources.hugepage_limits().iter().flatten().enumerate() {
            if !is_size(limit.page_size()) {
                let what = format!("{:?} is no size of a page, as 64KB, 2MB and 1GB are", limit.page_size());
                return Err(Error::new(what).at(format!("/linux/resources/hugepageLimits/{i}/pageSize")));
            }
        }
        Ok(Vec::new())
    }

    fn settings(&self, group: &Cgroup, resources: &LinuxResources) -> Result<Vec<Setting>> {
        let file = match group.version() {
            CgroupVersion::V1 => "limit_in_bytes",
            CgroupVersion::V2 => "max",
        };
        let mut settings = Vec::new();
        for (i, limit) in resources.hugepage_limits().iter().flatten().enumerate() {
            let size = limit.page_size();
            let value = match (group.version(), limit.limit()) {
                (CgroupVersion::V2, bytes) if bytes < 0 => "max".to_owned(),
                (_, bytes) => bytes.to_string(),
            };
            let field = || format!("hugepageLimits/{i}");
            settings.push(Setting::new("hugetlb", format!("hugetlb.{size}.{file}"), &value, field()));
            settings.push(
                Setting::new("hugetlb", format!("hugetlb.{size}.rsvd.{file}"), &value, field())
                    .where_missing(WhereMissing::Skip),
            );
        }
        Ok(settings)
    }

    fn usage(&self, group: &Cgroup) -> Result<Usage> {
        let mut hugetlb = BTreeMap::new();
        let Some(dir) = group.dir("hugetlb") else { return Ok(Usage::default()) };
        let (usage_file, v1) = match group.version() {
            CgroupVersion::V1 => ("usage_in_bytes", true),
            CgroupVersion::V2 => ("current", false),
        };
        let files = file::list(dir).map_err(|e| Error::failed(e.call(), e.errno()))?;
        for file in files.iter().filter_map(|file| file.to_str()) {
            let size = file.strip_prefix("hugetlb.").and_then(|file| file.strip_suffix(usage_file));
            let Some(size) = size.and_then(|size| size.strip_suffix('.')).filter(|size| is_size(size)) else {
                continue;
            };
            let of = |name: &str| number(group, "hugetlb", &format!("hugetlb.{size}.{name}"));
            let events = text(group, "hugetlb", &format!("hugetlb.{size}.events"))?.unwrap_or_default();
            let failures = if v1 { of("failcnt")? } else { keyed(&events, "max") };
            let peak = if v1 { of("max_usage_in_bytes")? } else { None };
            let usage = of(usage_file)?.unwrap_or_default();
            hugetlb.insert(
                size.to_owned(),
                HugetlbUsage { usage, peak, failures: failures.unwrap_or_default() },
            );
        }
        Ok(Usage { hugetlb, ..Usage::default() })
    }
}

/// A size as the kernel writes it in the names of files: `64KB`.
fn is_size(size: &str) -> bool {
    let number = ["KB", "MB", "GB"].iter().find_map(|unit| size.strip_suffix(unit)).unwrap_or_default();
    number.bytes().all(|byte| byte.is_ascii_digit())
        && number.bytes().next().is_some_and(|first| first != b'0')
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::{refusal, written};

    #[test]
    fn use_and_reservation_are_limited_alike() {
        let limits = json!({"hugepageLimits": [{"pageSize": "2MB", "limit": 4_194_304}]});
        let one = ["hugetlb.2MB.limit_in_bytes=4194304", "hugetlb.2MB.rsvd.limit_in_bytes=4194304"];
        assert_eq!(written(&Hugetlb, CgroupVersion::V1, limits.clone()), one);
        let two = ["hugetlb.2MB.max=4194304", "hugetlb.2MB.rsvd.max=4194304"];
        assert_eq!(written(&Hugetlb, CgroupVersion::V2, limits), two);
    }

    #[test]
    fn what_is_no_size_is_refused_by_name() {
        for size in ["", "MB", "02MB", "2mb", "2MB/../x", "2M"] {
            let limits = json!({"hugepageLimits": [{"pageSize": size, "limit": 1}]});
            let wanted = format!(
                "/linux/resources/hugepageLimits/0/pageSize: {size:?} is no size of a page, as 64KB, 2MB and 1GB are"
            );
            assert_eq!(refusal(&Hugetlb, CgroupVersion::V1, limits), wanted);
        }
    }
}
