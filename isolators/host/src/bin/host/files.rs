//! Which files a plugin may read and write: rules of Landlock.

use std::os::fd::AsFd;
use std::path::Path;

use coracle_sys::file::{self, Resolve};
use coracle_sys::landlock::{self, Ruleset, access};
use coracle_sys::{Errno, Result};

use crate::confine::Grants;

/// What is read of `/dev`: all else there is a terminal somebody types at, a disk, or a machine's own in another way.
const DEVICES: [&str; 5] = ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"];

/// Files of a cgroup that move processes, of anybody, into it; and the one that names a program of the kernel's.
const MOVING: [&str; 4] = ["cgroup.procs", "cgroup.threads", "tasks", "release_agent"];

/// None where the kernel has no Landlock: what is left is what the plugin's user may do without capabilities.
pub(crate) fn rules(grants: &Grants) -> Result<Option<Ruleset>> {
    let Ok(abi) = landlock::abi() else { return Ok(None) };
    let mut handled = access::FIRST;
    for (since, right) in [(2, access::REFER), (3, access::TRUNCATE), (5, access::IOCTL_DEV)] {
        handled |= if abi >= since { right } else { 0 };
    }
    let rules = Ruleset::new(handled, 0, if abi >= 6 { landlock::SCOPE_SIGNAL } else { 0 })?;
    let write = (access::WRITE_FILE | access::TRUNCATE) & handled;
    let root = file::open_dir("/")?;
    rules.allow_below(root.as_fd(), access::READ_DIR)?;
    // Rules can only add: what is not to be read is what none of them names.
    for name in file::list(root.as_fd())?.iter().filter(|name| *name != "dev") {
        allow(&rules, &Path::new("/").join(name), access::EXECUTE | access::READ_FILE)?;
    }
    for device in DEVICES {
        allow(&rules, Path::new(device), access::READ_FILE)?;
    }
    allow(&rules, Path::new("/dev/null"), write)?;
    for path in &grants.writable {
        allow_all(&rules, path, handled)?;
    }
    for cgroup in &grants.cgroups {
        allow_limits(&rules, *cgroup, write)?;
    }
    Ok(Some(rules))
}

/// Rights that a file has as well as a directory. A link gives none to what it leads to.
fn allow(rules: &Ruleset, path: &Path, rights: u64) -> Result<()> {
    match file::open(file::CWD, path, libc::O_PATH | libc::O_NOFOLLOW, 0, Resolve::Host) {
        Err(e) if e.errno() == Errno::ENOENT => Ok(()),
        place => rules.allow_below(place?.as_fd(), rights),
    }
}

fn allow_all(rules: &Ruleset, path: &Path, rights: u64) -> Result<()> {
    let place = match file::open(file::CWD, path, libc::O_PATH, 0, Resolve::Host) {
        Err(e) if e.errno() == Errno::ENOENT => return Ok(()),
        other => other?,
    };
    let is_dir = file::stat(place.as_fd())?.st_mode & libc::S_IFMT == libc::S_IFDIR;
    rules.allow_below(place.as_fd(), if is_dir { rights } else { rights & access::OF_FILES })
}

/// To write each file of the cgroup with the directory `cgroup` that sets something of this cgroup alone; nothing of the
/// cgroups below it, in which there are those that move processes, too.
fn allow_limits(rules: &Ruleset, cgroup: i32, write: u64) -> Result<()> {
    let dir = file::open_dir(format!("/proc/self/fd/{cgroup}"))?;
    for name in file::list(dir.as_fd())?.iter().filter(|name| !MOVING.iter().any(|moving| *name == moving)) {
        let place = match file::open(dir.as_fd(), name, libc::O_PATH | libc::O_NOFOLLOW, 0, Resolve::Beneath)
        {
            Err(e) if e.errno() == Errno::ENOENT => continue,
            other => other?,
        };
        if file::stat(place.as_fd())?.st_mode & libc::S_IFMT == libc::S_IFREG {
            rules.allow_below(place.as_fd(), write)?;
        }
    }
    Ok(())
}
