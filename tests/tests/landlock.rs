//! Rules of Landlock, by annotation.

use coracle_tests::{Host, Outcome, Spec, privileged};
use serde_json::{Value, json};

fn with_rules(rules: &Value) -> Spec {
    Spec::new().set("/annotations", json!({"io.coracle.landlock": rules.to_string()}))
}

/// All of the container's files for reading, `/tmp` for everything.
fn only_tmp_is_written() -> Value {
    let all = ["execute", "read_file", "read_dir", "write_file", "make_reg", "make_dir", "remove_file"];
    json!({"paths": [
        {"path": "/", "access": ["execute", "read_file", "read_dir"]},
        {"path": "/tmp", "access": all},
        {"path": "/dev/null", "access": ["read_file", "write_file", "read_dir"]},
    ]})
}

/// Whether the kernel takes `rules`; a skipped test is recorded if not.
fn kernel_takes(host: &Host, rules: &Value) -> bool {
    if !host.needs_coracle("Landlock by this annotation") {
        return false;
    }
    let lacking =
        |run: &Outcome| ["has no Landlock", "this kernel has no"].iter().any(|why| run.stderr.contains(why));
    let takes = !lacking(&host.bundle(with_rules(rules)).run());
    if !takes {
        host.skip("this kernel's Landlock has not all that is asked for");
    }
    takes
}

#[test]
fn only_what_a_path_allows_can_be_done_below_it() {
    privileged(|host| {
        let rules = only_tmp_is_written();
        if !kernel_takes(host, &rules) {
            return;
        }
        let script = "echo x > /tmp/file && cat /tmp/file /etc/hostname; echo y > /etc/new; mkdir /new; rm /etc/hostname";
        let run = host.bundle(with_rules(&rules).script(script)).with_file("etc/hostname", "name\n").run();
        assert_eq!(run.text(), "x\nname");
        assert_eq!(run.stderr.matches("Permission denied").count(), 3, "{}", run.stderr);
    });
}

#[test]
fn a_command_that_is_executed_has_the_containers_rules() {
    privileged(|host| {
        let rules = only_tmp_is_written();
        if !kernel_takes(host, &rules) {
            return;
        }
        let container = host.bundle(with_rules(&rules).args(["sleep", "100"])).start();
        container.exec(&["touch", "/tmp/file"]).succeeds();
        container.exec(&["touch", "/etc/file"]).fails_with(&["permission denied"]);
        container.remove();
    });
}

#[test]
fn they_hold_for_users_without_rights_and_without_no_new_privileges() {
    privileged(|host| {
        let rules = only_tmp_is_written();
        if !kernel_takes(host, &rules) {
            return;
        }
        for no_new_privileges in [true, false] {
            let spec = with_rules(&rules).user(1000, 1000).set("/process/noNewPrivileges", no_new_privileges);
            let spec = spec.script("cat /etc/hostname; echo x > /home/file; grep CapPrm /proc/self/status");
            let bundle = host.bundle(spec).with_file("etc/hostname", "name\n").with_file("home/file", "");
            let file = bundle.rootfs().join("home/file");
            std::os::unix::fs::chown(&file, Some(1000), Some(1000)).expect("give the file away");
            let run = bundle.run();
            assert_eq!(run.lines(), ["name", "CapPrm:\t0000000000000000"], "{}", run.stderr);
            assert!(run.stderr.contains("Permission denied"), "{}", run.stderr);
        }
    });
}

#[test]
fn a_port_that_is_not_allowed_can_be_neither_bound_nor_reached() {
    privileged(|host| {
        let rules =
            json!({"ports": [{"port": 80, "access": ["bind_tcp"]}, {"port": 81, "access": ["connect_tcp"]}]});
        if !kernel_takes(host, &rules) {
            return;
        }
        let run = |script: &str| host.bundle(with_rules(&rules).script(script)).run();
        run("nc -l -p 80 & sleep 0.2; kill $!").succeeds();
        assert!(run("nc -l -p 81").stderr.contains("Permission denied"));
        // Nobody listens, which is seen only by who may ask.
        assert!(run("nc 127.0.0.1 81").stderr.contains("Connection refused"));
        assert!(run("nc 127.0.0.1 80").stderr.contains("Permission denied"));
    });
}

#[test]
fn a_scope_keeps_signals_inside() {
    privileged(|host| {
        let rules = json!({"scoped": ["signal"]});
        if !kernel_takes(host, &rules) {
            return;
        }
        let container = host.bundle(with_rules(&rules).args(["sleep", "100"])).start();
        // Each command is a domain of its own, beside that of the container's first process.
        container.exec(&["kill", "-0", "1"]).fails_with(&["not permitted"]);
        container.exec(&["sh", "-c", "kill -0 $$"]).succeeds();
        container.remove();
    });
}

#[test]
fn a_link_in_the_container_leads_to_what_is_in_the_container() {
    privileged(|host| {
        let rules = json!({"paths": [
            {"path": "/bin", "access": ["execute", "read_file"]}, {"path": "/link", "access": ["read_file"]},
        ]});
        if !kernel_takes(host, &json!({"paths": [{"path": "/", "access": ["execute"]}]})) {
            return;
        }
        let bundle =
            host.bundle(with_rules(&rules).args(["cat", "/data/file"])).with_file("data/file", "inside");
        std::os::unix::fs::symlink("/data", bundle.rootfs().join("link")).expect("make a link");
        assert_eq!(bundle.run().succeeds().text(), "inside");
    });
}

#[test]
fn what_can_not_be_is_told_at_create() {
    privileged(|host| {
        if !kernel_takes(host, &only_tmp_is_written()) {
            return;
        }
        for (rules, words) in [
            (
                json!({"paths": [{"path": "/nowhere", "access": []}]}),
                ["/paths/0/path", "no such file or directory"],
            ),
            (
                json!({"handledAccessFs": 1_u64 << 60}),
                ["/handledAccessFs", "this kernel has no 0x1000000000000000"],
            ),
            (json!({"paths": [{"path": "x", "access": []}]}), ["/paths/0/path", "not an absolute path"]),
            (json!([]), ["/annotations/io.coracle.landlock: ", "it is no JSON object"]),
        ] {
            let at = "/annotations/io.coracle.landlock";
            host.bundle(with_rules(&rules)).try_create().fails_with(&[&[at], &words[..]].concat());
        }
    });
}

#[test]
fn what_the_kernel_lacks_is_left_out_where_that_is_asked_for() {
    privileged(|host| {
        let rules = json!({"handledAccessFs": 1_u64 << 60, "bestEffort": true});
        if !kernel_takes(host, &rules) {
            return;
        }
        let run = host.bundle(with_rules(&rules).args(["echo", "ran"])).run().exits(0);
        assert_eq!(run.text(), "ran");
        assert!(run.stderr.contains("has no 0x1000000000000000, left out"), "{}", run.stderr);
    });
}
