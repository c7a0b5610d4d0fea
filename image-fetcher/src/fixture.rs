//! Images for the tests beside the code: layers made entry by entry, and the layout that holds them.

#![expect(clippy::disallowed_methods, reason = "tests make files on the host")]

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use coracle_sys::{file, mount};
use tar::{EntryType, Header};

use crate::digest::Digest;
use crate::error::Result;
use crate::import::{Options, import};
use crate::snapshot::{self, Snapshotter};
use crate::store::Store;
use crate::unpack::{Options as Unpacking, unpack};

/// Runs a test on a store whose layers become directories, and where the kernel and the directory for temporary files can
/// do it, on one whose layers become EROFS images: what holds of layers holds whatever they become.
pub(crate) fn both(test: impl Fn(fn() -> Scratch)) {
    test(Scratch::new);
    let scratch = Scratch::with_erofs();
    scratch.unpack(&[Tar::default().dir("d/").end()]).unwrap();
    match snapshot::view(&scratch.store, &[scratch.unpacked(0)], "..") {
        Ok(_) => test(Scratch::with_erofs),
        Err(error) => eprintln!("skipped for EROFS images: {error}"),
    }
}

/// A tar archive that is made entry by entry, however wrong.
#[derive(Default)]
pub(crate) struct Tar(pub Vec<u8>);

impl Tar {
    pub(crate) fn dir(self, name: &str) -> Self {
        self.entry(EntryType::Directory, name, "", b"")
    }

    pub(crate) fn file(self, name: &str, bytes: &[u8]) -> Self {
        self.entry(EntryType::Regular, name, "", bytes)
    }

    pub(crate) fn link(self, name: &str, target: &str) -> Self {
        self.entry(EntryType::Symlink, name, target, b"")
    }

    pub(crate) fn hard(self, name: &str, target: &str) -> Self {
        self.entry(EntryType::Link, name, target, b"")
    }

    pub(crate) fn entry(self, kind: EntryType, name: &str, link: &str, bytes: &[u8]) -> Self {
        self.raw(bytes, |header| {
            header.set_entry_type(kind);
            header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
            header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        })
    }

    /// A header with the PAX records `records`, for the entry that comes next.
    pub(crate) fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut bytes = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let length = (1..).find(|n: &usize| n.to_string().len() + rest == *n).unwrap();
            bytes.extend([format!("{length} {key}=").as_bytes(), value, b"\n"].concat());
        }
        self.entry(EntryType::XHeader, "pax", "", &bytes)
    }

    /// An entry whose header `change` completes.
    pub(crate) fn raw(mut self, bytes: &[u8], change: impl FnOnce(&mut Header)) -> Self {
        let mut header = Header::new_ustar();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        change(&mut header);
        header.set_cksum();
        self.0.extend(header.as_bytes());
        self.0.extend(bytes);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    /// The archive with its end.
    pub(crate) fn end(&self) -> Vec<u8> {
        [&self.0[..], &[0; 1024]].concat()
    }
}

/// A store in a temporary directory, with a canary beside it that nothing may touch.
pub(crate) struct Scratch {
    pub dir: tempfile::TempDir,
    pub store: Store,
    pub unpacking: Unpacking,
}

