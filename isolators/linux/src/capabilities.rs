//! `linux/capabilities`: which capabilities a process gets.

use std::str::FromStr;

use caps::{CapSet, Capability};
use coracle_isolator::{Adjustment, CapabilitySets, Config, Error, Isolator, Result, in_user_namespace};
use oci_spec::runtime::{Capabilities as Names, LinuxCapabilities};

/// Turns `process.capabilities` of every process into five explicit sets.
///
/// A set that is absent is empty, and so are all where `capabilities` is: nothing is ever inherited from the
/// runtime, inheritable capabilities above all (CVE-2022-29162 and its like). What can't be granted, because
/// the kernel does not know it or the runtime does not have it, is left out with a warning, as the specification
/// asks. A name that nobody knows is an error.
#[derive(Debug)]
pub struct Capabilities;

impl Isolator for Capabilities {
    fn name(&self) -> &str {
        "linux/capabilities"
    }

    fn process(&self, config: &Config<'_>) -> Result<Adjustment> {
        let mut adjustment = Adjustment::default();
        let asked = config.spec.process().as_ref().and_then(|process| process.capabilities().as_ref());
        let mut sets = asked.map_or(Ok(CapabilitySets::default()), masks)?;
        let all = sets.bounding | sets.effective | sets.permitted | sets.inheritable | sets.ambient;
        let here = grantable(all, in_user_namespace(config.spec))?;
        warn(&mut adjustment.warnings, all & !here, |names| {
            format!("{names} is not available here, left out")
        });
        sets.bounding &= here;
        sets.permitted &= here;
        sets.inheritable &= here;
        // capset(2) and PR_CAP_AMBIENT_RAISE refuse anything else with EPERM, and not before `start`.
        warn(&mut adjustment.warnings, sets.inheritable & !sets.bounding, |names| {
            format!(
                "can't make {names} inheritable: operation not permitted for what is not bounding, left out"
            )
        });
        sets.inheritable &= sets.bounding;
        warn(&mut adjustment.warnings, sets.effective & here & !sets.permitted, |names| {
            format!("{names} is effective but not permitted, left out")
        });
        sets.effective &= sets.permitted;
        let base = sets.permitted & sets.inheritable;
        warn(&mut adjustment.warnings, sets.ambient & here & !base, |names| {
            format!("can't raise ambient capability {names}: not permitted and inheritable, left out")
        });
        sets.ambient &= base;
        adjustment.process.capabilities = Some(sets);
        Ok(adjustment)
    }
}

/// The sets as the specification names them.
fn masks(asked: &LinuxCapabilities) -> Result<CapabilitySets> {
    Ok(CapabilitySets {
        bounding: mask("bounding", asked.bounding().as_ref())?,
        effective: mask("effective", asked.effective().as_ref())?,
        permitted: mask("permitted", asked.permitted().as_ref())?,
        inheritable: mask("inheritable", asked.inheritable().as_ref())?,
        ambient: mask("ambient", asked.ambient().as_ref())?,
    })
}

fn mask(set: &str, names: Option<&Names>) -> Result<u64> {
    names.into_iter().flatten().try_fold(0, |mask, name| {
        let name = caps::to_canonical(&name.to_string());
        match Capability::from_str(&name) {
            Ok(capability) => Ok(mask | capability.bitmask()),
            Err(_) => {
                Err(Error::new(format!("{name} is no capability")).at(format!("/process/capabilities/{set}")))
            }
        }
    })
}

/// Those of `asked` that a process can get: the ones that the kernel knows, and outside a user namespace, in
/// which a process begins with every capability, also in the runtime's own permitted and bounding sets.
fn grantable(asked: u64, in_user_namespace: bool) -> Result<u64> {
    if asked == 0 {
        return Ok(0);
    }
    let failed = |error| Error::new(format!("own capabilities can't be read: {error}"));
    let mut here = 0;
    for capability in each(asked) {
        let is_bounding = match caps::has_cap(None, CapSet::Bounding, capability) {
            Ok(is_bounding) => is_bounding,
            // PR_CAPBSET_READ answers EINVAL for a capability that the kernel does not know.
            Err(error) if error.to_string().contains("os error 22") => continue,
            Err(error) => return Err(failed(error)),
        };
        if is_bounding || in_user_namespace {
            here |= capability.bitmask();
        }
    }
    if in_user_namespace {
        return Ok(here);
    }
    let own = caps::read(None, CapSet::Permitted).map_err(failed)?;
    Ok(own.iter().fold(0, |mask, capability| mask | capability.bitmask()) & here)
}

fn each(mask: u64) -> impl Iterator<Item = Capability> {
    caps::all().into_iter().filter(move |capability| mask & capability.bitmask() != 0)
}

