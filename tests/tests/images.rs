//! Images: imported in each form, unpacked, mounted, compared with umoci, removed; hostile ones refused.

#![expect(clippy::unwrap_used, reason = "a helper of the tests fails as a test does")]

use std::fs;
use std::path::{Path, PathBuf};

use coracle_fixtures::image::Image;
use coracle_fixtures::layer::{Compression, Entry, Layer};
use coracle_fixtures::many::{self, Reader};
use coracle_fixtures::small;
use coracle_tests::image::{Store, snapshotters, stacks_layers};
use coracle_tests::tree::{difference, tree};
use coracle_tests::{Host, command, privileged};

/// Every path of a store but its index, which stays when it is empty.
fn listing(store: &Store<'_>) -> Vec<PathBuf> {
    tree(store.directory()).into_keys().filter(|path| path != Path::new("index.json")).collect()
}

/// Unpacks and mounts an image, hands its root to `look`, and takes all away again.
fn mounted<T>(store: &Store<'_>, name: &str, look: impl FnOnce(&Path) -> T) -> T {
    store.call(&["unpack", name]).succeeds();
    let root = store.call(&["mount", name, "looked-at"]).succeeds().text();
    let seen = look(Path::new(&root));
    store.call(&["unmount", "looked-at"]).succeeds();
    seen
}

fn can_run(host: &Host) -> bool {
    host.needs_coracle("an image store")
}

fn can_unpack(host: &Host) -> bool {
    can_run(host) && stacks_layers(host)
}

/// The image in each form in which it travels, as paths to import.
fn forms(host: &Host, image: &Image) -> Vec<PathBuf> {
    let directory = host.directory();
    image.write_layout(&directory.join("layout"));
    let archives = [
        ("oci.tar", image.oci_archive()),
        ("docker-old.tar", image.docker_archive_old()),
        ("docker-new.tar", image.docker_archive_new()),
    ];
    let mut paths = vec![directory.join("layout")];
    for (name, bytes) in archives {
        fs::write(directory.join(name), bytes).unwrap();
        paths.push(directory.join(name));
    }
    paths
}

#[test]
fn each_form_of_an_image_gives_the_same_tree() {
    privileged(|host| {
        if !can_unpack(host) {
            return;
        }
        for image in [small::image(), many::image(Reader::Full)] {
            let mut first = None;
            let forms = forms(host, &image);
            let each = snapshotters(host).into_iter().flat_map(|s| forms.iter().map(move |path| (path, s)));
            for (path, snapshotter) in each {
                let store = Store::of(host, snapshotter);
                store.import_path(path, &image.name).succeeds();
                let seen = mounted(&store, &image.name, tree);
                let first = first.get_or_insert_with(|| seen.clone());
                assert_eq!(difference(&seen, first), "", "{snapshotter} {}", path.display());
            }
        }
    });
}

#[test]
fn the_tree_is_the_one_that_umoci_unpacks() {
    privileged(|host| {
        if !can_unpack(host) || !host.needs_program("umoci") {
            return;
        }
        let image = many::image(Reader::Umoci);
        let directory = host.directory();
        image.write_layout(&directory);
        let bundle = directory.join("bundle");
        let source = format!("{}:latest", directory.display());
        command::tool("umoci", &["unpack", "--image", &source, bundle.to_str().unwrap()]);
        for snapshotter in snapshotters(host) {
            let store = Store::of(host, snapshotter);
            store.import_path(&directory, &image.name).succeeds();
            let ours = mounted(&store, &image.name, tree);
            let difference = difference(&ours, &tree(&bundle.join("rootfs")));
            assert!(difference.is_empty(), "{snapshotter}: {difference}");
        }
    });
}

