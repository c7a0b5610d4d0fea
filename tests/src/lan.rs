//! A host with networks: the distribution's plugins, configurations of the test's own, and an oracle for what plugins leave.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::command::{patience, tool};
use crate::host::Host;

/// Where Debian's containernetworking-plugins are.
const PLUGINS: &str = "/usr/lib/cni";
/// Where is kept who is on which network.
const STATE: &str = "/var/lib/coracle/network";

/// A host on which networks are configured.
pub struct Lan {
    host: Host,
    directory: PathBuf,
}

impl Lan {
    /// On the test's host; nothing where the plugins are not installed, which is recorded. A plugin may take `deadline`
    /// seconds.
    ///
    /// # Panics
    /// When the host can't be prepared.
    pub fn new(host: &Host, deadline: f64) -> Option<Self> {
        if !host.needs_coracle("networks") || !host.needs_program("iptables") || !host.needs_program("ip") {
            return None;
        }
        if !Path::new(PLUGINS).join("bridge").is_file() {
            host.skip("containernetworking-plugins is not installed");
            return None;
        }
        let directory = host.directory();
        for name in ["net.d", "plugins"] {
            fs::create_dir(directory.join(name)).expect("make a directory");
        }
        let (config, plugins) = (directory.join("net.d"), directory.join("plugins"));
        let options = format!(
            "options = {{ config = {config:?}, plugins = [{plugins:?}, {PLUGINS:?}], deadline = {deadline:?} }}"
        );
        let host = host.configured(&format!("[isolator.\"network/cni\"]\n{options}\n"));
        Some(Self { host, directory })
    }

    /// The host.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Configures a network.
    ///
    /// # Panics
    /// When that fails.
    pub fn network(&self, list: &Value) {
        let name = list["name"].as_str().expect("a network has a name");
        let path = self.directory.join("net.d").join(format!("{name}.conflist"));
        fs::write(path, list.to_string()).expect("configure a network");
    }

    /// A plugin that is a shell script. It finds its files in `$DIR`.
    ///
    /// # Panics
    /// When it can't be written.
    pub fn plugin(&self, name: &str, script: &str) {
        let path = self.directory.join("plugins").join(name);
        let text = format!("#!/bin/sh\nDIR={}\n{script}\n", self.directory.display());
        fs::write(&path, text).expect("write a plugin");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("make it executable");
    }

    /// Removes a plugin.
    ///
    /// # Panics
    /// When there is none.
    pub fn forget_plugin(&self, name: &str) {
        fs::remove_file(self.directory.join("plugins").join(name)).expect("remove a plugin");
    }

    /// A file of the plugins' directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// What a plugin has written to a file of its directory.
    pub fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    /// All that plugins, and the runtime for them, hold on this host: addresses, interfaces, rules, reservations,
    /// namespaces that are held, records.
    pub fn stock(&self) -> BTreeSet<String> {
        let mut lines = BTreeSet::new();
        let is_passing = |line: &&str| line.contains("fe80::") || line.contains("ff02::");
        for args in [&["-o", "addr"][..], &["-o", "route"], &["-o", "link"]] {
            let text = tool("ip", args);
            let words = |line: &str| line.split_whitespace().skip(1).take(3).collect::<Vec<_>>().join(" ");
            let words = |line: &str| words(line).split('@').next().unwrap_or_default().to_owned();
            lines.extend(
                text.lines()
                    .filter(|line| !is_passing(line))
                    .map(|line| format!("{args:?} {}", words(line).split(" <").next().unwrap_or_default())),
            );
        }
        for save in ["iptables-save", "ip6tables-save"] {
            let rules = tool::<&str>(save, &[]);
            lines.extend(
                rules.lines().filter(|line| line.starts_with("-A")).map(|line| format!("{save} {line}")),
            );
        }
        let is_kept = |path: &Path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name == "lock" || name.starts_with("last_reserved") || name == ".lock"
        };
        let kept = files(Path::new("/var/lib/cni")).into_iter().chain(files(Path::new(STATE)));
        lines.extend(kept.filter(|path| !is_kept(path)).map(|path| format!("file {}", path.display())));
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("read the mount table");
        lines.extend(mounts.lines().filter(|line| line.contains(" nsfs ")).map(str::to_owned));
        lines
    }

    /// Asserts that all is as it was by `before`, and takes away what plugins leave for the next container: a bridge, the
    /// heads of chains, the lists of addresses.
    ///
    /// # Panics
    /// When something is left.
    pub fn ends_as(&self, before: &BTreeSet<String>) {
        let end = Instant::now() + Duration::from_secs(10) * patience();
        let mut left: Vec<String>;
        loop {
            let now = self.stock();
            left = now.symmetric_difference(before).cloned().collect();
            if left.is_empty() || Instant::now() > end {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        assert!(left.is_empty(), "plugins, or the runtime, left: {left:#?}");
        for directory in ["/var/lib/cni", STATE] {
            let _ = fs::remove_dir_all(directory);
        }
        let _ = fs::remove_file("/run/xtables.lock");
        let links = tool("ip", &["-o", "link", "show", "type", "bridge"]);
        for name in links.lines().filter_map(|line| line.split(": ").nth(1)) {
            let gone = Command::new("ip").args(["link", "del", name]).status();
            assert!(gone.expect("run ip").success(), "{name}");
        }
    }
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).map(|list| list.flatten().collect::<Vec<_>>()).unwrap_or_default();
    let is_directory = |path: &Path| path.is_dir() && !path.is_symlink();
    let of = |path: PathBuf| if is_directory(&path) { files(&path) } else { vec![path] };
    entries.into_iter().map(|entry| entry.path()).flat_map(of).collect()
}
