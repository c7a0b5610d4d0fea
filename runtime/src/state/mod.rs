//! A container on disk.
//!
//! `ROOT/NAME/` (the ID, with `~` for each `/`) holds `record.json` (what was done and must be undone), `config.json` (the spec as it was when the
//! container was created) and `start.sock` while the container waits for `start`. The directory itself is the
//! lock. The record is written before each step that it tells of, by replacing the file as a whole, so whoever
//! comes after a crash finds at least what was done.

pub mod record;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use coracle_sys::Errno;
use coracle_sys::archive::remove_tree;
use coracle_sys::file::{self, Resolve};

pub use record::{Phase, Record, Status};

use crate::error::{Code, Context, Error, Result};

const RECORD: &str = "record.json";
const CONFIG: &str = "config.json";

/// A file whose lock whoever has that watches over the container.
pub const WATCHED: &str = "watched";

/// The longest record or configuration that is read.
pub const LONGEST: u64 = 16 << 20;

/// How long a command waits for another that has the same container.
const LOCKED_WITHIN: Duration = Duration::from_secs(10);

/// A container's state directory, locked until this is dropped with all of its copies, or unlocked.
#[derive(Debug, Clone)]
pub struct State {
    root: Rc<OwnedFd>,
    dir: Rc<OwnedFd>,
    id: String,
}

impl State {
    /// Takes the ID `id`, one name, for a new container.
    ///
    /// # Errors
    /// `Exists` where the ID is taken.
    pub fn create(root: &Path, id: &str) -> Result<Self> {
        if id.contains('/') {
            return Err(no_id(id));
        }
        Self::create_below(root, id)
    }

    /// Takes the ID `id` for a new container, which may be below another (`web/debug-1`).
    ///
    /// # Errors
    /// `Exists` where the ID is taken.
    pub fn create_below(root: &Path, id: &str) -> Result<Self> {
        check_id(id)?;
        let root = Rc::new(open_root(root)?);
        let name = name(id);
        loop {
            match file::mkdir(root.as_fd(), &name, 0o700) {
                Err(e) if e.errno() == Errno::EEXIST => {
                    return Err(Error::new(Code::Exists, format!("container with id {id:?} already exists"))
                        .hint("delete it, or choose another id"));
                }
                other => other.context(|| format!("making the state of container {id:?}"))?,
            }
            match Self::lock_in(&root, id) {
                Ok(Some(state)) => return Ok(state),
                // Before it was locked it looked as if its maker had been cut off, and `recover` took it away.
                Ok(None) => {}
                Err(failure) => {
                    let _ = file::rmdir(root.as_fd(), &name); // an empty state would keep the ID taken
                    return Err(failure).context(|| format!("taking the state of container {id:?}"));
                }
            }
        }
    }

    /// The state of container `id` in the directory `root`, once nobody else has it; `None` where it has been removed.
    fn lock_in(root: &Rc<OwnedFd>, id: &str) -> Result<Option<Self>> {
        match file::open(root.as_fd(), name(id), libc::O_DIRECTORY, 0, Resolve::BeneathNoLinks) {
            Err(e) if e.errno() == Errno::ENOENT => Ok(None),
            dir => Self { root: Rc::clone(root), dir: Rc::new(dir?), id: id.to_owned() }.locked(),
        }
    }

    /// Opens the state of container `id` and waits until nobody else has it.
    ///
    /// # Errors
    /// `NotFound` where there is none. `IllegalState` where somebody has it for ten seconds.
    pub fn open(root: &Path, id: &str) -> Result<Self> {
        check_id(id)?;
        Self::open_unlocked(root, id)?.locked()?.ok_or_else(|| not_found(id))
    }

    /// The same state, once nobody else has it; `None` where it has been removed, whoever goes by the ID now.
    ///
    /// # Errors
    /// `IllegalState` where somebody has it for ten seconds.
    pub fn locked(self) -> Result<Option<Self>> {
        lock(self.dir.as_fd(), &self.id)?;
        Ok(self.is_named()?.then_some(self))
    }

