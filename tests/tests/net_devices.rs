//! `linux.netDevices`: interfaces of the host that move into a container. The host is the test's own network namespace.

use coracle_tests::command::tool;
use coracle_tests::{Host, Outcome, Spec, privileged, unprivileged};
use serde_json::{Value, json};

/// A pair of interfaces on the test's host, joined back to back: what goes into the one comes out of the other.
fn pair(one: &str, other: &str) {
    ip(&["link", "add", one, "type", "veth"]);
    // busybox has no word for the name that the other one gets.
    ip(&["link", "set", "veth0", "name", other]);
}

fn ip(args: &[&str]) {
    tool("busybox", &[&["ip"], args].concat());
}

fn moving(devices: Value) -> Spec {
    Spec::new().set("/linux/netDevices", devices)
}

fn run(host: &Host, spec: Spec) -> Outcome {
    host.bundle(spec).run()
}

fn is_on_host(name: &str) -> bool {
    std::path::Path::new("/sys/class/net").join(name).exists()
}

#[test]
fn an_interface_moves_with_its_addresses_and_carries_traffic() {
    privileged(|host| {
        if !host.needs_coracle("interfaces that move") {
            return;
        }
        pair("inner", "outer");
        ip(&["addr", "add", "10.11.0.1/24", "dev", "inner"]);
        ip(&["-6", "addr", "add", "fd11::1/64", "dev", "inner"]);
        ip(&["-6", "addr", "add", "fe80::1234/64", "dev", "inner"]);
        ip(&["addr", "add", "10.11.0.2/24", "dev", "outer"]);
        ip(&["link", "set", "inner", "up"]);
        ip(&["link", "set", "outer", "up"]);
        let script = "ip -o addr show dev eth7; ip link show eth7; ping -c 1 -W 5 10.11.0.2";
        let spec = moving(json!({"inner": {"name": "eth7"}})).script(script).capabilities(&["CAP_NET_RAW"]);
        let text = run(host, spec).succeeds().text();
        for words in ["inet 10.11.0.1/24 ", "inet6 fd11::1/64 ", "eth7@", ",UP", "1 packets received"] {
            assert!(text.contains(words), "{words}: {text}");
        }
        assert!(!text.contains("fe80::1234"), "an address of the link belongs to the host: {text}");
    });
}

#[test]
fn a_name_is_kept_unless_another_is_given() {
    privileged(|host| {
        if !host.needs_coracle("interfaces that move") {
            return;
        }
        pair("first", "first-peer");
        pair("second", "second-peer");
        let spec = moving(json!({"first": {}, "second": {"name": "other"}}));
        let text = run(host, spec.args(["ls", "/sys/class/net"])).succeeds().text();
        assert_eq!(text.split_whitespace().collect::<Vec<_>>(), ["first", "lo", "other"]);
    });
}

#[test]
fn what_is_not_there_is_refused_and_nothing_moves() {
    privileged(|host| {
        if !host.needs_coracle("interfaces that move") {
            return;
        }
        pair("there", "peer");
        let refused = run(host, moving(json!({"there": {}, "zz": {}})));
        refused.fails_with(&["/linux/netDevices/zz", "no such device", "no interface of this name"]);
        let refused = run(host, moving(json!({"there": {"name": "lo"}})));
        refused.fails_with(&["/linux/netDevices/there", "has an interface \"lo\" already"]);
        let refused = run(host, moving(json!({"lo": {"name": "lo1"}})));
        refused.fails_with(&["/linux/netDevices/lo", "invalid argument", "lo among them"]);
        assert!(is_on_host("there") && is_on_host("lo"));
        ip(&["link", "delete", "there"]);
    });
}

#[test]
fn an_interface_found_by_another_of_its_names_is_never_lost() {
    privileged(|host| {
        if !host.needs_coracle("interfaces that come back") || !host.needs_program("ip") {
            return;
        }
        pair("inner", "outer");
        tool("ip", &["link", "property", "add", "dev", "inner", "altname", "second"]);
        ip(&["link", "set", "inner", "up"]);
        let refused = run(host, moving(json!({"inner": {"name": "y"}, "second": {"name": "z"}})));
        refused.fails_with(&["/linux/netDevices/second", "\"inner\" is the same interface"]);
        let refused = run(host, moving(json!({"inner": {"name": "second"}})));
        refused.fails_with(&["\"second\" is an alternative name of \"inner\" itself"]);
        run(host, moving(json!({"second": {"name": "x"}})).args(["/not/there"])).fails_with(&["/not/there"]);
        assert!(is_on_host("inner") && tool("busybox", &["ip", "link", "show", "inner"]).contains(",UP"));
        let listed =
            run(host, moving(json!({"second": {}})).args(["ls", "/sys/class/net"])).succeeds().text();
        assert_eq!(listed.split_whitespace().collect::<Vec<_>>(), ["inner", "lo"]);
    });
}

