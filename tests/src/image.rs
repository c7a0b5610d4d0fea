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
}

impl<'h> Store<'h> {
    /// A new store in a directory of the test.
    pub fn new(host: &'h Host) -> Self {
        Self { host, directory: host.directory().join("store") }
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
