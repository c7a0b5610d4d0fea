//! CRIU, which writes processes to files and makes them again (criu(8)): a program of its own, that the operator installs.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use coracle_sys::file::{self, Resolve};
use coracle_sys::mount::{self, Attributes, Propagation};
use coracle_sys::process::{self, Exit};
use coracle_sys::signal;

use crate::cgroup::Tree;
use crate::error::{Code, Context, Error, Result};
use crate::stages::plan::Launch;
use crate::stages::plan::mounts::Source;

/// The longest log of CRIU that is searched for errors, in bytes.
const LONGEST_LOG: u64 = 64 << 20;

/// The file among the images that tells what a container's first three descriptors were.
const STREAMS: &str = "descriptors.json";

/// A call of CRIU.
#[derive(Debug)]
pub struct Call<'a> {
    /// The program's name or path (`--criu`).
    pub program: &'a str,
    /// The directory of the images.
    pub images: &'a Path,
    /// The directory of the logs.
    pub work: &'a Path,
    /// What is done: `dump`, `pre-dump` or `restore`.
    pub verb: &'a str,
    /// Its options.
    pub options: Vec<String>,
}

impl Call<'_> {
    /// Runs it and waits for its end. With `root` in a mount namespace of its own, in which that directory is a mount,
    /// as CRIU wants the root of what it restores, and then not beyond the caller's end: nobody would have what it makes. One that
    /// dumps goes on, since it must let go of the processes that it has stopped. With `cgroups` in those, where what it restores stays.
    ///
    /// # Errors
    /// `Unsupported` where CRIU is not installed, `System` with CRIU's own words where it fails.
    pub fn run(&self, root: Option<&Path>, cgroups: Option<&Tree>) -> Result<()> {
        let program = find(self.program)?;
        let log = format!("{}.log", self.verb);
        let mut args = vec![self.program.to_owned(), self.verb.to_owned()];
        args.extend(["-D".to_owned(), text(self.images)?, "-W".to_owned(), text(self.work)?]);
        args.extend(["-o".to_owned(), log.clone(), "-v4".to_owned()]);
        args.extend(self.options.iter().cloned());
        let args = args.into_iter().map(c_string).collect::<Result<Vec<_>>>()?;
        let env = std::env::vars_os().map(|(name, value)| [name.as_bytes(), b"=", value.as_bytes()].concat());
        let env = env.filter_map(|variable| CString::new(variable).ok()).collect::<Vec<_>>();
        let namespaces = if root.is_some() { libc::CLONE_NEWNS } else { 0 };
        let child = process::spawn(namespaces, cgroups.and_then(Tree::unified), || {
            let ready = signal::reset_signals().map_err(Error::from);
            let ready = ready.and_then(|()| cgroups.map_or(Ok(()), Tree::enter));
            let ready = ready.and_then(|()| Ok(process::die_with_parent(root.is_some())?));
            if ready.and_then(|()| root.map_or(Ok(()), mount_root)).is_ok() {
                let _ = process::execute(&program, &args, &env);
            }
            127
        })?;
        if root.is_some()
            && let Some(signal) = signal::wait_for(child.pidfd.as_fd())?
        {
            child.kill();
            process::wait(child.pidfd.as_fd())?;
            return Err(Error::interrupted(signal)).context(|| "waiting for criu");
        }
        match process::wait(child.pidfd.as_fd())? {
            Exit::Code(0) => Ok(()),
            exit => Err(self.failed(&log, exit)),
        }
    }

    /// The first error in the log says why; those after it follow from it.
    fn failed(&self, log: &str, exit: Exit) -> Error {
        let path = self.work.join(log);
        let text = file::read(file::CWD, &path, LONGEST_LOG, Resolve::Host).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let why = text.lines().find_map(|line| Some(line.split_once("Error ")?.1.trim()));
        let why = why.map_or_else(|| format!("it ended with {}", exit.code()), str::to_owned);
        Error::new(Code::System, format!("criu {}: {why}", self.verb)).hint(format!("see {}", path.display()))
    }
}

