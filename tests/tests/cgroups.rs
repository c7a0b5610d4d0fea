//! Limits, read back from cgroupfs, and the membership of every process.

#![expect(clippy::unwrap_used, reason = "a helper of the tests fails as a test does")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use coracle_tests::cgroup::{hierarchies_of, is_unified, members, read};
use coracle_tests::oracle::cgroup_hierarchies;
use coracle_tests::user::as_user;
use coracle_tests::{Bundle, Host, Spec, command, privileged, privileged_v1};
use serde_json::json;

fn sleeping() -> Spec {
    Spec::new().args(["sleep", "1000"])
}

/// Limits of every kind that is asked for in daily life, on a container that runs.
fn limits_are_written(host: &Host, path: &str) {
    let spec = sleeping()
        .memory(64 << 20)
        .cpu(500)
        .pids(64)
        .set("/linux/resources/memory/reservation", 32 << 20)
        .set("/linux/resources/cpu/shares", 512)
        .set("/linux/resources/cpu/cpus", "0")
        .cgroup(path);
    let container = host.bundle(spec).start();
    let expect = |file: &str, value: &str| assert_eq!(read(path, file).as_deref(), Some(value), "{file}");
    expect("pids.max", "64");
    expect("cpuset.cpus", "0");
    if is_unified() {
        expect("memory.max", "67108864");
        expect("memory.low", "33554432");
        expect("cpu.max", "50000 100000");
    } else {
        expect("memory.limit_in_bytes", "67108864");
        expect("memory.soft_limit_in_bytes", "33554432");
        expect("cpu.cfs_quota_us", "50000");
        expect("cpu.cfs_period_us", "100000");
        expect("cpu.shares", "512");
    }
    container.remove();
}

fn every_process_is_in_every_hierarchy(host: &Host, path: &str) {
    let spec = Spec::new().script("sleep 1001 & sleep 1002 & wait").memory(64 << 20).pids(10).cgroup(path);
    let container = host.bundle(spec).start();
    container.exec_with(&["--detach"], &["sleep", "1003"]).succeeds();
    let pids = host.call(&["ps", "--format", "json", container.id()]).succeeds().json();
    let pids: Vec<i32> =
        pids.as_array().unwrap().iter().map(|pid| pid.as_i64().unwrap().try_into().unwrap()).collect();
    assert!(pids.len() >= 2, "{pids:?}");
    let hierarchies = hierarchies_of(path);
    assert!(!hierarchies.is_empty());
    for directory in hierarchies {
        let inside = members(&directory);
        assert!(
            pids.iter().all(|pid| inside.contains(pid)),
            "{}: {inside:?} lacks some of {pids:?}",
            directory.display()
        );
    }
    container.remove();
}

#[test]
fn limits_are_written_as_asked() {
    privileged(|host| limits_are_written(host, "/limited"));
}

#[test]
fn limits_are_written_without_a_unified_tree() {
    privileged_v1(|host| limits_are_written(host, "/limited"));
}

#[test]
fn every_process_is_in_the_cgroup_of_every_hierarchy() {
    privileged(|host| every_process_is_in_every_hierarchy(host, "/members"));
}

#[test]
fn every_process_is_in_the_cgroup_without_a_unified_tree() {
    privileged_v1(|host| every_process_is_in_every_hierarchy(host, "/members"));
}

#[test]
fn a_container_that_takes_too_much_memory_is_killed() {
    privileged(|host| {
        // tail keeps what it reads until its end; /dev/zero has none.
        let spec = Spec::new().args(["tail", "/dev/zero"]).memory(16 << 20);
        host.bundle(spec).run().exits(137);
    });
}

#[test]
fn more_processes_than_allowed_are_refused() {
    privileged(|host| {
        let spec = Spec::new().pids(5).script("for i in 1 2 3 4 5 6 7 8; do sleep 2 & done; wait");
        let run = host.bundle(spec).run();
        assert!(run.stderr.contains("fork"), "{run:?}");
    });
}

