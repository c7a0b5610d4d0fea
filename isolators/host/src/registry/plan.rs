//! What isolators make of a plan: nothing but the plan changes.

use coracle_isolator::{Adjustment, CapabilitySets, Config, Error, Landlock, Result, SeccompProgram};
use oci_spec::runtime::Spec;

use super::Registry;
use crate::apply;
use crate::owners::Owners;
use crate::wire::plain;

/// A plan after all isolators have had their say.
#[derive(Debug)]
pub struct Adjusted {
    /// The final specification.
    pub spec: Spec,
    /// The capabilities of the process; none where no isolator says otherwise.
    pub capabilities: CapabilitySets,
    /// The system call filter of the process.
    pub seccomp: Option<SeccompProgram>,
    /// The rules of Landlock for the process.
    pub landlock: Option<Landlock>,
    /// What could not be done and did not stop the plan, each with its isolator's name.
    pub warnings: Vec<String>,
}

impl Registry {
    /// Makes the plan of a new container: asks each isolator whether it supports the kind, then what it adjusts
    /// in the container (`prepare`), then in its first process (`process`), applies that, and lets each see the
    /// final specification (`validate`). No side effects.
    ///
    /// Once it was called, [`cleanup`](Self::cleanup) is owed, whatever came of it.
    ///
    /// # Errors
    /// Where an isolator refuses or two set one field; the error names them.
    pub fn prepare(&self, config: &Config<'_>) -> Result<Adjusted> {
        self.isolated.set(false);
        for entry in self.entries.iter().filter(|entry| !entry.is_out()) {
            let supports = match entry.isolator.supports(config.kind) {
                true => Ok(()),
                false => Err(Error::new(format!(
                    "isolator {} does not support {} containers",
                    entry.name(),
                    config.kind
                ))),
            };
            self.settle(entry, supports)?;
        }
        let mut owners = Owners::default();
        let mut adjusted = Adjusted::of(config);
        self.each("prepare", |isolator| {
            let adjustment = isolator.prepare(config)?;
            owners.claim(isolator.name(), &adjustment)?;
            adjusted.apply(isolator.name(), adjustment);
            Ok(())
        })?;
        self.adjust_process(config, &mut owners, &mut adjusted)?;
        self.each("validate", |isolator| isolator.validate(&adjusted.spec))?;
        Ok(adjusted)
    }

    /// What the isolator `name` alone adjusts in what `config` describes (`prepare`); nothing where it is not there. No side
    /// effects.
    ///
    /// # Errors
    /// Where it refuses; the error names it.
    pub fn prepare_by(&self, name: &str, config: &Config<'_>) -> Result<Adjustment> {
        match self.entries.iter().find(|entry| entry.name() == name && !entry.is_out()) {
            Some(entry) => entry.call("prepare", |isolator| isolator.prepare(config)),
            None => Ok(Adjustment::default()),
        }
    }

    /// Makes the plan of another process in a container that exists: `config.spec.process` is that process.
    /// Asks each isolator what it adjusts in it (`process`) and applies that. No side effects.
    ///
    /// # Errors
    /// Where an isolator refuses or two set one field; the error names them.
    pub fn process(&self, config: &Config<'_>) -> Result<Adjusted> {
        let mut adjusted = Adjusted::of(config);
        self.adjust_process(config, &mut Owners::default(), &mut adjusted)?;
        Ok(adjusted)
    }

    fn adjust_process<'a>(
        &'a self,
        config: &Config<'_>,
        owners: &mut Owners<'a>,
        adjusted: &mut Adjusted,
    ) -> Result<()> {
        self.each("process", |isolator| {
            let adjustment = isolator.process(config)?;
            if let Some(field) = foreign(&adjustment).first() {
                return Err(Error::new(format!("{} is not a field of a process", plain(field))));
            }
            owners.claim(isolator.name(), &adjustment)?;
            adjusted.apply(isolator.name(), adjustment);
            Ok(())
        })
    }
}

/// The fields of an adjustment that are of the container and not of one of its processes, those that have no owner too.
fn foreign(adjustment: &Adjustment) -> Vec<String> {
    let unowned = [
        (!adjustment.hooks.is_empty(), "/hooks"),
        (!adjustment.linux.device_rules.is_empty(), "/linux/deviceRules"),
    ];
    let unowned = unowned.into_iter().filter(|(is_set, _)| *is_set).map(|(_, field)| field.to_owned());
    unowned.chain(adjustment.container_fields()).collect()
}

