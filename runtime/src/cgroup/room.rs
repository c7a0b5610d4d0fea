//! Room below a container's cgroup for those of containers below it. On version 2 a cgroup that passes controllers down
//! holds no processes itself (cgroups(7), "no internal processes"): the container's own move into a leaf of theirs. The
//! container still sees its limits, which stay where they are.

use std::os::fd::AsFd;

use coracle_sys::Errno;
use coracle_sys::file::{self, Resolve};

use super::tree::pids;
use super::{LONGEST, Place, Tree, Version, is_absent, own_path};
use crate::error::{Context, Result};

/// The leaf. No container's name begins so.
const LEAF: &str = "_own";

impl Tree {
    /// The same cgroups, but on version 2 the one below in which the container's process `pid` is, where its own can hold no
    /// processes: one that passes controllers down (systemd, or an engine in it) has moved them below. Where the process is not
    /// below, the host has moved it, and nobody follows; nor where that cgroup goes meanwhile.
    ///
    /// # Errors
    /// Whatever reading says.
    pub fn with(mut self, pid: i32, place: &Place) -> Result<Self> {
        let (Version::V2, Some(dir)) = (self.version, self.unified()) else { return Ok(self) };
        if file::read(dir, "cgroup.subtree_control", LONGEST, Resolve::Beneath)?.trim_ascii().is_empty() {
            return Ok(self);
        }
        let text = file::read(file::CWD, format!("/proc/{pid}/cgroup"), LONGEST, Resolve::Host)?;
        let below = place.at.iter().filter(|site| site.hierarchy.unified).find_map(|site| {
            let at = own_path(&text, &site.hierarchy);
            Some(at.strip_prefix("/").ok()?.strip_prefix(&site.path).ok()?.to_owned())
        });
        let Some(below) = below.filter(|below| !below.as_os_str().is_empty()) else { return Ok(self) };
        let below = match file::open(dir, &below, libc::O_DIRECTORY, 0, Resolve::BeneathNoLinks) {
            Err(e) if is_absent(e.errno()) => return Ok(self),
            below => below?,
        };
        if let Some((_, dir)) = self.dirs.iter_mut().find(|(hierarchy, _)| hierarchy.unified) {
            *dir = below;
        }
        Ok(self)
    }
}

impl Place {
    /// Moves the container's processes into a leaf, on a machine with version 2 alone; nothing elsewhere.
    ///
    /// # Errors
    /// `EBUSY` where processes come as fast as they are moved.
    pub fn make_room(&self) -> Result<()> {
        if !self.at.iter().all(|site| site.hierarchy.name.is_empty()) {
            return Ok(());
        }
        let tree = self.open()?;
        let Some(dir) = tree.unified() else { return Ok(()) };
        let leaf = file::mkdir_all_no_links(dir, LEAF, 0o755)
            .context(|| "making a leaf for the container's processes")?;
        for _ in 0..100 {
            let text = file::read(dir, "cgroup.procs", LONGEST, Resolve::Beneath)?;
            if text.is_empty() {
                return Ok(());
            }
            for pid in pids(&text) {
                match file::write_to(
                    leaf.as_fd(),
                    "cgroup.procs",
                    pid.to_string().as_bytes(),
                    Resolve::Beneath,
                ) {
                    // It has ended meanwhile.
                    Err(e) if e.errno() == Errno::ESRCH => {}
                    moved => moved.context(|| "moving the container's processes into a leaf")?,
                }
            }
        }
        Err(coracle_sys::Error::new("write(\"cgroup.procs\")", Errno::EBUSY).into())
    }

    /// Moves the process `pid` into the cgroups, and on version 2 into the leaf: who keeps a scope of systemd from ending.
    ///
    /// # Errors
    /// `ESRCH` where it is gone.
    pub fn take_in(&self, pid: i32) -> Result<()> {
        for (_, dir) in self.open()?.dirs {
            file::write_to(dir.as_fd(), "cgroup.procs", pid.to_string().as_bytes(), Resolve::Beneath)
                .context(|| "moving the keeper into the pod's cgroup")?;
        }
        self.make_room()
    }

    /// Where a process that is executed in the container goes, as `exec --cgroup` has it: the leaf, where there is one.
    pub fn room(&self) -> Vec<String> {
        let has_leaf = |dir| file::stat_at(dir, LEAF).is_ok();
        let tree = self.open().ok();
        let leaf = tree.as_ref().and_then(|tree| tree.unified()).is_some_and(has_leaf);
        if leaf { vec![LEAF.to_owned()] } else { Vec::new() }
    }
}
