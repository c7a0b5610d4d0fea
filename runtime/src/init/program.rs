//! The user's program: where it is, in which directory it starts, and what its streams belong to.

use std::ffi::CString;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use coracle_sys::file::{self, Resolve};
use coracle_sys::{Errno, namespace};

use crate::error::{Code, Context, Error, Result};
use crate::stages::plan::process::ProcessPlan;

/// Changes to the working directory as root; returns whether it could. One that its owner alone may enter, and root may
/// not (of a network file system, or another's FUSE), is for the user to change to.
pub(super) fn could_change_dir(plan: &ProcessPlan) -> Result<bool> {
    match change_dir(&plan.cwd) {
        Err(e) if e.errno() == Some(Errno::EACCES) && plan.uid != 0 => Ok(false),
        changed => changed.map(|()| true),
    }
}

/// Changes to the working directory, and makes sure that it is inside the container: a path like
/// `/proc/self/fd/7` could lead to a directory of the host (CVE-2024-21626).
pub(super) fn change_dir(cwd: &Path) -> Result<()> {
    namespace::change_dir(cwd).context(|| "changing to the working directory (/process/cwd)")?;
    if namespace::is_inside()? {
        return Ok(());
    }
    Err(Error::new(Code::InvalidSpec, format!("/process/cwd {cwd:?} leads out of the container")))
}

/// Looks for the program as execvp(3) would, with the container's own `PATH`: all that may be meant, since only execve(2)
/// tells what this user may execute. `is_there` says whether the working directory is the one that relative names are
/// looked up in.
pub(super) fn find(plan: &ProcessPlan, is_there: bool) -> Result<Vec<CString>> {
    let name = &plan.args[0];
    if !is_there && name.contains('/') && !name.starts_with('/') {
        return Ok(vec![c_string(name.as_bytes())?]);
    }
    let (mut denied, mut found) = (false, Vec::new());
    let candidates: Vec<PathBuf> = if name.contains('/') {
        vec![name.into()]
    } else {
        path_of(&plan.env)
            .split(':')
            .map(|dir| Path::new(if dir.is_empty() { "." } else { dir }).join(name))
            .collect()
    };
    for candidate in &candidates {
        match executable(candidate) {
            Ok(()) => found.push(c_string(candidate.as_os_str().as_bytes())?),
            Err(Errno::EACCES) => denied = true,
            // One on the way is passed over, as a shell does.
            Err(Errno::EISDIR) => denied |= name.contains('/'),
            Err(_) => {}
        }
    }
    if !found.is_empty() {
        return Ok(found);
    }
    let doing = format!("executing {name:?}");
    let error = match (denied, name.contains('/')) {
        (true, _) => Error::new(Code::ProgramNotExecutable, "permission denied"),
        (false, true) => Error::new(Code::ProgramNotFound, format!("stat {name}: no such file or directory")),
        (false, false) => Error::new(Code::ProgramNotFound, "executable file not found in $PATH"),
    };
    Err(error).context(|| doing)
}

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

fn path_of(env: &[String]) -> &str {
    env.iter().rev().find_map(|v| v.strip_prefix("PATH=")).unwrap_or(DEFAULT_PATH)
}

/// Whether `path` is a file that somebody may execute. Whether this user may is said by execve(2) itself.
fn executable(path: &Path) -> std::result::Result<(), Errno> {
    let fd = file::open(file::CWD, path, libc::O_PATH, 0, Resolve::Host).map_err(|e| e.errno())?;
    let mode = file::stat(fd.as_fd()).map_err(|e| e.errno())?.st_mode;
    match mode & libc::S_IFMT {
        libc::S_IFREG if mode & 0o111 != 0 => Ok(()),
        libc::S_IFDIR => Err(Errno::EISDIR),
        _ => Err(Errno::EACCES),
    }
}

/// The user's words for a failed execve(2), and its exit code.
pub(super) fn explain(name: &str, error: coracle_sys::Error) -> Error {
    let errno = error.errno();
    let explained = Error::from(error).because(format!("exec {name}: {}", coracle_sys::error::reason(errno)));
    let explained = match errno {
        Errno::ENOENT => explained
            .code_is(Code::ProgramNotFound)
            .hint("the interpreter or loader that it names is missing"),
        Errno::EACCES => explained.code_is(Code::ProgramNotExecutable),
        Errno::ENOEXEC => explained
            .code_is(Code::ProgramNotExecutable)
            .hint("it is for another machine, or a script without #!"),
        _ => explained,
    };
    explained.doing(format!("executing {name:?}"))
}

/// Gives pipes among the standard streams to the user, who could not open `/dev/stdout` else. Nothing else: a file, FIFO or
/// device of the host keeps its owner (CVE-2026-88265), and so does the caller's terminal, which the host's user of that
/// number could read from then on. The container's own terminal is the user's already.
pub(super) fn own_streams(plan: &ProcessPlan) -> Result<()> {
    if plan.uid == 0 {
        return Ok(());
    }
    let (stdin, stdout, stderr) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
    for stream in [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()] {
        if file::file_system(stream)? == PIPEFS_MAGIC {
            match file::chown(stream, plan.uid, u32::MAX) {
                Err(e) if !matches!(e.errno(), Errno::EPERM | Errno::EINVAL | Errno::EROFS) => {
                    return Err(e).context(|| "giving the standard streams to the user");
                }
                _ => {}
            }
        }
    }
    Ok(())
}

/// Where pipes without a name are (linux/magic.h).
const PIPEFS_MAGIC: file::FsType = file::FsType(0x5049_5045);

/// The environment of the process: what the configuration says, and `HOME` where it says nothing or leaves it empty,
/// as runc's users have it. With `listen_fds` sockets to listen on, what sd_listen_fds(3) asks for.
pub(super) fn environment(plan: &ProcessPlan, listen_fds: u32) -> Result<Vec<CString>> {
    let mut env = strings(&plan.env)?;
    if listen_fds > 0 {
        env.push(c_string(format!("LISTEN_FDS={listen_fds}").as_bytes())?);
        env.push(c_string(format!("LISTEN_PID={}", std::process::id()).as_bytes())?);
    }
    env.retain(|variable| variable.as_bytes() != b"HOME=");
    if !plan.env.iter().any(|variable| variable.starts_with("HOME=") && variable != "HOME=") {
        let root = file::open_dir("/")?;
        let home = coracle_image::bundle::home(root.as_fd(), plan.uid).context(|| "looking for HOME")?;
        env.push(c_string(format!("HOME={home}").as_bytes())?);
    }
    Ok(env)
}

/// `strings` as the kernel wants them.
pub(super) fn strings(strings: &[String]) -> Result<Vec<CString>> {
    strings.iter().map(|s| c_string(s.as_bytes())).collect()
}

fn c_string(bytes: &[u8]) -> Result<CString> {
    CString::new(bytes).map_err(|_| Error::new(Code::InvalidSpec, "a string holds a NUL byte"))
}