    /// Lets others have it, whoever holds copies of this.
    pub fn unlock(&self) {
        let _ = file::unlock(self.dir.as_fd());
    }

    /// Opens the state of container `id` where nobody else has it; `None` where somebody does, or it is gone.
    ///
    /// # Errors
    /// Whatever opening says.
    pub fn open_idle(root: &Path, id: &str) -> Result<Option<Self>> {
        let state = match Self::open_unlocked(root, id) {
            Err(e) if e.code() == Code::NotFound => return Ok(None),
            other => other?,
        };
        match file::lock(state.dir.as_fd(), false) {
            Err(e) if e.errno() == Errno::EWOULDBLOCK => return Ok(None),
            other => other?,
        }
        Ok(state.is_named()?.then_some(state))
    }

    /// Opens the state of container `id` to look at it only.
    ///
    /// # Errors
    /// `NotFound` where there is none.
    pub fn open_unlocked(root: &Path, id: &str) -> Result<Self> {
        check_id(id)?;
        let root = match file::open_dir(root) {
            Err(e) if e.errno() == Errno::ENOENT => return Err(not_found(id)),
            other => other?,
        };
        match file::open(root.as_fd(), name(id), libc::O_DIRECTORY, 0, Resolve::BeneathNoLinks) {
            Err(e) if e.errno() == Errno::ENOENT => Err(not_found(id)),
            dir => Ok(Self { root: root.into(), dir: Rc::new(dir?), id: id.to_owned() }),
        }
    }

    /// Whether the directory still goes by its name: whoever had the lock before may have removed the container.
    fn is_named(&self) -> Result<bool> {
        match file::stat_at(self.root.as_fd(), name(&self.id)) {
            Err(e) if e.errno() == Errno::ENOENT => Ok(false),
            named => Ok(named?.st_ino == file::stat(self.dir.as_fd())?.st_ino),
        }
    }

    /// The container's ID.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The directory, in which the socket of a waiting container lies.
    pub fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// The user whose container it is.
    ///
    /// # Errors
    /// None that a kernel is known to give.
    pub fn owner(&self) -> Result<u32> {
        Ok(file::stat(self.dir.as_fd())?.st_uid)
    }

    /// Reads the record. `None`: the creator died before it wrote one, and did nothing that it would tell of.
    ///
    /// # Errors
    /// `System` where it is malformed.
    pub fn record(&self) -> Result<Option<Record>> {
        let bytes = match file::read(self.dir.as_fd(), RECORD, LONGEST, Resolve::BeneathNoLinks) {
            Err(e) if e.errno() == Errno::ENOENT => return Ok(None),
            other => other.context(|| format!("reading the record of container {:?}", self.id))?,
        };
        serde_json::from_slice(&bytes).map(Some).map_err(|e| {
            Error::new(Code::System, format!("the record of container {:?} is malformed: {e}", self.id))
        })
    }

    /// Replaces the record.
    ///
    /// # Errors
    /// `ENOSPC`.
    pub fn write(&self, record: &Record) -> Result<()> {
        let bytes = serde_json::to_vec(record).map_err(Error::system)?;
        file::replace(self.dir.as_fd(), RECORD, &bytes, 0o600)
            .context(|| format!("writing the record of container {:?}", self.id))
    }

    /// Keeps the configuration that the container is created with: the bundle may change later.
    ///
    /// # Errors
    /// `ENOSPC`.
    pub fn keep_config(&self, text: &[u8]) -> Result<()> {
        file::replace(self.dir.as_fd(), CONFIG, text, 0o600)
            .context(|| format!("keeping the configuration of container {:?}", self.id))
    }

