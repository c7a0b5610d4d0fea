//! `linux/rlimits`: refuses resource limits that setrlimit(2) would not take.

use caps::{CapSet, Capability};
use coracle_isolator::{Adjustment, Config, Error, Isolator, Result};
use coracle_sys::identity;
use oci_spec::runtime::PosixRlimit;

/// Checks `process.rlimits` of every process, so that a bad one is a clear error before anything is made and not
/// `EINVAL` in a half-built container.
#[derive(Debug)]
pub struct Rlimits;

impl Isolator for Rlimits {
    fn name(&self) -> &str {
        "linux/rlimits"
    }

    fn process(&self, config: &Config<'_>) -> Result<Adjustment> {
        let rlimits = config.spec.process().as_ref().and_then(|process| process.rlimits().as_deref());
        let rlimits = rlimits.unwrap_or_default();
        check(rlimits)?;
        check_raised(rlimits)?;
        Ok(Adjustment::default())
    }
}

/// Only `CAP_SYS_RESOURCE` raises a hard limit above the runtime's own.
fn check_raised(rlimits: &[PosixRlimit]) -> Result<()> {
    for (i, rlimit) in rlimits.iter().enumerate() {
        let (name, hard) = (rlimit.typ().to_string(), rlimit.hard());
        let own = identity::hard_limit(&name).map_err(|e| Error::failed(e.call(), e.errno()))?;
        if hard > own && !caps::has_cap(None, CapSet::Effective, Capability::CAP_SYS_RESOURCE).unwrap_or(true)
        {
            let why = format!("{name}: {hard} is above the runtime's own hard limit {own}");
            return Err(Error::new(why)
                .at(format!("/process/rlimits/{i}/hard"))
                .with_hint("ask for less, or give the runtime CAP_SYS_RESOURCE or a higher limit"));
        }
    }
    Ok(())
}

/// The specification asks for one entry a type; a soft limit above the hard one is `EINVAL` (setrlimit(2)).
fn check(rlimits: &[PosixRlimit]) -> Result<()> {
    for (i, rlimit) in rlimits.iter().enumerate() {
        let name = rlimit.typ();
        if rlimits[..i].iter().any(|other| other.typ() == name) {
            return Err(Error::new(format!("{name} is set twice")).at(format!("/process/rlimits/{i}/type")));
        }
        let (soft, hard) = (rlimit.soft(), rlimit.hard());
        if soft > hard {
            return Err(Error::new(format!("{name}: soft limit {soft} is above hard limit {hard}"))
                .at(format!("/process/rlimits/{i}/soft")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(json: &str) -> Result<()> {
        check(&serde_json::from_str::<Vec<PosixRlimit>>(json).unwrap())
    }

    #[test]
    fn limits_that_the_kernel_takes_pass() {
        checked(r#"[{"type":"RLIMIT_NOFILE","soft":5,"hard":5},{"type":"RLIMIT_CORE","soft":0,"hard":9}]"#)
            .unwrap();
    }

    #[test]
    fn a_soft_limit_above_the_hard_one_is_refused_by_name() {
        let error = checked(r#"[{"type":"RLIMIT_NOFILE","soft":6,"hard":5}]"#).unwrap_err();
        let wanted = "/process/rlimits/0/soft: RLIMIT_NOFILE: soft limit 6 is above hard limit 5";
        assert_eq!(error.to_string(), wanted);
    }

    #[test]
    fn a_limit_that_is_set_twice_is_refused_by_name() {
        let twice = r#"[{"type":"RLIMIT_CORE","soft":0,"hard":0},{"type":"RLIMIT_CORE","soft":1,"hard":1}]"#;
        let wanted = "/process/rlimits/1/type: RLIMIT_CORE is set twice";
        assert_eq!(checked(twice).unwrap_err().to_string(), wanted);
    }
}
