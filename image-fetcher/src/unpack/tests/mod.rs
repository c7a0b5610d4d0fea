//! Layers as they are and as they should not be.

#![expect(clippy::disallowed_methods, reason = "tests look at files on the host")]

mod entries;
mod flat;
mod layers;
mod hostile;
mod streams;

use std::ffi::OsStr;
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use coracle_sys::{archive, file, identity, seccomp};
use tar::EntryType;

use super::{Limits, Options, unpack};
use crate::digest::Digest;
use crate::error::Kind;
use crate::fixture::{Scratch, Tar, both};

fn tar() -> Tar {
    Tar::default()
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap()
}

fn xattr(path: &Path, name: &str) -> Option<Vec<u8>> {
    let fd = file::open(file::CWD, path, libc::O_RDONLY, 0, file::Resolve::Host).unwrap();
    archive::xattr(fd.as_fd(), OsStr::new(name)).unwrap()
}

fn is_whiteout(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_char_device() && m.rdev() == 0)
}
