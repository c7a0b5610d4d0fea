//! Making a container's cgroups, so that a process can live in them.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use coracle_sys::Errno;
use coracle_sys::file::{self, Resolve};

use super::tree::processes_below;
use super::{Hierarchy, Holder, LONGEST, Place, Site, Tree, Wanted, mount_point};
use crate::error::{Code, Context, Error, Result};

/// The way out for who may make none.
const NO_RIGHT: &str = "rootless needs no limits + no cgrouppath when no permission is granted for cgroups";

/// The way out for who would enter a frozen cgroup.
const THAW: &str = "thaw it or the one above it, or give the container another /linux/cgroupsPath";

/// The way out for who shares a cgroup.
const OWN_PATH: &str = "give the container a /linux/cgroupsPath of its own";

impl Place {
    /// Makes the cgroups, or has systemd make them with what is `wanted` of it, and opens them. Where one turns out to
    /// be another container's, it and those that were not reached are marked to stay. Those that the caller may not make
    /// are left out where they are optional. The holder, of a scope of systemd, goes when the container's process is in.
    ///
    /// # Errors
    /// `Exists` where one is there and holds processes, or another launch is about to enter it: two containers must
    /// not share one, because the end of the first would be the end of the second. `IllegalState` where it is frozen. `Unsupported` where there is no
    /// systemd to ask.
    pub fn make(&mut self, wanted: &Wanted<'_>) -> Result<(Tree, Option<Holder>)> {
        let root = mount_point()?;
        let ((dirs, refused), holder) = match self.unit.clone() {
            None => (self.make_directories(root.as_fd())?, None),
            Some(unit) => match unit.start(wanted, self.version) {
                Ok(holder) => ((self.open_scope(root.as_fd())?, None), Some(holder)),
                Err(failure) if failure.code() == Code::Exists => {
                    self.leave_to_others(0);
                    self.unit = None;
                    return Err(failure.hint(OWN_PATH));
                }
                Err(failure) => return Err(failure),
            },
        };
        for ((_, dir), site) in dirs.iter().zip(&self.at) {
            furnish(root.as_fd(), dir.as_fd(), site)
                .context(|| format!("furnishing cgroup {:?}", site.full()))?;
        }
        let tree = Tree { version: self.version, dirs, refused };
        // What is made below a frozen one is frozen, too. The topmost can't be.
        if self.at.iter().any(|site| site.keep > 0) && tree.is_frozen()? {
            // Whoever enters it would stop there, and be waited for without end.
            return Err(
                Error::new(Code::IllegalState, "the container's cgroup unexpectedly frozen").hint(THAW)
            );
        }
        Ok((tree, holder))
    }

    /// What is in the sites from number `from` on is another's, and must not be undone.
    fn leave_to_others(&mut self, from: usize) {
        self.at[from..].iter_mut().for_each(|site| site.keep = site.depth());
    }

    /// systemd makes a scope's cgroup in the hierarchies that it looks after; the rest are ours to make.
    fn open_scope(&self, root: BorrowedFd<'_>) -> Result<Vec<(Hierarchy, OwnedFd)>> {
        let open = |site: &Site| -> Result<OwnedFd> {
            let full = site.full();
            make_parents(root, &site.hierarchy, &site.path)?;
            match file::mkdir(root, &full, 0o755) {
                Err(e) if e.errno() != Errno::EEXIST => return Err(e.into()),
                _ => {}
            }
            Ok(file::open(root, &full, libc::O_DIRECTORY, 0, Resolve::BeneathNoLinks)?)
        };
        let opened = |site: &Site| {
            let dir = open(site).context(|| {
                format!("making cgroup {:?} in hierarchy {:?}", site.path, site.hierarchy.name)
            })?;
            Ok((site.hierarchy.clone(), dir))
        };
        self.at.iter().map(opened).collect()
    }

