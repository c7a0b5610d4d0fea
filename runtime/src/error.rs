//! What users and their programs are told when something fails.
//!
//! An error is made where the failure is seen, gets its context on the way up ("creating container \"web\""),
//! crosses from the container's child to the runtime as it is, and is printed once, in `main`.

use std::fmt;

use coracle_sys as sys;
use serde::{Deserialize, Serialize};

/// The result of everything that can fail.
pub type Result<T> = std::result::Result<T, Error>;

/// What kind of failure it is: stable, for programs (`code` in JSON).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Code {
    /// The command line can't be understood.
    Usage,
    /// The bundle's `config.json` is missing, malformed or contradicts itself.
    InvalidSpec,
    /// A field of the spec that this version doesn't honour, or that this kernel can't.
    Unsupported,
    /// There is no such container or image.
    NotFound,
    /// The container's ID is taken.
    Exists,
    /// The container is in a state that doesn't allow the command.
    IllegalState,
    /// The program is not in the container.
    ProgramNotFound,
    /// The program is there but can't be executed.
    ProgramNotExecutable,
    /// An image is malformed, corrupt or larger than what is accepted.
    Image,
    /// An isolator refused or failed.
    Isolator,
    /// A hook failed.
    Hook,
    /// A system call failed.
    System,
}

impl Code {
    /// The exit code of a `run` that failed, from which shells and schedulers tell a missing program; 1 for all else,
    /// as other commands.
    pub fn of_run(self) -> u8 {
        match self {
            Self::ProgramNotFound => 127,
            Self::ProgramNotExecutable => 126,
            _ => 1,
        }
    }
}

/// A failure, for a person (its `Display`) and for a program (its JSON).
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Error {
    code: Code,
    /// What was being done, innermost first.
    doing: Vec<String>,
    why: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    syscall: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    errno: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    hint: Option<String>,
}

impl Error {
    /// A failure of kind `code`, because of `why`.
    pub fn new(code: Code, why: impl Into<String>) -> Self {
        Self { code, doing: Vec::new(), why: why.into(), syscall: None, errno: None, hint: None }
    }

    /// A failure that a library tells of as `why`, and that no caller can do anything about.
    pub fn system(why: impl fmt::Display) -> Self {
        Self::new(Code::System, why.to_string())
    }

    /// That `signal` came, which asks the command to end.
    pub fn interrupted(signal: i32) -> Self {
        Self::new(Code::System, format!("it was interrupted by {}", sys::process::signal_name(signal)))
    }

    /// That the container has no process that the command could act on, in runc's words, which clients look for.
    pub fn not_running() -> Self {
        Self::new(Code::IllegalState, "container not running")
    }

    /// The same with the way out, after those it has already.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        let hint = hint.into();
        self.hint = Some(self.hint.map_or(hint.clone(), |first| format!("{first}; {hint}")));
        self
    }

    /// The same with each of its texts cut to at most `most` characters: what a container's configuration or image
    /// names can be of any length.
    #[must_use]
    pub fn cut(mut self, most: usize) -> Self {
        for text in
            self.doing.iter_mut().chain([&mut self.why]).chain(&mut self.syscall).chain(&mut self.hint)
        {
            if let Some((end, _)) = text.char_indices().nth(most) {
                text.truncate(end);
                text.push('…');
            }
        }
        self
    }

    /// The same with what was being done.
    #[must_use]
    pub fn doing(mut self, doing: impl Into<String>) -> Self {
        self.doing.push(doing.into());
        self
    }

    /// The same in other words than the system call's.
    #[must_use]
    pub fn because(mut self, why: impl Into<String>) -> Self {
        self.why = why.into();
        self
    }

    /// The same as another kind of failure.
    #[must_use]
    pub fn code_is(mut self, code: Code) -> Self {
        self.code = code;
        self
    }

    /// What kind of failure it is.
    pub fn code(&self) -> Code {
        self.code
    }

    /// The errno of the system call that failed, where one did.
    pub fn errno(&self) -> Option<sys::Errno> {
        self.errno.map(sys::Errno::from_raw)
    }

    /// The failure as one JSON object: `level`, `time` and `msg` as runc's clients expect them in a log, and
    /// `code`, `phase`, `syscall`, `errno`, `hint` for programs that want to know.
    pub fn to_json(&self, time: &str) -> serde_json::Value {
        let mut object = serde_json::json!({
            "level": "error", "time": time, "msg": self.to_string(), "code": self.code,
        });
        let phase = self.doing.last();
        let errno = self.errno().map(|e| format!("{e:?}"));
        for (key, value) in [
            ("phase", phase),
            ("syscall", self.syscall.as_ref()),
            ("errno", errno.as_ref()),
            ("hint", self.hint.as_ref()),
        ] {
            if let Some(value) = value {
                object[key] = value.as_str().into();
            }
        }
        object
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
        Self {
            syscall: Some(error.syscall().to_owned()),
            errno: Some(error.errno() as i32),
            hint: (error.errno() == sys::Errno::EMFILE)
                .then(|| "raise the limit of open files (ulimit -n)".to_owned()),
            ..Self::new(Code::System, error.to_string())
        }
    }
}

