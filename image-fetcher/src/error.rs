//! What users and their programs are told when something about an image fails.
//!
//! An error is made where the failure is seen and gets its context on the way up ("unpacking \"web\": layer
//! sha256:…: "). It is printed once, in `main`.

use std::fmt;

use coracle_sys as sys;

/// The result of everything that can fail.
pub type Result<T> = std::result::Result<T, Error>;

/// What kind of failure it is, for callers that act on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The command line or an option can't be understood.
    Usage,
    /// There is no such user, file or blob.
    NotFound,
    /// The store has no such image.
    NoImage,
    /// The image is in the store, but its layers are not unpacked yet.
    NotUnpacked,
    /// The name is taken.
    Exists,
    /// A document, archive or layer is malformed, or contradicts itself.
    Malformed,
    /// Bytes are not what their digest or size says.
    Corrupt,
    /// Something is larger than this program accepts.
    Limit,
    /// Something valid that this version doesn't do.
    Unsupported,
    /// A registry can't be reached, or doesn't do what it should.
    Network,
    /// A registry refuses, or what it asks for is not safe to do.
    Denied,
    /// A system call failed.
    System,
}

/// A failure: what was being done, and why it failed.
#[derive(Debug, Clone)]
pub struct Error {
    kind: Kind,
    /// What was being done, innermost first.
    doing: Vec<String>,
    why: String,
    call: Option<sys::Error>,
    hint: Option<String>,
}

impl Error {
    /// A failure of kind `kind`, because of `why`.
    pub fn new(kind: Kind, why: impl Into<String>) -> Self {
        Self { kind, doing: Vec::new(), why: why.into(), call: None, hint: None }
    }

    /// The same with the way out.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// What kind of failure it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The system call that failed, where one did.
    pub fn call(&self) -> Option<&sys::Error> {
        self.call.as_ref()
    }

    /// The errno of the system call that failed, where one did.
    pub fn errno(&self) -> Option<sys::Errno> {
        self.call.as_ref().map(sys::Error::errno)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for doing in self.doing.iter().rev() {
            write!(f, "{doing}: ")?;
        }
        f.write_str(&self.why)?;
        self.hint.as_ref().map_or(Ok(()), |hint| write!(f, "; {hint}"))
    }
}

impl std::error::Error for Error {}

impl From<sys::Error> for Error {
    fn from(error: sys::Error) -> Self {
        Self { call: Some(error.clone()), ..Self::new(Kind::System, error.to_string()) }
    }
}

/// Adds to a failure what was being done.
pub trait Context<T> {
    /// Adds what `doing` says, such as "importing \"web.tar\"".
    ///
    /// # Errors
    /// The same failure, with its context.
    fn context<S: Into<String>>(self, doing: impl FnOnce() -> S) -> Result<T>;
}

impl<T, E: Into<Error>> Context<T> for std::result::Result<T, E> {
    fn context<S: Into<String>>(self, doing: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|error| {
            let mut error = error.into();
            error.doing.push(doing().into());
            error
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_reads_from_the_outside_in_and_ends_with_the_hint() {
        let error = Error::new(Kind::NotFound, "no such image").hint("see coracle-image ls");
        let error = Err::<(), _>(error).context(|| "unpacking \"web\"").unwrap_err();
        assert_eq!(error.to_string(), "unpacking \"web\": no such image; see coracle-image ls");
    }

    #[test]
    fn a_system_call_keeps_its_errno() {
        let error = Error::from(sys::Error::new("openat2([3], \"x\")", sys::Errno::ENOENT));
        assert_eq!(error.errno(), Some(sys::Errno::ENOENT));
        assert_eq!(error.to_string(), "openat2([3], \"x\"): no such file or directory");
    }
}
