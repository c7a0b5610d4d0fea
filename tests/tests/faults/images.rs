//! The store of images: `coracle-image` killed or refused a call at any step, a disk that is full at any step, and one that loses what was
//! not written out when the power is cut.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use coracle_fixtures::small;
use coracle_tests::image::Store;
use coracle_tests::{Host, Outcome, privileged};

use crate::trace::{Fault, Step, can_sweep, patience, taken, told};

/// What a full disk refuses, from then on.
const WRITES: [&str; 15] = [
    "copy_file_range",
    "fallocate",
    "fdatasync",
    "fsetxattr",
    "fsync",
    "ftruncate",
    "linkat",
    "lsetxattr",
    "mkdirat",
    "mknodat",
    "pwrite64",
    "rename",
    "renameat2",
    "symlinkat",
    "write",
];

/// A store that is made anew for each turn.
struct Turns<'h> {
    host: &'h Host,
    store: Store<'h>,
    layout: PathBuf,
    name: String,
    /// The store before the verb.
    pristine: PathBuf,
    verb: String,
    /// The disk that the store is on.
    disk: Option<Disk<'h>>,
}

/// A file system of its own.
pub(crate) struct Disk<'h> {
    host: &'h Host,
    file: PathBuf,
    point: PathBuf,
}

/// EXT4_IOC_SHUTDOWN with EXT4_GOING_FLAGS_NOLOGFLUSH (fs/ext4/ext4.h): from now on nothing is written.
const CUT: &str =
    "import fcntl, os, struct, sys; fcntl.ioctl(os.open(sys.argv[1], 0), 0x8004587D, struct.pack('I', 2))";

impl<'h> Disk<'h> {
    fn new(host: &'h Host) -> Self {
        Self::at(host, host.directory())
    }

    /// Mounted on `point`.
    pub(crate) fn at(host: &'h Host, point: PathBuf) -> Self {
        let disk = Self { host, file: host.directory().join("disk"), point };
        let file = disk.file.display();
        host.shell(&format!("truncate -s 128M {file} && mkfs.ext4 -q {file}")).succeeds();
        disk.mount();
        disk
    }

    fn mount(&self) {
        self.host
            .shell(&format!("mount -o loop {} {}", self.file.display(), self.point.display()))
            .succeeds();
    }

    pub(crate) fn unmount(&self) {
        self.host.shell(&format!("umount {}", self.point.display())).succeeds();
    }

    /// Cuts the power and starts anew: what was not written out is lost, and the journal is replayed.
    pub(crate) fn cut(&self) {
        self.host.shell(&format!("python3 -c \"{CUT}\" {}", self.point.display())).succeeds();
        self.unmount();
        self.mount();
    }
}

/// Whether the power of a disk can be cut here.
pub(crate) fn can_cut(host: &Host) -> bool {
    can_sweep(host)
        && ["python3", "mkfs.ext4", "losetup"].into_iter().all(|program| host.needs_program(program))
}

impl<'h> Turns<'h> {
    /// For `import` of the small image, or `unpack` of what was imported; on a disk of its own, or where the tests are.
    fn new(host: &'h Host, verb: &str, disk: Option<Disk<'h>>) -> Self {
        let directory = disk.as_ref().map_or_else(|| host.directory(), |disk| disk.point.clone());
        let (store, layout, image) =
            (Store::at(host, &directory.join("store")), host.directory(), small::image());
        image.write_layout(&layout);
        let pristine = host.directory().join("pristine");
        if verb == "unpack" {
            store.import_path(&layout, &image.name).succeeds();
        } else {
            store.call(&["ls"]).succeeds();
            fs::create_dir_all(store.directory()).unwrap();
        }
        let verb = match verb {
            "import" => format!("import {} --name {}", layout.display(), image.name),
            verb => format!("{verb} {}", image.name),
        };
        let turns = Self { host, store, layout, name: image.name, pristine, verb, disk };
        turns.copy(turns.store.directory(), &turns.pristine);
        turns
    }

    fn copy(&self, from: &Path, to: &Path) {
        self.host
            .shell(&format!("rm -rf {to}; cp -a {from} {to}", from = from.display(), to = to.display()))
            .succeeds();
    }

    fn reset(&self) {
        self.copy(&self.pristine, self.store.directory());
        if let Some(disk) = &self.disk {
            self.host.shell(&format!("sync -f {}", disk.point.display())).succeeds();
        }
    }

