//! Adjustments put into the specification.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use coracle_isolator::adjustment::variable_name;
use coracle_isolator::{HookAdjustment, LinuxAdjustment, ProcessAdjustment};
use oci_spec::runtime::{Hook, Linux, Mount, Process, Spec};

/// Applies what an isolator changes in the process. Capabilities have no place in a specification as masks:
/// they are the caller's.
pub(crate) fn process(process: &mut Process, adjustment: ProcessAdjustment) {
    for rlimit in adjustment.rlimits {
        // The crate gives no way to change the list in place.
        let mut rlimits = process.rlimits().clone().unwrap_or_default();
        rlimits.retain(|old| old.typ() != rlimit.typ());
        rlimits.push(rlimit);
        process.set_rlimits(Some(rlimits));
    }
    if !adjustment.env.is_empty() {
        let env = process.env_mut().get_or_insert_default();
        replace(env, adjustment.env, |variable| variable_name(variable).to_owned());
    }
    if !adjustment.additional_gids.is_empty() {
        let user = process.user().clone();
        let mut groups = user.additional_gids().clone().unwrap_or_default();
        groups.extend(adjustment.additional_gids.into_iter().filter(|gid| *gid != user.gid()));
        groups.sort_unstable();
        groups.dedup();
        let mut user = user;
        user.set_additional_gids(Some(groups));
        process.set_user(user);
    }
    if let Some(yes) = adjustment.no_new_privileges {
        process.set_no_new_privileges(Some(yes));
    }
    if let Some(score) = adjustment.oom_score_adj {
        process.set_oom_score_adj(Some(score));
    }
    if let Some(scheduler) = adjustment.scheduler {
        process.set_scheduler(Some(scheduler));
    }
}

/// Puts each mount in the place of the one with the same destination, or at the end. An adjustment may replace
/// several with one destination: each takes the next of them.
pub(crate) fn mounts(spec: &mut Spec, adjusted: Vec<Mount>) {
    if adjusted.is_empty() {
        return;
    }
    let mounts = spec.mounts_mut().get_or_insert_default();
    let mut replaced = vec![false; mounts.len()];
    for mount in adjusted {
        let old =
            (0..replaced.len()).find(|i| !replaced[*i] && mounts[*i].destination() == mount.destination());
        match old {
            Some(i) => {
                replaced[i] = true;
                mounts[i] = mount;
            }
            None => mounts.push(mount),
        }
    }
}

/// Puts each item in the place of the one with the same `key`, or at the end.
fn replace<T, K: Ord>(list: &mut Vec<T>, items: Vec<T>, key: impl Fn(&T) -> K) {
    // A plugin may return a hundred thousand. Of several in the list that are alike, the first is replaced.
    let mut places: BTreeMap<K, usize> = BTreeMap::new();
    for (at, item) in list.iter().enumerate() {
        places.entry(key(item)).or_insert(at);
    }
    for item in items {
        match places.entry(key(&item)) {
            Entry::Occupied(place) => list[*place.get()] = item,
            Entry::Vacant(place) => {
                place.insert(list.len());
                list.push(item);
            }
        }
    }
}

/// Applies what an isolator changes in `linux`. The compiled filter is the caller's.
pub(crate) fn linux(spec: &mut Spec, adjustment: LinuxAdjustment) {
    if !adjustment.sysctl.is_empty() {
        let linux = spec.linux_mut().get_or_insert_with(Linux::default);
        linux.sysctl_mut().get_or_insert_default().extend(adjustment.sysctl);
    }
    if !adjustment.devices.is_empty() {
        let linux = spec.linux_mut().get_or_insert_with(Linux::default);
        let devices = linux.devices_mut().get_or_insert_default();
        replace(devices, adjustment.devices, |device| device.path().clone());
    }
    if !adjustment.device_rules.is_empty() {
        let linux = spec.linux_mut().get_or_insert_with(Linux::default);
        let resources = linux.resources_mut().get_or_insert_default();
        // The crate gives no way to change the list in place.
        let mut rules = resources.devices().clone().unwrap_or_default();
        rules.extend(adjustment.device_rules);
        resources.set_devices(Some(rules));
    }
    if let Some(rdt) = adjustment.intel_rdt {
        spec.linux_mut().get_or_insert_with(Linux::default).set_intel_rdt(Some(rdt));
    }
}

