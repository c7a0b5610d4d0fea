//! What registries, archives and layers may try, by the names under which it became known.

#![expect(clippy::unwrap_used, reason = "a helper of the tests fails as a test does")]

mod breakouts;
mod race;
mod recipes;
mod streams;

use std::fs;
use std::path::{Path, PathBuf};

use coracle_fixtures::hostile::{self, Outcome};
use coracle_fixtures::image::Image;
use coracle_fixtures::layer::Layer;
use coracle_tests::image::{Store, snapshotters};
use coracle_tests::tree::tree;
use coracle_tests::{Host, privileged};

const NAME: &str = "coracle/hostile:latest";

/// Every path of a store but its index, which stays when it is empty.
fn listing(store: &Store<'_>) -> Vec<PathBuf> {
    tree(store.directory()).into_keys().filter(|path| path != Path::new("index.json")).collect()
}

/// Mounts an unpacked image, hands its root to `look`, and takes all away again.
fn mounted<T>(store: &Store<'_>, look: impl FnOnce(&Path) -> T) -> T {
    let root = store.call(&["mount", NAME, "looked-at"]).succeeds().text();
    let seen = look(Path::new(&root));
    store.call(&["unmount", "looked-at"]).succeeds();
    seen
}

/// An image of one layer, imported and asked to be unpacked.
fn unpack(store: &Store<'_>, layers: Vec<Layer>) -> coracle_tests::Outcome {
    let imported = store.import_files(&Image::new(NAME, layers).layout(), NAME);
    if imported.code == 0 { store.call(&["unpack", NAME]) } else { imported }
}

/// Imports and unpacks a hostile image; what is wrong with the outcome, if anything is.
fn wrong_with(host: &Host, case: &hostile::Hostile, snapshotter: &'static str) -> Option<String> {
    let store = Store::of(host, snapshotter);
    store.call(&["ls"]).succeeds();
    let (before, empty) = (host.snapshot(), listing(&store));
    let mut run = store.import_files(&case.files, NAME);
    if run.code == 0 {
        run = store.call(&["unpack", NAME, "--max-size", "268435456"]);
    }
    let mut wrong = String::new();
    if run.code != 0
        && (run.stderr.trim_end().lines().count() != 1 || !run.stderr.starts_with("coracle-image: "))
    {
        wrong += &format!("not one clear line: {:?}\n", run.stderr);
    }
    match case.outcome {
        Outcome::Refused if run.code == 0 => wrong += "it was taken\n",
        Outcome::Harmless if run.code == 0 => {
            let (base, smuggled) = mounted(&store, |root| {
                (root.join("etc/passwd").is_file(), fs::symlink_metadata(root.join("smuggled")).is_ok())
            });
            wrong += if base { "" } else { "a forgery hides the layer below\n" };
            wrong += if smuggled { "an entry was smuggled in\n" } else { "" };
        }
        _ => {}
    }
    store.call(&["rm", NAME]);
    let left: Vec<PathBuf> = listing(&store).into_iter().filter(|path| !empty.contains(path)).collect();
    if !left.is_empty() {
        wrong += &format!("left in the store: {left:?}\n");
    }
    wrong += &host.difference(&before).unwrap_or_default();
    (!wrong.is_empty()).then(|| format!("{snapshotter}: {}: {wrong}", case.name))
}

/// Which of the hostile images belong to a recipe: names, or the beginnings of names.
const RECIPES: &[(&str, &[&str])] = &[
    ("I-01", &["root-is-a-symlink", "root-is-a-file", "dot-dot-name"]),
    ("I-02", &["symlink-then-directory", "symlink-then-mkdir"]),
    ("I-04", &["hardlink-", "symlink-then-file", "symlink-to-file-then-file", "device-through-symlink"]),
    ("I-05", &["pax-size-desync", "negative-size"]),
    ("I-06", &["huge-pax-header", "sparse-map-without-end"]),
    ("I-08", &["layers-and-manifests", "schema-version-one", "config-type-is-a-layer"]),
    ("I-11", &["digest-is-a-path", "digest-of-md5", "digest-in-capitals", "digest-too-short"]),
    ("I-12", &["wrong-size", "negative-layer-size", "huge-layer-size"]),
    ("I-13", &["bare-whiteout", "whiteout-of-", "device-zero-zero", "forged-", "symlink-then-whiteout"]),
    ("I-15", &["checkpoint"]),
    ("I-17", &["bomb"]),
    ("I-18", &["foreign-erofs"]),
    (
        "none",
        &[
            "climbing-",
            "absolute-file",
            "nul-in-name",
            "symlink-then-opaque",
            "truncated-",
            "flipped-bit",
            "empty-blob",
            "wrong-diff-id",
            "missing-blob",
            "no-layers-for-diff-ids",
            "wrong-digest",
        ],
    ),
];

/// Tries the images of a recipe, with whatever layers may become.
#[track_caller]
fn try_all(host: &Host, recipe: &str) {
    if !host.needs_coracle("an image store") {
        return;
    }
    let (_, names) = RECIPES.iter().find(|(name, _)| *name == recipe).unwrap();
    let is_of_it = |case: &hostile::Hostile| names.iter().any(|name| case.name.starts_with(name));
    let cases: Vec<_> = hostile::all().into_iter().filter(is_of_it).collect();
    let each = snapshotters(host).into_iter().flat_map(|s| cases.iter().map(move |case| (case, s)));
    let wrong: Vec<String> = each.filter_map(|(case, s)| wrong_with(host, case, s)).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn each_hostile_image_is_tried_and_each_name_is_of_one() {
    let names: Vec<&str> = RECIPES.iter().flat_map(|(_, names)| names.iter().copied()).collect();
    let cases: Vec<&str> = hostile::all().iter().map(|case| case.name).collect();
    for case in &cases {
        assert!(names.iter().any(|name| case.starts_with(name)), "{case} is not tried");
    }
    for name in names {
        assert!(cases.iter().any(|case| case.starts_with(name)), "{name} is of no image");
    }
}

#[test]
fn other_hostile_images_are_refused_or_do_no_harm() {
    privileged(|host| try_all(host, "none"));
}
