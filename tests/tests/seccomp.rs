//! System call filters.

use coracle_fixtures::spec::docker_like_seccomp;
use coracle_tests::{Spec, privileged};
use serde_json::{Value, json};

fn mkdir(action: &str, number: Option<u32>) -> Value {
    let mut rule = json!({"names": ["mkdir", "mkdirat"], "action": action});
    if let Some(number) = number {
        rule["errnoRet"] = number.into();
    }
    json!([rule])
}

fn allowing_but(rules: &Value) -> Spec {
    Spec::new().seccomp("SCMP_ACT_ALLOW", rules)
}

#[test]
fn a_refused_call_gets_the_number_of_the_rule() {
    privileged(|host| {
        let run = |number| {
            let spec = allowing_but(&mkdir("SCMP_ACT_ERRNO", number)).args(["mkdir", "/tmp/new"]);
            host.bundle(spec).run().exits(1).stderr
        };
        assert!(run(None).contains("Operation not permitted"));
        assert!(run(Some(28)).contains("No space left"));
    });
}

#[test]
fn a_call_that_kills_ends_the_process_by_sigsys() {
    privileged(|host| {
        for action in ["SCMP_ACT_KILL", "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_TRAP"] {
            let spec = allowing_but(&mkdir(action, None)).script("mkdir /tmp/new; echo $?");
            let run = host.bundle(spec).run().exits(0);
            assert_eq!(run.text(), "159", "{action}");
        }
    });
}

#[test]
fn arguments_decide() {
    privileged(|host| {
        let rule = |op: &str, value: u64| {
            json!([{"names": ["kill"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95,
                    "args": [{"index": 1, "value": value, "op": op}]}])
        };
        let kill = |rules: &Value, signal: &str| {
            let spec = allowing_but(rules)
                .script(&format!("kill -{signal} $$ 2>/dev/null && echo sent || echo refused"));
            host.bundle(spec).run().text()
        };
        assert_eq!(kill(&rule("SCMP_CMP_EQ", 17), "17"), "refused");
        assert_eq!(kill(&rule("SCMP_CMP_EQ", 17), "18"), "sent");
        assert_eq!(kill(&rule("SCMP_CMP_NE", 17), "17"), "sent");
        assert_eq!(kill(&rule("SCMP_CMP_GE", 17), "17"), "refused");
        assert_eq!(kill(&rule("SCMP_CMP_GT", 17), "17"), "sent");
        assert_eq!(kill(&rule("SCMP_CMP_LE", 17), "17"), "refused");
        assert_eq!(kill(&rule("SCMP_CMP_LT", 17), "17"), "sent");
    });
}

#[test]
fn a_masked_argument_decides() {
    privileged(|host| {
        let rules = json!([{"names": ["kill"], "action": "SCMP_ACT_ERRNO",
                            "args": [{"index": 1, "value": 16, "valueTwo": 16, "op": "SCMP_CMP_MASKED_EQ"}]}]);
        let kill = |signal: &str| {
            let script = format!("kill -{signal} $$ 2>/dev/null && echo sent || echo refused");
            host.bundle(allowing_but(&rules).script(&script)).run().text()
        };
        assert_eq!((kill("17").as_str(), kill("28").as_str()), ("refused", "refused"));
    });
}

#[test]
fn what_is_not_listed_gets_the_default() {
    privileged(|host| {
        let run = |script: &str| {
            let spec = Spec::new().set("/linux/seccomp", docker_like_seccomp()).script(script);
            host.bundle(spec).run()
        };
        assert_eq!(
            run("echo works; mkdir /tmp/new; ls -d /tmp/new").succeeds().lines(),
            ["works", "/tmp/new"]
        );
        assert!(run("unshare -m true").stderr.contains("not permitted"));
        assert!(run("swapoff /nothing").stderr.contains("not permitted"));
    });
}

#[test]
fn the_filter_is_on_and_status_says_so() {
    privileged(|host| {
        let script = "grep -E '^Seccomp:' /proc/self/status";
        let with = host.bundle(allowing_but(&mkdir("SCMP_ACT_ERRNO", None)).script(script)).run().succeeds();
        assert_eq!(with.text().split_whitespace().last(), Some("2"));
        let without = host.bundle(Spec::new().script(script)).run().succeeds();
        assert_eq!(without.text().split_whitespace().last(), Some("0"));
    });
}

#[test]
fn it_works_with_and_without_no_new_privileges() {
    privileged(|host| {
        for value in [true, false] {
            let spec = allowing_but(&mkdir("SCMP_ACT_ERRNO", None)).set("/process/noNewPrivileges", value);
            host.bundle(spec.args(["mkdir", "/tmp/new"])).run().exits(1);
        }
    });
}

#[test]
fn a_name_that_no_kernel_knows_is_passed_over() {
    privileged(|host| {
        let rules = json!([{"names": ["no_such_call", "mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}]);
        host.bundle(allowing_but(&rules).args(["mkdir", "/tmp/new"])).run().exits(1);
    });
}

#[test]
fn an_unknown_action_is_named() {
    privileged(|host| {
        host.bundle(Spec::new().seccomp("SCMP_ACT_NONSENSE", &json!([])))
            .run()
            .fails_with(&["SCMP_ACT_NONSENSE"]);
    });
}
