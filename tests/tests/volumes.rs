//! `volume/persistent`: directories with names, which outlive their containers.

use std::fs;
use std::path::{Path, PathBuf};

use coracle_tests::command::tool;
use coracle_tests::{Host, Spec, privileged};
use serde_json::json;

/// A host whose volumes lie in a directory of the test.
struct Volumes {
    host: Host,
    state: PathBuf,
}

impl Volumes {
    fn new(host: &Host) -> Option<Self> {
        if !host.needs_coracle("volumes with names") {
            return None;
        }
        let state = host.directory().join("volumes");
        let options = format!("options = {{ state = {state:?} }}");
        let host = host.configured(&format!("[isolator.\"volume/persistent\"]\n{options}\n"));
        Some(Self { host, state })
    }

    fn ls(&self) -> Vec<String> {
        self.host.call(&["volume", "ls"]).succeeds().lines()
    }
}

/// A container with the volume `data`.
fn with_data(options: &[&str]) -> Spec {
    Spec::new().mount("/data", "volume", "data", options)
}

#[test]
fn what_one_container_writes_before_it_is_killed_another_reads() {
    privileged(|host| {
        let Some(volumes) = Volumes::new(host) else { return };
        let script = "for i in 1 2 3; do echo line $i >>/data/log; done; sync; kill -9 $$";
        volumes.host.bundle(with_data(&[]).script(script)).run();
        let read = volumes
            .host
            .bundle(with_data(&["ro"]).script("cat /data/log; echo x >/data/new || echo refused"));
        assert_eq!(read.run().succeeds().lines(), ["line 1", "line 2", "line 3", "refused"]);
        assert_eq!(volumes.ls(), ["data"]);
        volumes.host.call(&["volume", "rm", "data"]).succeeds();
        assert!(volumes.ls().is_empty() && !volumes.state.join("data").exists());
        volumes.host.call(&["volume", "rm", "data"]).fails_with(&["there is no volume \"data\""]);
    });
}

#[test]
fn two_share_one_and_it_stays_as_long_as_either_is_there() {
    privileged(|host| {
        let Some(volumes) = Volumes::new(host) else { return };
        let one = volumes.host.bundle(with_data(&[]).args(["sleep", "1000"])).named("one").start();
        let other = volumes.host.bundle(with_data(&[]).args(["sleep", "1000"])).named("other").start();
        one.exec(&["sh", "-c", "echo shared >/data/file"]).succeeds();
        assert_eq!(other.exec(&["cat", "/data/file"]).succeeds().text(), "shared");
        let line = volumes.ls().join("");
        assert!(line.contains("/run/coracle/one") && line.contains("/run/coracle/other"), "{line}");
        one.remove();
        let refused = volumes.host.call(&["volume", "rm", "data"]);
        refused.fails_with(&["volume \"data\" is in use: /run/coracle/other", "delete the container first"]);
        other.remove();
        volumes.host.call(&["volume", "rm", "data"]).succeeds();
    });
}

#[test]
fn nothing_is_deleted_through_a_mount() {
    privileged(|host| {
        let Some(volumes) = Volumes::new(host) else { return };
        volumes.host.bundle(with_data(&[]).script("mkdir /data/inner")).run().succeeds();
        let precious = host.directory();
        fs::write(precious.join("file"), "precious").unwrap();
        let inner = volumes.state.join("data/data/inner");
        tool("mount", &[Path::new("--bind"), &precious, &inner]);
        volumes.host.call(&["volume", "rm", "data"]).fails_with(&["something is mounted in volume \"data\""]);
        assert_eq!(fs::read_to_string(precious.join("file")).unwrap(), "precious");
        tool("umount", &[&inner]);
        volumes.host.call(&["volume", "rm", "data"]).succeeds();
        assert!(precious.join("file").exists());
    });
}

#[test]
fn who_is_gone_without_a_word_is_forgotten_by_recover() {
    privileged(|host| {
        let Some(volumes) = Volumes::new(host) else { return };
        let lost = volumes.host.bundle(with_data(&[]).args(["sleep", "1000"])).named("lost").start();
        let users = || fs::read_dir(volumes.state.join(".users")).unwrap().count();
        assert_eq!(users(), 1);
        fs::rename("/run/coracle/lost", "/run/coracle/.moved").unwrap();
        volumes.host.call(&["recover"]).succeeds();
        fs::rename("/run/coracle/.moved", "/run/coracle/lost").unwrap();
        assert_eq!(users(), 0);
        lost.remove();
    });
}

#[test]
fn a_name_that_is_a_path_is_refused() {
    privileged(|host| {
        let Some(volumes) = Volumes::new(host) else { return };
        for name in ["../etc", "a/b", ".users", ""] {
            let spec = Spec::new()
                .push("/mounts", json!({"destination": "/data", "type": "volume", "source": name}));
            let run = volumes.host.bundle(spec).run();
            run.fails_with(&["volume/persistent", "/source", "is no name of a volume"]);
        }
    });
}
