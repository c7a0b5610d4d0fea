//! The labels under which security modules confine the program.
//!
//! They are written to files of procfs that only the process itself may write. Those are opened while the host's
//! procfs is still the one that is seen, or in one that nobody else sees, and verified: what is at `/proc` of a container,
//! its image or a mount of its configuration may have put there (CVE-2019-16884, CVE-2025-52881).

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use coracle_sys::Errno;
use coracle_sys::file::{self, Resolve};
use coracle_sys::mount::{self, attr};

use crate::error::{Code, Context, Error, Result};
use crate::stages::plan::process::ProcessPlan;

/// The open files that take the labels that the process is to get.
#[derive(Debug, Default)]
pub(super) struct Labels {
    apparmor: Option<OwnedFd>,
    selinux: Option<Selinux>,
}

#[derive(Debug)]
struct Selinux {
    program: OwnedFd,
    keys: OwnedFd,
}

impl Labels {
    /// Opens what `plan` needs; `is_inside` tells whether the process has left the host's mounts.
    pub(super) fn open(plan: &ProcessPlan, is_inside: bool) -> Result<Self> {
        if plan.apparmor_profile.is_none() && plan.selinux_label.is_none() {
            return Ok(Self::default());
        }
        let attributes = if is_inside { own_attributes() } else { super::host_proc("self/attr") };
        let attributes = attributes.context(
            || "opening what labels are written to (/process/apparmorProfile, /process/selinuxLabel)",
        )?;
        let apparmor = plan.apparmor_profile.as_ref().map(|_| apparmor(attributes.as_fd()));
        let selinux = plan.selinux_label.as_ref().map(|_| {
            let (program, keys) = (open(attributes.as_fd(), "exec")?, open(attributes.as_fd(), "keycreate")?);
            Ok::<_, Error>(Selinux { program, keys })
        });
        Ok(Self { apparmor: apparmor.transpose()?, selinux: selinux.transpose()? })
    }

    /// The descriptors' numbers: what must not be closed yet.
    pub(super) fn descriptors(&self) -> impl Iterator<Item = i32> {
        let selinux = self.selinux.iter().flat_map(|s| [&s.program, &s.keys]);
        self.apparmor.iter().chain(selinux).map(AsRawFd::as_raw_fd)
    }

    /// Does `make`, which makes keys that the program is to use, under the program's label.
    pub(super) fn with_keys(&self, plan: &ProcessPlan, make: impl FnOnce() -> Result<()>) -> Result<()> {
        let (Some(selinux), Some(label)) = (&self.selinux, &plan.selinux_label) else { return make() };
        write(selinux.keys.as_fd(), label).context(|| "labelling keys (/process/selinuxLabel)")?;
        make()?;
        // A line alone takes the label back; nothing at all would not be a write.
        write(selinux.keys.as_fd(), "\n").context(|| "no longer labelling keys (/process/selinuxLabel)")
    }

    /// Labels whatever the process executes next.
    pub(super) fn label_program(self, plan: &ProcessPlan) -> Result<()> {
        if let (Some(file), Some(profile)) = (self.apparmor, &plan.apparmor_profile) {
            write(file.as_fd(), &format!("exec {profile}"))
                .map_err(|e| match e.errno() {
                    Some(Errno::ENOENT) => e.hint("is the profile loaded? aa-status tells"),
                    _ => e,
                })
                .context(|| {
                    format!("apparmor failed to apply profile {profile:?} (/process/apparmorProfile)")
                })?;
        }
        if let (Some(selinux), Some(label)) = (self.selinux, &plan.selinux_label) {
            write(selinux.program.as_fd(), label)
                .context(|| format!("can't set process label {label:?} (/process/selinuxLabel)"))?;
        }
        Ok(())
    }
}

/// AppArmor's own file, or on kernels before 5.8 the one that it shares with other modules.
fn apparmor(attributes: BorrowedFd<'_>) -> Result<OwnedFd> {
    match open(attributes, "apparmor/exec") {
        Err(e) if e.errno() == Some(Errno::ENOENT) => open(attributes, "exec"),
        other => other,
    }
}

/// The process's own attributes in a procfs of its PID namespace that shows nothing but processes: whoever looks over its
/// descriptors finds no `/proc/sys` there.
fn own_attributes() -> Result<OwnedFd> {
    let procfs = match new_procfs() {
        // In a user namespace the kernel makes none for who sees none as a whole.
        Err(e) if e.errno() == Errno::EPERM => procfs_of_container()?,
        made => made?,
    };
    let own = file::read_link(procfs.as_fd(), "self")?;
    let path = Path::new(&own).join("attr");
    Ok(file::open(procfs.as_fd(), path, libc::O_DIRECTORY | libc::O_RDONLY, 0, Resolve::SameMount)?)
}

fn new_procfs() -> coracle_sys::Result<OwnedFd> {
    let procfs = mount::Context::open("proc")?;
    procfs.set("subset", b"pid")?;
    procfs.mount(attr::NOSUID | attr::NODEV | attr::NOEXEC)
}

/// Its root, whatever led there. Nothing that was mounted in it is entered, and only the process itself may write its labels.
fn procfs_of_container() -> Result<OwnedFd> {
    /// The inode of the root of every procfs.
    const ROOT: u64 = 1;
    let dir = super::host_proc("")?;
    if file::stat(dir.as_fd())?.st_ino != ROOT {
        return Err(Error::new(Code::System, "the container's /proc is no procfs"));
    }
    Ok(dir)
}

fn open(attributes: BorrowedFd<'_>, name: &str) -> Result<OwnedFd> {
    let file = file::open(attributes, name, libc::O_WRONLY, 0, Resolve::SameMount)?;
    if file::file_system(file.as_fd())? != nix::sys::statfs::PROC_SUPER_MAGIC {
        return Err(Error::new(Code::System, format!("/proc/self/attr/{name} is no file of procfs")));
    }
    Ok(file)
}

fn write(file: BorrowedFd<'_>, text: &str) -> Result<()> {
    Ok(file::write_all(file, text.as_bytes())?)
}