#[test]
fn cpu_time_is_throttled() {
    privileged(|host| {
        let spec = Spec::new().cpu(100).cgroup("/throttled").script("while :; do :; done");
        let container = host.bundle(spec).start();
        command::eventually("throttled periods", || {
            let stat = read("/throttled", "cpu.stat").unwrap();
            let count = stat.lines().find_map(|line| line.strip_prefix("nr_throttled ")).unwrap().to_owned();
            count != "0"
        });
        container.remove();
    });
}

#[test]
fn a_lock_that_any_user_can_take_keeps_no_container_from_starting() {
    privileged(|host| {
        let lock = format!(
            "{} flock --no-fork /sys/fs/cgroup sleep 1000 >/dev/null 2>&1 & echo $!; sleep 0.3",
            as_user(4343)
        );
        let holder = host.shell(&lock).succeeds().text();
        // Nobody waits for it; a busy machine may be slow once.
        let bundle = host.bundle(Spec::new());
        let times = [(); 3].map(|()| {
            let begin = Instant::now();
            bundle.run().succeeds();
            begin.elapsed()
        });
        assert!(
            times.iter().any(|time| *time < Duration::from_millis(900) * command::patience()),
            "{times:?}"
        );
        host.shell(&format!("kill {holder}")).succeeds();
    });
}

#[test]
fn no_path_still_gives_a_cgroup_of_its_own() {
    privileged(|host| {
        let bundle = host.bundle(sleeping().memory(64 << 20));
        let config = bundle.directory().join("config.json");
        let mut document: serde_json::Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
        document["linux"].as_object_mut().unwrap().remove("cgroupsPath");
        fs::write(&config, document.to_string()).unwrap();
        let container = bundle.start();
        let own = fs::read_to_string("/proc/self/cgroup").unwrap();
        let its = fs::read_to_string(format!("/proc/{}/cgroup", container.pid())).unwrap();
        let memory = |text: &str| {
            text.lines().find(|line| line.contains("memory") || line.starts_with("0::")).unwrap().to_owned()
        };
        assert_ne!(memory(&own), memory(&its));
        container.remove();
    });
}

#[test]
fn a_nested_path_is_made_and_removed_with_its_container() {
    privileged(|host| {
        for hierarchy in cgroup_hierarchies() {
            let _ = fs::create_dir(hierarchy.join("parent"));
        }
        let container = host.bundle(sleeping().pids(10).cgroup("/parent/child")).start();
        assert_eq!(read("/parent/child", "pids.max").as_deref(), Some("10"));
        container.remove();
        assert!(hierarchies_of("/parent/child").is_empty());
        for directory in hierarchies_of("/parent") {
            fs::remove_dir(directory).unwrap();
        }
    });
}

#[test]
fn the_second_cpuset_of_version_1_is_made_with_its_parents_processors() {
    privileged(|host| {
        let of_version_1 = |hierarchy: &PathBuf| hierarchy.join("cpuset.sched_relax_domain_level").exists();
        let Some(cpusets) = cgroup_hierarchies().into_iter().find(of_version_1) else {
            host.skip("cpusets of version 1: the machine has none");
            return;
        };
        let many = cpusets.join("many");
        fs::create_dir(&many).unwrap();
        fs::write(many.join("cgroup.clone_children"), "0").unwrap();
        host.bundle(sleeping().cgroup("/many/first")).start().remove();
        fs::create_dir(many.join("second")).unwrap();
        let processors = |cpuset: PathBuf| fs::read_to_string(cpuset.join("cpuset.cpus")).unwrap();
        assert_eq!(processors(many.join("second")), processors(many.clone()));
        fs::remove_dir(many.join("second")).unwrap();
        fs::remove_dir(many).unwrap();
    });
}

