//! The programs that people start containers with, and this runtime below them, on directories and sockets of the
//! test.
//!
//! podman's everyday work runs with the other tests. The rest is marked as ignored: `make test-clients` fetches the
//! programs, unpacks them, and says by `CORACLE_CLIENTS` where.

#![expect(clippy::unwrap_used, reason = "a helper of the tests fails as a test does")]

mod buildah;
mod containerd;
mod docker;
mod podman;
mod rootless;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use coracle_tests::{Host, command};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Where the distribution's packages are unpacked.
fn unpacked() -> PathBuf {
    std::env::var_os("CORACLE_CLIENTS").map_or_else(PathBuf::new, PathBuf::from)
}

/// A command with the unpacked programs before those of the machine.
fn client(program: &str) -> Command {
    let mut places = vec![unpacked().join("usr/bin"), unpacked().join("usr/sbin")];
    places.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
    let found = places.iter().map(|place| place.join(program)).find(|path| path.is_file());
    let mut command = Command::new(found.unwrap_or_else(|| PathBuf::from(program)));
    command.env("PATH", std::env::join_paths(places).unwrap()).stdin(Stdio::null());
    command
}

/// Where podman and buildah keep what is theirs below `directory`.
fn storage(directory: &Path) -> Vec<String> {
    let option = |name: &str, value: &Path| [format!("--{name}"), value.to_str().unwrap().to_owned()];
    let places = [option("root", &directory.join("root")), option("runroot", &directory.join("runroot"))];
    [&places.concat()[..], &option("storage-driver", Path::new("vfs"))].concat()
}

/// Writes what podman and buildah read: no limit is raised, as this machine may lack CAP_SYS_RESOURCE; images need no
/// signature; and `more`.
fn write_containers_conf(directory: &Path, more: &str) {
    let limits = "[containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=4096:4096\"]\n";
    fs::write(directory.join("containers.conf"), format!("{limits}{more}")).unwrap();
    fs::write(directory.join("policy.json"), "{\"default\": [{\"type\": \"insecureAcceptAnything\"}]}")
        .unwrap();
}

/// Whether a program is there, unpacked or installed; records a skipped test if not.
fn has(host: &Host, program: &str) -> bool {
    let path = client(program).get_program().to_owned();
    Path::new(&path).is_absolute() || host.needs_program(program)
}

/// A daemon of the test, up once its socket is there.
struct Daemon {
    child: Child,
    log: PathBuf,
}

impl Daemon {
    fn start(host: &Host, mut command: Command, socket: &Path) -> Self {
        let log = host.directory().join("log");
        let file = File::create(&log).unwrap();
        command.stdout(file.try_clone().unwrap()).stderr(file);
        let child = command.spawn().unwrap();
        let mut daemon = Self { child, log };
        command::eventually("the daemon's socket is there", || {
            assert!(daemon.child.try_wait().unwrap().is_none(), "{}", daemon.told());
            socket.exists()
        });
        daemon
    }

    fn told(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn stop(mut self) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), Signal::SIGTERM).unwrap();
        command::wait(&mut self.child, "the daemon");
    }
}

/// Removes what clients keep at places of their own, and cgroups that are empty when they are gone.
fn remove(directories: &[&str], cgroups: &[&str]) {
    for path in directories {
        let _ = fs::remove_dir_all(path);
    }
    for cgroup in cgroups {
        command::eventually("the client's cgroup is empty", || {
            let left = coracle_tests::cgroup::hierarchies_of(cgroup);
            left.iter().for_each(|directory| {
                let _ = fs::remove_dir(directory);
            });
            coracle_tests::cgroup::hierarchies_of(cgroup).is_empty()
        });
    }
}
