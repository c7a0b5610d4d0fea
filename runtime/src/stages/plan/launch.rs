//! The launch plan: all that the child will do, as data. `coracle plan` prints it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use coracle_isolator_host::Adjusted;
use coracle_sys::mount::Propagation;
use oci_spec::runtime::{Hook, LinuxDevice, LinuxDeviceType, Spec};
use serde::Serialize;

use super::mounts::{self, MountPlan, Source};
use super::namespaces::{self, Namespaces};
use super::process::ProcessPlan;
use super::{below_root, linux};
use crate::error::{Code, Error, Result};

/// All that the child will do.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Launch {
    /// The namespaces it is born with and those it joins.
    pub namespaces: Namespaces,
    /// The container's inside; `None` for a process that is executed in one that stands.
    pub inside: Option<Inside>,
    /// What it becomes.
    pub process: ProcessPlan,
}

/// The inside of a container, as the child builds it, in the order of the fields.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Inside {
    /// The host name.
    pub hostname: Option<String>,
    /// The NIS domain name.
    pub domainname: Option<String>,
    /// Kernel parameters of the container's namespaces, as paths below `/proc/sys`.
    pub sysctl: BTreeMap<String, String>,
    /// The root file system's absolute path on the host.
    pub rootfs: PathBuf,
    /// Whether the mount namespace is new. In another one, mounts are others' to see, and nobody else's root may
    /// be changed.
    pub own_mounts: bool,
    /// How mount events travel between host and container, and whether in the whole tree.
    #[serde(skip)]
    pub propagation: Option<(Propagation, bool)>,
    /// The mounts, in order.
    pub mounts: Vec<MountPlan>,
    /// The device nodes; none at all, and no links beside them, where `/dev` is the host's or another's.
    pub devices: Vec<Device>,
    /// Whether the process's terminal is mounted on `/dev/console`.
    pub console: bool,
    /// Hooks that run in the container's namespaces before its root is entered.
    #[serde(skip)]
    pub create_hooks: Vec<Hook>,
    /// The SELinux label of the files of new file systems.
    pub mount_label: Option<String>,
    /// Paths that are covered, below the root.
    pub masked_paths: Vec<PathBuf>,
    /// Paths that are made read-only, below the root.
    pub readonly_paths: Vec<PathBuf>,
    /// Whether the root is read-only.
    pub readonly: bool,
    /// Hooks that run just before the user's program.
    #[serde(skip)]
    pub start_hooks: Vec<Hook>,
}

/// A device node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Device {
    /// Where it goes, below the root.
    pub target: PathBuf,
    /// Its type (`S_IFCHR`, `S_IFBLK`, `S_IFIFO`).
    pub kind: u32,
    /// Its numbers.
    pub major: u32,
    /// Its numbers.
    pub minor: u32,
    /// Its permission bits.
    pub mode: u32,
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
}

impl Device {
    /// Whether every container has it just so.
    pub fn is_default(&self) -> bool {
        (self.kind, self.mode, self.uid, self.gid) == (libc::S_IFCHR, 0o666, 0, 0)
            && DEFAULT_DEVICES.iter().any(|(target, major, minor)| {
                (self.target.as_path(), self.major, self.minor) == (Path::new(target), *major, *minor)
            })
    }
}

/// The devices of every container (runtime-spec 1.3, config-linux.md, "Default Devices").
const DEFAULT_DEVICES: [(&str, u32, u32); 6] = [
    ("dev/null", 1, 3),
    ("dev/zero", 1, 5),
    ("dev/full", 1, 7),
    ("dev/random", 1, 8),
    ("dev/urandom", 1, 9),
    ("dev/tty", 5, 0),
];

impl Launch {
    /// The plan of a container of `spec` with its root at `rootfs`, without what isolators decide.
    ///
    /// # Errors
    /// `InvalidSpec`, `Unsupported`.
    pub fn new(spec: &Spec, rootfs: &Path) -> Result<Self> {
        let process = ProcessPlan::new(spec)?;
        let namespaces = namespaces::plan(spec)?;
        let inside = Inside::new(spec, rootfs, &namespaces)?;
        Ok(Self { namespaces, inside: Some(inside), process })
    }

    /// The plan as the isolators left it.
    ///
    /// # Errors
    /// `InvalidSpec`, `Unsupported`.
    pub fn adjusted(mut adjusted: Adjusted, rootfs: &Path) -> Result<(Self, Spec)> {
        let mut launch = Self::new(&adjusted.spec, rootfs)?;
        launch.process.adjust(&mut adjusted);
        Ok((launch, adjusted.spec))
    }
}

