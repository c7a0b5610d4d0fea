//! Every adjusted field has one owner.

use std::collections::BTreeMap;

use coracle_isolator::{Adjustment, Error, Result};

use crate::wire::plain;

/// Who set which field, by JSON pointer.
#[derive(Debug, Default)]
pub(crate) struct Owners<'a>(BTreeMap<String, &'a str>);

impl<'a> Owners<'a> {
    /// Makes `isolator` the owner of all that `adjustment` sets, or of nothing.
    pub(crate) fn claim(&mut self, isolator: &'a str, adjustment: &Adjustment) -> Result<()> {
        let fields = adjustment.fields();
        let other = |field: &String| self.0.get(field).filter(|owner| **owner != isolator);
        if let Some((field, owner)) = fields.iter().find_map(|field| Some((field, other(field)?))) {
            let why = format!("isolators {owner} and {isolator} both set {}", plain(field));
            return Err(Error::new(why));
        }
        self.0.extend(fields.into_iter().map(|field| (field, isolator)));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::MountBuilder;

    use super::*;

    #[test]
    fn the_second_owner_of_a_field_is_refused_and_both_are_named() {
        let mut adjustment = Adjustment::default();
        adjustment.process.no_new_privileges = Some(true);
        let mut owners = Owners::default();
        owners.claim("one", &adjustment).unwrap();
        owners.claim("one", &adjustment).unwrap();
        let error = owners.claim("two", &adjustment).unwrap_err();
        assert_eq!(error.to_string(), "isolators one and two both set /process/noNewPrivileges");
    }

    #[test]
    fn who_is_refused_a_field_owns_none() {
        let mut owners = Owners::default();
        let mut adjustment = Adjustment::default();
        adjustment.process.no_new_privileges = Some(true);
        owners.claim("one", &adjustment).unwrap();
        adjustment.process.oom_score_adj = Some(1);
        owners.claim("two", &adjustment).unwrap_err();
        adjustment.process.no_new_privileges = None;
        owners.claim("three", &adjustment).unwrap();
    }

    #[test]
    fn one_place_has_one_owner_however_it_is_spelt() {
        let mount = |at: &str| Adjustment {
            mounts: vec![MountBuilder::default().destination(at).build().unwrap()],
            ..Adjustment::default()
        };
        let mut owners = Owners::default();
        owners.claim("one", &mount("/data")).unwrap();
        owners.claim("two", &mount("/data//")).unwrap_err();
        let sysctl = |name: &str| {
            let mut adjustment = Adjustment::default();
            adjustment.linux.sysctl.insert(name.to_owned(), "1".to_owned());
            adjustment
        };
        owners.claim("one", &sysctl("net.ipv4.ip_forward")).unwrap();
        owners.claim("two", &sysctl("net/ipv4/ip_forward")).unwrap_err();
    }
}
