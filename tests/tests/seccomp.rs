//! System call filters.

use coracle_fixtures::spec::docker_like_seccomp;
use coracle_tests::{Bundle, Host, Spec, command, privileged};
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
        for action in ["SCMP_ACT_KILL", "SCMP_ACT_KILL_THREAD", "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_TRAP"] {
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

#[test]
fn a_call_that_is_only_logged_is_made_and_one_for_a_tracer_that_is_not_there_is_not() {
    privileged(|host| {
        let run = |action| host.bundle(allowing_but(&mkdir(action, None)).args(["mkdir", "/tmp/new"])).run();
        run("SCMP_ACT_LOG").succeeds();
        run("SCMP_ACT_ALLOW").succeeds();
        assert!(run("SCMP_ACT_TRACE").exits(1).stderr.contains("Function not implemented"));
    });
}

#[test]
fn flags_do_not_keep_the_filter_from_being_loaded() {
    privileged(|host| {
        let flags = json!(["TSYNC", "LOG", "SPEC_ALLOW"].map(|flag| format!("SECCOMP_FILTER_FLAG_{flag}")));
        for no_new_privileges in [true, false] {
            let spec =
                allowing_but(&mkdir("SCMP_ACT_ERRNO", Some(28))).set("/linux/seccomp/flags", flags.clone());
            let spec = spec.set("/process/noNewPrivileges", no_new_privileges).args(["mkdir", "/tmp/new"]);
            assert!(host.bundle(spec).run().exits(1).stderr.contains("No space left"));
        }
    });
}

/// A bundle that makes the system call `number` by `way` into the kernel (see `fixtures/calls.c`) under `profile`, and
/// exits with its error number.
fn calling<'h>(host: &'h Host, way: &str, number: &str, profile: &Value) -> Bundle<'h> {
    let bundle =
        host.bundle(Spec::new().set("/linux/seccomp", profile.clone()).args(["/calls", way, number]));
    command::compile("calls.c", &bundle.rootfs().join("calls"));
    bundle
}

/// Whether this machine has the ways into the kernel that `fixtures/calls.c` knows.
fn has_i386(host: &Host) -> bool {
    let all = json!({"defaultAction": "SCMP_ACT_ALLOW"});
    let has = cfg!(target_arch = "x86_64")
        && host.needs_program("gcc")
        && calling(host, "i386", "64", &json!({"defaultAction": "SCMP_ACT_LOG", "architectures": ALL}))
            .run()
            .code
            == 0
        && calling(host, "x86_64", "110", &all).run().code == 0;
    if !has {
        host.skip("this kernel runs no i386 programs");
    }
    has
}

const ALL: [&str; 3] = ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"];

/// getppid(2) by each way.
const GETPPID: [(&str, &str); 3] = [("x86_64", "110"), ("i386", "64"), ("x32", "110")];

#[test]
fn each_architecture_is_filtered_by_its_own_numbers() {
    privileged(|host| {
        if !has_i386(host) {
            return;
        }
        let rules = json!([{"names": ["getppid"], "action": "SCMP_ACT_ERRNO", "errnoRet": 77}]);
        let profile = json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ALL, "syscalls": rules});
        for (way, number) in GETPPID {
            calling(host, way, number, &profile).run().exits(77);
        }
        // x86-64's number of getppid(2) is another call's on i386.
        assert_ne!(calling(host, "i386", "110", &profile).run().code, 77);
    });
}

#[test]
fn a_call_by_an_architecture_that_is_not_named_kills() {
    privileged(|host| {
        if !has_i386(host) {
            return;
        }
        let profile = json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"]});
        calling(host, "x86_64", "110", &profile).run().exits(0);
        calling(host, "i386", "64", &profile).run().exits(159);
        calling(host, "x32", "110", &profile).run().exits(159);
    });
}

#[test]
fn a_call_newer_than_the_profile_is_not_implemented() {
    privileged(|host| {
        if !has_i386(host) {
            return;
        }
        // All that the program and the runtime need, the last of them execveat, number 322.
        let names = [
            "execve",
            "execveat",
            "exit_group",
            "brk",
            "arch_prctl",
            "set_tid_address",
            "set_robust_list",
            "rseq",
            "prlimit64",
            "readlinkat",
            "getrandom",
            "mprotect",
            "mmap",
            "munmap",
            "fstat",
            "newfstatat",
            "readlink",
            "capset",
            "capget",
            "close",
            "sendmsg",
            "write",
            "prctl",
        ];
        let rule = json!([{"names": names, "action": "SCMP_ACT_ALLOW"}]);
        let profile = |more: Value| {
            let mut profile =
                json!({"defaultAction": "SCMP_ACT_ERRNO", "architectures": ALL, "syscalls": rule});
            profile.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
            profile
        };
        let number = |profile: &Value, number: &str| calling(host, "x86_64", number, profile).run().code;
        // rseq, 334, is the newest that is named; getppid is older, and clone3 and openat2 are newer.
        assert_eq!(number(&profile(json!({})), "110"), 1);
        assert_eq!((number(&profile(json!({})), "435"), number(&profile(json!({})), "437")), (38, 38));
        assert_eq!(number(&profile(json!({"defaultErrnoRet": 13})), "110"), 13);
        assert_eq!(number(&profile(json!({"defaultErrnoRet": 13})), "437"), 38);
    });
}

#[test]
fn a_filter_that_allows_nothing_ends_the_process() {
    privileged(|host| {
        if host.needs_coracle("the end by a signal") {
            let run = host.bundle(Spec::new().seccomp("SCMP_ACT_ERRNO", &json!([])).args(["true"])).run();
            assert!(run.code > 128, "{run:?}");
        }
    });
}
