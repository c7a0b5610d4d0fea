//! The configurations of networks: the lists of plugins that an operator has written, and our own.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use coracle_isolator::{Error, Result};
use coracle_sys::file::{self, Resolve};
use coracle_sys::{Errno, namespace};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value, json};

use crate::failed;
use crate::wanted::{Wanted, is_name};

/// The versions of CNI that are spoken, oldest first. Those before 0.3.0 answer in another form.
const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// The longest configuration that is read, in bytes.
const LONGEST: u64 = 1 << 20;

/// The network that is there without a configuration.
pub const BRIDGE: &str = "bridge";

/// A network's configuration: a list of plugins.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Conflist {
    /// The version of CNI that its plugins are spoken to in.
    pub cni_version: String,
    /// More versions that they understand (CNI 1.1).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cni_versions: Vec<String>,
    /// The network's name.
    pub name: String,
    /// Whether its plugins are not to be asked whether all is as it should be.
    #[serde(deserialize_with = "truth")]
    pub disable_check: bool,
    /// Whether its plugins are not to be told which attachments there are: others use this network, too.
    #[serde(rename = "disableGC", deserialize_with = "truth")]
    pub disable_gc: bool,
    /// Whether it has the plugins that it lists alone, and none of files beside it (CNI 1.1).
    #[serde(skip_serializing, deserialize_with = "truth")]
    pub load_only_inlined_plugins: bool,
    /// The plugins, in the order of their calls.
    pub plugins: Vec<Map<String, Value>>,
}

impl Conflist {
    /// Whether its plugins know a verb, or a part of one, that came with version `since`.
    pub fn is_since(&self, since: &str) -> bool {
        place(&self.cni_version) >= place(since)
    }

    /// The names of its plugins.
    pub fn types(&self) -> impl Iterator<Item = &str> {
        self.plugins.iter().map(kind)
    }

    /// The configuration `text` of a file in the directory `dir`.
    fn parse(text: &[u8], dir: BorrowedFd<'_>) -> Result<Self> {
        let document = object(text)?;
        // A file may hold one plugin, and be the network at once.
        let is_plugin = document.contains_key("type") && !document.contains_key("plugins");
        let list = serde_json::from_value::<Self>(Value::Object(document.clone()));
        let mut list = list.map_err(|e| Error::new(e.to_string()))?;
        if is_plugin {
            list.plugins = vec![document];
        } else if !list.load_only_inlined_plugins && is_name(&list.name) {
            list.plugins.extend(dropped_in(dir, &list.name)?);
        }
        list.check()
    }

    fn check(mut self) -> Result<Self> {
        if !is_name(&self.name) {
            return Err(Error::new(format!("its name {:?} is none that a network can have", self.name)));
        }
        let said = std::mem::take(&mut self.cni_versions);
        let versions: Vec<&str> =
            said.iter().map(String::as_str).chain([self.cni_version.as_str()]).collect();
        let best = versions.iter().filter_map(|version| place(version)).max();
        let none = || {
            Error::new(format!("its cniVersion {:?} is none that is spoken here", self.cni_version))
                .with_hint(format!("these are: {}", VERSIONS.join(", ")))
        };
        self.cni_version = VERSIONS[best.ok_or_else(none)?].to_owned();
        if self.plugins.is_empty() {
            return Err(Error::new("it lists no plugins"));
        }
        let is_wrong = |name: &&str| name.is_empty() || name.contains('/') || name.starts_with('.');
        let wrong =
            self.types().find(is_wrong).map(|name| Error::new(format!("{name:?} is no plugin's type")));
        wrong.map_or(Ok(self), Err)
    }
}

fn object(text: &[u8]) -> Result<Map<String, Value>> {
    serde_json::from_slice(text).map_err(|e| Error::new(e.to_string()))
}

/// Plugins that other packages have the network `name` call after its own: `NAME/*.conf` beside its file (CNI 1.1, section 1).
fn dropped_in(dir: BorrowedFd<'_>, name: &str) -> Result<Vec<Map<String, Value>>> {
    let inner = match file::open(dir, name, libc::O_DIRECTORY, 0, Resolve::Host) {
        Err(e) if [Errno::ENOENT, Errno::ENOTDIR].contains(&e.errno()) => return Ok(Vec::new()),
        inner => inner.map_err(failed)?,
    };
    let read = |file: &String| {
        let text = file::read(inner.as_fd(), file, LONGEST, Resolve::Host).map_err(failed)?;
        object(&text).map_err(|e| Error::new(format!("{name}/{file}: {e}")))
    };
    files(inner.as_fd(), &[".conf"])?.iter().map(read).collect()
}

