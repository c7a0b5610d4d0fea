//! `features`: prints what is built in (runtime-spec 1.3, features.md), and apart from it, among the annotations, what
//! the running kernel offers of that.

use std::collections::BTreeMap;

use coracle_isolator_linux::{lsm, rdt, seccomp as filters};
use coracle_sys::file::{self, CWD, Resolve};
use coracle_sys::{landlock, seccomp as kernel_filters};
use serde_json::json;

use crate::cgroup;
use crate::error::Result;
use crate::stages::spec::SPEC_VERSION;

/// Annotations that may give a container more than it has without. What ends with a dot stands for all that begin so
/// (runtime-spec 1.3, features.md, "Unsafe annotations in config.json"); for those of the Container Device Interface, which have a slash
/// there, the specification has no word, so their beginning tells people only.
const UNSAFE_ANNOTATIONS: [&str; 4] =
    ["cdi.k8s.io/", "io.coracle.", "org.systemd.property.", "run.oci.keep_original_groups"];

const MOUNT_OPTIONS: &[&str] = &[
    "acl",
    "async",
    "atime",
    "bind",
    "copy-symlink",
    "defaults",
    "dest-nofollow",
    "dev",
    "diratime",
    "dirsync",
    "exec",
    "idmap",
    "iversion",
    "lazytime",
    "loud",
    "mand",
    "noacl",
    "noatime",
    "nodev",
    "nodiratime",
    "noexec",
    "noiversion",
    "nolazytime",
    "nomand",
    "norelatime",
    "nostrictatime",
    "nosuid",
    "nosymfollow",
    "private",
    "ratime",
    "rbind",
    "rdev",
    "rdiratime",
    "relatime",
    "remount",
    "rexec",
    "ridmap",
    "rnoatime",
    "rnodev",
    "rnodiratime",
    "rnoexec",
    "rnorelatime",
    "rnostrictatime",
    "rnosuid",
    "rnosymfollow",
    "ro",
    "rprivate",
    "rrelatime",
    "rro",
    "rrw",
    "rshared",
    "rslave",
    "rstrictatime",
    "rsuid",
    "rsymfollow",
    "runbindable",
    "rw",
    "shared",
    "silent",
    "slave",
    "src-nofollow",
    "src-nolinks",
    "strictatime",
    "suid",
    "symfollow",
    "sync",
    "tmpcopyup",
    "unbindable",
];

/// What a filter can tell apart on this machine.
const ARCHITECTURES: &[&str] = if cfg!(target_arch = "x86_64") {
    &["SCMP_ARCH_X32", "SCMP_ARCH_X86", "SCMP_ARCH_X86_64"]
} else if cfg!(target_arch = "aarch64") {
    &["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"]
} else {
    &["SCMP_ARCH_RISCV64"]
};

fn seccomp() -> serde_json::Value {
    let known = filters::FLAGS.into_iter().filter(|(_, bits)| kernel_filters::knows_flags(*bits));
    let supported: Vec<&str> = known.map(|(name, _)| name).collect();
    json!({
        "enabled": true,
        "actions": [
            "SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_ACT_KILL", "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_KILL_THREAD",
            "SCMP_ACT_LOG", "SCMP_ACT_NOTIFY", "SCMP_ACT_TRACE", "SCMP_ACT_TRAP",
        ],
        "archs": ARCHITECTURES,
        "knownFlags": filters::FLAGS.map(|(name, _)| name),
        "supportedFlags": supported,
        "operators": [
            "SCMP_CMP_EQ", "SCMP_CMP_GE", "SCMP_CMP_GT", "SCMP_CMP_LE", "SCMP_CMP_LT", "SCMP_CMP_MASKED_EQ",
            "SCMP_CMP_NE",
        ],
    })
}

/// What the running kernel offers of what is built in, where that differs from one to the next.
fn kernel() -> BTreeMap<&'static str, String> {
    let release = file::read(CWD, "/proc/sys/kernel/osrelease", 256, Resolve::Host).unwrap_or_default();
    let namespaces =
        file::open_dir("/proc/self/ns").and_then(|dir| file::list(std::os::fd::AsFd::as_fd(&dir)));
    let mut namespaces: Vec<String> = namespaces
        .unwrap_or_default()
        .iter()
        .map(|name| name.to_string_lossy().into_owned())
        .filter(|name| !name.ends_with("_for_children"))
        .collect();
    namespaces.sort();
    let cgroups = match cgroup::hierarchies() {
        Ok((cgroup::Version::V2, _)) => "v2",
        Ok((_, all)) if all.iter().any(|hierarchy| hierarchy.unified) => "hybrid",
        Ok(_) => "v1",
        Err(_) => "none",
    };
    BTreeMap::from([
        ("io.coracle.kernel.release", String::from_utf8_lossy(&release).trim().to_owned()),
        ("io.coracle.kernel.namespaces", namespaces.join(",")),
        ("io.coracle.kernel.cgroup", cgroups.to_owned()),
        ("io.coracle.kernel.apparmor", lsm::has_apparmor().to_string()),
        ("io.coracle.kernel.selinux", lsm::has_selinux().to_string()),
        ("io.coracle.kernel.intelRdt", rdt::Rdt::default().is_mounted().to_string()),
        ("io.coracle.kernel.landlock", landlock::abi().unwrap_or(0).to_string()),
    ])
}

/// Prints the features.
///
/// # Errors
/// None; the type is that of every command.
pub fn features() -> Result<u8> {
    let mut capabilities: Vec<String> = caps::all().iter().map(ToString::to_string).collect();
    capabilities.sort();
    let mut annotations = kernel();
    annotations.insert("io.coracle.version", env!("CARGO_PKG_VERSION").to_owned());
    let features = json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": SPEC_VERSION,
        "hooks": ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"],
        "mountOptions": MOUNT_OPTIONS,
        "linux": {
            "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"],
            "capabilities": capabilities,
            "cgroup": {
                "v1": true, "v2": true, "systemd": true, "systemdUser": true, "rdma": true,
            },
            "seccomp": seccomp(),
            "apparmor": {"enabled": true},
            "selinux": {"enabled": true},
            "intelRdt": {"enabled": true, "schemata": true, "monitoring": true},
            "memoryPolicy": {
                "modes": [
                    "MPOL_BIND", "MPOL_DEFAULT", "MPOL_INTERLEAVE", "MPOL_LOCAL", "MPOL_PREFERRED",
                    "MPOL_PREFERRED_MANY", "MPOL_WEIGHTED_INTERLEAVE",
                ],
                "flags": ["MPOL_F_NUMA_BALANCING", "MPOL_F_RELATIVE_NODES", "MPOL_F_STATIC_NODES"],
            },
            "mountExtensions": {"idmap": {"enabled": true}},
            "netDevices": {"enabled": true},
        },
        "annotations": annotations,
        "potentiallyUnsafeConfigAnnotations": UNSAFE_ANNOTATIONS,
    });
    crate::print(&format!("{features:#}\n"));
    Ok(0)
}
