//! podman of a user without privilege: it calls the runtime as the root of a user namespace of its own.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use coracle_fixtures::small;
use coracle_tests::user::{USER, as_user};
use coracle_tests::{Host, Outcome, unprivileged};

const IMAGE: &str = "localhost/coracle/small:latest";

/// podman of the user, on directories of the test, with the small image loaded.
struct Podman<'h> {
    host: &'h Host,
    directory: PathBuf,
}

impl Podman<'_> {
    fn path(&self, name: &str) -> String {
        self.directory.join(name).to_str().unwrap().to_owned()
    }

    fn call(&self, args: &str) -> Outcome {
        let (home, conf, session) = (self.path("home"), self.path("containers.conf"), self.path("session"));
        let places = format!(
            "--root {home}/root --runroot {session}/runroot --tmpdir {session}/tmp --storage-driver vfs"
        );
        let name = self.host.runtime().file_name().unwrap().to_str().unwrap();
        self.host.shell(&format!(
            "cd / && exec {} env -i PATH=\"$PATH\" HOME={home} XDG_RUNTIME_DIR={session} CONTAINERS_CONF={conf} \
            podman {places} --cgroup-manager cgroupfs --runtime /run/test/user/bin/{name} {args}",
            as_user(USER)
        ))
    }

    fn run(&self, options: &str, command: &str) -> Outcome {
        self.call(&format!("run --rm --network none {options} {IMAGE} {command}"))
    }
}

/// Sets podman up, runs the test, and ends what podman leaves.
fn with_podman(host: &Host, test: impl FnOnce(&Podman<'_>)) {
    if !["podman", "conmon", "newuidmap"].iter().all(|program| host.needs_program(program)) {
        return;
    }
    let podman = Podman { host, directory: host.directory() };
    let write = |name: &str, bytes: &[u8]| fs::write(podman.directory.join(name), bytes).unwrap();
    // This machine may lack CAP_SYS_RESOURCE, so no limit may be raised.
    let limits = "[containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=4096:4096\"]\n";
    write("containers.conf", format!("{limits}[engine]\nevents_logger = \"file\"\n").as_bytes());
    write("policy.json", b"{\"default\": [{\"type\": \"insecureAcceptAnything\"}]}");
    write("image.tar", &small::image().docker_archive_old());
    for name in ["home", "session"] {
        fs::create_dir(podman.directory.join(name)).unwrap();
    }
    host.give(&podman.directory);
    let session = podman.directory.join("session");
    fs::set_permissions(session, fs::Permissions::from_mode(0o700)).unwrap();
    let (policy, image) = (podman.path("policy.json"), podman.path("image.tar"));
    podman.call(&format!("load --signature-policy {policy} --input {image}")).succeeds();
    test(&podman);
    // Ends the process that holds its user namespace, too.
    podman.call("system migrate").succeeds();
}

#[test]
fn exit_codes_and_output_come_back() {
    unprivileged(|host| {
        with_podman(host, |podman| {
            assert_eq!(podman.run("", "").succeeds().text(), "hello from three layers");
            podman.run("", "sh -c 'exit 7'").exits(7);
            podman.run("", "no-such-command").exits(127);
        });
    });
}

#[test]
fn users_are_those_of_the_range() {
    unprivileged(|host| {
        with_podman(host, |podman| {
            let map = podman.run("", "cat /proc/self/uid_map").succeeds().text();
            assert_eq!(map.split_whitespace().take(3).collect::<Vec<_>>(), ["0", "4242", "1"]);
            assert_eq!(podman.run("--user 1000:1000", "id -u").succeeds().text(), "1000");
            // A user namespace in the user namespace.
            assert_eq!(podman.run("--userns keep-id", "id -u").succeeds().text(), USER.to_string());
        });
    });
}

#[test]
fn one_in_the_background_is_entered_stopped_and_removed() {
    unprivileged(|host| {
        with_podman(host, |podman| {
            podman.call(&format!("run --detach --name web --network none {IMAGE} sleep 1000")).succeeds();
            assert_eq!(podman.call("exec web id -u").succeeds().text(), "0");
            assert!(Path::new(&podman.path("session/coracle")).is_dir(), "its states are in the session");
            assert!(podman.call("ps --format {{.Names}}").succeeds().text().contains("web"));
            podman.call("stop --time 1 web").succeeds();
            podman.call("rm web").succeeds();
        });
    });
}

#[test]
fn the_hosts_network_and_a_read_only_root_work() {
    unprivileged(|host| {
        with_podman(host, |podman| {
            podman.call(&format!("run --rm --network host {IMAGE} ls /sys/class/net/lo")).succeeds();
            let script = "'touch /tmp/x && ! touch /x 2>/dev/null && echo done'";
            let run = podman.run("--read-only --tmpfs /tmp", &format!("sh -c {script}"));
            assert_eq!(run.succeeds().text(), "done");
        });
    });
}
