//! Kernel parameters: those of the pod's own namespaces, as far as the operator allows.

use std::fs;

use coracle_tests::pod::Pods;
use coracle_tests::privileged;

fn pod(sysctls: &str, more: &str) -> String {
    format!(
        "
  terminationGracePeriodSeconds: 0
  securityContext: {{sysctls: [{sysctls}]}}
  containers: [{{name: main, image: IMAGE, command: [sleep, '1000']}}]
{more}"
    )
}

const PORT: &str = "/proc/sys/net/ipv4/ip_unprivileged_port_start";

#[test]
fn kernel_parameters_of_a_pod_are_set_in_its_namespaces_alone() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        let before = fs::read_to_string(PORT).unwrap();
        let named = "{name: net.ipv4.ip_unprivileged_port_start, value: '81'}, {name: kernel/shm_rmid_forced, value: '1'}";
        pods.run("web", &pod(named, ""));
        assert_eq!(pods.exec("web", &["cat", PORT]).succeeds().text(), "81");
        assert_eq!(pods.exec("web", &["cat", "/proc/sys/kernel/shm_rmid_forced"]).succeeds().text(), "1");
        assert_eq!(fs::read_to_string(PORT).unwrap(), before);
        pods.remove("web");
    });
}

#[test]
fn no_kernel_parameter_of_a_pod_writes_a_file_of_the_host() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        fs::write("/run/test/victim", "mine").unwrap();
        let elsewhere = "{name: kernel/../../../run/test/victim, value: theirs}";
        let run = pods.make("run", "web", &pod(elsewhere, ""));
        run.fails_with(&["/spec/securityContext/sysctls/0: ", "is malformed"]);
        assert_eq!(fs::read_to_string("/run/test/victim").unwrap(), "mine");
    });
}

#[test]
fn no_kernel_parameter_of_a_network_that_is_the_hosts_is_set() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        let before = fs::read_to_string(PORT).unwrap();
        let named = "{name: net.ipv4.ip_unprivileged_port_start, value: '81'}";
        let run = pods.make("run", "web", &pod(named, "  hostNetwork: true\n"));
        run.fails_with(&["/spec/securityContext/sysctls/0: ", "the pod has no network namespace of its own"]);
        assert_eq!(fs::read_to_string(PORT).unwrap(), before);
    });
}

#[test]
fn what_the_operator_says_of_kernel_parameters_holds_for_pods() {
    privileged(|host| {
        let options = "options = { set = { \"net.ipv4.ip_unprivileged_port_start\" = \"80\" }, allow = [\"net.ipv4.*\"] }";
        let host = host.configured(&format!("[isolator.\"linux/sysctl\"]\n{options}\n"));
        let Some(pods) = Pods::new(&host) else { return };
        pods.run("web", &pod("", ""));
        assert_eq!(pods.exec("web", &["cat", PORT]).succeeds().text(), "80");
        pods.remove("web");
        pods.run("web", &pod("{name: net/ipv4/ip_unprivileged_port_start, value: '81'}", ""));
        assert_eq!(pods.exec("web", &["cat", PORT]).succeeds().text(), "81");
        pods.remove("web");
        let run = pods.make("run", "web", &pod("{name: kernel.shm_rmid_forced, value: '1'}", ""));
        run.fails_with(&["linux/sysctl", "kernel.shm_rmid_forced is not allowed on this host"]);
        pods.remove("web");
    });
}
