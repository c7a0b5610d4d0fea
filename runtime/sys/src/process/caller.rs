//! What the calling process asks of the kernel for itself.

use crate::error::{Result, check, named};
use crate::file::{self, CWD, Resolve};

/// Asks for `SIGKILL` when the parent ends, or with `false` takes that back (`PR_SET_PDEATHSIG`).
///
/// # Errors
/// None that a kernel is known to give.
pub fn die_with_parent(yes: bool) -> Result<()> {
    let signal = if yes { libc::SIGKILL } else { 0 };
    prctl(libc::PR_SET_PDEATHSIG, signal as u64, 0).map(drop)
}

/// Makes orphans below the calling process its children (`PR_SET_CHILD_SUBREAPER`).
///
/// # Errors
/// None that a kernel is known to give.
pub fn become_subreaper() -> Result<()> {
    prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0).map(drop)
}

/// Starts a new session, whose leader the caller is (setsid(2)).
///
/// # Errors
/// `EPERM` where the caller leads a process group already.
pub fn new_session() -> Result<()> {
    named(nix::unistd::setsid(), || "setsid()".to_owned()).map(drop)
}

/// Forbids other processes to look into the caller's memory, descriptors and `/proc/PID/exe`
/// (`PR_SET_DUMPABLE`).
///
/// # Errors
/// None that a kernel is known to give.
pub fn undumpable() -> Result<()> {
    prctl(libc::PR_SET_DUMPABLE, 0, 0).map(drop)
}

/// Takes [`undumpable`] back: for a moment in which a user without privilege must write to its own `/proc/PID`,
/// whose files are root's otherwise (proc_pid(5)).
///
/// # Errors
/// None that a kernel is known to give.
pub fn dumpable() -> Result<()> {
    prctl(libc::PR_SET_DUMPABLE, 1, 0).map(drop)
}

/// Whether the caller is [`dumpable`].
///
/// # Errors
/// None that a kernel is known to give.
pub fn is_dumpable() -> Result<bool> {
    prctl(libc::PR_GET_DUMPABLE, 0, 0).map(|state| state == 1)
}

/// Lets go of the pages of the caller's own image (madvise(2)): those that it still needs come back one by one, and
/// not as the huge pages in which the kernel maps them at first. For a process that lives long and does little.
///
/// # Errors
/// Where procfs is not mounted.
pub fn forget_image() -> Result<()> {
    let maps = file::read(CWD, "/proc/self/maps", 1 << 20, Resolve::Host)?;
    for line in String::from_utf8_lossy(&maps).lines() {
        // START-END PERMISSIONS OFFSET DEVICE INODE PATH (proc_pid_maps(5))
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let [range, permissions, _, _, inode, ..] = fields[..] else { continue };
        let range = range.split_once('-').and_then(|(start, end)| {
            Some((usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?))
        });
        let Some((start, end)) = range.filter(|_| !permissions.contains('w') && inode != "0") else {
            continue;
        };
        for advice in [libc::MADV_NOHUGEPAGE, libc::MADV_DONTNEED] {
            // SAFETY: nobody can write to these pages, so that what is dropped is what the file holds, from which each
            // comes back when it is touched; and the file can't be written to, by the runtime's own protection.
            unsafe { libc::madvise(start as *mut libc::c_void, end - start, advice) };
        }
    }
    Ok(())
}

/// prctl(2) with two arguments.
pub(crate) fn prctl(option: i32, a: u64, b: u64) -> Result<i32> {
    // SAFETY: none of the options that this crate uses takes a pointer.
    let ret = unsafe { libc::prctl(option, a, b, 0_u64, 0_u64) };
    check(ret, || format!("prctl({option}, {a}, {b})"))
}
