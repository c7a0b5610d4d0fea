//! When and where the process runs, and what keeps it from being killed for memory.

#![expect(clippy::unwrap_used, reason = "a helper of the tests fails as a test does")]

use std::fs;

use coracle_tests::command::tool;
use coracle_tests::{Container, Host, Spec, privileged};
use serde_json::{Value, json};

fn sleeping() -> Spec {
    Spec::new().args(["sleep", "1000"])
}

/// Field `number` of `/proc/PID/stat`, as proc_pid_stat(5) counts them.
fn stat(pid: i32, number: usize) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, after_name) = text.rsplit_once(") ").unwrap();
    after_name.split_whitespace().nth(number - 3).unwrap().to_owned()
}

/// Nice value, real-time priority and policy.
fn turns(pid: i32) -> [String; 3] {
    [19, 40, 41].map(|number| stat(pid, number))
}

fn scheduled(host: &Host, scheduler: Value) -> Container<'_> {
    host.bundle(sleeping().set("/process/scheduler", scheduler)).start()
}

#[test]
fn the_policy_and_the_nice_value_are_as_asked() {
    privileged(|host| {
        for (scheduler, wanted) in [
            (json!({"policy": "SCHED_BATCH", "nice": 5}), ["5", "0", "3"]),
            (json!({"policy": "SCHED_OTHER", "nice": -7}), ["-7", "0", "0"]),
            (json!({"policy": "SCHED_IDLE"}), ["0", "0", "5"]),
        ] {
            let container = scheduled(host, scheduler);
            assert_eq!(turns(container.pid()), wanted);
            container.remove();
        }
    });
}

#[test]
fn a_real_time_process_needs_its_cgroups_budget() {
    privileged(|host| {
        let scheduler = json!({"policy": "SCHED_FIFO", "priority": 9, "flags": ["SCHED_FLAG_RESET_ON_FORK"]});
        if coracle_tests::cgroup::read("/", "cpu.rt_runtime_us").is_none() {
            let container = scheduled(host, scheduler);
            assert_eq!(turns(container.pid()), ["0", "9", "1"]);
            return container.remove();
        }
        // Version 1 gives a new cgroup none.
        let bundle = host.bundle(sleeping().set("/process/scheduler", scheduler));
        let words = ["/process/scheduler", "sched_setattr", "operation not permitted"];
        bundle.try_create().fails_with(&words);
        bundle.run().fails_with(&words);
    });
}

#[test]
fn a_deadline_is_as_asked() {
    privileged(|host| {
        let scheduler = json!({
            "policy": "SCHED_DEADLINE", "runtime": 1_000_000, "deadline": 5_000_000, "period": 10_000_000,
            "flags": ["SCHED_FLAG_RESET_ON_FORK"],
        });
        let container = scheduled(host, scheduler);
        let told = tool("chrt", &["--pid", &container.pid().to_string()]);
        assert!(told.contains("SCHED_DEADLINE|SCHED_RESET_ON_FORK"), "{told}");
        assert!(told.contains("1000000/5000000/10000000"), "{told}");
        container.remove();
    });
}

#[test]
fn what_the_kernel_refuses_of_a_scheduler_is_told_and_leaves_nothing() {
    privileged(|host| {
        // The kernel wants the runtime to be at most the deadline.
        let scheduler = json!({"policy": "SCHED_DEADLINE", "runtime": 9_000_000, "deadline": 5_000_000});
        let bundle = host.bundle(sleeping().set("/process/scheduler", scheduler));
        let words = ["/process/scheduler", "sched_setattr", "invalid argument"];
        bundle.try_create().fails_with(&words);
        bundle.run().fails_with(&words);
    });
}

#[test]
fn the_priority_of_disk_accesses_is_as_asked() {
    privileged(|host| {
        for (class, priority, wanted) in [
            ("IOPRIO_CLASS_RT", 3, "realtime: prio 3"),
            ("IOPRIO_CLASS_BE", 6, "best-effort: prio 6"),
            ("IOPRIO_CLASS_IDLE", 0, "idle"),
        ] {
            let asked = json!({"class": class, "priority": priority});
            let container = host.bundle(sleeping().set("/process/ioPriority", asked)).start();
            assert_eq!(tool("ionice", &["-p", &container.pid().to_string()]).trim(), wanted);
            container.remove();
        }
    });
}

#[test]
fn an_executed_process_runs_as_its_own_document_says() {
    privileged(|host| {
        let container =
            host.bundle(sleeping().set("/process/scheduler", json!({"policy": "SCHED_IDLE"}))).start();
        let own = container.exec(&["sh", "-c", "cut -d' ' -f19,41 /proc/$$/stat"]).succeeds();
        assert_eq!(own.text(), "0 5", "without a document it is the container's");
        let process = json!({
            "user": {"uid": 0, "gid": 0}, "cwd": "/",
            "env": ["PATH=/bin"],
            "args": ["sh", "-c", "cut -d' ' -f19,41 /proc/$$/stat; cat /proc/self/oom_score_adj; ionice"],
            "scheduler": {"policy": "SCHED_BATCH", "nice": 4},
            "ioPriority": {"class": "IOPRIO_CLASS_BE", "priority": 5},
            "oomScoreAdj": 321,
        });
        let path = host.directory().join("process.json");
        fs::write(&path, process.to_string()).unwrap();
        let run = host.call(&["exec", "--process", path.to_str().unwrap(), container.id()]).succeeds();
        assert_eq!(run.lines(), ["4 3", "321", "best-effort: prio 5"]);
        container.remove();
    });
}

