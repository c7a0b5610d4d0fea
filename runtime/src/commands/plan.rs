//! `plan`: prints what `create` would do, without doing it and without root.

use std::path::Path;

use caps::Capability;
use serde_json::{Value, json};

use crate::cli::Global;
use crate::error::{Error, Result};
use crate::isolators;
use crate::stages::plan::{Launch, Wish};
use crate::stages::{plan, prepare, spec};

/// Prints the launch plan of the bundle `bundle` as the isolators leave it. What is on the disk, and what the kernel
/// says to it, is seen by `create` only.
///
/// # Errors
/// As `create` before its first side effect.
pub fn plan(global: &Global, bundle: &Path) -> Result<u8> {
    let plan = plan::plan(spec::load(bundle, None)?, Wish { id: "ID", cgroups: global.cgroups })?;
    let (launch, spec, warnings) = prepare::adjust(&plan, &isolators::for_launch(global)?)?;
    global.warn(warnings);
    let mut printed = serde_json::to_value(&launch).map_err(Error::system)?;
    printed["process"]["capabilities"] = capabilities(&launch);
    printed["process"]["seccomp"] = launch
        .process
        .seccomp
        .as_ref()
        .map_or(Value::Null, |filter| json!({"instructions": filter.program.len(), "flags": filter.flags}));
    printed["cgroup"] = serde_json::to_value(&plan.cgroup).map_err(Error::system)?;
    printed["resources"] = serde_json::to_value(plan::linux(&spec)?.resources()).map_err(Error::system)?;
    printed["hooks"] = serde_json::to_value(spec.hooks()).map_err(Error::system)?;
    crate::print(&format!("{printed:#}\n"));
    Ok(0)
}

fn capabilities(launch: &Launch) -> Value {
    let sets = &launch.process.capabilities;
    let names = |bits: u64| {
        let mut all: Vec<Capability> = caps::all().into_iter().filter(|c| bits & c.bitmask() != 0).collect();
        all.sort_by_key(|c| c.index());
        all.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    json!({
        "bounding": names(sets.bounding), "effective": names(sets.effective), "permitted": names(sets.permitted),
        "inheritable": names(sets.inheritable), "ambient": names(sets.ambient),
    })
}
