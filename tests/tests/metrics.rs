//! `metrics/statsd` and `coracle metrics`: what programs in containers measure, and what containers use.

#![expect(clippy::unwrap_used, reason = "a helper of the tests fails as a test does")]

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use coracle_tests::command::{busy_without_descriptors, eventually, tool, wait};
use coracle_tests::oracle::cgroup_hierarchies;
use coracle_tests::pod::Pods;
use coracle_tests::{Bundle, Host, Spec, privileged};
use serde_json::json;

/// A container that measures, with a shell that can send datagrams.
fn measuring<'h>(host: &'h Host, spec: Spec, script: &str) -> Bundle<'h> {
    let spec =
        ["/usr", "/lib", "/lib64"].iter().fold(spec, |spec, dir| spec.bind(dir, dir, &["rbind", "ro"]));
    let say = "say() { echo -n \"$1\" >/dev/udp/$STATSD_UDP_HOST/$STATSD_UDP_PORT; }";
    let script = format!("{say}; {script}");
    host.bundle(spec.set("/process/args", json!(["/usr/bin/bash", "-c", script])))
}

fn wanted() -> Spec {
    Spec::new().set("/annotations", json!({"io.coracle.statsd": "true"}))
}

fn metrics(host: &Host) -> String {
    host.call(&["metrics"]).succeeds().text()
}

/// Waits until `line` is among the metrics.
fn tells(host: &Host, line: &str) {
    eventually(line, || metrics(host).lines().any(|told| told == line));
}

#[test]
fn what_programs_in_a_container_measure_is_told_with_its_name() {
    privileged(|host| {
        if !host.needs_coracle("metrics/statsd") {
            return;
        }
        let script =
            "say 'app.hits:2|c|#path:/a'; say $'app.hits:1|c|@0.5|#path:/a\\nusers:x:y|s\\nlevel:9|g'
            say 'work:250|ms'; say rubbish; exec sleep 1000";
        let web = measuring(host, wanted(), script).named("web").start();
        for line in [
            "statsd_app_hits_total{id=\"web\",path=\"/a\"} 4",
            "statsd_users{id=\"web\"} 2",
            "statsd_level{id=\"web\"} 9",
            "statsd_work_seconds{id=\"web\",quantile=\"0.5\"} 0.25",
            "statsd_work_seconds_count{id=\"web\"} 1",
            "coracle_statsd_refused_total{id=\"web\",reason=\"malformed\"} 1",
        ] {
            tells(host, line);
        }
        // A program that is executed later finds it, too.
        let say = "echo -n 'level:+1|g' >/dev/udp/$STATSD_UDP_HOST/$STATSD_UDP_PORT";
        web.exec(&["/usr/bin/bash", "-c", say]).succeeds();
        tells(host, "statsd_level{id=\"web\"} 10");
        web.remove();
        assert!(!metrics(host).contains("statsd_"));
    });
}

#[test]
fn containers_that_share_a_network_namespace_are_told_apart() {
    privileged(|host| {
        if !host.needs_coracle("metrics/statsd") {
            return;
        }
        let on_host = || wanted().without_namespace("network");
        let say = |n: u32| format!("say 'level:{n}|g'; exec sleep 1000");
        let one = measuring(host, on_host(), &say(1)).named("one").start();
        let two = measuring(host, on_host(), &say(2)).named("two").start();
        tells(host, "statsd_level{id=\"one\"} 1");
        tells(host, "statsd_level{id=\"two\"} 2");
        one.remove();
        tells(host, "statsd_level{id=\"two\"} 2");
        two.remove();
    });
}

#[test]
fn what_a_container_that_has_ended_told_is_there_until_it_is_removed() {
    privileged(|host| {
        if !host.needs_coracle("metrics/statsd") {
            return;
        }
        let batch = measuring(host, wanted(), "say 'done:1|c'").named("batch").start();
        batch.becomes("stopped");
        tells(host, "statsd_done_total{id=\"batch\"} 1");
        tells(host, "container_status{id=\"batch\",status=\"stopped\"} 1");
        host.call(&["delete", "batch"]).succeeds();
    });
}

