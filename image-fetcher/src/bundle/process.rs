//! The process of a container: what image and caller say together.

use std::collections::BTreeSet;

use oci_spec::image::Config;
use serde_json::{Value, json};

use super::options::Options;
use super::user::Identity;
use crate::error::{Error, Kind, Result};

/// Where programs are looked for unless the image says.
pub(crate) const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The capabilities of a container unless somebody says otherwise: podman's eleven.
const CAPABILITIES: [&str; 11] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_NET_BIND_SERVICE",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// All capabilities that runtime-spec knows (capabilities(7), Linux 5.9).
const ALL: [&str; 41] = [
    "CAP_AUDIT_CONTROL",
    "CAP_AUDIT_READ",
    "CAP_AUDIT_WRITE",
    "CAP_BLOCK_SUSPEND",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_KILL",
    "CAP_LEASE",
    "CAP_LINUX_IMMUTABLE",
    "CAP_MAC_ADMIN",
    "CAP_MAC_OVERRIDE",
    "CAP_MKNOD",
    "CAP_NET_ADMIN",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_RAW",
    "CAP_PERFMON",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYSLOG",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_CHROOT",
    "CAP_SYS_MODULE",
    "CAP_SYS_NICE",
    "CAP_SYS_PACCT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_WAKE_ALARM",
];

/// The arguments: entrypoint, then command, each the caller's or else the image's.
pub(crate) fn args(image: &Config, options: &Options) -> Result<Vec<String>> {
    let entrypoint = options.entrypoint.clone().or_else(|| image.entrypoint().clone()).unwrap_or_default();
    let command = match (&options.args[..], &options.entrypoint) {
        ([], None) => image.cmd().clone().unwrap_or_default(),
        (args, _) => args.to_vec(),
    };
    let args = [entrypoint, command].concat();
    if args.is_empty() {
        let why = "no command: the image has neither Entrypoint nor Cmd";
        return Err(Error::new(Kind::Usage, why).hint("say one after `--`"));
    }
    Ok(args)
}

/// The environment: the image's, then the caller's over it, with the defaults that a program expects.
pub(crate) fn env(image: &Config, options: &Options, home: &str) -> Vec<String> {
    let mut env: Vec<String> = vec![PATH.to_owned()];
    if options.terminal {
        set(&mut env, "TERM=xterm");
    }
    if let Some(hostname) = &options.hostname {
        set(&mut env, &format!("HOSTNAME={hostname}"));
    }
    for variable in image.env().iter().flatten() {
        set(&mut env, variable);
    }
    for variable in &options.env {
        if variable.contains('=') {
            set(&mut env, variable);
        } else if let Ok(value) = std::env::var(variable) {
            set(&mut env, &format!("{variable}={value}"));
        }
    }
    if !env.iter().any(|v| v.starts_with("HOME=")) {
        env.push(format!("HOME={home}"));
    }
    env
}

/// Replaces the variable of that name, or adds it.
fn set(env: &mut Vec<String>, variable: &str) {
    let name = variable.split('=').next().unwrap_or_default();
    let same = |v: &&mut String| v.split('=').next() == Some(name);
    match env.iter_mut().find(same) {
        Some(old) => variable.clone_into(old),
        None => env.push(variable.to_owned()),
    }
}

/// The capabilities: the default ones and those added, without those dropped.
pub(crate) fn capabilities(options: &Options) -> Result<BTreeSet<&'static str>> {
    let mut set: BTreeSet<&str> = CAPABILITIES.into();
    // As podman has it: `--cap-drop ALL --cap-add CHOWN` leaves one, so what is named wins over ALL.
    let (drop, add) = (named(&options.cap_drop)?, named(&options.cap_add)?);
    let is_all = |list: &[&str]| list.len() == ALL.len();
    match (is_all(&drop), is_all(&add)) {
        (true, _) => set.clear(),
        (false, true) => set.extend(ALL),
        (false, false) => {}
    }
    if !is_all(&add) || is_all(&drop) {
        set.extend(add);
    }
    if !is_all(&drop) {
        set.retain(|name| !drop.contains(name));
    }
    Ok(set)
}

