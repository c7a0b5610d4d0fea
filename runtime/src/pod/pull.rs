//! When the images of a pod are pulled: those of its containers, and those of its volumes.

use std::path::Path;
use std::time::Duration;

use coracle_sys::signal;

use super::document::PullPolicy;
use super::job::Job;
use crate::error::{Code, Error, Result};
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
        Err(e) if may_be_pulled(&e, policy) => {
            let missing = e.hint("it is not in the store");
            image::pull_silently(store, reference).map_err(|pulling| missing.hint(pulling.to_string()))?;
            make(&image::pulled_name(reference))
        }
        made => made,
    }
}

/// Whether `error` says that an image is not in the store, and `policy` has it pulled then.
pub(super) fn may_be_pulled(error: &Error, policy: PullPolicy) -> bool {
    error.code() == Code::NotFound && policy == PullPolicy::IfNotPresent
}

/// Starts to pull the image `reference`. It may take any time: the tool gives up a registry that is silent.
///
/// # Errors
/// `EAGAIN` where there are too many processes.
pub(super) fn start(store: &Path, reference: &str, policy: PullPolicy) -> Result<Job> {
    Job::start(None::<Duration>, &[], None, |_| {
        signal::unblock()?;
        let pulled = image::pull_silently(store, reference);
        let is_missing = policy == PullPolicy::IfNotPresent;
        pulled.map_err(|e| if is_missing { e.hint("it is not in the store") } else { e })
    })
}
