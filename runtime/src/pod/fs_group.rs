//! The group to which the volumes of a pod belong (`fsGroup`), beside their owners.

use std::os::fd::AsFd;
use std::path::Path;

use coracle_sys::file::{self, Resolve};
use oci_spec::runtime::Spec;

use super::document::{Pod, Volume, VolumeMount};
use super::plan::Member;
use crate::error::{Context, Result};

/// The permission bits of a file that nobody writes, and that whoever is in `group` is to read.
pub(super) fn readable(mode: u32, group: Option<u32>) -> u32 {
    if group.is_some() { mode | 0o440 } else { mode }
}

/// Gives the directories that isolators have provided for `member`, which is to be launched with `spec`, to the group of
/// the pod. What is in them stays as it is.
///
/// # Errors
/// `EROFS`.
pub(super) fn own(pod: &Pod, member: &Member, spec: &Spec) -> Result<()> {
    let Some(group) = pod.spec.security_context.fs_group else { return Ok(()) };
    for (index, wanted) in member.container.volume_mounts.iter().enumerate() {
        let volume = pod.spec.volumes.iter().find(|volume| volume.name == wanted.name);
        if !volume.is_some_and(|volume| is_written(volume, wanted)) {
            continue;
        }
        let mut mounts = spec.mounts().iter().flatten();
        let mount = mounts.rfind(|mount| *mount.destination() == wanted.mount_path);
        let is_bound = |typ: &Option<String>| typ.as_deref() == Some("bind");
        if let Some(source) = mount.filter(|mount| is_bound(mount.typ())).and_then(|m| m.source().as_ref()) {
            give(source, group)
                .context(|| format!("volumeMounts/{index}: giving {source:?} to fsGroup {group}"))?;
        }
    }
    Ok(())
}

/// Whether it is an isolator's to provide, and can be written to where it is mounted.
fn is_written(volume: &Volume, wanted: &VolumeMount) -> bool {
    let claim = volume.persistent_volume_claim.as_ref();
    !wanted.read_only && (volume.sandbox.is_some() || claim.is_some_and(|claim| !claim.read_only))
}

/// Never through a link, as isolators make directories: one on the way may be of a container's making.
fn give(path: &Path, group: u32) -> Result<()> {
    let host = file::open_dir("/")?;
    let below = path.strip_prefix("/").unwrap_or(path);
    let dir = file::open(host.as_fd(), below, libc::O_DIRECTORY, 0, Resolve::BeneathNoLinks)?;
    let found = file::stat(dir.as_fd())?;
    let mode = found.st_mode & 0o7777;
    if found.st_gid == group && mode & 0o2770 == 0o2770 {
        return Ok(());
    }
    file::chown(dir.as_fd(), found.st_uid, group)?;
    Ok(file::chmod(dir.as_fd(), mode | 0o2770)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_given_away_through_a_link() {
        let dir = tempfile::tempdir().unwrap();
        let top = file::open_dir(dir.path()).unwrap();
        file::mkdir_all(top.as_fd(), "real/data", 0o755).unwrap();
        file::symlink("real", top.as_fd(), "link").unwrap();
        let error = give(&dir.path().join("link/data"), 0).unwrap_err();
        assert_eq!(error.errno(), Some(coracle_sys::Errno::ELOOP));
        give(&dir.path().join("real/data"), file::stat(top.as_fd()).unwrap().st_gid).unwrap();
    }

    #[test]
    fn what_belongs_to_a_group_can_be_read_by_it() {
        assert_eq!(readable(0o400, Some(7)), 0o440);
        assert_eq!(readable(0o644, Some(7)), 0o644);
        assert_eq!(readable(0o400, None), 0o400);
    }
}
