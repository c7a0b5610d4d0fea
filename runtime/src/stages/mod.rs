//! The stages of a container's life, one file each, in the order of life.
//!
//! Each stage takes what the one before returned and returns what the next one takes, so the order is the only
//! one that compiles; what a stage changes on the host is recorded before it is changed, so that cleanup finds
//! it. No stage calls another: the commands do.

pub mod spec;
pub mod plan;
pub mod prepare;
pub mod spawn;
pub mod isolate;
pub mod release;
pub mod reach;
pub mod monitor;
pub mod remount;
pub mod watch;
pub mod cleanup;