#[test]
fn what_lower_layers_had_and_upper_ones_took_away_is_gone() {
    privileged(|host| {
        if !can_unpack(host) {
            return;
        }
        let image = many::image(Reader::Full);
        let looked_at = |root: &Path| {
            let list = |path: &str| {
                let mut names: Vec<String> = fs::read_dir(root.join(path))
                    .unwrap()
                    .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                    .collect();
                names.sort();
                names
            };
            assert_eq!(list("removed"), ["kept"]);
            assert_eq!(list("opaque"), ["above"]);
            assert!(list("opaque-empty").is_empty());
            assert_eq!(list("change/link-to-directory"), ["inside"]);
            assert_eq!(fs::read_to_string(root.join("change/directory-to-file")).unwrap(), "a file now");
            assert_eq!(fs::read_to_string(root.join("thin/changed")).unwrap(), "layer 11");
        };
        for snapshotter in snapshotters(host) {
            let store = Store::of(host, snapshotter);
            store.import(&image);
            mounted(&store, &image.name, looked_at);
        }
    });
}

#[test]
fn a_mounted_image_can_be_written_and_stays_what_it_was() {
    privileged(|host| {
        if !can_unpack(host) {
            return;
        }
        let image = small::image();
        for snapshotter in snapshotters(host) {
            let store = Store::of(host, snapshotter);
            store.import(&image);
            let before = mounted(&store, &image.name, |root| {
                let before = tree(root);
                fs::write(root.join("etc/motd"), "changed").unwrap();
                fs::remove_file(root.join("etc/passwd")).unwrap();
                before
            });
            assert_eq!(difference(&mounted(&store, &image.name, tree), &before), "");
        }
    });
}

#[test]
fn ls_inspect_and_rm_tell_and_remove() {
    privileged(|host| {
        if !can_unpack(host) {
            return;
        }
        for store in snapshotters(host).into_iter().map(|snapshotter| Store::of(host, snapshotter)) {
            store.call(&["ls"]).succeeds();
            let empty = listing(&store);
            let image = small::image();
            store.import(&image);
            assert!(store.call(&["ls"]).succeeds().text().contains("coracle/small"));
            assert!(store.call(&["inspect", &image.name]).succeeds().text().contains("BOAT=coracle"));
            store.call(&["unpack", &image.name]).succeeds();
            store.call(&["verify"]).succeeds();
            store.call(&["rm", &image.name]).succeeds();
            assert!(!store.call(&["ls"]).succeeds().text().contains("coracle/small"));
            assert_eq!(listing(&store), empty);
        }
    });
}

#[test]
fn images_that_share_layers_keep_them_until_the_last_is_removed() {
    privileged(|host| {
        if !can_unpack(host) {
            return;
        }
        let store = Store::new(host);
        let first = small::image();
        let second = Image { name: "coracle/other:latest".to_owned(), ..small::image() };
        store.import(&first);
        store.import(&second);
        store.call(&["unpack", &first.name]).succeeds();
        store.call(&["rm", &first.name]).succeeds();
        let greeting =
            mounted(&store, &second.name, |root| fs::read_to_string(root.join("srv/greeting")).unwrap());
        assert_eq!(greeting, "hello from three layers\n");
    });
}

#[test]
fn a_blob_that_changed_is_found_and_named() {
    privileged(|host| {
        if !can_run(host) {
            return;
        }
        let store = Store::new(host);
        let image = small::image();
        store.import(&image);
        let digest = coracle_fixtures::layer::digest(&image.layers[0].blob);
        let blob = store.directory().join(coracle_fixtures::image::blob_path(&image.layers[0].blob));
        let mut bytes = fs::read(&blob).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&blob, bytes).unwrap();
        let verify = store.call(&["verify"]).fails_with(&[]);
        assert!(verify.text().contains(&digest), "{verify:?}");
        store.call(&["unpack", &image.name]).fails_with(&[&digest]);
    });
}

#[test]
fn what_is_not_there_is_named() {
    privileged(|host| {
        if !can_run(host) {
            return;
        }
        let store = Store::new(host);
        store.import_path(Path::new("/no/such/image"), "x").fails_with(&["/no/such/image"]);
        for verb in ["inspect", "unpack", "rm", "mount"] {
            store.call(&[verb, "no-such-image"]).fails_with(&["no-such-image"]);
        }
        store.call(&["no-such-verb"]).fails_with(&["no-such-verb"]);
    });
}

