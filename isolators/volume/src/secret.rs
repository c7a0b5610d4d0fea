//! `volume/secret`: files that a container may read and nothing else keeps: they are in memory alone.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use coracle_isolator::{Adjustment, Config, Error, Isolator, Result, States, adjusted};
use coracle_sys::file::{self, Resolve};
use coracle_sys::mount::{self, attr};
use coracle_sys::{Errno, archive};
use nix::libc;
use oci_spec::runtime::{LinuxIdMapping, Mount, Spec};
use serde_json::{Map, Value};

use crate::{failed, is_name, is_owned, known_by, of_type, opened, owner};

/// The type of a mount whose source is the name of a secret.
const TYPE: &str = "secret";

/// Where the files of containers are, in the directory of states: `HASH` is a file system in memory that is never
/// swapped, `HASH.owner` says whose it is.
const DIRECTORY: &str = ".secrets";

/// The longest file, and all files of a container together, in bytes.
const LONGEST: u64 = 1 << 20;

/// Copies the secrets that mounts of the type `secret` name into memory that is the container's: each is a file, or a
/// directory of files, of the operator's. What they hold is in no state, no log and no argument.
#[derive(Debug)]
pub(crate) struct Secrets {
    root: PathBuf,
    source: PathBuf,
}

/// How a secret is shown.
#[derive(Debug, PartialEq, Eq)]
struct Wanted<'m> {
    name: &'m str,
    mode: u32,
    uid: u32,
    gid: u32,
}

impl Secrets {
    pub(crate) fn new(root: &Path) -> Self {
        Self { root: root.to_owned(), source: "/etc/coracle/secrets".into() }
    }

    fn place(&self, id: &str) -> PathBuf {
        self.root.join(DIRECTORY).join(known_by(&self.root, id))
    }

    /// Forgets what the container has that goes by `name`.
    fn end(&self, name: &str) -> Result<()> {
        let Some(dir) = opened(&self.root.join(DIRECTORY))? else { return Ok(()) };
        match mount::detach(&self.root.join(DIRECTORY).join(name)) {
            Err(e) if !matches!(e.errno(), Errno::EINVAL | Errno::ENOENT) => return Err(failed(e)),
            _ => {}
        }
        let owner = format!("{name}.owner");
        for name in [name, &owner] {
            archive::remove_tree(dir.as_fd(), name).map_err(failed)?;
        }
        drop(dir);
        let _ = file::open_dir(&self.root).and_then(|root| file::rmdir(root.as_fd(), DIRECTORY));
        Ok(())
    }

    /// An empty file system for the container `id`.
    fn make(&self, id: &str) -> coracle_sys::Result<OwnedFd> {
        let root = file::open_dir(&self.root)?;
        let dir = file::mkdir_all_no_links(root.as_fd(), DIRECTORY, 0o700)?;
        let name = known_by(&self.root, id);
        let whose = owner(&self.root, id);
        file::replace(dir.as_fd(), &format!("{name}.owner"), whose.as_os_str().as_encoded_bytes(), 0o600)?;
        let target = file::mkdir_all_no_links(dir.as_fd(), &name, 0o700)?;
        // Unlike a tmpfs, it is never written to swap space.
        let memory = mount::Context::open("ramfs")?;
        memory.set("mode", b"0711")?;
        let memory = memory.mount(attr::NOSUID | attr::NODEV | attr::NOEXEC)?;
        mount::attach(memory.as_fd(), target.as_fd())?;
        Ok(memory)
    }

    /// Copies the secret `wanted` into `memory`; `left` counts the bytes that there is room for.
    fn copy(&self, memory: BorrowedFd<'_>, wanted: &Wanted<'_>, left: &mut u64) -> coracle_sys::Result<()> {
        let secrets = file::open_dir(&self.source)?;
        let source = file::open(secrets.as_fd(), wanted.name, READ, 0, Resolve::Beneath)?;
        if !is_dir(source.as_fd())? {
            return put(memory, wanted.name, read(source, left)?, wanted);
        }
        let target = file::mkdir_all_no_links(memory, wanted.name, 0o755)?;
        // To be changed, which only some C libraries do to what was opened as a path.
        let target = file::open(target.as_fd(), ".", libc::O_DIRECTORY, 0, Resolve::Beneath)?;
        for name in file::list(source.as_fd())? {
            // A volume of Kubernetes's is links to files in a hidden directory.
            let opened = file::open(source.as_fd(), &name, READ, 0, Resolve::Beneath)?;
            if is_dir(opened.as_fd())? {
                continue;
            }
            put(target.as_fd(), &name.to_string_lossy(), read(opened, left)?, wanted)?;
        }
        let mode = wanted.mode | (wanted.mode & 0o444) >> 2;
        file::chmod(target.as_fd(), mode)?;
        file::chown(target.as_fd(), wanted.uid, wanted.gid)
    }
}

