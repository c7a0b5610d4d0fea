//! Owner, permissions, attributes and times of a file, copied from one descriptor to another.

use std::ffi::OsStr;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;

use coracle_sys::archive::{self, Time};
use coracle_sys::file;

use crate::error::Result;

/// Marks the root directory of a layer whose archive has no entry for it: what lies below it then says what
/// the root is like.
pub(crate) const IMPLIED: &str = "trusted.coracle.implied";

/// Makes a directory hide all that is below: overlayfs's own.
pub(crate) const OPAQUE: &str = "trusted.overlay.opaque";

/// Notes of how many bytes the files of a layer are, decimal.
#[cfg(feature = "unpack")]
pub(crate) const SIZE: &str = "trusted.coracle.size";

/// Keeps the owner of a file that can't be given to it: a protocol buffer that umoci and others read, too.
#[cfg(feature = "unpack")]
pub(crate) const OWNER: &str = "user.rootlesscontainers";

/// Keeps what an empty file would be for root, who can make devices: `c` or `b`, a blank, and the numbers with a colon.
#[cfg(feature = "unpack")]
pub(crate) const DEVICE: &str = "user.coracle.device";

/// Copies all metadata of the open file `from` to the open file `to`, and returns the times, which the caller
/// sets last: writing to the file changes them.
pub(crate) fn copy(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<[Time; 2]> {
    let stat = file::stat(from)?;
    file::chown(to, stat.st_uid, stat.st_gid)?;
    file::chmod(to, stat.st_mode & 0o7777)?;
    for name in archive::xattr_names(from)? {
        let name = OsStr::from_bytes(name.as_bytes());
        if is_kept(name.as_bytes())
            && let Some(value) = archive::xattr(from, name)?
        {
            archive::set_xattr(to, name, &value)?;
        }
    }
    Ok(times(&stat))
}

/// The times of last access and modification in `stat`.
pub(crate) fn times(stat: &libc::stat) -> [Time; 2] {
    let time = |seconds, nanoseconds: i64| Time { seconds, nanoseconds: nanoseconds as u32 };
    [time(stat.st_atime, stat.st_atime_nsec), time(stat.st_mtime, stat.st_mtime_nsec)]
}

/// Whether an extended attribute belongs to a file of an image. Overlayfs would believe its own attributes, and
/// we ours, so that a layer could forge them; labels of a security module belong to the host; names of other systems
/// (`com.apple.…`) mean nothing here. They are left out, as umoci and containerd do.
pub(crate) fn is_kept(name: &[u8]) -> bool {
    let starts = |prefix: &str| name.starts_with(prefix.as_bytes());
    let kept = matches!(
        name,
        b"security.capability" | b"security.ima" | b"system.posix_acl_access" | b"system.posix_acl_default"
    );
    let overlays = starts("trusted.overlay.") || starts("user.overlay.");
    let ours = starts("trusted.coracle.") || starts("user.coracle.") || name == b"user.rootlesscontainers";
    let reserved = overlays || ours;
    kept || ((starts("user.") || starts("trusted.")) && !reserved)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_that_overlayfs_or_the_host_would_believe_are_left_out() {
        for name in [
            "trusted.overlay.opaque",
            "user.overlay.redirect",
            "user.coracle.device",
            "user.rootlesscontainers",
            "security.selinux",
            "com.apple.x",
        ] {
            assert!(!is_kept(name.as_bytes()), "{name}");
        }
        for name in ["user.a", "trusted.b", "security.capability", "system.posix_acl_default"] {
            assert!(is_kept(name.as_bytes()), "{name}");
        }
    }
}
