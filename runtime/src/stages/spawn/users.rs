//! Mapping the users and groups of a new user namespace.

use coracle_sys::users::{self, Why};

use crate::error::{Code, Context, Error, Result};
use crate::stages::plan::namespaces::Namespaces;

/// Writes the ID maps of the new user namespace of the child `pid`; nothing where there is none. The child can't have
/// been awaited, so its PID is still its own.
///
/// # Errors
/// `EPERM` where an ID is not the caller's to map.
pub fn map(pid: i32, namespaces: &Namespaces) -> Result<()> {
    if !namespaces.new_user() {
        return Ok(());
    }
    users::map(pid, &namespaces.uid_map, &namespaces.gid_map).or_else(|refused| {
        let error = match refused.why {
            Why::Call(error) => Error::from(error),
            Why::Said(said) => Error::new(Code::System, said),
        };
        let field = if refused.groups { "/linux/gidMappings" } else { "/linux/uidMappings" };
        Err(error.hint(refused.hint)).context(|| field)
    })
}