#[test]
fn an_export_is_read_by_skopeo_and_umoci_and_by_ourselves() {
    privileged(|host| {
        if !can_unpack(host) || !host.needs_program("skopeo") || !host.needs_program("umoci") {
            return;
        }
        // This umoci knows no zstd.
        let (store, image, directory) = (Store::new(host), many::image(Reader::Umoci), host.directory());
        store.import(&image);
        let ours = mounted(&store, &image.name, tree);
        let path = |name: &str| directory.join(name).to_str().unwrap().to_owned();
        store.call(&["export", &image.name, &path("out.tar")]).succeeds();
        for transport in ["oci-archive", "docker-archive"] {
            let (from, to) = (format!("{transport}:{}", path("out.tar")), path(transport));
            command::tool("skopeo", &["--insecure-policy", "copy", &from, &format!("oci:{to}:x")]);
            let bundle = path(&format!("{transport}-bundle"));
            command::tool("umoci", &["unpack", "--image", &format!("{to}:x"), &bundle]);
            assert_eq!(difference(&ours, &tree(&Path::new(&bundle).join("rootfs"))), "");
        }
        // The store is a layout itself.
        let itself = format!("oci:{}:{}", store.directory().display(), image.name);
        command::tool("skopeo", &["--insecure-policy", "inspect", &itself]);
        // Where skopeo keeps what it has seen.
        fs::remove_dir_all("/var/lib/containers").unwrap();
        let again = Store::new(host);
        again.import_path(&directory.join("out.tar"), "again").succeeds();
        assert_eq!(difference(&mounted(&again, "again", tree), &ours), "");
    });
}