/// The capabilities that `names` mean.
fn named(names: &[String]) -> Result<Vec<&'static str>> {
    let mut found = BTreeSet::new();
    for name in names {
        let upper = name.to_ascii_uppercase();
        if upper == "ALL" {
            return Ok(ALL.to_vec());
        }
        let full = if upper.starts_with("CAP_") { upper } else { format!("CAP_{upper}") };
        let known = ALL.into_iter().find(|known| *known == full);
        found.insert(
            known.ok_or_else(|| Error::new(Kind::Usage, format!("no capability is named {name:?}")))?,
        );
    }
    Ok(found.into_iter().collect())
}

/// The `process` of the runtime spec.
pub(crate) fn process(image: &Config, options: &Options, who: &Identity) -> Result<Value> {
    let set = capabilities(options)?;
    // Capabilities of root only: another user gets those that a program's file gives, up to the bounding set.
    let effective = if who.uid == 0 { set.clone() } else { BTreeSet::new() };
    let image_dir = image.working_dir().clone().filter(|d| !d.is_empty());
    let working_dir = options.working_dir.clone().or(image_dir).unwrap_or_else(|| "/".to_owned());
    if !working_dir.starts_with('/') {
        let why = format!("the working directory {working_dir:?} is no absolute path");
        return Err(Error::new(Kind::Usage, why));
    }
    Ok(json!({
        "terminal": options.terminal,
        "user": { "uid": who.uid, "gid": who.gid, "umask": 0o022, "additionalGids": who.additional_gids },
        "args": args(image, options)?,
        "env": env(image, options, &who.home),
        "cwd": working_dir,
        "capabilities": { "bounding": set, "effective": effective, "permitted": effective },
        "noNewPrivileges": true,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> Config {
        let text = r#"{"Entrypoint":["/e"],"Cmd":["c"],"Env":["A=1","PATH=/x"],"WorkingDir":"/w"}"#;
        serde_json::from_str(text).unwrap()
    }

    fn strings(list: &[&str]) -> Vec<String> {
        list.iter().map(|s| (*s).to_owned()).collect()
    }

    #[test]
    fn arguments_replace_the_command_and_an_entrypoint_drops_it() {
        let image = image();
        let mut options = Options::default();
        assert_eq!(args(&image, &options).unwrap(), ["/e", "c"]);
        options.args = strings(&["x"]);
        assert_eq!(args(&image, &options).unwrap(), ["/e", "x"]);
        options = Options { entrypoint: Some(strings(&["/o"])), ..Options::default() };
        assert_eq!(args(&image, &options).unwrap(), ["/o"]);
    }

    #[test]
    fn an_image_without_a_command_says_so() {
        let error = args(&Config::default(), &Options::default()).unwrap_err();
        let expected = "no command: the image has neither Entrypoint nor Cmd; say one after `--`";
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn the_callers_variables_go_over_the_images() {
        let options = Options { env: strings(&["A=2", "B="]), ..Options::default() };
        assert_eq!(env(&image(), &options, "/root"), ["PATH=/x", "A=2", "B=", "HOME=/root"]);
    }

    #[test]
    fn capabilities_are_added_and_dropped_by_name() {
        let of = |add: &[&str], drop: &[&str]| {
            let options = Options { cap_add: strings(add), cap_drop: strings(drop), ..Options::default() };
            capabilities(&options).map(|set| set.len())
        };
        assert_eq!(of(&[], &[]).unwrap(), 11);
        assert_eq!(of(&["net_admin"], &["CAP_KILL", "chown"]).unwrap(), 10);
        assert_eq!(of(&["chown"], &["ALL"]).unwrap(), 1);
        assert_eq!(of(&["all"], &["mknod"]).unwrap(), 40);
        assert_eq!(of(&["nope"], &[]).unwrap_err().to_string(), "no capability is named \"nope\"");
    }

    #[test]
    fn only_root_has_capabilities_from_the_start() {
        let who = Identity { uid: 33, ..Identity::default() };
        let process = process(&image(), &Options::default(), &who).unwrap();
        assert_eq!(process["capabilities"]["effective"], json!([]));
        assert_eq!(process["capabilities"]["bounding"].as_array().unwrap().len(), 11);
    }
}
