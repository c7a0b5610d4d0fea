//! `run --image`: from an image to a running container in one command.

#![expect(clippy::unwrap_used, reason = "a helper of the tests fails as a test does")]

use std::fs;
use std::io::Read;
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use coracle_fixtures::layer::{Compression, Entry, Layer};
use coracle_fixtures::small;
use coracle_tests::image::{Store, kernel, stacks_layers};
use coracle_tests::registry::{Content, Registry, Reply};
use coracle_tests::{Host, Outcome, cgroup, command, privileged};

const IMAGE: &str = "coracle/small:latest";

#[test]
fn a_kernel_that_is_too_old_for_images_is_told() {
    privileged(|host| {
        if !host.needs_coracle("run --image") {
            return;
        }
        if kernel() >= (6, 5) {
            return host.skip("this kernel takes images");
        }
        let store = Store::new(host);
        store.import(&small::image());
        store.call(&["unpack", IMAGE]).fails_with(&["overlay", "invalid argument", "images need Linux 6.5"]);
    });
}

#[test]
fn the_root_of_a_container_is_not_unmounted_under_it() {
    privileged(|host| {
        let Some(runner) = Runner::new(host) else { return };
        let id = host.name("from-image");
        runner.run_as(&id, &["--detach"], &["sleep", "1000"]).succeeds();
        let words = ["is the root of a container", "delete the container"];
        runner.store.call(&["unmount", &id]).fails_with(&words);
        host.call(&["exec", &id, "touch", "/new"]).succeeds();
        host.call(&["delete", "--force", &id]).succeeds();
        runner.store.call(&["unmount", &id]).succeeds();
    });
}

/// A store with the small image, and containers of it.
struct Runner<'h> {
    host: &'h Host,
    store: Store<'h>,
}

impl<'h> Runner<'h> {
    fn new(host: &'h Host) -> Option<Self> {
        if !host.needs_coracle("run --image") || !stacks_layers(host) {
            return None;
        }
        let runner = Self { host, store: Store::new(host) };
        runner.store.import(&small::image());
        Some(runner)
    }

    fn run_as(&self, id: &str, options: &[&str], args: &[&str]) -> Outcome {
        let store = self.store.directory().to_str().unwrap();
        let head = ["run", "--store", store, "--image", IMAGE];
        self.host.call(&[&head[..], options, &[id, "--"], args].concat())
    }

    fn run(&self, options: &[&str], args: &[&str]) -> Outcome {
        self.run_as(&self.host.name("from-image"), options, args)
    }
}

#[test]
fn without_a_command_the_images_own_runs() {
    privileged(|host| {
        let Some(runner) = Runner::new(host) else { return };
        let store = runner.store.directory().to_str().unwrap();
        let run = host.call(&["run", "--store", store, "--image", IMAGE, "default"]).succeeds();
        assert_eq!(run.text(), "hello from three layers");
    });
}

#[test]
fn the_exit_status_comes_back() {
    privileged(|host| {
        let Some(runner) = Runner::new(host) else { return };
        runner.run(&[], &["sh", "-c", "exit 7"]).exits(7);
        runner.run(&[], &["sh", "-c", "kill -TERM $$; exit 9"]).exits(9);
        runner.run(&[], &["no-such-command"]).exits(127).fails_with(&["no-such-command"]);
        runner.run(&[], &["/etc/passwd"]).exits(126).fails_with(&["permission denied"]);
    });
}

#[test]
fn environment_directory_and_user_are_the_images_and_the_callers() {
    privileged(|host| {
        let Some(runner) = Runner::new(host) else { return };
        let options = ["-e", "WORD=word", "--user", "user"];
        let run = runner.run(&options, &["sh", "-c", "echo $BOAT $WORD; pwd; id -u; echo $HOME"]).succeeds();
        assert_eq!(run.lines(), ["coracle word", "/srv", "1000", "/home/user"]);
    });
}

#[test]
fn limits_are_written_and_usage_is_told() {
    privileged(|host| {
        let Some(runner) = Runner::new(host) else { return };
        let limits = ["--memory", "64m", "--cpus", "0.5", "--pids", "64", "--detach"];
        runner.run_as("limited", &limits, &["sleep", "1000"]).succeeds();
        let pid = host.call(&["state", "limited"]).succeeds().json()["pid"].as_i64().unwrap();
        let places = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
        let place = places.lines().find(|line| line.contains("pids") || line.starts_with("0::")).unwrap();
        let path = place.rsplit(':').next().unwrap();
        assert_eq!(cgroup::read(path, "pids.max").as_deref(), Some("64"));
        let stats = host.call(&["stats", "limited"]).succeeds().text();
        assert!(stats.contains("memory"), "{stats}");
        host.call(&["delete", "--force", "limited"]).succeeds();
    });
}

