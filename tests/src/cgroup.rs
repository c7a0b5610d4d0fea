//! Reading a container's cgroup back from cgroupfs.

use std::fs;
use std::path::{Path, PathBuf};

use crate::oracle::cgroup_hierarchies;

/// The value of a file of the cgroup at `path` (from the root of the hierarchy), in whichever hierarchy has it.
pub fn read(path: &str, file: &str) -> Option<String> {
    let inside =
        |hierarchy: PathBuf| fs::read_to_string(hierarchy.join(path.trim_start_matches('/')).join(file)).ok();
    cgroup_hierarchies().into_iter().find_map(inside).map(|text| text.trim_end().to_owned())
}

/// Whether the unified hierarchy alone holds the controllers.
pub fn is_unified() -> bool {
    Path::new("/sys/fs/cgroup/cgroup.controllers").is_file()
}

/// The hierarchies that hold a directory for the cgroup at `path`.
pub fn hierarchies_of(path: &str) -> Vec<PathBuf> {
    let below = |hierarchy: PathBuf| hierarchy.join(path.trim_start_matches('/'));
    cgroup_hierarchies().into_iter().map(below).filter(|directory| directory.is_dir()).collect()
}

/// The process IDs in a cgroup's directory.
pub fn members(directory: &Path) -> Vec<i32> {
    let list = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
    list.lines().filter_map(|line| line.parse().ok()).collect()
}
