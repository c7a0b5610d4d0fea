//! Landlock: what a thread and its descendants may reach, given up for good (landlock(7), Linux 5.13).

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use crate::error::{Result, check, check_fd, show};

/// Rights on files, linux/landlock.h.
pub mod access {
    /// To execute a file.
    pub const EXECUTE: u64 = 1;
    /// To open a file for writing.
    pub const WRITE_FILE: u64 = 1 << 1;
    /// To open a file for reading.
    pub const READ_FILE: u64 = 1 << 2;
    /// To list a directory.
    pub const READ_DIR: u64 = 1 << 3;
    /// To truncate a file (Linux 6.2).
    pub const TRUNCATE: u64 = 1 << 14;
    /// All that the first version knows.
    pub const FIRST: u64 = (1 << 13) - 1;
    /// To link and rename between directories (Linux 5.19).
    pub const REFER: u64 = 1 << 13;
}

/// No signals to processes that are not under the same rules (Linux 6.12).
pub const SCOPE_SIGNAL: u64 = 1 << 1;

/// The first fields of `struct landlock_ruleset_attr`.
#[repr(C)]
struct Attributes {
    handled_access_fs: u64,
    handled_access_net: u64,
    scoped: u64,
}

#[repr(C, packed)]
struct Beneath {
    allowed_access: u64,
    parent_fd: i32,
}

/// Rules that are being made.
#[derive(Debug)]
pub struct Rules {
    fd: OwnedFd,
    handled: u64,
}

/// The version of Landlock that the kernel offers; 0 where it offers none.
pub fn version() -> i64 {
    const VERSION: u32 = 1;
    // SAFETY: asked for its version, the call takes no attributes.
    let version = unsafe {
        libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<Attributes>(), 0_usize, VERSION)
    };
    version.max(0)
}

impl Rules {
    /// Rules under which nothing is allowed of what Landlock of `version` can forbid on files, and no signal to others
    /// (landlock_create_ruleset(2)).
    ///
    /// # Errors
    /// `EOPNOTSUPP` where Landlock was turned off at boot.
    pub fn new(version: i64) -> Result<Self> {
        let mut handled = access::FIRST;
        for (since, right) in [(2, access::REFER), (3, access::TRUNCATE)] {
            handled |= if version >= since { right } else { 0 };
        }
        let scoped = if version >= 6 { SCOPE_SIGNAL } else { 0 };
        let attributes = Attributes { handled_access_fs: handled, handled_access_net: 0, scoped };
        // An older kernel takes the fields that it knows.
        let size = if version >= 6 { size_of::<Attributes>() } else { size_of::<u64>() };
        // SAFETY: the attributes outlive the call, and are at least as long as it is told.
        let fd = unsafe {
            libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::from_ref(&attributes), size, 0)
        };
        Ok(Self { fd: check_fd(fd, || "landlock_create_ruleset()".to_owned())?, handled })
    }

    /// Allows `rights`, those of them that these rules are about, on what lies at or below `place`
    /// (landlock_add_rule(2)).
    ///
    /// # Errors
    /// `EINVAL` where `place` is a file and a right is about directories.
    pub fn allow(&self, place: BorrowedFd<'_>, rights: u64) -> Result<()> {
        const PATH_BENEATH: i32 = 1;
        let rule = Beneath { allowed_access: rights & self.handled, parent_fd: place.as_raw_fd() };
        // SAFETY: the rule outlives the call.
        let ret = unsafe {
            libc::syscall(
                libc::SYS_landlock_add_rule,
                self.fd.as_raw_fd(),
                PATH_BENEATH,
                std::ptr::from_ref(&rule),
                0,
            )
        };
        check(ret, || format!("landlock_add_rule({}, {rights:#x})", show(&place))).map(drop)
    }

    /// Puts the calling thread and its descendants under these rules (landlock_restrict_self(2)).
    ///
    /// # Errors
    /// `EPERM` without `no_new_privs`.
    pub fn restrict(&self) -> Result<()> {
        // SAFETY: the call takes no pointers.
        let ret = unsafe { libc::syscall(libc::SYS_landlock_restrict_self, self.fd.as_fd().as_raw_fd(), 0) };
        check(ret, || "landlock_restrict_self()".to_owned()).map(drop)
    }
}