impl Scratch {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("canary"), "sings").unwrap();
        let store = Store::open(dir.path().join("store")).unwrap();
        Self { dir, store, unpacking: Unpacking::default() }
    }

    /// The same, whose layers become EROFS images.
    pub(crate) fn with_erofs() -> Self {
        let mut scratch = Self::new();
        scratch.unpacking.snapshotter = Snapshotter::Erofs;
        scratch
    }

    /// Imports an image of these layers, uncompressed, under the name `image`.
    pub(crate) fn import(&self, layers: &[Vec<u8>]) -> Result<()> {
        let blobs: Vec<_> = layers.iter().map(|l| (l.clone(), Digest::of(l))).collect();
        self.import_blobs(&blobs)
    }

    /// The same of blobs and their diff IDs, whatever those are.
    pub(crate) fn import_blobs(&self, blobs: &[(Vec<u8>, Digest)]) -> Result<()> {
        let layout = self.dir.path().join("layout");
        write_layout(&layout, blobs);
        import(&self.store, &layout, &Options::default()).map(drop)
    }

    /// Imports and unpacks.
    pub(crate) fn unpack(&self, layers: &[Vec<u8>]) -> Result<usize> {
        self.import(layers)?;
        unpack(&self.store, &self.store.image("image")?, &self.unpacking)
    }

    /// Unpacks one layer and returns where it can be looked at.
    pub(crate) fn layer(&self, tar: &Tar) -> Result<PathBuf> {
        self.unpack(&[tar.end()])?;
        Ok(self.layer_path(0))
    }

    /// Unpacks what is imported.
    pub(crate) fn unpack_again(&self) -> Result<usize> {
        unpack(&self.store, &self.store.image("image")?, &self.unpacking)
    }

    /// The name of what layer `n` is unpacked into.
    pub(crate) fn unpacked(&self, n: usize) -> String {
        self.store.unpacked(&self.store.image("image").unwrap().layers[n]).unwrap()
    }

    /// Where layer `n` can be looked at: its directory, or its image's mount.
    pub(crate) fn layer_path(&self, n: usize) -> PathBuf {
        let name = self.unpacked(n);
        if self.unpacking.snapshotter == Snapshotter::Overlay {
            return self.store.path().join("layers").join(name);
        }
        let path = self.store.path().join("seen").join(n.to_string());
        fs::create_dir_all(&path).unwrap();
        let mounted = snapshot::mount_image(&self.store, &name).unwrap();
        let target = file::open_dir(&path).unwrap();
        mount::attach(mounted.as_fd(), target.as_fd()).unwrap();
        path
    }

    /// How many blocks of 512 bytes all layers take.
    pub(crate) fn blocks(&self) -> u64 {
        fn of(path: &Path) -> u64 {
            let found = fs::symlink_metadata(path).unwrap();
            let inside = found.is_dir().then(|| fs::read_dir(path).unwrap());
            found.blocks() + inside.into_iter().flatten().map(|e| of(&e.unwrap().path())).sum::<u64>()
        }
        of(&self.store.path().join("layers"))
    }

    /// What a refused layer is told; nothing may be left of it, and nothing outside touched.
    pub(crate) fn refused(&self, tar: &Tar) -> String {
        let error = self.unpack(&[tar.end()]).unwrap_err();
        self.assert_clean();
        let text = error.to_string();
        text.split_once("layer sha256:").map_or(text.clone(), |(_, rest)| rest[66..].to_owned())
    }

    pub(crate) fn assert_clean(&self) {
        let left: Vec<_> = fs::read_dir(self.store.path().join("layers")).unwrap().collect();
        assert!(left.is_empty(), "left behind: {left:?}");
        self.assert_canary();
    }

    pub(crate) fn assert_canary(&self) {
        assert_eq!(fs::read_to_string(self.dir.path().join("canary")).unwrap(), "sings");
        let mut names: Vec<_> =
            fs::read_dir(self.dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        assert!(names.iter().all(|n| n == "canary" || n == "layout" || n == "store"), "{names:?}");
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        for seen in fs::read_dir(self.store.path().join("seen")).into_iter().flatten() {
            while mount::detach(&seen.as_ref().unwrap().path()).is_ok() {}
        }
    }
}

/// Writes an image layout with one image, named `image`.
pub(crate) fn write_layout(layout: &Path, blobs: &[(Vec<u8>, Digest)]) {
    let dir = layout.join("blobs/sha256");
    let _ = fs::remove_dir_all(layout);
    fs::create_dir_all(&dir).unwrap();
    let put = |bytes: &[u8]| {
        let digest = Digest::of(bytes);
        fs::write(dir.join(digest.hex()), bytes).unwrap();
        serde_json::json!({ "digest": digest, "size": bytes.len() })
    };
    let typed = |mut descriptor: serde_json::Value, kind: &str| {
        descriptor["mediaType"] = format!("application/vnd.oci.image.{kind}").into();
        descriptor
    };
    let diff_ids: Vec<String> = blobs.iter().map(|(_, id)| id.to_string()).collect();
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux", "config": { "Cmd": ["sh"] },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    let layers: Vec<_> = blobs.iter().map(|(bytes, _)| typed(put(bytes), "layer.v1.tar")).collect();
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "config": typed(put(config.to_string().as_bytes()), "config.v1+json"),
        "layers": layers,
    });
    let mut entry = typed(put(manifest.to_string().as_bytes()), "manifest.v1+json");
    entry["annotations"] = serde_json::json!({ "org.opencontainers.image.ref.name": "image" });
    let index = serde_json::json!({ "schemaVersion": 2, "manifests": [entry] });
    fs::write(layout.join("index.json"), index.to_string()).unwrap();
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
}
