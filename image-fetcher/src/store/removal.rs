//! What nobody needs any more, and what is damaged, is removed.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd};

use coracle_sys::{archive, file};

use super::{Entry, Store, is_full, name_of};
#[cfg(feature = "registry")]
use crate::digest::{Digest, Verified};
#[cfg(feature = "registry")]
use crate::error::Kind;
use crate::error::{Context, Result};
#[cfg(feature = "registry")]
use crate::image::Image;
use crate::lock::{self, Held};

/// What is to be done where a disk is full and the store can give nothing.
const FULL: &str = "the store has nothing left that may go before it: make room on its disk by other means";

impl Store {
    /// Removes the reference, and what no other image and no snapshot uses: blobs and unpacked layers.
    ///
    /// # Errors
    /// [`Kind::NoImage`] where there is no such image.
    pub fn remove(&self, reference: &str) -> Result<Entry> {
        // Whoever is waited for may give the name to another image.
        let lock = lock::all(self.root.as_fd())?;
        let entry = self.entry(reference)?;
        let removing = || format!("removing {:?}", entry.reference);
        self.forget(&lock, std::slice::from_ref(&entry.reference)).context(removing)?;
        self.collect_locked(&lock).context(removing)?;
        Ok(entry)
    }

    /// Takes names out of the index. A full disk has no place for the new one until something has gone.
    pub(crate) fn forget(&self, lock: &Held, names: &[String]) -> Result<()> {
        let is_gone = |name: &String| names.contains(name);
        let forget = || self.change_index(|all| all.retain(|d| !name_of(d).is_some_and(is_gone)));
        let ways: [&dyn Fn() -> Result<()>; 3] = [
            &|| sweep(self.partial()?.as_fd(), &BTreeSet::new()),
            &|| self.sweep_but(lock, is_gone),
            // An image that stays is unpacked again when it is run.
            &|| sweep(self.layers.as_fd(), &crate::snapshot::layers_in_use(self)?),
        ];
        let mut forgotten = forget();
        for make_room in ways {
            if !forgotten.as_ref().is_err_and(is_full) {
                return forgotten;
            }
            // What fails leaves less room, and the next try tells.
            let _ = make_room();
            forgotten = forget();
        }
        forgotten.map_err(|error| if is_full(&error) { error.hint(FULL) } else { error })
    }

    /// As [`Store::collect`], but leaves it to somebody else where others are adding.
    #[cfg(feature = "unpack")]
    pub(crate) fn collect_if_idle(&self) -> Result<()> {
        match lock::all_now(self.root.as_fd())? {
            Some(lock) => self.collect_locked(&lock),
            None => Ok(()),
        }
    }

    /// Removes blobs and unpacked layers that no image and no snapshot uses, and what a killed process has
    /// left unfinished. Images without a name count, too. Waits for those who are adding.
    ///
    /// # Errors
    /// Where an image can't be read: then nothing is removed, since its layers are not known.
    pub fn collect(&self) -> Result<()> {
        self.collect_locked(&lock::all(self.root.as_fd())?)
    }

    pub(crate) fn collect_locked(&self, lock: &Held) -> Result<()> {
        self.sweep_but(lock, |_| false)
    }

    /// Removes what nobody uses, and the layers of the images whose names are to go. Their documents stay: they are read as long
    /// as the index has the names.
    fn sweep_but(&self, _lock: &Held, is_gone: impl Fn(&String) -> bool) -> Result<()> {
        let (images, mut blobs) = self.contents()?;
        let mut layers = crate::snapshot::layers_in_use(self)?;
        for (entry, image) in images {
            if is_gone(&entry.reference) {
                blobs.extend(image.documents().map(|d| d.hex().to_owned()));
                continue;
            }
            blobs.extend(image.blobs().map(|d| d.hex().to_owned()));
            layers.extend(image.layers.iter().filter_map(|l| self.unpacked(l)));
        }
        sweep(self.blobs.as_fd(), &blobs)?;
        sweep(self.layers.as_fd(), &layers)
    }

