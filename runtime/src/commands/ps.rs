//! `ps`: prints a container's processes.

use std::process::Command;

use crate::cli::{Global, Ps};
use crate::error::{Code, Error, Result};
use crate::state::State;

/// Prints the processes: as PIDs in JSON, or as the lines of ps(1) that are theirs.
///
/// # Errors
/// `NotFound`; `System` where there is no ps(1).
pub fn ps(global: &Global, options: &Ps) -> Result<u8> {
    let state = State::open_unlocked(&global.root, &options.id)?;
    let record = state.record()?;
    let place = record.as_ref().and_then(|r| r.cgroup.as_ref());
    let pids = match place {
        Some(place) => place.open()?.processes()?,
        None => record.iter().filter_map(|r| r.process).filter(|p| p.is_alive()).map(|p| p.pid).collect(),
    };
    if options.json {
        crate::print(&format!("{}\n", serde_json::json!(pids)));
        return Ok(0);
    }
    crate::print(&table(&options.args, &pids)?);
    Ok(0)
}

fn table(args: &[String], pids: &[i32]) -> Result<String> {
    let default = ["-ef".to_owned()];
    let args = if args.is_empty() { &default[..] } else { args };
    #[expect(clippy::disallowed_methods, reason = "ps(1) of the host, with the operator's own arguments")]
    let output = Command::new("ps").args(args).output();
    let output = output
        .map_err(|e| Error::new(Code::System, format!("ps can't be run: {e}")).hint("use --format json"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    // It fails, too, where it found nobody to list.
    if let Some(first) =
        said.lines().find(|line| !line.trim().is_empty()).filter(|_| !output.status.success())
    {
        return Err(Error::new(Code::Usage, format!("ps: {}", first.trim())));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let mut lines = text.lines();
    let header = lines.next().unwrap_or_default();
    let column = header
        .split_whitespace()
        .position(|title| title == "PID")
        .ok_or_else(|| Error::new(Code::Usage, "ps prints no column PID with these arguments"))?;
    let is_theirs = |line: &&str| {
        let pid = line.split_whitespace().nth(column).and_then(|pid| pid.parse().ok());
        pid.is_some_and(|pid: i32| pids.contains(&pid))
    };
    Ok(std::iter::once(header).chain(lines.filter(is_theirs)).map(|line| format!("{line}\n")).collect())
}
