//! Exporting: an image of the store as one archive that is both, an OCI layout and what `docker load` reads.

use std::ffi::OsString;
use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::path::Path;

use coracle_sys::archive;
use coracle_sys::file::{self, Resolve};
use serde_json::json;
use tar::{Builder, Header};

use crate::digest::{Digest, Verified};
use crate::error::{Context, Error, Kind, Result};
use crate::image::Image;
use crate::store::{REF_NAME, Store};

/// Writes the archive at `path`, where it appears when it is whole. The same image makes the same bytes.
///
/// # Errors
/// [`Kind::Corrupt`] where a blob is not what its name says, `ENOSPC`.
pub fn export(store: &Store, image: &Image, path: &Path) -> Result<()> {
    let exporting = || format!("exporting {:?} to {path:?}", image.reference);
    let _lock = store.lock_adding()?;
    let name = path.file_name().ok_or_else(|| Error::new(Kind::Usage, "it is no file")).context(exporting)?;
    let mut temporary = OsString::from(".");
    temporary.push(name);
    temporary.push(".new");
    let directory = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let directory =
        file::open(file::CWD, directory, libc::O_DIRECTORY, 0, Resolve::Host).context(exporting)?;
    let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_TRUNC | libc::O_NOFOLLOW;
    let fd = file::open(directory.as_fd(), &temporary, flags, 0o644, Resolve::Beneath).context(exporting)?;
    let written = write(store, image, File::from(fd))
        .and_then(|()| Ok(file::rename(directory.as_fd(), &temporary, directory.as_fd(), name)?));
    if written.is_err() {
        // The first failure is the one to tell.
        let _ = file::unlink(directory.as_fd(), &temporary);
    }
    written.context(exporting)
}

fn write(store: &Store, image: &Image, file: File) -> Result<()> {
    let mut tar = Builder::new(std::io::BufWriter::with_capacity(1 << 20, file));
    let path = |digest: &Digest| format!("blobs/sha256/{}", digest.hex());
    let config = Digest::try_from(image.manifest.config().digest())?;
    add(&mut tar, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    let entry = store.entry(&image.digest.to_string())?.descriptor;
    let descriptor = json!({
        "mediaType": entry.media_type(), "digest": entry.digest(), "size": entry.size(),
        // containerd's name is whole, the standard's is a tag.
        "annotations": { "io.containerd.image.name": image.reference, (REF_NAME): tag(&image.reference) },
    });
    let index = json!({ "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [descriptor] });
    add(&mut tar, "index.json", index.to_string().as_bytes())?;
    let layers: Vec<String> = image.layers.iter().map(|layer| path(&layer.digest)).collect();
    let docker = json!([{ "Config": path(&config), "RepoTags": [image.reference], "Layers": layers }]);
    add(&mut tar, "manifest.json", docker.to_string().as_bytes())?;
    let mut blobs: Vec<(Digest, u64)> = image.layers.iter().map(|l| (l.digest.clone(), l.size)).collect();
    blobs.extend([(config, image.manifest.config().size()), (image.digest.clone(), entry.size())]);
    blobs.sort();
    blobs.dedup();
    for (digest, size) in blobs {
        let mut blob = Verified::new(store.blob(&digest)?, digest.clone(), size);
        let appended = tar.append(&header(&path(&digest), size), std::io::Read::take(&mut blob, size));
        blob.finish()?;
        appended.map_err(|e| failed(&e))?;
    }
    let mut buffer = tar.into_inner().map_err(|e| failed(&e))?;
    buffer.flush().map_err(|e| failed(&e))?;
    Ok(archive::sync(buffer.get_ref().as_fd())?)
}

/// The tag of a reference.
fn tag(reference: &str) -> &str {
    let last = reference.rsplit('/').next().unwrap_or_default();
    last.rsplit_once(':').map_or("latest", |(_, tag)| tag)
}

fn add(tar: &mut Builder<impl Write>, name: &str, bytes: &[u8]) -> Result<()> {
    tar.append(&header(name, bytes.len() as u64), bytes).map_err(|e| failed(&e))
}

fn header(name: &str, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.set_size(size);
    header.set_mode(0o644);
    header.set_cksum();
    header
}

fn failed(error: &std::io::Error) -> Error {
    archive::io_error("write()", error).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{Scratch, Tar};
    use crate::import::{Options, import};

    #[test]
    fn an_export_is_imported_again_as_the_same_image() {
        let scratch = Scratch::new();
        scratch
            .import(&[Tar::default().file("f", b"x").end(), Tar::default().file("g", b"y").end()])
            .unwrap();
        let image = scratch.store.image("image").unwrap();
        let path = scratch.store.path().join("export.tar");
        export(&scratch.store, &image, &path).unwrap();
        let other = Scratch::new();
        let entries = import(&other.store, &path, &Options::default()).unwrap();
        assert_eq!(entries[0].reference, "image");
        assert_eq!(other.store.image("image").unwrap().digest, image.digest);
    }

    #[test]
    fn a_damaged_blob_is_not_exported() {
        let scratch = Scratch::new();
        let layer = Tar::default().file("f", b"x").end();
        scratch.import(std::slice::from_ref(&layer)).unwrap();
        let blob = format!("blobs/sha256/{}", Digest::of(&layer).hex());
        let damaged = vec![0; layer.len()];
        file::write_to(scratch.store.root(), &blob, &damaged, Resolve::Beneath).unwrap();
        let path = scratch.dir.path().join("store/export.tar");
        let error = export(&scratch.store, &scratch.store.image("image").unwrap(), &path).unwrap_err();
        assert!(error.to_string().contains("but holds those of"), "{error}");
        let names = file::list(scratch.store.root()).unwrap();
        assert!(names.iter().all(|name| !name.to_string_lossy().contains("export")), "{names:?}");
    }
}
