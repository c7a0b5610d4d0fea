//! `volume/csi`: volumes of a driver that is real, and told what to do wrong.

#![expect(clippy::unwrap_used, reason = "a helper of the tests fails as a test does")]

use std::fs;
use std::process::Command;

use coracle_tests::cgroup;
use coracle_tests::command::{eventually, tool};
use coracle_tests::storage::{Storage, WORD};
use coracle_tests::{Outcome, Spec, privileged};
use serde_json::json;

fn ok(calls: &[&str]) -> Vec<String> {
    calls.iter().map(|call| format!("{call} ok")).collect()
}

#[test]
fn a_volume_is_staged_once_published_for_each_and_taken_back_with_the_last() {
    privileged(|host| {
        let Some(storage) = Storage::new(host) else { return };
        let one = storage.bundle("echo written >/data/file; sleep 1000", &[]).named("one").start();
        let begun = ["Probe", "NodeGetCapabilities", "NodeStageVolume", "NodePublishVolume"];
        assert_eq!(storage.calls(), ok(&begun));
        let reads =
            storage.bundle("touch /data/new || cat /data/file; sleep 1000", &["ro"]).named("two").start();
        assert_eq!(storage.calls(), ok(&["Probe", "NodeGetCapabilities", "NodePublishVolume"]));
        eventually("it reads", || reads.output() == "written\n");
        assert_eq!(storage.mounted(), ["one", "staging", "two"]);
        let told = one.call("stats").succeeds().json()["other"].clone();
        assert_eq!(
            (&told["volume/csi/bytes-used/data"], &told["volume/csi/bytes-total/data"]),
            (&json!(8.0), &json!(1000.0))
        );
        assert_eq!(storage.calls(), ok(&["NodeGetVolumeStats"]));
        one.remove();
        assert_eq!(storage.calls(), ok(&["NodeUnpublishVolume"]));
        assert_eq!(storage.mounted(), ["staging", "two"]);
        reads.remove();
        assert_eq!(storage.calls(), ok(&["NodeUnpublishVolume", "NodeUnstageVolume"]));
        assert!(storage.is_clean());
        assert_eq!(fs::read_to_string(storage.directory().join("one/file")).unwrap(), "written\n");
        storage.end();
    });
}

#[test]
fn a_driver_that_can_do_nothing_optional_is_asked_for_nothing_optional() {
    privileged(|host| {
        let Some(storage) = Storage::new(host) else { return };
        fs::write(storage.directory().join("simple"), "").unwrap();
        storage.define("data", &json!({"driver": "test", "volumeId": "one", "requiredBytes": 5000}));
        storage.bundle("echo hello >/data/file", &[]).run().succeeds();
        let all = ["Probe", "NodeGetCapabilities", "NodePublishVolume", "NodeUnpublishVolume"];
        assert_eq!(storage.calls(), ok(&all));
        fs::remove_file(storage.directory().join("simple")).unwrap();
        storage.bundle("true", &[]).run().succeeds();
        assert!(storage.calls().contains(&"NodeExpandVolume ok".to_owned()));
        assert!(storage.is_clean());
        storage.end();
    });
}

#[test]
fn a_secret_is_for_the_driver_alone() {
    privileged(|host| {
        let Some(storage) = Storage::new(host) else { return };
        let locked = json!({"driver": "test", "volumeId": "one", "volumeContext": {"locked": "yes"}});
        storage.define("data", &locked);
        storage.bundle("true", &[]).run().fails_with(&[
            "isolator volume/csi could not provide: driver \"test\" could not NodeStageVolume: the volume is locked (gRPC code 16)",
        ]);
        assert!(storage.is_clean());
        let mut open = locked.clone();
        open["secret"] = json!("key");
        storage.define("data", &open);
        let log = host.directory().join("log");
        let bundle = storage.bundle("sleep 1000", &[]).named("open");
        let args = ["--debug", "--log", log.to_str().unwrap(), "run", "--detach", "--bundle"];
        let args = [&args[..], &[bundle.directory().to_str().unwrap(), "open"]].concat();
        storage.host().call(&args).succeeds();
        for place in [
            "/run/coracle",
            storage.state().to_str().unwrap(),
            storage.directory().to_str().unwrap(),
            log.to_str().unwrap(),
        ] {
            let found = Command::new("grep").args(["-rlF", WORD, place]).output().unwrap();
            assert!(found.stdout.is_empty(), "{}", String::from_utf8_lossy(&found.stdout));
        }
        storage.host().call(&["delete", "--force", "open"]).succeeds();
        assert!(storage.is_clean());
        storage.end();
    });
}

