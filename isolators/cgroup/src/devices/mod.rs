//! `cgroups/devices`: which devices a container may make and open.

mod policy;
mod program;

use std::os::fd::{AsFd, BorrowedFd};

use coracle_isolator::{
    Adjustment, Cgroup, CgroupVersion, Config, Errno, Error, Handles, Isolator, Result, in_user_namespace,
};
use coracle_sys::file::{self, Resolve};
use coracle_sys::{bpf, identity};
use oci_spec::runtime::{LinuxDeviceCgroup, LinuxResources};

use crate::limit::resources;
use policy::Policy;

/// `linux.resources.devices`, an allow list always: everything is denied first, whether the list is absent, empty
/// or without such a rule; then the devices that every container has are allowed (the pseudo-devices, terminals,
/// and mknod(2) of anything, which lets nobody open it); then the rules hold in their order. A rule that denies
/// everything starts again from there.
///
/// Version 1 has files for it, version 2 a program.
#[derive(Debug)]
pub(crate) struct Devices;

impl Isolator for Devices {
    fn name(&self) -> &str {
        "cgroups/devices"
    }

    fn prepare(&self, config: &Config<'_>) -> Result<Adjustment> {
        Policy::new(rules(resources(config.spec))).map(|_| Adjustment::default())
    }

    fn isolate(&self, container: &Handles<'_>) -> Result<()> {
        let rules = rules(resources(container.spec));
        let policy = Policy::new(rules)?;
        // A container without cgroups keeps to what its file systems and its capabilities allow.
        if rules.is_empty() && container.cgroup.is_absent() {
            return Ok(());
        }
        let failure = match write(container.cgroup, &policy, Change::First) {
            Err(failure) if is_out_of_reach(&failure) => failure,
            other => return other,
        };
        // Nobody makes device nodes in a user namespace, and its runtime may lack what it takes to limit them.
        let is_limited = rules.is_empty() && in_user_namespace(container.spec) || identity::is_rootless();
        if is_limited { Ok(()) } else { Err(failure) }
    }

    fn update(&self, container: &Handles<'_>, resources: &LinuxResources) -> Result<()> {
        match resources.devices() {
            Some(rules) => write(container.cgroup, &Policy::new(rules)?, Change::Later),
            None => Ok(()),
        }
    }
}

/// Which devices a container may make and open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access {
    /// Whether all but the exceptions; else only they.
    pub all: bool,
    /// The exceptions, as version 1's files show and take them: `c 1:3 rwm`. No two are about the same devices.
    pub exceptions: Vec<String>,
}

/// What `rules` come to, those about what every container has among them.
///
/// # Errors
/// For a rule that is none, by its pointer.
pub fn access(rules: &[LinuxDeviceCgroup]) -> Result<Access> {
    let policy = Policy::new(rules)?;
    Ok(Access { all: policy.allow, exceptions: policy.entries() })
}

/// Whether a group has its first policy, or one that others depend on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    First,
    Later,
}

fn rules(resources: Option<&LinuxResources>) -> &[LinuxDeviceCgroup] {
    resources.and_then(|resources| resources.devices().as_deref()).unwrap_or_default()
}

/// No right to do it, or no controller to do it with.
fn is_out_of_reach(error: &Error) -> bool {
    matches!(error.errno(), None | Some(Errno::EPERM | Errno::EACCES))
}

fn write(group: &Cgroup, policy: &Policy, change: Change) -> Result<()> {
    let dir = group.dir("devices").ok_or_else(|| {
        Error::new("no cgroup of the devices controller here").with_hint("is the controller mounted?")
    });
    let written = match (group.version(), change) {
        (CgroupVersion::V1, Change::First) => dir.and_then(|dir| write_1(dir, policy)),
        (CgroupVersion::V1, Change::Later) => dir.and_then(|dir| change_1(group, dir, policy)),
        (CgroupVersion::V2, change) => dir.and_then(|dir| write_2(dir, policy, change)),
    };
    written.map_err(|e| e.at("/linux/resources/devices"))
}

/// Sets the whole policy: what holds for all devices, then each exception.
fn write_1(dir: BorrowedFd<'_>, policy: &Policy) -> Result<()> {
    let (base, exceptions) =
        if policy.allow { ("devices.allow", "devices.deny") } else { ("devices.deny", "devices.allow") };
    write_entries(dir, base, &["a".to_owned()])?;
    write_entries(dir, exceptions, &policy.entries())
}

/// Writes only what differs from what the group has, so that no device is out of reach for a moment in which a
/// process of the container may open it.
fn change_1(group: &Cgroup, dir: BorrowedFd<'_>, policy: &Policy) -> Result<()> {
    let old = group.read("devices", "devices.list")?;
    // A group that allows all does not list its exceptions.
    if policy.allow || old.starts_with('a') {
        return write_1(dir, policy);
    }
    let new = policy.entries();
    let gone: Vec<String> =
        old.lines().filter(|old| !new.iter().any(|new| new == old)).map(str::to_owned).collect();
    let come: Vec<String> = new.into_iter().filter(|new| !old.lines().any(|old| old == new)).collect();
    write_entries(dir, "devices.deny", &gone)?;
    write_entries(dir, "devices.allow", &come)
}

