//! The volumes that an image names for itself.
//!
//! Of what the image says only the path counts: no option of a mount is its to choose, and what lies below `/proc`, `/sys` and
//! `/dev` is the runtime's, never covered nor changed by who made the image (CVE-2019-16884).

use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Component, Path};

use coracle_sys::file::{self, Resolve};
use oci_spec::image::Config;

use crate::error::{Context, Result};
use crate::snapshot::Owners;
use crate::store::is_missing;

/// Those of the image's volumes that are directories of its root: on what is none, nothing can be mounted.
pub(super) fn there(root: BorrowedFd<'_>, image: &Config) -> Vec<String> {
    let flags = libc::O_PATH | libc::O_DIRECTORY;
    let mut paths = paths(image);
    paths.retain(|path| file::open(root, path, flags, 0, Resolve::InRoot).is_ok());
    paths
}

/// Where the image's volumes are: absolute paths, sorted. What is none, or the runtime's own, is passed over, as it names no
/// directory that the image could mean.
fn paths(image: &Config) -> Vec<String> {
    let mut paths = image.volumes().clone().unwrap_or_default();
    paths.retain(|path| is_own(path));
    paths.sort();
    paths
}

fn is_own(path: &str) -> bool {
    let parts: Vec<Component<'_>> = Path::new(path).components().collect();
    let is_plain = |part: &Component<'_>| matches!(part, Component::Normal(_));
    let [Component::RootDir, inside @ ..] = &parts[..] else { return false };
    let runtimes = |part: &Component<'_>| ["proc", "sys", "dev"].iter().any(|own| part.as_os_str() == *own);
    !inside.is_empty() && inside.iter().all(is_plain) && !runtimes(&inside[0])
}

/// Makes the directories of those volumes that no layer has, given to who is root for these owners.
///
/// # Errors
/// Where a directory can't be made.
pub(super) fn make_missing(root: BorrowedFd<'_>, image: &Config, owners: Option<Owners<'_>>) -> Result<()> {
    for path in paths(image) {
        let making = || format!("making the image's volume {path:?}");
        if is_missing(&file::open(root, &path, libc::O_PATH, 0, Resolve::InRoot)) {
            let made = file::mkdir_all(root, &path, 0o755).context(making)?;
            if let Some(owners) = owners {
                file::chown(made.as_fd(), owners.first, owners.first).context(making)?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(volumes: &[&str]) -> Config {
        let volumes = volumes.iter().map(|path| ((*path).to_owned(), serde_json::json!({})));
        serde_json::from_value(serde_json::json!({ "Volumes": serde_json::Map::from_iter(volumes) })).unwrap()
    }

    #[test]
    fn what_is_no_path_of_the_images_own_is_no_volume() {
        let all =
            ["/sys:x", "/data", "data", "/", "/a/../sys", "/sys/fs", "/proc", "//dev/shm", "", "/srv/b/"];
        assert_eq!(paths(&image(&all)), ["/data", "/srv/b/", "/sys:x"]);
    }

    #[test]
    fn only_what_is_missing_is_made_and_only_inside() {
        let scratch = tempfile::tempdir().unwrap();
        let root = file::open_dir(scratch.path()).unwrap();
        file::mkdir(root.as_fd(), "there", 0o700).unwrap();
        file::symlink("/../../gone", root.as_fd(), "link").unwrap();
        make_missing(root.as_fd(), &image(&["/there", "/new/deep", "/link/in"]), None).unwrap();
        let mode = |path: &str| file::stat_at(root.as_fd(), path).unwrap().st_mode & 0o7777;
        assert_eq!((mode("there"), mode("new/deep"), mode("gone/in")), (0o700, 0o755, 0o755));
    }
}
