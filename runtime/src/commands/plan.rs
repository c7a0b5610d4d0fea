//! `plan`: prints what `create` would do, without doing it and without root.

use std::path::Path;

use crate::error::{Code, Error, Result};
use crate::stages::plan::Wish;
use crate::stages::{plan, spec};

/// Prints the launch plan of the bundle `bundle`, as the configuration alone decides it: what isolators would
/// add is theirs to say when they are asked.
///
/// # Errors
/// As `create` before its first side effect.
pub fn plan(bundle: &Path) -> Result<u8> {
    let plan = plan::plan(spec::load(bundle)?, Wish { id: "ID", cgroups: true })?;
    let launch = plan::Launch::new(&plan.spec, &plan.rootfs)?;
    let failed = |e: serde_json::Error| Error::new(Code::System, e.to_string());
    let mut printed = serde_json::to_value(&launch).map_err(failed)?;
    printed["cgroup"] = serde_json::to_value(&plan.cgroup).map_err(failed)?;
    crate::print(&format!("{printed:#}\n"));
    Ok(0)
}
