//! Threads that may not be had: the machine, or a limit, has its number of them.

use std::thread::{Builder, Scope, ScopedJoinHandle};

use crate::error::Result;

/// Starts `work` in a thread of `scope`.
///
/// # Errors
/// `EAGAIN` where there are too many, `ENOMEM`.
pub(crate) fn start<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    work: impl FnOnce() -> T + Send + 'scope,
) -> Result<ScopedJoinHandle<'scope, T>> {
    let started = Builder::new().spawn_scoped(scope, work);
    Ok(started.map_err(|e| coracle_sys::Error::of_io("clone() of a thread", &e))?)
}

/// Starts `work` in `count` threads of `scope`, or in as many as can be had.
///
/// # Errors
/// As [`start`], where there is not one.
pub(crate) fn start_some<'scope>(
    scope: &'scope Scope<'scope, '_>,
    count: usize,
    work: impl FnOnce() + Copy + Send + 'scope,
) -> Result<()> {
    for started in 0..count {
        match start(scope, work) {
            Err(error) if started == 0 => return Err(error),
            Err(_) => break,
            Ok(_) => {}
        }
    }
    Ok(())
}
