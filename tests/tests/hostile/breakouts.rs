//! containerd's breakouts, by name.

use std::os::fd::OwnedFd;
use std::path::Path;

use coracle_fixtures::breakouts::{self, Breakout, Expected};
use coracle_fixtures::layer::{Compression, Layer};
use coracle_tests::image::{Store, snapshotters};
use coracle_tests::{Host, privileged};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, fstat, openat, openat2, readlinkat};

use super::{mounted, unpack};

/// Opens a path as a process in the root would.
fn open(root: &Path, path: &str, flags: OFlags) -> Option<OwnedFd> {
    let root = openat(CWD, root, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
    openat2(root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT).ok()
}

/// The inode that a path leads to.
fn inode(root: &Path, path: &str) -> Option<(u64, u64)> {
    let found = fstat(open(root, path, OFlags::PATH)?).unwrap();
    Some((found.st_dev, found.st_ino))
}

fn content(root: &Path, path: &str) -> Option<String> {
    let mut text = String::new();
    std::io::Read::read_to_string(&mut std::fs::File::from(open(root, path, OFlags::RDONLY)?), &mut text)
        .ok()?;
    Some(text)
}

fn link(root: &Path, path: &str) -> Option<std::ffi::CString> {
    readlinkat(open(root, path, OFlags::PATH | OFlags::NOFOLLOW)?, "", Vec::new()).ok()
}

/// Whether the mounted image is what it must be.
fn is_as_expected(root: &Path, expected: Expected) -> bool {
    let same = |a, b| inode(root, a).is_some() && inode(root, a) == inode(root, b);
    match expected {
        Expected::Same(a, b) => same(a, b),
        Expected::Different(a, b) => inode(root, a).is_some() && inode(root, b).is_some() && !same(a, b),
        Expected::SameLinks(a, b, file) => {
            link(root, a).is_some() && link(root, a) == link(root, b) && same(a, file)
        }
        Expected::Content(path, text) => content(root, path).as_deref() == Some(text),
        Expected::Gone(path, text, gone) => {
            content(root, path).as_deref() == Some(text) && link(root, gone).is_none()
        }
        Expected::Missing(path) => inode(root, path).is_none(),
        Expected::Refused(_) => false,
    }
}

/// What is wrong with the outcome of a case, if anything is.
fn wrong_with(host: &Host, case: &Breakout, snapshotter: &'static str) -> Option<String> {
    let store = Store::of(host, snapshotter);
    let before = host.snapshot();
    let layers = [&case.below, &case.layer].into_iter().filter(|layer| !layer.is_empty());
    let run = unpack(&store, layers.map(|entries| Layer::new(entries, Compression::Plain)).collect());
    let is_right = match case.expected {
        Expected::Refused(words) => run.code == 1 && run.stderr.trim_end().ends_with(words),
        expected => run.code == 0 && mounted(&store, |root| is_as_expected(root, expected)),
    };
    let changed = host.difference(&before).unwrap_or_default();
    let told = format!("{snapshotter}: {}: {run:?} {changed}", case.name);
    (!is_right || !changed.is_empty()).then_some(told)
}

#[test]
fn containerds_breakouts_stay_inside_or_are_refused() {
    privileged(|host| {
        if !host.needs_coracle("an image store") {
            return;
        }
        let cases = breakouts::all();
        assert_eq!(cases.len(), 33);
        let each = snapshotters(host).into_iter().flat_map(|s| cases.iter().map(move |case| (case, s)));
        let wrong: Vec<String> = each.filter_map(|(case, s)| wrong_with(host, case, s)).collect();
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    });
}
