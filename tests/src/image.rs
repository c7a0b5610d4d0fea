//! The store of images under test, through `coracle-image`.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use coracle_fixtures::image::{Image, write_files};

use crate::command::{self, Outcome};
use crate::host::Host;

/// A store of a test's own.
pub struct Store<'h> {
    host: &'h Host,
    directory: PathBuf,
    snapshotter: &'static str,
    /// Its place where that has to be on a disk.
    _disk: Option<tempfile::TempDir>,
}

/// The version of the kernel.
pub fn kernel() -> (u32, u32) {
    let release = release();
    let mut numbers = release.split(['.', '-']).map_while(|number| number.parse().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

fn release() -> String {
    nix::sys::utsname::uname().map(|name| name.release().to_string_lossy().into_owned()).unwrap_or_default()
}

/// Whether overlayfs takes layers one by one here, as images need it; records a skipped test where not.
pub fn stacks_layers(host: &Host) -> bool {
    let is_new = kernel() >= (6, 5);
    if !is_new {
        host.skip("images need Linux 6.5");
    }
    is_new
}

/// What layers can be unpacked into here; records a skipped test where that is no EROFS image.
pub fn snapshotters(host: &Host) -> Vec<&'static str> {
    match why_no_erofs() {
        None => vec!["overlay", "erofs"],
        Some(reason) => {
            host.skip(&format!("unpacked into directories only: {reason}"));
            vec!["overlay"]
        }
    }
}

/// Why EROFS images in the directory for temporary files can't be layers of a snapshot.
fn why_no_erofs() -> Option<String> {
    let types = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let on = rustix::fs::statfs(std::env::temp_dir()).map(|stat| stat.f_type).unwrap_or_default();
    // ext4, XFS and btrfs have pages of files to read, which a tmpfs has not.
    let can_back = [0xef53, 0x5846_5342, 0x9123_683e].contains(&on);
    if kernel() < (6, 15) {
        return Some(format!("Linux {} takes no detached mount as a layer", release()));
    }
    if !types.contains("\terofs\n") {
        return Some("the kernel has no EROFS".to_owned());
    }
    (!can_back).then(|| format!("no EROFS image can be mounted from a file system of type {on:#x}"))
}

impl<'h> Store<'h> {
    /// A new store in a directory of the test.
    pub fn new(host: &'h Host) -> Self {
        Self::of(host, "overlay")
    }

    /// One at a place of the test's choice.
    pub fn at(host: &'h Host, directory: &Path) -> Self {
        Self { directory: directory.to_owned(), ..Self::new(host) }
    }

    /// One whose layers are unpacked into this.
    pub fn of(host: &'h Host, snapshotter: &'static str) -> Self {
        // EROFS images are mounted from files of disks only, and the tests' own directory is a tmpfs.
        let disk = (snapshotter == "erofs").then(|| tempfile::tempdir().expect("make a directory on a disk"));
        let directory = disk.as_ref().map_or_else(|| host.directory(), |disk| disk.path().to_owned());
        Self { host, directory: directory.join("store"), snapshotter, _disk: disk }
    }

    /// The store's directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// A verb of `coracle-image` with its arguments.
    pub fn call(&self, args: &[&str]) -> Outcome {
        self.call_with(&[], args)
    }

    /// The same with these variables in its environment.
    pub fn call_with(&self, variables: &[(&str, &str)], args: &[&str]) -> Outcome {
        let mut command = Command::new(self.host.image_program());
        command.arg("--store").arg(&self.directory).args(args).envs(variables.iter().copied());
        command.env("CORACLE_SNAPSHOTTER", self.snapshotter);
        command.stdin(Stdio::null());
        command::run(&mut command, &self.host.directory())
    }

    /// Imports an image's OCI layout under its name.
    ///
    /// # Panics
    /// When that fails.
    #[track_caller]
    pub fn import(&self, image: &Image) {
        let layout = self.host.directory();
        image.write_layout(&layout);
        self.import_path(&layout, &image.name).succeeds();
    }

    /// Imports the layout that these files make.
    pub fn import_files(&self, files: &[(String, Vec<u8>)], name: &str) -> Outcome {
        let layout = self.host.directory();
        write_files(&layout, files);
        self.import_path(&layout, name)
    }

    /// Imports what lies at `path`.
    pub fn import_path(&self, path: &Path, name: &str) -> Outcome {
        self.call(&["import", path.to_str().expect("the tests' paths are UTF-8"), "--name", name])
    }
}
