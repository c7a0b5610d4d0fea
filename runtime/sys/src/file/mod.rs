//! Files and directories, by file descriptor.
//!
//! Every function takes a directory and a name below it. [`open`] with [`Resolve::InRoot`] or
//! [`Resolve::Beneath`] is how an untrusted tree is walked (openat2(2), Linux 5.6); the functions that change
//! things take one last component, never a path with a slash, so that no symbolic link can lead them away.

mod lookup;
mod directory;
mod attributes;
mod content;

pub use attributes::{
    FsType, chmod, chown, device, file_system, is_read_only, mount_flags, mount_id, stat, stat_at,
};
pub use content::{
    lock, lock_shared, random, read, read_all, read_given, read_pipe, read_some, remove_replaced, replace,
    replace_synced, rewind, unlock, write_all, write_to,
};
use directory::exchange;
pub use directory::{
    link, list, mkdir, mkdir_all, mkdir_all_no_links, mknod, read_link, rename, rmdir, symlink, unlink,
};
pub use lookup::{CWD, Resolve, is_there_at_once, open, open_dir};
