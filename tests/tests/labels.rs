//! The labels of security modules: applied through the host's procfs, or a clear error.

#![expect(clippy::unwrap_used, reason = "a helper of the tests fails as a test does")]

use std::fs;
use std::process::Command;

use coracle_tests::command::{eventually, tool};
use coracle_tests::user::USER;
use coracle_tests::{Host, Spec, privileged, unprivileged};
use serde_json::json;

fn has_apparmor() -> bool {
    fs::read_to_string("/sys/module/apparmor/parameters/enabled").is_ok_and(|answer| answer.starts_with('Y'))
}

/// A profile that allows everything but to write to `/forbidden`, loaded for one test.
struct Profile {
    path: String,
    has_mounted: bool,
}

impl Profile {
    /// `None`, counted, where it can't be loaded. Every test has a name of its own: they share the kernel's profiles.
    fn load(host: &Host, name: &str) -> Option<Self> {
        if !has_apparmor() {
            host.skip("AppArmor is not enabled");
            return None;
        }
        if !host.needs_program("apparmor_parser") {
            return None;
        }
        let has_mounted = !fs::exists("/sys/kernel/security/apparmor").unwrap();
        if has_mounted {
            tool("mount", &["-t", "securityfs", "none", "/sys/kernel/security"]);
        }
        let path = host.directory().join("profile");
        let allowed = "file, capability, mount, umount, pivot_root, network, unix, signal, ptrace, dbus,";
        fs::write(&path, format!("profile {name} {{ {allowed} deny /forbidden w, }}\n")).unwrap();
        let profile = Self { path: path.to_str().unwrap().to_owned(), has_mounted };
        profile.parser("--replace");
        Some(profile)
    }

    fn parser(&self, what: &str) {
        let run = Command::new("apparmor_parser").args([what, "--skip-cache", &self.path]).output().unwrap();
        assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    }
}

impl Drop for Profile {
    fn drop(&mut self) {
        self.parser("--remove");
        if self.has_mounted {
            tool("umount", &["/sys/kernel/security"]);
        }
    }
}

#[test]
fn a_profile_confines_the_container_and_what_is_executed_in_it() {
    privileged(|host| {
        let name = "coracle-test-confined";
        let Some(_profile) = Profile::load(host, name) else { return };
        let spec = Spec::new()
            .set("/process/apparmorProfile", name)
            .script("touch /forbidden || echo refused; touch /allowed && exec sleep 1000");
        let container = host.bundle(spec).start();
        let current = || fs::read_to_string(format!("/proc/{}/attr/current", container.pid())).unwrap();
        assert_eq!(current().trim_end(), "coracle-test-confined (enforce)");
        eventually("the script to run", || container.output().contains("refused"));
        let run = container.exec(&["cat", "/proc/self/attr/current"]).succeeds();
        assert_eq!(run.text(), "coracle-test-confined (enforce)");
        container.remove();
    });
}

#[test]
fn c02_a_mount_over_proc_does_not_keep_the_profile_from_being_applied() {
    privileged(|host| {
        let name = "coracle-test-c02";
        let Some(_profile) = Profile::load(host, name) else { return };
        let fake = host.directory();
        fs::create_dir_all(fake.join("self/attr/apparmor")).unwrap();
        fs::write(fake.join("self/attr/apparmor/exec"), "").unwrap();
        fs::write(fake.join("self/attr/exec"), "").unwrap();
        let spec = Spec::new()
            .set("/process/apparmorProfile", name)
            .without_mount("/proc")
            .bind(fake.to_str().unwrap(), "/proc", &[])
            .set("/linux/maskedPaths", json!([]))
            .set("/linux/readonlyPaths", json!([]))
            .args(["sleep", "1000"]);
        let container = host.bundle(spec).start();
        let current = fs::read_to_string(format!("/proc/{}/attr/current", container.pid())).unwrap();
        assert_eq!(current.trim_end(), "coracle-test-c02 (enforce)");
        container.exec_with(&["--detach"], &["sleep", "1001"]).succeeds();
        let pids = host.call(&["ps", "--format", "json", container.id()]).succeeds().json();
        for pid in pids.as_array().unwrap() {
            let current = fs::read_to_string(format!("/proc/{pid}/attr/current")).unwrap();
            assert_eq!(current.trim_end(), "coracle-test-c02 (enforce)");
        }
        for file in ["self/attr/apparmor/exec", "self/attr/exec"] {
            assert_eq!(fs::read_to_string(fake.join(file)).unwrap(), "");
        }
        container.remove();
    });
}

