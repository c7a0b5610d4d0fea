//! Pods: containers with a life in common, and the supervisor that looks after them.

#![expect(clippy::unwrap_used, reason = "a helper of the tests fails as a test does")]

mod life;
mod order;
mod ending;
mod probes;
mod volumes;
mod sysctls;
mod users;
mod networks;
mod images;
mod tenants;
mod recovery;
mod nested;
mod streams;
mod agent;
