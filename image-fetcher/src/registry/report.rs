//! What is told of a transfer while it goes on.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex};
use std::time::Duration;

use crate::digest::Digest;
use crate::error::{Error, Kind, Result};

/// Something that happens.
#[derive(Debug, Clone)]
pub enum Event {
    /// The reference is that of a manifest with this digest.
    Resolved(Digest),
    /// A blob of `size` bytes is transferred; `have` of them are here, or there, already.
    Started {
        /// Its digest.
        digest: Digest,
        /// Its size in bytes.
        size: u64,
        /// Bytes that need no transfer.
        have: u64,
    },
    /// So many more bytes of a blob have come or gone.
    Moved(Digest, u64),
    /// A blob is whole.
    Finished(Digest),
    /// Something failed, and is tried again after `wait`.
    Retry {
        /// What failed.
        why: String,
        /// How long to wait.
        wait: Duration,
    },
}

/// Who is told.
pub trait Report: Sync {
    /// Tells of an event. Called from several threads.
    fn event(&self, event: &Event);
}

/// Tells nobody.
pub struct Silent;

impl Report for Silent {
    fn event(&self, _: &Event) {}
}

/// Ends what goes on in other threads.
#[derive(Default)]
pub(crate) struct Stop {
    is_set: AtomicBool,
    lock: Mutex<()>,
    changed: Condvar,
}

impl Stop {
    pub(crate) fn set(&self) {
        let _lock = self.lock.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        self.is_set.store(true, Ordering::Relaxed);
        self.changed.notify_all();
    }

    pub(crate) fn is_set(&self) -> bool {
        self.is_set.load(Ordering::Relaxed)
    }
}

/// Whom to tell, and when to end.
#[derive(Clone, Copy)]
pub(crate) struct Watch<'a> {
    pub report: &'a dyn Report,
    pub stop: &'a Stop,
}

impl Watch<'_> {
    pub(crate) fn event(&self, event: &Event) {
        self.report.event(event);
    }

    /// An error where somebody else has failed meanwhile.
    pub(crate) fn check(&self) -> Result<()> {
        if self.stop.is_set() { Err(Error::new(Kind::System, STOPPED)) } else { Ok(()) }
    }

    /// Waits, but no longer than until somebody else fails.
    pub(crate) fn sleep(&self, wait: Duration) -> Result<()> {
        let lock = self.stop.lock.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        drop(self.stop.changed.wait_timeout_while(lock, wait, |()| !self.stop.is_set()));
        self.check()
    }
}

/// Why a transfer ends that another one's failure has stopped.
pub(crate) const STOPPED: &str = "it was stopped, since another part failed";
