//! The API as agents use it: over the raw socket.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use coracle_tests::pod::Pods;
use coracle_tests::{Host, Outcome, command, privileged};

/// The program of docs/agent.md.
fn agent() -> String {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("docs/agent.md");
    let page = fs::read_to_string(page).unwrap();
    let program = page.split("```python\n").nth(1).unwrap().split("```").next().unwrap();
    program.to_owned()
}

/// Tells what supervisors hold together.
fn tell_memory(host: &Host, supervisors: &[String]) {
    let own = |pid: &String| -> u64 {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    };
    // They let go of what they don't need a second after they had something to do.
    std::thread::sleep(Duration::from_millis(1500));
    let all: Vec<u64> = supervisors.iter().map(own).collect();
    let (sum, most) = (all.iter().sum::<u64>(), all.iter().max().unwrap());
    host.counted(&format!("{} supervisors hold {sum} KiB of their own, none more than {most}", all.len()));
    assert!(*most <= 1024, "{all:?}");
}

/// A caller of the raw socket, whose calls pass descriptors.
const CALLER: &str = r#"
import json, os, socket, sys
path, method, parameters = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
s = socket.socket(socket.AF_UNIX)
s.connect(path)
call = json.dumps({"method": method, "parameters": parameters}).encode() + b"\0"
socket.send_fds(s, [call], [1]) if "stdout" in parameters else s.sendall(call)
if len(sys.argv) > 4:
    while not os.path.exists(sys.argv[4]): pass
    sys.exit()
reply = b""
while not reply.endswith(b"\0"): reply += s.recv(65536)
print(json.dumps(json.loads(reply[:-1])))
"#;

fn caller(host: &Host, args: &[&str]) -> Outcome {
    command::run(Command::new("python3").args(["-c", CALLER]).args(args), &host.directory())
}

/// A pod to look into.
const SLEEPER: &str = "
  terminationGracePeriodSeconds: 0
  containers: [{name: main, image: IMAGE, command: [sleep, '1000']}]
";

