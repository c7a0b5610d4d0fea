//! Archives: a tar file of an image layout, or what `docker save` writes, compressed or not.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::OwnedFd;

use super::{Found, Options, docker, layout};
use crate::digest::Digest;
use crate::error::{Context, Error, Kind, Result};
use crate::stage::{Blob, Stage};
use crate::store::check_layout;
use crate::unpack::Limits;
use crate::unpack::entry::{Entries, Entry, Type};
use crate::unpack::form::components;
use crate::unpack::stream;

/// The files of an archive that can be part of an image, by their names in it.
#[derive(Default)]
pub(crate) struct Files {
    blobs: BTreeMap<String, Blob>,
    /// Docker once wrote a layer that it had twice as a link to the first.
    links: BTreeMap<String, String>,
}

impl Files {
    /// The blob of a name.
    pub(crate) fn get(&self, name: &str) -> Option<&Blob> {
        let target = self.links.get(name).map_or(name, String::as_str);
        self.blobs.get(target)
    }
}

/// Takes the images of the archive `fd`.
pub(crate) fn read(stage: &mut Stage<'_>, fd: OwnedFd, options: &Options) -> Result<Vec<Found>> {
    let files = read_files(stage, File::from(fd))?;
    let document =
        |stage: &Stage<'_>, name: &str| files.get(name).map(|b| stage.document(&b.digest)).transpose();
    // Docker 25 and later write both kinds of index; the layout's says more.
    if let (Some(version), Some(index)) = (document(stage, "oci-layout")?, document(stage, "index.json")?) {
        check_layout(&version)?;
        return layout::take_images(stage, &index, options, None);
    }
    match document(stage, "manifest.json")? {
        Some(manifest) => docker::take_images(stage, &manifest, &files, options),
        None => {
            let why = "it is no image archive: it has neither `index.json` nor `manifest.json`";
            Err(Error::new(Kind::Malformed, why))
        }
    }
}

/// Puts all files of the archive on the stage. A blob of a layout has its digest for a name.
fn read_files(stage: &mut Stage<'_>, file: File) -> Result<Files> {
    let limits = Limits { entries: 100_000, bytes: u64::MAX, ..Limits::default() };
    let (source, mut stream) = stream::pair();
    std::thread::scope(|scope| {
        scope.spawn(move || source.run_unverified(file, limits.ratio));
        let mut files = Files::default();
        let mut entries = Entries::new(&mut stream, &limits);
        while let Some(entry) = entries.next()? {
            let naming = || format!("entry {:?}", String::from_utf8_lossy(&entry.path));
            read_file(stage, &mut files, &mut entries, &entry).context(naming)?;
        }
        // Dropped before the scope ends: the other thread must not wait for us.
        drop(stream);
        Ok(files)
    })
}

fn read_file(
    stage: &mut Stage<'_>,
    files: &mut Files,
    entries: &mut Entries<'_>,
    entry: &Entry,
) -> Result<()> {
    let Ok(name) = String::from_utf8(components(&entry.path)?.join(&b'/')) else { return Ok(()) };
    match entry.kind {
        Type::File if is_part(&name) && entry.map.is_none() => {}
        Type::Symlink | Type::HardLink if name.ends_with("/layer.tar") => {
            let parent = name.rsplit_once('/').map_or("", |(parent, _)| parent);
            let base = if entry.kind == Type::Symlink { format!("{parent}/") } else { String::new() };
            let target = [base.as_bytes(), &entry.link].concat();
            let target = components(&target)?.join(&b'/');
            files.links.insert(name, String::from_utf8_lossy(&target).into_owned());
            return Ok(());
        }
        _ => return Ok(()),
    }
    let mut writer = stage.begin()?;
    loop {
        let data = entries.data()?;
        if data.is_empty() {
            break;
        }
        writer.write(data)?;
        let n = data.len();
        entries.consume(n);
    }
    let blob = stage.keep(writer);
    if let Some(hex) = name.strip_prefix("blobs/sha256/") {
        let digest: Digest = format!("sha256:{hex}").parse()?;
        if blob.digest != digest {
            let why = format!("blob {digest} should hold these bytes, but holds those of {}", blob.digest);
            return Err(Error::new(Kind::Corrupt, why));
        }
    }
    files.blobs.insert(name, blob);
    Ok(())
}

/// Whether a file of this name can be part of an image. What a `manifest.json` names mostly comes before it: configs are
/// `HEX.json`, `config.json`, or nothing but a digest, and layers are archives.
fn is_part(name: &str) -> bool {
    const ENDINGS: [&str; 6] = [".tar", ".tar.gz", ".tgz", ".tar.zst", ".tar.zstd", ".json"];
    name == "oci-layout"
        || name.starts_with("blobs/sha256/")
        || ENDINGS.iter().any(|ending| name.ends_with(ending))
        || docker::named_digest(name).is_some()
}
