//! `coracle-test-host [--v1-only | --systemd] COMMAND…` runs a command on a host of its own: new namespaces,
//! empty `/run`, `/var/lib` and `/dev/shm`, an own cgroup in every hierarchy. What it leaves is removed, what it prints and its
//! exit code are handed on.
//!
//! With `--systemd` it has the machine's processes and cgroups, and systemd to talk to: that one knows processes by their
//! numbers in its own PID namespace, and cgroups by their paths in its own tree.

#![forbid(unsafe_code)]
#![expect(clippy::print_stderr, reason = "a program that says why it could not")]

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::sys::wait::{WaitPidFlag, WaitStatus, wait, waitpid};
use nix::unistd::Pid;

use coracle_tests::command::code;

/// A test that takes longer is stuck. `CORACLE_TEST_SECONDS` says how long on a slower machine, or for a whole sweep.
const LIMIT: Duration = Duration::from_secs(240);
const PREFIX: &str = "coracle-test-";

fn main() -> ExitCode {
    let mut command: Vec<String> = std::env::args().skip(1).collect();
    let take = |command: &mut Vec<String>, flag: &str| {
        command.first().is_some_and(|first| first == flag).then(|| command.remove(0)).is_some()
    };
    let inside = take(&mut command, "--init").then(|| command.remove(0));
    let kind = match () {
        () if take(&mut command, "--v1-only") => Kind::Version1,
        () if take(&mut command, "--systemd") => Kind::Systemd,
        () => Kind::Whole,
    };
    let result = match (inside, kind) {
        (Some(name), _) => init(&name, kind, &command),
        (None, Kind::Systemd) => beside_systemd(&command),
        (None, _) => outer(kind, &command),
    };
    result.unwrap_or_else(|reason| {
        eprintln!("coracle-test-host: {reason}");
        ExitCode::FAILURE
    })
}

/// What the host has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Processes and cgroups of its own.
    Whole,
    /// The same, without the unified tree.
    Version1,
    /// Those of the machine, with its systemd.
    Systemd,
}

impl Kind {
    /// The option that asks for it.
    fn flag(self) -> Option<&'static str> {
        match self {
            Self::Whole => None,
            Self::Version1 => Some("--v1-only"),
            Self::Systemd => Some("--systemd"),
        }
    }
}

/// One hierarchy of cgroups: where it is mounted, as what, and where in it this process is.
#[derive(Clone, Debug)]
struct Hierarchy {
    point: PathBuf,
    kind: String,
    options: String,
    here: PathBuf,
}

impl Hierarchy {
    /// Whether it is the one tree with every controller.
    fn is_whole(&self) -> bool {
        self.kind == "cgroup2" && self.point == Path::new("/sys/fs/cgroup")
    }
}

/// All hierarchies that are mounted.
fn hierarchies() -> Vec<Hierarchy> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let membership = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in table.lines() {
        let Some((mount, (kind, options))) = line.split_once(" - ").and_then(|(mount, rest)| {
            let mut rest = rest.split(' ');
            Some((mount, (rest.next()?, rest.nth(1)?)))
        }) else {
            continue;
        };
        if kind != "cgroup" && kind != "cgroup2" {
            continue;
        }
        let point = PathBuf::from(mount.split(' ').nth(4).unwrap_or_default());
        let options = options.split(',').filter(|word| *word != "rw").collect::<Vec<_>>().join(",");
        let options = if kind == "cgroup2" { String::new() } else { options };
        let here = membership.lines().find_map(|line| place(line, kind, &options)).unwrap_or_default();
        let here = point.join(here.trim_start_matches('/'));
        found.retain(|known| known.point != point);
        found.push(Hierarchy { point, kind: kind.to_owned(), options, here });
    }
    found
}