impl Inside {
    fn new(spec: &Spec, rootfs: &Path, namespaces: &Namespaces) -> Result<Self> {
        let linux = linux(spec)?;
        let mount_label = linux.mount_label().clone().filter(|label| !label.is_empty());
        let all = spec.mounts().as_deref().unwrap_or_default();
        let hooks = spec.hooks().clone().unwrap_or_default();
        let paths = |list: &Option<Vec<String>>| {
            list.iter().flatten().map(|p| below_root(Path::new(p))).collect::<Vec<_>>()
        };
        let mounts = all
            .iter()
            .enumerate()
            .map(|(index, mount)| {
                let plan = mounts::plan(index, mount, linux)?.placed(&all[..index], rootfs);
                Ok(MountPlan { label: mount_label.clone(), ..plan.forgetful(namespaces.in_user()) })
            })
            .collect::<Result<Vec<_>>>()?;
        let mut sysctl: BTreeMap<String, String> =
            linux.sysctl().iter().flatten().map(|(name, value)| (sysctl_path(name), value.clone())).collect();
        // Its file can be written by the host's root alone; setdomainname(2) is for the namespace's own, too.
        let domainname = sysctl.remove("kernel/domainname").or_else(|| spec.domainname().clone());
        Ok(Self {
            hostname: spec.hostname().clone().filter(|name| !name.is_empty()),
            domainname: domainname.filter(|name| !name.is_empty()),
            sysctl,
            rootfs: rootfs.to_owned(),
            own_mounts: namespaces.new_mount(),
            propagation: linux
                .rootfs_propagation()
                .as_deref()
                .filter(|word| !word.is_empty())
                .map(mounts::propagation)
                .transpose()?,
            devices: devices(spec, &mounts)?,
            mounts,
            console: true,
            create_hooks: hooks.create_container().clone().unwrap_or_default(),
            mount_label,
            masked_paths: paths(linux.masked_paths()),
            readonly_paths: paths(linux.readonly_paths()),
            readonly: spec.root().as_ref().and_then(oci_spec::runtime::Root::readonly).unwrap_or(false),
            start_hooks: hooks.start_container().clone().unwrap_or_default(),
        })
    }
}

/// Where a kernel parameter is below `/proc/sys`. As sysctl(8) has it, the first of `.` and `/` in the name
/// separates, and the other is part of a name (an interface `eth0.1`).
pub fn sysctl_path(name: &str) -> String {
    match name.find(['.', '/']).map(|at| name.as_bytes()[at]) {
        Some(b'.') => name
            .chars()
            .map(|c| match c {
                '.' => '/',
                '/' => '.',
                c => c,
            })
            .collect(),
        _ => name.to_owned(),
    }
}

/// The default devices, and the configuration's, which may replace them. None where something is bound over `/dev`: it
/// is not the container's to change.
fn devices(spec: &Spec, mounts: &[MountPlan]) -> Result<Vec<Device>> {
    let is_bound = |m: &MountPlan| m.target == Path::new("dev") && matches!(m.source, Source::Bind { .. });
    if mounts.iter().any(is_bound) {
        return Ok(Vec::new());
    }
    let mut devices: Vec<Device> = DEFAULT_DEVICES
        .iter()
        .map(|&(target, major, minor)| Device {
            target: target.into(),
            kind: libc::S_IFCHR,
            major,
            minor,
            mode: 0o666,
            uid: 0,
            gid: 0,
        })
        .collect();
    for (index, wanted) in linux(spec)?.devices().iter().flatten().enumerate() {
        let device = device(wanted).map_err(|(name, why)| {
            Error::new(Code::InvalidSpec, format!("/linux/devices/{index}/{name} {why}"))
        })?;
        devices.retain(|d| d.target != device.target);
        devices.push(device);
    }
    Ok(devices)
}

/// A device of the configuration, or the field that is wrong and why.
fn device(wanted: &LinuxDevice) -> std::result::Result<Device, (&'static str, String)> {
    let kind = kind(wanted.typ()).ok_or_else(|| ("type", "is not b, c, u or p".to_owned()))?;
    // As the kernel packs them: 12 bits and 20 (`include/linux/kdev_t.h`).
    let number = |name, n: i64, bits: u32| match u32::try_from(n) {
        // A pipe has no numbers.
        _ if kind == libc::S_IFIFO => Ok(0),
        Ok(n) if n >> bits == 0 => Ok(n),
        _ => Err((name, format!("is {n}, and goes from 0 to {}", (1 << bits) - 1))),
    };
    Ok(Device {
        target: below_root(wanted.path()),
        kind,
        major: number("major", wanted.major(), 12)?,
        minor: number("minor", wanted.minor(), 20)?,
        mode: wanted.file_mode().unwrap_or(0o666) & 0o7777,
        uid: wanted.uid().unwrap_or(0),
        gid: wanted.gid().unwrap_or(0),
    })
}

fn kind(kind: LinuxDeviceType) -> Option<u32> {
    match kind {
        LinuxDeviceType::B => Some(libc::S_IFBLK),
        LinuxDeviceType::C | LinuxDeviceType::U => Some(libc::S_IFCHR),
        LinuxDeviceType::P => Some(libc::S_IFIFO),
        LinuxDeviceType::A => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mount_knows_the_mount_label() {
        let spec = serde_json::from_value(serde_json::json!({
            "ociVersion": "1.2.0", "root": {"path": "r"},
            "process": {"user": {"uid": 0, "gid": 0}, "cwd": "/", "args": ["true"]},
            "mounts": [{"destination": "/d", "type": "tmpfs"}],
            "linux": {"namespaces": [{"type": "mount"}], "mountLabel": "l"},
        }));
        let inside = Launch::new(&spec.unwrap(), Path::new("/r")).unwrap().inside.unwrap();
        assert_eq!(inside.mounts[0].label.as_deref(), Some("l"));
        assert_eq!(inside.mount_label.as_deref(), Some("l"));
    }

    #[test]
    fn the_first_separator_of_a_kernel_parameter_decides() {
        assert_eq!(sysctl_path("net.ipv4.ip_forward"), "net/ipv4/ip_forward");
        assert_eq!(sysctl_path("net/ipv4/conf/eth0.1/rp_filter"), "net/ipv4/conf/eth0.1/rp_filter");
        assert_eq!(sysctl_path("net.ipv4.conf.eth0/1.rp_filter"), "net/ipv4/conf/eth0.1/rp_filter");
    }
}
