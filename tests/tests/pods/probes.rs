//! Probes: what they find, and what follows.

use coracle_tests::pod::Pods;
use coracle_tests::{command, privileged};

fn pod(container: &str) -> String {
    format!(
        "
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: IMAGE
{container}
"
    )
}

const QUICK: &str = "  annotations: {io.coracle/back-off: '20ms,40ms'}\n";

#[test]
fn a_container_is_ready_when_its_probe_says_so() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        pods.run(
            "web",
            &pod("
    command: [sleep, '1000']
    readinessProbe: {exec: {command: [test, -e, /tmp/ready]}, periodSeconds: 1}"),
        );
        assert_eq!(pods.container("web", "main")["ready"], false);
        pods.exec("web/main", &["touch", "/tmp/ready"]).succeeds();
        pods.becomes("web", "main", "ready", true);
        assert_eq!(pods.container("web", "main")["restarts"], 0);
        pods.remove("web");
    });
}

#[test]
fn a_container_that_is_not_alive_is_started_again() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        let spec = pod("
    command: [sleep, '1000']
    livenessProbe: {exec: {command: ['false']}, periodSeconds: 1, failureThreshold: 1}");
        pods.make_with("run", "web", QUICK, &spec).succeeds();
        command::eventually("a restart", || pods.container("web", "main")["restarts"].as_u64() >= Some(1));
        assert_eq!(pods.container("web", "main")["exit"]["reason"], "Unhealthy");
        pods.remove("web");
    });
}

#[test]
fn a_probe_that_hangs_has_failed() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        let spec = pod("
    command: [sleep, '1000']
    livenessProbe: {exec: {command: [sleep, '1000']}, periodSeconds: 1, timeoutSeconds: 1, failureThreshold: 1}");
        pods.make_with("run", "web", QUICK, &spec).succeeds();
        command::eventually("a restart", || pods.container("web", "main")["restarts"].as_u64() >= Some(1));
        let warnings = pods.container("web", "main")["warnings"].to_string();
        let told = pods.container("web", "main")["exit"]["reason"].to_string() + &warnings;
        assert!(told.contains("Unhealthy"), "{told}");
        pods.remove("web");
    });
}

#[test]
fn http_and_tcp_are_asked_in_the_pods_own_network() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        pods.run(
            "web",
            &pod("
    command: [sh, -c, 'mkdir /www; echo ok > /www/health; exec busybox httpd -f -p 8080 -h /www']
    ports: [{name: http, containerPort: 8080}]
    startupProbe: {tcpSocket: {port: http}, periodSeconds: 1, failureThreshold: 10}
    readinessProbe: {httpGet: {path: /health, port: 8080}, periodSeconds: 1}"),
        );
        pods.becomes("web", "main", "ready", true);
        pods.exec("web/main", &["rm", "/www/health"]).succeeds();
        pods.becomes("web", "main", "ready", false);
        pods.remove("web");
    });
}