    /// The configuration that the container was created with.
    ///
    /// # Errors
    /// Whatever reading says.
    pub fn config(&self) -> Result<Vec<u8>> {
        file::read(self.dir.as_fd(), CONFIG, LONGEST, Resolve::BeneathNoLinks)
            .context(|| format!("reading the configuration of container {:?}", self.id))
    }

    /// The containers below this one, the deepest first, each once nobody else has it.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn children(&self) -> Result<Vec<Self>> {
        let prefix = name(&self.id) + "~";
        let names = file::list(self.root.as_fd())?;
        let names = names.into_iter().filter_map(|name| name.into_string().ok());
        let mut names: Vec<String> = names.filter(|name| name.starts_with(&prefix)).collect();
        names.sort_unstable_by(|one, other| other.cmp(one));
        let children = names.iter().map(|name| Self::lock_in(&self.root, &name.replace('~', "/")));
        children.filter_map(Result::transpose).collect()
    }

    /// Takes the socket away that a container waited on.
    pub fn close_door(&self) {
        let _ = file::unlink(self.dir.as_fd(), crate::handshake::DOOR);
    }

    /// Forgets the container. The last step of its removal.
    ///
    /// # Errors
    /// Whatever unlinking says.
    pub fn remove(self) -> Result<()> {
        // The record goes last: with it gone nobody would know what is left to undo.
        for name in [CONFIG, crate::handshake::DOOR, WATCHED] {
            remove_tree(self.dir.as_fd(), name)?;
        }
        remove_tree(self.root.as_fd(), name(&self.id))
            .context(|| format!("removing the state of container {:?}", self.id))
    }
}

/// The IDs of all containers below `root`, in order.
///
/// # Errors
/// Whatever reading says but that there is no such directory.
pub fn ids(root: &Path) -> Result<Vec<String>> {
    let dir = match file::open_dir(root) {
        Err(e) if e.errno() == Errno::ENOENT => return Ok(Vec::new()),
        other => other?,
    };
    let names = file::list(dir.as_fd())?;
    let ids = names.into_iter().filter_map(|n| n.into_string().ok()).map(|name| name.replace('~', "/"));
    let mut ids: Vec<String> = ids.filter(|id| check_id(id).is_ok()).collect();
    ids.sort();
    Ok(ids)
}

/// The absolute path of the state of container `id` below `root`.
pub fn path(root: &Path, id: &str) -> PathBuf {
    std::path::absolute(root).unwrap_or_else(|_| root.to_owned()).join(name(id))
}

/// A command may hang for as long as a hook does: whoever comes after it is not to hang, too.
fn lock(dir: BorrowedFd<'_>, id: &str) -> Result<()> {
    let deadline = Instant::now() + LOCKED_WITHIN;
    loop {
        match file::lock(dir, false) {
            Err(e) if e.errno() == Errno::EWOULDBLOCK && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(2));
            }
            Err(e) if e.errno() == Errno::EWOULDBLOCK => {
                let seconds = LOCKED_WITHIN.as_secs();
                let why = format!("another command has had container {id:?} for {seconds} seconds");
                return Err(Error::new(Code::IllegalState, why)
                    .hint("wait for that command, or end it: a hook may keep it"));
            }
            locked => return Ok(locked?),
        }
    }
}

/// The state root. What is above it may be searched by all, as user namespaces need; what is in it may not.
fn open_root(root: &Path) -> Result<OwnedFd> {
    match file::open_dir(root) {
        Err(e) if e.errno() == Errno::ENOENT => {}
        other => return other.map_err(not_ours).context(|| "opening the directory of states (--root)"),
    }
    let base = file::open_dir(if root.is_absolute() { "/" } else { "." })?;
    file::mkdir_all(base.as_fd(), root, 0o711)
        .map_err(not_ours)
        .context(|| "making the directory of states (--root)")?;
    Ok(file::open_dir(root)?)
}