impl Adjusted {
    /// The plan as the specification has it.
    fn of(config: &Config<'_>) -> Self {
        Self {
            spec: config.spec.clone(),
            capabilities: CapabilitySets::default(),
            seccomp: None,
            landlock: None,
            warnings: Vec::new(),
        }
    }

    fn apply(&mut self, isolator: &str, mut adjustment: Adjustment) {
        self.capabilities = adjustment.process.capabilities.take().unwrap_or(self.capabilities);
        self.seccomp = adjustment.linux.seccomp.take().or_else(|| self.seccomp.take());
        self.landlock = adjustment.linux.landlock.take().or_else(|| self.landlock.take());
        if let Some(process) = self.spec.process_mut() {
            apply::process(process, adjustment.process);
        }
        apply::mounts(&mut self.spec, adjustment.mounts);
        apply::linux(&mut self.spec, adjustment.linux);
        apply::hooks(&mut self.spec, adjustment.hooks);
        self.warnings.extend(adjustment.warnings.iter().map(|warning| format!("{isolator}: {warning}")));
    }
}

#[cfg(test)]
mod tests {
    use coracle_isolator::{Isolator, Kind};

    use super::*;
    use crate::registry::recorder::{config, registry};

    #[test]
    fn a_plan_is_prepared_then_its_process_then_validated_with_all_applied() {
        let (registry, calls) = registry("", Adjustment::default());
        let adjusted = registry.prepare(&config(&Spec::default(), Kind::Oci)).unwrap();
        assert_eq!(adjusted.spec.process().as_ref().unwrap().no_new_privileges(), Some(false));
        let wanted = ["a prepare", "b prepare", "a process", "b process", "a validate", "b validate"];
        assert_eq!(*calls.borrow(), wanted);
    }

    #[test]
    fn another_process_is_neither_prepared_nor_validated() {
        let (registry, calls) = registry("", Adjustment::default());
        registry.process(&config(&Spec::default(), Kind::Oci)).unwrap();
        assert_eq!(*calls.borrow(), ["a process", "b process"]);
    }

    #[test]
    fn a_kind_that_an_isolator_does_not_support_is_refused_before_any_call() {
        let (registry, calls) = registry("", Adjustment::default());
        let error = registry.prepare(&config(&Spec::default(), Kind::Nested)).unwrap_err();
        assert_eq!(error.to_string(), "isolator a does not support nested containers");
        assert!(calls.borrow().is_empty());
    }

    #[test]
    fn two_owners_of_a_field_are_both_named() {
        let mut b = Adjustment::default();
        b.process.no_new_privileges = Some(true);
        let (registry, _) = registry("", b);
        let error = registry.prepare(&config(&Spec::default(), Kind::Oci)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "isolator b could not prepare: isolators a and b both set /process/noNewPrivileges"
        );
    }

    #[test]
    fn a_process_call_that_changes_the_container_is_refused() {
        struct Bad(Adjustment);
        impl Isolator for Bad {
            fn name(&self) -> &str {
                "bad"
            }
            fn process(&self, _: &Config<'_>) -> Result<Adjustment> {
                Ok(self.0.clone())
            }
        }
        for (text, field) in [
            (r#"{"linux":{"sysctl":{"net.x":"1"}}}"#, "/linux/sysctl/net.x"),
            (r#"{"linux":{"deviceRules":[{"allow":true,"access":"rwm"}]}}"#, "/linux/deviceRules"),
            (r#"{"hooks":{"startContainer":[{"path":"/x"}]}}"#, "/hooks"),
        ] {
            let bad = Bad(serde_json::from_str(text).unwrap());
            let registry = Registry::new(vec![Box::new(bad)]).unwrap();
            let error = registry.process(&config(&Spec::default(), Kind::Oci)).unwrap_err();
            let wanted = format!("isolator bad could not process: {field} is not a field of a process");
            assert_eq!(error.to_string(), wanted);
        }
    }

    #[test]
    fn warnings_name_their_isolator() {
        let b = Adjustment { warnings: vec!["half of it".to_owned()], ..Adjustment::default() };
        let (registry, _) = registry("", b);
        let adjusted = registry.prepare(&config(&Spec::default(), Kind::Oci)).unwrap();
        assert_eq!(adjusted.warnings, ["b: half of it"]);
    }
}