/// The processors that this machine has and the container may use.
fn processors() -> Vec<String> {
    let online = fs::read_to_string("/sys/devices/system/cpu/online").unwrap();
    let (first, last) = online.trim().split_once('-').unwrap_or((online.trim(), online.trim()));
    (first.parse::<u32>().unwrap()..=last.parse().unwrap()).map(|n| n.to_string()).collect()
}

#[test]
fn only_an_executed_process_has_its_processors() {
    privileged(|host| {
        let all = processors();
        let Some(last) = all.last().filter(|_| all.len() > 1) else {
            return host.skip("the machine has one processor");
        };
        let affinity = json!({"initial": all[0], "final": last});
        let container = host.bundle(sleeping().set("/process/execCPUAffinity", affinity)).start();
        let allowed = |text: &str| {
            let line = text.lines().find(|line| line.starts_with("Cpus_allowed_list:")).unwrap();
            line.split_whitespace().nth(1).unwrap().to_owned()
        };
        let first = fs::read_to_string(format!("/proc/{}/status", container.pid())).unwrap();
        assert_ne!(allowed(&first), *last);
        let run = container.exec(&["cat", "/proc/self/status"]).succeeds();
        assert_eq!(allowed(&run.text()), *last);
        container.remove();
    });
}

#[test]
fn processors_that_are_not_there_are_told() {
    privileged(|host| {
        let spec = sleeping().set("/process/execCPUAffinity", json!({"final": "60000"}));
        let container = host.bundle(spec).start();
        container.exec(&["true"]).fails_with(&[
            "/process/execCPUAffinity/final",
            "sched_setaffinity",
            "invalid argument",
        ]);
        container.remove();
        let malformed = Spec::new().set("/process/execCPUAffinity", json!({"initial": "1-"}));
        host.bundle(malformed).run().fails_with(&["/process/execCPUAffinity/initial", "1-"]);
    });
}

#[test]
fn memory_comes_from_the_nodes_that_were_asked_for() {
    privileged(|host| {
        let maps = |policy: Value| {
            let spec = Spec::new().set("/linux/memoryPolicy", policy).args(["cat", "/proc/self/numa_maps"]);
            host.bundle(spec).run()
        };
        let shown = |policy: Value| {
            let run = maps(policy).succeeds();
            run.lines()[0].split_whitespace().nth(1).unwrap().to_owned()
        };
        assert_eq!(shown(json!({"mode": "MPOL_BIND", "nodes": "0"})), "bind:0");
        assert_eq!(shown(json!({"mode": "MPOL_PREFERRED", "nodes": ""})), "local");
        let flags = json!(["MPOL_F_STATIC_NODES"]);
        assert_eq!(
            shown(json!({"mode": "MPOL_INTERLEAVE", "nodes": "0", "flags": flags})),
            "interleave=static:0"
        );
        maps(json!({"mode": "MPOL_BIND", "nodes": "1000"})).fails_with(&[
            "/linux/memoryPolicy",
            "set_mempolicy",
            "invalid argument",
        ]);
    });
}

#[test]
fn an_executed_process_has_the_containers_memory_policy_and_personality() {
    privileged(|host| {
        let spec = sleeping()
            .set("/linux/memoryPolicy", json!({"mode": "MPOL_BIND", "nodes": "0"}))
            .set("/linux/personality", json!({"domain": "LINUX32"}));
        let container = host.bundle(spec).start();
        let run = container.exec(&["sh", "-c", "uname -m; head -n 1 /proc/self/numa_maps"]).succeeds();
        assert_eq!(run.lines()[0], "i686");
        assert!(run.lines()[1].contains(" bind:0 "), "{run:?}");
        container.remove();
    });
}

#[test]
fn a_personality_is_taken_before_the_filter_that_forbids_it() {
    privileged(|host| {
        let rules = json!([{"names": ["personality"], "action": "SCMP_ACT_ERRNO"}]);
        let spec = Spec::new()
            .set("/linux/personality", json!({"domain": "LINUX32"}))
            .seccomp("SCMP_ACT_ALLOW", &rules)
            .args(["uname", "-m"]);
        assert_eq!(host.bundle(spec).run().succeeds().text(), "i686");
    });
}

#[test]
fn a_score_below_the_runtimes_own_needs_a_capability() {
    privileged(|host| {
        let own: i32 = fs::read_to_string("/proc/self/oom_score_adj").unwrap().trim().parse().unwrap();
        let spec = Spec::new().set("/process/oomScoreAdj", own - 1).args(["cat", "/proc/self/oom_score_adj"]);
        let may = tool("sh", &["-c", "grep CapEff /proc/self/status"]);
        let may = u64::from_str_radix(may.split_whitespace().nth(1).unwrap(), 16).unwrap() & (1 << 24) != 0;
        let run = host.bundle(spec).run();
        if may {
            assert_eq!(run.succeeds().text(), (own - 1).to_string());
        } else {
            run.fails_with(&["oomScoreAdj", "permission denied"]);
        }
    });
}

#[test]
fn cache_and_bandwidth_are_refused_where_there_is_no_resctrl() {
    privileged(|host| {
        if fs::exists("/sys/fs/resctrl/schemata").unwrap() {
            return host.skip("resctrl is mounted");
        }
        let bundle = host.bundle(sleeping().set("/linux/intelRdt", json!({"l3CacheSchema": "L3:0=f"})));
        let words = ["/linux/intelRdt", "Intel RDT is not supported or enabled", "mount -t resctrl"];
        bundle.try_create().fails_with(&words);
        bundle.run().fails_with(&words);
    });
}
