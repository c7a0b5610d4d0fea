//! The leak oracle: the whole of a test host as a set of lines, and the difference of two such sets.

use std::collections::BTreeSet;
use std::fs::{self, DirEntry, Metadata};
use std::hash::{DefaultHasher, Hasher};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::process::parent_id;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use crate::cgroup::is_made_by_systemd;
use crate::command::patience;

/// What the kernel tears down after the last user has gone may take this long, beside others who do the same.
const SETTLING: Duration = Duration::from_secs(10);

/// Directories whose whole content is compared, bytes included: runtime state, image stores, the canary.
const PRIVATE: [&str; 2] = ["/run", "/var/lib"];
/// Directories of the machine itself, compared by their entries' attributes.
const SHARED: [&str; 3] = ["/", "/etc", "/dev"];
/// What changes without any leak: the tests' own files; systemd's, where a host has it; terminals of other people; places everyone writes to.
const IGNORED: [&str; 8] =
    ["/run/test", "/run/systemd", "/run/dbus", "/dev/pts", "/dev/shm", "/dev/ptmx", "/dev/tty", "/tmp"];

/// All that a test host holds at one moment, a line each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    lines: BTreeSet<String>,
}

impl Snapshot {
    /// Takes stock. `binary` is the runtime under test, which nobody may write to either.
    pub fn take(binary: &Path) -> Self {
        let mut lines = BTreeSet::new();
        own_processes().into_iter().for_each(|pid| describe_process(&pid, &mut lines));
        mounts(&mut lines);
        interfaces(&mut lines);
        for directory in cgroup_hierarchies() {
            cgroups(&directory, &mut lines);
        }
        if is_made_by_systemd() {
            // Its services come and go as they like.
            lines.retain(|line| !line.starts_with("cgroup ") || line.contains(".scope"));
        }
        for directory in PRIVATE {
            files(Path::new(directory), &mut lines);
        }
        for directory in SHARED {
            entries(Path::new(directory)).iter().for_each(|entry| describe(entry, &mut lines));
        }
        lines.insert(format!("runtime {}", change_of(binary)));
        Self { lines }
    }

    /// What on a whole machine is nobody's but the runtime's: scopes, states, mounts.
    pub fn of_runtime() -> Self {
        let mut lines = BTreeSet::new();
        for directory in cgroup_hierarchies() {
            cgroups(&directory, &mut lines);
        }
        lines.retain(|line| line.contains(".scope"));
        mounts(&mut lines);
        files(Path::new("/run/coracle"), &mut lines);
        Self { lines }
    }

    /// Waits until the host is again what it was by a new look at it, and says what still differs after ten seconds.
    pub fn difference_to(&self, take: impl Fn() -> Self) -> Option<String> {
        self.difference_within(SETTLING * patience(), take)
    }

