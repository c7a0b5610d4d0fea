//! `drain`: ends the pods of a host for its maintenance.

use crate::cli::{Drain, Global};
use crate::error::Result;
use crate::pod::host;

/// Takes no pods any more and ends those that there are; prints, and exits with 1 for, those that are not over in time.
///
/// # Errors
/// Where the host's pods can't be read.
pub fn drain(global: &Global, options: &Drain) -> Result<u8> {
    if options.off {
        return host::reopen(&global.root).map(|()| 0);
    }
    let left = host::drain(global, options.within.unwrap_or(host::DRAINED_WITHIN))?;
    crate::print(&left.iter().map(|name| format!("{name}\n")).collect::<String>());
    Ok(u8::from(!left.is_empty()))
}