    fn make_directories(&mut self, root: BorrowedFd<'_>) -> Result<Made> {
        let mut dirs = Vec::with_capacity(self.at.len());
        let mut refused = None;
        while let Some(site) = self.at.get(dirs.len()) {
            let Site { hierarchy, path, .. } = site;
            let can_lack = || self.can_lack(hierarchy);
            let name = || format!("making cgroup {path:?} in hierarchy {:?}", hierarchy.name);
            // Who is the first in one hierarchy is the first in all.
            match own_or_claim(root, site).context(name) {
                Ok(dir) => dirs.push((hierarchy.clone(), dir)),
                Err(failure) if is_forbidden(&failure) && can_lack() => {
                    refused = Some(failure.hint(NO_RIGHT).to_string());
                    self.at.remove(dirs.len());
                }
                Err(failure) if is_forbidden(&failure) => return Err(failure.hint(NO_RIGHT)),
                Err(failure) => {
                    if failure.code() == Code::Exists {
                        self.leave_to_others(dirs.len());
                    }
                    return Err(failure);
                }
            }
        }
        Ok((dirs, refused))
    }
}

/// Directories that were made, and why others were not.
type Made = (Vec<(Hierarchy, OwnedFd)>, Option<String>);

/// Whether the caller has no right to make a cgroup there.
fn is_forbidden(failure: &Error) -> bool {
    matches!(failure.errno(), Some(Errno::EACCES | Errno::EPERM | Errno::EROFS))
}

/// The mode of a cgroup that was made and not yet [claimed](claim). A launch that found it then would be the first to lock
/// it, and neither would remove it. Who makes one waits for nobody: what all launches could lock, any user can.
const UNCLAIMED: u32 = 0o700;

/// Waits until who made the cgroup has claimed it: for a moment. An operator's may be of that mode for good.
fn wait_for_claim(dir: BorrowedFd<'_>) -> Result<()> {
    let deadline = Instant::now() + Duration::from_millis(100);
    while file::stat(dir)?.st_mode & 0o777 == UNCLAIMED && Instant::now() < deadline {
        std::thread::sleep(Duration::from_micros(50));
    }
    Ok(())
}

/// Nobody is long about it: whoever has the lock for a second is no launch, since any user can take it, and must not keep
/// containers from starting.
fn wait_for_lock(dir: BorrowedFd<'_>) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(1);
    loop {
        match file::lock(dir, false) {
            Err(e) if e.errno() == Errno::EAGAIN && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_micros(50));
            }
            Err(e) if e.errno() != Errno::EAGAIN => return Err(e.into()),
            _ => return Ok(()),
        }
    }
}

/// Keeps every other launch out of a new cgroup until this one's process is in: the lock ends with the descriptor, and from
/// then on the process is there to be seen. Until it is locked nobody else can open it, and so lock it first.
fn claim(dir: BorrowedFd<'_>) -> Result<()> {
    match file::lock(dir, false) {
        Err(e) if e.errno() == Errno::EAGAIN => Err(in_use("another container is being made in it")),
        other => Ok(other?),
    }?;
    Ok(file::chmod(dir, 0o755)?)
}

fn in_use(why: &str) -> Error {
    Error::new(Code::Exists, why).hint(OWN_PATH)
}

/// Opens a cgroup in which nobody is and nobody else is about to be.
fn own_or_claim(root: BorrowedFd<'_>, site: &Site) -> Result<OwnedFd> {
    let full = site.full();
    let is_own = site.keep < site.depth();
    if is_own {
        make_own(root, site, &full)?;
    }
    let dir = match file::open(root, &full, libc::O_DIRECTORY, 0, Resolve::BeneathNoLinks) {
        Err(e) if e.errno() == Errno::ENOENT => {
            return Err(Error::from(e).hint("it went while the container was made: try again"));
        }
        other => other?,
    };
    if is_own {
        claim(dir.as_fd())?;
        return Ok(dir);
    }
    wait_for_claim(dir.as_fd())?;
    wait_for_lock(dir.as_fd())?;
    if !processes_below(dir.as_fd())?.is_empty() {
        return Err(in_use("the container's cgroup is not empty: it is there already and holds processes"));
    }
    Ok(dir)
}

/// Gives a new cgroup what a process needs in it: CPUs and memory, and the controllers.
fn furnish(root: BorrowedFd<'_>, dir: BorrowedFd<'_>, site: &Site) -> Result<()> {
    let full = site.full();
    inherit_cpuset(root, &site.hierarchy, &full, dir)?;
    if site.hierarchy.name.is_empty() {
        pass_controllers_down(root, &full)?;
    }
    Ok(())
}

