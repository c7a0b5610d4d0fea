//! What a failed system call looks like.

use std::fmt;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use nix::errno::Errno;

/// The result of a system call.
pub type Result<T> = std::result::Result<T, Error>;

/// A failed system call: the call as strace would print it, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    call: String,
    errno: Errno,
}

impl Error {
    /// The failure `errno` of `call`, which reads like `openat2([3], "etc/passwd")`.
    pub fn new(call: impl Into<String>, errno: Errno) -> Self {
        Self { call: call.into(), errno }
    }

    /// The failure of `call` that the standard library reports as `error`; `EIO` where no errno came with it.
    pub fn of_io(call: impl Into<String>, error: &std::io::Error) -> Self {
        Self::new(call, error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))
    }

    /// The call with its arguments.
    pub fn call(&self) -> &str {
        &self.call
    }

    /// The name of the system call alone.
    pub fn syscall(&self) -> &str {
        self.call.split('(').next().unwrap_or_default()
    }

    /// Why it failed.
    pub fn errno(&self) -> Errno {
        self.errno
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.call, reason(self.errno))
    }
}

impl std::error::Error for Error {}

/// The words for `errno`, in lower case: clients look for runc's words, which are Go's, which are lower case
/// (`no such file or directory`, `permission denied`).
pub fn reason(errno: Errno) -> String {
    let words = errno.desc();
    let mut chars = words.chars();
    match (chars.next(), chars.clone().next()) {
        (Some(first), Some(second)) if second.is_lowercase() || second == ' ' => {
            first.to_lowercase().chain(chars).collect()
        }
        _ => words.to_owned(),
    }
}

/// The result of a raw call that returns -1 and sets errno on failure.
pub(crate) fn check<T: PartialOrd + From<i8>>(ret: T, call: impl FnOnce() -> String) -> Result<T> {
    if ret < T::from(0) { Err(Error::new(call(), Errno::last())) } else { Ok(ret) }
}

/// The same for a call that returns a new file descriptor.
pub(crate) fn check_fd<T: TryInto<i32> + PartialOrd + From<i8>>(
    ret: T,
    call: impl FnOnce() -> String,
) -> Result<OwnedFd> {
    let ret = check(ret, call)?;
    let fd = ret.try_into().unwrap_or(-1);
    // SAFETY: the kernel has just made this descriptor for the caller, and nobody else knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The result of a nix call, with the call's text.
pub(crate) fn named<T>(result: nix::Result<T>, call: impl FnOnce() -> String) -> Result<T> {
    result.map_err(|errno| Error::new(call(), errno))
}

/// A descriptor as errors show it: `[5]`.
pub(crate) fn show(fd: &impl AsRawFd) -> String {
    match fd.as_raw_fd() {
        libc::AT_FDCWD => "AT_FDCWD".to_owned(),
        raw => format!("[{raw}]"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_read_like_strace_in_lower_case() {
        let error = Error::new("openat2([3], \"etc\")", Errno::ENOENT);
        assert_eq!(error.to_string(), "openat2([3], \"etc\"): no such file or directory");
        assert_eq!(error.syscall(), "openat2");
    }

    #[test]
    fn abbreviations_keep_their_capitals() {
        assert_eq!(reason(Errno::EIO), "I/O error");
        assert_eq!(reason(Errno::EACCES), "permission denied");
    }
}
