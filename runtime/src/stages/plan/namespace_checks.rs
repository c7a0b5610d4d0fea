//! The checks of what concerns namespaces: each field has the namespace that it needs, and no two contradict.

use std::os::fd::AsFd;
use std::path::Path;

use coracle_isolator::pointer;
use coracle_sys::file::{self, Resolve};
use oci_spec::runtime::{LinuxIdMapping, LinuxNamespace, LinuxNamespaceType, Spec};

use super::checks::{Check, invalid};
use super::launch::sysctl_path;
use super::linux;
use super::namespaces::{clone_flag, name_of, path_of};
use crate::error::Result;

/// The longest host name or domain name of Linux, in bytes (sethostname(2)).
const LONGEST_HOST_NAME: usize = 64;

pub(super) const CHECKS: &[Check] = &[
    covers_have_their_namespace,
    namespaces_are_named_once,
    host_name_is_sound,
    id_mappings_have_their_namespace,
    ids_are_mapped,
    time_offsets_have_their_namespace,
    sysctls_have_their_namespace,
];

/// Whether the configuration asks for a new namespace of kind `kind`, or joins one that is not the runtime's own.
fn has_own(spec: &Spec, kind: LinuxNamespaceType) -> bool {
    let Some(namespace) = namespace(spec, kind) else { return false };
    let file = match name_of(clone_flag(kind)) {
        "network" => "net",
        "mount" => "mnt",
        name => name,
    };
    let identity = |path: &Path| {
        let fd = file::open(file::CWD, path, libc::O_PATH, 0, Resolve::Host).ok()?;
        file::stat(fd.as_fd()).ok().map(|stat| (stat.st_dev, stat.st_ino))
    };
    // What can't be opened is nobody's; joining it will tell.
    path_of(namespace)
        .and_then(|path| identity(path))
        .is_none_or(|joined| identity(&Path::new("/proc/self/ns").join(file)) != Some(joined))
}

fn namespace(spec: &Spec, kind: LinuxNamespaceType) -> Option<&LinuxNamespace> {
    linux(spec).ok()?.namespaces().iter().flatten().find(|n| n.typ() == kind)
}

/// In the runtime's mount namespace, what is covered would be covered for the host, too. One that is joined by path is
/// the business of whoever made it.
fn covers_have_their_namespace(spec: &Spec) -> Result<()> {
    let linux = linux(spec)?;
    let lists = [("maskedPaths", linux.masked_paths()), ("readonlyPaths", linux.readonly_paths())];
    let covered = lists.iter().find(|(_, paths)| paths.as_ref().is_some_and(|paths| !paths.is_empty()));
    match covered {
        Some((list, _)) if !has_own(spec, LinuxNamespaceType::Mount) => {
            Err(invalid(format!("/linux/{list} is set but /linux/namespaces has no \"mount\""))
                .hint("unable to restrict sys entries without a private MNT namespace"))
        }
        _ => Ok(()),
    }
}

fn namespaces_are_named_once(spec: &Spec) -> Result<()> {
    let mut seen = Vec::new();
    for (index, namespace) in linux(spec)?.namespaces().iter().flatten().enumerate() {
        let field = format!("/linux/namespaces/{index}");
        if seen.contains(&namespace.typ()) {
            let kind = name_of(clone_flag(namespace.typ()));
            return Err(invalid(format!("{field}/type: {kind:?} stands twice")).hint("leave one out"));
        }
        if let Some(path) = path_of(namespace)
            && !path.is_absolute()
        {
            return Err(invalid(format!("{field}/path is {path:?}, not an absolute path")));
        }
        seen.push(namespace.typ());
    }
    Ok(())
}

fn host_name_is_sound(spec: &Spec) -> Result<()> {
    for (field, name) in [("hostname", spec.hostname()), ("domainname", spec.domainname())] {
        let length = name.as_ref().map_or(0, String::len);
        if length > LONGEST_HOST_NAME {
            return Err(invalid(format!(
                "/{field} has {length} bytes, more than the {LONGEST_HOST_NAME} of Linux"
            )));
        }
        if length > 0 && !has_own(spec, LinuxNamespaceType::Uts) {
            return Err(invalid(format!("/{field} is set but /linux/namespaces has no \"uts\""))
                .hint("add it, or the host would be renamed"));
        }
    }
    Ok(())
}

fn id_mappings_have_their_namespace(spec: &Spec) -> Result<()> {
    let linux = linux(spec)?;
    let is_mapped = |m: &Option<Vec<_>>| m.as_ref().is_some_and(|m| !m.is_empty());
    let (users, groups) = (is_mapped(linux.uid_mappings()), is_mapped(linux.gid_mappings()));
    match namespace(spec, LinuxNamespaceType::User) {
        None if users || groups => {
            let field = if users { "uidMappings" } else { "gidMappings" };
            Err(invalid(format!("/linux/{field} is set but /linux/namespaces has no \"user\""))
                .hint("add it, or leave the mappings out"))
        }
        Some(own) if path_of(own).is_none() && !(users && groups) => {
            let field = if users { "gidMappings" } else { "uidMappings" };
            Err(invalid(format!("/linux/{field} is empty but /linux/namespaces has \"user\""))
                .hint("map at least the user and the group of the process"))
        }
        _ => Ok(()),
    }
}