fn not_ours(error: coracle_sys::Error) -> Error {
    let is_forbidden = matches!(error.errno(), Errno::EACCES | Errno::EPERM);
    let error = Error::from(error);
    if is_forbidden { error.hint("users set XDG_RUNTIME_DIR, or give a --root of their own") } else { error }
}

/// The longest ID: its state's directory has its name (`NAME_MAX`).
const LONGEST_ID: usize = 255;

/// A container's ID is a name, or names with `/` between them where it is below others; nothing that a path could make
/// more of.
fn check_id(id: &str) -> Result<()> {
    let good = |c: char| c.is_ascii_alphanumeric() || "_+-.".contains(c);
    let is_name = |name: &str| !name.is_empty() && !name.starts_with('.') && name.chars().all(good);
    if id.len() > LONGEST_ID || !id.split('/').all(is_name) { Err(no_id(id)) } else { Ok(()) }
}

fn no_id(id: &str) -> Error {
    let shown: String = id.chars().take(80).collect();
    Error::new(Code::Usage, format!("{shown:?} is no container ID"))
        .hint("use letters, digits and _ + - . (not first), at most 255")
}

/// The name that the files of container `id` go by: its ID, of which `/` can't be part of a name.
pub fn name(id: &str) -> String {
    id.replace('/', "~")
}

fn not_found(id: &str) -> Error {
    Error::new(Code::NotFound, format!("container {id:?} does not exist")).hint("see coracle list")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_no_path() {
        for bad in ["", ".", "..", ".hidden", "/a", "a/", "a//b", "../x", "a/..", "a\nb", "a b", "a~b", "ü"]
        {
            assert!(check_id(bad).is_err(), "{bad:?}");
        }
        assert!(check_id(&"x".repeat(256)).is_err());
        for good in ["web", "0", "-a", "_x.y+z", "A-1", "web/nginx/debug-1"] {
            assert!(check_id(good).is_ok(), "{good:?}");
        }
    }

    #[test]
    fn an_id_is_taken_once() {
        let root = tempfile::tempdir().unwrap();
        let state = State::create(root.path(), "web").unwrap();
        let error = State::create(root.path(), "web").unwrap_err();
        assert_eq!(error.code(), Code::Exists);
        assert!(error.to_string().contains("already exists"));
        state.remove().unwrap();
        State::create(root.path(), "web").unwrap();
    }

    #[test]
    fn only_those_that_are_made_below_others_have_more_than_one_name() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(State::create(root.path(), "web/a").unwrap_err().code(), Code::Usage);
        let below = State::create_below(root.path(), "web/a").unwrap();
        assert_eq!(ids(root.path()).unwrap(), ["web/a"]);
        below.remove().unwrap();
        assert!(ids(root.path()).unwrap().is_empty());
    }

    #[test]
    fn the_deepest_of_those_below_another_come_first() {
        let root = tempfile::tempdir().unwrap();
        let web = State::create(root.path(), "web").unwrap();
        for id in ["web/a", "web/a/b", "web/a/b/c", "web/d", "web2"] {
            drop(State::create_below(root.path(), id).unwrap());
        }
        let children = web.children().unwrap();
        let ids: Vec<&str> = children.iter().map(State::id).collect();
        assert_eq!(ids, ["web/d", "web/a/b/c", "web/a/b", "web/a"]);
    }

    #[test]
    fn a_container_without_a_record_can_still_be_opened_and_removed() {
        let root = tempfile::tempdir().unwrap();
        drop(State::create(root.path(), "web").unwrap());
        let state = State::open(root.path(), "web").unwrap();
        assert!(state.record().unwrap().is_none());
        state.remove().unwrap();
        assert!(ids(root.path()).unwrap().is_empty());
    }

    #[test]
    fn a_container_that_does_not_exist_is_not_found() {
        let root = tempfile::tempdir().unwrap();
        let error = State::open(root.path(), "web").unwrap_err();
        assert_eq!(error.to_string(), "container \"web\" does not exist; see coracle list");
    }
}
