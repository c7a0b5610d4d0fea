//! The rules of Landlock, as far as they can be made before they hold: their paths are opened in the container's root.

use std::os::fd::AsFd;

use coracle_sys::file::{self, Resolve};
use coracle_sys::landlock::{Ruleset, access};

use crate::error::{Context, Result};
use crate::stages::plan::below_root;
use crate::stages::plan::process::ProcessPlan;

/// The field that asks for them, as errors name it.
pub(super) const FIELD: &str = "/annotations/io.coracle.landlock";

/// Makes the rules of `plan`; the root of the container is that of this process.
///
/// # Errors
/// Whatever the kernel says of a path, with its place.
pub(super) fn open(plan: &ProcessPlan) -> Result<Option<Ruleset>> {
    let Some(rules) = &plan.landlock else { return Ok(None) };
    let ruleset = Ruleset::new(rules.handled_fs, rules.handled_net, rules.scoped).context(|| FIELD)?;
    let root = file::open_dir("/")?;
    for (index, (path, allowed)) in rules.paths.iter().enumerate() {
        let attempt = || {
            let below = below_root(path);
            let name = if below.as_os_str().is_empty() { "." } else { below.to_str().unwrap_or_default() };
            let fd = file::open(root.as_fd(), name, libc::O_PATH, 0, Resolve::InRoot)?;
            let is_dir = file::stat(fd.as_fd())?.st_mode & libc::S_IFMT == libc::S_IFDIR;
            ruleset.allow_below(fd.as_fd(), if is_dir { *allowed } else { allowed & access::OF_FILES })
        };
        attempt().context(|| format!("{FIELD}: /paths/{index}/path"))?;
    }
    for (index, (port, access)) in rules.ports.iter().enumerate() {
        ruleset.allow_port(*port, *access).context(|| format!("{FIELD}: /ports/{index}"))?;
    }
    Ok(Some(ruleset))
}
