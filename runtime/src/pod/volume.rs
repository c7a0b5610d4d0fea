//! The volumes of a pod: made when it starts, gone when it is removed.
//!
//! Those in memory are file systems below the pod's directory, empty directories are on the disk, an image's files in the image
//! store. A volume that is there already stays as it is, so that a pod which is started again finds its files.

use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use coracle_image::bundle::by_depth;
use coracle_sys::file::{self, Resolve};
use coracle_sys::{Errno, mount, touch};
use serde_json::{Value, json};

use super::disk::Disk;
use super::document::{EmptyDir, HostPath, ImageVolume, Pod, SecretVolume, Volume, VolumeMount, Whose};
use super::fs_group;
use super::network::{self, Networks};
use super::plan::Member;
use super::pull::pulled;
use super::record::Directory;
use super::users::Range;
use crate::error::{Code, Context, Error, Result};
use crate::image::{self, Known};

/// The directory of volumes in memory in a pod's.
const VOLUMES: &str = "volumes";

/// Where the tmpfs is that is mounted as `/dev/shm`.
const SHARED_MEMORY: &str = "shm";

/// The largest file of a secret, in bytes.
const LARGEST_SECRET: u64 = 1 << 20;

/// How long a path of the host may take to be looked at.
const ANSWERS_WITHIN: Duration = Duration::from_secs(10);

/// Where volumes come from.
#[derive(Debug, Clone, Copy)]
pub struct From<'a> {
    /// The pod's directory.
    pub dir: &'a Directory,
    /// The pod's document.
    pub pod: &'a Pod,
    /// The image store.
    pub store: &'a Path,
    /// The directory of the configuration, in which `secrets/NAME/` lies.
    pub config: &'a Path,
    /// The pod's users, where they are not the host's.
    pub users: Option<Range>,
    /// Where the files of `/etc` are that its networks give.
    pub networks: &'a Networks,
}

/// Makes the volumes, but those of images, which may have to be pulled.
///
/// # Errors
/// What is missing on the host, with the volume's pointer.
pub fn make(from: From<'_>) -> Result<()> {
    let volumes = file::mkdir_all(from.dir.fd(), VOLUMES, 0o711)?;
    if !from.pod.spec.host_ipc {
        make_shared_memory(from.dir.fd()).context(|| "mounting the pod's /dev/shm")?;
    }
    make_each(from, |volume| make_one(from, volumes.as_fd(), volume))?;
    if !has_hosts(from.pod)? {
        return Ok(());
    }
    Disk::of(from.dir).write_hosts(&hosts(from.pod)).context(|| "writing the pod's hosts")
}

/// Whether the pod's `/etc/hosts` is written here.
fn has_hosts(pod: &Pod) -> Result<bool> {
    Ok(!pod.spec.host_network && network::wanted(pod)?.is_none())
}

fn make_each(from: From<'_>, make: impl Fn(&Volume) -> Result<()>) -> Result<()> {
    for (index, volume) in from.pod.spec.volumes.iter().enumerate() {
        make(volume).context(|| format!("/spec/volumes/{index} ({:?})", volume.name))?;
    }
    Ok(())
}

/// Whether there are volumes of images.
pub fn has_images(pod: &Pod) -> bool {
    pod.spec.volumes.iter().any(|volume| volume.image.is_some())
}

/// Makes the volumes of images, which are pulled as their policies say. One that is mounted already stays.
///
/// # Errors
/// Why an image can't be had, with the volume's pointer.
pub fn make_images(from: From<'_>) -> Result<()> {
    make_each(from, |volume| volume.image.as_ref().map_or(Ok(()), |image| make_image(from, volume, image)))
}

fn make_image(from: From<'_>, volume: &Volume, wanted: &ImageVolume) -> Result<()> {
    let id = volume_id(from.pod, &volume.name);
    if image::is_mounted(from.store, &id) {
        return Ok(());
    }
    // What a start that was cut off has left.
    image::remove_bundle(from.store, &id)?;
    let namespace = from.users.map(Range::open).transpose()?;
    let owners = from.users.zip(namespace.as_ref()).map(|(users, namespace)| users.owners(namespace));
    let known = Known { id: &id, by: from.dir.path() };
    pulled(from.store, &wanted.reference, wanted.pull_policy, |name| {
        image::mount_volume(from.store, known, name, owners)
    })
}

/// Makes the `/dev/shm` of all containers, who share what else is named by IPC, too.
fn make_shared_memory(dir: BorrowedFd<'_>) -> Result<()> {
    mount_memory(dir, SHARED_MEMORY, (Some(64 << 20), "1777"), |_| Ok(()))
}

