//! Published escapes, each on a hostile bundle, with the canary and the leak oracle around it. The numbers are
//! those of the recipes in the threat model.

#![expect(clippy::unwrap_used, reason = "a helper of the tests fails as a test does")]

mod bites;
mod host_paths;
mod life;
mod names;
mod paths;
mod processes;
mod races;
mod rights;

use std::fs;
use std::os::unix::fs::symlink;

use coracle_fixtures::hostile::CANARY;
use coracle_tests::{Bundle, Host, Spec};

/// Puts a symbolic link into the root in place of what is there.
fn plant<'h>(bundle: Bundle<'h>, path: &str, target: &str) -> Bundle<'h> {
    let path = bundle.rootfs().join(path);
    let _ = fs::remove_dir(&path);
    let _ = fs::remove_file(&path);
    symlink(target, path).unwrap();
    bundle
}

/// A specification whose `/dev` is the image's own.
fn without_dev(spec: Spec) -> Spec {
    let below = ["/dev/pts", "/dev/shm", "/dev/mqueue", "/dev"];
    below.into_iter().fold(spec, Spec::without_mount)
}

/// What the oracle sees at the end, seen now: nothing was made in the canary or changed in it.
#[track_caller]
fn canary_is_untouched() {
    assert_eq!(fs::read_dir(CANARY).unwrap().count(), 2, "something was made in the canary");
    assert_eq!(fs::read_to_string(format!("{CANARY}/file")).unwrap(), "untouched");
}

/// Older runtimes are known to fall to some of these recipes: `bites.rs` lets them, which proves the tests.
fn withstands(host: &Host) -> bool {
    bites::is_biting() || host.needs_coracle("the defence; older runtimes fall to this recipe")
}
