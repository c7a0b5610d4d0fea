//! The built-in isolator that takes what programs in containers measure.

#![forbid(unsafe_code)]

mod collector;
mod line;
mod series;
mod statsd;

use std::path::Path;

use coracle_isolator::{Error, Isolator};

pub use series::{Family, Limits, Sample};
pub use statsd::{ANNOTATION, Statsd, Told};

/// The isolators of this family, for containers whose states lie in `root`.
pub fn isolators(root: &Path) -> Vec<Box<dyn Isolator + Send>> {
    vec![Box::new(Statsd::new(root))]
}

fn failed(error: coracle_sys::Error) -> Error {
    Error::failed(error.call(), error.errno())
}
