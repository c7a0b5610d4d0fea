//! A job: a fork of the supervisor that does one thing which can take long or go wrong, says what came of it, and ends.

use std::cell::Cell;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use coracle_isolator_host::Registry;
use coracle_sys::process::{self, Child};
use coracle_sys::{descriptor, socket};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Code, Context, Error, Result};

/// The longest report, in bytes.
const LONGEST: usize = 128 << 10;

/// A job that is being done.
#[derive(Debug)]
pub struct Job {
    child: Child,
    socket: OwnedFd,
    /// When it has taken too long; `None` where it may take any time, and once it was killed.
    deadline: Cell<Option<Instant>>,
}

/// What a job says besides its result: a descriptor on the way.
#[derive(Debug)]
pub struct Mouth {
    socket: OwnedFd,
}

impl Mouth {
    /// Sends `fd` before the report.
    ///
    /// # Errors
    /// `EPIPE` where the supervisor is gone.
    pub fn send(&self, fd: BorrowedFd<'_>) -> Result<()> {
        Ok(socket::send(self.socket.as_fd(), b"fd", &[fd])?)
    }
}

impl Job {
    /// Starts `work` in a fork, which keeps the descriptors `keep` alone, those with which it can call `isolators` if they are
    /// given, and ends with the supervisor; within a time, if one is given.
    ///
    /// # Errors
    /// `EAGAIN` where there are too many processes.
    pub fn start<T: Serialize>(
        within: impl Into<Option<Duration>>,
        keep: &[BorrowedFd<'_>],
        isolators: Option<&Registry>,
        work: impl FnOnce(&Mouth) -> Result<T>,
    ) -> Result<Self> {
        let (mine, theirs) = socket::pair()?;
        let mut keep: Vec<i32> = keep.iter().map(AsRawFd::as_raw_fd).chain([theirs.as_raw_fd()]).collect();
        keep.extend(isolators.iter().flat_map(|isolators| isolators.files()));
        let child = process::spawn(0, None, || {
            let begun = process::die_with_parent(true).and_then(|()| descriptor::close_all_but(&keep));
            isolators.inspect(|isolators| isolators.after_fork());
            let mouth = Mouth { socket: theirs };
            let done = begun.map_err(Error::from).and_then(|()| work(&mouth));
            let told = serde_json::to_vec(&done.map_err(|e| e.cut(1000))).unwrap_or_default();
            i32::from(socket::send(mouth.socket.as_fd(), &told, &[]).is_err())
        });
        let child = child.context(|| "forking the supervisor")?;
        let deadline = Cell::new(within.into().map(|within| Instant::now() + within));
        Ok(Self { child, socket: mine, deadline })
    }

    /// Becomes readable when the job has ended.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.child.pidfd.as_fd()
    }

    /// Its PID.
    pub fn pid(&self) -> i32 {
        self.child.pid
    }

    /// When it has taken too long; `None` where it may take any time, or was killed, which may take its time, too.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline.get()
    }

    /// Whether it has taken too long by `now`.
    pub fn is_late(&self, now: Instant) -> bool {
        self.deadline().is_some_and(|at| at <= now)
    }

    /// Ends it. What it has made is left to whoever undoes it.
    pub fn kill(&self) {
        self.deadline.set(None);
        self.child.kill();
    }

    /// What came of a job that has ended, and the descriptor that it sent.
    ///
    /// # Errors
    /// What it failed with, or that it was killed.
    pub fn finish<T: DeserializeOwned>(self) -> Result<(T, Option<OwnedFd>)> {
        let exit = process::wait(self.child.pidfd.as_fd())?;
        let mut fd = None;
        // Its end of the socket is closed, so nothing is waited for.
        while let Some((said, with)) = socket::receive(self.socket.as_fd(), LONGEST)? {
            if with.is_some() {
                fd = with;
                continue;
            }
            let told: std::result::Result<Result<T>, _> = serde_json::from_slice(&said);
            return told
                .map_err(|e| Error::new(Code::System, format!("its report is malformed: {e}")))?
                .map(|t| (t, fd));
        }
        let why = match exit {
            process::Exit::Signal(libc::SIGKILL) => "it was killed, or took too long".to_owned(),
            process::Exit::Signal(signal) => format!("it died of {}", process::signal_name(signal)),
            process::Exit::Code(code) => format!("it ended with {code} and no report"),
        };
        Err(Error::new(Code::System, why))
    }
}
