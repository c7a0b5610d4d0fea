//! Members of pods.

use coracle_tests::pod::Pods;
use coracle_tests::{cgroup, command, privileged};

use crate::{Session, debug, sessions};

const ONE: &str = "
  containers:
  - {name: one, image: IMAGE, command: [sh, -c, 'echo kept > /tmp/file; sleep 1000']}
";

#[test]
fn a_member_is_looked_into_by_its_path() {
    privileged(|host| {
        if cgroup::is_made_by_systemd() {
            return host.skip("the cgroups of pods are made by the runtime itself");
        }
        let Some(pods) = Pods::new(host) else { return };
        pods.run("web", ONE);
        pods.becomes("web", "one", "ready", true);
        command::eventually("it sleeps", || {
            pods.exec("web/one", &["ps", "-o", "args"]).text().lines().any(|line| line == "sleep 1000")
        });
        let script = "hostname; cat /tmp/file; readlink /proc/self/ns/net; ps -o args | grep 'sleep 100[0]'";
        let run = debug(host, &[], "web/one", &["sh", "-c", script]).succeeds();
        let net = pods.exec("web/one", &["readlink", "/proc/self/ns/net"]).succeeds().text();
        assert_eq!(run.lines(), ["web", "kept", &net, "sleep 1000"]);
        debug(host, &[], "web/none", &["true"])
            .exits(1)
            .fails_with(&["pod \"web\"", "\"none\" does not exist"]);
        let mut session = Session::start(host, &[], "web/one", "sleep 1000");
        assert_eq!(sessions(host), ["web/one/debug-1"]);
        pods.remove("web");
        assert_eq!(session.code(), 137);
        command::eventually("no session is left", || sessions(host).is_empty());
    });
}