fn is_dir(fd: BorrowedFd<'_>) -> coracle_sys::Result<bool> {
    Ok(file::stat(fd)?.st_mode & libc::S_IFMT == libc::S_IFDIR)
}

/// A pipe that nobody writes to is not waited for.
const READ: i32 = libc::O_RDONLY | libc::O_NONBLOCK;

/// What a file holds, of which `left` is for others.
fn read(file: OwnedFd, left: &mut u64) -> coracle_sys::Result<Vec<u8>> {
    if file::stat(file.as_fd())?.st_mode & libc::S_IFMT != libc::S_IFREG {
        return Err(coracle_sys::Error::new("read() of what is no regular file", Errno::EINVAL));
    }
    let content = file::read_all(file, *left)?;
    *left -= content.len() as u64;
    Ok(content)
}

fn put(dir: BorrowedFd<'_>, name: &str, content: Vec<u8>, wanted: &Wanted<'_>) -> coracle_sys::Result<()> {
    let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL;
    let copy = file::open(dir, name, flags, 0o600, Resolve::BeneathNoLinks)?;
    file::write_all(copy.as_fd(), &content)?;
    file::chmod(copy.as_fd(), wanted.mode)?;
    file::chown(copy.as_fd(), wanted.uid, wanted.gid)
}

impl Isolator for Secrets {
    fn name(&self) -> &str {
        "volume/secret"
    }

    fn configure(&mut self, options: &Map<String, Value>) -> Result<()> {
        crate::configure_directory(options, "directory", &mut self.source)
    }

    fn recover(&self, _: &States) -> Result<()> {
        let Some(dir) = opened(&self.root.join(DIRECTORY))? else { return Ok(()) };
        let mut done = Ok(());
        for file_name in file::list(dir.as_fd()).map_err(failed)? {
            let Some(name) = file_name.to_str().and_then(|name| name.strip_suffix(".owner")) else {
                continue;
            };
            // Only a name that was read tells that its owner is gone.
            let ended = match file::read(dir.as_fd(), &file_name, 4096, Resolve::BeneathNoLinks) {
                Ok(owner) if is_owned(Path::new(&*String::from_utf8_lossy(&owner))) => Ok(()),
                Err(e) if e.errno() != Errno::ENOENT => Err(failed(e)),
                _ => self.end(name),
            };
            done = done.and(ended);
        }
        done
    }

    fn prepare(&self, config: &Config<'_>) -> Result<Adjustment> {
        let (mut adjustment, mut changed) = (Adjustment::default(), Vec::new());
        for (i, mount) in of_type(config.spec, TYPE) {
            let wanted = Wanted::of(mount, config.spec).map_err(|e| e.below(&format!("/mounts/{i}")))?;
            let found = file::open_dir(&self.source)
                .and_then(|dir| file::open(dir.as_fd(), wanted.name, libc::O_PATH, 0, Resolve::Beneath));
            found.map_err(|e| {
                let hint = format!("a secret is a file or a directory of files in {}", self.source.display());
                failed(e).at(format!("/mounts/{i}/source")).with_hint(hint)
            })?;
            let options =
                ["rbind", "rprivate", "ro", "nosuid", "nodev", "noexec"].map(str::to_owned).to_vec();
            let mut bind = mount.clone();
            bind.set_typ(Some("bind".to_owned())).set_options(Some(options));
            bind.set_source(Some(self.place(config.id).join(wanted.directory(i)).join(wanted.name)));
            changed.push((i, bind));
        }
        adjustment.mounts = adjusted(config.spec.mounts().as_deref().unwrap_or_default(), &changed);
        Ok(adjustment)
    }

    fn provide(&self, config: &Config<'_>) -> Result<()> {
        let place = self.place(config.id);
        let mut memory: Option<OwnedFd> = None;
        let mut left = LONGEST;
        for (i, mount) in config.spec.mounts().iter().flatten().enumerate() {
            let Some(path) = mount.source().as_deref().and_then(|source| source.strip_prefix(&place).ok())
            else {
                continue;
            };
            if memory.is_none() {
                self.end(&known_by(&self.root, config.id))?;
                memory = Some(self.make(config.id).map_err(failed)?);
            }
            let (Some(memory), Some(directory)) = (&memory, path.parent()) else { continue };
            let Some(wanted) = Wanted::kept(path) else { continue };
            let copied = file::mkdir_all_no_links(memory.as_fd(), directory, 0o711)
                .and_then(|dir| self.copy(dir.as_fd(), &wanted, &mut left));
            copied.map_err(|e| failed(e).at(format!("/mounts/{i}/source")))?;
        }
        Ok(())
    }

    fn cleanup(&self, id: &str) -> Result<()> {
        self.end(&known_by(&self.root, id))
    }
}

