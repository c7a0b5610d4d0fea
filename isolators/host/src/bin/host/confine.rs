//! What a plugin may not do unless it was granted.
//!
//! With no grant: no capabilities; no file written but `/dev/null`, and no owner, mode, time or attribute of a file changed; no
//! device read that is a machine's own; no socket, and no memory or queue that others share; no program started, no process
//! made; no signal to others and no other turn at a processor, no namespace entered. It may read what the runtime's user may.

use std::path::PathBuf;

use coracle_sys::identity::{self, Capabilities};
use coracle_sys::{Result, seccomp};

use crate::{files, filter};

/// What the configuration grants.
#[derive(Debug, Default)]
pub(crate) struct Grants {
    /// The capabilities, bit `n` for the one with the number `n`.
    pub(crate) capabilities: u64,
    /// Where files may be written and made.
    pub(crate) writable: Vec<PathBuf>,
    /// The descriptors of the directories of cgroups whose limits may be set.
    pub(crate) cgroups: Vec<i32>,
    /// Whether programs may be started.
    pub(crate) programs: bool,
    /// Whether sockets may be made: behind those of the host's services are the host's rights.
    pub(crate) sockets: bool,
}

/// `CAP_SYS_ADMIN`: whoever mounts can't be kept from files, and Landlock forbids to mount at all.
const SYS_ADMIN: u64 = 1 << 21;

/// Gives up all that is not granted, for good. Nothing of the plugin may have run: what it has loaded, and each thread that
/// it has made, could go on without.
pub(crate) fn confine(grants: &Grants) -> Result<()> {
    let rules = if grants.capabilities & SYS_ADMIN == 0 { files::rules(grants)? } else { None };
    identity::limit_bounding(grants.capabilities)?;
    let permitted = identity::capabilities()?.permitted & grants.capabilities;
    identity::set_capabilities(&Capabilities { effective: permitted, permitted, ..Capabilities::default() })?;
    identity::no_new_privileges()?;
    if let Some(rules) = rules {
        rules.restrict_self()?;
    }
    seccomp::load(&filter::filter(grants, std::process::id()), 0).map(drop)
}