#[test]
fn a_debug_container_is_launched_by_the_api_and_goes_with_its_caller() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        if !host.needs_program("python3") {
            return;
        }
        pods.run("web", SLEEPER);
        let (socket, method) = ("/run/coracle/.pods/web/api.sock", "io.coracle.Pod.LaunchDebug");
        let looks = r#"{"container": "main", "args": ["sh", "-c", "tr '\\0' ' ' </proc/1/cmdline; exit 5"], "stdout": 0}"#;
        let said = caller(host, &[socket, method, looks]).succeeds();
        assert!(said.text().starts_with("sleep 1000 {"), "{said:?}");
        assert!(said.text().contains(r#""exitCode": 5"#), "{said:?}");
        let fails =
            caller(host, &[socket, method, r#"{"container": "main", "args": ["no-such"]}"#]).succeeds();
        assert!(fails.text().contains("no-such") && fails.text().contains("--image"), "{fails:?}");
        let stays = r#"{"container": "main", "args": ["sh", "-c", "touch /begun; sleep 1000"]}"#;
        let pid = pods.container("web", "main")["pid"].to_string();
        caller(host, &[socket, method, stays, &format!("/proc/{pid}/root/begun")]).succeeds();
        command::eventually("the session is over", || {
            host.call(&["debug", "--ls"]).succeeds().lines().len() == 1
        });
        pods.remove("web");
    });
}

/// An agent that talks to a session on a terminal of its own size, and makes it larger meanwhile.
const ON_TERMINAL: &str = r#"
import array, fcntl, json, os, socket, struct, sys, termios
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
script = "stty size; read word; stty size; echo $word; tty; exit 6"
call = {"container": "main", "args": ["sh", "-c", script], "terminal": True}
s.sendall(json.dumps({"method": "io.coracle.Pod.LaunchDebug", "parameters": call, "more": True}).encode() + b"\0")
reply, fds, _, _ = socket.recv_fds(s, 65536, 1)
assert json.loads(reply[:-1])["continues"], reply
size = lambda rows, columns: fcntl.ioctl(fds[0], termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
size(20, 40)
said = b""
while b"\n" not in said: said += os.read(fds[0], 4096)
size(33, 77)
import time; time.sleep(0.3)
os.write(fds[0], b"hello\r")
reply = b""
while True:
    try: part = os.read(fds[0], 4096)
    except OSError: break
    if not part: break
    said += part
while not reply.endswith(b"\0"): reply += s.recv(65536)
print(said.decode().replace("\r", ""), json.dumps(json.loads(reply[:-1])))
"#;

#[test]
fn a_debug_container_has_a_terminal_by_the_api() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        if !host.needs_program("python3") {
            return;
        }
        pods.run("web", SLEEPER);
        let socket = "/run/coracle/.pods/web/api.sock";
        let mut agent = Command::new("python3");
        let said = command::run(agent.args(["-c", ON_TERMINAL, socket]), &host.directory()).succeeds().text();
        for words in ["33 77", "hello", "/dev/pts/", "\"exitCode\": 6"] {
            assert!(said.contains(words), "{words}: {said}");
        }
        let method = "io.coracle.Pod.LaunchDebug";
        let once =
            caller(host, &[socket, method, r#"{"container": "main", "args": ["sh"], "terminal": true}"#]);
        assert!(once.succeeds().text().contains("it comes with the first of several replies"));
        pods.remove("web");
    });
}

/// A service of the host.
struct Service(Child);

impl Service {
    fn start(host: &Host) -> Self {
        let service = Command::new(host.runtime()).args(["pod", "serve"]).stdin(Stdio::null()).spawn();
        command::eventually("the host serves", || fs::exists(SERVICE).unwrap());
        Self(service.unwrap())
    }

    fn end(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
        fs::remove_file(SERVICE).unwrap();
        fs::remove_dir("/run/coracle/.pods").unwrap();
    }
}

const SERVICE: &str = "/run/coracle/.pods/host.sock";

#[test]
fn a_host_is_asked_for_nodes_and_rid_of_images() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        if !host.needs_program("python3") {
            return;
        }
        let service = Service::start(host);
        let ask = |method: &str, given: &str| {
            let reply =
                caller(host, &[SERVICE, &format!("io.coracle.Host.{method}"), given]).succeeds().json();
            assert!(reply.get("error").is_none(), "{method}: {reply}");
            reply["parameters"].clone()
        };
        ask(
            "CreateNode",
            r#"{"name": "org/team", "resources": {"limits": {"pids": 30}}, "ownUsers": false}"#,
        );
        let nodes = ask("Nodes", r#"{"parent": "org"}"#);
        assert_eq!(nodes["nodes"][1]["resources"]["limits"]["pids"], 30.0, "{nodes}");
        ask("UpdateNode", r#"{"name": "org/team", "resources": {"limits": {"pids": 40}}}"#);
        assert_eq!(ask("NodeUsage", r#"{"name": "org/team"}"#)["usage"]["pids"]["limit"], 40);
        ask("RemoveNode", r#"{"name": "org/team"}"#);
        ask("RemoveNode", r#"{"name": "org"}"#);
        let store = pods.store.directory().display().to_string();
        let prune = format!(r#"{{"store": "{store}", "maxAgeDays": 0}}"#);
        let removed = ask("PruneImages", &prune);
        assert!(removed["removed"].to_string().contains("coracle/small"), "{removed}");
        service.end();
    });
}

#[test]
fn who_asks_a_host_does_not_wait_for_who_drains_it() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        if !host.needs_program("python3") {
            return;
        }
        let service = Service::start(host);
        let deaf = "
  terminationGracePeriodSeconds: 100
  containers: [{name: main, image: IMAGE, command: [sh, -c, 'trap : TERM; while :; do sleep 1; done']}]
";
        pods.run("web", deaf);
        let mut drain = Command::new("python3");
        let within = format!("{{\"withinSeconds\": {}}}", 10 * command::patience());
        let drain = drain.args(["-c", CALLER, SERVICE, "io.coracle.Host.Drain", &within]);
        let mut drain = drain.stdout(Stdio::null()).spawn().unwrap();
        pods.is("web", "Stopping");
        let asked = Instant::now();
        let list = caller(host, &[SERVICE, "io.coracle.Host.List", "{}"]).succeeds().json();
        assert_eq!(list["parameters"]["pods"][0]["name"], "web", "{list}");
        assert!(asked.elapsed() < Duration::from_secs(5) * command::patience(), "{:?}", asked.elapsed());
        assert!(drain.try_wait().unwrap().is_none(), "it is still waited for");
        assert!(drain.wait().unwrap().success());
        let open = caller(host, &[SERVICE, "io.coracle.Host.Drain", r#"{"off": true}"#]).succeeds().json();
        assert!(open.get("error").is_none(), "{open}");
        pods.remove("web");
        service.end();
    });
}

#[test]
fn a_host_that_has_no_descriptors_left_waits_for_some() {
    privileged(|host| {
        if !host.needs_coracle("pods") || !host.needs_program("python3") {
            return;
        }
        let service = Service::start(host);
        let busy = command::busy_without_descriptors(&service.0, || UnixStream::connect(SERVICE).unwrap());
        assert!(busy < 30, "it used {busy} hundredths of a second");
        let list = caller(host, &[SERVICE, "io.coracle.Host.List", "{}"]).succeeds().json();
        assert!(list["parameters"]["pods"].is_array(), "{list}");
        service.end();
    });
}

#[test]
fn the_agent_of_the_guide_starts_pods_is_killed_and_finds_them_all() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        if !host.needs_program("python3") {
            return;
        }
        assert!(agent().lines().count() <= 32, "the guide says thirty lines");
        let directory = host.directory();
        let path = directory.join("agent.py");
        fs::write(&path, agent()).unwrap();
        let mut service = Command::new(host.runtime());
        let mut service = service.args(["pod", "serve"]).stdin(Stdio::null()).spawn().unwrap();
        command::eventually("the host serves", || fs::exists("/run/coracle/.pods/host.sock").unwrap());
        let run = |verb: &str| {
            let mut python = Command::new("python3");
            python.arg(&path).args([verb, "50", pods.store.directory().to_str().unwrap()]);
            python.env("CORACLE_IMAGE_NAME", coracle_tests::pod::IMAGE);
            command::run(&mut python, &host.directory())
        };
        run("start").succeeds();
        let supervisors: Vec<String> =
            (0..50).map(|n| pods.inspect(&format!("pod-{n}"))["supervisor"].to_string()).collect();
        tell_memory(host, &supervisors);
        // Whoever looks after pods and hosts is killed at once, and so is an agent in the middle of its work.
        for pid in &supervisors[..10] {
            command::tool("kill", &["-KILL", pid]);
        }
        let mut agent = Command::new("timeout");
        let agent = agent.args(["-s", "KILL", "0.05", "python3"]).arg(&path).args(["find", "50", "-"]);
        command::run(agent, &host.directory()).exits(137);
        service.kill().unwrap();
        service.wait().unwrap();
        let mut service = Command::new(host.runtime());
        let mut service = service.args(["pod", "serve"]).stdin(Stdio::null()).spawn().unwrap();
        command::eventually("another serves", || run("find").code == 0);
        let found = run("find").succeeds();
        assert_eq!(found.lines().len(), 50, "{found:?}");
        assert!(found.lines().iter().all(|line| line.ends_with("Running 3")), "{found:?}");
        run("remove").succeeds();
        service.kill().unwrap();
        service.wait().unwrap();
        fs::remove_file("/run/coracle/.pods/host.sock").unwrap();
        fs::remove_dir("/run/coracle/.pods").unwrap();
    });
}

#[test]
fn a_service_tells_what_it_is() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        if !host.needs_program("python3") {
            return;
        }
        pods.run(
            "web",
            "
  terminationGracePeriodSeconds: 0
  containers:
  - {name: main, image: IMAGE, command: [sleep, '1000']}
",
        );
        let ask = |method: &str, parameters: &str| {
            let script = format!(
                "import socket\ns = socket.socket(socket.AF_UNIX)\ns.connect('/run/coracle/.pods/web/api.sock')\n\
                 s.sendall(b'{{\"method\": \"{method}\", \"parameters\": {parameters}}}\\0')\n\
                 r = b''\nwhile not r.endswith(b'\\0'): r += s.recv(65536)\nprint(r[:-1].decode())"
            );
            command::run(Command::new("python3").args(["-c", &script]), &host.directory()).succeeds().json()
        };
        let info = ask("org.varlink.service.GetInfo", "{}");
        assert!(info["parameters"]["interfaces"].to_string().contains("io.coracle.Pod"), "{info}");
        let text = ask(
            "org.varlink.service.GetInterfaceDescription",
            r#"{\"interface\": \"io.coracle.Pod\"}"#.replace('\\', "").as_str(),
        );
        assert!(text["parameters"]["description"].as_str().unwrap().contains("method Launch("));
        let watch = ask("io.coracle.Pod.Watch", "{}");
        assert_eq!(watch["error"], "org.varlink.service.ExpectedMore");
        let unknown = ask("io.coracle.Pod.Fly", "{}");
        assert_eq!(unknown["error"], "org.varlink.service.MethodNotFound");
        let missing =
            r#"{"parent": "main", "container": {"name": "n", "image": "IMAGE", "command": ["no-such"]}}"#;
        let failed = ask("io.coracle.Pod.Launch", &missing.replace("IMAGE", coracle_tests::pod::IMAGE));
        assert_eq!(failed["parameters"]["code"], "program-not-found", "{failed}");
        let begun = ask("io.coracle.Pod.Start", "{}");
        let fields: Vec<&String> = begun["parameters"].as_object().unwrap().keys().collect();
        assert_eq!(fields, ["containers", "name", "phase"], "as the interface declares");
        let wrong = ask("io.coracle.Pod.Kill", r#"{"container": "main"}"#);
        assert_eq!(wrong["error"], "io.coracle.Pod.Failed");
        assert!(wrong["parameters"]["msg"].as_str().unwrap().contains("/signal: it is missing"), "{wrong}");
        pods.remove("web");
    });
}

#[test]
fn the_sockets_are_their_owners_alone() {
    use std::os::unix::fs::MetadataExt;
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        pods.run(
            "web",
            "
  terminationGracePeriodSeconds: 0
  containers:
  - {name: main, image: IMAGE, command: [sleep, '1000']}
",
        );
        let mode = |path: &str| fs::metadata(path).unwrap().mode() & 0o777;
        assert_eq!(mode("/run/coracle/.pods"), 0o700);
        assert_eq!(mode("/run/coracle/.pods/web"), 0o700);
        assert_eq!(mode("/run/coracle/.pods/web/api.sock"), 0o600);
        pods.remove("web");
    });
}