#[test]
fn too_much_memory_ends_in_137() {
    privileged(|host| {
        let Some(runner) = Runner::new(host) else { return };
        runner.run(&["--memory", "16m"], &["tail", "/dev/zero"]).exits(137);
    });
}

#[test]
fn the_default_filter_is_on_unless_told_otherwise() {
    privileged(|host| {
        let Some(runner) = Runner::new(host) else { return };
        let mode = ["sh", "-c", "sed -n 's/^Seccomp:[^0-9]*//p' /proc/self/status"];
        assert_eq!(runner.run(&[], &mode).succeeds().text(), "2");
        assert_eq!(runner.run(&["--seccomp", "unconfined"], &mode).succeeds().text(), "0");
    });
}

#[test]
fn volumes_are_the_hosts_directories() {
    privileged(|host| {
        let Some(runner) = Runner::new(host) else { return };
        let directory = host.directory();
        fs::write(directory.join("file"), "from the host\n").unwrap();
        let writable = format!("{}:/volume", directory.display());
        runner.run(&["-v", &writable], &["sh", "-c", "cat /volume/file; echo x > /volume/new"]).succeeds();
        assert!(directory.join("new").is_file());
        let fixed = format!("{writable}:ro");
        let run =
            runner.run(&["-v", &fixed], &["sh", "-c", "echo x > /volume/more || echo refused"]).succeeds();
        assert_eq!(run.text(), "refused");
    });
}

#[test]
fn the_network_is_none_or_the_hosts() {
    privileged(|host| {
        let Some(runner) = Runner::new(host) else { return };
        let own = fs::read_link("/proc/self/ns/net").unwrap().to_string_lossy().into_owned();
        let inside = |network: &str| {
            runner.run(&["--network", network], &["readlink", "/proc/self/ns/net"]).succeeds().text()
        };
        assert_ne!(inside("none"), own);
        assert_eq!(inside("host"), own);
    });
}

#[test]
fn what_one_container_writes_no_other_one_sees() {
    privileged(|host| {
        let Some(runner) = Runner::new(host) else { return };
        runner.run(&[], &["sh", "-c", "echo x > /new"]).succeeds();
        runner.run(&[], &["ls", "/new"]).exits(1);
    });
}

#[test]
fn two_run_at_once_and_take_an_exec() {
    privileged(|host| {
        let Some(runner) = Runner::new(host) else { return };
        for id in ["one", "two"] {
            runner.run_as(id, &["--detach"], &["sleep", "1000"]).succeeds();
        }
        let greeting = host.call(&["exec", "two", "cat", "/srv/greeting"]).succeeds();
        assert_eq!(greeting.text(), "hello from three layers");
        for id in ["one", "two"] {
            host.call(&["delete", "--force", id]).succeeds();
        }
    });
}

#[test]
fn an_image_chooses_no_options_for_its_volumes_and_gets_those_that_it_lacks() {
    privileged(|host| {
        let Some(runner) = Runner::new(host) else { return };
        let mut image = small::image();
        image.config["Volumes"] = serde_json::json!({
            "/sys:remount,rw": {}, "/sys/fs/cgroup:remount,rw": {}, "/volume/new": {}, "relative": {},
        });
        runner.store.import(&image);
        let script =
            "grep -E ' /sys(/fs/cgroup)? ' /proc/mounts; echo x > /volume/new/x && cat /volume/new/x";
        let shown = runner.run(&[], &["sh", "-c", script]).succeeds();
        assert_eq!(shown.lines().last().map(String::as_str), Some("x"), "{shown:?}");
        image.config["Volumes"] =
            serde_json::json!({ "/sys:remount,rw": {}, "/srv": {}, "/new/deep": {}, "relative": {} });
        image.layers.push(Layer::new(&[Entry::directory("sys:remount,rw")], Compression::Gzip));
        runner.store.import(&image);
        let shown = runner.run(&["--read-only"], &["sh", "-c", "grep ' /sys ' /proc/mounts; touch /srv/x"]);
        let shown = shown.succeeds().text();
        assert!(shown.lines().all(|line| line.contains(" ro,")) && !shown.is_empty(), "{shown}");
    });
}

