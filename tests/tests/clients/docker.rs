//! Docker's daemon with this runtime added to it.

use std::fs;
use std::path::PathBuf;

use coracle_fixtures::small;
use coracle_tests::{Host, Outcome, command, privileged};
use serde_json::json;

use crate::{Daemon, client, has, remove};

const IMAGE: &str = "coracle/small:latest";

/// Docker's daemon on directories of the test, with the small image loaded.
struct Docker<'h> {
    host: &'h Host,
    socket: PathBuf,
}

impl Docker<'_> {
    fn call(&self, args: &[&str]) -> Outcome {
        let mut command = client("docker");
        command.args(["--host", &format!("unix://{}", self.socket.display())]).args(args);
        command::run(command.env("HOME", self.host.directory()), &self.host.directory())
    }

    fn run(&self, options: &[&str], args: &[&str]) -> Outcome {
        self.call(&[&["run", "--rm", "--network", "none"], options, &[IMAGE], args].concat())
    }
}

fn with_docker(host: &Host, test: fn(&Docker<'_>)) {
    if !has(host, "dockerd") || !has(host, "containerd") || !has(host, "docker-init") {
        return;
    }
    let directory = host.directory();
    let path = |name: &str| directory.join(name).to_str().unwrap().to_owned();
    let config = json!({
        "runtimes": {"coracle": {"path": host.runtime()}}, "default-runtime": "coracle",
        "data-root": path("data"), "exec-root": path("exec"), "pidfile": path("pid"),
        "hosts": [format!("unix://{}", path("socket"))], "bridge": "none", "iptables": false,
        "ip-forward": false, "ip-masq": false, "storage-driver": "vfs",
        "deprecated-key-path": path("key.json")
    });
    fs::write(path("daemon.json"), config.to_string()).unwrap();
    fs::write(path("image.tar"), small::image().docker_archive_old()).unwrap();
    let mut command = client("dockerd");
    command.args(["--config-file", &path("daemon.json")]);
    let daemon = Daemon::start(host, command, &directory.join("socket"));
    let docker = Docker { host, socket: directory.join("socket") };
    command::eventually("Docker serves", || docker.call(&["version"]).code == 0);
    let load = docker.call(&["load", "--input", &path("image.tar")]).succeeds();
    let name = load.text().rsplit(' ').next().unwrap_or_default().to_owned();
    docker.call(&["tag", &name, IMAGE]).succeeds();
    test(&docker);
    daemon.stop();
    docker.host.shell(&format!("grep -o '{}[^ ]*' /proc/self/mounts | sort -r | xargs -r umount", path("")));
    remove(&["/run/docker", "/run/containerd", "/run/netns"], &["/docker"]);
}

#[test]
#[ignore = "make test-clients"]
fn docker_hands_output_and_exit_codes_on() {
    privileged(|host| {
        with_docker(host, |docker| {
            assert_eq!(docker.run(&[], &[]).succeeds().text(), "hello from three layers");
            docker.run(&[], &["sh", "-c", "exit 7"]).exits(7);
            docker.run(&[], &["no-such-command"]).exits(127);
            docker.run(&[], &["/etc/passwd"]).exits(126);
        });
    });
}

#[test]
#[ignore = "make test-clients"]
fn docker_options_arrive() {
    privileged(|host| {
        with_docker(host, |docker| {
            let volume = docker.host.directory();
            fs::write(volume.join("file"), "from the host\n").unwrap();
            let mount = format!("{}:/volume:ro", volume.display());
            let script =
                "echo $WORD; id -u; pwd; cat /volume/file; touch /volume/new /new 2>/dev/null || echo kept;
                cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || cat /sys/fs/cgroup/memory.max;
                grep ^Seccomp: /proc/self/status; grep -c . /etc/hosts >/dev/null && hostname";
            let options = [
                "--env",
                "WORD=word",
                "--user",
                "1000",
                "--workdir",
                "/tmp",
                "--volume",
                &mount,
                "--read-only",
                "--memory",
                "64m",
                "--init",
                "--hostname",
                "boat",
                "--pids-limit",
                "64",
                "--cpus",
                "1",
            ];
            let run = docker.run(&options, &["sh", "-c", script]).succeeds();
            let expected =
                ["word", "1000", "/tmp", "from the host", "kept", "67108864", "Seccomp:\t2", "boat"];
            assert_eq!(run.lines(), expected);
        });
    });
}

#[test]
#[ignore = "make test-clients"]
fn docker_executes_pauses_updates_restarts_and_stops() {
    privileged(|host| {
        with_docker(host, |docker| {
            let detached = ["run", "--detach", "--network", "none", "--name", "web", IMAGE, "sleep", "1000"];
            docker.call(&detached).succeeds();
            assert_eq!(docker.call(&["exec", "web", "echo", "inside"]).succeeds().text(), "inside");
            docker.call(&["exec", "web", "sh", "-c", "exit 9"]).exits(9);
            let missing = docker.call(&["exec", "web", "no-such-command"]);
            assert!(missing.text().contains("executable file not found in $PATH"), "{missing:?}");
            let status =
                || docker.call(&["inspect", "--format", "{{.State.Status}}", "web"]).succeeds().text();
            docker.call(&["pause", "web"]).succeeds();
            assert_eq!(status(), "paused");
            docker.call(&["unpause", "web"]).succeeds();
            docker.call(&["update", "--memory", "128m", "--memory-swap", "-1", "web"]).succeeds();
            assert_eq!(docker.call(&["top", "web"]).succeeds().lines().len(), 2);
            docker.call(&["restart", "--time", "0", "web"]).succeeds();
            assert_eq!(status(), "running");
            docker.call(&["kill", "--signal", "KILL", "web"]).succeeds();
            docker.call(&["wait", "web"]).succeeds();
            assert_eq!(status(), "exited");
            docker.call(&["rm", "web"]).succeeds();
        });
    });
}
