//! Who a process is and what it may do: users, groups, capabilities, limits.

use nix::errno::Errno;

use crate::error::{Error, Result, check, named};
use crate::process::prctl;

/// The five capability sets of a thread (capabilities(7)), one bit for each capability.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// What the thread and its descendants can ever gain.
    pub bounding: u64,
    /// What counts in permission checks.
    pub effective: u64,
    /// What may be made effective.
    pub permitted: u64,
    /// What passes through execve(2) to files that ask for it.
    pub inheritable: u64,
    /// What passes through execve(2) to files that ask for nothing.
    pub ambient: u64,
}

#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Data {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

const VERSION_3: u32 = 0x2008_0522;
const CAP_SETPCAP: u64 = 1 << 8;

/// The effective, permitted and inheritable sets of the calling thread (capget(2)); the others are left empty.
///
/// # Errors
/// None that a kernel is known to give.
pub fn capabilities() -> Result<Capabilities> {
    let mut header = Header { version: VERSION_3, pid: 0 };
    let mut data = [Data::default(); 2];
    // SAFETY: a version 3 header and two data blocks, as that version asks.
    let ret = unsafe { libc::syscall(libc::SYS_capget, &raw mut header, data.as_mut_ptr()) };
    check(ret, || "capget()".to_owned())?;
    let join = |low: u32, high: u32| u64::from(low) | (u64::from(high) << 32);
    Ok(Capabilities {
        effective: join(data[0].effective, data[1].effective),
        permitted: join(data[0].permitted, data[1].permitted),
        inheritable: join(data[0].inheritable, data[1].inheritable),
        ..Capabilities::default()
    })
}

/// Sets the effective, permitted and inheritable sets of the calling thread (capset(2)).
///
/// # Errors
/// `EPERM` where the thread would gain what it is not permitted.
pub fn set_capabilities(sets: &Capabilities) -> Result<()> {
    let mut header = Header { version: VERSION_3, pid: 0 };
    let half = |shift: u32| Data {
        effective: (sets.effective >> shift) as u32,
        permitted: (sets.permitted >> shift) as u32,
        inheritable: (sets.inheritable >> shift) as u32,
    };
    let data = [half(0), half(32)];
    // SAFETY: a version 3 header and two data blocks, as that version asks.
    let ret = unsafe { libc::syscall(libc::SYS_capset, &raw mut header, data.as_ptr()) };
    check(ret, || format!("capset({:#x}, {:#x}, {:#x})", sets.effective, sets.permitted, sets.inheritable))
        .map(drop)
}

/// Takes out of the bounding set what `keep` doesn't hold (`PR_CAPBSET_DROP`). Does nothing where the thread
/// lacks `CAP_SETPCAP`.
///
/// # Errors
/// None that a kernel is known to give.
pub fn limit_bounding(keep: u64) -> Result<()> {
    if capabilities()?.effective & CAP_SETPCAP == 0 {
        return Ok(());
    }
    for capability in (0..64_u64).filter(|c| keep & (1 << c) == 0) {
        match prctl(libc::PR_CAPBSET_DROP, capability, 0) {
            // Beyond the last capability that this kernel knows.
            Err(e) if e.errno() == Errno::EINVAL => break,
            other => other?,
        };
    }
    Ok(())
}

/// Raises the ambient capabilities of `set` (`PR_CAP_AMBIENT_RAISE`, Linux 4.3).
///
/// # Errors
/// `EPERM` where one is not both permitted and inheritable.
pub fn raise_ambient(set: u64) -> Result<()> {
    for capability in (0..64_u64).filter(|c| set & (1 << c) != 0) {
        prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE as u64, capability)?;
    }
    Ok(())
}

/// Keeps the permitted capabilities when the user changes (`PR_SET_KEEPCAPS`); execve(2) clears it.
///
/// # Errors
/// `EPERM` where securebits forbid it.
pub fn keep_capabilities(yes: bool) -> Result<()> {
    prctl(libc::PR_SET_KEEPCAPS, u64::from(yes), 0).map(drop)
}

/// Forbids that execve(2) gives privileges, for good (`PR_SET_NO_NEW_PRIVS`).
///
/// # Errors
/// None that a kernel is known to give.
pub fn no_new_privileges() -> Result<()> {
    prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0).map(drop)
}

