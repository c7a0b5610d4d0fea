//! Adjustments put into the specification.

use coracle_isolator::adjustment::variable_name;
use coracle_isolator::{LinuxAdjustment, ProcessAdjustment};
use oci_spec::runtime::{Linux, Mount, Process, Spec};

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
    for variable in adjustment.env {
        let env = process.env_mut().get_or_insert_default();
        match env.iter_mut().find(|old| variable_name(old) == variable_name(&variable)) {
            Some(old) => *old = variable,
            None => env.push(variable),
        }
    }
    if let Some(yes) = adjustment.no_new_privileges {
        process.set_no_new_privileges(Some(yes));
    }
    if let Some(score) = adjustment.oom_score_adj {
        process.set_oom_score_adj(Some(score));
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

/// Applies what an isolator changes in `linux`. The compiled filter is the caller's.
pub(crate) fn linux(spec: &mut Spec, adjustment: LinuxAdjustment) {
    if !adjustment.sysctl.is_empty() {
        let linux = spec.linux_mut().get_or_insert_with(Linux::default);
        linux.sysctl_mut().get_or_insert_default().extend(adjustment.sysctl);
    }
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
