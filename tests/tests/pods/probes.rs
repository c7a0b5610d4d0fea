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
    readinessProbe: {httpGet: {path: health, port: 8080}, periodSeconds: 1}"),
        );
        pods.becomes("web", "main", "ready", true);
        pods.exec("web/main", &["rm", "/www/health"]).succeeds();
        pods.becomes("web", "main", "ready", false);
        pods.remove("web");
    });
}

#[test]
fn a_hook_after_the_start_has_all_the_time_that_it_takes() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        pods.run(
            "web",
            &pod("
    command: [sleep, '1000']
    lifecycle: {postStart: {exec: {command: [sh, -c, 'sleep 0.5; touch /tmp/done']}}}"),
        );
        command::eventually("the hook is done", || {
            pods.exec("web/main", &["test", "-e", "/tmp/done"]).code == 0
        });
        assert_eq!(pods.container("web", "main")["restarts"], 0);
        pods.remove("web");
    });
}

#[test]
fn a_container_that_is_not_alive_ends_after_those_below_it() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        let spec = pod("
    command: [sleep, '1000']
    livenessProbe: {exec: {command: [test, '!', -e, /tmp/ill]}, periodSeconds: 1, failureThreshold: 2}");
        pods.make_with("run", "web", QUICK, &spec.replace("Seconds: 0", "Seconds: 1")).succeeds();
        let image = coracle_tests::pod::IMAGE;
        let file = pods.file(&format!("{{name: child, image: '{image}', command: [sleep, '1000']}}"));
        pods.call(&["launch", "-f", file.to_str().unwrap(), "web/main"]).succeeds();
        pods.exec("web/main", &["touch", "/tmp/ill"]).succeeds();
        command::eventually("a restart", || pods.container("web", "main")["restarts"].as_u64() >= Some(1));
        pods.remove("web");
    });
}

#[test]
fn a_container_that_is_not_alive_has_failed_however_politely_it_ends() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        let spec = pod("
    command: [sh, -c, 'trap \"exit 0\" TERM; while :; do sleep 0.1; done']
    livenessProbe: {exec: {command: ['false']}, initialDelaySeconds: 1, periodSeconds: 1, failureThreshold: 1}");
        let spec = spec.replace("Seconds: 0", "Seconds: 10");
        let run = |policy: &str| {
            let spec = format!("  restartPolicy: {policy}{spec}");
            pods.make_with("run", "web", QUICK, &spec).succeeds();
        };
        run("OnFailure");
        command::eventually("a restart", || pods.container("web", "main")["restarts"].as_u64() >= Some(1));
        let exit = pods.container("web", "main")["exit"].clone();
        assert_eq!((&exit["exitCode"], &exit["reason"]), (&0.into(), &"Unhealthy".into()));
        pods.remove("web");
        run("Never");
        pods.call(&["wait", "web"]).exits(1);
        pods.is("web", "Failed");
        pods.remove("web");
    });
}

#[test]
fn a_supervisor_rests_while_a_container_with_probes_takes_its_time_to_end() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        pods.run(
            "web",
            &pod("
    command: [sh, -c, 'trap \"\" TERM; while :; do sleep 0.1; done']
    readinessProbe: {exec: {command: ['true']}, periodSeconds: 1}"),
        );
        let pid = pods.inspect("web")["supervisor"].clone();
        // The 14th and 15th field, behind a name in parentheses (proc_pid_stat(5)): hundredths of a second.
        let spent = || -> u64 {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
            let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
            fields[11..13].iter().map(|ticks| ticks.parse::<u64>().unwrap()).sum()
        };
        let before = spent();
        pods.call(&["stop", "--time", "4", "web"]).succeeds();
        assert!(spent() - before < 100, "{} ticks in four seconds", spent() - before);
        pods.remove("web");
    });
}

#[test]
fn a_probe_that_could_not_be_asked_says_nothing() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        if !host.needs_program("prlimit") {
            return;
        }
        pods.run(
            "web",
            &pod("
    command: [sleep, '1000']
    livenessProbe: {exec: {command: ['true']}, periodSeconds: 1, failureThreshold: 1}"),
        );
        let before = pods.container("web", "main");
        let supervisor = pods.inspect("web")["supervisor"].to_string();
        let limit =
            |most: &str| command::tool("prlimit", &["--pid", &supervisor, &format!("--nofile={most}:")]);
        let open = std::fs::read_dir(format!("/proc/{supervisor}/fd")).unwrap().count();
        limit(&open.to_string());
        std::thread::sleep(std::time::Duration::from_secs(3));
        limit("1024");
        let after = pods.container("web", "main");
        assert_eq!((&after["pid"], &after["restarts"]), (&before["pid"], &before["restarts"]), "{after}");
        pods.remove("web");
    });
}

#[test]
fn a_container_that_has_no_process_left_for_its_probe_is_not_alive() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        pods.make_with(
            "run",
            "web",
            QUICK,
            "
  terminationGracePeriodSeconds: 0
  resources: {limits: {pids: 12}}
  containers:
  - name: main
    image: IMAGE
    command: [sh, -c, 'while :; do sleep 1000 & done']
    livenessProbe: {exec: {command: [sh, -c, 'sleep 0 & wait $!']}, initialDelaySeconds: 1, periodSeconds: 1, failureThreshold: 1}
",
        )
        .succeeds();
        command::eventually("it is started again", || pods.container("web", "main")["restarts"] != 0);
        pods.remove("web");
    });
}