fn make_one(from: From<'_>, volumes: BorrowedFd<'_>, volume: &Volume) -> Result<()> {
    let group = from.pod.spec.security_context.fs_group;
    if let Some(empty) = &volume.empty_dir {
        return make_empty(from, volumes, (&volume.name, empty), group);
    }
    if let Some(host) = &volume.host_path {
        return find_host_path(host);
    }
    // Others are made by isolators, for each container.
    let secret = volume.secret.as_ref();
    secret.map_or(Ok(()), |secret| make_secret(volumes, &volume.name, (secret, from.config), group))
}

/// The ID of the snapshot of an image volume. No container's name holds a dot.
fn volume_id(pod: &Pod, name: &str) -> String {
    format!("{}/{name}.volume", pod.metadata.name)
}

fn make_empty(
    from: From<'_>,
    volumes: BorrowedFd<'_>,
    (name, empty): (&str, &EmptyDir),
    group: Option<u32>,
) -> Result<()> {
    if empty.medium.is_empty() {
        return Disk::of(from.dir).make_empty(name, group);
    }
    let size = empty.size_limit.as_ref().and_then(super::document::Quantity::whole);
    // To the kernel zero is no limit; as for Kubernetes, it is as if none were said, and half of all memory then.
    let size = size.filter(|size| *size > 0);
    mount_memory(volumes, name, (size, "0777"), |memory| {
        let dir = file::open(memory, ".", libc::O_DIRECTORY, 0, Resolve::Beneath)?;
        let Some(group) = group else { return Ok(()) };
        file::chown(dir.as_fd(), 0, group)?;
        Ok(file::chmod(dir.as_fd(), 0o2777)?)
    })
}