#[test]
fn a_path_that_climbs_is_refused_or_stays_below_the_root() {
    privileged(|host| {
        let bundle = host.bundle(sleeping().cgroup("/../../../escape"));
        let create = bundle.try_create();
        if create.code != 0 {
            create.fails_with(&["cgroup"]);
            return;
        }
        let pid = host.call(&["state", bundle.id()]).succeeds().json()["pid"].clone();
        let places = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
        host.call(&["delete", "--force", bundle.id()]).succeeds();
        assert!(!places.contains(".."), "{places}");
    });
}

#[test]
fn a_whole_life_needs_no_unified_tree() {
    privileged_v1(|host| {
        let container = host.bundle(sleeping().memory(64 << 20).pids(16)).create();
        container.call("start").succeeds();
        container.exec(&["sh", "-c", "exit 4"]).exits(4);
        container.remove();
        host.bundle(Spec::new().memory(16 << 20).args(["tail", "/dev/zero"])).run().exits(137);
    });
}

#[test]
fn a_memory_limit_that_is_too_low_to_start_is_told() {
    privileged(|host| {
        let run = host.bundle(Spec::new().memory(4096)).run();
        if run.code == 0 {
            return;
        }
        assert!(!run.stderr.is_empty(), "a silent failure: {run:?}");
    });
}

#[test]
fn bad_limits_are_named() {
    privileged(|host| {
        let spec = Spec::new().set("/linux/resources/cpu/cpus", "nonsense");
        host.bundle(spec).run().fails_with(&["nonsense"]);
        let spec = Spec::new()
            .set("/linux/resources/cpu/quota", json!(10))
            .set("/linux/resources/cpu/period", json!(100_000));
        host.bundle(spec).run().fails_with(&["quota"]);
    });
}

#[test]
fn a_lock_on_a_cgroup_that_was_made_for_it_keeps_no_container_from_starting() {
    privileged(|host| {
        for hierarchy in cgroup_hierarchies() {
            let _ = fs::create_dir(hierarchy.join("ready"));
        }
        let made = hierarchies_of("/ready");
        let lock = format!(
            "{} flock --no-fork {} sleep 1000 >/dev/null 2>&1 & echo $!; sleep 0.3",
            as_user(4343),
            made[0].display()
        );
        let holder = host.shell(&lock).succeeds().text();
        host.bundle(Spec::new().cgroup("/ready")).run().succeeds();
        host.shell(&format!("kill {holder}")).succeeds();
        made.iter().for_each(|directory| fs::remove_dir(directory).unwrap());
    });
}

#[test]
fn cgroups_below_a_containers_own_go_with_it_however_deep_they_are() {
    privileged(|host| {
        let container = host.bundle(sleeping().cgroup("/deep")).start();
        let depth = ["d"; 200].join("/");
        let pids = hierarchies_of("/deep").into_iter().find(|directory| directory.join("pids.max").exists());
        fs::create_dir_all(pids.unwrap().join(depth)).unwrap();
        let program = host.runtime().display();
        for verb in ["ps", "delete --force"] {
            let id = container.id();
            host.shell(&format!("ulimit -n 100; {program} {verb} {id}")).succeeds();
        }
        assert!(hierarchies_of("/deep").is_empty());
    });
}

#[test]
fn a_threaded_cgroup_of_the_containers_hides_no_process() {
    privileged(|host| {
        if !is_unified() {
            host.skip("threaded cgroups: of version 2 alone");
            return;
        }
        let container = host.bundle(sleeping().cgroup("/threaded")).start();
        let threads = hierarchies_of("/threaded")[0].join("threads");
        fs::create_dir(&threads).unwrap();
        fs::write(threads.join("cgroup.type"), "threaded").unwrap();
        let pids = host.call(&["ps", "--format", "json", container.id()]).succeeds().json();
        assert_eq!(pids, json!([container.pid()]));
        host.call(&["kill", "--all", container.id(), "KILL"]).succeeds();
        container.becomes("stopped");
        container.call("delete").succeeds();
    });
}

