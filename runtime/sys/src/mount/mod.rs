//! Mounts by file descriptor: the mount API of Linux 5.2 (`fsopen`, `fsconfig`, `fsmount`, `open_tree`,
//! `move_mount`) and 5.12 (`mount_setattr`).
//!
//! A mount is made detached, gets its attributes while nobody can see it, and is attached last.

mod table;

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;

use crate::error::{Error, Result, check, check_fd, show};

pub use table::{Line, entry, is_there, table, table_of};

/// Attributes of one mount (mount_setattr(2), `MOUNT_ATTR_*`).
pub mod attr {
    /// Read-only.
    pub const RDONLY: u64 = 0x1;
    /// Set-user-ID bits are not honoured.
    pub const NOSUID: u64 = 0x2;
    /// Device nodes can't be opened.
    pub const NODEV: u64 = 0x4;
    /// Programs can't be executed.
    pub const NOEXEC: u64 = 0x8;
    /// The mask of the three ways to keep access times; zero is `relatime`.
    pub const ATIME: u64 = 0x70;
    /// Access times are not kept.
    pub const NOATIME: u64 = 0x10;
    /// Access times are kept always.
    pub const STRICTATIME: u64 = 0x20;
    /// Access times of directories are not kept.
    pub const NODIRATIME: u64 = 0x80;
    /// Owners are mapped by a user namespace.
    pub const IDMAP: u64 = 0x0010_0000;
    /// Symbolic links are not followed (Linux 5.14).
    pub const NOSYMFOLLOW: u64 = 0x0020_0000;
}

/// How mount events travel to and from a mount (mount_namespaces(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Propagation {
    /// Both ways.
    Shared,
    /// From the host only.
    Slave,
    /// Not at all.
    Private,
    /// Not at all, and the mount can't be bound.
    Unbindable,
}

impl Propagation {
    fn flag(self) -> u64 {
        match self {
            Self::Shared => libc::MS_SHARED,
            Self::Slave => libc::MS_SLAVE,
            Self::Private => libc::MS_PRIVATE,
            Self::Unbindable => libc::MS_UNBINDABLE,
        }
    }
}

/// What [`set_attributes`] changes: bits of [`attr`] to set and to clear, and the propagation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Bits to set.
    pub set: u64,
    /// Bits to clear.
    pub clear: u64,
    /// The new propagation.
    pub propagation: Option<Propagation>,
}

impl Attributes {
    /// Whether there is nothing to change.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// A file system that is being configured: fsopen(2), then parameters, then [`Context::mount`].
#[derive(Debug)]
pub struct Context {
    fd: OwnedFd,
    fstype: String,
}

impl Context {
    /// Begins a mount of `fstype`.
    ///
    /// # Errors
    /// `ENODEV` where the kernel doesn't know the type.
    pub fn open(fstype: &str) -> Result<Self> {
        let name = c_string(fstype.as_bytes(), "fsopen")?;
        // SAFETY: `name` is a valid C string that outlives the call.
        let ret = unsafe { libc::syscall(libc::SYS_fsopen, name.as_ptr(), FSOPEN_CLOEXEC) };
        let fd = check_fd(ret, || format!("fsopen({fstype:?})"))?;
        Ok(Self { fd, fstype: fstype.to_owned() })
    }

    /// Sets the parameter `key` to `value`, such as `size` to `64k`.
    ///
    /// # Errors
    /// `EINVAL` where the file system doesn't know the parameter or refuses the value; the kernel's own
    /// explanation, where it gives one, is part of the error.
    pub fn set(&self, key: &str, value: &[u8]) -> Result<()> {
        let value_c = c_string(value, "fsconfig")?;
        self.config(FSCONFIG_SET_STRING, Some(key), value_c.as_ptr().cast(), 0)
            .map_err(|e| self.explain(e, &format!("{key:?}, {:?}", String::from_utf8_lossy(value))))
    }

    /// Sets the flag `key`, such as `ro`.
    ///
    /// # Errors
    /// As [`Context::set`].
    pub fn set_flag(&self, key: &str) -> Result<()> {
        self.config(FSCONFIG_SET_FLAG, Some(key), std::ptr::null(), 0)
            .map_err(|e| self.explain(e, &format!("{key:?}")))
    }

    /// Sets the parameter `key` to a directory or file by descriptor (overlayfs since Linux 6.13).
    ///
    /// # Errors
    /// As [`Context::set`].
    pub fn set_fd(&self, key: &str, fd: BorrowedFd<'_>) -> Result<()> {
        self.config(FSCONFIG_SET_FD, Some(key), std::ptr::null(), fd.as_raw_fd())
            .map_err(|e| self.explain(e, &format!("{key:?}, {}", show(&fd))))
    }