/// Sets the supplementary groups of the calling process (setgroups(2)).
///
/// # Errors
/// `EPERM` in a user namespace whose `setgroups` says deny, `EINVAL` for an unmapped group.
pub fn set_groups(groups: &[u32]) -> Result<()> {
    // SAFETY: pointer and length are those of one live slice. The raw call acts on the calling thread, which
    // is the only one.
    let ret = unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) };
    check(ret, || format!("setgroups({groups:?})")).map(drop)
}

/// Sets real, effective and saved group (setresgid(2)).
///
/// # Errors
/// `EINVAL` for an unmapped group.
pub fn set_group(gid: u32) -> Result<()> {
    // SAFETY: the call takes no pointers.
    let ret = unsafe { libc::syscall(libc::SYS_setresgid, gid, gid, gid) };
    check(ret, || format!("setresgid({gid})")).map(drop)
}

/// Sets real, effective and saved user (setresuid(2)).
///
/// # Errors
/// `EINVAL` for an unmapped user, `EAGAIN` where the user has too many processes.
pub fn set_user(uid: u32) -> Result<()> {
    // SAFETY: the call takes no pointers.
    let ret = unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) };
    check(ret, || format!("setresuid({uid})")).map(drop)
}

/// Sets the mask for new files' permission bits (umask(2)).
pub fn set_umask(mask: u32) {
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(mask));
}

/// Sets the soft and hard limit of the resource `name`, such as `RLIMIT_NOFILE` (setrlimit(2)).
///
/// # Errors
/// `EINVAL` where the name is unknown or soft is above hard, `EPERM` where the hard limit would be raised.
pub fn set_limit(name: &str, soft: u64, hard: u64) -> Result<()> {
    let call = || format!("setrlimit({name}, {soft}, {hard})");
    let resource = resource(name).ok_or_else(|| Error::new(call(), Errno::EINVAL))?;
    named(nix::sys::resource::setrlimit(resource, soft, hard), call)
}

/// The caller's hard limit of the resource `name` (getrlimit(2)).
///
/// # Errors
/// `EINVAL` where the name is unknown.
pub fn hard_limit(name: &str) -> Result<u64> {
    let call = || format!("getrlimit({name})");
    let resource = resource(name).ok_or_else(|| Error::new(call(), Errno::EINVAL))?;
    named(nix::sys::resource::getrlimit(resource), call).map(|(_, hard)| hard)
}

/// Raises the caller's soft limit of the resource `name` to the hard one.
///
/// # Errors
/// `EINVAL` where the name is unknown.
pub fn raise_to_hard_limit(name: &str) -> Result<()> {
    let hard = hard_limit(name)?;
    set_limit(name, hard, hard)
}

/// The resource that the spec calls `name`.
pub fn resource(name: &str) -> Option<nix::sys::resource::Resource> {
    use nix::sys::resource::Resource as R;
    Some(match name {
        "RLIMIT_AS" => R::RLIMIT_AS,
        "RLIMIT_CORE" => R::RLIMIT_CORE,
        "RLIMIT_CPU" => R::RLIMIT_CPU,
        "RLIMIT_DATA" => R::RLIMIT_DATA,
        "RLIMIT_FSIZE" => R::RLIMIT_FSIZE,
        "RLIMIT_LOCKS" => R::RLIMIT_LOCKS,
        "RLIMIT_MEMLOCK" => R::RLIMIT_MEMLOCK,
        "RLIMIT_MSGQUEUE" => R::RLIMIT_MSGQUEUE,
        "RLIMIT_NICE" => R::RLIMIT_NICE,
        "RLIMIT_NOFILE" => R::RLIMIT_NOFILE,
        "RLIMIT_NPROC" => R::RLIMIT_NPROC,
        "RLIMIT_RSS" => R::RLIMIT_RSS,
        "RLIMIT_RTPRIO" => R::RLIMIT_RTPRIO,
        "RLIMIT_RTTIME" => R::RLIMIT_RTTIME,
        "RLIMIT_SIGPENDING" => R::RLIMIT_SIGPENDING,
        "RLIMIT_STACK" => R::RLIMIT_STACK,
        _ => return None,
    })
}

/// The effective user that the calling program was started by, without a system call (getauxval(3)).
pub fn caller() -> u32 {
    // SAFETY: getauxval reads what the kernel left beside the environment; it has no preconditions.
    (unsafe { libc::getauxval(libc::AT_EUID) }) as u32
}

/// Whether the caller lacks the rights of the host's root: it is another user, or root of a user namespace only.
pub fn is_rootless() -> bool {
    caller() != 0 || !crate::namespace::is_initial_user()
}

/// The effective group of the calling process.
pub fn effective_group() -> u32 {
    nix::unistd::getegid().as_raw()
}