#[test]
fn a_cgroup_in_use_is_refused_and_those_who_use_it_live_on() {
    privileged(|host| {
        let first = host.bundle(sleeping().cgroup("/shared")).start();
        let second = host.bundle(Spec::new().cgroup("/shared"));
        second.run().fails_with(&["cgroup \"shared\"", "holds processes"]);
        host.call(&["delete", "--force", second.id()]).succeeds();
        assert_eq!(first.status(), "running");
        first.remove();
    });
}

#[test]
fn a_cgroup_of_the_host_stays_with_its_processes() {
    privileged(|host| {
        let root = Path::new(if is_unified() { "/sys/fs/cgroup" } else { "/sys/fs/cgroup/memory" });
        let directory = root.join("of-the-host");
        fs::create_dir(&directory).unwrap();
        let mut process = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        fs::write(directory.join("cgroup.procs"), process.id().to_string()).unwrap();
        host.bundle(Spec::new().cgroup("/of-the-host")).run().fails_with(&["holds processes"]);
        assert!(process.try_wait().unwrap().is_none(), "the host's process was killed");
        process.kill().unwrap();
        process.wait().unwrap();
        // Empty, it may be used, and is left behind as it was found.
        host.bundle(Spec::new().cgroup("/of-the-host")).run().succeeds();
        assert!(directory.is_dir());
        fs::remove_dir(&directory).unwrap();
    });
}

#[test]
fn a_path_that_names_no_cgroup_is_refused_before_anything_is_made() {
    privileged(|host| {
        let long = format!("/{}", "y".repeat(256));
        for path in [".", "./", "/", "/../x", &long] {
            let bundle = host.bundle(Spec::new().cgroup(path));
            bundle.run().fails_with(&["/linux/cgroupsPath"]);
            host.call(&["state", bundle.id()]).fails_with(&["does not exist"]);
        }
    });
}

#[test]
fn a_path_through_a_file_of_a_cgroup_leaves_nothing() {
    privileged(|host| {
        for path in ["/cgroup.procs", "/cgroup.procs/x"] {
            let bundle = host.bundle(Spec::new().cgroup(path));
            bundle.run().fails_with(&["cgroup.procs"]);
            host.call(&["state", bundle.id()]).fails_with(&["does not exist"]);
        }
    });
}

#[test]
fn a_container_without_cgroups_sees_its_callers_and_can_not_change_them() {
    privileged(|host| {
        if !host.needs_coracle("containers without cgroups") {
            return;
        }
        let asked = Spec::new().without_mount("/sys/fs/cgroup");
        let writable = asked.mount("/sys/fs/cgroup", "cgroup", "cgroup", &[]);
        for spec in [Spec::new(), Spec::new().without_namespace("cgroup"), writable] {
            let script = "ls /sys/fs/cgroup | grep -q . && ! mkdir /sys/fs/cgroup/new && \
                          ! mkdir $(dirname $(find /sys/fs/cgroup -name cgroup.procs | head -n 1))/x";
            let bundle = host.bundle(spec.set("/linux/resources", json!({})).script(script));
            let directory = bundle.directory().to_str().unwrap();
            let run = ["--cgroup-manager", "disabled", "run", "--bundle", directory, bundle.id()];
            assert!(host.call(&run).succeeds().stderr.contains("ead-only"));
        }
    });
}

#[test]
fn of_two_launches_into_one_cgroup_one_is_refused() {
    privileged(|host| {
        let [one, other] = [(); 2].map(|()| host.bundle(sleeping().cgroup("/raced")));
        for _ in 0..20 {
            let create = |bundle: &Bundle<'_>| {
                bundle.command("create").stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
            };
            let codes = [create(&one), create(&other)].map(|mut child| child.wait().unwrap().success());
            assert!(codes[0] || codes[1], "each kept the other out, and both are refused");
            let states = [&one, &other].map(|bundle| host.call(&["state", bundle.id()]));
            let created = states.iter().filter(|s| s.code == 0 && s.json()["status"] == "created").count();
            assert_eq!(created, 1, "{states:?}");
            for bundle in [&one, &other] {
                host.call(&["delete", "--force", bundle.id()]).succeeds();
            }
        }
    });
}
