//! fs-verity: files that can't change any more, whose every block is checked by a digest when it is read
//! (Documentation/filesystems/fsverity.rst of Linux; ext4, btrfs and F2FS have it).

use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;

use crate::error::{Error, Result, show};

/// `struct fsverity_enable_arg`.
#[repr(C)]
struct Enable {
    version: u32,
    hash_algorithm: u32,
    block_size: u32,
    salt_size: u32,
    salt: u64,
    signature_size: u32,
    reserved: u32,
    signature: u64,
    more: [u64; 11],
}

/// `struct fsverity_digest`, with room for SHA-256.
#[repr(C)]
struct Digest {
    algorithm: u16,
    size: u16,
    bytes: [u8; 32],
}

/// `FS_VERITY_HASH_ALG_SHA256`.
const SHA256: u16 = 1;

/// Makes a file unchangeable, and reads that meet a changed block fail. Nobody may have it open for writing. False where
/// the kernel or the file system has no such thing; a file that is so already stays so.
///
/// # Errors
/// `ETXTBSY` where somebody can write to it, `ENOSPC`.
pub fn enable(fd: BorrowedFd<'_>) -> Result<bool> {
    let how = Enable {
        version: 1,
        hash_algorithm: u32::from(SHA256),
        block_size: 4096,
        salt_size: 0,
        salt: 0,
        signature_size: 0,
        reserved: 0,
        signature: 0,
        more: [0; 11],
    };
    // SAFETY: the request takes a struct of this layout, which outlives the call and holds no pointers.
    let ret = unsafe { libc::ioctl(fd.as_raw_fd(), FS_IOC_ENABLE_VERITY as _, std::ptr::from_ref(&how)) };
    match Errno::result(ret) {
        Ok(_) | Err(Errno::EEXIST) => Ok(true),
        Err(Errno::EOPNOTSUPP | Errno::ENOTTY) => Ok(false),
        Err(errno) => Err(Error::new(format!("ioctl({}, FS_IOC_ENABLE_VERITY)", show(&fd)), errno)),
    }
}

/// The digest that a file's blocks are checked by; none where it has none.
///
/// # Errors
/// Where it has one that is not SHA-256.
pub fn digest(fd: BorrowedFd<'_>) -> Result<Option<[u8; 32]>> {
    let mut digest = Digest { algorithm: 0, size: 32, bytes: [0; 32] };
    // SAFETY: the request takes a struct of this layout, which says how long it is and outlives the call.
    let ret =
        unsafe { libc::ioctl(fd.as_raw_fd(), FS_IOC_MEASURE_VERITY as _, std::ptr::from_mut(&mut digest)) };
    match Errno::result(ret) {
        Ok(_) if digest.algorithm == SHA256 => Ok(Some(digest.bytes)),
        Err(Errno::ENODATA | Errno::EOPNOTSUPP | Errno::ENOTTY) => Ok(None),
        other => {
            let errno = other.err().unwrap_or(Errno::EOPNOTSUPP);
            Err(Error::new(format!("ioctl({}, FS_IOC_MEASURE_VERITY)", show(&fd)), errno))
        }
    }
}

/// `_IOW('f', 133, struct fsverity_enable_arg)`.
const FS_IOC_ENABLE_VERITY: u32 = 0x4080_6685;
/// `_IOWR('f', 134, struct fsverity_digest)`.
const FS_IOC_MEASURE_VERITY: u32 = 0xc004_6686;

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_file_has_a_digest_if_it_was_made_unchangeable_and_only_then() {
        let path = std::env::temp_dir().join(format!("coracle-verity-{}", std::process::id()));
        #[expect(clippy::disallowed_methods, reason = "a test makes a file on the host")]
        std::fs::write(&path, "abc").unwrap();
        let fd = crate::file::open(crate::file::CWD, &path, libc::O_RDONLY, 0, crate::file::Resolve::Host)
            .unwrap();
        assert_eq!(digest(fd.as_fd()).unwrap(), None);
        let enabled = enable(fd.as_fd()).unwrap();
        assert_eq!(digest(fd.as_fd()).unwrap().is_some(), enabled);
        #[expect(clippy::disallowed_methods, reason = "a test removes its file")]
        std::fs::remove_file(&path).unwrap();
    }
}
