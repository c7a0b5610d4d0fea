//! The process that takes what a container's programs measure. It holds a socket in the container's network namespace for
//! as long as the container lives, and tells what it has until the container is removed.
//!
//! What it reads is a container's, so it keeps nothing by which it could touch the host: no capabilities, no file but its
//! sockets. What it does for the container can't be charged to it, so it takes a bounded number of datagrams a second.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use coracle_sys::file;
use coracle_sys::identity::{self, Capabilities};
use coracle_sys::landlock::{self, Ruleset, access};
use coracle_sys::{Result, descriptor, event, namespace, process, signal, socket};

use crate::series::{Limits, Series};
use crate::statsd::Told;

/// The word for: tell what you have.
pub(crate) const TELL: u8 = b't';
/// The word for: end.
pub(crate) const END: u8 = b'e';

/// How long whoever asks may take to say so, and to take the answer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(2);

/// How many datagrams are taken before a pause, and how long it is: 50,000 a second.
const BATCH: u32 = 256;
const PAUSE: Duration = Duration::from_millis(5);

/// The longest datagram of UDP.
const LONGEST: usize = 65_535;

/// What it holds.
pub(crate) struct Held<'h> {
    /// The socket that programs send to.
    pub(crate) datagrams: OwnedFd,
    /// Where it is asked.
    pub(crate) listener: OwnedFd,
    /// The container's first process.
    pub(crate) first: BorrowedFd<'h>,
}

/// Starts one for the container `id`. It is nobody's child.
pub(crate) fn start(id: &str, held: Held<'_>, limits: Limits) -> Result<()> {
    let keep = [held.datagrams.as_raw_fd(), held.listener.as_raw_fd(), held.first.as_raw_fd()];
    let between = process::spawn(0, None, || {
        let started = process::spawn(0, None, || match settle(&keep) {
            Ok(()) => collect(id, held, Series::new(limits)),
            Err(_) => 1,
        });
        i32::from(started.is_err())
    })?;
    process::wait(between.pidfd.as_fd()).map(drop)
}

/// Gives up what is not needed.
fn settle(keep: &[i32]) -> Result<()> {
    descriptor::close_all_but(keep)?;
    process::new_session()?;
    signal::unblock()?;
    namespace::change_dir(std::path::Path::new("/"))?;
    descriptor::silence()?;
    let _ = process::forget_image();
    identity::set_capabilities(&Capabilities::default())?;
    identity::no_new_privileges()?;
    // Where the kernel has none, it has no capabilities all the same.
    if let Ok(abi) = landlock::abi() {
        let signals = if abi >= 6 { landlock::SCOPE_SIGNAL } else { 0 };
        Ruleset::new(access::FIRST, 0, signals)?.restrict_self()?;
    }
    Ok(())
}

fn collect(id: &str, held: Held<'_>, mut series: Series) -> i32 {
    let Held { datagrams, listener, first } = held;
    let mut living = Some(datagrams);
    let mut buffer = vec![0; LONGEST];
    loop {
        let mut fds = vec![listener.as_fd()];
        fds.extend(living.iter().flat_map(|datagrams| [datagrams.as_fd(), first]));
        let Ok(ready) = event::readable(&fds, None) else { return 1 };
        if let Some(datagrams) = living.as_ref().filter(|_| ready[1] || ready[2]) {
            let paused = take(datagrams.as_fd(), &mut buffer, &mut series);
            if ready[2] && !paused {
                // The container is gone. Its network need not stay for what it has told.
                living = None;
            }
        }
        if ready[0] && !answer(listener.as_fd(), || Told::new(id, living.is_some(), series.families())) {
            return 0;
        }
    }
}

/// Takes what there is, up to a limit; true where there was more, after a pause.
fn take(datagrams: BorrowedFd<'_>, buffer: &mut [u8], series: &mut Series) -> bool {
    for _ in 0..BATCH {
        let Ok((length, dropped)) = socket::receive_datagram(datagrams, buffer) else { return false };
        series.dropped = dropped.map_or(series.dropped, u64::from);
        series.take(&buffer[..length]);
    }
    std::thread::sleep(PAUSE);
    true
}

/// Does what the next caller asks; false where that is to end.
fn answer(listener: BorrowedFd<'_>, told: impl FnOnce() -> Told) -> bool {
    let Ok(caller) = socket::accept(listener) else { return true };
    let mut word = [0];
    let is_there = event::readable(&[caller.as_fd()], Some(PATIENCE)).is_ok_and(|ready| ready == [true]);
    if !is_there || file::read_some(caller.as_fd(), &mut word).ok() != Some(1) {
        return true;
    }
    if word == [END] {
        return false;
    }
    let text = serde_json::to_vec(&told()).unwrap_or_default();
    let mut left = &text[..];
    while !left.is_empty() && matches!(event::writable(caller.as_fd(), Some(PATIENCE)), Ok(true)) {
        match socket::send_some(caller.as_fd(), left, &[]) {
            Ok(sent) => left = &left[sent..],
            Err(_) => break,
        }
    }
    true
}