/// Writes each entry with a write(2) of its own, as the kernel wants it, to a file that is opened once.
fn write_entries(dir: BorrowedFd<'_>, name: &str, entries: &[String]) -> Result<()> {
    if entries.is_empty() {
        return Ok(());
    }
    let fail = |e: coracle_sys::Error| Error::failed(e.call(), e.errno()).on_path(name);
    let file = file::open(dir, name, O_WRONLY, 0, Resolve::BeneathNoLinks).map_err(fail)?;
    entries.iter().try_for_each(|entry| {
        file::write_all(file.as_fd(), entry.as_bytes())
            .map_err(|e| Error::failed(format!("write({name:?}, {entry:?})"), e.errno()).on_path(name))
    })
}

/// open(2), linux/fcntl.h.
const O_WRONLY: i32 = 1;

/// Attaches the policy's program; later, only then, detaches those before it: in between both must allow.
fn write_2(dir: BorrowedFd<'_>, policy: &Policy, change: Change) -> Result<()> {
    let fail = |e: coracle_sys::Error| Error::failed(e.call(), e.errno());
    let old = match change {
        Change::First => Vec::new(),
        Change::Later => bpf::device_programs(dir).map_err(fail)?,
    };
    let program = bpf::load_device_program(&program::compile(policy)).map_err(fail)?;
    bpf::attach_device_program(dir, program.as_fd()).map_err(fail)?;
    old.iter().try_for_each(|old| bpf::detach_device_program(dir, old.as_fd()).map_err(fail))
}

#[cfg(test)]
mod tests {
    use coracle_isolator::Kind;
    use oci_spec::runtime::Spec;
    use serde_json::{Value, json};

    use super::*;
    use crate::testing::Group;

    const NO_FULL: &str = r#"{"devices": [
        {"allow": false, "access": "rwm"},
        {"allow": false, "type": "c", "major": 1, "minor": 7, "access": "rwm"}
    ]}"#;

    /// Whether a process of `group` can read `device`.
    fn can_read(group: &Group, device: &str) -> bool {
        let status = group.run(&format!("exec head -c 1 {device}"));
        status.success()
    }

    fn assert_kept_from_full(group: &Group) {
        let policy: Value = serde_json::from_str(NO_FULL).unwrap();
        group.isolate(&Devices, policy).unwrap();
        assert!(can_read(group, "/dev/zero"));
        assert!(!can_read(group, "/dev/full"));
    }

    #[test]
    fn version_1_keeps_a_process_from_a_device() {
        let Some(group) = Group::version_1("devices", &["devices"]) else { return };
        assert_kept_from_full(&group);
        group.isolate(&Devices, json!({})).unwrap();
        assert!(can_read(&group, "/dev/full"));
    }

    #[test]
    fn version_2_keeps_a_process_from_a_device() {
        let Some(group) = Group::version_2("devices") else { return };
        assert_kept_from_full(&group);
    }

    #[test]
    fn without_rules_everything_but_the_defaults_is_denied() {
        let Some(group) = Group::version_1("devices-none", &["devices"]) else { return };
        for rules in [json!({}), json!({"devices": []})] {
            group.isolate(&Devices, rules).unwrap();
            let list = group.read("devices", "devices.list");
            assert!(!list.starts_with('a'), "{list}");
            assert!(list.lines().any(|entry| entry == "b *:* m"), "{list}");
            assert_eq!(list.lines().count(), 11, "{list}");
        }
    }

    #[test]
    fn everything_can_be_allowed() {
        let Some(group) = Group::version_1("devices-all", &["devices"]) else { return };
        group.isolate(&Devices, json!({"devices": [{"allow": true, "access": "rwm"}]})).unwrap();
        assert_eq!(group.read("devices", "devices.list"), "a *:* rwm");
    }

    #[test]
    fn an_update_changes_what_differs() {
        for group in [Group::version_1("devices-new", &["devices"]), Group::version_2("devices-new")] {
            let Some(group) = group else { continue };
            group.isolate(&Devices, json!({})).unwrap();
            let resources: LinuxResources = serde_json::from_str(NO_FULL).unwrap();
            for _ in 0..2 {
                group.update(&Devices, &resources);
                assert!(can_read(&group, "/dev/zero"));
                assert!(!can_read(&group, "/dev/full"));
            }
            let programs = group.group.dir("devices").map(bpf::device_programs);
            if group.group.version() == CgroupVersion::V2 {
                assert_eq!(programs.unwrap().unwrap().len(), 1);
            }
        }
    }

    #[test]
    fn a_bad_rule_is_refused_before_anything_is_made() {
        let spec: Spec = serde_json::from_value(json!({
            "ociVersion": "1.2.0",
            "linux": {"resources": {"devices": [{"allow": true, "type": "c", "access": "x"}]}},
        }))
        .unwrap();
        let bundle = std::path::Path::new("/");
        let config = Config { id: "c", kind: Kind::Oci, bundle, spec: &spec, cgroup: CgroupVersion::V1 };
        let error = Devices.prepare(&config).unwrap_err().to_string();
        assert_eq!(error, "/linux/resources/devices/0/access: \"x\" is not made of r, w and m");
    }
}
