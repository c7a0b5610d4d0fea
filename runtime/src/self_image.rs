//! Keeps containers from writing to the runtime's own executable (CVE-2019-5736).
//!
//! A process that enters a container shows its executable there as `/proc/PID/exe`, and a container's root could
//! open it for writing once nobody executes it any more. So the runtime, before it does anything else, executes
//! itself again through a detached read-only mount of its own file, through which nobody can write; where that
//! is not allowed, from a sealed copy in memory. It costs one execve(2), which also leaves the caller's environment
//! behind: a privileged container could read it as `/proc/PID/environ` while a process of the runtime is inside.

use std::ffi::{CString, OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use coracle_sys::file::{self, Resolve};
use coracle_sys::mount::{self, Attributes, attr};
use coracle_sys::{descriptor, memfd, process};

use crate::error::{Code, Context, Error, Result};

/// Where the executable was before it was executed again.
const ORIGIN: &str = "_CORACLE_ORIGIN";

/// The variables that the runtime itself goes by; it keeps no others but those that a caller of [`protect`] names.
const ENVIRONMENT: [&str; 7] = [
    "PATH",
    "XDG_RUNTIME_DIR",
    "DBUS_SESSION_BUS_ADDRESS",
    "CORACLE_STORE",
    "LISTEN_FDS",
    "LISTEN_PID",
    "NOTIFY_SOCKET",
];

/// What the environment says of these, where there is more in it, too.
pub fn kept() -> impl Iterator<Item = (&'static str, OsString)> {
    ENVIRONMENT.into_iter().filter_map(|name| std::env::var_os(name).map(|value| (name, value)))
}

/// The runtime's own mask for new files: what it makes has the mode that is asked for, whatever mask the caller has.
pub const UMASK: u32 = 0o022;

/// Returns when the running executable can't be written to by anybody it meets, and nobody can look into the
/// process. Of the descriptors that the caller left open, those of `preserve` are kept for the container, and one that `read` names (`/dev/fd/63`) until it is read; the others will not outlive the next execve(2).
/// Of its environment only what the runtime goes by is kept, and those of `variables` that are names.
///
/// # Errors
/// `System` where the kernel allows neither way.
pub fn protect(preserve: &[i32], read: Option<&Path>, variables: &[String]) -> Result<()> {
    descriptor::open_streams()?;
    coracle_sys::identity::set_umask(UMASK);
    let own = file::open(file::CWD, "/proc/self/exe", libc::O_PATH, 0, Resolve::Host)
        .context(|| "opening the runtime's own executable")?;
    // A caller who says so, too, of a file that is read-only anyway, just keeps its own environment.
    let was_executed_again = std::env::var_os(ORIGIN).is_some();
    let is_protected = is_protected(own.as_fd())?;
    if is_protected && was_executed_again {
        // The kept ones, too: hooks get none of them, and the container's process asks for them by number.
        descriptor::close_on_exec_from(3)?;
        return Ok(process::undumpable()?);
    }
    descriptor::close_on_exec_from(3)?;
    let read = read.and_then(named_descriptor).filter(|fd| descriptor::is_open(*fd));
    for fd in preserve.iter().copied().chain(read) {
        descriptor::keep_on_exec(fd)?;
    }
    if was_executed_again && is_image(&file::read_link(file::CWD, "/proc/self/exe")?) {
        return Err(Error::new(Code::System, "the runtime's own executable can still be written to"));
    }
    let image = if is_protected { own } else { read_only(own.as_fd()).or_else(|_| sealed())? };
    let args: Vec<CString> = std::env::args_os().filter_map(|a| CString::new(a.into_vec()).ok()).collect();
    let origin = file::read_link(file::CWD, "/proc/self/exe")?;
    let own_variable = [ORIGIN.as_bytes(), b"=", origin.as_bytes()].concat();
    let names = ENVIRONMENT.into_iter().chain(variables.iter().map(String::as_str));
    let names = names.filter(|name| !name.contains(['=', '\0']) && !name.is_empty());
    let kept = names.filter_map(|name| std::env::var_os(name).map(|value| (name, value)));
    let env = kept.map(|(name, value)| [name.as_bytes(), b"=", value.as_bytes()].concat());
    let env: Vec<CString> = env.chain([own_variable]).filter_map(|v| CString::new(v).ok()).collect();
    Err(process::execute_fd(image.as_fd(), &args, &env)).context(|| "executing the runtime's protected image")
}

/// The descriptor that `path` is a name of.
fn named_descriptor(path: &Path) -> Option<i32> {
    let number = ["/dev/fd", "/proc/self/fd"].iter().find_map(|dir| path.strip_prefix(dir).ok())?;
    number.to_str()?.parse().ok().filter(|fd| *fd > 2)
}

fn is_protected(own: BorrowedFd<'_>) -> Result<bool> {
    Ok(file::is_read_only(own)? || file::file_system(own)? == nix::sys::statfs::TMPFS_MAGIC && sealed_self())
}

fn sealed_self() -> bool {
    let own = file::open(file::CWD, "/proc/self/exe", libc::O_RDONLY, 0, Resolve::Host);
    own.is_ok_and(|own| memfd::is_sealed(own.as_fd()))
}

fn read_only(own: BorrowedFd<'_>) -> coracle_sys::Result<OwnedFd> {
    let image = mount::clone_tree(own, Path::new(""), false)?;
    let attributes = Attributes { set: attr::RDONLY | attr::NOSUID, ..Attributes::default() };
    mount::set_attributes(image.as_fd(), attributes, false)?;
    Ok(image)
}

fn sealed() -> coracle_sys::Result<OwnedFd> {
    let own = file::open(file::CWD, "/proc/self/exe", libc::O_RDONLY, 0, Resolve::Host)?;
    memfd::sealed_copy(own.as_fd(), "coracle")
}

/// The path that the runtime was started from: the programs that belong to it are beside it.
///
/// # Errors
/// Where procfs is not mounted.
pub fn origin() -> Result<PathBuf> {
    let own = file::read_link(file::CWD, "/proc/self/exe")?;
    // Of an installed file the caller may say what it likes: sudo(8), too, can let variables through.
    let origin = std::env::var_os(ORIGIN).filter(|_| is_image(&own));
    Ok(origin.unwrap_or(own).into())
}

/// Whether `path`, which procfs calls the running executable by, is that of an image that the runtime made of itself: the root
/// of a detached mount, or a sealed copy in memory.
fn is_image(path: &OsStr) -> bool {
    path == "/" || path.as_bytes().starts_with(b"/memfd:") && sealed_self()
}

/// Becomes the program `name`, which is installed beside the runtime.
///
/// # Errors
/// Where it is not.
pub fn hand_over(name: &str, args: Vec<OsString>) -> Error {
    let attempt = || -> Result<Error> {
        let program = c_string(origin()?.with_file_name(name).into_os_string())?;
        let args: Vec<CString> = std::iter::once(Ok(program.clone()))
            .chain(args.into_iter().map(c_string))
            .collect::<Result<_>>()?;
        let env: Vec<CString> = std::env::vars_os()
            .map(|(mut key, value)| {
                key.push("=");
                key.push(value);
                c_string(key)
            })
            .collect::<Result<_>>()?;
        Ok(Error::from(process::execute(&program, &args, &env)).hint("it is installed beside coracle"))
    };
    attempt().unwrap_or_else(|error| error)
}

fn c_string(text: OsString) -> Result<CString> {
    CString::new(text.into_vec()).map_err(|_| Error::new(Code::Usage, "an argument holds a NUL byte"))
}
