//! OCI image layouts (image-spec, image-layout.md), as a directory or read from an archive.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};

use coracle_sys::Errno;
use coracle_sys::file::{self, Resolve};
use oci_spec::image::{Descriptor, ImageConfiguration, ImageIndex};

use super::{Found, Options, check_pin, is_wanted};
use crate::digest::Digest;
use crate::error::{Context, Error, Kind, Result};
use crate::image::{check_depth, check_document, is_index, layers, parse, parse_manifest};
use crate::platform::Platform;
use crate::stage::Stage;
use crate::store::{DOCUMENT_LIMIT, REF_NAME, check_layout, is_missing};

/// Takes the images of the layout in the directory `dir`.
pub(crate) fn from_directory(
    stage: &mut Stage<'_>,
    dir: BorrowedFd<'_>,
    options: &Options,
) -> Result<Vec<Found>> {
    let layout = read(dir, "oci-layout", 4096);
    if is_missing(&layout) {
        let why = "it is no OCI image layout: it has no file `oci-layout`";
        return Err(Error::new(Kind::Malformed, why));
    }
    check_layout(&layout?)?;
    let index = read(dir, "index.json", DOCUMENT_LIMIT)?;
    take_images(stage, &index, options, Some(dir))
}

/// Reads a file of the layout; nothing else is waited for.
fn read(dir: BorrowedFd<'_>, name: &str, most: u64) -> coracle_sys::Result<Vec<u8>> {
    let file = file::open(dir, name, libc::O_RDONLY | libc::O_NONBLOCK, 0, Resolve::Beneath)?;
    match file::stat(file.as_fd())?.st_mode & libc::S_IFMT {
        libc::S_IFREG => file::read_all(file, most),
        _ => Err(coracle_sys::Error::new(format!("open({name:?})"), Errno::EINVAL)),
    }
}

/// Takes the images that an `index.json` lists. Blobs that are not on the stage yet come from `dir`.
pub(crate) fn take_images(
    stage: &mut Stage<'_>,
    index: &[u8],
    options: &Options,
    dir: Option<BorrowedFd<'_>>,
) -> Result<Vec<Found>> {
    check_document(index, &oci_spec::image::MediaType::ImageIndex).context(|| "index.json")?;
    let index: ImageIndex = parse(index, "index.json")?;
    let wanted: Vec<&Descriptor> = index
        .manifests()
        .iter()
        .filter(|d| is_wanted(options, name_of(d)) || is_wanted(options, annotation(d, REF_NAME)))
        .collect();
    // Several of one name are one image for several machines.
    let here = Platform::here();
    let rivals = |d: &Descriptor| wanted.iter().filter(|o| name_of(o) == name_of(d)).count() > 1;
    let best = |d: &Descriptor| {
        wanted.iter().filter(|o| name_of(o) == name_of(d)).filter_map(|o| here.rank(o)).min()
    };
    let mut taker = Taker { stage, dir };
    let mut found = Vec::new();
    for descriptor in &wanted {
        if rivals(descriptor) && (here.rank(descriptor).is_none() || here.rank(descriptor) > best(descriptor))
        {
            continue;
        }
        let manifest = taker.image(descriptor, 0)?;
        if let Some(name) = name_of(descriptor).filter(|_| options.name.is_none()) {
            // By the digest of an index, too: the manifest is one of those that it lists.
            check_pin(name, &[descriptor.digest().as_ref(), manifest.digest().as_ref()])?;
        }
        found.push((name_of(descriptor).map(str::to_owned), manifest));
    }
    Ok(found)
}

/// The name that an index gives an image: containerd's is whole, the standard's mostly a tag.
fn name_of(descriptor: &Descriptor) -> Option<&str> {
    annotation(descriptor, "io.containerd.image.name").or_else(|| annotation(descriptor, REF_NAME))
}

fn annotation<'a>(descriptor: &'a Descriptor, key: &str) -> Option<&'a str> {
    descriptor.annotations().as_ref()?.get(key).map(String::as_str)
}

/// Takes images from where their blobs are.
struct Taker<'a, 'b> {
    stage: &'a mut Stage<'b>,
    dir: Option<BorrowedFd<'a>>,
}

impl Taker<'_, '_> {
    /// Takes an image with all its blobs, and returns the descriptor of its manifest.
    fn image(&mut self, descriptor: &Descriptor, depth: u32) -> Result<Descriptor> {
        let bytes = self.document(descriptor)?;
        if is_index(descriptor.media_type()) {
            check_document(&bytes, descriptor.media_type())?;
            let index: ImageIndex = parse(&bytes, "the index")?;
            check_depth(depth)?;
            return self.image(Platform::here().choose(&index)?, depth + 1);
        }
        let manifest = parse_manifest(&bytes, descriptor.media_type())?;
        let config = self.document(manifest.config())?;
        let config: ImageConfiguration = parse(&config, "the image config")?;
        for layer in layers(&manifest, &config)? {
            self.blob(&layer.digest, layer.size)?;
            self.stage.take(&layer.digest, layer.size)?;
        }
        for document in [manifest.config(), descriptor] {
            self.stage.take(&Digest::try_from(document.digest())?, document.size())?;
        }
        Ok(descriptor.clone())
    }

    fn document(&mut self, descriptor: &Descriptor) -> Result<Vec<u8>> {
        let digest = Digest::try_from(descriptor.digest())?;
        self.blob(&digest, descriptor.size())?;
        self.stage.document(&digest)
    }

    /// Makes sure that the blob is on the stage.
    fn blob(&mut self, digest: &Digest, size: u64) -> Result<()> {
        let Some(dir) = self.dir.filter(|_| !self.stage.has(digest)) else { return Ok(()) };
        let path = format!("blobs/sha256/{}", digest.hex());
        let opened = file::open(dir, &path, libc::O_RDONLY | libc::O_NONBLOCK, 0, Resolve::Beneath);
        if is_missing(&opened) {
            return Err(Error::new(Kind::NotFound, format!("blob {digest} is missing from it")));
        }
        let file = File::from(opened?);
        let stat = file::stat(file.as_fd())?;
        let found = stat.st_size.unsigned_abs();
        if stat.st_mode & libc::S_IFMT != libc::S_IFREG || found != size {
            let why = format!("blob {digest} should hold {size} bytes, but holds {found}");
            return Err(Error::new(Kind::Corrupt, why));
        }
        let blob = self.stage.add(std::io::Read::take(file, size))?;
        if blob.digest != *digest {
            let why = format!("blob {digest} should hold these bytes, but holds those of {}", blob.digest);
            return Err(Error::new(Kind::Corrupt, why));
        }
        Ok(())
    }
}