    /// Refuses a blob that is not what its name says. Its size is its own affair: it is the manifest that is wrong about that.
    #[cfg(feature = "registry")]
    pub(crate) fn check(&self, digest: &Digest) -> Result<()> {
        let blob = self.blob(digest)?;
        let size = file::stat(blob.as_fd())?.st_size.unsigned_abs();
        Verified::new(blob, digest.clone(), size).finish()
    }

    /// Removes those blobs of an image that are not what their names say, and its unpacked layers that no snapshot is
    /// made of. Waits for those who are adding.
    #[cfg(feature = "registry")]
    pub(crate) fn discard_damaged(&self, entry: &Entry) -> Result<()> {
        let _lock = self.lock_all()?;
        let keep_whole = |digest: Digest| match self.check(&digest) {
            Err(error) if error.kind() == Kind::Corrupt => {
                Ok(archive::remove_tree(self.blobs.as_fd(), digest.hex())?)
            }
            Err(error) if error.kind() != Kind::NotFound => Err(error),
            _ => Ok(()),
        };
        keep_whole(Digest::try_from(entry.descriptor.digest())?)?;
        let Ok(bytes) = self.document(&entry.descriptor) else { return Ok(()) };
        let manifest = crate::image::parse_manifest(&bytes, entry.descriptor.media_type())?;
        for blob in manifest.layers().iter().chain([manifest.config()]) {
            keep_whole(Digest::try_from(blob.digest())?)?;
        }
        let Ok(image) = Image::read(self, entry.clone()) else { return Ok(()) };
        let in_use = crate::snapshot::layers_in_use(self)?;
        for name in image.layers.iter().filter_map(|layer| self.unpacked(layer)) {
            if !in_use.contains(&name) {
                archive::remove_tree(self.layers.as_fd(), &name)?;
            }
        }
        Ok(())
    }
}

/// Removes what is not in `keep`.
fn sweep(dir: BorrowedFd<'_>, keep: &BTreeSet<String>) -> Result<()> {
    for name in file::list(dir)? {
        if !name.to_str().is_some_and(|n| keep.contains(n)) {
            archive::remove_tree(dir, &name)?;
        }
    }
    Ok(())
}

#[cfg(test)]
#[cfg(feature = "unpack")]
#[expect(clippy::disallowed_methods, reason = "tests fill disks")]
mod tests {
    use std::fs;
    use std::io::Write;
    use std::path::{Path, PathBuf};
    use std::time::Duration;

    use coracle_sys::mount;

    use super::*;
    use crate::fixture::{Scratch, Tar};
    use crate::space::{Policy, collect};

    /// A file system in memory that is mounted.
    struct Disk(PathBuf);

    impl Drop for Disk {
        fn drop(&mut self) {
            mount::detach(&self.0).unwrap();
        }
    }

    /// A store with an image of these layers, on a disk of its own whose rest the file `filler` takes.
    fn full(layers: &[Vec<u8>], is_unpacked: bool, filler: &str) -> (Scratch, Disk) {
        let mut scratch = Scratch::new();
        let path = scratch.store.path().to_owned();
        let disk = mount::Context::open("tmpfs").unwrap();
        disk.set("size", b"256k").unwrap();
        let mounted = disk.mount(0).unwrap();
        mount::attach(mounted.as_fd(), file::open_dir(&path).unwrap().as_fd()).unwrap();
        let disk = Disk(path);
        scratch.store = Store::open(&disk.0).unwrap();
        scratch.import(layers).unwrap();
        if is_unpacked {
            scratch.unpack_again().unwrap();
        }
        scratch.store.partial().unwrap();
        let mut filler = fs::File::create(disk.0.join(filler)).unwrap();
        while filler.write_all(&[b'x'; 4096]).is_ok() {}
        (scratch, disk)
    }

    fn layer() -> Vec<u8> {
        Tar::default().file("f", &[b'x'; 10_000]).end()
    }

    fn names(store: &Store) -> Vec<PathBuf> {
        let named = |at: &str| fs::read_dir(store.path().join(at)).unwrap().map(|e| e.unwrap().path());
        ["blobs/sha256", "layers", "partial"].into_iter().flat_map(named).collect()
    }

