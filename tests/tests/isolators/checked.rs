//! `isolator ls`, `inspect` and `check`; `stats` for Prometheus.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use coracle_tests::{Spec, plugin, privileged};

use super::{HOSTILE, NAME, spoiled};

#[test]
fn isolators_are_listed_in_the_order_of_their_calls_with_where_they_come_from() {
    privileged(|host| {
        let configured = spoiled(host, &[], "");
        let lines = configured.call(&["isolator", "ls"]).succeeds().lines();
        assert!(lines[0].starts_with("ISOLATOR "), "{lines:?}");
        assert!(lines.iter().any(|line| line.starts_with("cgroups/memory") && line.ends_with("built in")));
        let last = lines.last().unwrap();
        assert!(last.starts_with(NAME) && last.ends_with("/plugin.so"), "{last}");
        let one = configured.call(&["isolator", "inspect", NAME]).succeeds().json();
        assert_eq!((&one["version"], &one["deadline"]), (&"1".into(), &5.0.into()));
        assert_eq!(one["supports"], serde_json::json!(["oci", "pod", "nested", "debug"]));
        configured
            .call(&["isolator", "inspect", "no/body"])
            .fails_with(&["there is no isolator \"no/body\""]);
        let broken = host.with_plugin(NAME, "/gone.so".as_ref(), "");
        let lines = broken.call(&["isolator", "ls"]).succeeds().text();
        assert!(lines.contains("could not load: there is no /gone.so"), "{lines}");
    });
}

#[test]
fn a_plugin_without_fault_passes_the_check_without_root() {
    privileged(|host| {
        let object = plugin::compiled(host, "isolators/template-c/nofile.c", &[]);
        let copy = "/run/test/nofile.so";
        fs::copy(&object, copy).unwrap();
        let check = |user: &str| {
            host.shell(&format!("{user} $RUNTIME isolator check --options '{{\"limit\":5}}' {copy}"))
        };
        for user in ["", "setpriv --reuid 1000 --regid 1000 --clear-groups"] {
            let text = check(user).succeeds().text();
            assert!(text.contains("isolator    example/nofile"), "{text}");
            assert!(text.ends_with("nothing is wrong with it"), "{text}");
        }
    });
}

#[test]
fn the_check_tells_all_that_is_wrong_at_once() {
    privileged(|host| {
        let check = |options: &[&str], mode: u32| {
            let object = plugin::compiled(host, HOSTILE, options);
            fs::set_permissions(&object, fs::Permissions::from_mode(mode)).unwrap();
            host.call(&["isolator", "check", object.to_str().unwrap()]).exits(1).text()
        };
        let text = check(&["-DBAD_NAME", "-DNO_KIND"], 0o777);
        for words in
            ["can be written by others", "is not of the form family/subject", "name no kind of container"]
        {
            assert!(text.contains(words), "{words}: {text}");
        }
        let text = check(&["-DIN=\"prepare\"", "-DDO=malformed"], 0o755);
        assert!(text.contains("wrong: prepare: its adjustment is malformed: EOF"), "{text}");
        let text = check(&["-DIN=\"cleanup\"", "-DDO=crash"], 0o755);
        assert!(text.contains("wrong: cleanup: its process was killed by SIGSEGV"), "{text}");
        let text = check(&["-DNO_FUNCTIONS"], 0o755);
        assert!(text.contains("wrong: it implements no call"), "{text}");
        let text = check(&["-DOTHER_VERSION"], 0o755);
        assert!(text.contains("it speaks version 9"), "{text}");
        host.call(&["isolator", "check", "/gone.so"]).fails_with(&["opening /gone.so", "no such file"]);
    });
}

#[test]
fn usage_is_told_for_prometheus_and_by_network_interface() {
    privileged(|host| {
        let container = host.bundle(Spec::new().script("ping -c 3 -i 0.1 127.0.0.1; sleep 1000")).start();
        let json = || container.call("stats").succeeds().json();
        coracle_tests::command::eventually("an interface", || json()["network"]["lo"].is_object());
        assert!(json()["cpu"]["throttledPeriods"].is_u64());
        assert!(json()["memory"]["oomKills"].is_u64());
        let text = container.verb_with("stats", &["--format", "prometheus"]).succeeds().text();
        let id = container.id();
        for sample in [
            format!(
                "# TYPE container_cpu_seconds_total counter\ncontainer_cpu_seconds_total{{id=\"{id}\"}} "
            ),
            format!("container_memory_oom_kills_total{{id=\"{id}\"}} 0"),
            format!("container_network_receive_bytes_total{{id=\"{id}\",interface=\"lo\"}} "),
            format!("container_tasks{{id=\"{id}\"}} "),
        ] {
            assert!(text.contains(&sample), "{sample}\n{text}");
        }
        container.remove();
    });
}
