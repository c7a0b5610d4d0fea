//! An isolator as a plugin: what [`export_isolator!`](crate::export_isolator) makes.

use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use coracle_isolator_abi::Verb;
use coracle_isolator_abi::author::{self, About, Author, Container, Failure, Given, Returned};
use coracle_isolator_abi::table::{
    CORACLE_ISOLATOR_DEBUG, CORACLE_ISOLATOR_NESTED, CORACLE_ISOLATOR_OCI, CORACLE_ISOLATOR_POD,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

pub use coracle_isolator_abi::table::Isolator as Table;

use crate::{Cgroup, CgroupVersion, ConfigDocument, Error, Handles, Isolator, Kind, Result};

/// Exports an isolator from a shared object (`crate-type = ["cdylib"]`) through the C ABI: an expression that makes one,
/// before it is configured; after the word `boxed`, one that makes a box with one.
///
/// ```
/// use coracle_isolator::{Isolator, export_isolator};
///
/// #[derive(Default)]
/// struct Nothing;
///
/// impl Isolator for Nothing {
///     fn name(&self) -> &str {
///         "example/nothing"
///     }
/// }
///
/// export_isolator!(Nothing::default());
/// # fn main() {}
/// ```
#[macro_export]
macro_rules! export_isolator {
    (boxed $new:expr) => {
        /// The one symbol of the isolator contract.
        #[unsafe(no_mangle)]
        pub extern "C" fn coracle_isolator_table() -> *const $crate::export::Table {
            $crate::export::table(env!("CARGO_PKG_VERSION"), || $new)
        }
    };
    ($new:expr) => {
        $crate::export_isolator!(boxed::std::boxed::Box::new($new));
    };
}

/// The table of the isolator that `make` makes, of this version.
pub fn table(version: &str, make: impl FnOnce() -> Box<dyn Isolator + Send>) -> *const Table {
    author::export(|| Box::new(Exported { version: version.to_owned(), isolator: Mutex::new(make()) }))
}

/// Which flag of the table stands for a kind of container.
pub fn flag(kind: Kind) -> u64 {
    match kind {
        Kind::Oci => CORACLE_ISOLATOR_OCI,
        Kind::Pod => CORACLE_ISOLATOR_POD,
        Kind::Nested => CORACLE_ISOLATOR_NESTED,
        Kind::Debug => CORACLE_ISOLATOR_DEBUG,
    }
}

struct Exported {
    version: String,
    isolator: Mutex<Box<dyn Isolator + Send>>,
}

impl Author for Exported {
    fn about(&self) -> About {
        let isolator = self.isolator.lock().unwrap_or_else(PoisonError::into_inner);
        let owned = |names: Vec<&str>| names.into_iter().map(str::to_owned).collect();
        About {
            name: isolator.name().to_owned(),
            version: self.version.clone(),
            after: owned(isolator.after()),
            before: owned(isolator.before()),
            flags: Kind::ALL.into_iter().filter(|kind| isolator.supports(*kind)).map(flag).sum(),
        }
    }

    fn call(&self, verb: Verb, given: &Given<'_>) -> std::result::Result<Returned, Failure> {
        let mut isolator = self.isolator.lock().unwrap_or_else(PoisonError::into_inner);
        let made = match &given.container {
            None => with_text(&mut **isolator, verb, given),
            Some(container) => with_container(&**isolator, verb, given.text, container),
        };
        made.map_err(|e| Failure { errno: e.errno().map_or(0, |errno| errno as i32), why: e.to_string() })
    }
}

fn with_text(isolator: &mut dyn Isolator, verb: Verb, given: &Given<'_>) -> Result<Returned> {
    let text = given.text;
    match verb {
        Verb::Configure => {
            isolator.states_are_in(Path::new(given.states));
            isolator.configure(&parse(text)?).map(|()| nothing())
        }
        Verb::Recover => isolator.recover(&parse(text)?).map(|()| nothing()),
        Verb::Prepare => isolator.prepare(&parse::<ConfigDocument>(text)?.lend()).and_then(|a| document(&a)),
        Verb::Process => isolator.process(&parse::<ConfigDocument>(text)?.lend()).and_then(|a| document(&a)),
        Verb::Validate => isolator.validate(&parse(text)?).map(|()| nothing()),
        Verb::GiveBack => isolator.give_back(text).map(|()| nothing()),
        Verb::Provide => isolator.provide(&parse::<ConfigDocument>(text)?.lend()).map(|()| nothing()),
        Verb::Cleanup => isolator.cleanup(text).map(|()| nothing()),
        other => Err(Error::new(format!("{} is given no container", other.name()))),
    }
}

fn with_container(
    isolator: &dyn Isolator,
    verb: Verb,
    text: &str,
    container: &Container<'_>,
) -> Result<Returned> {
    let spec = parse(container.spec)?;
    let cgroup = cgroup(container)?;
    let handles = Handles { id: container.id, pidfd: container.pidfd, cgroup: &cgroup, spec: &spec };
    match verb {
        Verb::Isolate => isolator.isolate(&handles).map(|()| nothing()),
        Verb::Join => isolator.join(&handles).map(|()| nothing()),
        Verb::Watch => isolator.watch(&handles).map(|fd| Returned { fd, ..nothing() }),
        Verb::Limitation => {
            isolator.limitation(&handles)?.map_or_else(|| Ok(nothing()), |limitation| document(&limitation))
        }
        Verb::Update => isolator.update(&handles, &parse(text)?).map(|()| nothing()),
        Verb::UpdateIntelRdt => isolator.update_intel_rdt(&handles, &parse(text)?).map(|()| nothing()),
        Verb::Usage => isolator.usage(&handles).and_then(|usage| document(&usage)),
        Verb::Status => isolator.status(&handles).and_then(|status| document(&status)),
        other => Err(Error::new(format!("{} is given a container", other.name()))),
    }
}

fn nothing() -> Returned {
    Returned::default()
}

fn parse<T: DeserializeOwned>(text: &str) -> Result<T> {
    serde_json::from_str(text).map_err(|e| Error::new(format!("the host's document is malformed: {e}")))
}

fn document(value: &impl Serialize) -> Result<Returned> {
    let text = serde_json::to_string(value).map_err(|e| Error::new(e.to_string()))?;
    Ok(Returned { text, ..nothing() })
}

/// The group with descriptors of its own: those of the call end with it.
fn cgroup(container: &Container<'_>) -> Result<Cgroup> {
    let own = |fd: &BorrowedFd<'_>| fd.try_clone_to_owned().map_err(|e| Error::new(e.to_string()));
    let names = |controllers: &str| controllers.split(',').map(str::to_owned).collect();
    let dirs = container.cgroups.iter().map(|(controllers, fd)| Ok((names(controllers), own(fd)?)));
    let version = if container.cgroup_version == 2 { CgroupVersion::V2 } else { CgroupVersion::V1 };
    Ok(Cgroup::new(version, dirs.collect::<Result<_>>()?))
}