    #[test]
    fn an_image_is_removed_from_a_full_disk() {
        type Remove = fn(&Store);
        let removals: [Remove; 2] = [
            |store| drop(store.remove("image").unwrap()),
            |store| drop(collect(store, &Policy { max_size: Some(0), max_age: None }).unwrap()),
        ];
        for remove in removals {
            for (is_unpacked, filler) in [(false, "partial/part"), (true, "filler"), (false, "filler")] {
                // Nothing of an image without layers can go before it does.
                let layers = if filler == "filler" { vec![layer()] } else { Vec::new() };
                let (scratch, _disk) = full(&layers, is_unpacked, filler);
                remove(&scratch.store);
                assert!(scratch.store.entries().unwrap().is_empty());
                // Parts are for whoever goes on with them, for a day.
                let is_part = |path: &PathBuf| path.ends_with(Path::new(filler));
                assert_eq!(names(&scratch.store).iter().find(|path| !is_part(path)), None);
            }
        }
    }

    #[test]
    fn what_is_removed_has_the_name_once_nobody_adds_any_more() {
        let scratch = Scratch::new();
        scratch.import(&[layer()]).unwrap();
        let adding = scratch.store.lock_adding().unwrap();
        std::thread::scope(|scope| {
            let removing = scope.spawn(|| scratch.store.remove("image").unwrap());
            std::thread::sleep(Duration::from_millis(100));
            scratch.import(&[]).unwrap();
            let new = scratch.store.entry("image").unwrap();
            drop(adding);
            assert_eq!(removing.join().unwrap().descriptor.digest(), new.descriptor.digest());
        });
    }

    #[test]
    fn on_a_full_disk_another_image_keeps_what_it_is_made_of() {
        let shared = Tar::default().file("shared", b"").end();
        let (scratch, _disk) = full(&[shared.clone(), layer()], true, "filler");
        fs::remove_file(scratch.store.path().join("filler")).unwrap();
        scratch.store.tag("image", "gone").unwrap();
        scratch.unpack(&[shared]).unwrap();
        let mut filler = fs::File::create(scratch.store.path().join("filler")).unwrap();
        while filler.write_all(&[b'x'; 4096]).is_ok() {}
        scratch.store.remove("gone").unwrap();
        let image = scratch.store.image("image").unwrap();
        assert!(scratch.store.verify(&image).is_empty());
        assert!(scratch.store.unpacked(&image.layers[0]).is_some());
        assert_eq!(fs::read_dir(scratch.store.path().join("layers")).unwrap().count(), 1);
    }

    #[test]
    fn one_of_two_names_is_removed_from_a_full_disk_where_what_is_unpacked_can_go() {
        let (scratch, _disk) = full(&[layer()], true, "filler");
        let filler = scratch.store.path().join("filler");
        let taken = fs::metadata(&filler).unwrap().len();
        fs::remove_file(&filler).unwrap();
        scratch.store.tag("image", "other").unwrap();
        fs::write(&filler, vec![b'x'; taken as usize]).unwrap();
        scratch.store.remove("other").unwrap();
        let image = scratch.store.image("image").unwrap();
        assert!(
            scratch.store.verify(&image).is_empty() && scratch.store.unpacked(&image.layers[0]).is_none()
        );
    }

    #[test]
    fn where_nothing_can_go_before_it_an_image_stays_and_that_is_told() {
        let (scratch, _disk) = full(&[], true, "filler");
        let error = scratch.store.remove("image").unwrap_err().to_string();
        for said in ["removing \"image\": ", "writing the store's index: ", "no space left", "make room on"] {
            assert!(error.contains(said), "{error}");
        }
        assert!(!scratch.store.path().join(".index.json.new").exists());
        scratch.store.image("image").unwrap();
        let error = scratch.store.tag("image", "another").unwrap_err().to_string();
        assert!(error.ends_with("`coracle-image gc` and `rm` make room"), "{error}");
    }
}
