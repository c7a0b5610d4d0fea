//! Directories on the disk that go with who has them: `STATE/NAME/owner` holds a path that is there as long as that one is
//! known, `STATE/NAME/data` what is its own. Nobody makes one while it is looked whose are left.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use coracle_isolator::{Error, Result};
use coracle_sys::Errno;
use coracle_sys::archive::remove_tree;
use coracle_sys::file::{self, Resolve};

use crate::{failed, is_owned, made, mounted_in, opened};

const OWNER: &str = "owner";
const DATA: &str = "data";

/// Where such directories are.
#[derive(Debug)]
pub struct Owned {
    pub(crate) state: PathBuf,
}

impl Owned {
    /// In the directory `state` of the host, which is made with the first.
    pub fn new(state: impl Into<PathBuf>) -> Self {
        Self { state: state.into() }
    }

    /// The path of what belongs to `name`.
    #[must_use]
    pub fn data(&self, name: &str) -> PathBuf {
        self.state.join(name).join(DATA)
    }

    /// Makes the directory of what belongs to `name`, which goes with `owner`, and opens it.
    ///
    /// # Errors
    /// Whatever making files says.
    pub fn make(&self, name: &str, owner: &Path) -> coracle_sys::Result<OwnedFd> {
        let state = made(&self.state)?;
        file::lock(state.as_fd(), true)?;
        let dir = made(&self.state.join(name))?;
        file::replace(dir.as_fd(), OWNER, owner.as_os_str().as_encoded_bytes(), 0o600)?;
        file::mkdir_all_no_links(dir.as_fd(), DATA, 0o755)
    }

    /// Removes what belongs to `name`, where there is anything.
    ///
    /// # Errors
    /// Where something is mounted in it.
    pub fn end(&self, name: &str) -> Result<()> {
        let Some(dir) = opened(&self.state)? else { return Ok(()) };
        if opened(&self.state.join(name))?.is_none() {
            return Ok(());
        }
        self.check_free(name)?;
        remove_tree(dir.as_fd(), name).map_err(failed)
    }

    fn check_free(&self, name: &str) -> Result<()> {
        let point = mounted_in(&self.state.join(name))?;
        point.map_or(Ok(()), |point| {
            Err(Error::new(format!("something is mounted in a directory of the container's, on {point}")))
        })
    }

    /// Removes what belongs to nobody who is known. What can't be looked at stays.
    ///
    /// # Errors
    /// The first failure; the others are removed.
    pub fn recover(&self) -> Result<()> {
        let Some(dir) = opened(&self.state)? else { return Ok(()) };
        let mut done = self.set_aside(&dir);
        for name in file::list(dir.as_fd()).map_err(failed)? {
            if name.as_encoded_bytes().starts_with(b".") {
                done = done.and(remove_tree(dir.as_fd(), &name).map_err(failed));
            }
        }
        done
    }

    /// Gives those that are left names under which they are nobody's: whoever comes again gets a new one, and is not kept
    /// waiting until they are gone.
    fn set_aside(&self, dir: &OwnedFd) -> Result<()> {
        let locked = file::open_dir(&self.state).map_err(failed)?;
        file::lock(locked.as_fd(), true).map_err(failed)?;
        let mut done = Ok(());
        for name in file::list(dir.as_fd()).map_err(failed)? {
            let Some(name) = name.to_str().filter(|name| !name.starts_with('.')) else { continue };
            let set = || match self.is_left(dir, name)? {
                false => Ok(()),
                true => self.check_free(name).and_then(|()| aside(dir, name).map_err(failed)),
            };
            done = done.and(set());
        }
        done
    }

    /// Only a name that was read tells that its owner is gone; without one, it is what a launch left that was cut off.
    fn is_left(&self, dir: &OwnedFd, name: &str) -> Result<bool> {
        let path = Path::new(name).join(OWNER);
        match file::read(dir.as_fd(), &path, 4096, Resolve::BeneathNoLinks) {
            Ok(owner) => Ok(!is_owned(Path::new(&*String::from_utf8_lossy(&owner)))),
            Err(e) if e.errno() == Errno::ENOENT => Ok(true),
            Err(e) => Err(failed(e).on_path(self.state.join(path).to_string_lossy())),
        }
    }
}

fn aside(dir: &OwnedFd, name: &str) -> coracle_sys::Result<()> {
    let other = format!(".{name}");
    remove_tree(dir.as_fd(), &other)?;
    file::rename(dir.as_fd(), name, dir.as_fd(), &other)
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "tests lay out files on the host")]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn what_is_left_goes_and_what_has_an_owner_or_can_not_be_looked_at_stays() {
        let dir = tempfile::tempdir().unwrap();
        let owned = Owned::new(dir.path().join("state"));
        for (name, owner) in [("lives", dir.path()), ("left", Path::new("/nowhere")), ("cut-off", dir.path())]
        {
            owned.make(name, owner).unwrap();
            fs::write(owned.data(name).join("file"), "").unwrap();
        }
        fs::remove_file(owned.state.join("cut-off/owner")).unwrap();
        owned.make("unreadable", dir.path()).unwrap();
        fs::remove_file(owned.state.join("unreadable/owner")).unwrap();
        fs::create_dir(owned.state.join("unreadable/owner")).unwrap();
        let error = owned.recover().unwrap_err().to_string();
        assert!(error.contains("unreadable/owner"), "{error}");
        let mut there: Vec<_> = fs::read_dir(&owned.state).unwrap().map(|e| e.unwrap().file_name()).collect();
        there.sort();
        assert_eq!(there, ["lives", "unreadable"]);
        owned.end("lives").unwrap();
        owned.end("lives").unwrap();
    }
}
