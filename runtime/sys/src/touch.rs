//! Touching what may never answer: a file system of the network, or one whose server hangs.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::Duration;

use nix::errno::Errno;

use crate::error::{Error, Result};
use crate::{descriptor, event, file, process, socket};

/// The longest answer, in bytes.
const LONGEST: u64 = 1 << 20;

/// How long a killed helper is waited for. One that the kernel holds goes when that lets go of it.
const KILLED_WITHIN: Duration = Duration::from_millis(100);

/// Does `work` in a process of its own, which keeps the descriptors `keep` alone, and returns its answer; kills it when it
/// takes longer than `limit`. The caller must have one thread.
///
/// # Errors
/// What `work` fails with; `ETIMEDOUT` after the limit.
pub fn within(
    limit: Duration,
    keep: &[BorrowedFd<'_>],
    work: impl FnOnce() -> Result<Vec<u8>>,
) -> Result<Vec<u8>> {
    let (mine, theirs) = socket::stream_pair()?;
    let keep: Vec<i32> = keep.iter().map(AsRawFd::as_raw_fd).chain([theirs.as_raw_fd()]).collect();
    let helper = process::spawn(0, None, || {
        let settled = process::die_with_parent(true).and_then(|()| descriptor::close_all_but(&keep));
        let told = match settled.and_then(|()| work()) {
            Ok(answer) => [b"=", &answer[..]].concat(),
            Err(e) => format!("!{} {}", e.errno() as i32, e.call()).into_bytes(),
        };
        i32::from(file::write_all(theirs.as_fd(), &told).is_err())
    })?;
    drop(theirs);
    descriptor::set_nonblocking(mine.as_fd())?;
    let told = file::read_pipe(mine.as_fd(), LONGEST, limit);
    if told.is_err() {
        let _ = process::signal(helper.pidfd.as_fd(), libc::SIGKILL);
    }
    if matches!(event::readable(&[helper.pidfd.as_fd()], Some(KILLED_WITHIN)).as_deref(), Ok([true])) {
        process::wait(helper.pidfd.as_fd())?;
    }
    let told = told?;
    match told.split_first() {
        Some((b'=', answer)) => Ok(answer.to_vec()),
        Some((b'!', failure)) => {
            let failure = String::from_utf8_lossy(failure);
            let (errno, call) = failure.split_once(' ').unwrap_or_default();
            Err(Error::new(call, Errno::from_raw(errno.parse().unwrap_or(libc::EIO))))
        }
        // It was killed by somebody else.
        _ => Err(Error::new("fork()", Errno::ECHILD)),
    }
}
