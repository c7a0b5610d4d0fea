//! podman with this runtime: what its users do every day.

use std::fs;
use std::path::PathBuf;

use coracle_fixtures::small;
use coracle_tests::cgroup::hierarchies_of;
use coracle_tests::{Host, Outcome, command, privileged};

use crate::{client, remove, storage, unpacked, write_containers_conf};

const IMAGE: &str = "localhost/coracle/small:latest";

/// podman on directories of the test, with the small image loaded.
struct Podman<'h> {
    host: &'h Host,
    directory: PathBuf,
}

impl<'h> Podman<'h> {
    fn new(host: &'h Host) -> Option<Self> {
        if !host.needs_program("podman") || !host.needs_program("conmon") {
            return None;
        }
        let podman = Self { host, directory: host.directory() };
        // A pod is held open by a program of a package of its own.
        let helpers = unpacked().join("usr/libexec/podman");
        let engine = format!("[engine]\nevents_logger = \"file\"\nhelper_binaries_dir = [{helpers:?}]\n");
        write_containers_conf(&podman.directory, &engine);
        fs::write(podman.directory.join("image.tar"), small::image().docker_archive_old()).unwrap();
        let policy = podman.path("policy.json");
        let archive = podman.path("image.tar");
        podman.call(&["load", "--signature-policy", &policy, "--input", &archive]).succeeds();
        Some(podman)
    }

    fn path(&self, name: &str) -> String {
        self.directory.join(name).to_str().unwrap().to_owned()
    }

    fn call(&self, args: &[&str]) -> Outcome {
        let mut command = client("podman");
        command
            .args(storage(&self.directory))
            .args(["--tmpdir", &self.path("tmp"), "--cgroup-manager", "cgroupfs", "--runtime"])
            .arg(self.host.runtime())
            .args(args)
            .env("CONTAINERS_CONF", self.path("containers.conf"));
        command::run(&mut command, &self.host.directory())
    }

    fn run(&self, options: &[&str], args: &[&str]) -> Outcome {
        self.call(&[&["run", "--rm", "--network", "none"], options, &[IMAGE], args].concat())
    }

    /// Removes what podman itself keeps in /run and /var/lib, and conmon's cgroup, which is none of the runtime's.
    fn clean(&self) {
        // With the cleanup that conmon begins when a container has ended, which mounts and makes files, too.
        command::eventually("conmon leaves its cgroup", || {
            for directory in hierarchies_of("/libpod_parent") {
                let _ = fs::remove_dir(directory.join("conmon"));
                let _ = fs::remove_dir(directory);
            }
            hierarchies_of("/libpod_parent").is_empty()
        });
        let root = self.path("root");
        let mounted =
            || fs::read_to_string("/proc/self/mounts").unwrap().lines().any(|line| line.contains(&root));
        if mounted() {
            self.host
                .shell(&format!("grep -o '{root}[^ ]*' /proc/self/mounts | sort -r | xargs umount"))
                .succeeds();
        }
        let kept = [
            "/run/libpod",
            "/run/containers",
            "/run/lock",
            "/var/lib/containers",
            "/var/lib/cni",
            "/run/netns",
        ];
        remove(&kept, &[]);
    }
}

