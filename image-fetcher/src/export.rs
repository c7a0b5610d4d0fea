//! Exporting: an image of the store as one archive that is both, an OCI layout and what `docker load` reads; or into an
//! OCI layout in a directory.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use coracle_sys::file::{self, Resolve};
use coracle_sys::{Errno, archive};
use serde_json::{Value, json};
use tar::{Builder, Header};

use crate::digest::{Digest, Verified};
use crate::error::{Context, Error, Kind, Result};
use crate::image::{Image, parse};
use crate::reference::Reference;
use crate::store::{DOCUMENT_LIMIT, REF_NAME, Store, is_missing};

/// Writes the archive at `path`, where it appears when it is whole. The same image makes the same bytes. Where `path` is a
/// directory or ends with a slash, the image is added to the layout in it, which is made if it isn't there.
///
/// # Errors
/// [`Kind::Corrupt`] where a blob is not what its name says, `ENOSPC`.
pub fn export(store: &Store, image: &Image, path: &Path) -> Result<()> {
    let exporting = || format!("exporting {:?} to {path:?}", image.reference);
    let _lock = store.lock_adding()?;
    let is_directory =
        file::open(file::CWD, path, libc::O_PATH | libc::O_DIRECTORY, 0, Resolve::Host).is_ok();
    if is_directory || path.as_os_str().as_encoded_bytes().ends_with(b"/") {
        return write_layout(store, image, path).context(exporting);
    }
    check_place(path).context(exporting)?;
    let name = path.file_name().ok_or_else(|| Error::new(Kind::Usage, "it is no file")).context(exporting)?;
    let directory = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let directory =
        file::open(file::CWD, directory, libc::O_DIRECTORY, 0, Resolve::Host).context(exporting)?;
    write_archive(store, image, (directory.as_fd(), name)).context(exporting)
}