/// The bind mounts of a container and the host's files that cover its masked paths, which are not CRIU's to bring along:
/// the place of each in the container, and where it comes from.
pub fn external_mounts(launch: &Launch) -> Vec<(PathBuf, PathBuf)> {
    let Some(inside) = &launch.inside else { return Vec::new() };
    let absolute = |path: &Path| Path::new("/").join(path);
    let bound = inside.mounts.iter().filter_map(|plan| match &plan.source {
        Source::Bind { path, .. } => Some((absolute(&plan.target), path.clone())),
        _ => None,
    });
    let masked = inside.masked_paths.iter().map(|path| (absolute(path), "/dev/null".into()));
    bound.chain(masked).collect()
}

/// Of these mounts, those that the process `pid` has with a file of the host's; a masked directory has a tmpfs.
///
/// # Errors
/// `ENOENT` where it is gone.
pub fn present(mounts: Vec<(PathBuf, PathBuf)>, pid: i32) -> Result<Vec<(PathBuf, PathBuf)>> {
    let table = mount::table_of(pid)?;
    let is_there = |place: &Path, source: &Path| {
        let is_null = source == Path::new("/dev/null");
        table.iter().any(|line| line.path == place && (!is_null || line.root == Path::new("/null")))
    };
    Ok(mounts.into_iter().filter(|(place, source)| is_there(place, source)).collect())
}

/// Writes down what the first three descriptors of the process `pid` are: pipes are another's, who has to give new ones.
///
/// # Errors
/// `ENOSPC`.
pub fn keep_streams(images: &OwnedFd, pid: i32) -> Result<()> {
    let streams: Vec<String> = (0..3)
        .map(|fd| file::read_link(file::CWD, format!("/proc/{pid}/fd/{fd}")).unwrap_or_default())
        .map(|stream| stream.to_string_lossy().into_owned())
        .collect();
    let json = serde_json::to_vec(&streams).map_err(Error::system)?;
    Ok(file::replace(images.as_fd(), STREAMS, &json, 0o600)?)
}

/// The options that give the caller's streams in the place of the pipes that there were.
///
/// # Errors
/// `NotFound` where the directory holds no checkpoint.
pub fn streams(images: &OwnedFd) -> Result<Vec<String>> {
    let text = file::read(images.as_fd(), STREAMS, 1 << 20, Resolve::BeneathNoLinks)
        .map_err(|e| Error::from(e).hint("is it the directory of a checkpoint?"))?;
    let streams: Vec<String> = serde_json::from_slice(&text)
        .map_err(|e| Error::new(Code::InvalidSpec, format!("{STREAMS}: {e}")))?;
    let pipes = streams.iter().take(3).enumerate().filter(|(_, stream)| stream.starts_with("pipe:"));
    Ok(pipes.flat_map(|(fd, pipe)| ["--inherit-fd".to_owned(), format!("fd[{fd}]:{pipe}")]).collect())
}

/// A path as text for a command line.
///
/// # Errors
/// `Unsupported` where it is no UTF-8.
pub fn text(path: &Path) -> Result<String> {
    let text = path.to_str().map(str::to_owned);
    text.ok_or_else(|| Error::new(Code::Unsupported, format!("the path {path:?} is no UTF-8")))
}

fn c_string(text: String) -> Result<CString> {
    CString::new(text).map_err(|e| Error::new(Code::Usage, e.to_string()))
}

fn find(program: &str) -> Result<CString> {
    let missing = || {
        Error::new(Code::Unsupported, format!("{program} is not installed"))
            .hint("checkpoint and restore are done by CRIU: install the package criu, or name it with --criu")
    };
    let search = std::env::var_os("PATH").unwrap_or_default();
    let mut places: Vec<PathBuf> = std::env::split_paths(&search).collect();
    if program.contains('/') {
        places = vec![PathBuf::from("")];
    }
    let mut paths = places.into_iter().map(|place| place.join(program));
    let found = paths.find(|path| file::open(file::CWD, path, libc::O_PATH, 0, Resolve::Host).is_ok());
    CString::new(found.ok_or_else(missing)?.into_os_string().into_vec()).map_err(|_| missing())
}

fn mount_root(root: &Path) -> Result<()> {
    let apart = |propagation| Attributes { propagation: Some(propagation), ..Attributes::default() };
    let top = file::open_dir("/")?;
    mount::set_attributes(top.as_fd(), apart(Propagation::Slave), true)?;
    let tree = mount::clone_tree(file::CWD, root, true)?;
    mount::set_attributes(tree.as_fd(), apart(Propagation::Private), true)?;
    let target = file::open_dir(root).context(|| "opening the container's root")?;
    Ok(mount::attach(tree.as_fd(), target.as_fd())?)
}
