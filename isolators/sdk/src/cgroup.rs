//! A container by its handles.

use std::cell::RefCell;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use oci_spec::runtime::Spec;

use crate::before::Before;
use crate::{CgroupVersion, Error, Result};

/// More than any file of a control group holds (`memory.stat` of a recent kernel: 2 KiB).
const MOST: usize = 1 << 20;

/// A waiting or running container.
#[derive(Debug, Clone, Copy)]
pub struct Handles<'a> {
    /// The container's ID.
    pub id: &'a str,
    /// The container's first process, where there still is one (pidfd_open(2)).
    pub pidfd: Option<BorrowedFd<'a>>,
    /// The container's own control group.
    pub cgroup: &'a Cgroup,
    /// The final specification.
    pub spec: &'a Spec,
}

/// The open directories of a container's own control group: one on version 2, one a hierarchy on version 1.
#[derive(Debug)]
pub struct Cgroup {
    version: CgroupVersion,
    dirs: Vec<(Vec<String>, OwnedFd)>,
    /// What [`put_back`](Cgroup::put_back) takes back; `None` where nothing is remembered.
    before: Option<RefCell<Vec<Before>>>,
    /// Why it has no directory where it has none.
    lacking: Option<String>,
}

impl Cgroup {
    /// The control group whose directories are `dirs`, each with the controllers of its hierarchy: `cpu`,
    /// `cpuacct`, …, `name=systemd`, and `unified` for the version 2 tree of a hybrid machine. On version 2 there
    /// is one directory, and the names do not matter.
    pub fn new(version: CgroupVersion, dirs: Vec<(Vec<String>, OwnedFd)>) -> Self {
        Self { version, dirs, before: None, lacking: None }
    }

    /// The same, which lacks other directories because of `why`.
    #[must_use]
    pub fn lacking(mut self, why: Option<String>) -> Self {
        self.lacking = why;
        self
    }

    /// The same, which remembers what each file held before it is written.
    #[must_use]
    pub fn remembering(mut self) -> Self {
        self.before = Some(RefCell::default());
        self
    }

    /// Writes back what the files held that were written since [`remembering`](Self::remembering), last first. Each is
    /// attempted whatever became of the others; one that is refused is tried again at the end, since limits bound
    /// each other.
    ///
    /// # Errors
    /// The first refusal that stays.
    pub fn put_back(&self) -> Result<()> {
        let before = self.before.as_ref().map(RefCell::take).unwrap_or_default();
        let restore = |before: &Before| {
            let mut values = before.restoring().into_iter();
            values.try_for_each(|value| self.write_file(&before.controller, &before.file, &value))
        };
        let refused: Vec<&Before> = before.iter().rev().filter(|before| restore(before).is_err()).collect();
        refused.into_iter().map(restore).fold(Ok(()), Result::and)
    }

    /// Whether the container has no control group at all.
    pub fn is_absent(&self) -> bool {
        self.dirs.is_empty()
    }

    /// Which version carries the limits.
    pub fn version(&self) -> CgroupVersion {
        self.version
    }

