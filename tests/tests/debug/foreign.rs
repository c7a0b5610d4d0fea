//! Containers of other runtimes, by the number of a process.

use std::process::{Child, Command, Stdio};

use coracle_tests::{Host, Spec, command, privileged};

use crate::{can_debug, from_scratch, sessions};

/// A process in namespaces of its own, that no runtime has made.
struct Unshared {
    parent: Child,
    pid: String,
}

impl Unshared {
    /// Runs `script` in the root `root`, with a procfs in it.
    fn new(root: &str, script: &str) -> Self {
        let script = format!("mount -t proc proc {root}/proc && exec chroot {root} {script}");
        let mut command = Command::new("unshare");
        command.args(["--fork", "--kill-child", "--pid", "--mount", "--uts", "--ipc", "--net", "sh", "-c"]);
        let parent = command.arg(script).stdin(Stdio::null()).spawn().unwrap();
        let children = format!("/proc/{0}/task/{0}/children", parent.id());
        let mut pid = String::new();
        command::eventually("it runs", || {
            pid = command::tool("cat", &[&children]).trim().to_owned();
            let program = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            program.trim() == "sleep"
        });
        Self { parent, pid }
    }

    fn end(mut self) {
        self.parent.kill().unwrap();
        self.parent.wait().unwrap();
    }
}

/// A root with busybox, for a process that no runtime has made.
fn root(host: &Host) -> String {
    let bundle = host.bundle(Spec::new());
    std::fs::create_dir_all(bundle.rootfs().join("proc")).unwrap();
    bundle.rootfs().to_str().unwrap().to_owned()
}

fn by_pid(host: &Host, pid: &str, options: &[&str], args: &[&str]) -> coracle_tests::Outcome {
    host.call(&[&["debug", "--pid", pid], options, &["--"], args].concat())
}

#[test]
fn a_process_that_no_runtime_made_is_looked_into() {
    privileged(|host| {
        if !can_debug(host) || !host.needs_program("unshare") {
            return;
        }
        let root = root(host);
        std::fs::write(format!("{root}/file"), "its own").unwrap();
        let target =
            Unshared::new(&root, "sh -c 'export SEEN=yes; hostname foreign; exec env NAME=1 sleep 1000'");
        let script = "hostname; cat /file; echo; echo $SEEN $NAME; ps -o pid,args; ls /sys | wc -l";
        let run = by_pid(host, &target.pid, &[], &["sh", "-c", script]).succeeds();
        assert!(run.text().starts_with("foreign\nits own\nyes 1\n"), "{run:?}");
        assert!(run.text().contains("    1 sleep 1000") && run.text().ends_with("\n0"), "{run:?}");
        for namespace in ["pid", "net", "ipc", "uts"] {
            let its = std::fs::read_link(format!("/proc/{}/ns/{namespace}", target.pid)).unwrap();
            let own = by_pid(host, &target.pid, &[], &["readlink", &format!("/proc/self/ns/{namespace}")]);
            assert_eq!(own.succeeds().text(), its.to_str().unwrap());
        }
        target.end();
        command::eventually("no session is left", || sessions(host).is_empty());
    });
}

#[test]
fn the_rights_of_a_foreign_process_bound_the_session() {
    privileged(|host| {
        if !can_debug(host) || !host.needs_program("setpriv") {
            return;
        }
        let root = root(host);
        let mut target = Command::new("setpriv")
            .args(["--reuid=33", "--regid=33", "--groups=7", "--no-new-privs", "--bounding-set=-all,+kill"])
            .args(["unshare", "--user", "--map-root-user", "sleep", "1000"])
            .current_dir(&root)
            .spawn()
            .unwrap();
        let pid = target.id().to_string();
        command::eventually("it sleeps", || {
            std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim() == "sleep"
        });
        let script = "readlink /proc/self/ns/user; id -u; grep -E 'NoNewPrivs|CapBnd' /proc/self/status";
        let run = by_pid(host, &pid, &["--join", "user"], &["sh", "-c", script]).succeeds();
        let its = std::fs::read_link(format!("/proc/{pid}/ns/user")).unwrap();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let bounding = status.lines().find(|line| line.starts_with("CapBnd")).unwrap();
        assert_eq!(run.lines(), [its.to_str().unwrap(), "0", bounding, "NoNewPrivs:\t1"]);
        target.kill().unwrap();
        target.wait().unwrap();
    });
}

#[test]
fn a_container_of_runc_is_looked_into() {
    privileged(|host| {
        if !can_debug(host) || !host.needs_program("runc") {
            return;
        }
        let bundle = from_scratch(host, Spec::new().set("/hostname", "runcs"));
        let id = bundle.id().to_owned();
        let directory = bundle.directory().to_str().unwrap().to_owned();
        let run = host.shell(&format!("runc run --detach --bundle {directory} {id} && runc state {id}"));
        let pid = run.succeeds().json()["pid"].to_string();
        let seen = by_pid(host, &pid, &[], &["/busybox", "ps"]).succeeds();
        assert!(seen.text().contains("/busybox sleep 1000"), "{seen:?}");
        assert_eq!(by_pid(host, &pid, &[], &["/busybox", "hostname"]).succeeds().text(), "runcs");
        host.shell(&format!("runc delete --force {id}")).succeeds();
    });
}
