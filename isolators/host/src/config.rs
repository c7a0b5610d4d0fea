//! What the operator configures: `config.toml`, and `config.d/*.toml` beside it, in the directory that the runtime is
//! told (`/etc/coracle`).
//!
//! A machine without that directory costs one system call.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use coracle_isolator::{Error, Result};
use coracle_sys::file::{self, Resolve};
use coracle_sys::{Errno, identity};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::process::failed;

/// The longest file that is read, in bytes.
const LONGEST: u64 = 1 << 20;

/// Which plugins there are.
#[derive(Debug, Clone, Default)]
pub struct Config {
    /// Where plugin files are looked for, in this order.
    pub directories: Vec<PathBuf>,
    /// The plugins, by the names of their isolators.
    pub isolators: BTreeMap<String, Settings>,
    /// The first key that the section of an isolator has beside `options`.
    keys: BTreeMap<String, &'static str>,
}

/// How a plugin is loaded and called.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Its file: a path, or a name in one of the directories. Without it, the isolator's name with `-` for `/`, and
    /// `.so`.
    pub file: Option<PathBuf>,
    /// Whether its failure is a warning only.
    pub optional: bool,
    /// How long a call may take, in seconds.
    pub deadline: Option<f64>,
    /// Whether it is trusted: it runs unconfined, in one process with the others that are.
    pub inline: bool,
    /// The capabilities that it gets.
    pub capabilities: Vec<String>,
    /// Where it may write and make files.
    pub writable: Vec<PathBuf>,
    /// Whether it may start programs. What they leave running ends with the plugin's process.
    pub programs: bool,
    /// Whether it may set limits in the cgroups of the container that it acts on.
    pub cgroups: bool,
    /// Whether it may make sockets: to speak to a service, over the network, to the kernel's interfaces.
    pub sockets: bool,
    /// Whether it may add hooks, which run with the runtime's rights.
    pub hooks: bool,
    /// Whether a container that it finds at its limit goes on, and the limitation is told only.
    pub tell_only: bool,
    /// What it is configured with.
    pub options: Map<String, Value>,
}

/// A file, as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    directories: Option<Vec<PathBuf>>,
    deadline: Option<f64>,
    #[serde(default)]
    isolator: BTreeMap<String, Settings>,
}

/// How long a call takes at most, where nothing is configured, in seconds.
const DEADLINE: f64 = 5.0;

impl Config {
    /// Reads what is configured in `dir`; nothing where there is no such directory. What stands in a later file replaces
    /// what an earlier one says of the same isolator.
    ///
    /// # Errors
    /// Naming the file, where it is malformed or others than root can write it.
    pub fn read(dir: &Path) -> Result<Self> {
        let mut config = Self::default();
        let opened = match file::open(file::CWD, dir, libc::O_DIRECTORY, 0, Resolve::Host) {
            Err(e) if e.errno() == Errno::ENOENT => return Ok(config),
            other => other.map_err(failed)?,
        };
        check_writers(opened.as_fd()).map_err(|why| of(dir, &why))?;
        let mut files = vec![(opened.as_fd(), "config.toml".to_owned())];
        let drop_ins = open(opened.as_fd(), "config.d", libc::O_DIRECTORY)?;
        if let Some(drop_ins) = &drop_ins {
            check_writers(drop_ins.as_fd()).map_err(|why| of(&dir.join("config.d"), &why))?;
            let names = file::list(drop_ins.as_fd()).map_err(failed)?;
            let mut names: Vec<String> =
                names.into_iter().filter_map(|name| name.into_string().ok()).collect();
            names.retain(|name| name.ends_with(".toml") && !name.starts_with('.'));
            names.sort_unstable();
            files.extend(names.into_iter().map(|name| (drop_ins.as_fd(), name)));
        }
        let mut deadline = None;
        for (dir, name) in files {
            let Some(opened) = open(dir, &name, libc::O_RDONLY | libc::O_NONBLOCK)? else { continue };
            let document = document(opened).map_err(|e| Error::new(format!("{name}: {e}")))?;
            config.directories = document.directories.unwrap_or(config.directories);
            deadline = document.deadline.or(deadline);
            config.isolators.extend(document.isolator);
        }
        for (name, settings) in &mut config.isolators {
            config.keys.extend(settings.key_beside_options().map(|key| (name.clone(), key)));
            settings.deadline = settings.deadline.or(deadline);
            settings.check().map_err(|e| e.at(format!("isolator.{name:?}")))?;
        }
        if config.directories.is_empty() {
            config.directories = vec!["/usr/local/lib/coracle".into(), "/usr/lib/coracle".into()];
        }
        Ok(config)
    }