    /// Creates the file system and returns it as a detached mount with the attributes `attrs` of [`attr`].
    ///
    /// # Errors
    /// Whatever the file system says; its own explanation is part of the error.
    pub fn mount(self, attrs: u64) -> Result<OwnedFd> {
        self.config(FSCONFIG_CMD_CREATE, None, std::ptr::null(), 0).map_err(|e| self.explain(e, "create"))?;
        // SAFETY: the descriptor is a live file system context; the call takes no pointers.
        let ret = unsafe { libc::syscall(libc::SYS_fsmount, self.fd.as_raw_fd(), FSMOUNT_CLOEXEC, attrs) };
        check_fd(ret, || format!("fsmount({:?}, {attrs:#x})", self.fstype))
    }

    fn config(
        &self,
        command: u32,
        key: Option<&str>,
        value: *const libc::c_void,
        aux: i32,
    ) -> std::result::Result<(), Errno> {
        let key = key.map(|k| CString::new(k).map_err(|_| Errno::EINVAL)).transpose()?;
        let key_ptr = key.as_ref().map_or(std::ptr::null(), |k| k.as_ptr());
        // SAFETY: key and value are null or C strings that outlive the call, as `command` asks.
        let ret =
            unsafe { libc::syscall(libc::SYS_fsconfig, self.fd.as_raw_fd(), command, key_ptr, value, aux) };
        Errno::result(ret).map(drop)
    }

    /// Adds what the file system has written to the context's log, which says more than an errno.
    fn explain(&self, errno: Errno, args: &str) -> Error {
        let mut log = [0_u8; 512];
        let said = nix::unistd::read(&self.fd, &mut log).unwrap_or(0);
        let said = String::from_utf8_lossy(&log[..said]);
        let said = said.trim().trim_start_matches(['e', 'w', 'i']).trim_start();
        let said = if said.is_empty() { String::new() } else { format!(" [{said}]") };
        Error::new(format!("fsconfig({:?}, {args}){said}", self.fstype), errno)
    }
}

/// Clones the mount at `path` below `dir` as a detached mount, with everything below it if `recursive`
/// (open_tree(2)). With an empty `path` it clones `dir` itself.
///
/// # Errors
/// `EINVAL` where a locked mount would be uncovered.
pub fn clone_tree(dir: BorrowedFd<'_>, path: &Path, recursive: bool) -> Result<OwnedFd> {
    open_tree(dir, path, if recursive { libc::AT_RECURSIVE } else { 0 })
}

/// As [`clone_tree`], but where `path` is a symbolic link the link itself is what is cloned.
///
/// # Errors
/// As [`clone_tree`].
pub fn clone_link(dir: BorrowedFd<'_>, path: &Path, recursive: bool) -> Result<OwnedFd> {
    open_tree(dir, path, libc::AT_SYMLINK_NOFOLLOW | if recursive { libc::AT_RECURSIVE } else { 0 })
}

fn open_tree(dir: BorrowedFd<'_>, path: &Path, how: i32) -> Result<OwnedFd> {
    let name = c_string(path.as_os_str().as_bytes(), "open_tree")?;
    let flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | (libc::AT_EMPTY_PATH | how) as u32;
    // SAFETY: `name` is a valid C string that outlives the call.
    let ret = unsafe { libc::syscall(libc::SYS_open_tree, dir.as_raw_fd(), name.as_ptr(), flags) };
    check_fd(ret, || format!("open_tree({}, {path:?})", show(&dir)))
}

/// Changes the attributes of the mount `fd` refers to, and of all below it if `recursive`
/// (mount_setattr(2), Linux 5.12).
///
/// # Errors
/// `EPERM` where a locked attribute would be cleared.
pub fn set_attributes(fd: BorrowedFd<'_>, attributes: Attributes, recursive: bool) -> Result<()> {
    let raw = libc::mount_attr {
        attr_set: attributes.set,
        attr_clr: attributes.clear,
        propagation: attributes.propagation.map_or(0, Propagation::flag),
        userns_fd: 0,
    };
    set_raw(fd, &raw, recursive)
}

/// Maps the owners of a detached mount by the user namespace `userns` (mount_setattr(2) with
/// `MOUNT_ATTR_IDMAP`, Linux 5.12).
///
/// # Errors
/// `EINVAL` where the file system doesn't support it.
pub fn set_idmap(fd: BorrowedFd<'_>, userns: BorrowedFd<'_>, recursive: bool) -> Result<()> {
    let raw = libc::mount_attr {
        attr_set: attr::IDMAP,
        attr_clr: 0,
        propagation: 0,
        userns_fd: u64::from(userns.as_raw_fd().unsigned_abs()),
    };
    set_raw(fd, &raw, recursive)
}

fn set_raw(fd: BorrowedFd<'_>, raw: &libc::mount_attr, recursive: bool) -> Result<()> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is an empty C string, and `raw` is a mount_attr of the size that is passed.
    let ret = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            fd.as_raw_fd(),
            c"".as_ptr(),
            flags,
            std::ptr::from_ref(raw),
            size_of::<libc::mount_attr>(),
        )
    };
    check(ret, || format!("mount_setattr({}, set {:#x}, clear {:#x})", show(&fd), raw.attr_set, raw.attr_clr))
        .map(drop)
}