/// The kernel would end them with the network namespace.
#[test]
fn where_a_launch_fails_they_come_back_as_they_were() {
    privileged(|host| {
        if !host.needs_coracle("interfaces that come back") {
            return;
        }
        pair("inner", "outer");
        ip(&["addr", "add", "10.11.0.1/24", "dev", "inner"]);
        ip(&["link", "set", "inner", "up"]);
        let devices = json!({"inner": {"name": "eth0"}, "outer": {}});
        let spec = || moving(devices.clone());
        let first = host.sleeper();
        let network = format!("/proc/{}/ns/net", first.pid());
        run(host, spec().args(["/not/there"])).fails_with(&["/not/there"]);
        run(host, spec().hook("createRuntime", &["/bin/false"])).fails_with(&["createRuntime"]);
        run(host, spec().join("network", &network).args(["/not/there"])).fails_with(&["/not/there"]);
        host.bundle(spec().mount("/data", "bind", "/not/there", &["bind"]))
            .try_create()
            .fails_with(&["/not/there"]);
        first.remove();
        let told = tool("busybox", &["ip", "addr", "show"]);
        assert!(told.contains("inet 10.11.0.1/24 scope global inner"), "{told}");
        let state = |name: &str| tool("busybox", &["ip", "link", "show", name]).contains(",UP");
        assert_eq!((state("inner"), state("outer")), (true, false));
        ip(&["link", "delete", "inner"]);
    });
}

#[test]
fn what_can_not_move_stays_up_with_its_addresses() {
    privileged(|host| {
        if !host.needs_coracle("interfaces that can't move") {
            return;
        }
        ip(&["link", "set", "lo", "up"]);
        ip(&["link", "add", "br7", "type", "bridge"]);
        ip(&["-6", "addr", "add", "fd17::1/64", "dev", "br7"]);
        ip(&["link", "set", "br7", "up"]);
        for (name, address) in [("lo", "inet6 ::1/128"), ("br7", "inet6 fd17::1/64")] {
            let refused = run(host, moving(json!({name: {"name": "new"}})));
            refused.fails_with(&["/linux/netDevices", "invalid argument"]);
            let told = tool("busybox", &["ip", "addr", "show", "dev", name]);
            assert!(told.contains(",UP") && told.contains(address), "{told}");
        }
        ip(&["link", "delete", "br7"]);
    });
}

/// The network that it was to move to takes no address of IPv6.
#[test]
fn what_did_not_get_its_addresses_comes_back_with_all_of_them() {
    privileged(|host| {
        if !host.needs_coracle("interfaces that come back") {
            return;
        }
        pair("inner", "outer");
        ip(&["addr", "add", "10.11.0.1/24", "dev", "inner"]);
        ip(&["-6", "addr", "add", "fd11::1/64", "dev", "inner"]);
        let deaf = Spec::new().set("/linux/sysctl", json!({"net.ipv6.conf.default.disable_ipv6": "1"}));
        let first = host.bundle(deaf.args(["sleep", "1000"])).start();
        let network = format!("/proc/{}/ns/net", first.pid());
        let spec = moving(json!({"inner": {"name": "eth0"}})).join("network", &network);
        run(host, spec).fails_with(&["/linux/netDevices/inner", "RTM_NEWADDR"]);
        first.remove();
        let told = tool("busybox", &["ip", "addr", "show", "dev", "inner"]);
        for address in ["inet 10.11.0.1/24", "inet6 fd11::1/64"] {
            assert!(told.contains(address), "{told}");
        }
        ip(&["link", "delete", "inner"]);
    });
}

#[test]
fn without_a_network_of_its_own_nothing_moves() {
    privileged(|host| {
        if !host.needs_coracle("interfaces that move") {
            return;
        }
        let spec = moving(json!({"lo": {}})).without_namespace("network");
        run(host, spec).fails_with(&["/linux/netDevices", "no \"network\"", "without a NET namespace"]);
    });
}

#[test]
fn a_namespace_joined_by_path_gets_it() {
    privileged(|host| {
        if !host.needs_coracle("interfaces that move") {
            return;
        }
        let first = host.sleeper();
        pair("inner", "outer");
        let spec = moving(json!({"inner": {"name": "eth0"}}));
        let spec = spec.join("network", &format!("/proc/{}/ns/net", first.pid()));
        run(host, spec).succeeds();
        // It is the network's, and goes with that.
        assert!(first.exec(&["ls", "/sys/class/net"]).succeeds().text().contains("eth0"));
        first.remove();
    });
}

#[test]
fn it_moves_into_a_network_of_a_user_namespace() {
    privileged(|host| {
        if !host.needs_coracle("interfaces that move") {
            return;
        }
        pair("inner", "outer");
        let map = json!([{"containerID": 0, "hostID": 100_000, "size": 65536}]);
        let spec = moving(json!({"inner": {"name": "eth0"}}))
            .namespace("user")
            .set("/linux/uidMappings", map.clone())
            .set("/linux/gidMappings", map);
        let text = run(host, spec.args(["ls", "/sys/class/net"])).succeeds().text();
        assert!(text.contains("eth0"), "{text}");
    });
}

#[test]
fn a_user_without_privilege_moves_nothing() {
    unprivileged(|host| {
        let map = json!([{"containerID": 0, "hostID": coracle_tests::user::USER, "size": 1}]);
        let spec = moving(json!({"lo": {"name": "lo1"}}))
            .namespace("user")
            .set("/linux/uidMappings", map.clone())
            .set("/linux/gidMappings", map);
        let refused = run(host, spec);
        refused.fails_with(&["/linux/netDevices", "operation not permitted", "CAP_NET_ADMIN"]);
        assert!(is_on_host("lo"));
    });
}
