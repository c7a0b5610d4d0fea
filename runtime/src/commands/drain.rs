//! `drain`: ends the pods of a host for its maintenance.

use serde_json::{Value, json};

use crate::cli::{Drain, Global};
use crate::error::Result;
use crate::pod::host;

/// Takes no pods any more and ends those that there are; prints, and exits with 1 for, those that are not over in time.
///
/// # Errors
/// Where the host's pods can't be read.
pub fn drain(global: &Global, options: &Drain) -> Result<u8> {
    let within = options.within.map(|within| within.as_secs());
    let told = host::call(global, "Drain", json!({ "off": options.off, "withinSeconds": within }))?;
    let left = told["left"].as_array().cloned().unwrap_or_default();
    crate::print(&left.iter().filter_map(Value::as_str).map(|name| format!("{name}\n")).collect::<String>());
    Ok(u8::from(!left.is_empty()))
}
