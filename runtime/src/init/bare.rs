//! The host's procfs and sysfs, where the host's root stays mounted below the container's (`--no-pivot`). A new user
//! namespace in the container could mount its own, with nothing masked in them, as long as bare ones are in its mount
//! namespace (mount_namespaces(7), and `mount_too_revealing` of the kernel).

use std::collections::HashSet;
use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use coracle_sys::file::{self, Resolve};
use coracle_sys::mount::{self, attr};

use crate::error::Result;

/// The longest table of mounts that is read, in bytes.
const LONGEST: u64 = 64 << 20;

/// One line of `/proc/PID/mountinfo` (proc_pid_mountinfo(5)).
struct Line {
    id: u64,
    parent: u64,
    path: PathBuf,
    fstype: String,
}

/// Takes away, or covers where a user namespace holds it fast, each procfs and sysfs that is not below the mount `root`.
pub(super) fn hide(root: BorrowedFd<'_>) -> Result<()> {
    let table = file::read(file::CWD, "/proc/self/mountinfo", LONGEST, Resolve::Host)?;
    let lines: Vec<Line> = String::from_utf8_lossy(&table).lines().filter_map(line).collect();
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

fn line(text: &str) -> Option<Line> {
    let (mount, file_system) = text.split_once(" - ")?;
    let fields: Vec<&str> = mount.split(' ').collect();
    Some(Line {
        id: fields.first()?.parse().ok()?,
        parent: fields.get(1)?.parse().ok()?,
        path: plain(fields.get(4)?),
        fstype: file_system.split(' ').next()?.to_owned(),
    })
}

/// A path as it is, of one in which blanks and the like are octal (`\040`).
fn plain(escaped: &str) -> PathBuf {
    let mut bytes = Vec::new();
    let mut rest = escaped.as_bytes();
    while let [first, tail @ ..] = rest {
        let digits = tail.get(..3).filter(|_| *first == b'\\').and_then(|d| std::str::from_utf8(d).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => (bytes.push(byte), rest = &tail[3..]),
            None => (bytes.push(*first), rest = tail),
        };
    }
    OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_below_the_containers_root_is_told_from_the_hosts() {
        let table = "1 0 0:1 / / rw - ext4 a rw\n2 1 0:2 / /proc rw shared:1 - proc proc rw\n\
                     5 4 0:5 / /proc rw - proc proc rw\n4 1 0:4 / / rw - overlay b rw\n\
                     3 1 0:3 / /a\\040b rw - sysfs sysfs rw";
        let lines: Vec<Line> = table.lines().filter_map(line).collect();
        let mut own: Vec<u64> = below(&lines, 4).into_iter().collect();
        own.sort_unstable();
        assert_eq!(own, [4, 5]);
        assert_eq!((lines[4].path.to_str().unwrap(), lines[4].fstype.as_str()), ("/a b", "sysfs"));
    }
}