/// This process's place, if the line of `/proc/self/cgroup` is that of the hierarchy with these options.
fn place(line: &str, kind: &str, options: &str) -> Option<String> {
    let mut fields = line.splitn(3, ':').skip(1);
    let (controllers, path) = (fields.next()?, fields.next()?);
    let is_it = match kind {
        "cgroup2" => controllers.is_empty(),
        _ => {
            !controllers.is_empty()
                && controllers.split(',').all(|word| options.split(',').any(|has| has == word))
        }
    };
    is_it.then(|| path.to_owned())
}

/// Makes cgroups and namespaces, runs the rest inside, and removes the cgroups again.
fn outer(kind: Kind, command: &[String]) -> Result<ExitCode, String> {
    let hierarchies = hierarchies();
    hierarchies.iter().for_each(sweep);
    let name = format!("{PREFIX}{}", std::process::id());
    for hierarchy in &hierarchies {
        make_cgroup(hierarchy, &name)
            .map_err(|error| format!("make a cgroup in {}: {error}", hierarchy.point.display()))?;
    }
    // The namespaces of mounts and cgroups are made inside: this process must go on seeing the cgroups that it removes.
    let namespaces = CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS;
    unshare(namespaces).map_err(|errno| format!("unshare: {errno}"))?;
    let result = start(&name, kind, command).and_then(|child| limited(child, limit()));
    for hierarchy in &hierarchies {
        remove(&hierarchy.here.join(&name));
    }
    result
}

/// Starts the rest inside.
fn start(name: &str, kind: Kind, command: &[String]) -> Result<Child, String> {
    let executable = std::env::current_exe().map_err(|error| error.to_string())?;
    let child = Command::new(executable).args(["--init", name]).args(kind.flag()).args(command).spawn();
    child.map_err(|error| format!("start inside: {error}"))
}

/// Runs the rest with a network and mounts of its own, and ends what it leaves: processes, by which their scopes end.
fn beside_systemd(command: &[String]) -> Result<ExitCode, String> {
    prctl::set_child_subreaper(true).map_err(|errno| format!("prctl: {errno}"))?;
    // In the others it is at home where the first process is, as it would be without systemd.
    unshare(CloneFlags::CLONE_NEWNET).map_err(|errno| format!("unshare: {errno}"))?;
    let before = scopes();
    let result = start("systemd", Kind::Systemd, command).and_then(|child| limited(child, limit()));
    end_descendants();
    forget_scopes(&before);
    result
}

/// Kills and reaps until nobody is left below this process.
fn end_descendants() {
    let own = std::process::id();
    loop {
        for pid in coracle_tests::oracle::descendants(own) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Err(Errno::ECHILD) => return,
            Ok(WaitStatus::StillAlive) => thread::sleep(Duration::from_millis(5)),
            _ => {}
        }
    }
}

/// The cgroups that are scopes of systemd.
fn scopes() -> BTreeSet<PathBuf> {
    fn look(directory: &Path, found: &mut BTreeSet<PathBuf>) {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.extension().is_some_and(|extension| extension == "scope") {
                found.insert(path);
            } else if path.is_dir() {
                look(&path, found);
            }
        }
    }
    let mut found = BTreeSet::new();
    look(Path::new("/sys/fs/cgroup"), &mut found);
    found
}