    /// The verb, under strace with these options.
    fn traced(&self, options: &str) -> Outcome {
        let (program, store) = (self.host.image_program(), self.store.directory().display());
        let command = format!("strace -f -qq {options} {} --store {store} {}", program.display(), self.verb);
        self.host.shell(&format!("exec timeout -s KILL {} {command}", 4 * patience()))
    }

    /// The steps of the verb, and the store after it.
    fn steps(&self, fault: Fault) -> (Vec<Step>, BTreeMap<String, String>) {
        let trace = self.host.directory().join("trace");
        self.traced(&format!("-o {}", trace.display())).succeeds();
        (fault.steps(&trace), listed(self.store.directory()))
    }

    /// What is wrong with the store once the verb has been done again.
    fn wrong_after_another(&self, whole: &BTreeMap<String, String>) -> Option<String> {
        let words: Vec<&str> = self.verb.split(' ').collect();
        for args in [&words[..], &["verify"], &["gc"]] {
            let outcome = self.store.call(args);
            if outcome.code != 0 {
                return Some(format!("{args:?}: {}", outcome.stderr));
            }
        }
        difference(whole, &listed(self.store.directory()))
    }
}

/// All that a store holds, but for times, and for the locks and the notes of when an image was used, which say nothing.
fn listed(store: &Path) -> BTreeMap<String, String> {
    fn walk(directory: &Path, below: &str, found: &mut BTreeMap<String, String>) {
        for entry in fs::read_dir(directory).unwrap().flatten() {
            let (path, name) = (entry.path(), format!("{below}/{}", entry.file_name().to_string_lossy()));
            let meta = fs::symlink_metadata(&path).unwrap();
            let kind = meta.file_type();
            let size = if kind.is_file() { meta.size() } else { 0 };
            let is_device = kind.is_char_device() || kind.is_block_device();
            let what = format!(
                "{:o} {}:{} {size} {}",
                meta.mode(),
                meta.uid(),
                meta.gid(),
                if is_device { meta.rdev() } else { 0 }
            );
            found.insert(name.clone(), what);
            if kind.is_dir() {
                walk(&path, &name, found);
            }
        }
    }
    let mut found = BTreeMap::new();
    walk(store, "", &mut found);
    found
}

fn difference(expected: &BTreeMap<String, String>, found: &BTreeMap<String, String>) -> Option<String> {
    let left = found
        .iter()
        .filter(|(path, what)| expected.get(*path) != Some(what))
        .map(|(path, what)| format!("  left: {path} {what}\n"));
    let gone = expected
        .iter()
        .filter(|(path, _)| !found.contains_key(*path))
        .map(|(path, what)| format!("  gone: {path} {what}\n"));
    let told: String = left.chain(gone).take(20).collect();
    (!told.is_empty()).then_some(told)
}

/// Lets it happen to `verb` at its steps, and cuts the power of the disk then, if the store is on one.
fn swept(host: &Host, verb: &str, fault: Fault, every: usize, disk: Option<Disk<'_>>) {
    if !can_sweep(host) {
        return;
    }
    let turns = Turns::new(host, verb, disk);
    let (steps, _) = turns.steps(fault);
    turns.reset();
    // As it is after one to which nothing happens.
    turns.wrong_after_another(&BTreeMap::new());
    let whole = listed(turns.store.directory());
    let (mut faults, mut number) = (Vec::new(), 0);
    for step in taken(&steps, every) {
        turns.reset();
        let run = turns.traced(&fault.at(step, number));
        turns.disk.iter().for_each(Disk::cut);
        let left = turns.wrong_after_another(&whole);
        faults.extend(fault.judged(step, number, fault.wrong(step, &run), left));
        number += 1;
    }
    turns.disk.iter().for_each(Disk::unmount);
    let power = if turns.disk.is_some() { " and the power cut" } else { "" };
    told(host, &format!("image {verb}, {fault:?}{power}"), (number, steps.len()), &faults);
}

