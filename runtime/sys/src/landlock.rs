//! Rules of Landlock (landlock(7), Linux 5.13): what a process and its descendants may no longer do.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use crate::error::{Result, check, check_fd, show};

/// Rights to files (`LANDLOCK_ACCESS_FS_*`) of linux/landlock.h.
pub mod access {
    /// To execute a file.
    pub const EXECUTE: u64 = 1;
    /// To open a file for writing.
    pub const WRITE_FILE: u64 = 1 << 1;
    /// To open a file for reading.
    pub const READ_FILE: u64 = 1 << 2;
    /// To list a directory.
    pub const READ_DIR: u64 = 1 << 3;
    /// All that the first ABI knows.
    pub const FIRST: u64 = (1 << 13) - 1;
    /// To link and rename between directories (Linux 5.19, ABI 2).
    pub const REFER: u64 = 1 << 13;
    /// To truncate a file (Linux 6.2, ABI 3).
    pub const TRUNCATE: u64 = 1 << 14;
    /// To make ioctl(2) calls on a device (Linux 6.10, ABI 5).
    pub const IOCTL_DEV: u64 = 1 << 15;
    /// All that a file which is no directory has.
    pub const OF_FILES: u64 = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV;
}

/// No signals to processes that are not under the same rules (Linux 6.12, ABI 6).
pub const SCOPE_SIGNAL: u64 = 1 << 1;

/// The newest set of rights that the kernel knows, as it counts them (`LANDLOCK_CREATE_RULESET_VERSION`).
///
/// # Errors
/// `ENOSYS` where the kernel has no Landlock, `EOPNOTSUPP` where it was started without.
pub fn abi() -> Result<u32> {
    const VERSION: u32 = 1;
    let nothing = std::ptr::null::<RulesetAttr>();
    // SAFETY: with this flag the kernel reads no attributes and takes none but a null pointer of size 0.
    let ret = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, nothing, 0_usize, VERSION) };
    check(ret, || "landlock_create_ruleset(NULL, 0, VERSION)".to_owned()).map(|abi| abi as u32)
}

/// `struct landlock_ruleset_attr` of linux/landlock.h, as of ABI 6.
#[repr(C)]
struct RulesetAttr {
    handled_access_fs: u64,
    handled_access_net: u64,
    scoped: u64,
}

/// `struct landlock_path_beneath_attr`, which has no padding.
#[repr(C, packed)]
struct PathBeneathAttr {
    allowed_access: u64,
    parent_fd: i32,
}

/// `struct landlock_net_port_attr`.
#[repr(C)]
struct NetPortAttr {
    allowed_access: u64,
    port: u64,
}

const RULE_PATH_BENEATH: u32 = 1;
const RULE_NET_PORT: u32 = 2;

/// Rules that are not in force yet.
#[derive(Debug)]
pub struct Ruleset(OwnedFd);

impl Ruleset {
    /// Rules that forbid the accesses `fs` to files (`LANDLOCK_ACCESS_FS_*`), `net` to ports (`LANDLOCK_ACCESS_NET_*`),
    /// and `scoped` beyond the processes they hold for (`LANDLOCK_SCOPE_*`).
    ///
    /// # Errors
    /// `EINVAL`, or `E2BIG` for a kind that is newer than the kernel, for what it does not know; `ENOMSG` for nothing
    /// at all.
    pub fn new(fs: u64, net: u64, scoped: u64) -> Result<Self> {
        let attr = RulesetAttr { handled_access_fs: fs, handled_access_net: net, scoped };
        let attr_ref = std::ptr::from_ref(&attr);
        // SAFETY: `attr` outlives the call, which reads as many bytes as it has.
        let ret = unsafe {
            libc::syscall(libc::SYS_landlock_create_ruleset, attr_ref, size_of::<RulesetAttr>(), 0_u32)
        };
        check_fd(ret, || format!("landlock_create_ruleset({{fs={fs:#x}, net={net:#x}, scoped={scoped:#x}}})"))
            .map(Self)
    }

    /// Allows `access` to the file `parent`, or to all below it.
    ///
    /// # Errors
    /// `EINVAL` for an access that the rules do not forbid, or that no such file has.
    pub fn allow_below(&self, parent: BorrowedFd<'_>, access: u64) -> Result<()> {
        let attr = PathBeneathAttr { allowed_access: access, parent_fd: parent.as_raw_fd() };
        self.add(RULE_PATH_BENEATH, std::ptr::from_ref(&attr).cast(), || {
            format!("landlock_add_rule({}, {{{access:#x}, {}}})", show(&self.0), show(&parent))
        })
    }

    /// Allows `access` to the TCP port `port`.
    ///
    /// # Errors
    /// As [`allow_below`](Self::allow_below).
    pub fn allow_port(&self, port: u16, access: u64) -> Result<()> {
        let attr = NetPortAttr { allowed_access: access, port: u64::from(port) };
        self.add(RULE_NET_PORT, std::ptr::from_ref(&attr).cast(), || {
            format!("landlock_add_rule({}, {{{access:#x}, port {port}}})", show(&self.0))
        })
    }

    /// `attr` points to the attributes that a rule of this kind has, and outlives the call.
    fn add(&self, kind: u32, attr: *const libc::c_void, call: impl FnOnce() -> String) -> Result<()> {
        // SAFETY: both callers pass a pointer to their own local of the type that belongs to `kind`; the kernel copies it.
        let ret =
            unsafe { libc::syscall(libc::SYS_landlock_add_rule, self.0.as_raw_fd(), kind, attr, 0_u32) };
        check(ret, call).map(drop)
    }

    /// Puts the rules in force for the calling thread and its descendants, for ever.
    ///
    /// # Errors
    /// `EPERM` where the thread has neither `no_new_privs` nor `CAP_SYS_ADMIN`, `E2BIG` for the seventeenth set.
    pub fn restrict_self(&self) -> Result<()> {
        // SAFETY: the call takes no pointers.
        let ret = unsafe { libc::syscall(libc::SYS_landlock_restrict_self, self.0.as_raw_fd(), 0_u32) };
        check(ret, || format!("landlock_restrict_self({})", show(&self.0.as_fd()))).map(drop)
    }
}

impl AsRawFd for Ruleset {
    fn as_raw_fd(&self) -> i32 {
        self.0.as_raw_fd()
    }
}
