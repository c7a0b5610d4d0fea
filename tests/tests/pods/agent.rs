//! The API as agents use it: over the raw socket.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use coracle_tests::pod::Pods;
use coracle_tests::{command, privileged};

/// The program of docs/agent.md.
fn agent() -> String {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("docs/agent.md");
    let page = fs::read_to_string(page).unwrap();
    let program = page.split("```python\n").nth(1).unwrap().split("```").next().unwrap();
    program.to_owned()
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
        let unknown = ask("io.coracle.Pod.Fly", "{}");
        assert_eq!(unknown["error"], "org.varlink.service.MethodNotFound");
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
