//! For tests: isolators that write down how they are called.

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;

use coracle_isolator::{Adjustment, CgroupVersion, Config, Error, Handles, Isolator, Kind, Result};
use oci_spec::runtime::Spec;

use super::Registry;

/// The calls, each with its isolator.
pub(super) type Calls = Rc<RefCell<Vec<String>>>;

/// Writes down each call, and fails in those it is told to.
struct Recorder {
    name: &'static str,
    calls: Calls,
    fails_in: &'static str,
    adjustment: Adjustment,
}

impl Recorder {
    fn record(&self, call: &str) -> Result<()> {
        self.calls.borrow_mut().push(format!("{} {call}", self.name));
        if call == self.fails_in { Err(Error::new("as told")) } else { Ok(()) }
    }
}

impl Isolator for Recorder {
    fn name(&self) -> &str {
        self.name
    }
    fn supports(&self, kind: Kind) -> bool {
        kind == Kind::Oci
    }
    fn prepare(&self, _: &Config<'_>) -> Result<Adjustment> {
        self.record("prepare").map(|()| self.adjustment.clone())
    }
    fn process(&self, _: &Config<'_>) -> Result<Adjustment> {
        self.record("process").map(|()| Adjustment::default())
    }
    fn validate(&self, spec: &Spec) -> Result<()> {
        assert_eq!(spec.process().as_ref().unwrap().no_new_privileges(), Some(false));
        self.record("validate")
    }
    fn isolate(&self, _: &Handles<'_>) -> Result<()> {
        self.record("isolate")
    }
    fn give_back(&self, _: &str) -> Result<()> {
        self.record("give back")
    }
    fn cleanup(&self, _: &str) -> Result<()> {
        self.record("cleanup")
    }
}

/// Isolators `a` and `b`, of which `a` sets `noNewPrivileges`.
pub(super) fn registry(a_fails_in: &'static str, b: Adjustment) -> (Registry, Calls) {
    let calls = Calls::default();
    let mut a = Adjustment::default();
    a.process.no_new_privileges = Some(false);
    let recorder = |name, fails_in, adjustment| {
        Box::new(Recorder { name, calls: Rc::clone(&calls), fails_in, adjustment }) as Box<dyn Isolator>
    };
    (Registry::new(vec![recorder("a", a_fails_in, a), recorder("b", "", b)]).unwrap(), calls)
}

pub(super) fn config(spec: &Spec, kind: Kind) -> Config<'_> {
    Config { id: "c", kind, bundle: Path::new("/bundle"), spec, cgroup: CgroupVersion::V1 }
}