/// What is no file is not replaced by one: `/dev/stdout` is a link, as everything's.
fn check_place(path: &Path) -> Result<()> {
    let flags = libc::O_PATH | libc::O_NOFOLLOW;
    let found =
        file::open(file::CWD, path, flags, 0, Resolve::Host).and_then(|found| file::stat(found.as_fd()));
    match found.map(|stat| stat.st_mode & libc::S_IFMT) {
        Ok(libc::S_IFREG) => Ok(()),
        Ok(_) => Err(Error::new(Kind::Exists, "what is there is no file").hint("name a file, or remove it")),
        Err(e) if e.errno() == Errno::ENOENT => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// Writes the archive to a file that has no name until it is whole: two exports to one path do not meet, nobody can lay a file
/// ready for it, and one that is killed leaves none. Where the file system has no such files, it has a name that nobody can
/// foretell.
fn write_archive(store: &Store, image: &Image, (directory, name): (BorrowedFd<'_>, &OsStr)) -> Result<()> {
    let temporary = format!(".new-{:016x}", file::random()?);
    let open = |name: &str, flags| {
        file::open(directory, name, libc::O_WRONLY | flags, 0o644, Resolve::BeneathNoLinks).map(File::from)
    };
    let unnamed = open(".", libc::O_TMPFILE);
    let has_name = unnamed.as_ref().is_err_and(|e| matches!(e.errno(), Errno::EOPNOTSUPP | Errno::EISDIR));
    let file = if has_name { open(&temporary, libc::O_CREAT | libc::O_EXCL) } else { unnamed }?;
    let put = || {
        if !has_name {
            archive::link_open(file.as_fd(), directory, &temporary)?;
        }
        Ok(file::rename(directory, &temporary, directory, name)?)
    };
    write(store, image, &file).and_then(|()| put()).inspect_err(|_| {
        // The first failure is the one to tell.
        let _ = file::unlink(directory, &temporary);
    })
}

fn write(store: &Store, image: &Image, file: &File) -> Result<()> {
    let mut tar = Builder::new(std::io::BufWriter::with_capacity(1 << 20, file));
    let config = Digest::try_from(image.manifest.config().digest())?;
    add(&mut tar, "oci-layout", LAYOUT)?;
    add(&mut tar, "index.json", index(&[descriptor(store, image)?]).as_bytes())?;
    let layers: Vec<String> = image.layers.iter().map(|layer| path(&layer.digest)).collect();
    let tags = repo_tag(&image.reference).map(|tag| [tag]);
    let docker = json!([{ "Config": path(&config), "RepoTags": tags, "Layers": layers }]);
    add(&mut tar, "manifest.json", docker.to_string().as_bytes())?;
    for (digest, size) in blobs(store, image)? {
        let mut blob = Verified::new(store.blob(&digest)?, digest.clone(), size);
        let appended = tar.append(&header(&path(&digest), size), std::io::Read::take(&mut blob, size));
        blob.finish()?;
        appended.map_err(|e| failed(&e))?;
    }
    let mut buffer = tar.into_inner().map_err(|e| failed(&e))?;
    buffer.flush().map_err(|e| failed(&e))?;
    Ok(archive::sync(buffer.get_ref().as_fd())?)
}

/// The annotation that holds an image's whole name, as containerd has it.
const FULL_NAME: &str = "io.containerd.image.name";

const LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;

/// The path of a blob in a layout.
fn path(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// The descriptor of the manifest, with the image's name.
fn descriptor(store: &Store, image: &Image) -> Result<Value> {
    let entry = store.entry(&image.digest.to_string())?.descriptor;
    // containerd's name is whole, the standard's is a tag.
    let mut annotations = json!({ (FULL_NAME): name(image) });
    if let Some(tag) = tag(&image.reference) {
        annotations[REF_NAME] = tag.into();
    }
    Ok(json!({
        "mediaType": entry.media_type(), "digest": entry.digest(), "size": entry.size(),
        "annotations": annotations,
    }))
}

fn index(manifests: &[Value]) -> String {
    let kind = "application/vnd.oci.image.index.v1+json";
    json!({ "schemaVersion": 2, "mediaType": kind, "manifests": manifests }).to_string()
}

/// The blobs of an image, each once, and their sizes.
fn blobs(store: &Store, image: &Image) -> Result<Vec<(Digest, u64)>> {
    let mut blobs: Vec<(Digest, u64)> = image.layers.iter().map(|l| (l.digest.clone(), l.size)).collect();
    let config = image.manifest.config();
    let manifest = store.entry(&image.digest.to_string())?.descriptor;
    blobs.extend([
        (Digest::try_from(config.digest())?, config.size()),
        (image.digest.clone(), manifest.size()),
    ]);
    blobs.sort();
    blobs.dedup();
    Ok(blobs)
}

/// Adds the image to the layout in a directory: blobs first, the index last, in which it takes the place of another of
/// its name.
fn write_layout(store: &Store, image: &Image, path: &Path) -> Result<()> {
    let path = std::path::absolute(path).map_err(|e| failed(&e))?;
    let layout = file::mkdir_all(file::open_dir("/")?.as_fd(), &path, 0o755)?;
    let layout = file::open(layout.as_fd(), ".", libc::O_DIRECTORY, 0, Resolve::Beneath)?;
    // Whoever adds another image meanwhile would lose this one, or lose its own.
    file::lock(layout.as_fd(), true)?;
    let known = file::read(layout.as_fd(), "index.json", DOCUMENT_LIMIT, Resolve::Beneath);
    let known: Value = if is_missing(&known) { json!({}) } else { parse(&known?, "index.json")? };
    file::replace(layout.as_fd(), "oci-layout", LAYOUT, 0o644)?;
    let directory = file::mkdir_all(layout.as_fd(), "blobs/sha256", 0o755)?;
    for (digest, size) in blobs(store, image)? {
        let temporary = format!(".{}.new", digest.hex());
        let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_TRUNC | libc::O_NOFOLLOW;
        let mut new = File::from(file::open(directory.as_fd(), &temporary, flags, 0o644, Resolve::Beneath)?);
        let mut blob = Verified::new(store.blob(&digest)?, digest.clone(), size);
        let copied = std::io::copy(&mut std::io::Read::take(&mut blob, size), &mut new);
        let written = blob.finish().and_then(|()| copied.map_err(|e| failed(&e)));
        if let Err(error) = written {
            // The first failure is the one to tell.
            let _ = file::unlink(directory.as_fd(), &temporary);
            return Err(error);
        }
        archive::sync(new.as_fd())?;
        file::rename(directory.as_fd(), &temporary, directory.as_fd(), digest.hex())?;
    }
    let new = descriptor(store, image)?;
    let is_other = |known: &&Value| {
        // The standard's name is a tag, which many images have.
        let key = if known["annotations"][FULL_NAME].is_string() { FULL_NAME } else { REF_NAME };
        known["annotations"][key].is_null() || known["annotations"][key] != new["annotations"][key]
    };
    let mut manifests: Vec<Value> =
        known["manifests"].as_array().into_iter().flatten().filter(is_other).cloned().collect();
    manifests.push(new.clone());
    Ok(file::replace_synced(layout.as_fd(), "index.json", index(&manifests).as_bytes(), 0o644)?)
}

/// The name of the image; where that is a digest, the one that it has by itself, not that of an index which listed it.
fn name(image: &Image) -> String {
    let pinned = image.reference.rsplit_once('@').map(|(name, _)| format!("{name}@{}", image.digest));
    pinned.unwrap_or_else(|| image.reference.clone())
}

/// The tag of a reference; none where it is a digest.
fn tag(reference: &str) -> Option<&str> {
    let last = reference.rsplit('/').next().unwrap_or_default();
    (!reference.contains('@')).then(|| last.rsplit_once(':').map_or("latest", |(_, tag)| tag))
}

/// The reference as `docker load` takes it, with its tag; none where it would refuse the archive for it.
fn repo_tag(reference: &str) -> Option<String> {
    let tag = tag(reference)?;
    reference.parse::<Reference>().ok()?;
    let is_whole = reference.ends_with(&format!(":{tag}"));
    Some(if is_whole { reference.to_owned() } else { format!("{reference}:{tag}") })
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
    coracle_sys::Error::of_io("write()", error).into()
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
    fn what_is_no_file_is_not_replaced() {
        let scratch = Scratch::new();
        scratch.import(&[Tar::default().file("f", b"x").end()]).unwrap();
        let image = scratch.store.image("image").unwrap();
        let (file, link) = (scratch.store.path().join("file"), scratch.store.path().join("link"));
        file::symlink(&file, file::CWD, &link).unwrap();
        let error = export(&scratch.store, &image, &link).unwrap_err().to_string();
        assert!(error.contains("what is there is no file"), "{error}");
        for _ in 0..2 {
            export(&scratch.store, &image, &file).unwrap();
        }
    }

    #[test]
    fn docker_is_told_a_name_with_a_tag_or_none() {
        let scratch = Scratch::new();
        scratch.import(&[Tar::default().file("f", b"x").end()]).unwrap();
        let image = scratch.store.image("image").unwrap();
        let pinned = format!("docker.io/library/bb@{}", image.digest);
        for (name, tags, tag) in [
            ("plain", json!(["plain:latest"]), json!("latest")),
            ("localhost:5000/a", json!(["localhost:5000/a:latest"]), json!("latest")),
            ("a/b:1", json!(["a/b:1"]), json!("1")),
            ("No:name", json!(null), json!("name")),
            (&pinned, json!(null), json!(null)),
        ] {
            scratch.store.tag("image", name).unwrap();
            let path = scratch.store.path().join("export.tar");
            export(&scratch.store, &scratch.store.image(name).unwrap(), &path).unwrap();
            let bytes = file::read(file::CWD, &path, 1 << 20, Resolve::Host).unwrap();
            let mut archive = tar::Archive::new(&bytes[..]);
            let mut documents = archive.entries().unwrap().filter_map(|entry| {
                let entry = entry.unwrap();
                let name = entry.path().unwrap().to_string_lossy().into_owned();
                name.ends_with(".json").then(|| (name, serde_json::from_reader(entry).unwrap()))
            });
            let (index, manifest): ((_, Value), (_, Value)) =
                (documents.next().unwrap(), documents.next().unwrap());
            assert_eq!((index.0.as_str(), manifest.0.as_str()), ("index.json", "manifest.json"));
            assert_eq!(manifest.1[0]["RepoTags"], tags, "{name}");
            assert_eq!(index.1["manifests"][0]["annotations"][REF_NAME], tag, "{name}");
        }
    }

    #[test]
    fn what_has_no_name_in_a_layout_stays_there() {
        let scratch = Scratch::new();
        scratch.import(&[Tar::default().file("f", b"x").end()]).unwrap();
        let image = scratch.store.image("image").unwrap();
        let name = format!("a@{}", image.digest);
        scratch.store.tag("image", &name).unwrap();
        let path = scratch.dir.path().join("store/exported");
        let directory = file::mkdir_all(file::open_dir("/").unwrap().as_fd(), &path, 0o755).unwrap();
        let other = json!({ "mediaType": "text/plain", "digest": Digest::of(b""), "size": 0 });
        file::replace(directory.as_fd(), "index.json", index(std::slice::from_ref(&other)).as_bytes(), 0o644)
            .unwrap();
        for _ in 0..2 {
            export(&scratch.store, &scratch.store.image(&name).unwrap(), &path).unwrap();
        }
        let text = file::read(directory.as_fd(), "index.json", 1 << 20, Resolve::Beneath).unwrap();
        let found: Value = parse(&text, "index.json").unwrap();
        assert_eq!((found["manifests"].as_array().unwrap().len(), &found["manifests"][0]), (2, &other));
    }

    #[test]
    fn an_image_is_added_to_a_layout_and_takes_the_place_of_one_of_its_name() {
        let scratch = Scratch::new();
        let path = scratch.store.path().join("exported/");
        for (content, name) in [(b"x", "image"), (b"y", "image"), (b"z", "other:1"), (b"w", "another:1")] {
            scratch.import(&[Tar::default().file("f", content).end()]).unwrap();
            scratch.store.tag("image", name).unwrap();
            export(&scratch.store, &scratch.store.image(name).unwrap(), &path).unwrap();
        }
        let other = Scratch::new();
        let entries = import(&other.store, &path, &Options::default()).unwrap();
        assert_eq!(
            entries.iter().map(|e| e.reference.as_str()).collect::<Vec<_>>(),
            ["image", "other:1", "another:1"]
        );
        let held = |store: &Store, name: &str| store.image(name).unwrap().digest;
        assert_eq!(held(&other.store, "other:1"), held(&scratch.store, "other:1"));
        assert_ne!(held(&other.store, "image"), held(&other.store, "other:1"));
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

    #[test]
    fn a_file_that_was_laid_ready_beside_the_archive_is_not_written_to() {
        let scratch = Scratch::new();
        scratch.import(&[Tar::default().file("f", b"x").end()]).unwrap();
        let image = scratch.store.image("image").unwrap();
        let path = scratch.dir.path().join("store/export.tar");
        let flags = libc::O_WRONLY | libc::O_CREAT;
        file::open(scratch.store.root(), ".export.tar.new", flags, 0o666, Resolve::Beneath).unwrap();
        let before = file::list(scratch.store.root()).unwrap();
        export(&scratch.store, &image, &path).unwrap();
        let laid = file::read(scratch.store.root(), ".export.tar.new", 1 << 20, Resolve::Beneath).unwrap();
        assert!(laid.is_empty());
        let after = file::list(scratch.store.root()).unwrap();
        assert_eq!(after.len(), before.len() + 1, "{after:?}");
    }
}
