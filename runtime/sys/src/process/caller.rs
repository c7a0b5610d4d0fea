//! What the calling process asks of the kernel for itself.

use nix::errno::Errno;

use crate::error::{Error, Result, check, named};
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

/// Writes `coracle init` over the caller's command line, which everybody in its PID namespace can read
/// (`/proc/PID/cmdline`, proc_pid_cmdline(5)). `/proc` has to be the caller's still.
///
/// # Errors
/// `EINVAL` where procfs does not say where it is.
pub fn hide_arguments() -> Result<()> {
    const SHOWN: &[u8] = b"coracle\0init\0";
    let stat = file::read(CWD, "/proc/self/stat", 4096, Resolve::Host)?;
    let (start, end) =
        arguments(&stat).ok_or_else(|| Error::new("read(\"/proc/self/stat\")", Errno::EINVAL))?;
    // SAFETY: the kernel put the arguments there at execve(2), in memory of the stack that is the process's for good and that
    // no reference leads to; who reads them again finds strings that end in the same place or before it.
    let arguments = unsafe {
        std::slice::from_raw_parts_mut(std::ptr::with_exposed_provenance_mut::<u8>(start), end - start)
    };
    arguments.fill(0);
    arguments.iter_mut().zip(SHOWN).for_each(|(byte, shown)| *byte = *shown);
    Ok(())
}

/// Where the arguments begin and end: the fields 48 and 49 of `stat` (proc_pid_stat(5)), counted from the name's end, the
/// second.
fn arguments(stat: &[u8]) -> Option<(usize, usize)> {
    let text = String::from_utf8_lossy(stat);
    let mut fields = text.rsplit_once(") ")?.1.split_ascii_whitespace().skip(45).map(str::parse);
    let (start, end): (usize, usize) = (fields.next()?.ok()?, fields.next()?.ok()?);
    (start != 0 && start < end).then_some((start, end))
}

/// Lets go of the pages of the caller's own image (madvise(2)): those that it still needs come back one by one, and
/// not as the huge pages in which the kernel maps them at first. For a process that lives long and does little.
///
/// # Errors
/// Where procfs is not mounted.
pub fn forget_image() -> Result<()> {
    let maps = file::read(CWD, "/proc/self/smaps", 1 << 20, Resolve::Host)?;
    for (start, end) in untouched(&String::from_utf8_lossy(&maps)) {
        for advice in [libc::MADV_NOHUGEPAGE, libc::MADV_DONTNEED] {
            // SAFETY: nobody can write to these pages, nor has, so that what is dropped is what the file holds, from which
            // each comes back when it is touched; and the file can't be written to, by the runtime's own protection.
            unsafe { libc::madvise(start as *mut libc::c_void, end - start, advice) };
        }
    }
    Ok(())
}

/// The mappings of files in `maps` that nobody can write to and that hold what is in the file: a loader writes to some before it
/// gives the right away (`PT_GNU_RELRO`).
fn untouched(maps: &str) -> Vec<(usize, usize)> {
    let (mut found, mut last) = (Vec::new(), None);
    for line in maps.lines() {
        match line.split_ascii_whitespace().collect::<Vec<_>>()[..] {
            // START-END PERMISSIONS OFFSET DEVICE INODE PATH (proc_pid_maps(5))
            [range, permissions, _, _, inode, ..] if range.contains('-') => {
                found.extend(last);
                last = (!permissions.contains('w') && inode != "0").then(|| bounds(range)).flatten();
            }
            // Whatever is no longer the file's (proc_pid_smaps(5)).
            ["Anonymous:" | "Swap:", size, ..] if size != "0" => last = None,
            _ => {}
        }
    }
    found.extend(last);
    found
}

fn bounds(range: &str) -> Option<(usize, usize)> {
    let (start, end) = range.split_once('-')?;
    Some((usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?))
}

/// prctl(2) with two arguments.
pub(crate) fn prctl(option: i32, a: u64, b: u64) -> Result<i32> {
    // SAFETY: none of the options that this crate uses takes a pointer.
    let ret = unsafe { libc::prctl(option, a, b, 0_u64, 0_u64) };
    check(ret, || format!("prctl({option}, {a}, {b})"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_loader_has_written_to_is_not_let_go() {
        let maps = "1000-2000 r--p 00000000 fe:00 77 /bin/x
Size: 4 kB
Anonymous: 0 kB
Swap: 0 kB
2000-3000 r--p 00001000 fe:00 77 /bin/x
Anonymous: 4 kB
3000-4000 r-xp 00002000 fe:00 77 /bin/x
Swap: 4 kB
4000-5000 rw-p 00003000 fe:00 77 /bin/x
5000-6000 r--p 00000000 00:00 0 [vvar]
6000-7000 r-xp 00000000 fe:00 78 /lib/y
Anonymous: 0 kB
";
        assert_eq!(untouched(maps), [(0x1000, 0x2000), (0x6000, 0x7000)]);
        // And who lets go of it lives on.
        forget_image().unwrap();
    }
}
