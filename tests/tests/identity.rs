//! Who the process is: users, groups, capabilities, limits, privileges.

#![expect(clippy::unwrap_used, reason = "a helper of the tests fails as a test does")]

use coracle_tests::{Host, Outcome, Spec, privileged};
use serde_json::json;

fn field(run: &Outcome, name: &str) -> String {
    let line = run.lines().into_iter().find(|line| line.starts_with(name));
    line.and_then(|line| line.split_whitespace().nth(1).map(str::to_owned)).unwrap_or_default()
}

fn status(host: &Host, spec: Spec) -> Outcome {
    host.bundle(spec.args(["cat", "/proc/self/status"])).run().succeeds()
}

const KILL: u64 = 1 << 5;
const NET_RAW: u64 = 1 << 13;
const SYS_CHROOT: u64 = 1 << 18;

fn mask(run: &Outcome, name: &str) -> u64 {
    u64::from_str_radix(&field(run, name), 16).unwrap()
}

#[test]
fn each_capability_set_is_as_asked() {
    privileged(|host| {
        let sets = json!({
            "bounding": ["CAP_KILL", "CAP_NET_RAW", "CAP_SYS_CHROOT"],
            "permitted": ["CAP_KILL", "CAP_NET_RAW"],
            "effective": ["CAP_KILL"],
            "inheritable": ["CAP_NET_RAW"],
            "ambient": ["CAP_NET_RAW"]
        });
        let run = status(host, Spec::new().user(1000, 1000).set("/process/capabilities", sets));
        assert_eq!(mask(&run, "CapBnd"), KILL | NET_RAW | SYS_CHROOT);
        assert_eq!(mask(&run, "CapInh"), NET_RAW);
        assert_eq!(mask(&run, "CapAmb"), NET_RAW);
        // After execve of a user other than root only the ambient set is left (capabilities(7)).
        assert_eq!(mask(&run, "CapPrm"), NET_RAW);
        assert_eq!(mask(&run, "CapEff"), NET_RAW);
    });
}

#[test]
fn root_has_what_the_bounding_set_allows_and_nothing_inheritable() {
    privileged(|host| {
        let run = status(host, Spec::new().capabilities(&["CAP_KILL", "CAP_SYS_CHROOT"]));
        for set in ["CapBnd", "CapPrm", "CapEff"] {
            assert_eq!(mask(&run, set), KILL | SYS_CHROOT, "{set}");
        }
        assert_eq!((mask(&run, "CapInh"), mask(&run, "CapAmb")), (0, 0));
    });
}

#[test]
fn no_capabilities_are_none_at_all() {
    privileged(|host| {
        let run = status(host, Spec::new().capabilities(&[]));
        for set in ["CapBnd", "CapPrm", "CapEff", "CapInh", "CapAmb"] {
            assert_eq!(mask(&run, set), 0, "{set}");
        }
    });
}

#[test]
fn no_new_privileges_is_as_asked() {
    privileged(|host| {
        let asked = |value: bool| status(host, Spec::new().set("/process/noNewPrivileges", value));
        assert_eq!(field(&asked(true), "NoNewPrivs"), "1");
        assert_eq!(field(&asked(false), "NoNewPrivs"), "0");
    });
}

#[test]
fn users_and_groups_are_as_asked() {
    privileged(|host| {
        let user = json!({"uid": 1000, "gid": 1001, "additionalGids": [5, 2000]});
        let run = status(host, Spec::new().set("/process/user", user));
        let line = |name: &str| run.lines().into_iter().find(|line| line.starts_with(name)).unwrap();
        assert_eq!(line("Uid").split_whitespace().skip(1).collect::<Vec<_>>(), ["1000"; 4]);
        assert_eq!(line("Gid").split_whitespace().skip(1).collect::<Vec<_>>(), ["1001"; 4]);
        let groups: Vec<u32> =
            line("Groups").split_whitespace().skip(1).map(|id| id.parse().unwrap()).collect();
        assert!(groups.iter().all(|id| [5, 1001, 2000].contains(id)), "{groups:?}");
        assert!(groups.contains(&5) && groups.contains(&2000), "{groups:?}");
    });
}

#[test]
fn the_hosts_groups_are_not_kept() {
    privileged(|host| {
        let run = status(host, Spec::new().user(1000, 1000));
        let line = run.lines().into_iter().find(|line| line.starts_with("Groups")).unwrap();
        assert!(line.split_whitespace().skip(1).all(|id| id == "1000"), "{line}");
    });
}

