//! What becomes of a spec for a container of a user without privilege.

use coracle_sys::users::{Line, Maps};
use oci_spec::runtime::Spec;
use serde_json::{Value, json};

use super::spec::{finish, to_value};
use crate::error::Result;

/// What a user without privilege may do, as runc writes it: the users and groups of `maps`, the first of them the caller, who
/// is root inside; the host's network, and therefore the host's sysfs; no limits, and no groups that nobody may set.
///
/// # Errors
/// None that is known.
pub fn rootless(spec: &Spec, maps: &Maps) -> Result<Spec> {
    let mut spec = to_value(spec)?;
    let linux = &mut spec["linux"];
    let mappings = |lines: &[Line]| -> Value {
        let mapping = |l: &Line| json!({"containerID": l.inside, "hostID": l.outside, "size": l.count});
        lines.iter().map(mapping).collect()
    };
    linux["uidMappings"] = mappings(&maps.users);
    linux["gidMappings"] = mappings(&maps.groups);
    if let Some(namespaces) = linux["namespaces"].as_array_mut() {
        namespaces.retain(|namespace| namespace["type"] != "network");
        namespaces.push(json!({"type": "user"}));
    }
    if let Some(linux) = linux.as_object_mut() {
        linux.remove("resources");
    }
    // Who maps its own group alone has to give up setting others (user_namespaces(7)).
    let may_set = |group: u32| maps.groups.len() > 1 && is_mapped(&maps.groups, group);
    if let Some(groups) = spec["process"]["user"]["additionalGids"].as_array_mut() {
        groups.retain(|group| group.as_u64().is_some_and(|group| u32::try_from(group).is_ok_and(may_set)));
    }
    if let Some(mounts) = spec["mounts"].as_array_mut() {
        mounts.retain(|mount| mount["type"] != "cgroup");
        mounts.iter_mut().for_each(|mount| make_mount_rootless(mount, maps));
    }
    finish(spec)
}

fn make_mount_rootless(mount: &mut Value, maps: &Maps) {
    if mount["type"] == "sysfs" {
        // All of it: below lie the user's own cgroups, delegated and writable (CVE-2023-25809).
        let options = ["rbind", "nosuid", "noexec", "nodev", "rro"];
        *mount = json!({"destination": "/sys", "type": "none", "source": "/sys", "options": options});
    }
    let is_known = |option: &str| match option.split_once('=') {
        Some(("uid", id)) => id.parse().is_ok_and(|id| is_mapped(&maps.users, id)),
        Some(("gid", id)) => id.parse().is_ok_and(|id| is_mapped(&maps.groups, id)),
        _ => true,
    };
    if let Some(options) = mount["options"].as_array_mut() {
        options.retain(|option| option.as_str().is_none_or(is_known));
    }
}

fn is_mapped(lines: &[Line], id: u32) -> bool {
    lines.iter().any(|line| id.checked_sub(line.inside).is_some_and(|offset| offset < line.count))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::default_spec;

    fn written(count: u32) -> Value {
        let more = (count > 0).then_some(Line { inside: 1, outside: 100_000, count });
        let lines: Vec<Line> =
            [Line { inside: 0, outside: 1000, count: 1 }].into_iter().chain(more).collect();
        let maps = Maps { users: lines.clone(), groups: lines };
        let mut spec = to_value(&default_spec().unwrap()).unwrap();
        spec["process"]["user"]["additionalGids"] = json!([5, 70_000]);
        to_value(&rootless(&finish(spec).unwrap(), &maps).unwrap()).unwrap()
    }

    fn terminals(spec: &Value) -> String {
        let mounts = spec["mounts"].as_array().unwrap();
        mounts.iter().find(|mount| mount["type"] == "devpts").unwrap()["options"].to_string()
    }

    #[test]
    fn one_user_is_root_and_sets_no_groups() {
        let spec = written(0);
        assert_eq!(spec["linux"]["uidMappings"], json!([{"containerID": 0, "hostID": 1000, "size": 1}]));
        assert!(spec["linux"]["resources"].is_null());
        assert!(!spec["linux"]["namespaces"].to_string().contains("network"));
        assert!(!spec["mounts"].to_string().contains("cgroup"));
        assert!(!terminals(&spec).contains("gid="));
        assert_ne!(spec["process"]["user"]["additionalGids"], json!([5]));
    }

    #[test]
    fn with_a_range_the_groups_in_it_can_be_set() {
        let spec = written(65536);
        assert_eq!(spec["linux"]["gidMappings"][1]["size"], 65536);
        assert!(terminals(&spec).contains("gid=5"));
        assert_eq!(spec["process"]["user"]["additionalGids"], json!([5]));
    }
}
