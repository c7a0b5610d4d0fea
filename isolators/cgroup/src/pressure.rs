//! `cgroups/memory-pressure`, `cgroups/io-pressure`: tell when tasks wait for memory or block devices.

use std::os::fd::{AsFd, OwnedFd};

use coracle_isolator::{Errno, Error, Handles, Isolator, Limitation, Result};
use coracle_sys::file::{self, Resolve};

use crate::statistics::pressure;

/// Watches one resource by a trigger of the kernel (psi.rst of its documentation, Linux 5.2), in the unified tree, also
/// beside version 1. It limits nothing: what it tells of is a warning that comes before the limit.
#[derive(Debug)]
pub(crate) struct Pressure {
    pub(crate) name: &'static str,
    pub(crate) resource: &'static str,
    pub(crate) reason: &'static str,
}

/// Of memory.
pub(crate) const MEMORY: Pressure =
    Pressure { name: "cgroups/memory-pressure", resource: "memory", reason: "memory-pressure" };

/// Of block devices.
pub(crate) const IO: Pressure =
    Pressure { name: "cgroups/io-pressure", resource: "io", reason: "io-pressure" };

/// Some task waited for a quarter of two seconds. Shorter times need `CAP_SYS_RESOURCE` (Linux 6.5).
const TRIGGER: &[u8] = b"some 500000 2000000\0";

/// open(2), linux/fcntl.h.
const O_RDWR: i32 = 2;
const O_NONBLOCK: i32 = 0o4000;

impl Isolator for Pressure {
    fn name(&self) -> &str {
        self.name
    }

    fn watch(&self, container: &Handles<'_>) -> Result<Option<OwnedFd>> {
        let Some(dir) = container.cgroup.dir("unified") else { return Ok(None) };
        let name = format!("{}.pressure", self.resource);
        let trigger = file::open(dir, &name, O_RDWR | O_NONBLOCK, 0, Resolve::Beneath).and_then(|trigger| {
            file::write_all(trigger.as_fd(), TRIGGER)?;
            Ok(trigger)
        });
        match trigger {
            Ok(trigger) => Ok(Some(trigger)),
            // Of a kernel that does not measure it, or not for this group, and of a user who may not ask.
            Err(e)
                if matches!(e.errno(), Errno::ENOENT | Errno::EOPNOTSUPP | Errno::EACCES | Errno::EPERM) =>
            {
                Ok(None)
            }
            Err(e) => Err(Error::failed(e.call(), e.errno())),
        }
    }

    fn limitation(&self, container: &Handles<'_>) -> Result<Option<Limitation>> {
        let some = pressure(container.cgroup, self.resource)?.map(|pressure| pressure.some);
        // What the trigger was for shows in the average of ten seconds a little later.
        let Some(some) = some.filter(|some| some.avg10 >= 1.0) else { return Ok(None) };
        Ok(Some(Limitation {
            message: format!("tasks waited for {} {} % of the last ten seconds", self.resource, some.avg10),
            reason: self.reason.to_owned(),
            resources: None,
        }))
    }
}

#[cfg(test)]
mod tests {
    use coracle_isolator::{Cgroup, CgroupVersion};
    use oci_spec::runtime::Spec;

    use super::*;
    use crate::testing::Group;

    #[test]
    fn a_group_without_a_unified_directory_is_not_watched() {
        let (cgroup, spec) = (Cgroup::new(CgroupVersion::V1, Vec::new()), Spec::default());
        let container = Handles { id: "c", pidfd: None, cgroup: &cgroup, spec: &spec };
        assert!(MEMORY.watch(&container).unwrap().is_none());
        assert!(MEMORY.limitation(&container).unwrap().is_none());
    }

    #[test]
    fn the_kernel_takes_the_trigger() {
        let Some(group) = Group::version_2("pressure") else { return };
        let spec = Spec::default();
        let container = Handles { id: "c", pidfd: None, cgroup: &group.group, spec: &spec };
        for isolator in [MEMORY, IO] {
            let is_measured = group.group.read("unified", &format!("{}.pressure", isolator.resource)).is_ok();
            assert_eq!(isolator.watch(&container).unwrap().is_some(), is_measured, "{}", isolator.name);
        }
    }
}