/// Makes a cgroup that was not there when it was planned, and its parents.
fn make_own(root: BorrowedFd<'_>, site: &Site, full: &Path) -> Result<()> {
    // A parent that another container's end removes in between is made once more.
    for _ in 0..8 {
        match file::mkdir(root, full, UNCLAIMED) {
            Ok(()) => return Ok(()),
            Err(e) if e.errno() == Errno::EEXIST => return Err(in_use("another made it in the meantime")),
            Err(e) if e.errno() == Errno::ENOENT => make_parents(root, &site.hierarchy, &site.path)?,
            Err(e) => return Err(e.into()),
        }
    }
    Err(Error::new(Code::System, "its parent is being removed again and again"))
}

/// Makes what leads to the container's own cgroup.
fn make_parents(root: BorrowedFd<'_>, hierarchy: &Hierarchy, path: &Path) -> Result<()> {
    let mut here = PathBuf::from(&hierarchy.name);
    for component in path.parent().into_iter().flat_map(Path::components) {
        here.push(component);
        match file::mkdir(root, &here, 0o755) {
            Err(e) if e.errno() != Errno::EEXIST => return Err(e.into()),
            _ => {}
        }
        let dir = file::open(root, &here, libc::O_DIRECTORY, 0, Resolve::BeneathNoLinks)?;
        inherit_cpuset(root, hierarchy, &here, dir.as_fd())?;
    }
    Ok(())
}

/// A version 1 cpuset starts without CPUs and memory nodes, and nothing can run in it before it has some: it gets
/// its parent's, and the parent its own parent's where it has none either.
fn inherit_cpuset(
    root: BorrowedFd<'_>,
    hierarchy: &Hierarchy,
    full: &Path,
    dir: BorrowedFd<'_>,
) -> Result<()> {
    if hierarchy.unified || !hierarchy.controllers().iter().any(|c| c == "cpuset") {
        return Ok(());
    }
    let mut is_empty = false;
    for name in ["cpuset.cpus", "cpuset.mems"] {
        let own = file::read(dir, name, LONGEST, Resolve::Beneath)?;
        if own.trim_ascii().is_empty() {
            fill_cpuset(root, full, name)?;
            is_empty = true;
        }
    }
    if let Some(parent) = full.parent().filter(|_| is_empty) {
        // The next begins with its parent's. Each write makes the kernel look at all other cpusets: a tenth of a
        // start among a thousand containers. Whoever may not say so goes on writing.
        let _ = file::write_to(root, parent.join("cgroup.clone_children"), b"1", Resolve::BeneathNoLinks);
    }
    Ok(())
}

fn fill_cpuset(root: BorrowedFd<'_>, full: &Path, name: &str) -> Result<Vec<u8>> {
    let file = full.join(name);
    let own = file::read(root, &file, LONGEST, Resolve::BeneathNoLinks)?;
    let Some(parent) = full.parent().filter(|_| own.trim_ascii().is_empty()) else { return Ok(own) };
    let inherited = fill_cpuset(root, parent, name)?;
    file::write_to(root, &file, inherited.trim_ascii(), Resolve::BeneathNoLinks)?;
    Ok(inherited)
}

/// On version 2 a cgroup has the controllers that its parent passes down (`cgroup.subtree_control`): those that
/// are missing on the way to `full` are added.
fn pass_controllers_down(root: BorrowedFd<'_>, full: &Path) -> Result<()> {
    let mut here = PathBuf::new();
    for component in full.components() {
        let read = |name: &str| file::read(root, here.join(name), LONGEST, Resolve::BeneathNoLinks);
        let passed = String::from_utf8_lossy(&read("cgroup.subtree_control")?).into_owned();
        let available = String::from_utf8_lossy(&read("cgroup.controllers")?).into_owned();
        let is_passed = |name: &str| passed.split_whitespace().any(|p| p == name);
        for controller in available.split_whitespace().filter(|c| !is_passed(c)) {
            // One that can't be passed down (processes are in this very cgroup, or it is threaded) is missed by
            // the isolator that needs it, which can say what for.
            let file = here.join("cgroup.subtree_control");
            let _ = file::write_to(root, file, format!("+{controller}").as_bytes(), Resolve::BeneathNoLinks);
        }
        here.push(component);
    }
    Ok(())
}