#[test]
fn layers_of_both_kinds_are_mounted_one_over_the_other() {
    privileged(|host| {
        if !can_run(host) {
            return;
        }
        if !snapshotters(host).contains(&"erofs") {
            return;
        }
        let (image, store) = (many::image(Reader::Full), Store::new(host));
        store.import(&image);
        let expected = mounted(&store, &image.name, tree);
        let below = Image { name: "below:1".to_owned(), layers: image.layers[..2].to_vec(), ..image.clone() };
        let mixed = Store::of(host, "erofs");
        mixed.import(&below);
        mixed.import(&image);
        mixed.call(&["unpack", "--snapshotter", "overlay", "below:1"]).succeeds();
        mixed.call(&["unpack", &image.name]).succeeds();
        let seen = mounted(&mixed, &image.name, tree);
        assert_eq!(difference(&seen, &expected), "");
        let kinds: Vec<PathBuf> = fs::read_dir(mixed.directory().join("layers"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        assert!(kinds.iter().any(|path| path.is_dir()) && kinds.iter().any(|path| path.is_file()));
    });
}

#[test]
fn an_erofs_image_on_a_file_system_with_verity_can_not_change() {
    privileged(|host| {
        if !can_run(host) || !snapshotters(host).contains(&"erofs") || !host.needs_program("mkfs.ext4") {
            return;
        }
        // Without it ext4 is mounted all the same, and takes none.
        if !Path::new("/sys/fs/ext4/features/verity").exists() {
            return host.skip("this kernel has no fs-verity for ext4");
        }
        let (disk, at) = (host.directory().join("disk"), host.directory());
        fs::File::create(&disk).unwrap().set_len(64 << 20).unwrap();
        command::tool("mkfs.ext4", &["-q", "-O", "verity", disk.to_str().unwrap()]);
        command::tool("mount", &["-o", "loop", disk.to_str().unwrap(), at.to_str().unwrap()]);
        let (image, store) = (small::image(), Store::at(host, &at.join("store")));
        store.import(&image);
        store.call(&["unpack", "--snapshotter", "erofs", &image.name]).succeeds();
        let told = store.call(&["inspect", &image.name]).succeeds().json();
        let digest = told["layers"][0]["verity"].as_str().unwrap_or_default().to_owned();
        let layer = fs::read_dir(store.directory().join("layers")).unwrap().next().unwrap().unwrap().path();
        let refused = fs::OpenOptions::new().write(true).open(&layer).map(drop);
        let seen = mounted(&store, &image.name, |root| fs::read_dir(root).unwrap().count());
        command::tool("umount", &[&at]);
        assert!(digest.starts_with("sha256:") && digest.len() == 71, "{digest}");
        assert_eq!(refused.unwrap_err().kind(), std::io::ErrorKind::PermissionDenied);
        assert!(seen > 0);
    });
}

#[test]
fn the_same_layer_becomes_the_same_erofs_image() {
    privileged(|host| {
        if !can_run(host) {
            return;
        }
        if !snapshotters(host).contains(&"erofs") {
            return;
        }
        let image = many::image(Reader::Full);
        let images = [0, 1].map(|_| {
            let store = Store::of(host, "erofs");
            store.import(&image);
            store.call(&["unpack", &image.name]).succeeds();
            tree(&store.directory().join("layers"))
                .into_iter()
                .map(|(path, line)| (path, line.split(' ').rev().nth(4).unwrap().to_owned()))
                .collect::<Vec<_>>()
        });
        assert_eq!(images[0], images[1]);
    });
}

#[test]
fn an_archive_of_more_blobs_than_a_process_has_files_by_default_is_imported() {
    privileged(|host| {
        if !can_run(host) {
            return;
        }
        let (store, archive) = (Store::new(host), host.directory().join("archive.tar"));
        fs::write(&archive, small::image().oci_archive()).unwrap();
        let script = format!(
            "ulimit -Sn 8; '{}' --store '{}' import '{}' --name a",
            host.image_program().display(),
            store.directory().display(),
            archive.display()
        );
        host.shell(&script).succeeds();
        store.call(&["verify", "a"]).succeeds();
    });
}

#[test]
fn three_hundred_layers_are_mounted_one_over_the_other() {
    privileged(|host| {
        if !can_unpack(host) {
            return;
        }
        let file = |n: usize| Entry::file(format!("d/{n}"), n.to_string());
        let layer = |n: usize| {
            Layer::new(
                &[Entry::directory("d"), file(n), Entry::file("last", n.to_string())],
                Compression::Plain,
            )
        };
        let image = Image::new("coracle/deep:latest", (0..300).map(layer).collect());
        for snapshotter in snapshotters(host) {
            let store = Store::of(host, snapshotter);
            store.import(&image);
            mounted(&store, &image.name, |root| {
                assert_eq!(fs::read_dir(root.join("d")).unwrap().count(), 300, "{snapshotter}");
                assert_eq!(fs::read_to_string(root.join("last")).unwrap(), "299");
                fs::write(root.join("d/0"), "written").unwrap();
            });
        }
    });
}

#[test]
fn tag_history_df_and_gc_tell_and_keep_what_is_used() {
    privileged(|host| {
        if !can_unpack(host) {
            return;
        }
        let (store, image) = (Store::new(host), small::image());
        store.import(&image);
        store.call(&["tag", &image.name, "mine:1"]).succeeds();
        store.call(&["rm", &image.name]).succeeds();
        let history = store.call(&["history", "mine:1"]).succeeds().lines();
        assert!(history[0].starts_with("CREATED"), "{history:?}");
        assert_eq!(history.iter().filter(|line| line.ends_with("coracle-fixtures")).count(), 3);
        store.call(&["mount", "mine:1", "here"]).fails_with(&["not unpacked"]);
        store.call(&["unpack", "mine:1"]).succeeds();
        store.call(&["mount", "mine:1", "here"]).succeeds();
        store.call(&["gc", "--keep-size", "0"]).succeeds();
        let held = store.call(&["df", "--format", "json"]).succeeds().json();
        assert_eq!((&held["layers"]["count"], &held["layers"]["unused"]), (&3.into(), &0.into()));
        store.call(&["unmount", "here"]).succeeds();
        assert_eq!(store.call(&["gc", "--keep-size", "0"]).succeeds().text(), "mine:1 removed");
        let held = store.call(&["df", "--format", "json"]).succeeds().json();
        assert_eq!((&held["layers"]["count"], &held["blobs"]["bytes"]), (&0.into(), &0.into()));
    });
}
