//! Freezing and thawing the processes of a container: the freezer of version 1 (freezer-subsystem.rst of the kernel's
//! documentation) where it is mounted, else `cgroup.freeze` of version 2 (Linux 5.2).

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use coracle_sys::Errno;
use coracle_sys::file::{self, Resolve};

use super::tree::each;
use super::{LONGEST, Tree};
use crate::error::{Code, Error, Result};

/// How long freezing and thawing may take.
const LIMIT: Duration = Duration::from_secs(10);

/// The cgroup that freezes a container.
#[derive(Debug, Clone, Copy)]
enum Freezer<'a> {
    V1(BorrowedFd<'a>),
    V2(BorrowedFd<'a>),
}

impl Tree {
    /// Whether the container is frozen, by itself or by a cgroup above it: in any tree that freezes.
    ///
    /// # Errors
    /// Whatever reading says.
    pub fn is_frozen(&self) -> Result<bool> {
        self.any(|freezer| freezer.is_frozen())
    }

    /// The same, also where it is only asked for: a process that waits for a disk stops when that has answered.
    ///
    /// # Errors
    /// As [`Self::is_frozen`].
    pub fn is_freezing(&self) -> Result<bool> {
        self.any(|freezer| freezer.is_asked())
    }

    fn any(&self, holds: impl Fn(Freezer<'_>) -> Result<bool>) -> Result<bool> {
        for freezer in self.freezers() {
            if holds(freezer)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Stops every process of the container where it is, and waits until all have stopped.
    ///
    /// # Errors
    /// `Unsupported` where there is no cgroup to do it with; `System` where a process does not stop within ten
    /// seconds, and then all go on.
    pub fn freeze(&self) -> Result<()> {
        let freezer = self.freezer().ok_or_else(no_freezer)?;
        freezer.set(true, LIMIT).inspect_err(|_| drop(freezer.ask(false)))
    }

    /// Lets every process of the container go on, in each tree that stops them: somebody else may have frozen another than the
    /// runtime does.
    ///
    /// # Errors
    /// `Unsupported` where there is no cgroup to do it with; `System` where a cgroup above it is frozen.
    pub fn thaw(&self) -> Result<()> {
        self.freezer().ok_or_else(no_freezer)?;
        for freezer in self.freezers() {
            if freezer.is_asked()? {
                freezer.set(false, LIMIT)?;
            }
        }
        Ok(())
    }

    /// Has the processes stop that are about to be killed one by one, as far as they can at this moment. On version 1 alone:
    /// on version 2 who is frozen takes `SIGKILL`, too, but goes on being frozen.
    pub fn freeze_to_kill(&self) {
        if let Some(freezer @ Freezer::V1(_)) = self.freezer() {
            let _ = freezer.ask(true);
        }
    }

    /// Lets the processes of a container that has been killed die: on version 1 a frozen one takes no signal, and the
    /// container may have frozen cgroups of its own below.
    pub fn thaw_to_die(&self) {
        if let Some(Freezer::V1(dir)) = self.freezer() {
            // Where there is nobody to thaw, there is nothing to do.
            let _ = each(dir, |cgroup| {
                let _ = Freezer::V1(cgroup).ask(false);
                Ok(())
            });
        }
    }

    /// The one that the runtime freezes with.
    fn freezer(&self) -> Option<Freezer<'_>> {
        self.freezers().next()
    }

    fn freezers(&self) -> impl Iterator<Item = Freezer<'_>> {
        let v1 = self.dirs.iter().find(|(h, _)| h.controllers().iter().any(|c| c == "freezer"));
        v1.map(|(_, dir)| Freezer::V1(dir.as_fd())).into_iter().chain(self.unified().map(Freezer::V2))
    }
}

impl Freezer<'_> {
    fn is_frozen(self) -> Result<bool> {
        match self {
            Self::V1(dir) => says(dir, "freezer.state", &["FROZEN"]),
            Self::V2(dir) => says(dir, "cgroup.events", &["frozen 1"]),
        }
    }

    /// Whether it is frozen, or somebody has asked for it.
    fn is_asked(self) -> Result<bool> {
        match self {
            Self::V1(dir) => says(dir, "freezer.state", &["FROZEN", "FREEZING"]),
            Self::V2(dir) => Ok(self.is_frozen()? || says(dir, "cgroup.freeze", &["1"])?),
        }
    }

    /// Asks the kernel to freeze or to thaw.
    fn ask(self, frozen: bool) -> Result<()> {
        let (dir, name, value) = match (self, frozen) {
            (Self::V1(dir), true) => (dir, "freezer.state", "FROZEN"),
            (Self::V1(dir), false) => (dir, "freezer.state", "THAWED"),
            (Self::V2(dir), true) => (dir, "cgroup.freeze", "1"),
            (Self::V2(dir), false) => (dir, "cgroup.freeze", "0"),
        };
        Ok(file::write_to(dir, name, value.as_bytes(), Resolve::Beneath)?)
    }

    /// Asks and waits, at most `limit`. Version 1 is asked again and again, since a process that was forked while it
    /// froze can have been missed.
    fn set(self, frozen: bool, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        let mut pause = Duration::from_micros(50);
        self.ask(frozen)?;
        while self.is_frozen()? != frozen {
            if Instant::now() > deadline {
                return Err(too_slow(frozen, limit));
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(10));
            if let Self::V1(_) = self {
                self.ask(frozen)?;
            }
        }
        Ok(())
    }
}

/// Whether a line of the file `name` is one of `words`. One that the kernel does not have says nothing.
fn says(dir: BorrowedFd<'_>, name: &str, words: &[&str]) -> Result<bool> {
    let text = match file::read(dir, name, LONGEST, Resolve::Beneath) {
        Err(e) if e.errno() == Errno::ENOENT => return Ok(false),
        text => text?,
    };
    Ok(String::from_utf8_lossy(&text).lines().any(|line| words.contains(&line)))
}

fn no_freezer() -> Error {
    Error::new(Code::Unsupported, "it has no cgroup that can be frozen")
        .hint("it was created without cgroups, or on a machine without the freezer controller")
}

fn too_slow(frozen: bool, limit: Duration) -> Error {
    let seconds = limit.as_secs();
    let (why, hint) = if frozen {
        ("a process did not freeze", "it waits for the kernel; try again when what it waits for has come")
    } else {
        ("it is still frozen", "a cgroup above it is frozen: thaw that")
    };
    Error::new(Code::System, format!("{why} within {seconds} s")).hint(hint)
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "tests lay out files on the host")]
mod tests {
    use std::os::fd::OwnedFd;

