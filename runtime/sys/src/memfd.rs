//! Files in memory, without a name anywhere (memfd_create(2), Linux 3.17).

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::{Whence, lseek};

use crate::error::{Result, check, named, show};
use crate::file;

/// A copy of the file `source` in memory that nobody can change any more (memfd_create(2) with seals,
/// Linux 3.17).
///
/// # Errors
/// `ENOMEM`.
pub fn sealed_copy(source: BorrowedFd<'_>, name: &str) -> Result<OwnedFd> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let copy = named(memfd_create(name, flags), || format!("memfd_create({name:?})"))?;
    let mut left = usize::try_from(file::stat(source)?.st_size).unwrap_or(0);
    while left > 0 {
        let sent = nix::sys::sendfile::sendfile(&copy, source, None, left);
        match named(sent, || format!("sendfile({}, {})", show(&copy), show(&source)))? {
            0 => break,
            n => left -= n.min(left),
        }
    }
    let seals = libc::F_SEAL_SEAL | libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_WRITE;
    // SAFETY: the call takes no pointers.
    let ret = unsafe { libc::fcntl(copy.as_raw_fd(), libc::F_ADD_SEALS, seals) };
    check(ret, || format!("fcntl({}, F_ADD_SEALS)", show(&copy)))?;
    Ok(copy)
}

/// A file in memory that holds `content`, to be read from its start.
///
/// # Errors
/// `ENOMEM`.
pub fn with_content(name: &str, content: &[u8]) -> Result<OwnedFd> {
    let memory = named(memfd_create(name, MFdFlags::MFD_CLOEXEC), || format!("memfd_create({name:?})"))?;
    file::write_all(memory.as_fd(), content)?;
    named(lseek(&memory, 0, Whence::SeekSet), || format!("lseek({})", show(&memory)))?;
    Ok(memory)
}

/// Whether nobody can change the memory file `fd` any more; false for a file that is none.
pub fn is_sealed(fd: BorrowedFd<'_>) -> bool {
    // SAFETY: the call takes no pointers.
    let seals = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GET_SEALS) };
    seals >= 0 && seals & libc::F_SEAL_WRITE != 0 && seals & libc::F_SEAL_SEAL != 0
}
