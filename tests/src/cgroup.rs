//! Reading a container's cgroup back from cgroupfs.

use std::fs;
use std::path::{Path, PathBuf};

use crate::oracle::cgroup_hierarchies;

/// The slice of all scopes of the tests, and where systemd puts it.
const SLICE: (&str, &str) = ("coracle-test.slice", "coracle.slice/coracle-test.slice");

/// Whether the containers of all tests are to be scopes of systemd (`CORACLE_CGROUP_MANAGER=systemd`).
pub fn is_made_by_systemd() -> bool {
    std::env::var_os("CORACLE_CGROUP_MANAGER").is_some_and(|manager| manager == "systemd")
}

/// What `linux.cgroupsPath` says of a container that may be anywhere.
pub fn wanted(id: &str) -> String {
    if is_made_by_systemd() { format!("{}:x:{id}", SLICE.0) } else { format!("/{id}") }
}

/// Where the cgroup at `path` is in its hierarchy.
fn place(path: &str) -> String {
    let path = path.trim_start_matches('/');
    if !is_made_by_systemd() || path.is_empty() || path.contains(".slice/") {
        return path.to_owned();
    }
    let (id, below) = path.split_once('/').unwrap_or((path, ""));
    format!("{}/x-{id}.scope/{below}", SLICE.1)
}

/// The value of a file of the cgroup at `path` (from the root of the hierarchy), in whichever hierarchy has it.
pub fn read(path: &str, file: &str) -> Option<String> {
    let inside = |hierarchy: PathBuf| fs::read_to_string(hierarchy.join(place(path)).join(file)).ok();
    cgroup_hierarchies().into_iter().find_map(inside).map(|text| text.trim_end().to_owned())
}

/// Whether the unified hierarchy alone holds the controllers.
pub fn is_unified() -> bool {
    Path::new("/sys/fs/cgroup/cgroup.controllers").is_file()
}

/// The hierarchies that hold a directory for the cgroup at `path`.
pub fn hierarchies_of(path: &str) -> Vec<PathBuf> {
    let below = |hierarchy: PathBuf| hierarchy.join(place(path));
    cgroup_hierarchies().into_iter().map(below).filter(|directory| directory.is_dir()).collect()
}

/// The process IDs in a cgroup's directory.
pub fn members(directory: &Path) -> Vec<i32> {
    let list = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
    list.lines().filter_map(|line| line.parse().ok()).collect()
}
