//! When the images of a pod are pulled: those of its containers, and those of its volumes.

use std::path::Path;

use super::document::PullPolicy;
use crate::error::{Code, Result};
use crate::image;

/// What `make` makes of the image `reference`, which is pulled where `policy` wants it: each time, or where `make` finds that
/// the store lacks it, which is how it is where nothing is said. It is told the name of what was pulled.
///
/// # Errors
/// Whatever `make` says; why it can't be pulled.
pub(super) fn pulled<T>(
    store: &Path,
    reference: &str,
    policy: Option<PullPolicy>,
    make: impl Fn(&str) -> Result<T>,
) -> Result<T> {
    let policy = policy.unwrap_or(PullPolicy::IfNotPresent);
    if policy == PullPolicy::Always {
        image::pull_silently(store, reference)?;
        return make(&image::pulled_name(reference));
    }
    match make(reference) {
        Err(e) if e.code() == Code::NotFound && policy == PullPolicy::IfNotPresent => {
            let missing = e.hint("it is not in the store");
            image::pull_silently(store, reference).map_err(|pulling| missing.hint(pulling.to_string()))?;
            make(&image::pulled_name(reference))
        }
        made => made,
    }
}