#[test]
fn mount_points_that_a_read_only_root_lacks_are_made() {
    privileged(|host| {
        let Some(runner) = Runner::new(host) else { return };
        let mut image = small::image();
        image.layers.push(Layer::new(&[Entry::file(".wh.proc", "")], Compression::Plain));
        image.config["Volumes"] = serde_json::json!({ "/volume/new": {} });
        runner.store.import(&image);
        let script = "touch /cache/x /volume/new/x && test -e /proc/self && { touch /x || echo refused; }";
        let run = runner.run(&["--read-only", "--tmpfs", "/cache"], &["sh", "-c", script]);
        assert_eq!(run.succeeds().lines(), ["refused"]);
    });
}

/// Proxies, credentials and trust are the caller's, and a pull is a process of its own.
#[test]
fn a_pull_for_a_container_has_the_callers_environment_and_is_what_runs() {
    privileged(|host| {
        let Some(runner) = Runner::new(host) else { return };
        let content = Content::of(&small::image());
        let registry = Registry::start(move |request| match request.header("authorization") {
            Some("Basic bWU6aHVzaA==") => content.answer(request),
            _ => Reply::status(401).header("WWW-Authenticate", "Basic realm=\"r\""),
        });
        let (docker, certs) = (host.directory(), format!("/etc/coracle/certs.d/{}", registry.host()));
        let auths = serde_json::json!({ "auths": { registry.host(): { "auth": "bWU6aHVzaA==" } } });
        fs::write(docker.join("config.json"), auths.to_string()).unwrap();
        // An image of nearly the same name is not what was pulled.
        let mut decoy = small::image();
        (decoy.name, decoy.config["Cmd"]) = (registry.image("b"), serde_json::json!(["echo", "decoy"]));
        runner.store.import(&decoy);
        let script = format!(
            "mkdir -p /run/test/etc/upper /run/test/etc/work; \
             mount -t overlay overlay -o lowerdir=/etc,upperdir=/run/test/etc/upper,workdir=/run/test/etc/work /etc; \
             mkdir -p {certs}; echo 'server = \"http://{}\"' > {certs}/hosts.toml; export DOCKER_CONFIG={}; \
             run() {{ $RUNTIME run --store {} --image \"$@\"; }}; run {} {} && run {} --pull always {}",
            registry.host(),
            docker.display(),
            runner.store.directory().display(),
            registry.image("a"),
            host.name("pulled"),
            registry.image("b"),
            host.name("pulled"),
        );
        let run = host.shell(&script);
        host.shell("umount /etc").succeeds();
        assert_eq!(run.succeeds().lines(), ["hello from three layers", "hello from three layers"]);
    });
}

#[test]
fn an_image_that_is_not_there_is_named() {
    privileged(|host| {
        let Some(runner) = Runner::new(host) else { return };
        let store = runner.store.directory().to_str().unwrap();
        host.call(&["run", "--store", store, "--image", "no-such-image", "x"]).fails_with(&["no-such-image"]);
    });
}

#[test]
fn a_run_that_is_asked_to_end_while_it_pulls_ends() {
    privileged(|host| {
        if !host.needs_coracle("run --image") {
            return;
        }
        let store = Store::new(host);
        // It takes the connection, and never says anything.
        let registry = TcpListener::bind("127.0.0.1:0").unwrap();
        let image = format!("{}/app", registry.local_addr().unwrap());
        let mut run = Command::new(host.runtime());
        run.args(["run", "--store", store.directory().to_str().unwrap(), "--image", &image, "web"]);
        let mut run = run.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let connection = registry.accept().unwrap();
        let begin = Instant::now();
        host.shell(&format!("kill -TERM {}", run.id())).succeeds();
        assert!(!command::wait(&mut run, "the run").success());
        assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
        let mut said = String::new();
        run.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        assert!(said.contains("pull") && said.contains("interrupted by SIGTERM"), "{said}");
        host.call(&["state", "web"]).fails_with(&["does not exist"]);
        drop(connection);
    });
}

#[test]
fn a_terminal_is_kept_when_asked_for() {
    privileged(|host| {
        let Some(runner) = Runner::new(host) else { return };
        let store = runner.store.directory().display();
        let run = format!("$RUNTIME run --store {store} --image {IMAGE} --tty on-a-terminal -- tty");
        let run =
            host.shell(&format!("script --quiet --return --command '{run}' /dev/null </dev/null")).succeeds();
        assert!(run.text().contains("/dev/pts/0"), "{run:?}");
    });
}

#[test]
fn the_image_command_is_handed_over() {
    privileged(|host| {
        let Some(runner) = Runner::new(host) else { return };
        let store = runner.store.directory().to_str().unwrap();
        let list = host.call(&["image", "--store", store, "ls"]).succeeds().text();
        assert!(list.contains("coracle/small"), "{list}");
        command::eventually("nothing is mounted", || {
            !fs::read_to_string("/proc/self/mounts").unwrap().contains(store)
        });
    });
}
