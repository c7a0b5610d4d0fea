//! The runtime spec that an image and its caller ask for.

use std::os::fd::BorrowedFd;
use std::path::Path;

use coracle_sys::file;
use oci_spec::image::ImageConfiguration;
use oci_spec::runtime::Spec;
use serde_json::{Value, json};

use super::options::{Network, Options};
use super::{process, seccomp, user, volumes};
use crate::error::{Error, Kind, Result};

/// The version of the runtime specification that Coracle follows and writes.
pub const SPEC_VERSION: &str = "1.3.0";

/// The annotation with the signal that an image's program wants to be asked to end by (image-spec, conversion.md).
pub const STOP_SIGNAL: &str = "org.opencontainers.image.stopSignal";

/// Parts of `/proc` and `/sys` that tell of the host or reach into it.
const MASKED: [&str; 11] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// The runtime spec for a container of an image whose root file system is `root`: `root.path` is "rootfs".
///
/// An image's volumes are directories of its root file system and go with the container, as podman's
/// anonymous volumes with `--rm` do; where the root is read-only, each is an empty tmpfs, with no option of the image's choice.
///
/// # Errors
/// [`Kind::Usage`] where an option can't be understood, and where the user can't be looked up.
pub fn spec(config: &ImageConfiguration, root: BorrowedFd<'_>, options: &Options) -> Result<Spec> {
    if config.os().to_string() != "linux" {
        return Err(Error::new(
            Kind::Unsupported,
            format!("the image is for {}, not for linux", config.os().to_string().escape_debug()),
        ));
    }
    let image = config.config().clone().unwrap_or_default();
    let user = options.user.as_deref().or(image.user().as_deref()).unwrap_or_default();
    let who = user::look_up(root, user)?;
    let mut mounts = default_mounts();
    if options.network == Network::Host {
        mounts.extend(host_files());
    }
    let mut wanted = Vec::new();
    if options.read_only {
        let empty = |path: &String| mount(path, "tmpfs", "tmpfs", &SAFE);
        wanted.extend(volumes::there(root, &image).iter().map(empty));
    }
    for text in &options.tmpfs {
        wanted.push(tmpfs(text)?);
    }
    for text in &options.volumes {
        wanted.push(bind(text)?);
    }
    by_depth(&mut wanted);
    mounts.extend(wanted);
    let mut linux = linux(options);
    if let Some(profile) = seccomp::profile(&options.seccomp, &process::capabilities(options)?)? {
        linux["seccomp"] = profile;
    }
    let mut annotations = options.annotations.clone();
    if let Some(signal) = image.stop_signal() {
        annotations.entry(STOP_SIGNAL.to_owned()).or_insert_with(|| signal.clone());
    }
    finish(json!({
        "ociVersion": SPEC_VERSION,
        "annotations": annotations,
        "process": process::process(&image, options, &who)?,
        "root": { "path": "rootfs", "readonly": options.read_only },
        "hostname": options.hostname.as_deref().unwrap_or("container"),
        "mounts": mounts,
        "linux": linux,
    }))
}

