//! The configuration of a session: the target's rights and limits on files, with its own program, cgroup and files.

use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::path::Path;

use coracle_isolator_linux::landlock::ANNOTATION as LANDLOCK;
use coracle_sys::file::{self, Resolve};
use serde_json::{Map, Value, json};

use super::target::{self, First, Target};
use crate::cli::{self, Files};
use crate::commands::exec::parse_user;
use crate::error::{Code, Context, Error, Result};
use crate::stages::spec::SPEC_VERSION;

/// What a session's process has of the target's: what it may do. Its turns on the processors are its own, and the kernel
/// takes it before anybody else's when memory is short.
const RIGHTS: [&str; 5] = ["capabilities", "rlimits", "noNewPrivileges", "apparmorProfile", "selinuxLabel"];

/// The annotation that tells whom a session looks into.
const TARGET: &str = "io.coracle.debug.target";

/// The likeliest to be killed for memory (proc_pid_oom_score_adj(5)).
const FIRST_TO_GO: i32 = 1000;

/// What goes into every session's configuration.
pub(super) struct Session<'a> {
    /// Whom it looks into.
    pub(super) target: &'a Target,
    /// What was asked for.
    pub(super) options: &'a cli::Debug,
    /// Where its cgroup goes.
    pub(super) cgroup: String,
    /// The configuration of its bundle, where it has an image.
    pub(super) image: Option<Value>,
}