    /// The options of the isolator `name`, which is built in; none where it has no section, or one that puts a plugin in its
    /// place.
    ///
    /// # Errors
    /// Naming what else its section says, which nobody would heed.
    pub fn built_in_options(&self, name: &str) -> Result<Option<&Map<String, Value>>> {
        let Some(settings) = self.isolators.get(name).filter(|settings| settings.file.is_none()) else {
            return Ok(None);
        };
        match self.keys.get(name) {
            None => Ok(Some(&settings.options)),
            Some(key) => Err(Error::new(format!("{name} is built in, and `{key}` is for plugins"))
                .at(format!("isolator.{name:?}.{key}"))
                .with_hint("leave it out, or name the `file` of a plugin that takes its place")),
        }
    }

    /// Opens the file of the isolator `name`, and returns its path with it.
    ///
    /// # Errors
    /// Where there is none, or others than root can write it.
    pub fn open_plugin(&self, name: &str, settings: &Settings) -> Result<(OwnedFd, PathBuf)> {
        let file = settings.file.clone().unwrap_or_else(|| format!("{}.so", name.replace('/', "-")).into());
        let paths: Vec<PathBuf> = match file.is_absolute() {
            true => vec![file],
            false => self.directories.iter().map(|dir| dir.join(&file)).collect(),
        };
        for path in &paths {
            match file::open(file::CWD, path, libc::O_RDONLY | libc::O_NONBLOCK, 0, Resolve::Host) {
                Err(e) if e.errno() == Errno::ENOENT => {}
                other => {
                    let opened = other.map_err(failed)?;
                    check_file(opened.as_fd()).map_err(|why| of(path, &why))?;
                    let dir = path.parent().unwrap_or(Path::new("/"));
                    let within = file::open(file::CWD, dir, libc::O_DIRECTORY, 0, Resolve::Host);
                    check_writers(within.map_err(failed)?.as_fd()).map_err(|why| of(dir, &why))?;
                    return Ok((opened, path.clone()));
                }
            }
        }
        let looked = paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(" or ");
        Err(Error::new(format!("there is no {looked}")))
    }
}

impl Settings {
    /// How long a call may take.
    pub fn deadline(&self) -> Duration {
        Duration::from_secs_f64(self.deadline.unwrap_or(DEADLINE))
    }

    /// The capabilities as a mask.
    ///
    /// # Errors
    /// Naming one that is none.
    pub fn capabilities(&self) -> Result<u64> {
        self.capabilities.iter().try_fold(0, |mask, name| {
            let capability: caps::Capability =
                name.parse().map_err(|_| Error::new(format!("{name:?} is no capability")))?;
            Ok(mask | capability.bitmask())
        })
    }

    fn key_beside_options(&self) -> Option<&'static str> {
        let keys = [
            ("file", self.file.is_some()),
            ("optional", self.optional),
            ("deadline", self.deadline.is_some()),
            ("inline", self.inline),
            ("capabilities", !self.capabilities.is_empty()),
            ("writable", !self.writable.is_empty()),
            ("programs", self.programs),
            ("cgroups", self.cgroups),
            ("sockets", self.sockets),
            ("hooks", self.hooks),
            ("tell_only", self.tell_only),
        ];
        keys.into_iter().find(|(_, is_said)| *is_said).map(|(key, _)| key)
    }

    fn check(&self) -> Result<()> {
        self.capabilities()?;
        match self.deadline.unwrap_or(DEADLINE) {
            seconds if (0.001..=3600.0).contains(&seconds) => Ok(()),
            seconds => Err(Error::new(format!("a deadline of {seconds} s is not between 0.001 and 3600"))),
        }
    }
}

fn open(dir: BorrowedFd<'_>, name: &str, flags: i32) -> Result<Option<OwnedFd>> {
    match file::open(dir, name, flags, 0, Resolve::Host) {
        Err(e) if e.errno() == Errno::ENOENT => Ok(None),
        other => other.map(Some).map_err(failed),
    }
}

fn document(opened: OwnedFd) -> Result<Document> {
    check_file(opened.as_fd()).map_err(Error::new)?;
    let text = file::read_all(opened, LONGEST).map_err(failed)?;
    basic_toml::from_slice(&text).map_err(|e| Error::new(e.to_string()))
}

fn of(path: &Path, why: &str) -> Error {
    Error::new(format!("{} {why}", path.display()))
}

