//! Mapping the users and groups of a new user namespace (user_namespaces(7)).

use std::os::fd::AsFd;
use std::process::Command;

use coracle_sys::file::{self, Resolve};
use coracle_sys::identity;

use crate::error::{Code, Context, Error, Result};
use crate::stages::plan::namespaces::Namespaces;

/// Writes the ID maps of the new user namespace of the child `pid`; nothing where there is none. The child can't have
/// been awaited, so its PID is still its own.
///
/// # Errors
/// `EPERM` where an ID is not the caller's to map.
pub fn map(pid: i32, namespaces: &Namespaces) -> Result<()> {
    if !namespaces.new_user() {
        return Ok(());
    }
    let dir = file::open_dir(format!("/proc/{pid}"))?;
    let write = |name: &str, text: &str| {
        let written = file::write_to(dir.as_fd(), name, text.as_bytes(), Resolve::Beneath);
        written.map_err(|e| Error::from(e).hint("the caller must have these IDs itself, each mapped once"))
    };
    let (uid, gid) = (identity::caller(), identity::effective_group());
    if uid == 0 || is_own(&namespaces.gid_map, gid) {
        if uid != 0 {
            // Else a group that takes rights away could be left (CVE-2014-8989).
            write("setgroups", "deny")?;
        }
        write("gid_map", &namespaces.gid_map).context(|| "/linux/gidMappings")?;
    } else {
        map_by_helper("newgidmap", pid, &namespaces.gid_map).context(|| "/linux/gidMappings")?;
    }
    if uid == 0 || is_own(&namespaces.uid_map, uid) {
        write("uid_map", &namespaces.uid_map).context(|| "/linux/uidMappings")
    } else {
        map_by_helper("newuidmap", pid, &namespaces.uid_map).context(|| "/linux/uidMappings")
    }
}

/// Whether `map` maps the caller's own ID alone: the one map that it may write itself.
fn is_own(map: &str, id: u32) -> bool {
    let fields: Vec<&str> = map.split_whitespace().collect();
    matches!(fields.as_slice(), [_, host, "1"] if *host == id.to_string())
}

/// Maps by newuidmap(1) or newgidmap(1), which know from `/etc/subuid` and `/etc/subgid` what the caller may map.
fn map_by_helper(helper: &str, pid: i32, map: &str) -> Result<()> {
    #[expect(
        clippy::disallowed_methods,
        reason = "the helper of the host, which has the privilege that this lacks"
    )]
    let mut command = Command::new(helper);
    let output = command.arg(pid.to_string()).args(map.split_whitespace()).output();
    let output = output.map_err(|e| {
        Error::new(Code::System, format!("{helper} can't be run: {e}"))
            .hint("install the package uidmap, or map only your own ID")
    })?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.trim().lines().last().unwrap_or_default().to_owned();
    let file = if helper == "newuidmap" { "/etc/subuid" } else { "/etc/subgid" };
    Err(Error::new(Code::System, format!("{helper} refused: {said}"))
        .hint(format!("{file} must allot these IDs to the caller")))
}

#[cfg(test)]
mod tests {
    use super::is_own;

    #[test]
    fn only_a_map_of_the_own_id_alone_can_be_written_without_help() {
        assert!(is_own("0 1000 1\n", 1000));
        for more in ["0 1000 2\n", "0 1001 1\n", "0 1000 1\n1 100000 1\n", ""] {
            assert!(!is_own(more, 1000), "{more:?}");
        }
    }
}