/// Waits until systemd has let go of all scopes but these, which the next test would find; stops those that do not go.
fn forget_scopes(before: &BTreeSet<PathBuf>) {
    for turn in 0.. {
        let now = scopes();
        let mut left = now.difference(before).filter_map(|path| path.file_name()).peekable();
        if left.peek().is_none() || turn > 1000 {
            return;
        }
        if turn == 200 {
            let _ = Command::new("systemctl").args(["stop", "--"]).args(left).status();
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// Makes the host's cgroup. A cpuset has no CPUs until it is given some (cgroups(7)).
fn make_cgroup(hierarchy: &Hierarchy, name: &str) -> std::io::Result<()> {
    let cgroup = hierarchy.here.join(name);
    fs::create_dir(&cgroup)?;
    for file in ["cpuset.cpus", "cpuset.mems"] {
        if hierarchy.kind == "cgroup" && cgroup.join(file).is_file() {
            fs::write(cgroup.join(file), fs::read(hierarchy.here.join(file))?)?;
        }
    }
    Ok(())
}

/// Makes the cgroups of this name the roots of the tree that this process sees.
fn enter_cgroups(hierarchies: &[Hierarchy], name: &str) -> Result<(), String> {
    for hierarchy in hierarchies {
        enter(&hierarchy.here.join(name)).map_err(|error| format!("enter a cgroup: {error}"))?;
    }
    unshare(CloneFlags::CLONE_NEWCGROUP).map_err(|errno| format!("unshare: {errno}"))?;
    for hierarchy in hierarchies.iter().filter(|hierarchy| hierarchy.is_whole()) {
        make_room(&hierarchy.here.join(name)).map_err(|error| format!("pass controllers down: {error}"))?;
    }
    Ok(())
}

/// Moves this process.
fn enter(cgroup: &Path) -> std::io::Result<()> {
    fs::write(cgroup.join("cgroup.procs"), "0")
}

/// Moves this process out of the root that the inside sees: a cgroup with processes passes no controller down
/// (cgroups(7), "no internal processes").
fn make_room(root: &Path) -> std::io::Result<()> {
    fs::create_dir(root.join("tests"))?;
    enter(&root.join("tests"))?;
    let controllers = fs::read_to_string(root.join("cgroup.controllers"))?;
    let all: Vec<String> = controllers.split_whitespace().map(|name| format!("+{name}")).collect();
    fs::write(root.join("cgroup.subtree_control"), all.join(" "))
}

/// Removes what a killed test host left: its name holds its process ID.
fn sweep(hierarchy: &Hierarchy) {
    for entry in fs::read_dir(&hierarchy.here).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if let Some(pid) = name.strip_prefix(PREFIX)
            && !Path::new("/proc").join(pid).is_dir()
        {
            remove(&entry.path());
        }
    }
}

fn remove(cgroup: &Path) {
    for entry in fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path());
        }
    }
    // Dead processes leave their cgroup a moment after they are reaped.
    for _ in 0..200 {
        if fs::remove_dir(cgroup).is_ok() || !cgroup.is_dir() {
            return;
        }
        thread::sleep(Duration::from_millis(5));
    }
    eprintln!("coracle-test-host: {} could not be removed", cgroup.display());
}

fn limit() -> Duration {
    let seconds = std::env::var("CORACLE_TEST_SECONDS").ok().and_then(|seconds| seconds.parse().ok());
    seconds.map_or(LIMIT, Duration::from_secs)
}

/// Waits for the first process inside; its death ends all others there.
fn limited(mut child: Child, limit: Duration) -> Result<ExitCode, String> {
    let end = Instant::now() + limit;
    loop {
        match child.try_wait().map_err(|error| error.to_string())? {
            Some(status) => return Ok(exit_code(code(status))),
            None if Instant::now() < end => thread::sleep(Duration::from_millis(2)),
            None => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("stopped after {} seconds", limit.as_secs()));
            }
        }
    }
}

fn exit_code(code: i32) -> ExitCode {
    ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX))
}

