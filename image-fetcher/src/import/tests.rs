//! What can be imported, and what is refused.

#![expect(clippy::disallowed_methods, reason = "tests make files on the host")]

use std::fs;
use std::path::{Path, PathBuf};

use super::{Options, import};
use crate::digest::Digest;
use crate::error::{Error, Kind};
use crate::fixture::{Scratch, Tar, write_layout};
use crate::unpack::{Options as Unpacking, unpack};

/// What is done to a blob.
type Damage<'a> = &'a dyn Fn(&Path);

fn layer(name: &str) -> Vec<u8> {
    Tar::default().file(name, b"x").end()
}

fn config(diff_ids: &[Digest]) -> Vec<u8> {
    let rootfs = serde_json::json!({ "type": "layers", "diff_ids": diff_ids });
    let config = serde_json::json!({ "architecture": "amd64", "os": "linux", "rootfs": rootfs });
    config.to_string().into_bytes()
}

fn write(scratch: &Scratch, name: &str, bytes: &[u8]) -> PathBuf {
    let path = scratch.store.path().join(name);
    fs::write(&path, bytes).unwrap();
    path
}

fn take(scratch: &Scratch, bytes: &[u8], options: &Options) -> Result<Vec<String>, Error> {
    let path = write(scratch, "archive.tar", bytes);
    Ok(import(&scratch.store, &path, options)?.into_iter().map(|e| e.reference).collect())
}

/// What `docker save` wrote before version 25.
fn old_docker(tags: &str, change: impl Fn(Vec<u8>) -> Vec<u8>) -> Vec<u8> {
    let (a, b) = (layer("a"), layer("b"));
    let config = config(&[Digest::of(&a), Digest::of(&b), Digest::of(&a)]);
    let name = format!("{}.json", Digest::of(&config).hex());
    let manifest = format!(
        r#"[{{"Config":"{name}","RepoTags":{tags},"Layers":["1/layer.tar","2/layer.tar","3/layer.tar"]}}]"#
    );
    let tar =
        Tar::default().dir("1/").file("1/VERSION", b"1.0").file("1/json", b"{}").file("1/layer.tar", &a);
    let tar = tar.file("2/layer.tar", &b).link("3/layer.tar", "../1/layer.tar").file(&name, &change(config));
    tar.file("manifest.json", manifest.as_bytes()).end()
}