    use super::super::{Hierarchy, Version};
    use super::*;

    fn tree(dir: &std::path::Path, name: &str, unified: bool) -> Tree {
        let fd = OwnedFd::from(std::fs::File::open(dir).unwrap());
        Tree {
            version: Version::V1,
            dirs: vec![(Hierarchy { name: name.to_owned(), unified }, fd)],
            refused: None,
        }
    }

    #[test]
    fn a_process_that_does_not_freeze_is_waited_for_only_so_long() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("cgroup.freeze"), "0").unwrap();
        std::fs::write(dir.path().join("cgroup.events"), "populated 1\nfrozen 0\n").unwrap();
        let tree = tree(dir.path(), "unified", true);
        let error = tree.freezer().unwrap().set(true, Duration::from_millis(20)).unwrap_err().to_string();
        assert!(error.starts_with("a process did not freeze within 0 s; it waits for the kernel"), "{error}");
    }

    #[test]
    fn without_a_freezer_nothing_is_frozen_and_nothing_can_be() {
        let dir = tempfile::tempdir().unwrap();
        for tree in [Tree::none(), tree(dir.path(), "memory", false)] {
            assert!(!tree.is_frozen().unwrap());
            let error = tree.freeze().unwrap_err().to_string();
            assert!(error.starts_with("it has no cgroup that can be frozen; "), "{error}");
            tree.thaw_to_die();
        }
    }

    #[test]
    fn what_is_asked_to_freeze_and_has_not_yet_is_thawed() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("freezer.state"), "FREEZING\n").unwrap();
        std::fs::write(dir.path().join("cgroup.freeze"), "1\n").unwrap();
        std::fs::write(dir.path().join("cgroup.events"), "populated 1\nfrozen 0\n").unwrap();
        let says = |file| std::fs::read_to_string(dir.path().join(file)).unwrap();
        for tree in [tree(dir.path(), "freezer", false), tree(dir.path(), "unified", true)] {
            assert!(tree.is_freezing().unwrap());
            tree.thaw().unwrap();
            assert!(!says("freezer.state").starts_with("FREEZING"));
        }
        assert!(says("cgroup.freeze").starts_with('0'));
    }

    #[test]
    fn version_1_freezes_where_it_is_mounted() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("freezer.state"), "THAWED\n").unwrap();
        let tree = tree(dir.path(), "freezer", false);
        tree.freeze().unwrap();
        assert!(tree.is_frozen().unwrap());
        tree.thaw_to_die();
        assert!(!tree.is_frozen().unwrap());
    }
}