impl From<coracle_isolator::Error> for Error {
    fn from(error: coracle_isolator::Error) -> Self {
        Self {
            syscall: error.syscall().map(str::to_owned),
            errno: error.errno().map(|errno| errno as i32),
            ..Self::new(Code::Isolator, error.to_string())
        }
    }
}

impl From<coracle_image::Error> for Error {
    fn from(error: coracle_image::Error) -> Self {
        use coracle_image::Kind;
        let code = match error.kind() {
            Kind::Usage => Code::Usage,
            Kind::NotFound | Kind::NoImage | Kind::NotUnpacked => Code::NotFound,
            Kind::Exists => Code::Exists,
            Kind::Unsupported => Code::Unsupported,
            Kind::Malformed | Kind::Corrupt | Kind::Limit => Code::Image,
            Kind::System | Kind::Network | Kind::Denied => Code::System,
        };
        Self {
            syscall: error.call().map(|call| call.syscall().to_owned()),
            errno: error.errno().map(|errno| errno as i32),
            ..Self::new(code, error.to_string())
        }
    }
}

/// Adds to a failure what was being done.
pub trait Context<T> {
    /// Adds what `doing` says, such as "creating container \"web\"".
    ///
    /// # Errors
    /// The same failure, with its context.
    fn context<S: Into<String>>(self, doing: impl FnOnce() -> S) -> Result<T>;
}

impl<T, E: Into<Error>> Context<T> for std::result::Result<T, E> {
    fn context<S: Into<String>>(self, doing: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|error| error.into().doing(doing()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure() -> Error {
        let call = sys::Error::new("openat2([3], \"rootfs\")", sys::Errno::ENOENT);
        let result: Result<()> =
            Err::<(), _>(call).context(|| "opening the root").context(|| "creating \"web\"");
        result.unwrap_err()
    }

    #[test]
    fn an_error_reads_from_the_outside_in() {
        let expected =
            "creating \"web\": opening the root: openat2([3], \"rootfs\"): no such file or directory";
        assert_eq!(failure().to_string(), expected);
    }

    #[test]
    fn a_hint_comes_last() {
        let error = Error::new(Code::Usage, "no such command").hint("see coracle help");
        assert_eq!(error.to_string(), "no such command; see coracle help");
    }

    #[test]
    fn json_keeps_call_and_errno() {
        let json = failure().to_json("now");
        assert_eq!(json["syscall"], "openat2");
        assert_eq!(json["errno"], "ENOENT");
        assert_eq!(json["code"], "system");
        assert_eq!(json["phase"], "creating \"web\"");
    }

    #[test]
    fn an_error_survives_the_way_out_of_the_child() {
        let sent = serde_json::to_vec(&failure()).unwrap();
        let received: Error = serde_json::from_slice(&sent).unwrap();
        assert_eq!(received.to_string(), failure().to_string());
    }
}