impl<'m> Wanted<'m> {
    /// What the mount `mount` asks for: `mode=`, `uid=` and `gid=` are as the container sees them.
    fn of(mount: &'m Mount, spec: &Spec) -> Result<Self> {
        let name = mount.source().as_deref().and_then(Path::to_str).unwrap_or_default();
        if !is_name(name) {
            return Err(Error::new(format!("{name:?} is no name of a secret")).at("source"));
        }
        let mut wanted = Self { name, mode: 0o444, uid: 0, gid: 0 };
        for (n, option) in mount.options().iter().flatten().enumerate() {
            let (key, value) = option.split_once('=').unwrap_or((option, ""));
            let number = |radix| u32::from_str_radix(value, radix).ok();
            let taken = match key {
                "mode" => number(8).filter(|mode| *mode <= 0o777).map(|mode| wanted.mode = mode),
                "uid" => number(10).map(|uid| wanted.uid = uid),
                "gid" => number(10).map(|gid| wanted.gid = gid),
                // What every secret is.
                "ro" | "nosuid" | "nodev" | "noexec" => Some(()),
                _ => None,
            };
            taken.ok_or_else(|| {
                Error::new(format!("a secret has no option {option:?}"))
                    .at(format!("options/{n}"))
                    .with_hint("use mode=0400, uid=N, gid=N")
            })?;
        }
        let linux = spec.linux().as_ref();
        let mapped = |id: u32, maps: Option<&Vec<LinuxIdMapping>>| {
            let Some(maps) = maps.filter(|maps| !maps.is_empty()) else { return Ok(id) };
            let found = maps.iter().find_map(|map| {
                let offset = id.checked_sub(map.container_id()).filter(|offset| *offset < map.size())?;
                map.host_id().checked_add(offset)
            });
            found.ok_or_else(|| Error::new(format!("the container has no user or group {id}")).at("options"))
        };
        wanted.uid = mapped(wanted.uid, linux.and_then(|linux| linux.uid_mappings().as_ref()))?;
        wanted.gid = mapped(wanted.gid, linux.and_then(|linux| linux.gid_mappings().as_ref()))?;
        Ok(wanted)
    }

    /// The name of the directory that it is in, for mount number `index`: all that is to be known of it when it is made.
    fn directory(&self, index: usize) -> String {
        format!("{index}-{:o}-{}-{}", self.mode, self.uid, self.gid)
    }

    /// What is known of the secret that goes to `path`, `DIRECTORY/NAME`.
    fn kept(path: &'m Path) -> Option<Self> {
        let (directory, name) = (path.parent()?.to_str()?, path.file_name()?.to_str()?);
        let mut parts = directory.split('-').skip(1);
        let mode = u32::from_str_radix(parts.next()?, 8).ok()?;
        let mut number = || parts.next()?.parse().ok();
        Some(Self { name, mode, uid: number()?, gid: number()? })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn wanted(source: &str, options: &[&str], spec: &Value) -> Result<(u32, u32, u32)> {
        let mount = json!({"destination": "/key", "type": "secret", "source": source, "options": options});
        let mount: Mount = serde_json::from_value(mount).unwrap();
        let spec: Spec = serde_json::from_value(spec.clone()).unwrap();
        let wanted = Wanted::of(&mount, &spec)?;
        let path = Path::new(&wanted.directory(3)).join(source);
        assert_eq!(Wanted::kept(&path).unwrap(), wanted);
        Ok((wanted.mode, wanted.uid, wanted.gid))
    }

    #[test]
    fn a_secret_has_a_mode_and_an_owner_as_the_container_sees_them() {
        let plain = json!({"ociVersion": "1.2.0"});
        assert_eq!(wanted("key", &["ro"], &plain).unwrap(), (0o444, 0, 0));
        assert_eq!(wanted("key", &["mode=0400", "uid=1000", "gid=50"], &plain).unwrap(), (0o400, 1000, 50));
        let maps = json!([{"containerID": 0, "hostID": 100_000, "size": 1000}]);
        let mapped = json!({"ociVersion": "1.2.0", "linux": {"uidMappings": maps, "gidMappings": maps}});
        assert_eq!(wanted("key", &["uid=7"], &mapped).unwrap(), (0o444, 100_007, 100_000));
        let error = wanted("key", &["uid=1000"], &mapped).unwrap_err().to_string();
        assert_eq!(error, "options: the container has no user or group 1000");
    }

    #[test]
    fn what_is_no_name_or_no_option_is_refused() {
        let plain = json!({"ociVersion": "1.2.0"});
        for (name, options, words) in [
            ("../etc", &[][..], "source: \"../etc\" is no name of a secret"),
            ("key", &["rw"][..], "options/0: a secret has no option \"rw\"; use mode=0400"),
            ("key", &["ro", "mode=9"][..], "options/1: a secret has no option \"mode=9\""),
        ] {
            let error = wanted(name, options, &plain).unwrap_err().to_string();
            assert!(error.starts_with(words), "{error}");
        }
    }
}