#[test]
fn what_can_not_be_is_told_before_anything_is_made() {
    privileged(|host| {
        let Some(storage) = Storage::new(host) else { return };
        let run = |name: &str| storage.host().bundle(Spec::new().mount("/data", "csi", name, &[])).run();
        run("../data").fails_with(&["/mounts/", "/source: \"../data\" is no name of a volume"]);
        run("other").fails_with(&["/source: there is no volume \"other\" ("]);
        storage.define("data", &json!({"driver": "nobody", "volumeId": "one"}));
        run("data")
            .fails_with(&["no driver \"nobody\" is configured; the option drivers names their sockets"]);
        storage.define("data", &json!({"driver": "test", "volume": "one"}));
        run("data").fails_with(&["data.json: unknown field `volume`"]);
        assert!(storage.calls().is_empty() && storage.is_clean());
        storage.define("data", &json!({"driver": "test", "volumeId": "two"}));
        run("data").fails_with(&["could not NodeStageVolume: there is no volume two (gRPC code 5)"]);
        assert!(storage.is_clean());
        storage.end();
    });
}

#[test]
fn a_driver_that_is_busy_is_asked_again_and_one_that_hangs_is_given_up() {
    privileged(|host| {
        let Some(storage) = Storage::new(host) else { return };
        // ABORTED: it is at work on the volume.
        storage.fault("NodePublishVolume before 10");
        storage.bundle("true", &[]).run().succeeds();
        assert!(storage.is_clean());
        storage.fault("NodeStageVolume before hangs");
        let run = storage.bundle("true", &[]).run();
        run.fails_with(&["driver \"test\" could not NodeStageVolume: it did not answer in time"]);
        assert!(storage.is_clean());
        storage.end();
    });
}

/// Runs a container of `storage` in whose life `fault` comes up, and what follows: recovery, and removal.
fn goes_wrong(storage: &Storage, fault: &str) -> Outcome {
    storage.fault(fault);
    let bundle = storage.bundle("echo again >>/data/log", &[]).named("unlucky");
    let run = bundle.run();
    if fault.ends_with("dies") {
        eventually("the driver is dead", || storage.is_dead());
    }
    storage.revive();
    storage.host().call(&["recover"]).succeeds();
    // A runtime that was killed in its removal has left the container on record.
    storage.host().call(&["delete", "--force", "unlucky"]).succeeds();
    run
}

#[test]
fn driver_or_runtime_killed_between_any_two_calls_leave_nothing_that_recovery_does_not_undo() {
    privileged(|host| {
        let Some(storage) = Storage::new(host) else { return };
        let methods = [
            "Probe",
            "NodeGetCapabilities",
            "NodeStageVolume",
            "NodePublishVolume",
            "NodeUnpublishVolume",
            "NodeUnstageVolume",
        ];
        let mut turns = 0;
        for method in methods {
            for moment in ["before", "after"] {
                for who in ["dies", "killer"] {
                    let fault = format!("{method} {moment} {who}");
                    goes_wrong(&storage, &fault);
                    assert!(!storage.directory().join("fault").exists(), "{fault} did not come up");
                    assert!(storage.is_clean(), "{fault}: {:?}", storage.mounted());
                    // What follows finds a volume that can be used, which is staged and published once.
                    storage.calls();
                    storage.bundle("test -d /data", &[]).run().succeeds();
                    let calls = storage.calls();
                    let count = |name: &str| calls.iter().filter(|call| call.starts_with(name)).count();
                    let once =
                        ["NodeStageVolume", "NodePublishVolume", "NodeUnpublishVolume", "NodeUnstageVolume"];
                    assert!(once.iter().all(|name| count(name) == 1), "{fault}: {calls:?}");
                    turns += 1;
                }
            }
        }
        assert_eq!(turns, 24);
        storage.end();
    });
}

#[test]
fn a_volume_that_is_not_staged_is_counted_all_the_same() {
    privileged(|host| {
        let Some(storage) = Storage::new(host) else { return };
        fs::write(storage.directory().join("unstaged"), "").unwrap();
        let container = storage.bundle("echo written >/data/file; sleep 1000", &[]).start();
        eventually("it is counted", || {
            container.call("stats").succeeds().json()["other"]["volume/csi/bytes-used/data"] == json!(8.0)
        });
        container.remove();
        assert!(storage.is_clean());
        storage.end();
    });
}

#[test]
fn a_volume_that_somebody_is_at_work_on_is_not_waited_for_to_be_counted() {
    privileged(|host| {
        let Some(storage) = Storage::new(host) else { return };
        let container = storage.bundle("sleep 1000", &[]).start();
        let work = fs::File::open(storage.state().join("data/lock")).unwrap();
        rustix::fs::flock(&work, rustix::fs::FlockOperation::LockExclusive).unwrap();
        let told = container.call("stats").succeeds().json()["other"].clone();
        assert_eq!(told["volume/csi/bytes-used/data"], json!(null));
        drop(work);
        container.remove();
        assert!(storage.is_clean());
        storage.end();
    });
}