/// As `podman run --group-add keep-groups` asks.
#[test]
fn the_callers_groups_are_kept_where_that_is_asked_for() {
    privileged(|host| {
        let keep = |value: &str| Spec::new().set("/annotations/run.oci.keep_original_groups", value);
        let groups = |spec: Spec| {
            let bundle = host.bundle(spec.user(1000, 1000).args(["grep", "^Groups", "/proc/self/status"]));
            let directory = bundle.directory().display();
            let id = host.name("kept");
            host.shell(&format!("exec setpriv --groups 5,2000 $RUNTIME run --bundle {directory} {id}"))
                .succeeds()
                .text()
        };
        assert_eq!(groups(keep("1")).split_whitespace().collect::<Vec<_>>(), ["Groups:", "5", "2000"]);
        assert_eq!(groups(keep("0")), "Groups:");
        let both = keep("1").set("/process/user/additionalGids", json!([7]));
        host.bundle(both).run().fails_with(&["/process/user/additionalGids", "keep_original_groups"]);
    });
}

#[test]
fn the_umask_is_as_asked() {
    privileged(|host| {
        let run = |spec: Spec| field(&status(host, spec), "Umask");
        assert_eq!(run(Spec::new()), "0022");
        assert_eq!(run(Spec::new().set("/process/user/umask", 0o077)), "0077");
    });
}

#[test]
fn resource_limits_are_as_asked() {
    privileged(|host| {
        let limits = json!([
            {"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200},
            {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
            {"type": "RLIMIT_STACK", "soft": 1_048_576, "hard": 2_097_152}
        ]);
        let spec = Spec::new().set("/process/rlimits", limits).args(["cat", "/proc/self/limits"]);
        let run = host.bundle(spec).run().succeeds();
        let limit = |name: &str| {
            let line = run.lines().into_iter().find(|line| line.starts_with(name)).unwrap();
            line[26..].split_whitespace().take(2).map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(limit("Max open files"), ["100", "200"]);
        assert_eq!(limit("Max core file size"), ["0", "0"]);
        assert_eq!(limit("Max stack size"), ["1048576", "2097152"]);
    });
}

#[test]
fn a_limit_above_the_runtimes_own_is_refused_where_it_can_not_raise_it() {
    privileged(|host| {
        if !host.needs_coracle("hard limits that are looked at before the container is made") {
            return;
        }
        let limits = json!([{"type": "RLIMIT_NOFILE", "soft": 100, "hard": 100_000}]);
        let bundle = host.bundle(Spec::new().set("/process/rlimits", limits));
        let (directory, id) = (bundle.directory().display(), bundle.id());
        let create = format!(
            "ulimit -n 500; capsh --drop=cap_sys_resource -- -c '$RUNTIME create -b {directory} {id}'"
        );
        let create = if host.needs_program("capsh") { create } else { return };
        let words = "/process/rlimits/0/hard: RLIMIT_NOFILE: 100000 is above the runtime's own hard limit 500; ask for";
        host.shell(&create).fails_with(&[words]);
    });
}

#[test]
fn with_too_few_descriptors_a_launch_fails_and_says_what_to_raise() {
    privileged(|host| {
        if !host.needs_coracle("advice on open files") || !host.needs_program("prlimit") {
            return;
        }
        let spec = Spec::new().args(["true"]).set("/linux/resources", json!({}));
        let bundle = host.bundle(spec);
        let (directory, id) = (bundle.directory().display(), bundle.id());
        // Without cgroups, nothing is looked for before the state is made.
        for (limit, manager) in (5..14).flat_map(|limit| [(limit, "cgroupfs"), (limit, "disabled")]) {
            let run = format!("$RUNTIME --cgroup-manager {manager} run -b {directory} {id} 2>&1");
            let run = host.shell(&format!("prlimit --nofile={limit}: {run}"));
            if run.code != 0 {
                assert!(run.text().contains("raise the limit of open files (ulimit -n)"), "{limit}: {run:?}");
            }
            host.call(&["state", id]).fails_with(&["does not exist"]);
        }
    });
}

#[test]
fn an_unknown_limit_is_named() {
    privileged(|host| {
        let limits = json!([{"type": "RLIMIT_NONSENSE", "soft": 1, "hard": 1}]);
        host.bundle(Spec::new().set("/process/rlimits", limits)).run().fails_with(&["RLIMIT_NONSENSE"]);
    });
}

#[test]
fn the_oom_score_is_as_asked() {
    privileged(|host| {
        let spec = Spec::new().set("/process/oomScoreAdj", 500).args(["cat", "/proc/self/oom_score_adj"]);
        assert_eq!(host.bundle(spec).run().succeeds().text(), "500");
    });
}

#[test]
fn a_user_without_rights_can_read_what_all_may() {
    privileged(|host| {
        let bundle = host.bundle(
            Spec::new()
                .user(1000, 1000)
                .capabilities(&[])
                .script("cat /etc/passwd >/dev/null; touch /new || echo refused"),
        );
        assert_eq!(bundle.run().succeeds().text(), "refused");
    });
}
