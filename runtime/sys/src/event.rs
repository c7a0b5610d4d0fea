//! Descriptors that become readable when something has happened.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use crate::error::{Error, Result, named, show};

/// Waits until one of `fds` is readable, has something urgent to tell, or is at its end, at most `limit` where there is one (poll(2)). Says which are;
/// none after the limit.
///
/// # Errors
/// `ENOMEM`.
pub fn readable(fds: &[BorrowedFd<'_>], limit: Option<Duration>) -> Result<Vec<bool>> {
    let deadline = limit.and_then(|limit| Instant::now().checked_add(limit));
    let mut polled: Vec<PollFd<'_>> =
        fds.iter().map(|fd| PollFd::new(*fd, PollFlags::POLLIN | PollFlags::POLLPRI)).collect();
    poll(&mut polled, deadline)?;
    Ok(polled.iter().map(|fd| fd.any().unwrap_or(true)).collect())
}

/// How many of `polled` are ready; 0 at the deadline.
fn poll(polled: &mut [PollFd<'_>], deadline: Option<Instant>) -> Result<i32> {
    loop {
        // Rounded up: poll(2) counts milliseconds, and must not be called again and again in the last of them.
        let left =
            deadline.map(|end| end.saturating_duration_since(Instant::now()) + Duration::from_micros(999));
        let left =
            left.map_or(PollTimeout::NONE, |left| PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX));
        match nix::poll::poll(polled, left) {
            Ok(0) if deadline.is_none_or(|end| Instant::now() < end) => {}
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(Error::new("poll()", errno)),
            Ok(count) => return Ok(count),
        }
    }
}

/// Waits until `fd` takes bytes or is at its end, at most `limit` where there is one (poll(2)); false after the limit.
///
/// # Errors
/// `ENOMEM`.
pub fn writable(fd: BorrowedFd<'_>, limit: Option<Duration>) -> Result<bool> {
    let deadline = limit.and_then(|limit| Instant::now().checked_add(limit));
    let mut polled = [PollFd::new(fd, PollFlags::POLLOUT)];
    poll(&mut polled, deadline).map(|count| count > 0)
}

/// A counter that the kernel raises (eventfd(2)).
///
/// # Errors
/// `EMFILE`.
pub fn counter() -> Result<OwnedFd> {
    let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
    named(EventFd::from_flags(flags), || "eventfd()".to_owned()).map(OwnedFd::from)
}

/// A descriptor that becomes readable again and again, each time when `interval` has passed (timerfd_create(2)).
///
/// # Errors
/// `EINVAL` where the interval is none, `EMFILE`.
pub fn timer(interval: Duration) -> Result<OwnedFd> {
    use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
    let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
    let timer = named(TimerFd::new(ClockId::CLOCK_MONOTONIC, flags), || "timerfd_create()".to_owned())?;
    let each = Expiration::Interval(interval.into());
    named(timer.set(each, TimerSetTimeFlags::empty()), || format!("timerfd_settime({interval:?})"))?;
    Ok(timer.into())
}

/// A descriptor that becomes readable when the file `name` in `dir` is modified (inotify(7)). The name is reached
/// through `/proc/self/fd`, since the call takes only paths.
///
/// # Errors
/// `ENOENT` where there is no such file, `ENOSPC` where the user watches too many.
pub fn modifications(dir: BorrowedFd<'_>, name: &str) -> Result<OwnedFd> {
    watch(&format!("/proc/self/fd/{}/{name}", dir.as_raw_fd()))
}

/// The same for a file that is open.
///
/// # Errors
/// As [`modifications`].
pub fn changes_of(file: BorrowedFd<'_>) -> Result<OwnedFd> {
    watch(&format!("/proc/self/fd/{}", file.as_raw_fd()))
}

fn watch(path: &str) -> Result<OwnedFd> {
    let flags = InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK;
    let watch = named(Inotify::init(flags), || "inotify_init1()".to_owned())?;
    let added = watch.add_watch(path, AddWatchFlags::IN_MODIFY);
    named(added, || format!("inotify_add_watch({path:?})"))?;
    Ok(watch.into())
}

/// Takes what made `fd` readable, so that it becomes readable again only when something new has happened.
///
/// # Errors
/// Whatever read(2) says but that there is nothing, now or any more.
pub fn take(fd: BorrowedFd<'_>) -> Result<()> {
    let mut buffer = [0_u8; 4096];
    loop {
        match nix::unistd::read(fd, &mut buffer) {
            // The last where what it told of is gone, such as a cgroup.
            Err(Errno::EAGAIN | Errno::ENODEV) | Ok(0) => return Ok(()),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(Error::new(format!("read({})", show(&fd)), errno)),
        }
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "tests lay out files on the host")]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    fn is_readable(fd: &OwnedFd) -> bool {
        readable(&[fd.as_fd()], Some(Duration::from_millis(1))).unwrap() == [true]
    }

    #[test]
    fn a_modified_file_is_told_once() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("events"), "").unwrap();
        let watch = modifications(crate::file::open_dir(dir.path()).unwrap().as_fd(), "events").unwrap();
        assert!(!is_readable(&watch));
        std::fs::write(dir.path().join("events"), "oom 1").unwrap();
        assert!(is_readable(&watch));
        take(watch.as_fd()).unwrap();
        assert!(!is_readable(&watch));
    }

    #[test]
    fn a_counter_is_told_once() {
        let counter = counter().unwrap();
        nix::unistd::write(&counter, &1_u64.to_ne_bytes()).unwrap();
        assert!(is_readable(&counter));
        take(counter.as_fd()).unwrap();
        assert!(!is_readable(&counter));
    }
}
