//! The host's procfs and sysfs, where the host's root stays mounted below the container's (`--no-pivot`). A new user
//! namespace in the container could mount its own, with nothing masked in them, as long as bare ones are in its mount
//! namespace (mount_namespaces(7), and `mount_too_revealing` of the kernel).

use std::collections::HashSet;
use std::os::fd::{AsFd, BorrowedFd};

use coracle_sys::file::{self, Resolve};
use coracle_sys::mount::{self, Line, attr};

use crate::error::Result;

/// Takes away, or covers where a user namespace holds it fast, each procfs and sysfs that is not below the mount `root`.
pub(super) fn hide(root: BorrowedFd<'_>) -> Result<()> {
    let lines = mount::table()?;
    let own = below(&lines, file::mount_id(root)?);
    // The last comes first: what is mounted over another must go before it.
    for line in lines.iter().rev() {
        if !matches!(line.fstype.as_str(), "proc" | "sysfs") || own.contains(&line.id) {
            continue;
        }
        if mount::detach(&line.path).is_err() {
            let cover = mount::Context::open("tmpfs")?.mount(attr::RDONLY | attr::NOSUID | attr::NODEV)?;
            let flags = libc::O_PATH | libc::O_DIRECTORY;
            let place = file::open(file::CWD, &line.path, flags, 0, Resolve::Host)?;
            mount::attach(cover.as_fd(), place.as_fd())?;
        }
    }
    Ok(())
}

/// The mount `top` and all that is mounted below it.
fn below(lines: &[Line], top: u64) -> HashSet<u64> {
    let mut found = HashSet::from([top]);
    loop {
        let before = found.len();
        let more: Vec<u64> = lines.iter().filter(|l| found.contains(&l.parent)).map(|l| l.id).collect();
        found.extend(more);
        if found.len() == before {
            return found;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_below_the_containers_root_is_told_from_the_hosts() {
        let table = "1 0 0:1 / / rw - ext4 a rw\n2 1 0:2 / /proc rw shared:1 - proc proc rw\n\
                     5 4 0:5 / /proc rw - proc proc rw\n4 1 0:4 / / rw - overlay b rw\n\
                     3 1 0:3 / /sys rw - sysfs sysfs rw";
        let lines: Vec<Line> = table.lines().filter_map(|line| Line::parse(line.as_bytes())).collect();
        let mut own: Vec<u64> = below(&lines, 4).into_iter().collect();
        own.sort_unstable();
        assert_eq!(own, [4, 5]);
    }
}