fn time_offsets_have_their_namespace(spec: &Spec) -> Result<()> {
    let Some(offsets) = linux(spec)?.time_offsets().as_ref().filter(|offsets| !offsets.is_empty()) else {
        return Ok(());
    };
    if let Some(clock) = offsets.keys().find(|clock| !["boottime", "monotonic"].contains(&clock.as_str())) {
        return Err(invalid(format!("{}: no such clock", pointer("/linux/timeOffsets", clock)))
            .hint("only boottime and monotonic have offsets"));
    }
    match namespace(spec, LinuxNamespaceType::Time) {
        None => Err(invalid("/linux/timeOffsets is set but /linux/namespaces has no \"time\"")),
        Some(joined) if path_of(joined).is_some() => {
            Err(invalid("/linux/timeOffsets is set but the time namespace is joined by path")
                .hint("its offsets can't be changed any more"))
        }
        Some(_) => Ok(()),
    }
}

/// A sysctl that no namespace of the container holds would be the host's.
fn sysctls_have_their_namespace(spec: &Spec) -> Result<()> {
    for (name, value) in linux(spec)?.sysctl().iter().flatten() {
        let field = pointer("/linux/sysctl", name);
        let kind = sysctl_kind(&field, name, value)?;
        if sysctl_path(name) == "kernel/hostname" {
            return Err(
                invalid(format!("{field} is /hostname by another name")).hint("set /hostname instead")
            );
        }
        if !has_own(spec, kind) {
            let kind = name_of(clone_flag(kind));
            return Err(invalid(format!(
                "{field} is set but /linux/namespaces has no {kind:?} but the host's"
            ))
            .hint("add it, or the host's would be set"));
        }
    }
    Ok(())
}

/// The kind of namespaces that hold the kernel parameter `name`, which a document sets to `value` in its field `field`.
///
/// # Errors
/// `InvalidSpec` where it is malformed, or the whole machine's.
pub fn sysctl_kind(field: &str, name: &str, value: &str) -> Result<LinuxNamespaceType> {
    let path = sysctl_path(name);
    if path.split('/').any(|part| part.is_empty() || part.starts_with('.')) || value.contains(['\n', '\0']) {
        return Err(invalid(format!("{field} is malformed")).hint("names are like net.ipv4.ip_forward"));
    }
    namespace_of(&path)
        .ok_or_else(|| invalid(format!("{field} belongs to no namespace")).hint("set it on the host"))
}

/// The kind of namespaces that hold the kernel parameter at `path` below `/proc/sys`.
fn namespace_of(path: &str) -> Option<LinuxNamespaceType> {
    const IPC: &[&str] = &[
        "msgmax",
        "msgmnb",
        "msgmni",
        "sem",
        "shmall",
        "shmmax",
        "shmmni",
        "shm_rmid_forced",
        "auto_msgmni",
        "msg_next_id",
        "sem_next_id",
        "shm_next_id",
    ];
    match path.split_once('/')? {
        ("net", _) => Some(LinuxNamespaceType::Network),
        ("user", _) => Some(LinuxNamespaceType::User),
        ("fs", rest) if rest.starts_with("mqueue/") => Some(LinuxNamespaceType::Ipc),
        ("kernel", "domainname" | "hostname") => Some(LinuxNamespaceType::Uts),
        ("kernel", name) if IPC.contains(&name) => Some(LinuxNamespaceType::Ipc),
        _ => None,
    }
}

/// A user or group that the container's user namespace does not map is none in it. What a joined namespace maps is
/// not known here; there the kernel tells.
///
/// # Errors
/// `InvalidSpec`, with the field and the ID.
pub fn ids_are_mapped(spec: &Spec) -> Result<()> {
    let (Some(process), Ok(linux)) = (spec.process(), linux(spec)) else { return Ok(()) };
    let user = process.user();
    let maps = |maps: &Option<Vec<LinuxIdMapping>>, id: u32| {
        let holds = |m: &LinuxIdMapping| id.checked_sub(m.container_id()).is_some_and(|n| n < m.size());
        maps.as_ref().is_none_or(|maps| maps.is_empty() || maps.iter().any(holds))
    };
    let unmapped = |field: &str, id: u32, maps: &str| {
        let why = format!("/process/user/{field} is {id}, which /linux/{maps} does not map");
        Err(invalid(why).hint("cannot use an unmapped ID in a user namespace: map it, or choose another"))
    };
    if !maps(linux.uid_mappings(), user.uid()) {
        return unmapped("uid", user.uid(), "uidMappings");
    }
    if !maps(linux.gid_mappings(), user.gid()) {
        return unmapped("gid", user.gid(), "gidMappings");
    }
    let mut groups = user.additional_gids().iter().flatten().copied().enumerate();
    match groups.find(|(_, gid)| !maps(linux.gid_mappings(), *gid)) {
        Some((index, gid)) => unmapped(&format!("additionalGids/{index}"), gid, "gidMappings"),
        None => Ok(()),
    }
}
