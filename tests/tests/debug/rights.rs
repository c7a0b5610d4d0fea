//! What a session may do.

use coracle_tests::{Spec, cgroup, command, privileged};
use serde_json::json;

use crate::{Session, can_debug, debug, sessions};

const STATUS: [&str; 3] = ["sh", "-c", "grep -E '^(Cap|NoNewPrivs|Seccomp:|Uid|Groups)' /proc/self/status"];

#[test]
fn its_rights_are_the_targets() {
    privileged(|host| {
        if !can_debug(host) {
            return;
        }
        let spec = Spec::new()
            .capabilities(&["CAP_KILL", "CAP_NET_RAW"])
            .set("/process/noNewPrivileges", true)
            .seccomp("SCMP_ACT_ALLOW", &json!([{"names": ["mknod"], "action": "SCMP_ACT_ERRNO"}]))
            .args(["sleep", "1000"]);
        let target = host.bundle(spec).start();
        let inside = debug(host, &[], target.id(), &STATUS).succeeds().text();
        assert_eq!(inside, target.exec(&STATUS).succeeds().text());
        target.remove();
    });
}

#[test]
fn a_capability_more_is_one_more_and_reaches_other_users_too() {
    privileged(|host| {
        if !can_debug(host) {
            return;
        }
        let target = host.bundle(Spec::new().capabilities(&["CAP_KILL"]).args(["sleep", "1000"])).start();
        let effective = |options: &[&str]| {
            debug(host, options, target.id(), &["grep", "CapEff", "/proc/self/status"]).succeeds().text()
        };
        assert_eq!(effective(&[]), "CapEff:\t0000000000000020");
        assert_eq!(effective(&["--cap-add", "SYS_PTRACE"]), "CapEff:\t0000000000080020");
        assert_eq!(effective(&["--cap-add", "sys_ptrace", "-u", "1000"]), "CapEff:\t0000000000080000");
        let words = ["--cap-add: no capability is named \"FLY\""];
        debug(host, &["--cap-add", "FLY"], target.id(), &["true"]).fails_with(&words);
        target.remove();
    });
}

#[test]
fn with_all_rights_nothing_confines_it() {
    privileged(|host| {
        if !can_debug(host) {
            return;
        }
        let spec = Spec::new()
            .set("/process/noNewPrivileges", true)
            .seccomp("SCMP_ACT_ALLOW", &json!([{"names": ["mknod"], "action": "SCMP_ACT_ERRNO"}]))
            .args(["sleep", "1000"]);
        let target = host.bundle(spec).start();
        let script = "grep -E 'NoNewPrivs|Seccomp:' /proc/self/status; mount -t tmpfs x /tmp && echo mounted";
        let run = debug(host, &["--privileged"], target.id(), &["sh", "-c", script]).succeeds();
        assert_eq!(run.lines(), ["NoNewPrivs:\t0", "Seccomp:\t0", "mounted"]);
        target.remove();
    });
}

#[test]
fn its_user_is_the_targets_unless_another_is_named() {
    privileged(|host| {
        if !can_debug(host) {
            return;
        }
        let target = host.bundle(Spec::new().user(1000, 1000).args(["sleep", "1000"])).start();
        assert_eq!(debug(host, &[], target.id(), &["id", "-u"]).succeeds().text(), "1000");
        assert_eq!(debug(host, &["--user", "0"], target.id(), &["id", "-u"]).succeeds().text(), "0");
        debug(host, &["--user", "-1"], target.id(), &["true"])
            .fails_with(&["--user \"-1\" is not UID[:GID]"]);
        target.remove();
    });
}

#[test]
fn its_cgroup_is_beside_the_targets_with_limits_of_its_own() {
    privileged(|host| {
        if !can_debug(host) {
            return;
        }
        let target = host.bundle(Spec::new().memory(64 << 20).args(["sleep", "1000"])).start();
        let mut session = Session::start(host, &["--pids", "7"], target.id(), "sleep 1000");
        let own = format!("{}.debug-1", target.id());
        assert_eq!(cgroup::read(&own, "pids.max").as_deref(), Some("7"));
        assert_eq!(cgroup::hierarchies_of(&format!("{}/{own}", target.id())).len(), 0);
        for hierarchy in cgroup::hierarchies_of(&own) {
            assert_eq!(cgroup::members(&hierarchy).len(), 1, "{hierarchy:?}");
        }
        for hierarchy in cgroup::hierarchies_of(target.id()) {
            assert_eq!(cgroup::members(&hierarchy), [target.pid()], "{hierarchy:?}");
        }
        session.kill_client();
        target.remove();
    });
}

#[test]
fn what_it_uses_kills_itself_and_not_the_target() {
    privileged(|host| {
        if !can_debug(host) {
            return;
        }
        let target = host.bundle(Spec::new().memory(64 << 20).args(["sleep", "1000"])).start();
        let eats = ["sh", "-c", "tail /dev/zero"];
        debug(host, &["--memory", "16m"], target.id(), &eats).exits(137);
        assert_eq!(target.status(), "running");
        command::eventually("no session is left", || sessions(host).is_empty());
        target.remove();
    });
}

#[test]
fn rules_of_landlock_hold_for_it_too() {
    privileged(|host| {
        if !can_debug(host) {
            return;
        }
        let rules = json!({"paths": [{"path": "/", "access": ["execute", "read_file", "read_dir"]},
            {"path": "/dev", "access": ["read_file", "write_file", "read_dir"]}]});
        let spec = Spec::new()
            .set("/annotations", json!({"io.coracle.landlock": rules.to_string()}))
            .args(["sleep", "1000"]);
        let bundle = host.bundle(spec);
        if bundle.try_create().code != 0 {
            return host.skip("this kernel's Landlock has not all that is asked for");
        }
        let id = bundle.id();
        host.call(&["start", id]).succeeds();
        let writes = ["sh", "-c", "echo x > /file"];
        debug(host, &[], id, &writes).fails_with(&["permission denied"]);
        debug(host, &["--privileged"], id, &writes).succeeds();
        host.call(&["delete", "--force", id]).succeeds();
    });
}