/// The first process inside: builds the host, runs the command, reaps whatever loses its parent.
fn init(name: &str, kind: Kind, command: &[String]) -> Result<ExitCode, String> {
    prctl::set_pdeathsig(Signal::SIGKILL).map_err(|errno| format!("prctl: {errno}"))?;
    let hierarchies = hierarchies();
    if kind == Kind::Systemd {
        prctl::set_child_subreaper(true).map_err(|errno| format!("prctl: {errno}"))?;
    } else {
        enter_cgroups(&hierarchies, name)?;
    }
    unshare(CloneFlags::CLONE_NEWNS).map_err(|errno| format!("unshare: {errno}"))?;
    build(kind, &hierarchies).map_err(|(what, errno)| format!("mount {what}: {errno}"))?;
    let loopback = Command::new("/bin/busybox").args(["ip", "link", "set", "lo", "up"]).status();
    loopback.map_err(|error| format!("busybox ip (install busybox-static): {error}"))?;
    let (program, args) = command.split_first().ok_or("no command")?;
    let child =
        Command::new(program).args(args).spawn().map_err(|error| format!("start {program}: {error}"))?;
    let pid = i32::try_from(child.id()).map_err(|error| error.to_string())?;
    loop {
        match wait() {
            Ok(WaitStatus::Exited(ended, code)) if ended.as_raw() == pid => return Ok(exit_code(code)),
            Ok(WaitStatus::Signaled(ended, signal, _)) if ended.as_raw() == pid => {
                return Ok(exit_code(128 + signal as i32));
            }
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(format!("wait: {errno}")),
        }
    }
}

fn build(kind: Kind, hierarchies: &[Hierarchy]) -> Result<(), (String, Errno)> {
    let attach = |kind: &str, point: &Path, options: &str| {
        mount(Some(kind), point, Some(kind), MsFlags::empty(), Some(options))
            .map_err(|errno| (format!("{kind} on {}", point.display()), errno))
    };
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>)
        .map_err(|errno| ("/ as private".to_owned(), errno))?;
    let kept = if kind == Kind::Systemd { of_systemd() } else { Vec::new() };
    attach("proc", Path::new("/proc"), "")?;
    attach("sysfs", Path::new("/sys"), "")?;
    attach("tmpfs", Path::new("/run"), "mode=755,size=4g")?;
    attach("tmpfs", Path::new("/var/lib"), "mode=755,size=4g")?;
    attach("tmpfs", Path::new("/dev/shm"), "mode=1777,size=1g")?;
    own_null().map_err(|errno| ("a null device of its own on /dev/null".to_owned(), errno))?;
    if kind == Kind::Systemd {
        return keep(&kept);
    }
    let unified = hierarchies.iter().any(|hierarchy| hierarchy.point == Path::new("/sys/fs/cgroup"));
    if !unified {
        attach("tmpfs", Path::new("/sys/fs/cgroup"), "mode=755")?;
    }
    for hierarchy in hierarchies {
        if kind == Kind::Version1 && hierarchy.kind == "cgroup2" {
            continue;
        }
        let _ = fs::create_dir(&hierarchy.point);
        attach(&hierarchy.kind, &hierarchy.point, &hierarchy.options)?;
    }
    Ok(())
}

/// What is left where it is beside systemd: its sockets, and its tree as it mounted it (to mount it anew is to change how
/// it is mounted everywhere).
fn of_systemd() -> Vec<(&'static Path, File)> {
    let paths = ["/run/systemd", "/run/dbus", "/sys/fs/cgroup"].map(Path::new);
    paths.into_iter().filter_map(|path| Some((path, File::open(path).ok()?))).collect()
}

fn keep(kept: &[(&Path, File)]) -> Result<(), (String, Errno)> {
    for (path, file) in kept {
        let _ = fs::create_dir(path);
        let source = format!("/proc/self/fd/{}", file.as_raw_fd());
        mount(Some(source.as_str()), *path, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)
            .map_err(|errno| (path.display().to_string(), errno))?;
    }
    Ok(())
}

/// An older runtime gives the null device that it got as a stream to the container's user: it must not be the machine's.
fn own_null() -> Result<(), Errno> {
    let node = "/dev/shm/null";
    mknod(node, SFlag::S_IFCHR, Mode::empty(), makedev(1, 3))?;
    fs::set_permissions(node, fs::Permissions::from_mode(0o666)).map_err(|_| Errno::last())?;
    mount(Some(node), "/dev/null", None::<&str>, MsFlags::MS_BIND, None::<&str>)
}
