//! What the operator asks of every container, by the options of built-in isolators.

use coracle_tests::{Host, Spec, privileged};
use serde_json::json;

fn with(host: &Host, isolator: &str, options: &str) -> Host {
    host.configured(&format!("[isolator.{isolator:?}]\n{options}\n"))
}

#[test]
fn no_process_gains_privileges_where_the_operator_says_so() {
    privileged(|host| {
        let status = || Spec::new().args(["grep", "NoNewPrivs", "/proc/self/status"]);
        let allowed = status().set("/process/noNewPrivileges", json!(false));
        assert_eq!(host.bundle(allowed).run().text(), "NoNewPrivs:\t0");
        let strict = with(host, "linux/nnp", "options = { always = true }");
        let allowed = status().set("/process/noNewPrivileges", json!(false));
        assert_eq!(strict.bundle(allowed).run().succeeds().text(), "NoNewPrivs:\t1");
        let container = strict.sleeper();
        let inside = container.exec(&["grep", "NoNewPrivs", "/proc/self/status"]);
        assert_eq!(inside.text(), "NoNewPrivs:\t1");
        container.remove();
    });
}

#[test]
fn processes_that_do_not_say_it_are_scheduled_as_the_operator_says() {
    privileged(|host| {
        let options = "options = { default = { policy = \"SCHED_BATCH\", nice = 3 }, \
                       policies = [\"SCHED_OTHER\", \"SCHED_BATCH\"] }";
        let host = with(host, "linux/scheduler", options);
        // The 19th and the 41st field (proc_pid_stat(5)).
        let told = || Spec::new().args(["sh", "-c", "cut -d' ' -f19,41 /proc/self/stat"]);
        assert_eq!(host.bundle(told()).run().succeeds().text(), "3 3");
        let asked = told().set("/process/scheduler", json!({"policy": "SCHED_OTHER", "nice": 1}));
        assert_eq!(host.bundle(asked).run().succeeds().text(), "1 0");
        let asked = told().set("/process/scheduler", json!({"policy": "SCHED_FIFO", "priority": 5}));
        host.bundle(asked).run().fails_with(&[
            "isolator linux/scheduler could not process: /process/scheduler/policy: SCHED_FIFO is not allowed",
            "allows SCHED_OTHER, SCHED_BATCH",
        ]);
    });
}

#[test]
fn kernel_parameters_are_set_for_all_and_asked_for_where_allowed() {
    privileged(|host| {
        let options = "options = { set = { \"net.ipv4.ip_unprivileged_port_start\" = \"80\" }, allow = [\"net.ipv4.*\"] }";
        let host = with(host, "linux/sysctl", options);
        let told = || Spec::new().args(["cat", "/proc/sys/net/ipv4/ip_unprivileged_port_start"]);
        assert_eq!(host.bundle(told()).run().succeeds().text(), "80");
        let asked = told().set("/linux/sysctl", json!({"net.ipv4.ip_unprivileged_port_start": "81"}));
        assert_eq!(host.bundle(asked).run().succeeds().text(), "81");
        let asked = told().set("/linux/sysctl", json!({"kernel.shm_rmid_forced": "1"}));
        host.bundle(asked)
            .run()
            .fails_with(&["linux/sysctl", "kernel.shm_rmid_forced is not allowed on this host"]);
    });
}

#[test]
fn devices_of_the_host_go_to_every_container() {
    privileged(|host| {
        let device = host.directory().join("fuse");
        let made = format!("mknod -m 666 {} c 10 229", device.display());
        host.shell(&made).succeeds();
        let told = || {
            let script = "stat -c '%F %t:%T' $0; (: <$0) 2>&1; (: >$0) 2>&1";
            Spec::new().args(["sh", "-c", script, device.to_str().unwrap()])
        };
        let options = format!("options = {{ add = [\"{}:r\"] }}", device.display());
        let lines = with(host, "linux/devices", &options).bundle(told()).run().lines();
        assert_eq!(lines[0], "character special file a:e5");
        let refused: Vec<&String> = lines.iter().filter(|line| line.contains("not permitted")).collect();
        assert_eq!(refused.len(), 1, "writing alone is refused: {lines:?}");
        assert!(refused[0].contains("can't create"), "{refused:?}");
        let gone = with(host, "linux/devices", "options = { add = [\"/dev/gone\"] }");
        gone.bundle(told()).run().fails_with(&["linux/devices", "/dev/gone", "is it there on this host?"]);
    });
}

#[test]
fn namespaces_that_are_required_are_not_the_hosts() {
    privileged(|host| {
        let host = with(host, "linux/namespaces", "options = { require = [\"pid\", \"ipc\"] }");
        let echo = || Spec::new().args(["echo", "ran"]);
        assert_eq!(host.bundle(echo()).run().succeeds().text(), "ran");
        for spec in [echo().without_namespace("ipc"), echo().join("ipc", "/proc/1/ns/ipc")] {
            host.bundle(spec).run().fails_with(&[
                "isolator linux/namespaces could not validate: /linux/namespaces: the ipc namespace would be the host's",
            ]);
        }
    });
}
