//! A bundle in a directory of the caller's, apart from the store.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use coracle_sys::file::{self, Resolve};
use coracle_sys::users::Maps;
use coracle_sys::{Errno, archive};
use oci_spec::runtime::Spec;

use super::{Network, Options, rootless, spec, write_config};
use crate::error::{Context, Error, Kind, Result};
use crate::image::Image;
use crate::store::{Store, is_missing};
use crate::unpack::{Limits, Owners, ROOT, unpack_tree};

/// The name of the configuration.
const CONFIG: &str = "config.json";

/// Unpacks `image` into the bundle `path`, which is made where it is missing: all layers one over the other in `rootfs`, and
/// `config.json` beside it. With `maps` it is for a user without privilege: owners that they don't have are noted, and the
/// container is one of a user namespace with these maps. Nobody but its owner can enter the directory then.
///
/// # Errors
/// As [`unpack_tree`]; [`Kind::Exists`] where the directory holds a bundle already. Nothing is left then.
pub fn unpack(
    store: &Store,
    image: &Image,
    path: &Path,
    (limits, maps): (Limits, Option<&Maps>),
) -> Result<()> {
    let unpacking = || format!("unpacking into {path:?}");
    let is_new = match file::mkdir(file::CWD, path, 0o700) {
        Err(e) if e.errno() == Errno::EEXIST => false,
        other => other.context(unpacking).map(|()| true)?,
    };
    let attempt = || -> Result<()> {
        let directory = file::open_dir(path)?;
        // Its tree has set-user-ID programs and devices of who made the image: nobody else gets to them.
        file::chmod(directory.as_fd(), 0o700)?;
        for name in [ROOT, CONFIG] {
            if !is_missing(&file::stat_at(directory.as_fd(), name)) {
                let why = format!("there is a {name:?} already");
                return Err(Error::new(Kind::Exists, why).hint("name a new directory, or an empty one"));
            }
        }
        let owners = maps.map_or(Owners::All, Owners::of);
        unpack_tree(store, image, directory.as_fd(), (limits, owners))?;
        configure(directory.as_fd(), image, maps).inspect_err(|_| {
            // The first failure is the one to tell.
            let _ = archive::remove_tree(directory.as_fd(), ROOT);
        })
    };
    attempt().context(unpacking).inspect_err(|_| {
        if is_new {
            let _ = file::rmdir(file::CWD, path);
        }
    })
}

fn configure(directory: BorrowedFd<'_>, image: &Image, maps: Option<&Maps>) -> Result<()> {
    let root = file::open(directory, ROOT, libc::O_PATH | libc::O_DIRECTORY, 0, Resolve::BeneathNoLinks)?;
    let process = image.config.config().clone().unwrap_or_default();
    let has_command =
        [process.entrypoint(), process.cmd()].iter().any(|c| c.iter().flatten().next().is_some());
    // As in the configuration that `coracle spec` writes: whoever has the file will say what is to be run.
    let args = if has_command { Vec::new() } else { vec!["sh".to_owned()] };
    let made = |network: Network| -> Result<Spec> {
        spec(&image.config, root.as_fd(), &Options { network, args: args.clone(), ..Options::default() })
    };
    let spec = match maps {
        None => made(Network::None)?,
        Some(maps) => rootless(&made(Network::Host)?, maps)?,
    };
    write_config(directory, &spec)
}
