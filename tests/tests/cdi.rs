//! `gpu/cdi`: devices by name, with made-up ones: null and zero of the host under other names.

#![expect(clippy::unwrap_used, reason = "a helper of the tests fails as a test does")]

use std::fs;
use std::path::PathBuf;

use coracle_tests::pod::Pods;
use coracle_tests::{Host, Spec, privileged};
use serde_json::{Value, json};

/// A host on which vendors' documents lie in two directories, the later of which goes before the other.
struct Vendors {
    host: Host,
    directories: [PathBuf; 2],
}

impl Vendors {
    fn new(host: &Host) -> Option<Self> {
        if !host.needs_coracle("devices by name") {
            return None;
        }
        let directories = [host.directory(), host.directory()];
        let options = format!("options = {{ directories = {directories:?} }}");
        let host = host.configured(&format!("[isolator.\"gpu/cdi\"]\n{options}\n"));
        Some(Self { host, directories })
    }

    fn describe(&self, directory: usize, file: &str, document: &Value) {
        fs::write(self.directories[directory].join(file), document.to_string()).unwrap();
    }

    fn run(&self, devices: &str, script: &str) -> coracle_tests::Outcome {
        let spec = Spec::new().set("/annotations", json!({"cdi.k8s.io/test": devices}));
        self.host.bundle(spec.script(script)).run()
    }
}

fn document(devices: &Value) -> Value {
    json!({"cdiVersion": "0.8.0", "kind": "example.com/gpu", "devices": devices,
        "containerEdits": {"env": ["LIBRARY=there"]}})
}

#[test]
fn a_device_brings_its_nodes_files_variables_groups_and_hooks() {
    privileged(|host| {
        let Some(vendors) = Vendors::new(host) else { return };
        let library = host.directory();
        fs::write(library.join("lib"), "library\n").unwrap();
        let said = library.join("said");
        let hook = json!({"hookName": "createRuntime", "path": "/bin/sh",
            "args": ["sh", "-c", format!("cat >{}", said.display())]});
        let one = json!({"name": "0", "containerEdits": {
            "env": ["GPU=0"],
            "deviceNodes": [{"path": "/dev/gpu0", "hostPath": "/dev/zero", "permissions": "r", "fileMode": 0o444}],
            "mounts": [{"hostPath": library, "containerPath": "/usr/lib/gpu", "options": ["ro"]}],
            "hooks": [hook],
            "additionalGids": [4242],
        }});
        let other = json!({"name": "1", "containerEdits": {"deviceNodes": [
            {"path": "/dev/gpu1", "type": "c", "major": 1, "minor": 3}]}});
        vendors.describe(0, "gpu.json", &document(&json!([one, other])));
        let script = "echo $LIBRARY $GPU; cat /usr/lib/gpu/lib; id -G; head -c 2 /dev/gpu0 | od -An -tx1; \
            (: >/dev/gpu0) 2>/dev/null || echo read only; echo x >/dev/gpu1 && ls -l /dev/gpu1 | cut -d' ' -f1";
        let run = vendors.run("example.com/gpu=0,example.com/gpu=1", script).succeeds();
        let wanted = ["there 0", "library", "0 4242", " 00 00", "read only", "crw-rw-rw-"];
        assert_eq!(run.lines(), wanted);
        let state: Value = serde_json::from_str(&fs::read_to_string(said).unwrap()).unwrap();
        assert_eq!(state["annotations"]["cdi.k8s.io/test"], "example.com/gpu=0,example.com/gpu=1");
    });
}

#[test]
fn a_device_stays_open_to_who_gets_other_limits() {
    privileged(|host| {
        let Some(vendors) = Vendors::new(host) else { return };
        let one = json!({"name": "0", "containerEdits": {"deviceNodes": [
            {"path": "/dev/gpu0", "type": "c", "major": 1, "minor": 77}]}});
        vendors.describe(0, "gpu.json", &document(&json!([one])));
        let spec = Spec::new().set("/annotations", json!({"cdi.k8s.io/test": "example.com/gpu=0"}));
        let container = vendors.host.bundle(spec.args(["sleep", "1000"])).start();
        // Nobody is behind it, which only who may open it gets to know.
        let opens =
            || container.exec(&["sh", "-c", ": </dev/gpu0"]).fails_with(&["o such device or address"]);
        opens();
        let deny = json!({"allow": false, "access": "rwm"});
        let file = host.directory().join("limits");
        fs::write(
            &file,
            json!({"devices": [deny], "memory": {"limit": 1, "checkBeforeUpdate": true}}).to_string(),
        )
        .unwrap();
        let options = ["--resources", file.to_str().unwrap()];
        container.verb_with("update", &options).fails_with(&["memory"]);
        opens();
        fs::write(&file, json!({"devices": [deny]}).to_string()).unwrap();
        container.verb_with("update", &options).succeeds();
        opens();
        container.remove();
    });
}

const YAML: &str = "
cdiVersion: 0.8.0
kind: example.com/gpu
devices:
- name: '0'
  containerEdits:
    env: [FROM=yaml]
    deviceNodes:
    - {path: /dev/gpu0, hostPath: /dev/zero, permissions: r}
";