impl Session<'_> {
    /// The configuration.
    ///
    /// # Errors
    /// `Usage` for a user, directory or capability that there is not.
    pub(super) fn compose(&self) -> Result<Value> {
        let mut config = match (&self.image, &self.target.first) {
            (Some(image), _) => self.of_image(image.clone()),
            (None, Some(first)) => self.of_running(first)?,
            (None, None) => self.of_ended(),
        };
        self.give_rights(&mut config)?;
        let linux = &mut config["linux"];
        linux["cgroupsPath"] = self.cgroup.as_str().into();
        linux["resources"] = self.resources();
        linux["seccomp"] = self.target.config["linux"]["seccomp"].clone();
        if let Some(first) = &self.target.first {
            linux["namespaces"] = self.namespaces(first);
        }
        if self.options.privileged {
            self.free(&mut config);
        }
        config["annotations"] = json!({TARGET: self.target.name, LANDLOCK: self.landlock()});
        Ok(without_nulls(config))
    }

    /// The image's files and program.
    fn of_image(&self, mut config: Value) -> Value {
        config["root"]["readonly"] = (!self.options.writable).into();
        if !self.options.writable {
            add(&mut config, json!({"destination": "/tmp", "type": "tmpfs", "options": ["mode=1777"]}));
        }
        if self.target.first.is_some() {
            config["hostname"] = Value::Null;
        } else if self.options.files == Files::Image {
            self.show_files(&mut config);
        }
        config
    }

    /// The files of a target that has ended, and what the host mounts in it, below the place for them.
    fn show_files(&self, config: &mut Value) {
        let bind = |source: &Path, destination: &str, options: Value| json!({"destination": destination, "type": "bind", "source": source, "options": options});
        add(config, bind(&self.target.rootfs, Files::PLACE, json!(["rbind", "rslave"])));
        let mounts = self.target.config["mounts"].as_array();
        for mount in mounts.into_iter().flatten().filter(|mount| is_bind(mount)) {
            let at = |key: &str| mount[key].as_str().unwrap_or_default();
            let source = self.target.bundle.join(at("source"));
            let destination = Path::new(Files::PLACE).join(at("destination").trim_start_matches('/'));
            add(config, bind(&source, &destination.to_string_lossy(), mount["options"].clone()));
        }
    }

    /// The files of a target that runs, as it sees them; the terminal of the session is not one that the target sees.
    fn of_running(&self, first: &First) -> Result<Value> {
        let cwd = self.cwd_in(first)?;
        let mut config = json!({
            "ociVersion": SPEC_VERSION,
            "process": self.own_process(&cwd)?,
            "root": {"path": self.target.rootfs},
            "linux": {},
        });
        if self.options.tty {
            let place = file::open(first.reach.root.as_fd(), "dev/pts", libc::O_PATH, 0, Resolve::InRoot);
            place.map_err(|_| {
                Error::new(Code::Unsupported, "the target has no /dev/pts for a terminal")
                    .hint("leave -t out, or bring tools with --image")
            })?;
            let options = json!(["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]);
            add(
                &mut config,
                json!({"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": options}),
            );
        }
        Ok(config)
    }

    /// The configuration of a target that has ended, but for what happens only once, and what can be had no more.
    fn of_ended(&self) -> Value {
        let mut config = self.target.config.clone();
        let cwd = config["process"]["cwd"].as_str().unwrap_or("/").to_owned();
        config["process"] = self.own_process(&cwd).unwrap_or_default();
        config["root"]["path"] = self.target.rootfs.to_string_lossy().into();
        config["hooks"] = Value::Null;
        let linux = &mut config["linux"];
        for field in ["netDevices", "intelRdt", "personality", "memoryPolicy"] {
            linux[field] = Value::Null;
        }
        for namespace in linux["namespaces"].as_array_mut().into_iter().flatten() {
            let path = namespace["path"].as_str().unwrap_or_default();
            // One that whoever made it had open is not to be had any more.
            let is_gone = |path| file::open(file::CWD, path, libc::O_PATH, 0, Resolve::Host).is_err();
            if !path.is_empty() && (path.starts_with("/proc/self/") || is_gone(path)) {
                namespace["path"] = Value::Null;
            }
        }
        config
    }

    /// The process of a session without an image.
    fn own_process(&self, cwd: &str) -> Result<Value> {
        let own = &self.target.config["process"];
        let mut env = own["env"].as_array().cloned().unwrap_or_default();
        for variable in &self.options.env {
            let value = || std::env::var(variable).ok().map(|value| format!("{variable}={value}"));
            env.extend(
                if variable.contains('=') { Some(variable.clone()) } else { value() }.map(Value::from),
            );
        }
        let has_term = env.iter().any(|v| v.as_str().is_some_and(|v| v.starts_with("TERM=")));
        if self.options.tty && !has_term {
            let term = std::env::var("TERM").unwrap_or_else(|_| "xterm".to_owned());
            env.push(format!("TERM={term}").into());
        }
        Ok(json!({
            "user": own["user"], "args": self.options.args, "env": env, "cwd": cwd, "terminal": self.options.tty,
        }))
    }

    /// The working directory in the target's files: the one that was asked for, or else the target's own.
    fn cwd_in(&self, first: &First) -> Result<String> {
        let is_there = |path: &Path| {
            let below = path.strip_prefix("/").unwrap_or(path);
            let below = if below == Path::new("") { Path::new(".") } else { below };
            let flags = libc::O_PATH | libc::O_DIRECTORY;
            file::open(first.reach.root.as_fd(), below, flags, 0, Resolve::InRoot).is_ok()
        };
        match &self.options.cwd {
            Some(path) if is_there(path) => Ok(path.to_string_lossy().into_owned()),
            Some(path) => {
                Err(Error::new(Code::Usage, format!("--workdir {path:?} is no directory of the target")))
            }
            None => {
                let own = self.target.config["process"]["cwd"].as_str().unwrap_or("/");
                Ok(if is_there(Path::new(own)) { own } else { "/" }.to_owned())
            }
        }
    }

    /// The target's rights, and those that were asked for.
    fn give_rights(&self, config: &mut Value) -> Result<()> {
        let own = &self.target.config["process"];
        let process = &mut config["process"];
        for right in RIGHTS {
            process[right] = own[right].clone();
        }
        process["oomScoreAdj"] = FIRST_TO_GO.into();
        // An image's is looked up in the image.
        if let (Some(user), None) = (&self.options.user, &self.image) {
            let own = serde_json::from_value(process["user"].clone()).unwrap_or_default();
            let user = serde_json::to_value(parse_user(user, &own)?);
            process["user"] = user.map_err(Error::system)?;
        }
        let added = capabilities(&self.options.cap_add).context(|| "--cap-add")?;
        let is_root = process["user"]["uid"] == 0;
        // To other users than root they come over execve(2) as ambient ones, or not at all (capabilities(7)).
        let ambient: &[&str] = if is_root { &[] } else { &["inheritable", "ambient"] };
        let sets = if self.options.privileged { caps_of_all() } else { added };
        for set in ["bounding", "effective", "permitted"].iter().chain(ambient).filter(|_| !sets.is_empty()) {
            let own = process["capabilities"][set].as_array().cloned().unwrap_or_default();
            let own = own.into_iter().filter_map(|name| name.as_str().map(str::to_owned));
            process["capabilities"][set] =
                own.chain(sets.iter().cloned()).collect::<BTreeSet<_>>().into_iter().collect();
        }
        Ok(())
    }

    /// The target's rules of Landlock, which name its files.
    fn landlock(&self) -> Value {
        let is_bound = self.image.is_none() && !self.options.privileged;
        if is_bound { self.target.config["annotations"][LANDLOCK].clone() } else { Value::Null }
    }

    /// Takes away all that confines.
    fn free(&self, config: &mut Value) {
        for right in ["noNewPrivileges", "apparmorProfile", "selinuxLabel"] {
            config["process"][right] = Value::Null;
        }
        let linux = &mut config["linux"];
        for field in ["seccomp", "maskedPaths", "readonlyPaths"] {
            linux[field] = Value::Null;
        }
        linux["resources"]["devices"] = json!([{"allow": true, "access": "rwm"}]);
    }

    /// The target's devices, and limits of its own.
    fn resources(&self) -> Value {
        const PERIOD: u64 = 100_000;
        let mut resources = json!({"devices": self.target.config["linux"]["resources"]["devices"]});
        if let Some(bytes) = self.options.memory {
            resources["memory"] = json!({"limit": bytes});
        }
        if let Some(limit) = self.options.pids {
            resources["pids"] = json!({"limit": limit});
        }
        if let Some(cpus) = self.options.cpus {
            // The kernel takes no quota below one millisecond.
            let quota = ((cpus * PERIOD as f64).round() as i64).max(1000);
            resources["cpu"] = json!({"quota": quota, "period": PERIOD});
        }
        resources
    }

    /// Mounts of its own, over which nobody else looks; and what it joins.
    fn namespaces(&self, first: &First) -> Value {
        let joined = self.options.join & first.kinds;
        let mut namespaces = vec![json!({"type": "mount"})];
        if joined & libc::CLONE_NEWCGROUP == 0 {
            namespaces.push(json!({"type": "cgroup"}));
        }
        namespaces.extend(target::namespaces(first.process.pid, joined));
        namespaces.into()
    }
}

fn add(config: &mut Value, mount: Value) {
    match config["mounts"].as_array_mut() {
        Some(mounts) => mounts.push(mount),
        None => config["mounts"] = json!([mount]),
    }
}

fn is_bind(mount: &Value) -> bool {
    let options = mount["options"].as_array();
    mount["type"] == "bind"
        || options.into_iter().flatten().any(|option| option == "bind" || option == "rbind")
}

/// The capabilities that `names` mean, with or without `CAP_`.
fn capabilities(names: &[String]) -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    for name in names {
        let full = caps::to_canonical(name);
        match full.parse::<caps::Capability>() {
            _ if name.eq_ignore_ascii_case("all") => found.extend(caps_of_all()),
            Ok(_) => drop(found.insert(full)),
            Err(_) => return Err(Error::new(Code::Usage, format!("no capability is named {name:?}"))),
        }
    }
    Ok(found)
}

fn caps_of_all() -> BTreeSet<String> {
    caps::all().iter().map(ToString::to_string).collect()
}

/// What is null is left out: to the configuration they are not the same.
fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            let fields = fields.into_iter().filter(|(_, value)| !value.is_null());
            Value::Object(fields.map(|(key, value)| (key, without_nulls(value))).collect::<Map<_, _>>())
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_named_with_or_without_their_prefix() {
        let found = capabilities(&["sys_ptrace".to_owned(), "CAP_NET_RAW".to_owned()]).unwrap();
        assert_eq!(found.into_iter().collect::<Vec<_>>(), ["CAP_NET_RAW", "CAP_SYS_PTRACE"]);
        assert!(capabilities(&["all".to_owned()]).unwrap().len() > 40);
        assert!(capabilities(&["CAP_FLY".to_owned()]).unwrap_err().to_string().contains("\"CAP_FLY\""));
    }
}