/// Nor does the procfs by which it gets its label show it what is masked elsewhere.
#[test]
fn an_executed_process_with_a_label_comes_into_sight_with_nothing_of_the_host() {
    privileged(|host| {
        let name = "coracle-test-seen";
        let Some(_profile) = Profile::load(host, name) else { return };
        if !host.needs_coracle("what strace(1) slows down") || !host.needs_program("strace") {
            return;
        }
        let secret = host.directory().join("secret");
        fs::write(&secret, "").unwrap();
        let script = format!(
            "while :; do for p in /proc/[0-9]*; do for way in $p/root $p/cwd $p/fd/*; do
                [ -e $way/../../../../../../../..{} ] || [ -e $way/../../sysrq-trigger ] && echo $way >>/seen
            done; done; done",
            secret.display()
        );
        let spec = Spec::new().capabilities(&["CAP_SYS_PTRACE", "CAP_DAC_READ_SEARCH"]).script(&script);
        let container = host.bundle(spec).start();
        for call in ["setns", "fsmount", "readlinkat", "close_range"] {
            let slowly =
                format!("strace -f -qq -o /dev/null -e inject={call}:delay_enter=100000:delay_exit=100000");
            let exec = format!(
                "{slowly} $RUNTIME exec --apparmor {name} {} cat /proc/self/attr/current",
                container.id()
            );
            assert_eq!(host.shell(&exec).succeeds().text(), "coracle-test-seen (enforce)");
        }
        let seen = fs::read_to_string(container.bundle().rootfs().join("seen"));
        assert!(seen.is_err(), "ways to the host: {}", seen.unwrap());
        container.remove();
    });
}

/// It may make no procfs of its own, and opens the container's, where that is one.
#[test]
fn a_process_that_a_user_without_privilege_executes_gets_its_label() {
    unprivileged(|host| {
        let name = "coracle-test-rootless";
        let Some(_profile) = Profile::load(host, name) else { return };
        let own = json!([{"containerID": 0, "hostID": USER, "size": 1}]);
        let spec = || {
            let spec = Spec::new().namespace("user").without_mount("/dev/pts").args(["sleep", "1000"]);
            spec.set("/linux/uidMappings", own.clone()).set("/linux/gidMappings", own.clone())
        };
        let container = host.bundle(spec()).start();
        let run = container.exec_with(&["--apparmor", name], &["cat", "/proc/self/attr/current"]);
        assert_eq!(run.succeeds().text(), "coracle-test-rootless (enforce)");
        container.remove();
        let covered =
            host.bundle(spec().without_mount("/proc").mount("/proc", "tmpfs", "tmpfs", &[])).start();
        let run = covered.exec_with(&["--apparmor", name], &["echo", "unconfined"]);
        let why = "opening what labels are written to (/process/apparmorProfile";
        run.fails_with(&[why, "is no procfs"]);
        covered.remove();
    });
}

#[test]
fn a_profile_that_can_not_be_applied_is_told_at_create() {
    privileged(|host| {
        let bundle = host.bundle(Spec::new().set("/process/apparmorProfile", "no-such-profile"));
        let words: &[&str] = &["apparmor failed to apply profile", "/process/apparmorProfile"];
        bundle.try_create().fails_with(words);
        let why = if has_apparmor() { "no such file or directory" } else { "disabled or not supported" };
        bundle.run().fails_with(&[words, &[why]].concat());
    });
}

#[test]
fn a_profile_of_an_executed_process_that_can_not_be_applied_is_told() {
    privileged(|host| {
        let container = host.sleeper();
        let process = json!({
            "user": {"uid": 0, "gid": 0}, "cwd": "/", "args": ["true"], "apparmorProfile": "no-such-profile"
        });
        let path = host.directory().join("process.json");
        fs::write(&path, process.to_string()).unwrap();
        let run = host.call(&["exec", "--process", path.to_str().unwrap(), container.id()]);
        run.fails_with(&["apparmor failed to apply profile", "/process/apparmorProfile"]);
        container.remove();
    });
}

#[test]
fn labels_of_selinux_are_refused_where_there_is_none() {
    privileged(|host| {
        if fs::exists("/sys/fs/selinux/enforce").unwrap() {
            return host.skip("SELinux is enabled");
        }
        let why = "selinux label is specified in config, but selinux is disabled or not supported";
        for field in ["/process/selinuxLabel", "/linux/mountLabel"] {
            let bundle = host.bundle(Spec::new().set(field, "system_u:system_r:container_t:s0"));
            bundle.try_create().fails_with(&[field, why]);
            bundle.run().fails_with(&[field, why]);
        }
    });
}