/// The names of files in `dir` with one of these ends, in order.
fn files(dir: BorrowedFd<'_>, ends: &[&str]) -> Result<Vec<String>> {
    let names = file::list(dir).map_err(failed)?;
    let mut names: Vec<String> = names.into_iter().filter_map(|name| name.into_string().ok()).collect();
    names.retain(|name| ends.iter().any(|end| name.ends_with(end)));
    names.sort_unstable();
    Ok(names)
}

/// A switch, which CNI's own library takes as a word, too.
fn truth<'de, D: Deserializer<'de>>(from: D) -> std::result::Result<bool, D::Error> {
    match Value::deserialize(from)? {
        Value::Bool(truth) => Ok(truth),
        Value::String(word) if word.eq_ignore_ascii_case("true") => Ok(true),
        Value::String(word) if word.eq_ignore_ascii_case("false") => Ok(false),
        other => Err(D::Error::custom(format!("{other} is neither true nor false"))),
    }
}

/// The type of a plugin: the name of its program.
pub(crate) fn kind(plugin: &Map<String, Value>) -> &str {
    plugin.get("type").and_then(Value::as_str).unwrap_or_default()
}

fn place(version: &str) -> Option<usize> {
    VERSIONS.iter().position(|known| *known == version)
}

/// A file with a configuration: its name, and the network or what is wrong with it.
pub type Found = (String, Result<Conflist>);

/// All that is configured in `dir`, in the order of the files' names, as CNI's own library reads them.
///
/// # Errors
/// Whatever reading says but that there is no such directory.
pub fn all(dir: &Path) -> Result<Vec<Found>> {
    let opened = match file::open_dir(dir) {
        Err(e) if e.errno() == Errno::ENOENT => return Ok(Vec::new()),
        other => other.map_err(failed)?,
    };
    let parse = |name: &String| {
        let text = file::read(opened.as_fd(), name, LONGEST, Resolve::Host).map_err(failed)?;
        Conflist::parse(&text, opened.as_fd())
    };
    let names = files(opened.as_fd(), &[".conflist", ".conf", ".json"])?;
    Ok(names.into_iter().map(|name| (name.clone(), parse(&name))).collect())
}

/// The configuration of the network `name` in `dir`; our own where it is `bridge` and there is none.
///
/// # Errors
/// Where there is none, naming the files that can't be read as one.
pub fn find(dir: &Path, name: &str, wanted: &Wanted) -> Result<Conflist> {
    let mut broken = Vec::new();
    for (file, list) in all(dir)? {
        match list {
            Ok(list) if list.name == name => return Ok(list),
            Ok(_) => {}
            Err(error) => broken.push(format!("{file}: {error}")),
        }
    }
    if name == BRIDGE {
        return Ok(bridge(wanted));
    }
    let error = Error::new(format!("no network {name:?} is configured in {}", dir.display()));
    Err(if broken.is_empty() { error } else { error.with_hint(broken.join(", ")) })
}

/// The bridge that is there without a configuration. A plugin that has nothing to do would cost as much as one that has:
/// those for ports and bandwidth are in the list where they are asked for.
fn bridge(wanted: &Wanted) -> Conflist {
    let mut ranges = vec![json!([{"subnet": "10.76.0.0/16"}])];
    let mut routes = vec![json!({"dst": "0.0.0.0/0"})];
    if file::open(file::CWD, "/proc/sys/net/ipv6", libc::O_PATH, 0, Resolve::Host).is_ok() {
        ranges.push(json!([{"subnet": "fd76:c0ac:1e00::/64"}]));
        routes.push(json!({"dst": "::/0"}));
    }
    let mut plugins = vec![json!({
        "type": "bridge", "bridge": "coracle0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
        "capabilities": {"ips": true, "mac": true},
        "ipam": {"type": "host-local", "ranges": ranges, "routes": routes},
    })];
    if !wanted.ports.is_empty() {
        plugins.push(json!({"type": "portmap", "capabilities": {"portMappings": true}}));
    }
    if wanted
        .networks
        .iter()
        .any(|network| network.name == BRIDGE && network.runtime.contains_key("bandwidth"))
    {
        plugins.push(json!({"type": "bandwidth", "capabilities": {"bandwidth": true}}));
    }
    // Where the host's rules drop what is forwarded, as Docker's do, what concerns the container is let through.
    plugins.push(json!({"type": "firewall"}));
    let plugins = plugins.into_iter().filter_map(|plugin| serde_json::from_value(plugin).ok()).collect();
    let version = "1.0.0".to_owned();
    Conflist { cni_version: version, name: BRIDGE.to_owned(), plugins, ..Conflist::default() }
}

