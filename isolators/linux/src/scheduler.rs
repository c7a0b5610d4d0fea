//! `linux/scheduler`: how processes are scheduled that do not say it, and which policies they may ask for.

use coracle_isolator::{Adjustment, Config, Error, Isolator, Result};
use oci_spec::runtime::{LinuxSchedulerPolicy, Scheduler as Asked};
use serde::Deserialize;
use serde_json::{Map, Value};

/// Looks after `process.scheduler` (sched(7)) of every process. Without options, any policy is taken.
#[derive(Debug, Default)]
pub struct Scheduler(Settings);

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Settings {
    /// What a process gets that asks for nothing, as the specification has it: `{ policy = "SCHED_BATCH" }`.
    default: Option<Asked>,
    /// The policies that a process may ask for; all, where there are none.
    policies: Option<Vec<LinuxSchedulerPolicy>>,
}

impl Isolator for Scheduler {
    fn name(&self) -> &str {
        "linux/scheduler"
    }

    fn configure(&mut self, options: &Map<String, Value>) -> Result<()> {
        self.0 = crate::settings(options)?;
        Ok(())
    }

    fn process(&self, config: &Config<'_>) -> Result<Adjustment> {
        let mut adjustment = Adjustment::default();
        let asked = config.spec.process().as_ref().and_then(|process| process.scheduler().as_ref());
        match (asked.map(Asked::policy), &self.0.policies) {
            (Some(policy), Some(policies)) if !policies.contains(policy) => {
                let allowed: Vec<String> = policies.iter().map(ToString::to_string).collect();
                Err(Error::new(format!("{policy} is not allowed on this host"))
                    .at("/process/scheduler/policy")
                    .with_hint(format!("its operator allows {}", allowed.join(", "))))
            }
            (None, _) => {
                adjustment.process.scheduler.clone_from(&self.0.default);
                Ok(adjustment)
            }
            _ => Ok(adjustment),
        }
    }
}