/// Adds hooks after those that are there.
pub(crate) fn hooks(spec: &mut Spec, added: HookAdjustment) {
    if added.is_empty() {
        return;
    }
    let mut hooks = spec.hooks().clone().unwrap_or_default();
    let [prestart, create_runtime, create_container, start_container] = [
        (hooks.prestart(), added.prestart),
        (hooks.create_runtime(), added.create_runtime),
        (hooks.create_container(), added.create_container),
        (hooks.start_container(), added.start_container),
    ]
    .map(|(old, new)| {
        let all: Vec<Hook> = old.iter().flatten().cloned().chain(new).collect();
        (!all.is_empty()).then_some(all)
    });
    hooks.set_prestart(prestart).set_create_runtime(create_runtime);
    hooks.set_create_container(create_container).set_start_container(start_container);
    spec.set_hooks(Some(hooks));
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::PosixRlimit;

    fn mount(destination: &str, source: &str) -> Mount {
        let mut mount = Mount::default();
        mount.set_destination(destination.into()).set_source(Some(source.into()));
        mount
    }

    #[test]
    fn a_mount_takes_the_place_of_the_one_with_its_destination() {
        let mut spec = Spec::default();
        spec.set_mounts(Some(vec![mount("/a", "1"), mount("/b", "2"), mount("/a", "3")]));
        mounts(&mut spec, vec![mount("/a", "x"), mount("/c", "y"), mount("/a", "z")]);
        let wanted = [mount("/a", "x"), mount("/b", "2"), mount("/a", "z"), mount("/c", "y")];
        assert_eq!(spec.mounts().as_deref(), Some(&wanted[..]));
    }

    #[test]
    fn devices_replace_their_like_and_rules_and_hooks_follow_those_that_are_there() {
        let mut spec: Spec = serde_json::from_str(
            r#"{"ociVersion": "1.3.0", "hooks": {"prestart": [{"path": "/first"}]}, "linux": {
                "devices": [{"path": "/dev/a", "type": "c", "major": 1, "minor": 3}],
                "resources": {"devices": [{"allow": false, "access": "rwm"}]}}}"#,
        )
        .unwrap();
        let adjustment: coracle_isolator::Adjustment = serde_json::from_str(
            r#"{"hooks": {"prestart": [{"path": "/second"}]}, "linux": {
                "devices": [{"path": "/dev/a", "type": "c", "major": 1, "minor": 5}],
                "deviceRules": [{"allow": true, "access": "r"}]}}"#,
        )
        .unwrap();
        linux(&mut spec, adjustment.linux);
        hooks(&mut spec, adjustment.hooks);
        let paths = spec.hooks().as_ref().unwrap().prestart().clone().unwrap();
        assert_eq!(
            paths.iter().map(|hook| hook.path().to_str().unwrap()).collect::<Vec<_>>(),
            ["/first", "/second"]
        );
        let linux = spec.linux().as_ref().unwrap();
        assert_eq!(linux.devices().as_ref().unwrap().iter().map(|d| d.minor()).collect::<Vec<_>>(), [5]);
        let rules = linux.resources().as_ref().unwrap().devices().as_ref().unwrap();
        assert_eq!(rules.iter().map(|rule| rule.allow()).collect::<Vec<_>>(), [false, true]);
    }

    #[test]
    fn variables_and_limits_replace_their_like_and_keep_the_others() {
        let mut target = Process::default();
        target.set_env(Some(vec!["A=1".to_owned(), "AB=2".to_owned()]));
        let limit = |soft| {
            let text = format!(r#"{{"type":"RLIMIT_NOFILE","soft":{soft},"hard":6}}"#);
            serde_json::from_str::<PosixRlimit>(&text).unwrap()
        };
        target.set_rlimits(Some(vec![limit(5)]));
        let env = vec!["A=3".to_owned(), "C=4".to_owned()];
        process(
            &mut target,
            ProcessAdjustment { env, rlimits: vec![limit(1)], ..ProcessAdjustment::default() },
        );
        assert_eq!(target.env().as_deref().unwrap(), ["A=3", "AB=2", "C=4"]);
        assert_eq!(target.rlimits().as_deref(), Some(&[limit(1)][..]));
    }
}
