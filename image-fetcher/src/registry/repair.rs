//! Repairing: what is damaged or missing of an image comes from its registry again.

use super::Settings;
use super::pull::{Pulled, pull};
use super::report::Report;
use crate::digest::Digest;
use crate::error::{Context, Result};
use crate::reference::Reference;
use crate::store::Store;

/// Digests an image's blobs again, removes those that are wrong, and pulls the very same manifest. Its layers are unpacked
/// anew, but for those that a container or mount is made of: what is unpacked can't be told from what it should be.
///
/// # Errors
/// As [`pull`]; what was wrong is gone then, and the next attempt begins there.
pub fn repair(store: &Store, name: &str, settings: &Settings, report: &dyn Report) -> Result<Pulled> {
    let repairing = || format!("repairing {name:?}");
    let entry = store.entry(name).context(repairing)?;
    let digest = Digest::try_from(entry.descriptor.digest()).context(repairing)?;
    let reference: Reference = entry.reference.parse().context(repairing)?;
    let pinned = reference.at(digest);
    let known = store.entries()?.iter().any(|e| e.reference == pinned.to_string());
    store.discard_damaged(&entry).context(repairing)?;
    let pulled = pull(store, &pinned, settings, report).context(repairing)?;
    if !known {
        store.untag(&pinned.to_string()).context(repairing)?;
    }
    Ok(pulled)
}