#[test]
fn documents_may_be_yaml() {
    privileged(|host| {
        let Some(vendors) = Vendors::new(host) else { return };
        for name in ["gpu.yaml", "gpu.yml"] {
            let path = vendors.directories[0].join(name);
            fs::write(&path, YAML).unwrap();
            let script = "echo $FROM; head -c 1 /dev/gpu0 | od -An -tx1";
            assert_eq!(vendors.run("example.com/gpu=0", script).succeeds().lines(), ["yaml", " 00"]);
            fs::write(&path, YAML.replace("name: '0'", "name: &gpu '0'")).unwrap();
            let wanted = format!("{name}: line 5 column 9: an anchor stands here; write the value out");
            vendors.run("example.com/gpu=0", "true").fails_with(&[&wanted]);
            fs::write(&path, YAML.replace("devices", "device")).unwrap();
            vendors.run("example.com/gpu=0", "true").fails_with(&[name, "unknown field `device`"]);
            fs::remove_file(path).unwrap();
        }
    });
}

#[test]
fn containers_of_pods_get_devices_by_annotations() {
    privileged(|host| {
        let Some(vendors) = Vendors::new(host) else { return };
        let Some(pods) = Pods::new(&vendors.host) else { return };
        fs::write(vendors.directories[0].join("gpu.yaml"), YAML).unwrap();
        let metadata = "  annotations: {cdi.k8s.io/gpu: example.com/gpu=0}\n";
        let spec = "
  restartPolicy: Never
  containers:
  - {name: main, image: IMAGE, command: [sh, -c, 'echo $FROM; ls /dev/gpu0']}
";
        pods.make_with("run", "web", metadata, spec).succeeds();
        pods.call(&["wait", "web/main"]).exits(0);
        assert_eq!(pods.logs("web/main"), "yaml\n/dev/gpu0");
        pods.remove("web");
        let metadata = metadata.replace("gpu=0", "gpu=7");
        pods.make_with("run", "web", &metadata, spec)
            .fails_with(&["/annotations/cdi.k8s.io~1gpu", "there is no device \"example.com/gpu=7\""]);
        pods.remove("web");
    });
}

#[test]
fn the_later_directory_goes_before_the_other() {
    privileged(|host| {
        let Some(vendors) = Vendors::new(host) else { return };
        let saying = |word: &str| {
            document(&json!([{"name": "0", "containerEdits": {"env": [format!("FROM={word}")]}}]))
        };
        vendors.describe(0, "gpu.json", &saying("etc"));
        assert_eq!(vendors.run("example.com/gpu=0", "echo $FROM").succeeds().text(), "etc");
        vendors.describe(1, "gpu.json", &saying("run"));
        assert_eq!(vendors.run("example.com/gpu=0", "echo $FROM").succeeds().text(), "run");
    });
}

#[test]
fn what_nobody_or_two_describe_or_nobody_can_do_is_refused() {
    privileged(|host| {
        let Some(vendors) = Vendors::new(host) else { return };
        let refused = |device: &str, words: &[&str]| {
            vendors.run(device, "true").fails_with(&[&["/annotations/cdi.k8s.io~1test"], words].concat());
        };
        refused("gpu0", &["\"gpu0\" is no device; write vendor.com/class=name"]);
        refused("example.com/gpu=0", &["there is no device \"example.com/gpu=0\""]);
        // Neither by its name.
        fs::write(vendors.directories[0].join("gpu.txt"), "cdiVersion: 0.8.0\n").unwrap();
        refused("example.com/gpu=0", &["there is no device \"example.com/gpu=0\""]);
        let one = document(&json!([
            {"name": "0", "containerEdits": {}},
            {"name": "late", "containerEdits": {"hooks": [{"hookName": "poststop", "path": "/bin/true"}]}},
            {"name": "lost", "containerEdits": {"deviceNodes": [{"path": "/dev/no-such"}]}},
            {"name": "file", "containerEdits": {"deviceNodes": [{"path": "/etc/passwd"}]}},
        ]));
        vendors.describe(0, "one.json", &one);
        refused("example.com/gpu=late", &["one.json: a hook \"poststop\" can't be added to a container"]);
        refused("example.com/gpu=lost", &["/dev/no-such", "no such file or directory"]);
        refused("example.com/gpu=file", &["/etc/passwd is no device"]);
        vendors.describe(0, "two.json", &one);
        refused("example.com/gpu=0", &["one.json", "two.json both have device"]);
    });
}

#[test]
fn a_malformed_document_is_named() {
    privileged(|host| {
        let Some(vendors) = Vendors::new(host) else { return };
        for (document, words) in [
            (json!({"cdiVersion": "9.0.0", "kind": "a.com/b"}), "cdiVersion \"9.0.0\" is none of 0.3.0"),
            (
                json!({"cdiVersion": "0.8.0", "kind": "b"}),
                "its kind \"b\" is not of the form vendor.com/class",
            ),
            (json!({"cdiVersion": "0.8.0", "kind": "a.com/b", "device": []}), "unknown field `device`"),
        ] {
            vendors.describe(0, "gpu.json", &document);
            vendors.run("a.com/b=0", "true").fails_with(&["gpu.json: ", words]);
        }
    });
}
