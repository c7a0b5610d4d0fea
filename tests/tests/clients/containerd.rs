//! containerd's shim for runc, through `ctr`.

use std::fs;
use std::path::PathBuf;

use coracle_fixtures::small;
use coracle_tests::cgroup::read;
use coracle_tests::{Host, Outcome, command, privileged};

use crate::{Daemon, client, has, remove};

const IMAGE: &str = "docker.io/coracle/small:latest";

/// containerd on directories of the test, with the small image imported.
struct Containerd<'h> {
    host: &'h Host,
    socket: PathBuf,
}

impl Containerd<'_> {
    fn call(&self, args: &[&str]) -> Outcome {
        let mut command = client("ctr");
        command.arg("--address").arg(&self.socket).args(args);
        command::run(&mut command, &self.host.directory())
    }

    /// `ctr run` with this runtime.
    fn run(&self, options: &[&str], args: &[&str]) -> Outcome {
        let runtime = self.host.runtime().to_str().unwrap();
        self.call(&[&["run", "--runc-binary", runtime], options, &[IMAGE], args].concat())
    }

    /// A container that sleeps, called `task`.
    fn sleeper(&self, options: &[&str]) {
        self.run(&[&["--detach"], options].concat(), &["task", "sleep", "1000"]).succeeds();
    }

    fn status(&self) -> String {
        let list = self.call(&["tasks", "list"]).succeeds().text();
        let line = list.lines().find(|line| line.starts_with("task ")).unwrap_or_default().to_owned();
        line.split_whitespace().last().unwrap_or_default().to_owned()
    }

    fn remove_sleeper(&self) {
        self.call(&["tasks", "kill", "--signal", "KILL", "task"]).succeeds();
        command::eventually("the task ends", || self.status() == "STOPPED");
        self.call(&["tasks", "delete", "task"]);
        self.call(&["containers", "delete", "task"]).succeeds();
    }
}

fn with_containerd(host: &Host, test: fn(&Containerd<'_>)) {
    if !has(host, "containerd") || !has(host, "ctr") || !has(host, "containerd-shim-runc-v2") {
        return;
    }
    let directory = host.directory();
    let path = |name: &str| directory.join(name).to_str().unwrap().to_owned();
    let config = format!(
        "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
         [grpc]\naddress = {:?}\n[plugins.\"io.containerd.internal.v1.opt\"]\npath = {:?}\n",
        path("root"),
        path("state"),
        path("socket"),
        path("opt")
    );
    fs::write(path("config.toml"), config).unwrap();
    let mut command = client("containerd");
    command.args(["--config", &path("config.toml")]);
    let daemon = Daemon::start(host, command, &directory.join("socket"));
    let containerd = Containerd { host, socket: directory.join("socket") };
    fs::write(path("image.tar"), small::image().docker_archive_old()).unwrap();
    command::eventually("containerd serves", || containerd.call(&["version"]).code == 0);
    let import = containerd.call(&["images", "import", &path("image.tar")]).succeeds();
    let named = containerd.call(&["images", "list", "--quiet"]).succeeds().text();
    if named != IMAGE {
        containerd.call(&["images", "tag", &named, IMAGE]).succeeds();
    }
    assert!(!named.is_empty(), "{import:?}");
    test(&containerd);
    daemon.stop();
    remove(&["/run/containerd"], &["/default"]);
}

#[test]
#[ignore = "make test-clients"]
fn ctr_hands_output_exit_codes_and_environment_on() {
    privileged(|host| {
        with_containerd(host, |containerd| {
            let run = containerd.run(&["--rm"], &["one", "cat", "/srv/greeting"]).succeeds();
            assert_eq!(run.text(), "hello from three layers");
            containerd.run(&["--rm"], &["two", "sh", "-c", "exit 7"]).exits(7);
            let script = ["three", "sh", "-c", "echo $WORD; pwd"];
            let options = ["--rm", "--env", "WORD=word", "--cwd", "/tmp"];
            assert_eq!(containerd.run(&options, &script).succeeds().lines(), ["word", "/tmp"]);
            let missing = containerd.run(&["--rm"], &["four", "no-such-command"]);
            assert!(missing.code != 0 && missing.stderr.contains("executable file not found"), "{missing:?}");
            containerd.call(&["containers", "delete", "four"]);
        });
    });
}

#[test]
#[ignore = "make test-clients"]
fn ctr_limits_seccomp_and_mounts_apply() {
    privileged(|host| {
        with_containerd(host, |containerd| {
            let volume = containerd.host.directory();
            let mount = format!("type=bind,src={},dst=/volume,options=rbind:ro", volume.display());
            let options = ["--rm", "--seccomp", "--read-only", "--mount", &mount];
            let script = "grep -E '^Seccomp:' /proc/self/status; touch /volume/new /new 2>&1; echo end";
            let run = containerd.run(&options, &["one", "sh", "-c", script]).succeeds();
            assert!(run.text().starts_with("Seccomp:\t2"), "{run:?}");
            assert_eq!(run.text().matches("Read-only file system").count(), 2, "{run:?}");
            containerd.sleeper(&["--memory-limit", "67108864"]);
            let limit = ["memory.limit_in_bytes", "memory.max"].iter().find_map(|f| read("/default/task", f));
            assert_eq!(limit.as_deref(), Some("67108864"));
            containerd.remove_sleeper();
        });
    });
}

#[test]
#[ignore = "make test-clients"]
fn ctr_tasks_execute_pause_resume_list_and_measure() {
    privileged(|host| {
        with_containerd(host, |containerd| {
            containerd.sleeper(&[]);
            let exec = ["tasks", "exec", "--exec-id", "first", "task", "sh", "-c", "echo inside; exit 9"];
            assert_eq!(containerd.call(&exec).exits(9).text(), "inside");
            containerd.call(&["tasks", "pause", "task"]).succeeds();
            assert_eq!(containerd.status(), "PAUSED");
            containerd.call(&["tasks", "resume", "task"]).succeeds();
            assert_eq!(containerd.status(), "RUNNING");
            let processes = containerd.call(&["tasks", "ps", "task"]).succeeds();
            assert_eq!(processes.lines().len(), 2, "{processes:?}");
            assert!(containerd.call(&["tasks", "metrics", "task"]).succeeds().text().contains("memory"));
            containerd.remove_sleeper();
        });
    });
}