/// The same of what must be a file: a FIFO would be waited for.
fn check_file(fd: BorrowedFd<'_>) -> std::result::Result<(), String> {
    let mode = file::stat(fd).map_err(|e| e.to_string())?.st_mode;
    if mode & libc::S_IFMT != libc::S_IFREG {
        return Err("is no file".to_owned());
    }
    check_writers(fd)
}

/// Whether nobody but root, or who runs the runtime, can write the file or directory; why not, after its name.
///
/// # Errors
/// Who can.
pub fn check_writers(fd: BorrowedFd<'_>) -> std::result::Result<(), String> {
    let stat = file::stat(fd).map_err(|e| e.to_string())?;
    let own = identity::caller();
    if stat.st_uid != 0 && stat.st_uid != own {
        return Err(format!("belongs to user {}, who can write it; give it to root", stat.st_uid));
    }
    match stat.st_mode & 0o022 {
        0 => Ok(()),
        _ => Err(format!("can be written by others (mode {:o}); chmod go-w it", stat.st_mode & 0o7777)),
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "tests lay out files on the host")]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn read(files: &[(&str, &str)]) -> Result<Config> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("config.d")).unwrap();
        for (name, text) in files {
            std::fs::write(dir.path().join(name), text).unwrap();
            std::fs::set_permissions(dir.path().join(name), std::fs::Permissions::from_mode(0o644)).unwrap();
        }
        Config::read(dir.path())
    }

    #[test]
    fn no_directory_is_no_configuration() {
        assert!(Config::read(Path::new("/does/not/exist")).unwrap().isolators.is_empty());
    }

    #[test]
    fn later_files_replace_what_earlier_ones_say_of_an_isolator() {
        let config = read(&[
            ("config.toml", "deadline = 2\n[isolator.\"a/b\"]\ncapabilities = [\"CAP_CHOWN\"]\n[isolator.\"c/d\"]\ndeadline = 0.5\n"),
            ("config.d/20.toml", "[isolator.\"a/b\"]\noptional = true\noptions = { size = 5 }\n"),
            ("config.d/10.toml", "[isolator.\"a/b\"]\nprograms = true\n"),
            ("config.d/ignored", "nonsense"),
        ])
        .unwrap();
        let first = &config.isolators["a/b"];
        assert!(first.optional && !first.programs && first.capabilities.is_empty());
        assert_eq!(first.options["size"], 5);
        assert_eq!(first.deadline(), Duration::from_secs(2));
        assert_eq!(config.isolators["c/d"].deadline(), Duration::from_millis(500));
    }

    #[test]
    fn what_is_wrong_is_said_with_its_file_or_isolator() {
        for (text, words) in [
            ("isolator = 5", "config.toml: "),
            ("[isolator.\"a/b\"]\nfle = \"x\"", "unknown field `fle`"),
            (
                "[isolator.\"a/b\"]\ncapabilities = [\"CAP_FLY\"]",
                "isolator.\"a/b\": \"CAP_FLY\" is no capability",
            ),
            ("[isolator.\"a/b\"]\ndeadline = 0", "isolator.\"a/b\": a deadline of 0 s is not between"),
        ] {
            let error = read(&[("config.toml", text)]).unwrap_err().to_string();
            assert!(error.contains(words), "{text}: {error}");
        }
    }

    #[test]
    fn a_built_in_isolator_has_options_and_nothing_else() {
        let config = read(&[(
            "config.toml",
            "deadline = 2\n[isolator.\"a/b\"]\noptions = { size = 5 }\n[isolator.\"c/d\"]\noptional = true\n\
             [isolator.\"e/f\"]\nfile = \"e.so\"\nsockets = true\n",
        )])
        .unwrap();
        assert_eq!(config.built_in_options("a/b").unwrap().unwrap()["size"], 5);
        assert_eq!(config.built_in_options("e/f").unwrap(), None);
        assert_eq!(config.built_in_options("g/h").unwrap(), None);
        assert_eq!(
            config.built_in_options("c/d").unwrap_err().to_string(),
            "isolator.\"c/d\".optional: c/d is built in, and `optional` is for plugins; leave it out, or name the `file` of \
             a plugin that takes its place"
        );
    }

    #[test]
    fn a_file_that_others_can_write_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        std::fs::write(&path, "").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o664)).unwrap();
        let error = Config::read(dir.path()).unwrap_err().to_string();
        assert_eq!(error, "config.toml: can be written by others (mode 664); chmod go-w it");
    }
}
