//! Against a directory that is laid out as resctrl is: no kernel at hand has one.

#![expect(clippy::disallowed_methods, reason = "tests lay out files on the host")]

use std::fs;
use std::path::Path;

use coracle_isolator::{Cgroup, CgroupVersion, Kind};
use coracle_sys::process;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;

/// A machine with resctrl, and a container `web`.
struct Machine {
    dir: TempDir,
    rdt: Rdt,
}

impl Machine {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (resctrl, records) = (dir.path().join("resctrl"), dir.path().join("run"));
        fs::create_dir_all(resctrl.join("info/L3")).unwrap();
        fs::create_dir_all(&records).unwrap();
        let magic = file::file_system(file::open_dir(&resctrl).unwrap().as_fd()).unwrap();
        let machine = Self { rdt: Rdt { states: PathBuf::new(), resctrl, records, magic }, dir };
        machine.lay_out("");
        machine
    }

    /// What the kernel puts into a group, which a plain directory gets no other way.
    fn lay_out(&self, group: &str) {
        let group = self.path(group);
        fs::create_dir_all(group.join("mon_groups")).unwrap();
        fs::write(group.join("tasks"), "").unwrap();
        fs::write(group.join("schemata"), "    L3:0=ff\n").unwrap();
    }

    /// Empties a group as the kernel does when it goes.
    fn empty(&self, group: &str) {
        for file in ["tasks", "schemata"] {
            let _ = fs::remove_file(self.path(group).join(file));
        }
        let _ = fs::remove_dir(self.path(group).join("mon_groups"));
    }

    /// The same machine, as a runtime with another directory of states sees it.
    fn elsewhere(&self) -> Rdt {
        let (resctrl, records) = (self.rdt.resctrl.clone(), self.rdt.records.clone());
        Rdt { states: "/run/other".into(), resctrl, records, magic: self.rdt.magic }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.rdt.resctrl.join(name)
    }

    fn spec(rdt: Value) -> Spec {
        serde_json::from_value(json!({"ociVersion": "1.3.0", "linux": {"intelRdt": rdt}})).unwrap()
    }

    fn prepare(&self, rdt: Value) -> Result<Adjustment> {
        let (id, kind, bundle) = ("web", Kind::Oci, Path::new("/"));
        self.rdt.prepare(&Config { id, kind, bundle, spec: &Self::spec(rdt), cgroup: CgroupVersion::V2 })
    }

    fn with_handles<T>(rdt: Value, call: impl FnOnce(&Handles<'_>) -> T) -> T {
        let pidfd = process::pidfd(std::process::id() as i32).unwrap();
        let (cgroup, spec) = (Cgroup::new(CgroupVersion::V2, Vec::new()), Self::spec(rdt));
        call(&Handles { id: "web", pidfd: Some(pidfd.as_fd()), cgroup: &cgroup, spec: &spec })
    }

    fn isolate(&self, rdt: Value) -> Result<()> {
        Self::with_handles(rdt, |handles| self.rdt.isolate(handles))
    }

    /// Updates the container of `rdt`.
    fn update(&self, rdt: Value, new: Value) -> Result<()> {
        let new: LinuxIntelRdt = serde_json::from_value(new).unwrap();
        Self::with_handles(rdt, |handles| self.rdt.update_intel_rdt(handles, &new))
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    fn record(&self) -> Option<String> {
        fs::read_to_string(self.dir.path().join("run/coracle-rdt-web")).ok()
    }
}

fn own_pid() -> String {
    std::process::id().to_string()
}

#[test]
fn a_container_without_a_named_class_gets_one_that_goes_with_it() {
    let machine = Machine::new();
    let rdt = json!({"l3CacheSchema": "L3:0=f"});
    // A plain directory has no schemata file, so the launch ends here: with a record of what was made.
    let error = machine.isolate(rdt.clone()).unwrap_err().to_string();
    assert!(error.starts_with("/linux/intelRdt/schemata: openat2("), "{error}");
    assert!(machine.path("web").is_dir());
    assert_eq!(machine.record().as_deref(), Some("class web\n"));
    // The next attempt finds what the first one left.
    machine.lay_out("web");
    machine.isolate(rdt).unwrap();
    assert!(machine.read("web/schemata").starts_with("L3:0=f\n"));
    assert_eq!(machine.read("web/tasks"), own_pid());
    machine.empty("web");
    machine.rdt.cleanup("web").unwrap();
    assert!(!machine.path("web").exists());
    assert_eq!(machine.record(), None);
    machine.rdt.cleanup("web").unwrap();
}

#[test]
fn a_class_that_the_container_made_takes_new_schemata_while_it_runs() {
    let machine = Machine::new();
    let rdt = json!({"l3CacheSchema": "L3:0=f"});
    machine.isolate(rdt.clone()).unwrap_err();
    machine.lay_out("web");
    machine.isolate(rdt.clone()).unwrap();
    machine.update(rdt.clone(), json!({"l3CacheSchema": "L3:0=3", "memBwSchema": "MB:0=50"})).unwrap();
    assert!(machine.read("web/schemata").starts_with("L3:0=3\nMB:0=50\n"));
    let error = machine.update(rdt, json!({"l3CacheSchema": "L3"})).unwrap_err().to_string();
    assert!(error.starts_with("/linux/intelRdt/l3CacheSchema: \"L3\" is no line"), "{error}");
    assert!(machine.read("web/schemata").starts_with("L3:0=3\n"));
}

#[test]
fn a_class_that_others_made_does_not_change_with_a_container() {
    let machine = Machine::new();
    machine.lay_out("shared");
    for (rdt, words) in [
        (json!({"closID": "shared"}), "\"shared\" is not the container's alone; change the class itself"),
        (json!({"closID": "/"}), "\"/\" is not the container's alone"),
        (Value::Null, "the container has no class of service; create it with one"),
    ] {
        let error = machine.update(rdt, json!({"l3CacheSchema": "L3:0=3"})).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
    assert_eq!(machine.read("shared/schemata"), "    L3:0=ff\n");
}

#[test]
fn a_class_that_stands_under_the_containers_name_is_nobodys_to_take() {
    let machine = Machine::new();
    machine.lay_out("web");
    machine.rdt.cleanup("web").unwrap();
    assert!(machine.path("web").is_dir());
    let error = machine.isolate(json!({"l3CacheSchema": "L3:0=f"})).unwrap_err().to_string();
    let wanted = "/linux/intelRdt: class of service \"web\" stands already, and not by this container; \
                  name it with closID to use it";
    assert_eq!(error, wanted);
}

#[test]
fn a_class_is_not_taken_by_a_container_of_its_name_in_another_directory_of_states() {
    let machine = Machine::new();
    let rdt = json!({"l3CacheSchema": "L3:0=f"});
    machine.isolate(rdt.clone()).unwrap_err();
    let other = machine.elsewhere();
    other.cleanup("web").unwrap();
    assert!(machine.path("web").is_dir());
    let refused = Machine::with_handles(rdt, |handles| other.isolate(handles)).unwrap_err().to_string();
    assert!(refused.contains("stands already, and not by this container"), "{refused}");
    other.cleanup("web").unwrap();
    assert!(machine.path("web").is_dir());
    assert_eq!(machine.record().as_deref(), Some("class web\n"));
}

#[test]
fn a_monitoring_group_is_one_containers_alone() {
    let machine = Machine::new();
    fs::create_dir_all(machine.path("mon_groups/web")).unwrap();
    let error = machine.isolate(json!({"closID": "/", "enableMonitoring": true})).unwrap_err().to_string();
    let wanted = "/linux/intelRdt/enableMonitoring: monitoring group \"web\" stands already, and not by this \
                  container; give the container another ID";
    assert_eq!(error, wanted);
    machine.rdt.cleanup("web").unwrap();
    assert!(machine.path("mon_groups/web").is_dir());
}

#[test]
fn a_named_class_that_stands_must_be_as_wanted_and_stays() {
    let machine = Machine::new();
    machine.lay_out("gold");
    machine.isolate(json!({"closID": "gold"})).unwrap();
    machine.isolate(json!({"closID": "gold", "l3CacheSchema": "L3:0=0ff"})).unwrap();
    assert_eq!(machine.read("gold/schemata"), "    L3:0=ff\n");
    assert_eq!(machine.read("gold/tasks"), own_pid());
    let error =
        machine.isolate(json!({"closID": "gold", "l3CacheSchema": "L3:0=f"})).unwrap_err().to_string();
    assert_eq!(
        error,
        "/linux/intelRdt: class of service \"gold\" stands, and its schemata is not \"L3:0=f\""
    );
    machine.rdt.cleanup("web").unwrap();
    assert!(machine.path("gold").is_dir());
}

#[test]
fn a_named_class_that_the_container_made_goes_unless_others_use_it() {
    let many = "1234567\n".repeat(1 << 18);
    for (tasks, stays) in [("", false), ("1\n", true), (many.as_str(), true)] {
        let machine = Machine::new();
        let rdt = json!({"closID": "gold", "schemata": ["L3:0=f"]});
        machine.isolate(rdt).unwrap_err();
        assert_eq!(machine.record().as_deref(), Some("class gold\n"));
        if stays {
            fs::write(machine.path("gold/tasks"), tasks).unwrap();
        }
        machine.rdt.cleanup("web").unwrap();
        assert_eq!(machine.path("gold").exists(), stays);
        assert_eq!(machine.record(), None);
    }
}

#[test]
fn a_named_class_that_is_missing_and_has_no_schema_is_told() {
    let machine = Machine::new();
    let error = machine.isolate(json!({"closID": "gold"})).unwrap_err().to_string();
    assert!(error.starts_with("/linux/intelRdt/closID: openat2("), "{error}");
    assert!(error.ends_with("no such file or directory; make it, or give it a schema"), "{error}");
    assert_eq!(machine.record(), None);
}

#[test]
fn a_monitored_container_has_a_group_of_its_own_that_goes_with_it() {
    let machine = Machine::new();
    let rdt = json!({"closID": "/", "enableMonitoring": true});
    // A plain directory gets no tasks file: the launch that was cut off there goes on.
    machine.isolate(rdt.clone()).unwrap_err();
    fs::write(machine.path("mon_groups/web/tasks"), "").unwrap();
    machine.isolate(rdt).unwrap();
    assert_eq!(machine.record().as_deref(), Some("monitor /\n"));
    assert_eq!(machine.read("tasks"), own_pid());
    assert_eq!(machine.read("mon_groups/web/tasks"), own_pid());
    fs::remove_file(machine.path("mon_groups/web/tasks")).unwrap();
    machine.rdt.cleanup("web").unwrap();
    assert!(!machine.path("mon_groups/web").exists());
    assert!(machine.path("").is_dir());
}

#[test]
fn a_process_that_is_executed_joins_class_and_monitoring_group() {
    let machine = Machine::new();
    machine.lay_out("web");
    fs::create_dir(machine.path("web/mon_groups/web")).unwrap();
    fs::write(machine.path("web/mon_groups/web/tasks"), "").unwrap();
    Machine::with_handles(json!({"l3CacheSchema": "L3:0=f"}), |handles| machine.rdt.join(handles)).unwrap();
    assert_eq!(machine.read("web/tasks"), own_pid());
    assert_eq!(machine.read("web/mon_groups/web/tasks"), own_pid());
}

#[test]
fn what_the_machine_lacks_is_told_before_anything_is_made() {
    let machine = Machine::new();
    machine.prepare(json!({"l3CacheSchema": "L3:0=f"})).unwrap();
    let error = machine.prepare(json!({"memBwSchema": "MB:0=50"})).unwrap_err().to_string();
    assert_eq!(error, "/linux/intelRdt/memBwSchema: this processor or kernel does not share out MB");
    let none =
        Machine { rdt: Rdt { magic: file::FsType(1), ..Rdt::default() }, dir: tempfile::tempdir().unwrap() };
    let error = none.prepare(json!({})).unwrap_err().to_string();
    let wanted = "/linux/intelRdt: intelRdt is specified in config, but Intel RDT is not supported or enabled; \
                  is resctrl mounted? mount -t resctrl resctrl /sys/fs/resctrl";
    assert_eq!(error, wanted);
}

#[test]
fn a_container_that_asks_for_nothing_gets_nothing() {
    let machine = Machine::new();
    let spec: Spec = serde_json::from_value(json!({"ociVersion": "1.3.0", "linux": {}})).unwrap();
    let cgroup = Cgroup::new(CgroupVersion::V2, Vec::new());
    machine.rdt.isolate(&Handles { id: "web", pidfd: None, cgroup: &cgroup, spec: &spec }).unwrap();
    assert_eq!(machine.record(), None);
}