fn with_podman(host: &Host, test: fn(&Podman<'_>)) {
    if let Some(podman) = Podman::new(host) {
        test(&podman);
        podman.clean();
    }
}

#[test]
fn exit_codes_and_output_come_back() {
    privileged(|host| {
        with_podman(host, |podman| {
            assert_eq!(podman.run(&[], &[]).succeeds().text(), "hello from three layers");
            podman.run(&[], &["sh", "-c", "exit 7"]).exits(7);
            podman.run(&[], &["no-such-command"]).exits(127);
            podman.run(&[], &["/etc/passwd"]).exits(126);
        });
    });
}

#[test]
fn a_container_is_looked_into_by_its_process() {
    privileged(|host| {
        with_podman(host, |podman| {
            podman
                .call(&["run", "--detach", "--network", "none", "--name", "seen", IMAGE, "sleep", "1000"])
                .succeeds();
            let pid = podman.call(&["inspect", "--format", "{{.State.Pid}}", "seen"]).succeeds().text();
            let script = "cat /srv/greeting; hostname; ps -o pid,args | grep 'sleep 100[0]'; echo $container";
            let run = podman.host.call(&["debug", "--pid", &pid, "--", "sh", "-c", script]).succeeds();
            assert!(run.text().starts_with("hello from three layers"), "{run:?}");
            assert!(run.text().contains("    1 sleep 1000") && run.text().ends_with("podman"), "{run:?}");
            podman.call(&["rm", "--force", "--time", "0", "seen"]).succeeds();
        });
    });
}

#[test]
fn environment_user_directory_and_volumes_arrive() {
    privileged(|host| {
        with_podman(host, |podman| {
            let script = ["sh", "-c", "echo $BOAT $WORD; id -u; pwd; cat /volume/file; echo x > /volume/new"];
            let volume = podman.host.directory();
            fs::write(volume.join("file"), "from the host\n").unwrap();
            fs::set_permissions(&volume, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
            let mount = format!("{}:/volume", volume.display());
            let options = ["--env", "WORD=word", "--user", "1000", "--workdir", "/tmp", "--volume", &mount];
            let run = podman.run(&options, &script).succeeds();
            assert_eq!(run.lines(), ["coracle word", "1000", "/tmp", "from the host"]);
            assert_eq!(fs::read_to_string(volume.join("new")).unwrap(), "x\n");
        });
    });
}

#[test]
fn a_read_only_container_has_writable_temporary_files() {
    privileged(|host| {
        with_podman(host, |podman| {
            let script = "touch /new 2>/dev/null || echo refused; echo x > /tmp/new && echo x > /run/new && echo written; \
                          cat /srv/greeting; echo x > /srv/greeting && cat /srv/greeting";
            let options = ["--read-only", "--tmpfs", "/srv"];
            let run = podman.run(&options, &["sh", "-c", script]).succeeds();
            assert_eq!(run.lines(), ["refused", "written", "hello from three layers", "x"]);
            podman.run(&["--systemd", "always"], &["touch", "/run/lock/new"]).succeeds();
        });
    });
}

#[test]
fn volumes_and_temporary_files_take_their_options() {
    privileged(|host| {
        with_podman(host, |podman| {
            let volume = podman.host.directory();
            fs::write(volume.join("file"), "from the host\n").unwrap();
            let volume = volume.display();
            let script = "cat /ro/file; touch /ro/x 2>/dev/null || echo refused; cat /other/file; stat -c %a /scratch; \
                          grep -c -e ' /scratch .*nosuid.*size=1024k' -e ' /ro [^ ]* ro,.*noexec' /proc/self/mounts";
            let options = [
                format!("--volume={volume}:/ro:ro,noexec,rslave"),
                format!("--volume={volume}:/other:nodev"),
                "--mount=type=tmpfs,destination=/scratch,tmpfs-size=1m,tmpfs-mode=1770".to_owned(),
            ];
            let options: Vec<&str> = options.iter().map(String::as_str).collect();
            let run = podman.run(&options, &["sh", "-c", script]).succeeds();
            assert_eq!(run.lines(), ["from the host", "refused", "from the host", "1770", "2"]);
        });
    });
}

#[test]
fn a_memory_limit_is_the_cgroups() {
    privileged(|host| {
        with_podman(host, |podman| {
            let files = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes || cat /sys/fs/cgroup/memory.max";
            let run = podman.run(&["--memory", "64m"], &["sh", "-c", files]).succeeds();
            assert_eq!(run.text(), "67108864");
        });
    });
}

#[test]
fn exec_stop_and_remove_work_on_a_detached_container() {
    privileged(|host| {
        with_podman(host, |podman| {
            let detached = ["run", "--detach", "--network", "none", "--name", "web", IMAGE, "sleep", "1000"];
            podman.call(&detached).succeeds();
            assert_eq!(
                podman.call(&["exec", "web", "cat", "/srv/greeting"]).succeeds().text(),
                "hello from three layers"
            );
            podman.call(&["exec", "web", "sh", "-c", "exit 9"]).exits(9);
            podman.call(&["exec", "web", "no-such-command"]).exits(127);
            podman.call(&["stop", "--time", "0", "web"]).succeeds();
            podman.call(&["rm", "web"]).succeeds();
        });
    });
}

#[test]
fn logs_hold_what_a_detached_container_said() {
    privileged(|host| {
        with_podman(host, |podman| {
            let detached =
                ["run", "--detach", "--network", "none", "--name", "talker", IMAGE, "echo", "said"];
            podman.call(&detached).succeeds();
            podman.call(&["wait", "talker"]).succeeds();
            assert_eq!(podman.call(&["logs", "talker"]).succeeds().text(), "said");
            podman.call(&["rm", "talker"]).succeeds();
        });
    });
}

/// A container called `web` that sleeps.
fn sleeper(podman: &Podman<'_>, options: &[&str]) {
    let detached = ["run", "--detach", "--network", "none", "--name", "web"];
    podman.call(&[&detached[..], options, &[IMAGE, "sleep", "1000"]].concat()).succeeds();
}

fn status(podman: &Podman<'_>) -> String {
    podman.call(&["inspect", "--format", "{{.State.Status}}", "web"]).succeeds().text()
}

#[test]
#[ignore = "make test-clients"]
fn podman_pauses_kills_and_updates() {
    privileged(|host| {
        with_podman(host, |podman| {
            sleeper(podman, &[]);
            podman.call(&["pause", "web"]).succeeds();
            assert_eq!(status(podman), "paused");
            podman.call(&["unpause", "web"]).succeeds();
            assert_eq!(status(podman), "running");
            podman.call(&["update", "--memory", "128m", "web"]).succeeds();
            assert!(podman.call(&["top", "web"]).succeeds().text().contains("sleep"));
            podman.call(&["kill", "--signal", "KILL", "web"]).succeeds();
            assert_eq!(podman.call(&["wait", "web"]).succeeds().text(), "137");
            podman.call(&["rm", "web"]).succeeds();
        });
    });
}

#[test]
#[ignore = "make test-clients"]
fn podman_runs_health_checks() {
    privileged(|host| {
        with_podman(host, |podman| {
            sleeper(
                podman,
                &["--health-cmd", "cat /tmp/well", "--health-interval", "disable", "--health-retries", "1"],
            );
            podman.call(&["healthcheck", "run", "web"]).exits(1);
            podman.call(&["exec", "web", "touch", "/tmp/well"]).succeeds();
            podman.call(&["healthcheck", "run", "web"]).succeeds();
            podman.call(&["rm", "--force", "--time", "0", "web"]).succeeds();
        });
    });
}

#[test]
#[ignore = "make test-clients"]
fn podman_writes_containers_to_files_and_goes_on_with_them() {
    privileged(|host| {
        if host.shell("criu check").code != 0 {
            return host.skip("criu works here");
        }
        with_podman(host, |podman| {
            let count = "i=0; while :; do i=$((i+1)); echo $i >/tmp/count; sleep 0.05; done";
            let script = ["sh", "-c", count];
            let options = ["run", "--detach", "--name", "web", "--network", "none", IMAGE];
            podman.call(&[&options[..], &script].concat()).succeeds();
            let counted = || podman.call(&["exec", "web", "cat", "/tmp/count"]).text().parse().unwrap_or(0);
            command::eventually("it counts", || counted() > 5);
            let before: u32 = counted();
            podman.call(&["container", "checkpoint", "web"]).succeeds();
            assert_eq!(status(podman), "exited");
            podman.call(&["container", "restore", "web"]).succeeds();
            command::eventually("it goes on", || counted() > before);
            podman.call(&["rm", "--force", "--time", "0", "web"]).succeeds();
        });
        let _ = fs::remove_file("/run/criu.kdat");
    });
}

#[test]
#[ignore = "make test-clients"]
fn podman_makes_containers_read_only_filtered_and_limited() {
    privileged(|host| {
        with_podman(host, |podman| {
            let profile = podman.path("seccomp.json");
            let rules = serde_json::json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
                {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}]});
            fs::write(&profile, rules.to_string()).unwrap();
            let filter = format!("seccomp={profile}");
            let options = ["--read-only", "--security-opt", &filter, "--pids-limit", "50", "--cpus", "0.5"];
            let script = "touch /new 2>&1; mkdir /tmp/x 2>&1; grep ^Seccomp: /proc/self/status;
                cat /sys/fs/cgroup/pids/pids.max 2>/dev/null || cat /sys/fs/cgroup/pids.max";
            let run = podman.run(&options, &["sh", "-c", script]).succeeds();
            for words in ["Read-only file system", "Function not implemented", "Seccomp:\t2", "50"] {
                assert!(run.text().contains(words), "{words:?}: {run:?}");
            }
        });
    });
}

#[test]
#[ignore = "make test-clients"]
fn podman_shares_namespaces_in_a_pod() {
    privileged(|host| {
        with_podman(host, |podman| {
            if !unpacked().join("usr/libexec/podman/catatonit").is_file() {
                return podman.host.skip("catatonit is not unpacked");
            }
            podman
                .call(&["pod", "create", "--name", "pod", "--network", "none", "--hostname", "shared"])
                .succeeds();
            let inside =
                |script: &str| podman.call(&["run", "--rm", "--pod", "pod", IMAGE, "sh", "-c", script]);
            let place = "hostname; readlink /proc/self/ns/net; readlink /proc/self/ns/ipc";
            let [one, other] = [inside(place), inside(place)].map(|run| run.succeeds().text());
            assert!(one.starts_with("shared"), "{one}");
            assert_eq!(one, other);
            podman.call(&["pod", "rm", "--force", "--time", "0", "pod"]).succeeds();
        });
    });
}