/// What `coracle spec` prints: a shell on a terminal, in the read-only directory "rootfs".
///
/// # Errors
/// None that is known.
pub fn default_spec() -> Result<Spec> {
    let capabilities = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"];
    finish(json!({
        "ociVersion": SPEC_VERSION,
        "process": {
            "terminal": true,
            "user": { "uid": 0, "gid": 0 },
            "args": ["sh"],
            "env": [process::PATH, "TERM=xterm"],
            "cwd": "/",
            "capabilities": {
                "bounding": capabilities, "effective": capabilities, "permitted": capabilities,
            },
            "rlimits": [{ "type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024 }],
            "noNewPrivileges": true,
        },
        "root": { "path": "rootfs", "readonly": true },
        "hostname": "coracle",
        "mounts": default_mounts(),
        "linux": linux(&Options::default()),
    }))
}

pub(super) fn finish(spec: Value) -> Result<Spec> {
    serde_json::from_value(spec).map_err(malformed)
}

pub(super) fn to_value(spec: &Spec) -> Result<Value> {
    serde_json::to_value(spec).map_err(malformed)
}

fn malformed(error: serde_json::Error) -> Error {
    Error::new(Kind::Malformed, format!("making the spec: {error}"))
}

fn linux(options: &Options) -> Value {
    let mut namespaces = vec!["pid", "mount", "ipc", "uts", "cgroup"];
    if options.network == Network::None {
        namespaces.push("network");
    }
    let namespaces: Vec<Value> = namespaces.iter().map(|n| json!({ "type": n })).collect();
    json!({
        "namespaces": namespaces,
        "resources": resources(options),
        "maskedPaths": MASKED,
        "readonlyPaths": READ_ONLY,
    })
}

fn resources(options: &Options) -> Value {
    const PERIOD: u64 = 100_000;
    let mut resources = json!({ "devices": [{ "allow": false, "access": "rwm" }] });
    if let Some(bytes) = options.memory {
        resources["memory"] = json!({ "limit": bytes });
    }
    if let Some(limit) = options.pids {
        resources["pids"] = json!({ "limit": limit });
    }
    if let Some(cpus) = options.cpus {
        // The kernel takes no quota below one millisecond.
        let quota = ((cpus * PERIOD as f64).round() as i64).max(1000);
        resources["cpu"] = json!({ "quota": quota, "period": PERIOD });
    }
    if let Some(shares) = options.cpu_shares {
        resources["cpu"]["shares"] = json!(shares);
    }
    resources
}

fn mount(destination: &str, kind: &str, source: &str, options: &[&str]) -> Value {
    json!({ "destination": destination, "type": kind, "source": source, "options": options })
}

/// What no mount needs that holds data alone.
const SAFE: [&str; 3] = ["nosuid", "noexec", "nodev"];

fn default_mounts() -> Vec<Value> {
    let with = |more: &[&'static str]| [&SAFE[..], more].concat();
    vec![
        mount("/proc", "proc", "proc", &SAFE),
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        mount("/dev/shm", "tmpfs", "shm", &with(&["mode=1777", "size=65536k"])),
        mount("/dev/mqueue", "mqueue", "mqueue", &SAFE),
        mount("/sys", "sysfs", "sysfs", &with(&["ro"])),
        mount("/sys/fs/cgroup", "cgroup", "cgroup", &with(&["relatime", "ro"])),
    ]
}

/// The host's files that say how names become addresses, where it has them.
fn host_files() -> Vec<Value> {
    ["/etc/hosts", "/etc/resolv.conf"]
        .into_iter()
        .filter(|path| file::open(file::CWD, path, libc::O_PATH, 0, file::Resolve::Host).is_ok())
        .map(|path| mount(path, "bind", path, &["bind", "rprivate", "ro", "nosuid", "nodev", "noexec"]))
        .collect()
}

/// Puts mounts that were wished for in no order into one in which none hides another: those below others come after them. Of
/// those at one place the last stays the last.
pub fn by_depth(mounts: &mut [Value]) {
    mounts.sort_by_key(|mount| {
        Path::new(mount["destination"].as_str().unwrap_or_default()).components().count()
    });
}

/// A volume of the caller: `source:destination[:option,…]`.
fn bind(text: &str) -> Result<Value> {
    let wrong = |why: &str| {
        let why = format!("volume {text:?} {why}");
        Error::new(Kind::Usage, why).hint(
            "write SOURCE:DESTINATION[:ro|rw,…] with absolute paths, or the name of a volume for the source",
        )
    };
    let parts: Vec<&str> = text.split(':').collect();
    let (source, destination, options) = match parts[..] {
        [source, destination] => (source, destination, ""),
        [source, destination, options] => (source, destination, options),
        _ => return Err(wrong("can't be understood")),
    };
    let is_name = source.starts_with(|c: char| c.is_ascii_alphanumeric()) && !source.contains('/');
    if !(source.starts_with('/') || is_name) || !destination.starts_with('/') {
        return Err(wrong("has a path that is not absolute"));
    }
    let mut all = vec!["rbind", "rprivate"];
    for option in options.split(',').filter(|o| !o.is_empty()) {
        match option {
            "bind" | "rbind" => all[0] = option,
            "private" | "rprivate" | "shared" | "rshared" | "slave" | "rslave" => all[1] = option,
            "ro" | "rw" | "nosuid" | "suid" | "nodev" | "dev" | "noexec" | "exec" | "noatime" => {
                all.push(option);
            }
            _ => return Err(wrong(&format!("has the unknown option {option:?}"))),
        }
    }
    if is_name {
        // What binds it is its isolator's to say (volume/persistent).
        all.retain(|option| !["bind", "rbind"].contains(option));
        return Ok(mount(destination, "volume", source, &all));
    }
    Ok(mount(destination, "bind", source, &all))
}

/// A tmpfs: `destination[:option,…]`.
fn tmpfs(text: &str) -> Result<Value> {
    let (destination, options) = text.split_once(':').unwrap_or((text, ""));
    if !destination.starts_with('/') {
        return Err(Error::new(Kind::Usage, format!("tmpfs {text:?} is not at an absolute path")));
    }
    let mut all = SAFE.to_vec();
    all.extend(options.split(',').filter(|o| !o.is_empty()));
    Ok(mount(destination, "tmpfs", "tmpfs", &all))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    fn made(options: &Options) -> Value {
        let config = r#"{"architecture":"amd64","os":"linux","config":{"Cmd":["sh"],
            "Volumes":{"/data":{},"/run/x:remount,rw,suid":{},"/sys/fs/cgroup":{},"data":{},"/no":{}},"StopSignal":"SIGQUIT"},
            "rootfs":{"type":"layers","diff_ids":[]}}"#;
        let scratch = tempfile::tempdir().unwrap();
        let root = file::open_dir(scratch.path()).unwrap();
        for there in ["data", "run/x:remount,rw,suid", "sys/fs/cgroup"] {
            file::mkdir_all(root.as_fd(), there, 0o755).unwrap();
        }
        let spec = spec(&serde_json::from_str(config).unwrap(), root.as_fd(), options).unwrap();
        serde_json::to_value(spec).unwrap()
    }

    fn destinations(spec: &Value) -> Vec<&str> {
        spec["mounts"].as_array().unwrap().iter().map(|m| m["destination"].as_str().unwrap()).collect()
    }

    #[test]
    fn a_plain_image_gets_the_usual_mounts_and_namespaces() {
        let spec = made(&Options::default());
        let expected = ["/proc", "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue", "/sys", "/sys/fs/cgroup"];
        assert_eq!(destinations(&spec), expected);
        assert_eq!(spec["linux"]["namespaces"].as_array().unwrap().len(), 6);
        assert_eq!(spec["linux"]["seccomp"]["defaultAction"], "SCMP_ACT_ERRNO");
        assert_eq!(spec["root"]["path"], "rootfs");
    }

    #[test]
    fn the_signal_that_an_image_ends_by_is_told_unless_the_caller_names_another() {
        let mut options = Options::default();
        let told = |options: &Options| made(options)["annotations"][STOP_SIGNAL].clone();
        assert_eq!(told(&options), "SIGQUIT");
        options.annotations.insert(STOP_SIGNAL.to_owned(), "SIGINT".to_owned());
        assert_eq!(told(&options), "SIGINT");
    }

    #[test]
    fn volumes_of_the_image_are_a_tmpfs_only_where_the_root_is_read_only() {
        let options = Options { read_only: true, ..Options::default() };
        assert!(destinations(&made(&options)).contains(&"/data"));
        assert!(!destinations(&made(&Options::default())).contains(&"/data"));
    }

    #[test]
    fn an_image_chooses_no_option_of_a_mount_and_covers_none_of_the_runtimes() {
        let spec = made(&Options { read_only: true, ..Options::default() });
        let mounts = spec["mounts"].as_array().unwrap();
        let odd = mounts.iter().find(|m| m["destination"] == "/run/x:remount,rw,suid").unwrap();
        assert_eq!(odd["options"], json!(SAFE));
        assert_eq!(destinations(&spec).len(), default_mounts().len() + 2);
    }

    #[test]
    fn limits_become_resources() {
        let options = Options {
            memory: Some(1 << 20),
            cpus: Some(1.5),
            cpu_shares: Some(512),
            pids: Some(7),
            ..Options::default()
        };
        let resources = &made(&options)["linux"]["resources"];
        assert_eq!(resources["memory"]["limit"], 1 << 20);
        assert_eq!(resources["cpu"]["quota"], 150_000);
        assert_eq!(resources["cpu"]["shares"], 512);
        assert_eq!(resources["pids"]["limit"], 7);
    }

    #[test]
    fn a_volume_becomes_a_bind_mount() {
        let mount = bind("/a:/b:ro,rslave").unwrap();
        assert_eq!(mount["options"], json!(["rbind", "rslave", "ro"]));
        assert_eq!(bind("a:/b:ro").unwrap()["type"], "volume");
        for bad in ["/a", "a/c:/b", "/a:b", "/a:/b:Z", "/a:/b:ro:x"] {
            assert_eq!(bind(bad).unwrap_err().kind(), Kind::Usage, "{bad}");
        }
    }

    #[test]
    fn a_volume_below_another_is_mounted_after_it() {
        let volumes = ["/h1:/data/cache/", "/h2:/data", "/h3:/other", "/h4:/data"].map(str::to_owned);
        let options =
            Options { volumes: volumes.into(), tmpfs: vec!["/data/cache/x".into()], ..Options::default() };
        let spec = made(&options);
        let mounts = &spec["mounts"].as_array().unwrap()[default_mounts().len()..];
        let sources: Vec<&Value> = mounts.iter().map(|mount| &mount["source"]).collect();
        assert_eq!(sources, ["/h2", "/h3", "/h4", "/h1", "tmpfs"]);
    }

    #[test]
    fn the_host_network_is_no_namespace() {
        let spec = made(&Options { network: Network::Host, ..Options::default() });
        assert!(!spec["linux"]["namespaces"].to_string().contains("network"));
    }

    #[test]
    fn the_default_spec_is_a_shell_on_a_read_only_root() {
        let spec = serde_json::to_value(default_spec().unwrap()).unwrap();
        assert_eq!(spec["process"]["args"], json!(["sh"]));
        assert_eq!(spec["root"]["readonly"], true);
    }
}