    /// The directory of the hierarchy with `controller`; on version 2 the only one.
    pub fn dir(&self, controller: &str) -> Option<BorrowedFd<'_>> {
        let mut dirs = self.dirs.iter();
        let found = match self.version {
            CgroupVersion::V2 => dirs.next(),
            CgroupVersion::V1 => dirs.find(|(names, _)| names.iter().any(|name| name == controller)),
        };
        found.map(|(_, fd)| fd.as_fd())
    }

    /// All of its directories, each with the controllers of its hierarchy.
    pub fn dirs(&self) -> impl Iterator<Item = (&[String], BorrowedFd<'_>)> {
        self.dirs.iter().map(|(controllers, fd)| (controllers.as_slice(), fd.as_fd()))
    }

    /// Writes `value` to the file `file` of `controller`, in one write(2), as control groups want it.
    ///
    /// # Errors
    /// Where there is no such controller or file, or the kernel refuses the value.
    pub fn write(&self, controller: &str, file: &str, value: &str) -> Result<()> {
        let Some(before) = &self.before else { return self.write_file(controller, file, value) };
        let held = self.read(controller, file);
        self.write_file(controller, file, value)?;
        // A file that can't be read can't be put back either.
        before.borrow_mut().extend(held.ok().map(|held| Before {
            controller: controller.to_owned(),
            file: file.to_owned(),
            written: value.to_owned(),
            held,
        }));
        Ok(())
    }

    fn write_file(&self, controller: &str, file: &str, value: &str) -> Result<()> {
        let call = |errno| Error::failed(format!("write({file:?}, {value:?})"), errno).on_path(file);
        let fd = self.open(controller, file, OFlag::O_WRONLY)?;
        loop {
            match nix::unistd::write(&fd, value.as_bytes()) {
                Ok(n) if n == value.len() => return Ok(()),
                Ok(_) => return Err(call(Errno::EIO)),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(call(errno)),
            }
        }
    }

    /// Reads the file `file` of `controller`.
    ///
    /// # Errors
    /// Where there is no such controller or file, or it is no text.
    pub fn read(&self, controller: &str, file: &str) -> Result<String> {
        let fail = |errno| Error::failed(format!("read({file:?})"), errno).on_path(file);
        let fd = self.open(controller, file, OFlag::O_RDONLY)?;
        let mut bytes = Vec::new();
        let mut chunk = [0; 4096];
        loop {
            match nix::unistd::read(&fd, &mut chunk).map_err(fail)? {
                0 => break,
                n => bytes.extend_from_slice(&chunk[..n]),
            }
            if bytes.len() > MOST {
                return Err(fail(Errno::EFBIG));
            }
        }
        String::from_utf8(bytes).map_err(|_| fail(Errno::EILSEQ))
    }

    /// Opens one file of the group. Names come from specifications too (`unified`), so that none may lead out
    /// of the directory.
    fn open(&self, controller: &str, file: &str, flags: OFlag) -> Result<OwnedFd> {
        if file.is_empty() || file.starts_with('.') || file.contains('/') {
            return Err(Error::new(format!("{file:?} is no file of a control group")));
        }
        let dir = self.dir(controller).ok_or_else(|| {
            let error = Error::new(format!("no cgroup of the {controller} controller here"));
            let why = "is the controller mounted and not disabled? /proc/cgroups tells";
            error.with_hint(self.lacking.as_deref().unwrap_or(why))
        })?;
        let flags = flags | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
        openat(dir, file, flags, Mode::empty())
            .map_err(|errno| Error::failed(format!("openat({file:?})"), errno).on_path(file))
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "tests lay out files on the host")]
mod tests {
    use super::*;

    fn group(dir: &std::path::Path) -> Cgroup {
        let fd = OwnedFd::from(std::fs::File::open(dir).unwrap());
        Cgroup::new(CgroupVersion::V1, vec![(vec!["cpu".to_owned(), "cpuacct".to_owned()], fd)])
    }

    #[test]
    fn what_is_written_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("cpu.shares"), "").unwrap();
        let group = group(dir.path());
        group.write("cpu", "cpu.shares", "512").unwrap();
        assert_eq!(group.read("cpuacct", "cpu.shares").unwrap(), "512");
    }

    #[test]
    fn no_name_leads_out_of_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["../x", "", ".", "..", "a/b"] {
            let error = group(dir.path()).write("cpu", name, "1").unwrap_err();
            assert_eq!(error.to_string(), format!("{name:?} is no file of a control group"));
        }
        std::os::unix::fs::symlink("/dev/null", dir.path().join("link")).unwrap();
        let error = group(dir.path()).write("cpu", "link", "1").unwrap_err();
        assert_eq!(error.to_string(), "openat(\"link\"): too many symbolic links encountered");
    }

    #[test]
    fn a_controller_that_is_not_there_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = group(dir.path()).read("rdma", "rdma.max").unwrap_err();
        assert!(error.to_string().starts_with("no cgroup of the rdma controller here; "), "{error}");
    }

    #[test]
    fn version_2_has_one_directory_for_every_controller() {
        let dir = tempfile::tempdir().unwrap();
        let fd = OwnedFd::from(std::fs::File::open(dir.path()).unwrap());
        let group = Cgroup::new(CgroupVersion::V2, vec![(vec![String::new()], fd)]);
        assert!(group.dir("memory").is_some());
    }
}