#[test]
fn a_container_that_floods_is_kept_to_its_bounds() {
    privileged(|host| {
        if !host.needs_coracle("metrics/statsd") {
            return;
        }
        let bounded = host.configured(
            "[isolator.\"metrics/statsd\"]\noptions = { all = true, limits = { series = 100, bytes = 20000 } }\n",
        );
        let script =
            "for i in $(seq 2000); do say $\"m$i:1|c\"; ((i % 50)) || sleep 0.01; done; exec sleep 1000";
        let flood = measuring(&bounded, Spec::new(), script).named("flood").start();
        tells(&bounded, "coracle_statsd_series{id=\"flood\"} 100");
        eventually("all of it is received", || {
            let told = metrics(&bounded);
            let of = |name: &str| {
                let line = told.lines().find_map(|line| line.strip_prefix(&format!("{name}}} ")));
                line.map_or(0.0, |value| value.parse::<f64>().unwrap())
            };
            let lines = of("coracle_statsd_lines_total{id=\"flood\"");
            let refused = of("coracle_statsd_refused_total{id=\"flood\",reason=\"series\"");
            let dropped = of("coracle_statsd_refused_total{id=\"flood\",reason=\"dropped\"");
            // Of what was dropped last, the kernel tells with the next that comes.
            lines > 1000.0 && lines + dropped <= 2000.0 && refused == lines - 100.0
        });
        let resident = collector_memory();
        assert!(resident < 4096, "{resident} KiB");
        host.counted(&format!("a collector's resident memory: {resident} KiB"));
        flood.remove();
    });
}

