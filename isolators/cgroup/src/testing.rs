//! Control groups for tests.

use std::os::fd::{AsFd, OwnedFd};

use coracle_isolator::{Cgroup, CgroupVersion, Error, Handles, Isolator, Usage};
use coracle_sys::file;
use oci_spec::runtime::{LinuxResources, Spec};
use serde_json::Value;

use crate::limit::{Controller, Limits};

fn parsed(resources: Value) -> LinuxResources {
    serde_json::from_value(resources).unwrap()
}

/// What `controller` would write for `resources`, as `file=value`.
pub(crate) fn written(controller: &impl Controller, version: CgroupVersion, resources: Value) -> Vec<String> {
    let resources = parsed(resources);
    controller.check(version, &resources).unwrap();
    let settings = controller.settings(&Cgroup::new(version, Vec::new()), &resources).unwrap();
    settings.iter().map(|setting| format!("{}={}", setting.file, setting.value)).collect()
}

/// Why `controller` refuses `resources`, before or when it makes its list.
pub(crate) fn refusal(controller: &impl Controller, version: CgroupVersion, resources: Value) -> String {
    let resources = parsed(resources);
    let group = Cgroup::new(version, Vec::new());
    let checked = controller.check(version, &resources).and_then(|_| controller.settings(&group, &resources));
    checked.unwrap_err().to_string()
}

/// A group of the test's own, removed when it goes.
pub(crate) struct Group {
    pub(crate) group: Cgroup,
    parents: Vec<OwnedFd>,
    places: Vec<String>,
    name: String,
}

impl Group {
    /// A group in the version 1 hierarchies of `controllers`. None, and a line that says why, where the machine
    /// has none or the test may not make one.
    pub(crate) fn version_1(name: &str, controllers: &[&str]) -> Option<Self> {
        let places = controllers.iter().map(|c| (vec![(*c).to_owned()], format!("/sys/fs/cgroup/{c}")));
        Self::make(name, CgroupVersion::V1, places.collect())
    }

    /// A group in the unified tree, be it alone or beside version 1.
    pub(crate) fn version_2(name: &str) -> Option<Self> {
        let alone = file::open_dir("/sys/fs/cgroup")
            .and_then(|dir| file::stat_at(dir.as_fd(), "cgroup.controllers"))
            .is_ok();
        let place = if alone { "/sys/fs/cgroup" } else { "/sys/fs/cgroup/unified" };
        Self::make(name, CgroupVersion::V2, vec![(vec!["unified".to_owned()], place.to_owned())])
    }

    fn make(name: &str, version: CgroupVersion, places: Vec<(Vec<String>, String)>) -> Option<Self> {
        let name = format!("coracle-test-{name}-{}", std::process::id());
        let (mut parents, mut dirs) = (Vec::new(), Vec::new());
        let paths = places.iter().map(|place| place.1.clone()).collect();
        for (controllers, place) in places {
            let made = file::open_dir(&place).and_then(|parent| {
                file::mkdir(parent.as_fd(), &name, 0o755)?;
                Ok((file::open_dir(format!("{place}/{name}"))?, parent))
            });
            match made {
                Ok((dir, parent)) => {
                    parents.push(parent);
                    dirs.push((controllers, dir));
                }
                Err(e) => {
                    println!("not run: no cgroup can be made in {place}: {e}");
                    remove(&parents, &name);
                    return None;
                }
            }
        }
        Some(Self { group: Cgroup::new(version, dirs), parents, places: paths, name })
    }

    /// What an isolator is given to act on this group, with `resources` as its limits.
    pub(crate) fn isolate(&self, isolator: &dyn Isolator, resources: Value) -> Result<(), Error> {
        let mut spec = Spec::default();
        spec.linux_mut().get_or_insert_default().set_resources(Some(parsed(resources)));
        isolator.isolate(&Handles { id: "test", pidfd: None, cgroup: &self.group, spec: &spec })
    }

    /// As [`isolate`](Self::isolate), for a container that runs.
    pub(crate) fn update(&self, isolator: &dyn Isolator, resources: &LinuxResources) {
        let container = Handles { id: "test", pidfd: None, cgroup: &self.group, spec: &Spec::default() };
        isolator.update(&container, resources).unwrap();
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// What all of `isolators` tell of the group.
    pub(crate) fn usage(&self, isolators: &[Box<dyn Isolator + Send>]) -> Usage {
        let container = Handles { id: "test", pidfd: None, cgroup: &self.group, spec: &Spec::default() };
        let mut usage = Usage::default();
        for isolator in isolators {
            usage.merge(isolator.usage(&container).unwrap());
        }
        usage
    }

    /// Runs a shell's command in the group.
    #[expect(clippy::disallowed_methods, reason = "a test's own process")]
    pub(crate) fn run(&self, command: &str) -> std::process::ExitStatus {
        let enter = self.places.iter().map(|place| format!("echo $$ > {place}/{}/cgroup.procs", self.name));
        let script = enter.chain([command.to_owned()]).collect::<Vec<_>>().join(" && ");
        let output = std::process::Command::new("/bin/sh").args(["-c", &script]).output().unwrap();
        output.status
    }

    pub(crate) fn try_apply(&self, controller: impl Controller, resources: Value) -> Result<(), String> {
        self.isolate(&Limits(controller), resources).map_err(|e| e.to_string())
    }

    pub(crate) fn apply(&self, controller: impl Controller, resources: Value) {
        self.try_apply(controller, resources).unwrap();
    }

    pub(crate) fn read(&self, controller: &str, file: &str) -> String {
        self.group.read(controller, file).unwrap().trim().to_owned()
    }
}

fn remove(parents: &[OwnedFd], name: &str) {
    for parent in parents {
        if let Err(e) = file::rmdir(parent.as_fd(), name) {
            println!("left behind: {e}");
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        remove(&self.parents, &self.name);
    }
}
