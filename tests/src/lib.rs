//! The harness of the privileged tests: black box, through the real binaries.
//!
//! A test is a closure given to [`privileged`]. It runs on a *test host* of its own: new mount, PID, network,
//! IPC, UTS and cgroup namespaces, empty `/run` and `/var/lib`, an own cgroup in every hierarchy. Before and
//! after it the leak oracle ([`oracle`]) takes stock of the whole of that host; any difference fails the test.
//! As no two tests share a host, they can run at the same time, and beside whatever else the machine does.
//!
//! The runtime under test is `target/bin/coracle`, or the one that `CORACLE_RUNTIME` names: the tests of
//! the OCI command line pass with runc, too, which proves them.

#![forbid(unsafe_code)]

pub mod command;
pub mod oracle;
pub mod host;
pub mod bundle;
pub mod image;
pub mod registry;
pub mod storage;
pub mod silent;
pub mod lan;
pub mod tree;
pub mod terminal;
pub mod user;
pub mod cgroup;
pub mod plugin;
pub mod pod;

pub use bundle::{Bundle, Container};
pub use command::Outcome;
pub use coracle_fixtures::spec::Spec;
pub use host::{Host, namespaced, privileged, privileged_v1, unprivileged, with_systemd};
