//! A directory tree as a list of lines, to be compared with another one, entry by entry.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// Every entry below `root` (not `root` itself): path, then type and mode, owner, time, device, hard links,
/// target, extended attributes and content.
///
/// # Panics
/// When something can't be read.
pub fn tree(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut entries = BTreeMap::new();
    let mut inodes = BTreeMap::new();
    walk(root, root, &mut |path, relative| {
        let found = fs::symlink_metadata(path).expect("look at an entry");
        let kind = found.file_type();
        let mut line = format!(
            "{:o} {}:{} {}.{:09} {}",
            found.mode(),
            found.uid(),
            found.gid(),
            found.mtime(),
            found.mtime_nsec(),
            found.rdev()
        );
        if kind.is_symlink() {
            line += &format!(" -> {}", fs::read_link(path).expect("read a link").display());
        }
        if kind.is_file() {
            let content = fs::read(path).expect("read a file");
            line += &format!(" {} {:x?}", found.size(), &Sha256::digest(&content)[..8]);
        }
        if !kind.is_dir() {
            let first = inodes.entry((found.dev(), found.ino())).or_insert_with(|| relative.to_owned());
            line += &format!(" {} links, first {}", found.nlink(), first.display());
        }
        line += &attributes(path);
        entries.insert(relative.to_owned(), line);
    });
    entries
}

fn walk(root: &Path, directory: &Path, visit: &mut impl FnMut(&Path, &Path)) {
    let mut paths: Vec<PathBuf> = fs::read_dir(directory)
        .expect("list a directory")
        .map(|entry| entry.expect("an entry").path())
        .collect();
    paths.sort();
    for path in paths {
        visit(&path, path.strip_prefix(root).expect("below the root"));
        if fs::symlink_metadata(&path).expect("look at an entry").is_dir() {
            walk(root, &path, visit);
        }
    }
}

fn attributes(path: &Path) -> String {
    let mut names = vec![0; 65536];
    let length = rustix::fs::llistxattr(path, &mut names).expect("list extended attributes");
    let mut list: Vec<&[u8]> =
        names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()).collect();
    list.sort_unstable();
    let mut text = String::new();
    for name in list {
        let mut value = vec![0; 65536];
        let length =
            rustix::fs::lgetxattr(path, OsStr::from_bytes(name), &mut value).expect("read an attribute");
        text += &format!(" {}={:02x?}", String::from_utf8_lossy(name), &value[..length]);
    }
    text
}

/// What differs between two trees, a line an entry; empty if nothing does.
pub fn difference(ours: &BTreeMap<PathBuf, String>, theirs: &BTreeMap<PathBuf, String>) -> String {
    let mut text = String::new();
    for (path, line) in ours {
        match theirs.get(path) {
            Some(other) if other == line => {}
            Some(other) => text += &format!("{path:?}\n  ours:   {line}\n  theirs: {other}\n"),
            None => text += &format!("{path:?} is only in ours\n"),
        }
    }
    for path in theirs.keys().filter(|path| !ours.contains_key(*path)) {
        text += &format!("{path:?} is missing in ours\n");
    }
    text
}