#[test]
fn an_old_docker_archive_becomes_an_image_under_each_of_its_tags() {
    let scratch = Scratch::new();
    let archive = old_docker(r#"["a/b:1","a/b:2"]"#, |config| config);
    assert_eq!(take(&scratch, &archive, &Options::default()).unwrap(), ["a/b:1", "a/b:2"]);
    let image = scratch.store.image("a/b:2").unwrap();
    assert_eq!(image.layers.len(), 3);
    unpack(&scratch.store, &image, &Unpacking::default()).unwrap();
    assert!(scratch.store.verify(&image).is_empty());
}

#[test]
fn a_new_docker_archive_with_blobs_is_read_and_may_be_compressed() {
    use std::io::Write;
    let scratch = Scratch::new();
    let a = layer("a");
    let config = config(&[Digest::of(&a)]);
    let name = |bytes: &[u8]| format!("blobs/sha256/{}", Digest::of(bytes).hex());
    let manifest = format!(r#"[{{"Config":"{}","RepoTags":null,"Layers":["{}"]}}]"#, name(&config), name(&a));
    let tar = Tar::default().file(&name(&a), &a).file(&name(&config), &config);
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(&tar.file("manifest.json", manifest.as_bytes()).end()).unwrap();
    let archive = encoder.finish().unwrap();
    assert_eq!(take(&scratch, &archive, &Options::default()).unwrap(), ["archive"]);
}

/// As crane, ko and kaniko write them, and as Jib does.
#[test]
fn docker_archives_of_other_tools_are_read() {
    use std::io::Write;
    let a = layer("a");
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(&a).unwrap();
    let (blob, config) = (encoder.finish().unwrap(), config(&[Digest::of(&a)]));
    let layer = format!("{}.tar.gz", Digest::of(&blob).hex());
    let archive = |name: &str| {
        let manifest = serde_json::json!([{ "Config": name, "RepoTags": ["a:1"], "Layers": [layer] }]);
        let tar = Tar::default().file(name, &config).file(&layer, &blob);
        tar.file("manifest.json", manifest.to_string().as_bytes()).end()
    };
    for name in [Digest::of(&config).to_string(), "config.json".to_owned()] {
        let scratch = Scratch::new();
        assert_eq!(take(&scratch, &archive(&name), &Options::default()).unwrap(), ["a:1"], "{name}");
        let image = scratch.store.image("a:1").unwrap();
        unpack(&scratch.store, &image, &Unpacking::default()).unwrap();
    }
    let wrong = archive(&Digest::of(b"other").to_string());
    let error = take(&Scratch::new(), &wrong, &Options::default()).unwrap_err();
    assert!(error.to_string().contains("should have the digest in its name, but has"), "{error}");
}

#[test]
fn an_archive_of_a_layout_is_read_whatever_the_order_of_its_files() {
    let scratch = Scratch::new();
    let a = layer("a");
    let layout = scratch.dir.path().join("layout");
    write_layout(&layout, &[(a.clone(), Digest::of(&a))]);
    let read = |name: &str| fs::read(layout.join(name)).unwrap();
    let mut tar = Tar::default().file("./index.json", &read("index.json"));
    for blob in fs::read_dir(layout.join("blobs/sha256")).unwrap() {
        let blob = blob.unwrap();
        let name = format!("blobs/sha256/{}", blob.file_name().to_str().unwrap());
        tar = tar.file(&name, &fs::read(blob.path()).unwrap());
    }
    let archive = tar.file("oci-layout", &read("oci-layout")).end();
    let options = Options { name: Some("mine:1".to_owned()), ..Options::default() };
    assert_eq!(take(&scratch, &archive, &options).unwrap(), ["mine:1"]);
}

#[test]
fn what_is_not_what_its_name_says_is_refused_and_leaves_nothing() {
    let a = layer("a");
    let wrong = Tar::default().file(&format!("blobs/sha256/{}", Digest::of(b"other").hex()), &a).end();
    let changed = old_docker("null", |config| [&config[..], b" "].concat());
    let traversal = Tar::default().file("blobs/sha256/..%2fx", &a).end();
    for (archive, expected) in [
        (wrong, "should hold these bytes, but holds those of"),
        (changed, "should have the digest in its name, but has"),
        (traversal, "is no digest"),
        (layer("f"), "it is no image archive: it has neither `index.json` nor `manifest.json`"),
        (old_docker("null", |config| config)[..5000].to_vec(), "ends in the middle of"),
        (b"hello".to_vec(), "ends in the middle of a header"),
        (b"\xfd7zXZ\0and so on".to_vec(), "it is compressed with xz, which is not read; decompress it first"),
        (
            b"BZh91AY&SYand so on".to_vec(),
            "it is compressed with bzip2, which is not read; decompress it first",
        ),
    ] {
        let scratch = Scratch::new();
        let error = take(&scratch, &archive, &Options::default()).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
        assert!(scratch.store.entries().unwrap().is_empty());
        assert_eq!(fs::read_dir(scratch.store.path().join("blobs/sha256")).unwrap().count(), 0);
    }
}

#[test]
fn a_layout_whose_blob_is_missing_longer_or_another_is_refused() {
    let a = layer("a");
    let damage: [(&str, Damage); 4] = [
        ("is missing from it", &|p| fs::remove_file(p).unwrap()),
        ("bytes, but holds", &|p| fs::write(p, [0; 3]).unwrap()),
        ("but holds those of", &|p| fs::write(p, [0; 2048]).unwrap()),
        ("openat2(", &|p| {
            fs::remove_file(p).unwrap();
            std::os::unix::fs::symlink("/etc/passwd", p).unwrap();
        }),
    ];
    for (expected, damage) in damage {
        let scratch = Scratch::new();
        let layout = scratch.dir.path().join("layout");
        write_layout(&layout, &[(a.clone(), Digest::of(&a))]);
        damage(&layout.join("blobs/sha256").join(Digest::of(&a).hex()));
        let error = import(&scratch.store, &layout, &Options::default()).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[test]
fn several_images_are_chosen_by_reference_and_not_named_alike() {
    let scratch = Scratch::new();
    let archive = old_docker(r#"["a:1","b:2"]"#, |config| config);
    let chosen = Options { reference: Some("b:2".to_owned()), ..Options::default() };
    assert_eq!(take(&scratch, &archive, &chosen).unwrap(), ["b:2"]);
    let absent = Options { reference: Some("c".to_owned()), ..Options::default() };
    let error = take(&scratch, &archive, &absent).unwrap_err();
    assert!(error.to_string().ends_with("no image of the reference \"c\" is in it"), "{error}");
}

#[test]
fn a_name_that_a_terminal_cannot_show_is_refused() {
    let scratch = Scratch::new();
    let archive = old_docker("null", |config| config);
    let options = Options { name: Some("a\u{1b}[2J".to_owned()), ..Options::default() };
    assert_eq!(take(&scratch, &archive, &options).unwrap_err().kind(), Kind::Usage);
}

#[test]
fn a_name_that_says_the_digest_of_another_image_is_refused() {
    let pinned = format!("docker.io/library/alpine@{}", Digest::of(b"another"));
    let scratch = Scratch::new();
    let archive = old_docker(&serde_json::json!([pinned]).to_string(), |config| config);
    let error = take(&scratch, &archive, &Options::default()).unwrap_err();
    assert!(error.to_string().contains("is not that of sha256:"), "{error}");
    let plain = old_docker("null", |config| config);
    let named = |name: &str| Options { name: Some(name.to_owned()), ..Options::default() };
    assert_eq!(take(&scratch, &plain, &named(&pinned)).unwrap_err().kind(), Kind::Usage);
    take(&scratch, &plain, &named("mine")).unwrap();
    assert_eq!(scratch.store.tag("mine", &pinned).unwrap_err().kind(), Kind::Usage);
    let own = scratch.store.entry("mine").unwrap().descriptor.digest().to_string();
    scratch.store.tag("mine", &format!("mine@{own}")).unwrap();
    // What it brings doesn't count where it is named by the caller.
    take(&scratch, &archive, &named("mine")).unwrap();
}

/// A layout of one image of one layer, with what its index says.
fn small_layout() -> (Scratch, PathBuf, serde_json::Value) {
    let scratch = Scratch::new();
    let layout = scratch.dir.path().join("layout");
    let a = layer("a");
    write_layout(&layout, &[(a.clone(), Digest::of(&a))]);
    let text = fs::read_to_string(layout.join("index.json")).unwrap();
    let index: serde_json::Value = serde_json::from_str(&text).unwrap();
    (scratch, layout, index)
}

#[test]
fn a_layout_may_bring_a_name_by_the_digest_of_an_index() {
    let (scratch, layout, index) = small_layout();
    let nested = serde_json::json!({ "schemaVersion": 2, "manifests": [index["manifests"][0]] }).to_string();
    let digest = Digest::of(nested.as_bytes());
    fs::write(layout.join("blobs/sha256").join(digest.hex()), &nested).unwrap();
    let take = |pin: &Digest| {
        let media_type = "application/vnd.oci.image.index.v1+json";
        let entry = serde_json::json!({
            "mediaType": media_type, "digest": digest, "size": nested.len(),
            "annotations": { "io.containerd.image.name": format!("a@{pin}") },
        });
        let index = serde_json::json!({ "schemaVersion": 2, "manifests": [entry] });
        fs::write(layout.join("index.json"), index.to_string()).unwrap();
        import(&scratch.store, &layout, &Options::default())
    };
    assert_eq!(take(&digest).unwrap()[0].reference, format!("a@{digest}"));
    assert_eq!(take(&Digest::of(b"another")).unwrap_err().kind(), Kind::Usage);
}

#[test]
fn an_archive_that_decompresses_without_end_is_refused() {
    let zeros = zstd::encode_all(std::io::Read::take(std::io::repeat(0), (1 << 30) + (1 << 20)), 1).unwrap();
    assert!(zeros.len() < 2 << 20);
    let mut archive = Tar::default().raw(b"", |h| {
        h.set_entry_type(tar::EntryType::Regular);
        h.as_old_mut().name[..3].copy_from_slice(b"any");
        h.set_size(1 << 40);
    });
    archive.0.truncate(512);
    let archive = [zstd::encode_all(&archive.0[..], 1).unwrap(), zeros].concat();
    let error = take(&Scratch::new(), &archive, &Options::default()).unwrap_err();
    assert!(error.to_string().ends_with("its compression ratio is over the limit of 500 to 1"), "{error}");
}

#[test]
fn a_damaged_image_keeps_no_other_from_being_imported_anew() {
    let scratch = Scratch::new();
    scratch.import(&[layer("a")]).unwrap();
    let damaged = scratch.store.tag("image", "damaged").unwrap();
    scratch.import(&[layer("b")]).unwrap();
    let digest = Digest::try_from(damaged.descriptor.digest()).unwrap();
    fs::remove_file(scratch.store.path().join("blobs/sha256").join(digest.hex())).unwrap();
    scratch.import(&[layer("c")]).unwrap();
    assert!(scratch.store.verify(&scratch.store.image("image").unwrap()).is_empty());
    assert_eq!(scratch.store.collect().unwrap_err().kind(), Kind::NotFound);
}

#[test]
fn importing_again_under_the_same_name_replaces_the_image_and_repairs_blobs() {
    let scratch = Scratch::new();
    scratch.import(&[layer("a")]).unwrap();
    scratch.import(&[layer("b")]).unwrap();
    assert_eq!(scratch.store.entries().unwrap().len(), 1);
    let blobs = scratch.store.path().join("blobs/sha256");
    assert!(!blobs.join(Digest::of(&layer("a")).hex()).exists(), "the old layer is still there");
    fs::write(blobs.join(Digest::of(&layer("b")).hex()), "damaged").unwrap();
    scratch.import(&[layer("b")]).unwrap();
    assert!(scratch.store.verify(&scratch.store.image("image").unwrap()).is_empty());
}

#[test]
fn an_index_for_several_machines_gives_the_one_for_this() {
    let (scratch, layout, index) = small_layout();
    let here = oci_spec::image::Arch::default().to_string();
    let mut inner = index["manifests"][0].clone();
    inner["platform"] = serde_json::json!({ "os": "linux", "architecture": here });
    let mut other = inner.clone();
    other["platform"]["architecture"] = "s390x".into();
    other["digest"] = Digest::of(b"not there").to_string().into();
    let put = |manifests: serde_json::Value| {
        let nested = serde_json::json!({ "schemaVersion": 2, "manifests": manifests }).to_string();
        let digest = Digest::of(nested.as_bytes());
        fs::write(layout.join("blobs/sha256").join(digest.hex()), &nested).unwrap();
        let media_type = "application/vnd.oci.image.index.v1+json";
        let entry = serde_json::json!({ "mediaType": media_type, "digest": digest, "size": nested.len() });
        let index = serde_json::json!({ "schemaVersion": 2, "manifests": [entry] });
        fs::write(layout.join("index.json"), index.to_string()).unwrap();
        import(&scratch.store, &layout, &Options::default())
    };
    assert_eq!(put(serde_json::json!([other, inner])).unwrap()[0].reference, "layout");
    let error = put(serde_json::json!([other])).unwrap_err();
    assert!(error.to_string().ends_with("only for linux/s390x"), "{error}");
}

/// What the store writes it can read again.
#[test]
fn more_names_than_an_index_holds_are_refused_and_the_store_stays_as_it_is() {
    let scratch = Scratch::new();
    scratch.import(&[layer("a")]).unwrap();
    let tags: Vec<String> = (0..20_000).map(|n| format!("many:{n}")).collect();
    let archive = old_docker(&serde_json::json!(tags).to_string(), |config| config);
    let blobs = || fs::read_dir(scratch.store.path().join("blobs/sha256")).unwrap().count();
    let before = blobs();
    let error = take(&scratch, &archive, &Options::default()).unwrap_err();
    assert_eq!(error.kind(), Kind::Limit, "{error}");
    assert_eq!((scratch.store.entries().unwrap().len(), blobs()), (1, before));
}

#[test]
fn a_docker_archive_of_more_layers_than_an_image_may_have_is_refused() {
    let scratch = Scratch::new();
    let a = layer("a");
    let config = config(&vec![Digest::of(&a); 1001]);
    let name = format!("{}.json", Digest::of(&config).hex());
    let manifest = serde_json::json!([{ "Config": name, "Layers": vec!["layer.tar"; 1001] }]).to_string();
    let tar = Tar::default().file("layer.tar", &a).file(&name, &config);
    let archive = tar.file("manifest.json", manifest.as_bytes()).end();
    let error = take(&scratch, &archive, &Options::default()).unwrap_err();
    assert!(error.to_string().contains("1001 layers are over the limit of 1000"), "{error}");
}
