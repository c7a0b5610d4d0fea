//! A container of another runtime: what procfs tells of its process, as a configuration.

use std::collections::{BTreeSet, HashMap};
use std::os::fd::AsFd;

use coracle_image::bundle;
use coracle_sys::file::{self, Resolve};
use coracle_sys::users::{self, Maps};
use serde_json::{Value, json};

use crate::error::{Code, Context, Error, Result};
use crate::stages::spec::SPEC_VERSION;

/// The longest file that is read: an environment.
const LONGEST: u64 = 4 << 20;

/// The configuration of a container whose process is `pid`, as far as that shows it: user, environment, capabilities,
/// labels, and whether it has a filter of system calls. Of the filter itself only a debugger could read the program, so
/// the built-in one for its capabilities stands in for it.
///
/// # Errors
/// Where it ends meanwhile.
pub(super) fn config(pid: i32, kinds: i32) -> Result<Value> {
    let dir = file::open_dir(format!("/proc/{pid}"))?;
    let read = |name: &str| file::read(dir.as_fd(), name, LONGEST, Resolve::BeneathNoLinks);
    let status = String::from_utf8_lossy(&read("status")?).into_owned();
    let status = Status::parse(&status);
    let has_users = kinds & libc::CLONE_NEWUSER != 0;
    let maps = has_users.then(|| Maps::of(dir.as_fd())).transpose()?;
    let bounding = status.capabilities("CapBnd")?;
    let environment = read("environ")?;
    let seccomp = match status.number("Seccomp")? {
        0 => None,
        _ => bundle::default_seccomp(&bounding).context(|| "choosing a filter of system calls")?,
    };
    let mut config = json!({
        "ociVersion": SPEC_VERSION,
        "process": {
            "user": status.user(maps.as_ref())?,
            "cwd": file::read_link(dir.as_fd(), "cwd")?.to_string_lossy(),
            "env": strings(&environment),
            "noNewPrivileges": status.number("NoNewPrivs")? == 1,
            "capabilities": {
                "bounding": bounding,
                "effective": status.capabilities("CapEff")?,
                "permitted": status.capabilities("CapPrm")?,
                "inheritable": status.capabilities("CapInh")?,
                "ambient": status.capabilities("CapAmb")?,
            },
        },
        "linux": {"resources": {"devices": [{"allow": false, "access": "rwm"}]}},
    });
    if let Some(seccomp) = seccomp {
        config["linux"]["seccomp"] = seccomp;
    }
    // A kernel without such modules has nothing to tell.
    let label = read("attr/current").unwrap_or_default();
    if let Some((field, label)) = label_of(String::from_utf8_lossy(&label).trim_end_matches(['\0', '\n'])) {
        config["process"][field] = label.into();
    }
    Ok(config)
}

/// The strings of an environment that are variables.
fn strings(environment: &[u8]) -> Vec<String> {
    let all = environment.split(|byte| *byte == 0).map(|text| String::from_utf8_lossy(text).into_owned());
    all.filter(|text| text.contains('=')).collect()
}

/// The field of a configuration that `label`, as `/proc/PID/attr/current` shows it, belongs to; none for one that
/// confines nothing.
fn label_of(label: &str) -> Option<(&'static str, String)> {
    let profile = ["(enforce)", "(complain)"].iter().find_map(|mode| label.strip_suffix(mode));
    match profile {
        Some(profile) => Some(("apparmorProfile", profile.trim_end().to_owned())),
        None => (label.matches(':').count() >= 2).then(|| ("selinuxLabel", label.to_owned())),
    }
}

/// `/proc/PID/status` (proc_pid_status(5)).
struct Status<'a>(HashMap<&'a str, &'a str>);

impl<'a> Status<'a> {
    fn parse(text: &'a str) -> Self {
        Self(text.lines().filter_map(|line| line.split_once(':')).map(|(k, v)| (k, v.trim())).collect())
    }

    fn field(&self, name: &str) -> Result<&str> {
        let missing = || Error::new(Code::System, format!("/proc/PID/status has no {name}"));
        self.0.get(name).copied().ok_or_else(missing)
    }

    fn number(&self, name: &str) -> Result<u32> {
        let odd = |_| Error::new(Code::System, format!("/proc/PID/status: {name} is no number"));
        self.field(name)?.parse().map_err(odd)
    }

    /// The names of a set of capabilities.
    fn capabilities(&self, name: &str) -> Result<BTreeSet<String>> {
        let odd = |_| Error::new(Code::System, format!("/proc/PID/status: {name} is no mask"));
        let mask = u64::from_str_radix(self.field(name)?, 16).map_err(odd)?;
        let known = caps::all().into_iter().filter(|capability| mask & capability.bitmask() != 0);
        Ok(known.map(|capability| capability.to_string()).collect())
    }

    /// The user as its user namespace knows it: the effective IDs, and the groups that are mapped there. Without `maps` it is
    /// in the runtime's own.
    fn user(&self, maps: Option<&Maps>) -> Result<Value> {
        let user = |id| maps.map_or(Some(id), |maps| users::inside(&maps.users, id));
        let group = |id| maps.map_or(Some(id), |maps| users::inside(&maps.groups, id));
        let effective = |name| -> Result<u32> {
            let id = self.field(name)?.split_whitespace().nth(1).and_then(|id| id.parse().ok());
            id.ok_or_else(|| Error::new(Code::System, format!("/proc/PID/status: {name} is odd")))
        };
        let unmapped = || Error::new(Code::System, "its user is not mapped in its user namespace");
        let groups = self.field("Groups")?.split_whitespace().filter_map(|gid| gid.parse().ok());
        let groups: Vec<u32> = groups.filter_map(group).collect();
        Ok(json!({
            "uid": user(effective("Uid")?).ok_or_else(unmapped)?,
            "gid": group(effective("Gid")?).ok_or_else(unmapped)?,
            "umask": u32::from_str_radix(self.field("Umask")?, 8).unwrap_or(0o022),
            "additionalGids": groups,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_those_of_their_namespace() {
        let text =
            "Umask:\t0027\nUid:\t100000\t100033\t100033\t0\nGid:\t100000\t100034\t0\t0\nGroups:\t100005 7 \n";
        let map = users::lines("0 100000 65536\n");
        let maps = Maps { users: map.clone(), groups: map };
        let user = Status::parse(text).user(Some(&maps)).unwrap();
        assert_eq!(user, json!({"uid": 33, "gid": 34, "umask": 0o27, "additionalGids": [5]}));
        let plain = Status::parse(text).user(None).unwrap();
        assert_eq!((&plain["uid"], &plain["additionalGids"]), (&json!(100_033), &json!([100_005, 7])));
    }

    #[test]
    fn masks_become_names() {
        let status = Status::parse("CapEff:\t0000000000000021\n");
        let names = status.capabilities("CapEff").unwrap();
        assert_eq!(names.into_iter().collect::<Vec<_>>(), ["CAP_CHOWN", "CAP_KILL"]);
        assert!(status.capabilities("CapBnd").unwrap_err().to_string().contains("has no CapBnd"));
    }

    #[test]
    fn labels_are_told_apart_by_their_form() {
        assert_eq!(
            label_of("docker-default (enforce)").unwrap(),
            ("apparmorProfile", "docker-default".into())
        );
        assert_eq!(label_of("a:b:c:s0").unwrap(), ("selinuxLabel", "a:b:c:s0".into()));
        assert_eq!((label_of("unconfined"), label_of("")), (None, None));
    }
}
