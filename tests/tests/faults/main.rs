//! What may go wrong: the runtime killed or refused at any system call, and containers that got stuck.
//!
//! Whole sweeps are marked as ignored: `make test-faults` runs them, `make test` a sample.

#![expect(clippy::unwrap_used, reason = "a helper of the tests fails as a test does")]

mod churn;
mod errors;
mod images;
mod kills;
mod networks;
mod pods;
mod records;
mod stuck;
mod trace;