/// Attaches the detached mount `mount` on the file or directory `target` (move_mount(2)).
///
/// # Errors
/// `EINVAL` where one is a directory and the other is not.
pub fn attach(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Result<()> {
    const FLAGS: u32 = 0x4 | 0x40; // MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH
    // SAFETY: both paths are empty C strings.
    let ret = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            mount.as_raw_fd(),
            c"".as_ptr(),
            target.as_raw_fd(),
            c"".as_ptr(),
            FLAGS,
        )
    };
    check(ret, || format!("move_mount({}, {})", show(&mount), show(&target))).map(drop)
}

/// Makes the working directory the root mount, with the old root mounted over it (pivot_root(2) with "." twice).
///
/// # Errors
/// `EINVAL` where the working directory is no mount, or the old root is the initial ramfs.
pub fn pivot_root_here() -> Result<()> {
    // SAFETY: both arguments are C strings.
    let ret = unsafe { libc::syscall(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr()) };
    check(ret, || "pivot_root(\".\", \".\")".to_owned()).map(drop)
}

/// Moves the mount `mount` over the root directory (move_mount(2); what pivot_root(2) can't do on the
/// initial ramfs).
///
/// # Errors
/// As [`attach`].
pub fn move_over_root(mount: BorrowedFd<'_>) -> Result<()> {
    const FLAGS: u32 = 0x4; // MOVE_MOUNT_F_EMPTY_PATH
    // SAFETY: both paths are C strings.
    let ret = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            c"/".as_ptr(),
            FLAGS,
        )
    };
    check(ret, || format!("move_mount({}, \"/\")", show(&mount))).map(drop)
}

/// Detaches the mount at `path`, which is a host path or "." (umount2(2) with `MNT_DETACH`).
///
/// # Errors
/// `EINVAL` where nothing is mounted there.
pub fn detach(path: &Path) -> Result<()> {
    let name = c_string(path.as_os_str().as_bytes(), "umount2")?;
    // SAFETY: `name` is a valid C string that outlives the call.
    let ret = unsafe { libc::umount2(name.as_ptr(), libc::MNT_DETACH | libc::UMOUNT_NOFOLLOW) };
    check(ret, || format!("umount2({path:?}, MNT_DETACH)")).map(drop)
}

/// Detaches the mount whose root the descriptor `fd` is, while the working directory is `/proc/self/fd` of a procfs that
/// is to be trusted: umount2(2) takes only paths, and there the descriptor's number is one.
///
/// # Errors
/// `EINVAL` where it is no mount's root, or one that came from another user namespace.
pub fn detach_descriptor(fd: i32) -> Result<()> {
    let name = c_string(fd.to_string().as_bytes(), "umount2")?;
    // SAFETY: `name` is a valid C string that outlives the call.
    let ret = unsafe { libc::umount2(name.as_ptr(), libc::MNT_DETACH) };
    check(ret, || format!("umount2([{fd}], MNT_DETACH)")).map(drop)
}

/// `bytes` as a C string; a NUL inside is an `EINVAL` of `call`.
pub(crate) fn c_string(bytes: &[u8], call: &str) -> Result<CString> {
    CString::new(bytes)
        .map_err(|_| Error::new(format!("{call}({:?})", String::from_utf8_lossy(bytes)), Errno::EINVAL))
}

/// The empty path, for calls that act on the descriptor itself.
pub(crate) const EMPTY: &CStr = c"";

const FSOPEN_CLOEXEC: u32 = 1;
const FSMOUNT_CLOEXEC: u32 = 1;
const FSCONFIG_SET_FLAG: u32 = 0;
const FSCONFIG_SET_STRING: u32 = 1;
const FSCONFIG_SET_FD: u32 = 5;
const FSCONFIG_CMD_CREATE: u32 = 6;
const OPEN_TREE_CLONE: u32 = 1;
const OPEN_TREE_CLOEXEC: u32 = libc::O_CLOEXEC as u32;

impl AsFd for Context {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