#[test]
fn a_container_of_the_same_name_elsewhere_has_no_part_in_a_volume() {
    privileged(|host| {
        let Some(storage) = Storage::new(host) else { return };
        let web = storage.bundle("sleep 1000", &[]).named("web").start();
        storage.calls();
        let states = host.directory();
        let elsewhere = |spec: Spec| {
            let bundle = storage.host().bundle(spec.cgroup(&cgroup::wanted("elsewhere")).script("true"));
            let (root, directory) = (states.to_str().unwrap(), bundle.directory().to_str().unwrap());
            storage.host().call(&["--root", root, "run", "--bundle", directory, "web"]).succeeds();
        };
        elsewhere(Spec::new());
        assert_eq!(storage.calls(), Vec::<String>::new());
        elsewhere(Spec::new().mount("/data", "csi", "data", &[]));
        assert_eq!(
            storage.calls(),
            ok(&["Probe", "NodeGetCapabilities", "NodePublishVolume", "NodeUnpublishVolume"])
        );
        assert_eq!(storage.mounted(), ["staging", "web"]);
        web.remove();
        assert!(storage.is_clean());
        storage.end();
    });
}

#[test]
fn a_record_that_can_not_be_read_is_no_concern_of_containers_without_that_volume() {
    privileged(|host| {
        let Some(storage) = Storage::new(host) else { return };
        let broken = storage.state().join("broken");
        fs::create_dir(&broken).unwrap();
        fs::write(broken.join("record"), "{").unwrap();
        fs::write(storage.state().join("stray"), "").unwrap();
        let without = storage.host().bundle(Spec::new().script("true")).run().succeeds();
        assert_eq!(without.stderr, "");
        let container = storage.bundle("sleep 1000", &[]).named("user").start();
        container.call("stats").succeeds();
        let record = storage.state().join("data/record");
        let text = fs::read(&record).unwrap();
        fs::write(&record, "{").unwrap();
        // Who has it is told.
        let gone = storage.host().call(&["delete", "--force", container.id()]).succeeds();
        assert!(gone.stderr.contains("the record of volume \"data\" is malformed"), "{}", gone.stderr);
        fs::write(&record, text).unwrap();
        storage.bundle("true", &[]).named("user").run().succeeds();
        fs::remove_dir_all(broken).unwrap();
        assert!(storage.is_clean());
        storage.end();
    });
}

/// A container with the volume, which goes as with the machine's end: processes, namespaces, mounts and `/run` are gone,
/// `/var` is not. Then `after` comes, in the machine's next start.
fn lost(storage: &Storage, after: impl FnOnce()) {
    let lost = storage.bundle("sleep 1000", &[]).named("lost").start();
    tool("kill", &["-9", &lost.pid().to_string()]);
    lost.becomes("stopped");
    for mounted in ["targets/lost", "staging"] {
        tool("umount", &[storage.state().join("data").join(mounted).to_str().unwrap()]);
    }
    fs::rename("/run/coracle/lost", "/run/lost").unwrap();
    let number = storage.host().directory().join("boot_id");
    fs::write(&number, "another\n").unwrap();
    tool("mount", &["--bind", number.to_str().unwrap(), "/proc/sys/kernel/random/boot_id"]);
    storage.calls();
    after();
    tool("umount", &["/proc/sys/kernel/random/boot_id"]);
    // Its cgroups went with the machine.
    fs::rename("/run/lost", "/run/coracle/lost").unwrap();
    storage.host().call(&["delete", "--force", "lost"]).succeeds();
}

#[test]
fn a_volume_from_before_the_machines_start_is_staged_anew() {
    privileged(|host| {
        let Some(storage) = Storage::new(host) else { return };
        lost(&storage, || {
            storage.bundle("test -d /data", &[]).run().succeeds();
            let ended = ["NodeUnpublishVolume", "NodeUnstageVolume"];
            let begun = ["Probe", "NodeGetCapabilities", "NodeStageVolume", "NodePublishVolume"];
            assert_eq!(storage.calls(), ok(&[&ended[..], &begun, &ended].concat()));
            assert!(storage.is_clean());
        });
        storage.end();
    });
}

#[test]
fn recovery_takes_back_volumes_from_before_the_machines_start() {
    privileged(|host| {
        let Some(storage) = Storage::new(host) else { return };
        lost(&storage, || {
            storage.host().call(&["recover"]).succeeds();
            assert_eq!(storage.calls(), ok(&["NodeUnpublishVolume", "NodeUnstageVolume"]));
            assert!(storage.is_clean());
        });
        storage.end();
    });
}