/// Mounts a file system in memory on `name` in `volumes`, once `fill` has made it what it is to be: one that is mounted is whole,
/// and stays.
fn mount_memory(
    volumes: BorrowedFd<'_>,
    name: &str,
    (size, mode): (Option<i64>, &str),
    fill: impl FnOnce(BorrowedFd<'_>) -> Result<()>,
) -> Result<()> {
    let target = file::mkdir_all_no_links(volumes, name, 0o755)?;
    if file::mount_id(target.as_fd())? != file::mount_id(volumes)? {
        return Ok(());
    }
    let memory = mount::Context::open("tmpfs")?;
    memory.set("mode", mode.as_bytes())?;
    size.map_or(Ok(()), |size| memory.set("size", size.to_string().as_bytes()))?;
    let memory = memory.mount(mount::attr::NOSUID | mount::attr::NODEV)?;
    fill(memory.as_fd())?;
    Ok(mount::attach(memory.as_fd(), target.as_fd())?)
}

/// Copies the files of a secret into memory, in which alone they are from here on.
fn make_secret(
    volumes: BorrowedFd<'_>,
    name: &str,
    (secret, config): (&SecretVolume, &Path),
    group: Option<u32>,
) -> Result<()> {
    let path = config.join("secrets").join(&secret.secret_name);
    mount_memory(volumes, name, (None, "0755"), |memory| {
        let source = file::open_dir(&path)
            .map_err(|e| Error::from(e).hint(format!("a secret is a directory of files: {path:?}")))?;
        for file_name in file::list(source.as_fd())? {
            copy_secret(source.as_fd(), memory, &file_name, (secret, group))
                .context(|| format!("copying {file_name:?} of secret {:?}", secret.secret_name))?;
        }
        Ok(())
    })
}

fn copy_secret(
    source: BorrowedFd<'_>,
    memory: BorrowedFd<'_>,
    name: &OsStr,
    (secret, group): (&SecretVolume, Option<u32>),
) -> Result<()> {
    let opened = file::open(source, name, libc::O_RDONLY, 0, Resolve::Beneath)?;
    // A volume of Kubernetes's is links to files in a hidden directory.
    if file::stat(opened.as_fd())?.st_mode & libc::S_IFMT == libc::S_IFDIR {
        return Ok(());
    }
    let content = file::read_all(opened, LARGEST_SECRET)?;
    let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL;
    let copy = file::open(memory, name, flags, 0o600, Resolve::BeneathNoLinks)?;
    file::write_all(copy.as_fd(), &content)?;
    group.map_or(Ok(()), |group| file::chown(copy.as_fd(), 0, group))?;
    // open(2) minds the mask.
    Ok(file::chmod(copy.as_fd(), fs_group::readable(secret.default_mode.unwrap_or(0o644), group))?)
}

/// Looks whether the host has what the document says that it has. It may be on a server that never answers.
fn find_host_path(host: &HostPath) -> Result<()> {
    let path = &host.path;
    if host.kind == "DirectoryOrCreate" {
        let make = || file::mkdir_all(file::open_dir("/")?.as_fd(), path, 0o755).map(|_| Vec::new());
        return touch::within(ANSWERS_WITHIN, &[], make).map(drop).map_err(|e| unanswered(path, e));
    }
    let wanted = match host.kind.as_str() {
        "" => None,
        "Directory" => Some(libc::S_IFDIR),
        "File" => Some(libc::S_IFREG),
        "Socket" => Some(libc::S_IFSOCK),
        // An older runtime may have let the document in.
        other => {
            let why = format!("hostPath/type: {other:?} is not supported");
            let hint = "use Directory, DirectoryOrCreate, File, Socket, or leave it out";
            return Err(Error::new(Code::Unsupported, why).hint(hint));
        }
    };
    let look = || {
        let fd = file::open(file::CWD, path, libc::O_PATH, 0, Resolve::Host)?;
        file::stat(fd.as_fd()).map(|found| (found.st_mode & libc::S_IFMT).to_le_bytes().to_vec())
    };
    let found = touch::within(ANSWERS_WITHIN, &[], look).map_err(|e| unanswered(path, e))?;
    match wanted {
        Some(kind) if found != kind.to_le_bytes() => {
            Err(Error::new(Code::InvalidSpec, format!("hostPath/path: {path:?} is no {}", host.kind)))
        }
        _ => Ok(()),
    }
}

fn unanswered(path: &Path, error: coracle_sys::Error) -> Error {
    match error.errno() {
        Errno::ETIMEDOUT => Error::new(Code::System, format!("hostPath/path: {path:?} does not answer"))
            .hint("is its server there?"),
        _ => error.into(),
    }
}

fn hosts(pod: &Pod) -> String {
    let spec = &pod.spec;
    let own = spec.hostname.as_ref().unwrap_or(&pod.metadata.name);
    let mut text = format!("127.0.0.1\tlocalhost {own}\n::1\tlocalhost ip6-localhost\n");
    for name in network::containers(pod) {
        text.push_str(&format!("127.0.0.1\t{name}\n"));
    }
    for alias in &spec.host_aliases {
        text.push_str(&format!("{}\t{}\n", alias.ip, alias.hostnames.join(" ")));
    }
    text
}

/// Mounts of a container, with descriptors that must be open until they are made.
#[derive(Debug, Default)]
pub struct Mounts {
    /// As a runtime specification has them.
    pub list: Vec<Value>,
    /// What some of them name.
    pub open: Vec<OwnedFd>,
}

/// What is mounted in a container: its volumes, the pod's `/dev/shm`, and the files of `/etc` where its network is the pod's own.
///
/// # Errors
/// Whatever opening a `subPath` says.
pub fn mounts(from: From<'_>, member: &Member) -> Result<Mounts> {
    let (mut mounts, mut open) = (Vec::new(), Vec::new());
    if !member.container.volume_mounts.iter().any(|mount| mount.mount_path == Path::new("/dev/shm")) {
        mounts.push(shared_memory(from));
    }
    if network::wanted(from.pod)?.is_some() {
        let files = from.networks.files(&from.pod.metadata.name);
        mounts.extend(files.map(|(source, name)| bind(&source, &Path::new("/etc").join(name), true)));
    } else if has_hosts(from.pod)? {
        mounts.push(bind(&Disk::of(from.dir).hosts(), Path::new("/etc/hosts"), false));
    }
    let first = mounts.len();
    for (index, wanted) in member.container.volume_mounts.iter().enumerate() {
        let volume = from.pod.spec.volumes.iter().find(|volume| volume.name == wanted.name);
        let missing = || Error::new(Code::InvalidSpec, format!("there is no volume {:?}", wanted.name));
        let volume = volume.ok_or_else(missing)?;
        if let Some(mount) = of_isolator(from, volume, wanted) {
            mounts.push(mount);
            continue;
        }
        let source = source(from, volume);
        let is_fixed = volume.image.is_some() || volume.secret.is_some();
        let source = if wanted.sub_path.as_os_str().is_empty() {
            source
        } else {
            let part = open_part(&source, &wanted.sub_path, !(wanted.read_only || is_fixed));
            let part = part.context(|| format!("volumeMounts/{index}/subPath {:?}", wanted.sub_path))?;
            let path = format!("/proc/{}/fd/{}", std::process::id(), part.as_raw_fd()).into();
            open.push(part);
            path
        };
        let mut mount = bind(&source, &wanted.mount_path, wanted.read_only || is_fixed);
        if volume.host_path.is_some() && member.container.security_context.privileged {
            free(&mut mount);
        }
        // The files of an image have the pod's owners where they are mounted.
        if volume.image.is_none() {
            map_owners(from, &mut mount);
        }
        mounts.push(mount);
    }
    by_depth(&mut mounts[first..]);
    Ok(Mounts { list: mounts, open })
}

/// Where a volume is on the host.
fn source(from: From<'_>, volume: &Volume) -> PathBuf {
    match (&volume.host_path, &volume.image, &volume.empty_dir) {
        (Some(host), ..) => host.path.clone(),
        (_, Some(_), _) => image::volume_path(from.store, &volume_id(from.pod, &volume.name)),
        (.., Some(empty)) if empty.medium.is_empty() => Disk::of(from.dir).volume(&volume.name),
        _ => from.dir.path().join(VOLUMES).join(&volume.name),
    }
}

/// The mount of a volume that an isolator provides: that of a name, and a directory of the container's own or of the one above.
fn of_isolator(from: From<'_>, volume: &Volume, wanted: &VolumeMount) -> Option<Value> {
    let (kind, source, option) = match (&volume.persistent_volume_claim, &volume.sandbox) {
        (Some(claim), _) => ("volume", Path::new(&claim.claim_name), claim.read_only.then_some("ro")),
        (_, Some(sandbox)) => {
            ("sandbox", &*sandbox.path, Some(if sandbox.of == Whose::Parent { "parent" } else { "self" }))
        }
        _ => return None,
    };
    let options: Vec<&str> = option.into_iter().chain(wanted.read_only.then_some("ro")).collect();
    let mut mount =
        json!({ "destination": wanted.mount_path, "type": kind, "source": source, "options": options });
    // The isolator sees but a namespace that is joined, and would leave the owners as they are.
    map_owners(from, &mut mount);
    Some(mount)
}

/// Lets what a privileged container has of the host be what it is there: devices, and programs that change users.
fn free(mount: &mut Value) {
    if let Some(options) = mount["options"].as_array_mut() {
        options.retain(|option| option != "nosuid" && option != "nodev");
    }
}

fn map_owners(from: From<'_>, mount: &mut Value) {
    if let (Some(_), Some(options)) = (from.users, mount["options"].as_array_mut()) {
        options.push("idmap".into());
    }
}

/// Opens `part` of the volume at `source`, never outside of it, whatever links lead to; made where it is missing and can be.
fn open_part(source: &Path, part: &Path, make: bool) -> Result<OwnedFd> {
    let volume = file::open(file::CWD, source, libc::O_PATH | libc::O_DIRECTORY, 0, Resolve::Host)?;
    let find = || file::open(volume.as_fd(), part, libc::O_PATH, 0, Resolve::InRoot);
    match find() {
        Err(e) if e.errno() == Errno::ENOENT && make => {
            // As who may write to the volume may write to it.
            let own = file::stat(volume.as_fd())?;
            let made = file::mkdir_all_no_links(volume.as_fd(), part, 0o755)?;
            let made = file::open(made.as_fd(), ".", libc::O_DIRECTORY, 0, Resolve::Beneath)?;
            file::chown(made.as_fd(), own.st_uid, own.st_gid)?;
            file::chmod(made.as_fd(), own.st_mode & 0o7777)?;
            Ok(find()?)
        }
        found => Ok(found?),
    }
}

fn shared_memory(from: From<'_>) -> Value {
    let own = from.dir.path().join(SHARED_MEMORY);
    let source = if from.pod.spec.host_ipc { Path::new("/dev/shm") } else { &own };
    let mut mount = bind(source, Path::new("/dev/shm"), false);
    if let Some(options) = mount["options"].as_array_mut() {
        options.push("noexec".into());
    }
    map_owners(from, &mut mount);
    mount
}

fn bind(source: &Path, destination: &Path, read_only: bool) -> Value {
    let mut options = vec!["rbind", "rprivate", "nosuid", "nodev"];
    if read_only {
        options.push("rro");
    }
    json!({ "destination": destination, "type": "bind", "source": source, "options": options })
}

/// Takes away what [`make`] made outside of the pod's directory, or mounted in it.
///
/// # Errors
/// The first failure; the rest is tried.
pub fn remove(from: From<'_>) -> Result<()> {
    let mut first = Ok(());
    let path: PathBuf = from.dir.path().join(VOLUMES);
    for volume in &from.pod.spec.volumes {
        let removed = if volume.image.is_some() {
            image::remove_bundle(from.store, &volume_id(from.pod, &volume.name))
        } else if volume.host_path.is_some() {
            Ok(())
        } else {
            unmount(&path.join(&volume.name))
        };
        first = first.and(removed.context(|| format!("removing volume {:?}", volume.name)));
    }
    first.and(unmount(&from.dir.path().join(SHARED_MEMORY))).and(Disk::of(from.dir).remove())
}

/// Unmounts what is mounted at `path`; nothing where that is nothing.
fn unmount(path: &Path) -> Result<()> {
    match mount::detach(path) {
        Err(e) if !matches!(e.errno(), Errno::EINVAL | Errno::ENOENT) => Err(e.into()),
        _ => Ok(()),
    }
}
