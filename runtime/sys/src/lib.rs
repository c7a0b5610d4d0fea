//! Every system call that Coracle makes, typed and by file descriptor.
//!
//! This is the floor of the house: it depends on nothing of ours, and (with `isolators/abi` and
//! `isolators/host`) it is the only place where unsafe code lives. Each function names the call, its manual
//! page and the kernel that brought it where that is newer than 5.0; each failure is an [`Error`] that shows
//! the call with its arguments, the way strace would.
//!
//! Coracle asks for Linux 5.12 (`mount_setattr`); overlay mounts of images ask for 6.5 (`lowerdir+`). What a
//! kernel lacks is an error that names the call: nothing falls back from a file descriptor to a path.

#![expect(unsafe_code, reason = "this crate is where the product's system calls are made")]

pub mod error;
pub mod event;
pub mod descriptor;
pub mod file;
pub mod memfd;
pub mod archive;
pub mod mount;
pub mod verity;
pub mod namespace;
pub mod process;
pub mod program;
pub mod touch;
pub mod quota;
pub mod signal;
pub mod pattern;
pub mod identity;
pub mod machine;
pub mod users;
pub mod scheduling;
pub mod landlock;
pub mod seccomp;
pub mod bpf;
pub mod perf;
pub mod socket;
pub mod tty;
pub mod net;
pub mod netlink;
pub mod listeners;

pub use error::{Error, Result};
pub use nix::errno::Errno;