    /// The same after `limit`, for who expects that something differs.
    pub fn difference_within(&self, limit: Duration, take: impl Fn() -> Self) -> Option<String> {
        let end = Instant::now() + limit;
        loop {
            let now = take();
            if now == *self {
                return None;
            }
            if Instant::now() > end {
                return Some(self.tell(&now));
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn tell(&self, now: &Self) -> String {
        let left = now.lines.difference(&self.lines).map(|line| format!("  left: {line}\n"));
        let gone = self.lines.difference(&now.lines).map(|line| format!("  gone: {line}\n"));
        left.chain(gone).collect()
    }
}

fn entries(directory: &Path) -> Vec<DirEntry> {
    fs::read_dir(directory).map(|list| list.flatten().collect()).unwrap_or_default()
}

/// The processes of this host: all, or, beside systemd, those below the one that made it.
fn own_processes() -> Vec<String> {
    if is_made_by_systemd() {
        return descendants(parent_id()).iter().map(i32::to_string).collect();
    }
    let names =
        entries(Path::new("/proc")).into_iter().map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| name.bytes().all(|byte| byte.is_ascii_digit())).collect()
}

/// All processes that come from this one.
pub fn descendants(ancestor: u32) -> Vec<i32> {
    let children = |pid: i32| {
        let tasks = entries(Path::new(&format!("/proc/{pid}/task")));
        let lists = tasks
            .into_iter()
            .map(|task| fs::read_to_string(task.path().join("children")).unwrap_or_default());
        lists.collect::<Vec<_>>().join(" ")
    };
    let mut found = Vec::new();
    let mut next = vec![i32::try_from(ancestor).expect("a process ID fits 32 bits")];
    while let Some(pid) = next.pop() {
        let below: Vec<i32> = children(pid).split_whitespace().filter_map(|pid| pid.parse().ok()).collect();
        found.extend(&below);
        next.extend(below);
    }
    found
}

fn describe_process(pid: &str, lines: &mut BTreeSet<String>) {
    let directory = Path::new("/proc").join(pid);
    // One that has ended since it was found is not there.
    let Ok(command) = fs::read_to_string(directory.join("comm")) else { return };
    lines.insert(format!("process {pid} {}", command.trim_end()));
    for namespace in entries(&directory.join("ns")) {
        if let Ok(target) = fs::read_link(namespace.path()) {
            lines.insert(format!("namespace {}", target.display()));
        }
    }
}

/// Where systemd mounts what its own services may know, for as long as they run: some begin minutes after the machine.
const CREDENTIALS: &str = " /run/credentials/";

/// The mount table without the numbers that differ from one mount to the next.
fn mounts(lines: &mut BTreeSet<String>) {
    let table = fs::read_to_string("/proc/self/mountinfo").expect("read /proc/self/mountinfo");
    let mut times = std::collections::BTreeMap::new();
    for line in table.lines().filter(|line| !line.contains(CREDENTIALS)) {
        let fields: Vec<&str> = line.split(' ').skip(2).collect();
        *times.entry(fields.join(" ")).or_insert(0) += 1;
    }
    lines.extend(times.into_iter().map(|(mount, times)| format!("mount {mount} ({times} times)")));
}

fn interfaces(lines: &mut BTreeSet<String>) {
    for entry in entries(Path::new("/sys/class/net")) {
        lines.insert(format!("interface {}", entry.file_name().to_string_lossy()));
    }
}

/// Where the hierarchies of cgroups are mounted.
pub fn cgroup_hierarchies() -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").expect("read /proc/self/mountinfo");
    let is_cgroup = |line: &&str| line.contains(" - cgroup ") || line.contains(" - cgroup2 ");
    let point = |line: &str| PathBuf::from(line.split(' ').nth(4).expect("mountinfo has mount points"));
    let points: BTreeSet<PathBuf> = table.lines().filter(is_cgroup).map(point).collect();
    points.into_iter().collect()
}

fn cgroups(directory: &Path, lines: &mut BTreeSet<String>) {
    lines.insert(format!("cgroup {}", directory.display()));
    for entry in entries(directory) {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            cgroups(&entry.path(), lines);
        }
    }
}

fn files(directory: &Path, lines: &mut BTreeSet<String>) {
    for entry in entries(directory) {
        let path = entry.path();
        if IGNORED.iter().any(|ignored| path == Path::new(ignored)) {
            continue;
        }
        describe(&entry, lines);
        let kind = entry.file_type().expect("a file has a type");
        if kind.is_dir() {
            files(&path, lines);
        } else if kind.is_file() {
            lines.insert(format!("content {} {}", path.display(), content(&path)));
        }
    }
}

fn describe(entry: &DirEntry, lines: &mut BTreeSet<String>) {
    let path = entry.path();
    if IGNORED.iter().any(|ignored| path == Path::new(ignored)) {
        return;
    }
    let Ok(found) = fs::symlink_metadata(&path) else { return };
    let target = fs::read_link(&path).unwrap_or_default();
    lines.insert(format!("file {} {}{}", path.display(), attributes(&found), target.display()));
}

/// Type, mode and owner; the size and the time of change too for what is not a directory of many users.
fn attributes(found: &Metadata) -> String {
    let base = format!("{:o} {}:{}", found.mode(), found.uid(), found.gid());
    let kind = found.file_type();
    if kind.is_dir() || kind.is_char_device() || kind.is_block_device() {
        return format!("{base} {}", found.rdev());
    }
    format!("{base} {} {}.{} ", found.size(), found.mtime(), found.mtime_nsec())
}

/// What a write to a file, or another in its place, can't leave as it was (inode(7)).
fn change_of(path: &Path) -> String {
    let found = fs::metadata(path).expect("look at the runtime");
    format!("{} {} {}.{}", found.ino(), found.size(), found.ctime(), found.ctime_nsec())
}

fn content(path: &Path) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(&fs::read(path).unwrap_or_default());
    hasher.finish()
}