/// The resident memory of the one collector there is, in KiB: the process of the runtime's that is nobody's container.
fn collector_memory() -> u64 {
    let pids = tool("pgrep", &["-x", "coracle"]);
    let status = fs::read_to_string(format!("/proc/{}/status", pids.lines().next().unwrap())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn the_collector_can_do_nothing_to_the_host() {
    privileged(|host| {
        if !host.needs_coracle("metrics/statsd") {
            return;
        }
        let web = measuring(host, wanted(), "exec sleep 1000").named("web").start();
        let pids = tool("pgrep", &["-x", "coracle"]);
        let pid = pids.lines().next().unwrap();
        for line in ["CapEff:\t0000000000000000", "CapPrm:\t0000000000000000", "NoNewPrivs:\t1"] {
            eventually(line, || fs::read_to_string(format!("/proc/{pid}/status")).unwrap().contains(line));
        }
        let is_known = |path: &Path| {
            let path = path.to_string_lossy();
            path == "/dev/null" || path.starts_with("socket:") || path.contains("pidfd")
        };
        eventually("it has nothing open but what it needs", || {
            let open = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
            open.map(|fd| fs::read_link(fd.path()).unwrap_or_default()).all(|path| is_known(&path))
        });
        // One that is killed costs what was measured, and nothing else.
        tool("kill", &["-9", pid]);
        eventually("it is gone", || !metrics(host).contains("coracle_statsd_lines_total"));
        web.remove();
    });
}

#[test]
fn a_collector_that_was_killed_is_started_again_by_recover() {
    privileged(|host| {
        if !host.needs_coracle("metrics/statsd") {
            return;
        }
        let script = "while sleep 0.05; do say now:1\\|g; done";
        let web = measuring(host, wanted(), script).named("web").start();
        tells(host, "statsd_now{id=\"web\"} 1");
        let collectors = || tool("pgrep", &["-x", "coracle"]);
        tool("kill", &["-9", collectors().trim()]);
        eventually("it is gone", || !metrics(host).contains("statsd_now"));
        host.call(&["recover"]).succeeds();
        tells(host, "statsd_now{id=\"web\"} 1");
        let again = collectors();
        // One that is there stays.
        host.call(&["recover"]).succeeds();
        assert_eq!(collectors(), again);
        web.remove();
    });
}

#[test]
fn containers_of_a_pod_are_told_with_their_pod() {
    privileged(|host| {
        if !host.needs_coracle("metrics/statsd") {
            return;
        }
        let host = host.configured("[isolator.\"metrics/statsd\"]\noptions = { all = true }\n");
        let Some(pods) = Pods::new(&host) else { return };
        let spec = "
  terminationGracePeriodSeconds: 0
  containers:
  - {name: one, image: IMAGE, command: [sleep, '1000']}
  - {name: two, image: IMAGE, command: [sleep, '1000']}
";
        pods.run("web", spec);
        for (name, level) in [("one", 1), ("two", 2)] {
            let path = format!("web/{name}");
            let env = pods.exec(&path, &["env"]).succeeds().text();
            let value = |key: &str| env.lines().find_map(|line| line.strip_prefix(key)).unwrap().to_owned();
            let (address, port) = (value("STATSD_UDP_HOST="), value("STATSD_UDP_PORT="));
            let pid = pods.container("web", name)["pid"].to_string();
            let say = format!("echo -n 'level:{level}|g' >/dev/udp/{address}/{port}");
            tool("nsenter", &["-t", &pid, "-n", "bash", "-c", &say]);
            let line = format!("statsd_level{{id=\"web/{name}\",pod=\"web\"}} {level}");
            eventually(&line, || metrics(&host).contains(&line));
        }
        let told = metrics(&host);
        for of in ["id=\"web\",pod=\"web\"", "id=\"web/one\",pod=\"web\""] {
            assert!(told.contains(&format!("container_cpu_seconds_total{{{of}}}")), "{told}");
        }
        assert!(told.contains("\ncoracle_pods 1\n") && told.contains("\ncoracle_unmeasured 0\n"), "{told}");
        pods.remove("web");
    });
}

/// A runtime that serves metrics.
struct Server(Child);

impl Server {
    fn start(host: &Host, options: &[&str]) -> Self {
        let mut command = Command::new(host.runtime());
        Self(command.arg("metrics").args(options).stdin(Stdio::null()).spawn().unwrap())
    }

    /// Ends as asked.
    fn end(mut self) {
        tool("kill", &[&self.0.id().to_string()]);
        assert!(wait(&mut self.0, "the server").success());
    }
}

fn get(mut stream: impl Read + Write, path: &str) -> String {
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// Whether somebody answers at `socket`.
fn answers(socket: &Path) -> bool {
    let Ok(mut stream) = UnixStream::connect(socket) else { return false };
    write!(stream, "GET / HTTP/1.1\r\n\r\n").is_ok() && stream.read(&mut [0]).is_ok_and(|read| read > 0)
}

#[test]
fn they_are_served_on_a_socket_and_a_port_and_none_keeps_another_from_them() {
    privileged(|host| {
        if !host.needs_coracle("metrics") {
            return;
        }
        let sleeper = host.sleeper();
        let socket = host.directory().join("metrics.sock");
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let server = Server::start(host, &["--socket", socket.to_str().unwrap(), "--listen", &port]);
        eventually("it listens", || UnixStream::connect(&socket).is_ok());
        // Who says nothing keeps nobody waiting.
        let _silent: Vec<_> = (0..3).map(|_| TcpStream::connect(&port).unwrap()).collect();
        for answer in [
            get(UnixStream::connect(&socket).unwrap(), "/metrics"),
            get(TcpStream::connect(&port).unwrap(), "/metrics?x=y"),
        ] {
            let (head, body) = answer.split_once("\r\n\r\n").unwrap();
            assert!(
                head.starts_with("HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4;"),
                "{head}"
            );
            assert!(head.contains(&format!("Content-Length: {}", body.len())), "{head}");
            assert!(
                body.contains(&format!("container_cpu_seconds_total{{id=\"{}\"}}", sleeper.id())),
                "{body}"
            );
        }
        assert!(get(TcpStream::connect(&port).unwrap(), "/other").starts_with("HTTP/1.1 404 "));
        server.end();
        assert!(!socket.exists());
        host.call(&["metrics", "--listen", "0.0.0.0:9000"])
            .fails_with(&["is no address of the loopback network with a port"]);
        sleeper.remove();
    });
}

#[test]
fn a_socket_that_a_killed_server_left_is_taken_and_one_in_use_is_not() {
    privileged(|host| {
        if !host.needs_coracle("metrics") {
            return;
        }
        let socket = host.directory().join("metrics.sock");
        let path = socket.to_str().unwrap();
        let mut killed = Server::start(host, &["--socket", path]);
        eventually("it listens", || UnixStream::connect(&socket).is_ok());
        host.call(&["metrics", "--socket", path]).fails_with(&["listening on", "address already in use"]);
        killed.0.kill().unwrap();
        killed.0.wait().unwrap();
        let next = Server::start(host, &["--socket", path]);
        // One that was killed may be connected to for a moment yet, and answers nobody.
        eventually("it answers", || answers(&socket));
        next.end();
    });
}

#[test]
fn a_server_that_is_short_of_descriptors_or_processes_waits_for_some() {
    privileged(|host| {
        if !host.needs_coracle("metrics") {
            return;
        }
        let socket = host.directory().join("metrics.sock");
        let mut server = Server::start(host, &["--socket", socket.to_str().unwrap()]);
        eventually("it listens", || UnixStream::connect(&socket).is_ok());
        let answers = || {
            let mut answer = String::new();
            let mut caller = UnixStream::connect(&socket).unwrap();
            let asked = caller.write_all(b"GET /metrics HTTP/1.1\r\n\r\n");
            asked.and_then(|()| caller.read_to_string(&mut answer)).is_ok()
                && answer.starts_with("HTTP/1.1 200 ")
        };
        eventually("it answers", answers);
        let busy = busy_without_descriptors(&server.0, || UnixStream::connect(&socket).unwrap());
        assert!(busy < 30, "it used {busy} hundredths of a second");
        eventually("it has descriptors, and answers", answers);
        let cgroups = cgroup_hierarchies().into_iter().map(|at| at.join("coracle-test-metrics"));
        let mut made = cgroups.filter(|cgroup| fs::create_dir(cgroup).is_ok());
        let limited =
            made.find(|cgroup| cgroup.join("pids.max").is_file() || fs::remove_dir(cgroup).is_err());
        let Some(cgroup) = limited else { return host.skip("no cgroup limits processes") };
        fs::write(cgroup.join("cgroup.procs"), server.0.id().to_string()).unwrap();
        fs::write(cgroup.join("pids.max"), "1").unwrap();
        let _ = UnixStream::connect(&socket).unwrap().read(&mut [0]);
        std::thread::sleep(Duration::from_millis(300));
        assert!(server.0.try_wait().unwrap().is_none(), "it lives");
        fs::write(cgroup.join("pids.max"), "max").unwrap();
        eventually("it has processes, and answers", answers);
        server.end();
        eventually("its cgroup is empty", || fs::remove_dir(&cgroup).is_ok());
    });
}

/// What a server that was killed leaves to the forks that answer its callers, until they have ended too.
#[test]
fn addresses_that_a_killed_server_is_about_to_leave_are_waited_for() {
    privileged(|host| {
        if !host.needs_coracle("metrics") {
            return;
        }
        let socket = host.directory().join("metrics.sock");
        let (path, port) = (UnixListener::bind(&socket).unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
        let address = port.local_addr().unwrap().to_string();
        let server = Server::start(host, &["--socket", socket.to_str().unwrap(), "--listen", &address]);
        std::thread::sleep(Duration::from_millis(50));
        drop(port);
        std::thread::sleep(Duration::from_millis(50));
        drop(path);
        eventually("it answers", || answers(&socket));
        server.end();
    });
}

/// The names of metrics in an expression of Prometheus's language that are ours.
fn named(expression: &str) -> BTreeSet<String> {
    let words = expression.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    let ours =
        words.filter(|word| ["container_", "coracle_", "statsd_"].iter().any(|ours| word.starts_with(ours)));
    ours.map(str::to_owned).collect()
}

#[test]
fn the_dashboard_asks_for_what_is_served() {
    privileged(|host| {
        if !host.needs_coracle("metrics") {
            return;
        }
        let spec = wanted().memory(64 << 20).pids(100).cpu(500);
        let busy = measuring(host, spec, "say 'a:1|c'; exec sleep 1000").named("busy").start();
        tells(host, "statsd_a_total{id=\"busy\"} 1");
        let told = metrics(host);
        let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/grafana.json");
        let dashboard: serde_json::Value = serde_json::from_str(&fs::read_to_string(page).unwrap()).unwrap();
        let targets = dashboard["panels"]
            .as_array()
            .unwrap()
            .iter()
            .flat_map(|panel| panel["targets"].as_array().unwrap());
        let asked: BTreeSet<String> =
            targets.flat_map(|target| named(target["expr"].as_str().unwrap())).collect();
        assert!(asked.len() > 10, "{asked:?}");
        // Machines differ in whether they count these: then it is enough that the runtime knows them.
        let may_be_absent = [
            "container_pressure_waiting_seconds_total",
            "container_io_read_bytes_total",
            "container_io_write_bytes_total",
        ];
        let sources = concat!(env!("CARGO_MANIFEST_DIR"), "/../runtime/src/prometheus.rs");
        let known = fs::read_to_string(sources).unwrap();
        for name in asked {
            let is_told = told.lines().any(|line| line.starts_with(&format!("# TYPE {name} ")));
            let is_known = may_be_absent.contains(&name.as_str()) && known.contains(&format!("\"{name}\""));
            assert!(is_told || is_known, "{name} is not told:\n{told}");
        }
        busy.remove();
    });
}