/// Whether the caller may do to the host's network what plugins do.
pub fn is_allowed() -> bool {
    coracle_sys::identity::caller() == 0 && namespace::is_initial_user()
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "tests lay out files on the host")]
mod tests {
    use super::*;

    fn directory(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        dir
    }

    #[test]
    fn the_first_file_with_the_name_counts() {
        let dir = directory(&[
            ("20.conflist", r#"{"cniVersion": "1.0.0", "name": "front", "plugins": [{"type": "ptp"}]}"#),
            ("10.conf", r#"{"cniVersion": "0.4.0", "name": "front", "type": "macvlan"}"#),
            ("30.txt", "nonsense"),
        ]);
        let list = find(dir.path(), "front", &Wanted::default()).unwrap();
        assert_eq!(list.types().collect::<Vec<_>>(), ["macvlan"]);
        assert!(list.is_since("0.4.0") && !list.is_since("1.1.0"));
    }

    #[test]
    fn the_newest_version_that_both_sides_know_is_spoken() {
        let text = r#"{"cniVersion": "0.4.0", "cniVersions": ["1.0.0", "9.0.0"], "name": "n", "type": "x"}"#;
        assert_eq!(Conflist::parse(text.as_bytes(), file::CWD).unwrap().cni_version, "1.0.0");
    }

    #[test]
    fn plugins_of_files_beside_a_list_come_after_its_own() {
        let list = |more: &str| format!(r#"{{"cniVersion": "1.1.0", "name": "front"{more}}}"#);
        let types = |text: &str| {
            let dir = directory(&[("10.conflist", text)]);
            std::fs::create_dir(dir.path().join("front")).unwrap();
            for (name, kind) in [("20.conf", "policy"), ("10.conf", "tuning"), ("30.txt", "ignored")] {
                std::fs::write(dir.path().join("front").join(name), format!(r#"{{"type": "{kind}"}}"#))
                    .unwrap();
            }
            let list = find(dir.path(), "front", &Wanted::default()).unwrap();
            list.types().collect::<Vec<_>>().join(" ")
        };
        assert_eq!(types(&list(r#", "plugins": [{"type": "ptp"}]"#)), "ptp tuning policy");
        assert_eq!(types(&list("")), "tuning policy");
        let alone = r#", "plugins": [{"type": "ptp"}], "loadOnlyInlinedPlugins": "true""#;
        assert_eq!(types(&list(alone)), "ptp");
        assert_eq!(types(&list(r#", "type": "macvlan""#)), "macvlan");
    }

    #[test]
    fn what_is_wrong_with_a_file_is_said_when_its_network_is_missed() {
        let dir = directory(&[("10.conflist", r#"{"cniVersion": "0.1.0", "name": "front", "plugins": []}"#)]);
        let error = find(dir.path(), "front", &Wanted::default()).unwrap_err().to_string();
        let wanted = format!(
            "no network \"front\" is configured in {}; 10.conflist: its cniVersion \"0.1.0\" is none that is spoken",
            dir.path().display()
        );
        assert!(error.starts_with(&wanted), "{error}");
        for (text, words) in [
            (r#"{"cniVersion": "1.0.0", "name": "a/b", "type": "x"}"#, "its name \"a/b\" is none"),
            (r#"{"cniVersion": "1.0.0", "name": "n", "plugins": []}"#, "it lists no plugins"),
            (r#"{"cniVersion": "1.0.0", "name": "n", "type": "../x"}"#, "\"../x\" is no plugin's type"),
            ("[]", "invalid type"),
        ] {
            let error = Conflist::parse(text.as_bytes(), file::CWD).unwrap_err().to_string();
            assert!(error.contains(words), "{text}: {error}");
        }
    }

    #[test]
    fn a_bridge_is_there_without_a_configuration_and_yields_to_one() {
        let dir = directory(&[]);
        let own = find(dir.path(), "bridge", &Wanted::default()).unwrap();
        assert_eq!(own.types().collect::<Vec<_>>(), ["bridge", "firewall"]);
        let wanted = Wanted::parse(
            r#"{"networks": [{"name": "bridge", "bandwidth": {}}], "ports": [{"hostPort": 1, "containerPort": 2}]}"#,
        );
        let own = find(dir.path(), "bridge", &wanted.unwrap()).unwrap();
        assert_eq!(own.types().collect::<Vec<_>>(), ["bridge", "portmap", "bandwidth", "firewall"]);
        let dir = directory(&[("1.conf", r#"{"cniVersion": "1.0.0", "name": "bridge", "type": "ptp"}"#)]);
        let theirs = find(dir.path(), "bridge", &Wanted::default()).unwrap();
        assert_eq!(theirs.types().collect::<Vec<_>>(), ["ptp"]);
    }
}
