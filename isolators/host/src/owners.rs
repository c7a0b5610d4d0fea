//! Every adjusted field has one owner.

use std::collections::BTreeMap;

use coracle_isolator::{Adjustment, Error, Result};

use crate::wire::plain;

/// Who set which field, by JSON pointer.
#[derive(Debug, Default)]
pub(crate) struct Owners<'a>(BTreeMap<String, &'a str>);

impl<'a> Owners<'a> {
    /// Makes `isolator` the owner of all that `adjustment` sets.
    pub(crate) fn claim(&mut self, isolator: &'a str, adjustment: &Adjustment) -> Result<()> {
        for field in adjustment.fields() {
            let owner = *self.0.entry(field.clone()).or_insert(isolator);
            if owner != isolator {
                return Err(Error::new(format!(
                    "isolators {owner} and {isolator} both set {}",
                    plain(&field)
                )));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
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
}
