//! Pods: containers that share namespaces, limits and a life, looked after by one process, the supervisor.
//!
//! ```text
//!   CLI, agent ──Varlink──► supervisor ──forks──► launcher ──clones──► first process of a container
//!                               │                 (the stages, once)    (a child of the supervisor from then on)
//!                               └──forks──► keeper: holds the namespaces, and what the next supervisor needs
//! ```
//!
//! A pod's document becomes a plan ([`plan`], pure). The supervisor ([`supervisor`]) is one loop without threads; what
//! can take long or go wrong (a launch, a removal, a probe) is a job: a fork of it with a deadline ([`job`]). So a
//! launch parses no pod again and starts no new program image, and one that hangs or crashes is one container's failure.

pub mod document;
mod variables;
pub mod plan;
mod pull;
pub mod record;
pub mod job;
pub mod users;
pub mod network;
pub mod node;
pub mod keeper;
pub mod sandbox;
mod disk;
mod fs_group;
pub mod volume;
pub mod launch;
pub mod logs;
pub mod varlink;
pub mod supervisor;
pub mod host;
pub mod serve;