fn full(host: &Host, verb: &str, every: usize) {
    if !can_sweep(host) {
        return;
    }
    let turns = Turns::new(host, verb, None);
    // The first call on a store may make its lock and its directories.
    turns.store.call(&["df"]).succeeds();
    turns.copy(turns.store.directory(), &turns.pristine);
    let (steps, whole) = turns.steps(Fault::Refused);
    let before = listed(&turns.pristine);
    let (mut wrong, mut number) = (String::new(), 0);
    let writes: Vec<Step> = steps.into_iter().filter(|(call, _)| WRITES.contains(&call.as_str())).collect();
    for (call, count) in taken(&writes, every) {
        turns.reset();
        number += 1;
        // From there on nothing more fits, whoever asks.
        let run = turns.traced(&format!("-o /dev/null -e inject={call}:error=ENOSPC:when={count}+"));
        let now = listed(turns.store.directory());
        let what = if run.code == 0 {
            difference(&whole, &now)
        } else if run.stderr.trim_end().lines().count() != 1 || !run.stderr.contains("no space left") {
            Some(format!("  it said {:?}\n", run.stderr))
        } else {
            difference(&before, &now)
        };
        if let Some(what) = what {
            wrong += &format!("{verb}, full at {call} #{count}, ended with {}:\n{what}", run.code);
        }
    }
    host.counted(&format!("image {verb}: a disk that is full at {number} steps gets its space back"));
    assert!(wrong.is_empty(), "{wrong}");
    assert!(!turns.name.is_empty() && turns.layout.is_dir());
}

#[test]
fn an_import_killed_at_any_step_is_made_whole_by_the_next() {
    privileged(|host| swept(host, "import", Fault::Killed, 30, None));
}

#[test]
fn an_unpacking_killed_at_any_step_is_made_whole_by_the_next() {
    privileged(|host| swept(host, "unpack", Fault::Killed, 30, None));
}

#[test]
fn an_import_refused_a_call_is_made_whole_by_the_next() {
    privileged(|host| swept(host, "import", Fault::Refused, 30, None));
}

#[test]
fn an_unpacking_refused_a_call_is_made_whole_by_the_next() {
    privileged(|host| swept(host, "unpack", Fault::Refused, 30, None));
}

#[test]
#[ignore = "takes minutes: make test-faults"]
fn an_import_refused_any_call_is_made_whole_by_the_next() {
    privileged(|host| swept(host, "import", Fault::Refused, 1, None));
}

#[test]
#[ignore = "takes minutes: make test-faults"]
fn an_unpacking_refused_any_call_is_made_whole_by_the_next() {
    privileged(|host| swept(host, "unpack", Fault::Refused, 1, None));
}

#[test]
fn a_disk_that_is_full_while_unpacking_gets_its_space_back() {
    privileged(|host| full(host, "unpack", 20));
}

#[test]
#[ignore = "takes minutes: make test-faults"]
fn an_import_killed_at_every_step_is_made_whole_by_the_next() {
    privileged(|host| swept(host, "import", Fault::Killed, 1, None));
}

#[test]
#[ignore = "takes minutes: make test-faults"]
fn an_unpacking_killed_at_every_step_is_made_whole_by_the_next() {
    privileged(|host| swept(host, "unpack", Fault::Killed, 1, None));
}

#[test]
#[ignore = "takes minutes: make test-faults"]
fn a_disk_that_is_full_at_every_step_of_unpacking_gets_its_space_back() {
    privileged(|host| full(host, "unpack", 1));
}

fn cut(host: &Host, verb: &str, every: usize) {
    if can_cut(host) {
        swept(host, verb, Fault::Killed, every, Some(Disk::new(host)));
    }
}

#[test]
fn an_import_cut_off_with_the_power_is_made_whole_by_the_next() {
    privileged(|host| cut(host, "import", 40));
}

#[test]
fn an_unpacking_cut_off_with_the_power_is_made_whole_by_the_next() {
    privileged(|host| cut(host, "unpack", 40));
}

#[test]
#[ignore = "takes minutes: make test-faults"]
fn an_import_cut_off_with_the_power_at_every_step_is_made_whole_by_the_next() {
    privileged(|host| cut(host, "import", 1));
}

#[test]
#[ignore = "takes minutes: make test-faults"]
fn an_unpacking_cut_off_with_the_power_at_every_step_is_made_whole_by_the_next() {
    privileged(|host| cut(host, "unpack", 1));
}

#[test]
fn what_was_said_to_be_imported_and_unpacked_is_there_after_the_power_was_cut() {
    privileged(|host| {
        if !can_cut(host) {
            return;
        }
        for verb in ["import", "unpack"] {
            let turns = Turns::new(host, verb, Some(Disk::new(host)));
            turns.steps(Fault::Killed);
            turns.store.call(&["gc"]).succeeds();
            let whole = listed(turns.store.directory());
            turns.disk.iter().for_each(Disk::cut);
            turns.store.call(&["verify"]).succeeds();
            // What was removed last may be there again.
            turns.store.call(&["gc"]).succeeds();
            assert_eq!(difference(&whole, &listed(turns.store.directory())), None, "{verb}");
            turns.disk.iter().for_each(Disk::unmount);
        }
    });
}