/// One warning for all of `mask`, in the order of their numbers.
fn warn(warnings: &mut Vec<String>, mask: u64, why: impl Fn(&str) -> String) {
    let mut found: Vec<Capability> = each(mask).collect();
    found.sort_by_key(Capability::index);
    if !found.is_empty() {
        let names: Vec<String> = found.iter().map(ToString::to_string).collect();
        warnings.push(why(&names.join(", ")));
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use coracle_isolator::{CgroupVersion, Kind};
    use oci_spec::runtime::Spec;
    use serde_json::{Value, json};

    use super::*;

    /// What the isolator makes of `capabilities` in a container with or without a user namespace.
    fn adjusted(capabilities: &Value, user_namespace: bool) -> (CapabilitySets, Vec<String>) {
        let namespaces = if user_namespace { json!([{"type": "user"}]) } else { json!([]) };
        let user = json!({"uid": 0, "gid": 0});
        let process = json!({"user": user, "cwd": "/", "capabilities": capabilities});
        let spec: Spec = serde_json::from_value(
            json!({"ociVersion": "1.2.0", "process": process, "linux": {"namespaces": namespaces}}),
        )
        .unwrap();
        let config = Config {
            id: "c",
            kind: Kind::Oci,
            bundle: Path::new("/"),
            spec: &spec,
            cgroup: CgroupVersion::V1,
        };
        let adjustment = Capabilities.process(&config).unwrap();
        (adjustment.process.capabilities.unwrap(), adjustment.warnings)
    }

    const CHOWN: u64 = 1 << 0;
    const KILL: u64 = 1 << 5;

    #[test]
    fn an_absent_object_is_five_empty_sets() {
        assert_eq!(adjusted(&Value::Null, false), (CapabilitySets::default(), vec![]));
    }

    #[test]
    fn an_absent_set_is_empty_inheritable_above_all() {
        let asked = json!({"bounding": ["CAP_CHOWN", "CAP_KILL"], "permitted": ["CAP_KILL"], "effective": ["CAP_KILL"]});
        let (sets, warnings) = adjusted(&asked, true);
        let wanted = CapabilitySets {
            bounding: CHOWN | KILL,
            permitted: KILL,
            effective: KILL,
            ..CapabilitySets::default()
        };
        assert_eq!((sets, warnings), (wanted, vec![]));
    }

    #[test]
    fn ambient_is_part_of_permitted_and_inheritable() {
        let asked = json!({
            "bounding": ["CAP_KILL"],
            "permitted": ["CAP_KILL", "CAP_CHOWN"],
            "inheritable": ["CAP_KILL"],
            "ambient": ["CAP_KILL", "CAP_CHOWN"],
        });
        let (sets, warnings) = adjusted(&asked, true);
        assert_eq!(sets.ambient, KILL);
        let told = "can't raise ambient capability CAP_CHOWN: not permitted and inheritable, left out";
        assert_eq!(warnings, [told]);
    }

    #[test]
    fn inheritable_is_part_of_bounding() {
        let asked = json!({"bounding": ["CAP_KILL"], "inheritable": ["CAP_KILL", "CAP_CHOWN"]});
        let (sets, warnings) = adjusted(&asked, true);
        assert_eq!(sets.inheritable, KILL);
        let told =
            "can't make CAP_CHOWN inheritable: operation not permitted for what is not bounding, left out";
        assert_eq!(warnings, [told]);
    }

    #[test]
    fn effective_is_part_of_permitted() {
        let (sets, warnings) = adjusted(&json!({"effective": ["CAP_KILL"]}), true);
        assert_eq!(sets, CapabilitySets::default());
        assert_eq!(warnings, ["CAP_KILL is effective but not permitted, left out"]);
    }

    #[test]
    fn what_the_runtime_lacks_is_left_out_with_a_warning_but_not_in_a_user_namespace() {
        let own = caps::read(None, CapSet::Permitted).unwrap();
        let asked = json!({"bounding": caps::all().iter().map(ToString::to_string).collect::<Vec<_>>()});
        let (sets, warnings) = adjusted(&asked, false);
        let mut lacking: Vec<Capability> = caps::all().difference(&own).copied().collect();
        lacking.sort_by_key(Capability::index);
        assert_eq!(u32::try_from(own.len()).unwrap(), sets.bounding.count_ones());
        assert_eq!(warnings.len(), usize::from(!lacking.is_empty()));
        for capability in lacking {
            assert!(warnings[0].contains(&capability.to_string()), "{warnings:?}");
        }
        let (sets, warnings) = adjusted(&asked, true);
        assert_eq!((sets.bounding.count_ones(), warnings), (41, vec![]));
    }

    #[test]
    fn every_name_of_the_specification_is_known() {
        let all: Names = caps::all()
            .iter()
            .map(|c| {
                c.to_string()
                    .parse()
                    .unwrap_or_else(|_| c.to_string().trim_start_matches("CAP_").parse().unwrap())
            })
            .collect();
        assert_eq!(mask("bounding", Some(&all)).unwrap().count_ones(), 41);
    }
}
