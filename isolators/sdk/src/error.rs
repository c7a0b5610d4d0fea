//! Why a call of an isolator failed.

use std::fmt;

use nix::errno::Errno;

/// The result of an isolator's call.
pub type Result<T> = std::result::Result<T, Error>;

/// A failure, told once: which isolator, doing what, to which field of the specification, which system call,
/// why, and what may help.
///
/// An author makes one with [`Error::new`] or [`Error::failed`]; the isolator's name and the call are filled
/// in by the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error(Box<Parts>);

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Parts {
    isolator: Option<String>,
    call: Option<&'static str>,
    field: Option<String>,
    what: String,
    path: Option<String>,
    errno: Option<Errno>,
    /// The errno of a failure whose words tell the reason already.
    told: Option<Errno>,
    hint: Option<String>,
}

impl Error {
    /// A failure that no system call gave, in the author's words: lower case, no full stop.
    pub fn new(what: impl Into<String>) -> Self {
        Self(Box::new(Parts { what: what.into(), ..Parts::default() }))
    }

    /// The failure `errno` of the system call `text`, written as strace would: `write("cpu.max", "0 0")`.
    pub fn failed(text: impl Into<String>, errno: Errno) -> Self {
        Self(Box::new(Parts { what: text.into(), errno: Some(errno), ..Parts::default() }))
    }

    /// The failure of an isolator in another process: `words` are all that there is to say, `errno` is for programs.
    pub fn relayed(words: impl Into<String>, errno: Option<Errno>) -> Self {
        Self(Box::new(Parts { what: words.into(), told: errno, ..Parts::default() }))
    }

    /// The same failure, with the field of the specification that led to it: `linux.resources.cpu.shares`.
    #[must_use]
    pub fn at(mut self, field: impl Into<String>) -> Self {
        self.0.field.get_or_insert(field.into());
        self
    }

    /// The same failure, with its field, if it has one, below the field `parent`: what is wrong in an item of a list is
    /// told by who knows the item, and where the item stands by who knows the list.
    #[must_use]
    pub fn below(mut self, parent: &str) -> Self {
        self.0.field = Some(self.0.field.map_or(parent.to_owned(), |field| format!("{parent}/{field}")));
        self
    }

    /// The same failure, with the file it is about.
    #[must_use]
    pub fn on_path(mut self, path: impl Into<String>) -> Self {
        self.0.path = Some(path.into());
        self
    }

    /// The same failure, with what may help.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    /// The same failure, with the isolator that met it and the call it was in; the innermost naming stays.
    #[must_use]
    pub fn in_call(mut self, isolator: &str, call: &'static str) -> Self {
        if self.0.isolator.is_none() {
            self.0.isolator = Some(isolator.to_owned());
            self.0.call = Some(call);
        }
        self
    }

    /// The isolator that failed, once the host has named it.
    pub fn isolator(&self) -> Option<&str> {
        self.0.isolator.as_deref()
    }

    /// The call of the contract that failed: `prepare`, `isolate` …
    pub fn call(&self) -> Option<&str> {
        self.0.call
    }

    /// The field of the specification that led to the failure.
    pub fn field(&self) -> Option<&str> {
        self.0.field.as_deref()
    }

    /// The name of the system call alone, where one failed.
    pub fn syscall(&self) -> Option<&str> {
        self.0.errno.and(self.0.what.split('(').next())
    }

    /// The system call's reason.
    pub fn errno(&self) -> Option<Errno> {
        self.0.errno.or(self.0.told)
    }

    /// The file it is about.
    pub fn path(&self) -> Option<&str> {
        self.0.path.as_deref()
    }

    /// What may help.
    pub fn hint(&self) -> Option<&str> {
        self.0.hint.as_deref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = &self.0;
        if let (Some(isolator), Some(call)) = (&parts.isolator, parts.call) {
            write!(f, "isolator {isolator} could not {call}: ")?;
        }
        if let Some(field) = &parts.field {
            write!(f, "{field}: ")?;
        }
        f.write_str(&parts.what)?;
        if let Some(errno) = parts.errno {
            write!(f, ": {}", Reason(errno))?;
        }
        match &parts.hint {
            Some(hint) => write!(f, "; {hint}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {}

/// The words for an error number, in lower case as the clients of container runtimes look for them.
struct Reason(Errno);

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = self.0.desc();
        let first_word = words.split(' ').next().unwrap_or_default();
        // An abbreviation, as in "I/O error", keeps its capitals.
        if first_word.len() > 1 && first_word.chars().skip(1).any(char::is_uppercase) {
            return f.write_str(words);
        }
        let (first, rest) = words.split_at(words.chars().next().map_or(0, char::len_utf8));
        write!(f, "{}{rest}", first.to_lowercase())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_isolator_the_call_the_field_the_system_call_the_reason_and_the_hint() {
        let error = Error::failed("write(\"memory.limit_in_bytes\", \"4096\")", Errno::EBUSY)
            .at("/linux/resources/memory/limit")
            .with_hint("memory limit too low?")
            .in_call("cgroups/memory", "isolate");
        assert_eq!(
            error.to_string(),
            "isolator cgroups/memory could not isolate: /linux/resources/memory/limit: \
             write(\"memory.limit_in_bytes\", \"4096\"): device or resource busy; memory limit too low?"
        );
        assert_eq!(error.syscall(), Some("write"));
        assert_eq!(error.isolator(), Some("cgroups/memory"));
        assert_eq!(error.errno(), Some(Errno::EBUSY));
    }

    #[test]
    fn a_failure_without_a_system_call_is_its_words_alone() {
        let error = Error::new("soft limit above hard limit");
        assert_eq!(error.to_string(), "soft limit above hard limit");
        assert_eq!(error.syscall(), None);
    }

    #[test]
    fn the_innermost_isolator_and_field_stay_named() {
        let error = Error::new("no").in_call("a", "prepare").in_call("b", "validate").at("x").at("y");
        assert_eq!(error.to_string(), "isolator a could not prepare: x: no");
    }

    #[test]
    fn abbreviations_keep_their_capitals() {
        assert_eq!(Error::failed("read(3)", Errno::EIO).to_string(), "read(3): I/O error");
    }
}
