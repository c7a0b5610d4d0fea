//! Importing: an image layout, an archive of one, or a Docker archive becomes images of the store.
//!
//! Every blob is digested while it flows into the store, without a name until all of them are known to be
//! the right ones: an import that fails or is killed leaves nothing.

mod archive;
mod docker;
mod layout;
#[cfg(test)]
mod tests;

use std::os::fd::AsFd;
use std::path::Path;

use coracle_sys::file::{self, Resolve};
use oci_spec::image::Descriptor;

use crate::error::{Context, Error, Kind, Result};
use crate::stage::Stage;
use crate::store::{Entry, Store};

/// What to import, and under which name.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The reference that the image gets, instead of the one it brings.
    pub name: Option<String>,
    /// Which of several images: a reference that the archive has for it.
    pub reference: Option<String>,
}

/// An image that was found: the reference it brings, if it does, and the descriptor of its manifest.
type Found = (Option<String>, Descriptor);

/// Imports all images of the layout or archive at `path`, or the one that `options` choose.
///
/// # Errors
/// [`Kind::Corrupt`], [`Kind::Malformed`], [`Kind::NotFound`], [`Kind::Usage`] where one name is given for
/// several images. Then nothing is imported.
pub fn import(store: &Store, path: &Path, options: &Options) -> Result<Vec<Entry>> {
    let importing = || format!("importing {path:?}");
    let lock = store.lock_adding()?;
    let mut stage = Stage::new(store);
    let fd = file::open(file::CWD, path, libc::O_RDONLY, 0, Resolve::Host).context(importing)?;
    let is_directory = file::stat(fd.as_fd()).context(importing)?.st_mode & libc::S_IFMT == libc::S_IFDIR;
    let found = if is_directory {
        layout::from_directory(&mut stage, fd.as_fd(), options)
    } else {
        archive::read(&mut stage, fd, options)
    };
    let entries = found.and_then(|found| name(found, path, options)).context(importing)?;
    let replaced = stage.commit(&entries).context(importing);
    drop(lock);
    if !matches!(replaced, Ok(false)) {
        // Of an image that got no name, too, the blobs may have theirs. What keeps them from being removed, as another image
        // that is damaged does, is no failure of this one: `gc` tells of it.
        let _ = store.collect_if_idle();
    }
    replaced.map(|_| entries)
}

/// Whether an image of this reference is wanted.
fn is_wanted(options: &Options, reference: Option<&str>) -> bool {
    options.reference.is_none() || options.reference.as_deref() == reference
}

/// Gives each image the name it will have in the store.
fn name(found: Vec<Found>, path: &Path, options: &Options) -> Result<Vec<Entry>> {
    if found.is_empty() {
        let why = match &options.reference {
            Some(reference) => format!("no image of the reference {reference:?} is in it"),
            None => "no image is in it".to_owned(),
        };
        return Err(Error::new(Kind::NotFound, why));
    }
    if options.name.is_some() && found.len() > 1 {
        let names: Vec<&str> = found.iter().filter_map(|(name, _)| name.as_deref()).collect();
        let why = format!("{} images are in it, and one name is given", found.len());
        return Err(
            Error::new(Kind::Usage, why).hint(format!("choose with --ref one of {}", names.join(", ")))
        );
    }
    let stem = path.file_stem().map_or_else(|| "image".to_owned(), |s| s.to_string_lossy().replace('@', "-"));
    let is_single = found.len() == 1;
    let entries = found.into_iter().map(|(reference, descriptor)| {
        let unnamed = || match is_single {
            true => stem.clone(),
            false => format!("{stem}@{}", descriptor.digest()),
        };
        if let Some(given) = &options.name {
            check_pin(given, &[descriptor.digest().as_ref()])?;
        }
        let reference = options.name.clone().or(reference).unwrap_or_else(unnamed);
        check_reference(&reference).map(|()| Entry { reference, descriptor })
    });
    entries.collect()
}

/// Refuses a name that says the digest of something else: by its digest nothing else is taken for an image.
pub(crate) fn check_pin(name: &str, digests: &[&str]) -> Result<()> {
    match name.rsplit_once('@') {
        Some((_, pin)) if !digests.contains(&pin) => {
            let why = format!("the name {name:?} is not that of {}", digests.join(" or "));
            Err(Error::new(Kind::Usage, why).hint("what follows @ in a name is the digest of its image"))
        }
        _ => Ok(()),
    }
}

/// Refuses a name that a terminal or a table could not show.
pub(crate) fn check_reference(reference: &str) -> Result<()> {
    let is_plain = |c: char| !c.is_control() && !c.is_whitespace();
    if reference.is_empty() || reference.len() > 4096 || !reference.chars().all(is_plain) {
        let why = format!("{reference:?} is no reference: it needs visible characters");
        return Err(Error::new(Kind::Usage, why));
    }
    Ok(())
}
