//! `linux/nnp`: processes that can never gain privileges, whatever their configuration says.

use coracle_isolator::{Adjustment, Config, Isolator, Result};
use serde::Deserialize;
use serde_json::{Map, Value};

/// Sets `process.noNewPrivileges` of every process, where the operator says `always` (prctl(2),
/// `PR_SET_NO_NEW_PRIVS`). Without, the specification alone decides.
#[derive(Debug, Default)]
pub struct NoNewPrivileges(Settings);

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Settings {
    always: bool,
}

impl Isolator for NoNewPrivileges {
    fn name(&self) -> &str {
        "linux/nnp"
    }

    fn configure(&mut self, options: &Map<String, Value>) -> Result<()> {
        self.0 = crate::settings(options)?;
        Ok(())
    }

    fn process(&self, _: &Config<'_>) -> Result<Adjustment> {
        let mut adjustment = Adjustment::default();
        adjustment.process.no_new_privileges = self.0.always.then_some(true);
        Ok(adjustment)
    }
}
