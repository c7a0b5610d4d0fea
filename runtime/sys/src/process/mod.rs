//! Making, executing, signalling and awaiting processes.

mod clone;
mod pidfd;
mod wait;
mod caller;

pub(crate) use caller::prctl;
pub use caller::{
    become_subreaper, die_with_parent, dumpable, forget_image, hide_arguments, is_dumpable, new_session,
    undumpable,
};
pub use clone::{Child, execute, execute_fd, exit_now, spawn, spawn_sibling};
pub use pidfd::{Status, inode, kill, pid_of, pidfd, signal, signal_name, status};
pub use wait::{Exit, exit_of, exit_of_zombie, reap_all, reap_unknown, wait};
