//! Cgroups that a container has made below its own, for processes that are executed in it (`exec --cgroup`).

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use coracle_sys::file::{self, Resolve};

use super::{Hierarchy, Tree};
use crate::error::{Code, Error, Result};

impl Tree {
    /// The same cgroups, but for those that `wanted` names below them: `PATH` in every hierarchy,
    /// `CONTROLLER[,CONTROLLER...]:PATH` in those of version 1. They must be there.
    ///
    /// # Errors
    /// `Usage` where a path leaves the container's cgroup, or a controller is not there or named twice.
    pub fn below(mut self, wanted: &[String]) -> Result<Self> {
        let mut done: Vec<usize> = Vec::new();
        for argument in wanted {
            let (controllers, path) = argument.split_once(':').unwrap_or(("", argument));
            let path = plain(path).ok_or_else(|| {
                usage(&format!("{path} is not a sub cgroup path: it leaves the container's cgroup"))
            })?;
            for index in self.indexes(controllers)? {
                if done.contains(&index) {
                    return Err(usage(&format!("{argument:?}: this hierarchy is named already")));
                }
                done.push(index);
                let (hierarchy, dir) = &mut self.dirs[index];
                *dir = open(dir, &path).map_err(|e| {
                    let file = Path::new(&hierarchy.name).join("...").join(&path).join("cgroup.procs");
                    let why = coracle_sys::error::reason(e.errno());
                    Error::from(e).because(format!("adding pid to {}: {why}", file.display()))
                })?;
            }
        }
        Ok(self)
    }

    /// Which hierarchies `controllers` names: all with an empty text.
    fn indexes(&self, controllers: &str) -> Result<Vec<usize>> {
        let position = |is: &dyn Fn(&Hierarchy) -> bool| self.dirs.iter().position(|(h, _)| is(h));
        if controllers.is_empty() {
            if self.dirs.is_empty() {
                return Err(usage("the container has no cgroup"));
            }
            return Ok((0..self.dirs.len()).collect());
        }
        let mut found = Vec::new();
        for name in controllers.split(',') {
            let index = position(&|h| h.controllers().iter().any(|c| c == name)).ok_or_else(|| {
                usage(&format!("unknown controller {name:?}")).hint("write it like cpu,memory:PATH")
            })?;
            if !found.contains(&index) {
                found.push(index);
            }
        }
        Ok(found)
    }
}

/// `path` without leading slashes and dots; `None` where it climbs.
fn plain(path: &str) -> Option<PathBuf> {
    let components = Path::new(path).components();
    let plain = components.filter(|c| !matches!(c, Component::RootDir | Component::CurDir));
    plain.map(|c| matches!(c, Component::Normal(_)).then_some(c)).collect()
}

fn open(dir: &OwnedFd, path: &Path) -> coracle_sys::Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    file::open(dir.as_fd(), path, libc::O_DIRECTORY, 0, Resolve::BeneathNoLinks)
}

fn usage(why: &str) -> Error {
    Error::new(Code::Usage, why)
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "tests lay out files on the host")]
mod tests {
    use super::*;
    use crate::cgroup::Version;

    fn tree(dir: &Path, version: Version, names: &[&str]) -> Tree {
        let open = |name: &&str| {
            let hierarchy = Hierarchy { name: (*name).to_owned(), unified: name.is_empty() };
            (hierarchy, OwnedFd::from(std::fs::File::open(dir).unwrap()))
        };
        Tree { version, dirs: names.iter().map(open).collect(), refused: None }
    }

    #[test]
    fn a_cgroup_below_takes_the_place_of_the_containers_own() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("a/b")).unwrap();
        let inode = |dir: &OwnedFd| file::stat(dir.as_fd()).unwrap().st_ino;
        let wanted = std::os::unix::fs::MetadataExt::ino(
            &std::fs::File::open(dir.path().join("a/b")).unwrap().metadata().unwrap(),
        );
        for path in ["a/b", "/a/b", "./a//b/"] {
            let tree = tree(dir.path(), Version::V2, &[""]).below(&[path.to_owned()]).unwrap();
            assert_eq!(inode(&tree.dirs[0].1), wanted, "{path}");
        }
        let tree = tree(dir.path(), Version::V1, &["cpu,cpuacct", "memory", "pids"]);
        let tree = tree.below(&["cpuacct,pids:a/b".to_owned()]).unwrap();
        let below: Vec<bool> = tree.dirs.iter().map(|(_, dir)| inode(dir) == wanted).collect();
        assert_eq!(below, [true, false, true]);
    }

    #[test]
    fn what_is_not_below_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let v1: &[&str] = &["cpu,cpuacct", "memory"];
        for (version, names, wanted, words) in [
            (Version::V2, &[""][..], &["../x"][..], "../x is not a sub cgroup path: it leaves"),
            (Version::V2, &[""], &["no-such"], "adding pid to .../no-such/cgroup.procs: no such file"),
            (Version::V2, &[], &["a"], "the container has no cgroup"),
            (Version::V1, v1, &["a"], "adding pid to cpu,cpuacct/.../a/cgroup.procs: no such file"),
            (Version::V1, v1, &["io:a"], "unknown controller \"io\"; write it like cpu,memory:PATH"),
            (Version::V1, v1, &["cpu:/", "cpuacct:/"], "\"cpuacct:/\": this hierarchy is named already"),
        ] {
            let wanted: Vec<String> = wanted.iter().map(|w| (*w).to_owned()).collect();
            let error = tree(dir.path(), version, names).below(&wanted).unwrap_err().to_string();
            assert!(error.starts_with(words), "{error}");
        }
    }
}
